"""Counting parameters from shapes, part by part, as the model's layers are built."""

from __future__ import annotations

import dataclasses

from aim_engine.model import fields as names
from aim_engine.model import mixers, towers
from aim_engine.model.architecture import Architecture
from aim_engine.model.fields import Fields
from aim_engine.model.spec import Moe, Parameters

_FOUR_TIMES = frozenset(
    ["bloom", "codegen", "falcon", "RefinedWeb", "RefinedWebModel", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mpt"]
)
"""Feed-forward width is 4 x hidden where the config is silent."""
_DRAFTS_WITH_ENDS = frozenset(["deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite"])
"""Families whose checkpoints store the draft layer's embedding and head, copies of the model's own, beside it."""
_SINGLE_BLOCKS = frozenset(["nemotron_h", "nemotron_h_omni", "nemotron_h_puzzle"])
"""Every layer is one block: a mixer, a feed-forward block or experts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The shapes that both counting and layer grouping need."""

    fields: Fields
    arch: Architecture
    model_type: str
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    kinds: tuple[str, ...]
    moe_layers: frozenset[int]
    moe: Moe | None
    is_mla: bool
    is_compressed: bool
    tied: bool
    headless: bool = False
    """No language model head: a bare model or a classifier."""

    @property
    def intermediate(self) -> int:
        """Width of a dense feed-forward block; 0 where there is none."""
        fields = self.fields
        if self.model_type in ("llama4", "llama4_text") and self.moe is not None:
            return fields.maybe("intermediate_size_mlp") or fields.count(*names.INTERMEDIATE)
        if self.moe is not None and fields.maybe("dense_intermediate_size"):
            return fields.count("dense_intermediate_size")
        found = fields.maybe(*names.INTERMEDIATE)
        ratio = fields.maybe("expansion_ratio")
        if found is None and ratio is not None:
            return ratio * self.hidden
        if found is None and (self.model_type in _FOUR_TIMES):
            return 4 * self.hidden
        absent = self.moe is not None or set(self.kinds) <= {"mamba", "none"} or fields.raw("block_configs") is not None
        if found is None and absent:
            return 0
        if found is None:
            return fields.count(*names.INTERMEDIATE)
        if self.model_type.startswith("lfm2") and fields.flag("block_auto_adjust_ff_dim"):
            return self._adjusted(found)
        return found // 2 if self.model_type in ("qwen", "recurrent_gemma") else found

    def _adjusted(self, width: int) -> int:
        """LFM2 shrinks the stated width by a third and rounds it up (modeling_lfm2.py Lfm2MLP)."""
        multiplier = self.fields.raw("block_ffn_dim_multiplier")
        width = int(2 * width / 3)
        if (
            isinstance(multiplier, int | float)
            and not isinstance(multiplier, bool)
            and 0 < multiplier < names.MAX_COUNT
        ):
            width = int(multiplier * width)
        step = self.fields.maybe("block_multiple_of") or 1
        return step * -(-width // step)

    def mlp_width(self, index: int) -> int:
        """Width of the dense feed-forward block of one layer; 0 where that layer has none."""
        blocks = self.fields.raw("block_configs")
        if isinstance(blocks, list) and index < len(blocks):
            return self._searched_width(blocks[index])
        if self.fields.flag("use_double_wide_mlp") and self.shares_kv(index):
            return 2 * self.intermediate
        return self.intermediate

    def _searched_width(self, block: object) -> int:
        """Nemotron-NAS: a multiple of the hidden width, two thirds of it, rounded up to 256 (its own modeling code)."""
        ffn = block.get("ffn") if isinstance(block, dict) else None
        ffn = ffn if isinstance(ffn, dict) else {}
        multiplier = ffn.get("ffn_mult")
        if ffn.get("no_op") or not isinstance(multiplier, int | float) or not 0 < multiplier < names.MAX_COUNT:
            return ffn["intermediate_size"] if isinstance(ffn.get("intermediate_size"), int) else 0
        return -(-int(2 * multiplier * self.hidden / 3) // 256) * 256

    def attention_shape(self, index: int, kind: str) -> tuple[int, int, int, int]:
        """Heads, KV heads, width of a key and of a value; some families give windows or single layers their own."""
        f = self.fields
        blocks = f.raw("block_configs")
        if isinstance(blocks, list) and index < len(blocks) and isinstance(blocks[index], dict):
            attention = blocks[index].get("attention")
            group = attention.get("n_heads_in_group") if isinstance(attention, dict) else None
            kv_heads = self.heads // group if isinstance(group, int) and 0 < group <= self.heads else self.kv_heads
            return self.heads, kv_heads, self.head_dim, self.head_dim
        if kind == "full":
            own = f.maybe("num_global_key_value_heads") if f.flag("attention_k_eq_v") else None
            dim = f.maybe("global_head_dim") or self.head_dim
            return self.heads, own or self.kv_heads, dim, self._value_width(dim, "v_head_dim")
        heads = f.maybe("swa_num_attention_heads") or self.heads
        dim = f.maybe("swa_head_dim") or self.head_dim
        return heads, f.maybe("swa_num_key_value_heads") or self.kv_heads, dim, self._value_width(dim, "swa_v_head_dim")

    def _value_width(self, dim: int, key: str) -> int:
        """Values have another width than keys outside of latent attention only in MiMo V2."""
        return self.fields.maybe(key, "v_head_dim") or dim if self.model_type.startswith("mimo_v2") else dim

    def shares_kv(self, index: int) -> bool:
        """Does the layer read the KV cache of an earlier one?"""
        return index >= len(self.kinds) - (self.fields.maybe("num_kv_shared_layers") or 0)

    def has_bias(self, part: str) -> bool:
        """Does a part of every layer have a bias?"""
        rules = {str(name): rule for name, rule in self.arch.biases.items()}
        rule = rules.get(part, False)
        if isinstance(rule, str):
            return self.fields.flag(rule)
        if part == "qkv" and not rule:
            return self.fields.flag("qkv_bias", "add_qkv_bias", "use_qkv_bias")
        return rule

    def has_sinks(self, kind: str) -> bool:
        """Does a head of such a layer have an attention sink?"""
        f = self.fields
        if kind == "full":
            return self.model_type == "gpt_oss" or f.flag("add_full_attention_sink_bias")
        return self.model_type == "gpt_oss" or f.flag("add_swa_attention_sink_bias", "attention_sink")

    def has_indexer(self, index: int) -> bool:
        """Does a latent layer choose its tokens with an indexer of its own, rather than an earlier layer's?"""
        f = self.fields
        if not f.maybe("index_n_heads") or not f.maybe("index_head_dim"):
            return False
        listed = f.raw("indexer_types")
        if isinstance(listed, list) and index < len(listed):
            return bool(listed[index] == "full")
        every, offset = f.maybe("index_topk_freq") or 1, f.maybe("index_skip_topk_offset") or 0
        return index < offset or (index - offset + 1) % every == 0

    def is_block_sparse(self, index: int) -> bool:
        """Does the layer keep an index key for every token, to choose blocks (MiniMax M3)?"""
        section = self.fields.section("sparse_attention_config")
        if section is None or section.get("use_sparse_attention") is False:
            return False
        listed = section.get("sparse_attention_freq")
        return (
            bool(listed[index]) if isinstance(listed, list) and index < len(listed) else index not in self.dense_layers
        )

    @property
    def dense_layers(self) -> frozenset[int]:
        """Layers without experts."""
        return frozenset(range(len(self.kinds))) - self.moe_layers

    def compression(self, index: int) -> int:
        """Tokens that one entry of a compressed layer's cache stands for; at most 1 without compression."""
        ratios = self.fields.numbers("compress_ratios")
        if ratios and index < len(ratios):
            return ratios[index] if 0 <= ratios[index] < names.MAX_COUNT else 1
        return 4 if ratios is None else 1

    @property
    def is_double(self) -> bool:
        """Two attention and two dense blocks in a layer, beside the experts (LongCat)."""
        return self.model_type.startswith("longcat_flash")

    @property
    def has_parallel_mamba(self) -> bool:
        """Attention and a state-space mixer side by side in every layer."""
        return self.model_type == "falcon_h1"

    @property
    def is_lightning(self) -> bool:
        """Linear attention of MiniMax 01 and M1: no key or value heads of its own."""
        return self.model_type in ("minimax", "minimax_m1", "minimax_text_01")

    @property
    def is_short_conv(self) -> bool:
        """LFM2's layers without attention are short convolutions."""
        return self.model_type.startswith("lfm2")

    @property
    def linear(self) -> tuple[int, int, int, int]:
        """Linear attention: key heads, key width, value heads, value width."""
        f = self.fields
        if self.is_lightning:
            return self.heads, self.head_dim, self.heads, self.head_dim
        kda = f.section("linear_attn_config")
        if kda is not None:
            heads, dim = (kda.get(key) for key in ("num_heads", "head_dim"))
            heads = heads if isinstance(heads, int) and 0 < heads < names.MAX_COUNT else self.heads
            dim = dim if isinstance(dim, int) and 0 < dim < names.MAX_COUNT else self.head_dim
            return heads, dim, heads, dim
        keys = f.maybe("linear_num_key_heads") or self.heads
        key_dim = f.maybe("linear_key_head_dim") or self.head_dim
        return keys, key_dim, f.maybe("linear_num_value_heads") or keys, f.maybe("linear_value_head_dim") or key_dim

    @property
    def linear_kernel(self) -> int:
        """Length of the convolution before linear attention."""
        kda = self.fields.section("linear_attn_config")
        found = kda.get("short_conv_kernel_size") if kda is not None else None
        return (
            found if isinstance(found, int) and 0 < found < 1024 else self.fields.maybe("linear_conv_kernel_dim") or 1
        )

    @property
    def linear_state(self) -> int:
        """Recurrent values of one sequence in one linear attention layer."""
        _, key_dim, values, value_dim = self.linear
        return values * key_dim * value_dim

    @property
    def linear_conv(self) -> int:
        """Convolution values of one sequence in one linear attention layer."""
        keys, key_dim, values, value_dim = self.linear
        return (2 * keys * key_dim + values * value_dim) * (self.linear_kernel - 1)

    @property
    def mamba_heads(self) -> int:
        """Heads of a Mamba 2 mixer."""
        return (
            self.fields.maybe("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
            or self.mamba_inner // 64
        )

    @property
    def mamba_inner(self) -> int:
        """Inner width of a state-space mixer."""
        f = self.fields
        stated = f.maybe("mamba_d_ssm", "mamba_d_inner", "d_inner")
        if stated:
            return stated
        if self.is_short_conv:
            return self.hidden
        if self.is_mamba2:
            heads = f.maybe("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
            width = f.maybe("mamba_head_dim", "mamba_d_head", "mamba_headdim")
            if width is None and self.model_type == "mamba2":
                width = f.maybe("head_dim")
            if heads and width:
                return heads * width
        if self.model_type in ("mamba", "falcon_mamba") and f.maybe("intermediate_size"):
            return f.count("intermediate_size")
        return (f.maybe("mamba_expand", "expand") or 2) * self.hidden

    @property
    def is_mamba2(self) -> bool:
        """Heads and groups, as in Mamba 2 and its hybrids."""
        return (
            bool(self.fields.maybe("mamba_num_heads", "mamba_n_heads", "n_mamba_heads")) or self.model_type == "mamba2"
        )

    @property
    def mamba_state_size(self) -> int:
        """State values per inner channel."""
        return self.fields.maybe("ssm_state_size", "mamba_d_state", "state_size", "d_state") or 16

    @property
    def mamba_groups(self) -> int:
        """Groups that share B and C."""
        return self.fields.maybe("mamba_n_groups", "mamba_ngroups", "n_groups", "mamba_num_groups") or 1

    @property
    def conv_kernel(self) -> int:
        """Length of the convolution before a state-space mixer."""
        return self.fields.maybe("conv_kernel", "mamba_d_conv", "d_conv", "conv_L_cache") or 4

    @property
    def mamba_state(self) -> int:
        """Recurrent values of one sequence in one state-space layer; a short convolution keeps none."""
        return 0 if self.is_short_conv else self.mamba_inner * self.mamba_state_size

    @property
    def mamba_conv(self) -> int:
        """Convolution values of one sequence in one state-space layer."""
        extra = 2 * self.mamba_groups * self.mamba_state_size if self.is_mamba2 and not self.is_short_conv else 0
        return (self.mamba_inner + extra) * (self.conv_kernel - 1)

    @property
    def mlp_matrices(self) -> int:
        """Matrices of one feed-forward block."""
        return 2 if self.arch.plain_mlp else 3

    def mlp(self, width: int) -> int:
        """Parameters of a feed-forward block of that width."""
        biases = (self.mlp_matrices - 1) * width + self.hidden if self.has_bias("mlp") else 0
        return self.mlp_matrices * self.hidden * width + biases


def count(shape: Shape) -> Parameters:
    """Parameters by part."""
    attention = replicated = kv = dense = norms = 0
    for index, kind in enumerate(shape.kinds):
        mixer = mixers.of_layer(shape, index, kind)
        attention, replicated, kv = attention + mixer.split, replicated + mixer.whole, kv + mixer.kv
        norms += mixer.norms
        if _has_dense_mlp(shape, index, kind):
            dense += shape.mlp(shape.mlp_width(index)) * (2 if shape.is_double else 1)
    experts = shared = router = 0
    if shape.moe is not None:
        per_layer = _experts(shape, shape.moe)
        experts, shared, router = (part * shape.moe.layers for part in per_layer)
    one_norm = shape.hidden * (2 if shape.has_bias("norm") else 1)
    per_layer_embedding = shape.fields.maybe("hidden_size_per_layer_input") or 0
    embedding = shape.vocab * (shape.fields.maybe("word_embed_proj_dim") or shape.hidden)
    if per_layer_embedding:
        rows = shape.fields.maybe("vocab_size_per_layer_input") or shape.vocab
        embedding += rows * per_layer_embedding * len(shape.kinds)
    return Parameters(
        embedding=embedding,
        lm_head=0
        if shape.tied or shape.headless
        else shape.vocab * (shape.hidden + (1 if shape.has_bias("head") else 0)),
        attention=attention,
        attention_replicated=replicated,
        kv_projection=kv,
        dense_mlp=dense,
        experts=experts,
        shared_experts=shared,
        router=router,
        norms=norms + len(shape.kinds) * shape.arch.norms_per_layer * one_norm + one_norm,
        vision=towers.count(shape.fields.outer, shape.hidden),
        mtp=_drafts(shape),
        other=_positions(shape) + _per_layer_inputs(shape, per_layer_embedding),
    )


def _has_dense_mlp(shape: Shape, index: int, kind: str) -> bool:
    if shape.model_type in _SINGLE_BLOCKS:
        pattern = shape.fields.raw("hybrid_override_pattern")
        names_of = pattern if isinstance(pattern, str) else shape.fields.words("layers_block_type") or ()
        return index < len(names_of) and names_of[index] in ("-", "mlp")
    if shape.model_type in ("mamba", "mamba2", "falcon_mamba"):
        return False
    if kind == "mamba" and not shape.intermediate:
        return False
    if shape.fields.flag("enable_moe_block") or shape.is_double:
        return True
    return index not in shape.moe_layers


def _experts(shape: Shape, moe: Moe) -> tuple[int, int, int]:
    """Routed experts, shared experts and router of one layer."""
    f = shape.fields
    width = f.maybe("moe_latent_size", "routed_expert_hidden_size") or shape.hidden
    routed = moe.experts * shape.mlp_matrices * width * moe.intermediate_size
    if shape.has_bias("mlp"):
        routed += moe.experts * ((shape.mlp_matrices - 1) * moe.intermediate_size + shape.hidden)
    latent = 2 * shape.hidden * width if width != shape.hidden else 0
    shared = shape.mlp_matrices * shape.hidden * moe.shared_intermediate_size + latent
    router = shape.hidden * (moe.experts + (f.maybe("zero_expert_num") or 0))
    if shape.model_type == "gpt_oss":
        router += moe.experts
    if f.maybe("shared_expert_intermediate_size"):
        router += shape.hidden
    return routed, shared, router


def _drafts(shape: Shape) -> int:
    """Multi-token-prediction layers: each a full layer and a projection of two hidden states into one."""
    f = shape.fields
    count_of = f.maybe("num_nextn_predict_layers", "mtp_num_hidden_layers") or 0
    if not count_of or f.raw("use_mtp") is False:
        return 0
    attends = [index for index, kind in enumerate(shape.kinds) if kind not in ("linear", "mamba", "none")]
    mixer = mixers.of_layer(shape, attends[-1], shape.kinds[attends[-1]]) if attends else mixers.Mixer(0)
    one = mixer.split + mixer.whole + mixer.norms + 2 * shape.hidden * shape.hidden + 4 * shape.hidden
    if shape.moe is not None and (len(shape.kinds) - 1 in shape.moe_layers or shape.model_type in _SINGLE_BLOCKS):
        one += sum(_experts(shape, shape.moe))
    else:
        one += shape.mlp(shape.intermediate)
    if shape.model_type in _DRAFTS_WITH_ENDS:
        one += 2 * shape.vocab * shape.hidden
    return count_of * one


def _positions(shape: Shape) -> int:
    """Learned position embeddings and what encoders add: token types, an embedding norm, a pooler."""
    hidden = shape.hidden
    total = 0
    if shape.arch.position_rows_extra is not None:
        total += ((shape.fields.maybe(*names.POSITIONS) or 0) + shape.arch.position_rows_extra) * hidden
    if shape.arch.encoder_only:
        total += (shape.fields.maybe("type_vocab_size") or 0) * hidden + 2 * hidden + hidden * hidden + hidden
    projected = shape.fields.maybe("word_embed_proj_dim")
    return total + (2 * projected * hidden if projected and projected != hidden else 0)


def _per_layer_inputs(shape: Shape, width: int) -> int:
    """Gemma 3n and 4: every layer mixes in an embedding of its own; 3n adds low-rank and alternating branches."""
    if not width:
        return 0
    hidden, layers = shape.hidden, len(shape.kinds)
    total = hidden * width * layers + width + layers * (2 * hidden * width + hidden)
    if shape.model_type.startswith("gemma3n"):
        rank, streams = shape.fields.maybe("laurel_rank") or 64, shape.fields.maybe("altup_num_inputs") or 4
        one = 2 * hidden * rank + hidden + streams * hidden + streams**2 + streams**3 + 2 * hidden
        total += layers * one + 2 * (streams - 1) * hidden * hidden
    return total
