"""What one layer mixes tokens with, in parameters: attention of every kind, and mixers that keep a state.

Sources: the model classes of transformers 5.19.0 that the functions name, and the checkpoints' own tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from aim_engine.model.parameters import Shape

_KDA_GATES = 2


class Mixer(NamedTuple):
    """Parameters of one layer's mixer."""

    split: int
    """Can be split by heads, K and V projections included."""
    whole: int = 0
    """Held whole by every rank."""
    kv: int = 0
    """The K and V projections inside `split`."""
    norms: int = 0


def of_layer(shape: Shape, index: int, kind: str) -> Mixer:
    """Parameters of the mixer of layer `index`."""
    if kind == "none":
        return _attention(shape, index, kind) if shape.arch.encoder_only else Mixer(0)
    if kind == "linear":
        return _linear(shape)
    if kind == "mamba":
        return Mixer(state_space(shape))
    if shape.is_compressed:
        return _compressed(shape, index)
    if shape.is_mla:
        one = _latent(shape, index)
        return Mixer(2 * one.split, 2 * one.whole, 0, 2 * one.norms) if shape.is_double else one
    attends = _attention(shape, index, kind)
    if shape.has_parallel_mamba:
        return attends._replace(split=attends.split + state_space(shape))
    return attends


def _attention(shape: Shape, index: int, kind: str) -> Mixer:
    """Multi-head, grouped or multi-query attention."""
    f, hidden = shape.fields, shape.hidden
    heads, kv_heads, dim, value_dim = shape.attention_shape(index, kind)
    shares_kv = shape.shares_kv(index)
    keys = 0 if shares_kv else hidden * kv_heads * dim
    values = 0 if shares_kv or (kind == "full" and f.flag("attention_k_eq_v")) else hidden * kv_heads * value_dim
    twice = 2 if f.flag("attn_output_gate") else 1
    queries, output = hidden * heads * dim * twice, heads * value_dim * hidden
    if shape.arch.attention_gate == "value":
        queries += hidden * heads * value_dim
    elif shape.arch.attention_gate == "head":
        queries += hidden * heads
    split = queries + keys + values + output
    if shape.has_bias("qkv"):
        split += (heads * twice + kv_heads) * dim + kv_heads * value_dim
    if shape.has_bias("output"):
        split += hidden
    if shape.has_sinks(kind):
        split += heads
    split += _block_index(shape, index)
    norms = 0
    if shape.arch.qk_norm == "heads" or (shape.arch.qk_norm is None and f.flag("use_qk_norm", "qk_layernorm")):
        norms = dim if shares_kv else 2 * dim
    elif shape.arch.qk_norm == "all":
        norms = (heads + kv_heads) * dim
    return Mixer(split, 0, keys + values, norms)


def _block_index(shape: Shape, index: int) -> int:
    """MiniMax M3: queries and one key that choose blocks of the cache."""
    sparse = shape.fields.section("sparse_attention_config")
    if sparse is None or not shape.is_block_sparse(index):
        return 0
    heads, dim = sparse.get("sparse_num_index_heads"), sparse.get("sparse_index_dim")
    return shape.hidden * dim * (heads + 1) if isinstance(heads, int) and isinstance(dim, int) else 0


def _latent(shape: Shape, index: int) -> Mixer:
    """Multi-head latent attention, with the indexer of its sparse form where the layer has one."""
    f, hidden, heads = shape.fields, shape.hidden, shape.heads
    rope = f.maybe("qk_rope_head_dim") or 0
    nope = f.maybe("qk_nope_head_dim") or shape.head_dim
    value = f.maybe("v_head_dim") or shape.head_dim
    latent = f.count("kv_lora_rank")
    query_rank = f.maybe("q_lora_rank") or 0
    whole = hidden * (latent + rope) + hidden * query_rank
    split = (query_rank or hidden) * heads * (nope + rope) + latent * heads * (nope + value) + heads * value * hidden
    if f.flag("mla_use_output_gate"):
        split += hidden * heads * value
    norms = latent + query_rank
    if shape.has_indexer(index):
        index_heads, index_dim = f.maybe("index_n_heads") or 0, f.maybe("index_head_dim") or 0
        whole += (query_rank or hidden) * index_heads * index_dim + hidden * (index_dim + index_heads)
        norms += 2 * index_dim
    return Mixer(split, whole, 0, norms)


def _compressed(shape: Shape, index: int) -> Mixer:
    """DeepSeek V4: one shared KV head, low-rank queries, grouped low-rank output, a compressor, an indexer."""
    f, hidden, heads, dim = shape.fields, shape.hidden, shape.heads, shape.head_dim
    query_rank, output_rank = f.count("q_lora_rank"), f.maybe("o_lora_rank") or 0
    groups = f.maybe("o_groups") or 1
    output = heads * dim * output_rank + groups * output_rank * hidden if output_rank else heads * dim * hidden
    split = query_rank * heads * dim + output + heads
    whole = hidden * query_rank + hidden * dim
    norms = query_rank + dim
    ratio = shape.compression(index)
    if ratio > 1:
        overlap = 2 if ratio < HEAVY else 1
        whole += 2 * hidden * overlap * dim + ratio * overlap * dim
        norms += dim
    if 1 < ratio < HEAVY:
        index_heads, index_dim = f.maybe("index_n_heads") or 0, f.maybe("index_head_dim") or 0
        whole += query_rank * index_heads * index_dim + hidden * index_heads
        whole += 2 * hidden * 2 * index_dim + ratio * 2 * index_dim
        norms += index_dim
    streams = f.maybe("hc_mult") or 0
    whole += 2 * (streams * (streams + 2) * streams * hidden + streams * (streams + 2) + 3) if streams else 0
    return Mixer(split, whole, 0, norms)


HEAVY = 64
"""Layers that compress more than this keep no overlap and no indexer (compressor.py: 4 or 128)."""


def _linear(shape: Shape) -> Mixer:
    """Gated delta net, Kimi delta attention or lightning attention."""
    f, hidden = shape.fields, shape.hidden
    if shape.is_lightning:
        inner = shape.heads * shape.head_dim
        return Mixer(hidden * 4 * inner + inner * hidden, 0, 0, inner)
    kda = f.section("linear_attn_config")
    if kda is not None:
        heads, dim = shape.linear[0], shape.linear[1]
        inner = heads * dim
        gates = dim * (hidden + inner) + (hidden * inner if kda.get("use_full_rank_gate") else dim * (hidden + inner))
        return Mixer(
            4 * hidden * inner + gates + hidden * heads + 3 * inner * shape.linear_kernel + heads + inner, 0, 0, dim
        )
    keys, key_dim, values, value_dim = shape.linear
    inputs = 2 * keys * key_dim + 2 * values * value_dim + 2 * values
    conv = (2 * keys * key_dim + values * value_dim) * shape.linear_kernel
    return Mixer(hidden * inputs + conv + values * value_dim * hidden + 2 * values, 0, 0, value_dim)


def state_space(shape: Shape) -> int:
    """Mamba, Mamba 2, and LFM2's short convolution."""
    f, hidden, inner, state, kernel = (
        shape.fields,
        shape.hidden,
        shape.mamba_inner,
        shape.mamba_state_size,
        shape.conv_kernel,
    )
    if shape.is_short_conv:
        return hidden * 3 * hidden + hidden * kernel + hidden * hidden
    if shape.is_mamba2:
        heads = shape.mamba_heads
        mixed = inner + 2 * shape.mamba_groups * state
        norm = 0 if f.raw("mamba_rms_norm") is False or shape.has_parallel_mamba else inner
        return hidden * (inner + mixed + heads) + mixed * (kernel + 1) + 3 * heads + norm + inner * hidden
    rank = f.maybe("time_step_rank", "mamba_dt_rank", "dt_rank") or -(-hidden // 16)
    total = hidden * 2 * inner + inner * (kernel + 1) + inner * (rank + 2 * state)
    return total + rank * inner + inner * (state + 2) + inner * hidden
