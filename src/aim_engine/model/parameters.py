"""Counting parameters from shapes, part by part, as the model's layers are built."""

from __future__ import annotations

import dataclasses

from aim_engine.model import fields as names
from aim_engine.model import towers
from aim_engine.model.fields import Fields
from aim_engine.model.spec import Moe, Parameters

_PLAIN_MLP = frozenset(
    [
        "bloom",
        "falcon",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "mpt",
        "nemotron",
        "nemotron_h",
        "opt",
        "phi",
        "starcoder2",
        "persimmon",
        "whisper",
        "bert",
        "roberta",
    ]
)
"""Two matrices per feed-forward block; every other family gates with a third."""
_FOUR_TIMES = frozenset(["bloom", "falcon", "gpt2", "gpt_bigcode", "gptj", "mpt"])
"""Feed-forward width is 4 x hidden where the config is silent."""
_QKV_BIAS = frozenset(
    [
        "chatglm",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "opt",
        "bloom",
        "phi",
        "qwen",
        "qwen2",
        "qwen2_moe",
        "qwen2_vl",
        "qwen2_5_vl",
        "starcoder2",
    ]
)
_GATED_ATTENTION = frozenset(["qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"])
"""The query projection is twice as wide: half of it gates the output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The shapes that both counting and layer grouping need."""

    fields: Fields
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

    @property
    def intermediate(self) -> int:
        """Width of a dense feed-forward block; 0 where there is none."""
        fields = self.fields
        if self.model_type in ("llama4", "llama4_text") and self.moe is not None:
            return fields.maybe("intermediate_size_mlp") or fields.count(*names.INTERMEDIATE)
        found = fields.maybe(*names.INTERMEDIATE)
        ratio = fields.maybe("expansion_ratio")
        if found is None and ratio is not None:
            return ratio * self.hidden
        if found is None and self.model_type in _FOUR_TIMES:
            return 4 * self.hidden
        if found is None and (self.moe is not None or set(self.kinds) <= {"mamba", "none"}):
            return 0
        if found is None:
            return fields.count(*names.INTERMEDIATE)
        return found // 2 if self.model_type == "qwen" else found

    def kv_shape(self, kind: str) -> tuple[int, int]:
        """KV heads and head width of an attention layer; some families give full layers their own."""
        if kind == "full":
            own = self.fields.maybe("num_global_key_value_heads")
            return own or self.kv_heads, self.fields.maybe("global_head_dim") or self.head_dim
        return self.fields.maybe("swa_num_key_value_heads") or self.kv_heads, self.fields.maybe(
            "swa_head_dim"
        ) or self.head_dim

    @property
    def linear(self) -> tuple[int, int, int, int]:
        """Gated delta net: key heads, key width, value heads, value width."""
        f = self.fields
        keys = f.maybe("linear_num_key_heads") or self.heads
        key_dim = f.maybe("linear_key_head_dim") or self.head_dim
        return keys, key_dim, f.maybe("linear_num_value_heads") or keys, f.maybe("linear_value_head_dim") or key_dim

    @property
    def linear_state(self) -> int:
        """Recurrent values of one sequence in one linear attention layer."""
        _, key_dim, values, value_dim = self.linear
        return values * key_dim * value_dim

    @property
    def linear_conv(self) -> int:
        """Convolution values of one sequence in one linear attention layer."""
        keys, key_dim, values, value_dim = self.linear
        kernel = self.fields.maybe("linear_conv_kernel_dim") or 1
        return (2 * keys * key_dim + values * value_dim) * (kernel - 1)

    @property
    def mamba_inner(self) -> int:
        """Inner width of a state-space mixer."""
        f = self.fields
        heads, width = (
            f.maybe("mamba_num_heads", "mamba_n_heads", "num_heads"),
            f.maybe("mamba_head_dim", "mamba_d_head", "head_dim"),
        )
        if heads and width and self.is_mamba2:
            return heads * width
        return f.maybe("mamba_d_inner", "d_inner") or (f.maybe("mamba_expand", "expand") or 2) * self.hidden

    @property
    def is_mamba2(self) -> bool:
        """Heads and groups, as in Mamba 2 and its hybrids."""
        return bool(self.fields.maybe("mamba_num_heads", "mamba_n_heads")) or self.model_type == "mamba2"

    @property
    def mamba_state_size(self) -> int:
        """State values per inner channel."""
        return self.fields.maybe("ssm_state_size", "mamba_d_state", "state_size", "d_state") or 16

    @property
    def mamba_groups(self) -> int:
        """Groups that share B and C."""
        return self.fields.maybe("mamba_n_groups", "n_groups", "mamba_num_groups") or 1

    @property
    def mamba_state(self) -> int:
        """Recurrent values of one sequence in one state-space layer."""
        return self.mamba_inner * self.mamba_state_size

    @property
    def mamba_conv(self) -> int:
        """Convolution values of one sequence in one state-space layer."""
        kernel = self.fields.maybe("conv_kernel", "mamba_d_conv", "d_conv", "conv_L_cache") or 4
        extra = 2 * self.mamba_groups * self.mamba_state_size if self.is_mamba2 else 0
        return (self.mamba_inner + extra) * (kernel - 1)

    @property
    def mlp_matrices(self) -> int:
        """Matrices of one feed-forward block."""
        return 2 if self.model_type in _PLAIN_MLP else 3


def count(shape: Shape) -> Parameters:
    """Parameters by part. Biases of attention are counted, other biases are below a thousandth and are not."""
    attention = replicated = kv = dense = 0
    for index, kind in enumerate(shape.kinds):
        split, whole, kv_part = _mixer(shape, kind)
        attention, replicated, kv = attention + split, replicated + whole, kv + kv_part
        if _has_dense_mlp(shape, index, kind):
            dense += shape.mlp_matrices * shape.hidden * shape.intermediate
    experts = shared = router = 0
    if shape.moe is not None:
        per_layer = _experts(shape, shape.moe)
        experts, shared, router = (part * shape.moe.layers for part in per_layer)
    return Parameters(
        embedding=shape.vocab * shape.hidden,
        lm_head=0 if shape.tied else shape.vocab * shape.hidden,
        attention=attention,
        attention_replicated=replicated,
        kv_projection=kv,
        dense_mlp=dense,
        experts=experts,
        shared_experts=shared,
        router=router,
        norms=len(shape.kinds) * 2 * shape.hidden + shape.hidden,
        vision=towers.count(shape.fields.outer, shape.hidden),
        mtp=_drafts(shape),
        other=_positions(shape),
    )


def _has_dense_mlp(shape: Shape, index: int, kind: str) -> bool:
    alternating = shape.model_type == "nemotron_h" or (kind == "mamba" and not shape.fields.maybe(*names.INTERMEDIATE))
    if shape.model_type == "nemotron_h":
        pattern = shape.fields.raw("hybrid_override_pattern")
        names_of = pattern if isinstance(pattern, str) else shape.fields.words("layers_block_type") or ()
        return index < len(names_of) and names_of[index] in ("-", "mlp")
    if alternating or shape.model_type in ("mamba", "mamba2", "falcon_mamba"):
        return False
    if shape.fields.flag("enable_moe_block"):
        return True
    return index not in shape.moe_layers


def _mixer(shape: Shape, kind: str) -> tuple[int, int, int]:
    """Parameters of one layer's token mixer: split by heads, held whole, and of the former K and V projections."""
    hidden, heads = shape.hidden, shape.heads
    if kind == "none":
        return 0, 0, 0
    if kind == "linear":
        keys, key_dim, values, value_dim = shape.linear
        kernel = shape.fields.maybe("linear_conv_kernel_dim") or 1
        inputs = 2 * keys * key_dim + 2 * values * value_dim + 2 * values
        conv = (2 * keys * key_dim + values * value_dim) * kernel
        return hidden * inputs + conv + values * value_dim * hidden + 2 * values, 0, 0
    if kind == "mamba":
        return _state_space(shape), 0, 0
    if shape.is_compressed:
        return _compressed(shape)
    if shape.is_mla:
        return _latent(shape)
    kv_heads, dim = shape.kv_shape(kind)
    twice = 2 if shape.model_type in _GATED_ATTENTION and shape.fields.raw("attn_output_gate") is not False else 1
    shared_kv = kind == "full" and shape.fields.flag("attention_k_eq_v")
    kv = (1 if shared_kv else 2) * hidden * kv_heads * dim
    split = hidden * heads * dim * twice + kv + heads * dim * hidden
    if shape.model_type in _QKV_BIAS or shape.fields.flag("attention_bias", "qkv_bias", "add_qkv_bias", "use_qkv_bias"):
        split += (heads + 2 * kv_heads) * dim
    return split, 0, kv


def _latent(shape: Shape) -> tuple[int, int, int]:
    f, hidden, heads = shape.fields, shape.hidden, shape.heads
    rope = f.maybe("qk_rope_head_dim") or 0
    nope = f.maybe("qk_nope_head_dim") or shape.head_dim
    value = f.maybe("v_head_dim") or shape.head_dim
    latent = f.count("kv_lora_rank")
    query_rank = f.maybe("q_lora_rank") or 0
    whole = hidden * (latent + rope)
    if query_rank:
        whole += hidden * query_rank
        split = query_rank * heads * (nope + rope)
    else:
        split = hidden * heads * (nope + rope)
    split += latent * heads * (nope + value) + heads * value * hidden
    index_heads, index_dim = f.maybe("index_n_heads") or 0, f.maybe("index_head_dim") or 0
    whole += (query_rank or hidden) * index_heads * index_dim + hidden * (index_dim + index_heads)
    return split, whole, 0


def _compressed(shape: Shape) -> tuple[int, int, int]:
    """DeepSeek-V4: one shared KV head, low-rank queries and grouped low-rank output, an indexer and a compressor."""
    f, hidden, heads, dim = shape.fields, shape.hidden, shape.heads, shape.head_dim
    query_rank, output_rank = f.count("q_lora_rank"), f.maybe("o_lora_rank") or 0
    groups = f.maybe("o_groups") or 1
    split = query_rank * heads * dim + (
        heads * dim * output_rank + groups * output_rank * hidden if output_rank else heads * dim * hidden
    )
    index_heads, index_dim = f.maybe("index_n_heads") or 0, f.maybe("index_head_dim") or 0
    whole = (
        hidden * query_rank
        + 3 * hidden * dim
        + query_rank * index_heads * index_dim
        + hidden * (index_dim + index_heads)
    )
    return split, whole, 0


def _state_space(shape: Shape) -> int:
    hidden, inner, state = shape.hidden, shape.mamba_inner, shape.mamba_state_size
    kernel = shape.fields.maybe("conv_kernel", "mamba_d_conv", "d_conv", "conv_L_cache") or 4
    if shape.model_type.startswith("lfm2"):
        return hidden * 3 * hidden + hidden * kernel + hidden * hidden
    if shape.is_mamba2:
        heads = shape.fields.maybe("mamba_num_heads", "mamba_n_heads", "num_heads") or inner // 64
        mixed = inner + 2 * shape.mamba_groups * state
        return hidden * (inner + mixed + heads) + mixed * (kernel + 1) + 3 * heads + inner + inner * hidden
    rank = shape.fields.maybe("time_step_rank", "mamba_dt_rank", "dt_rank") or -(-hidden // 16)
    return (
        hidden * 2 * inner
        + inner * (kernel + 1)
        + inner * (rank + 2 * state)
        + rank * inner
        + inner * (state + 2)
        + inner * hidden
    )


def _experts(shape: Shape, moe: Moe) -> tuple[int, int, int]:
    """Routed experts, shared experts and router of one layer."""
    width = shape.fields.maybe("moe_latent_size") or shape.hidden
    routed = moe.experts * shape.mlp_matrices * width * moe.intermediate_size
    if shape.model_type == "gpt_oss":
        routed += moe.experts * (2 * moe.intermediate_size + shape.hidden)
    latent = 2 * shape.hidden * width if width != shape.hidden else 0
    shared = shape.mlp_matrices * shape.hidden * moe.shared_intermediate_size + latent
    return routed, shared, shape.hidden * moe.experts


def _drafts(shape: Shape) -> int:
    """Multi-token-prediction layers: each a full layer and a projection of two hidden states into one."""
    f = shape.fields
    count_of = f.maybe("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules") or 0
    if not count_of or f.raw("use_mtp") is False:
        return 0
    attends = [kind for kind in shape.kinds if kind not in ("linear", "mamba", "none")]
    split, whole, _ = _mixer(shape, attends[-1]) if attends else (0, 0, 0)
    one = split + whole + 2 * shape.hidden * shape.hidden + 4 * shape.hidden
    if shape.moe is not None and (len(shape.kinds) - 1 in shape.moe_layers or shape.model_type == "nemotron_h"):
        one += sum(_experts(shape, shape.moe))
    else:
        one += shape.mlp_matrices * shape.hidden * shape.intermediate
    return count_of * one


def _positions(shape: Shape) -> int:
    """Learned position embeddings, where the family has them."""
    learned = shape.model_type in ("gpt2", "gpt_bigcode", "opt")
    return (shape.fields.maybe(*names.POSITIONS) or 0) * shape.hidden if learned else 0
