"""Which kind every layer of the stack is: attention that keeps everything or a window, a latent, a state, or nothing."""

from __future__ import annotations

from aim_engine.errors import InvalidInput
from aim_engine.model.fields import LAYERS, POSITIONS, Fields

_NAMES = {
    "full_attention": "full",
    "deepseek_sparse_attention": "full",
    "indexed_attention": "full",
    "minimax_m3_sparse": "full",
    "compressed_sparse_attention": "full",
    "heavily_compressed_attention": "full",
    "hybrid_sliding": "sliding",
    "attention": "full",
    "global_attention": "full",
    "global": "full",
    "hybrid": "full",
    "sliding_attention": "sliding",
    "local_attention": "sliding",
    "local": "sliding",
    "sliding_window": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
    "linear": "linear",
    "mamba": "mamba",
    "mamba2": "mamba",
    "recurrent": "mamba",
    "conv": "mamba",
    "moe": "none",
    "mlp": "none",
    "-": "none",
    "E": "none",
    "M": "mamba",
    "*": "full",
}
_PATTERN = {
    "gemma2": 2,
    "gemma3_text": 6,
    "gemma3": 6,
    "gemma3n_text": 5,
    "gemma4": 6,
    "gemma4_text": 6,
    "cohere2": 4,
    "exaone4": 4,
    "olmo3": 4,
    "gpt_oss": 2,
}
"""Every n-th layer is full, the others slide, where a config names neither pattern nor layers.
Source: transformers configuration classes of these models."""
_CHUNK_PATTERN = 4
"""Llama 4: every fourth layer is full, the others are chunked (no_rope_layer_interval)."""

MOST_LAYERS = 4096
"""More than any transformer has by far; a larger count is a damaged file."""


def kinds(fields: Fields, model_type: str) -> list[str]:
    """The kind of each layer, first to last. Raises: InvalidInput naming the key."""
    pattern = fields.raw("hybrid_override_pattern")
    names = (
        list(pattern) if isinstance(pattern, str) else fields.words("layers_block_type", "layer_types", "block_types")
    )
    count = fields.maybe(*LAYERS)
    blocks = fields.raw("block_configs")
    if isinstance(blocks, list) and blocks:
        return ["none" if _is_off(block) else "full" for block in blocks]
    if names is None:
        if count is None or count < 1:
            fields.count(*LAYERS)
            raise AssertionError("count() has raised")
        if count > MOST_LAYERS:
            raise InvalidInput(
                f"{fields.name}: {count} layers are not a model",
                why=f"num_hidden_layers is at most {MOST_LAYERS}",
                hint="fetch the config again",
            )
        return _by_rule(fields, model_type, count)
    unknown = sorted({name for name in names if name not in _NAMES})
    if unknown:
        raise InvalidInput(
            f"{fields.name}: the layer kind '{unknown[0]}' is not known",
            why=f"known kinds: {', '.join(sorted(name for name in _NAMES if len(name) > 1))}",
            hint="this model needs a newer aim-engine",
        )
    if count is not None and len(names) > count > 0:
        names = names[:count]
    if count is not None and 0 < len(names) < count:
        names = (names * (count // len(names) + 1))[:count]
    if not names:
        raise InvalidInput(f"{fields.name}: the list of layers is empty", hint="fetch the config.json again")
    found = [_NAMES[name] for name in names]
    window = fields.maybe("sliding_window", "attention_chunk_size", "sliding_window_size")
    return ["full" if kind in ("sliding", "chunked") and not window else kind for kind in found]


def _is_off(block: object) -> bool:
    """Does a block of a searched architecture (Nemotron-NAS) attend to nothing?"""
    attention = block.get("attention") if isinstance(block, dict) else None
    return isinstance(attention, dict) and bool(attention.get("no_op") or attention.get("replace_with_linear"))


def _by_list(fields: Fields, count: int) -> list[str] | None:
    """Kinds by lists of layer numbers, as hybrids name them."""
    attending = fields.numbers("attn_layer_indices", "full_attn_idxs")
    if attending is not None and fields.maybe("num_attention_heads", "n_head"):
        return ["full" if index in attending else "mamba" for index in range(count)]
    listed = fields.numbers("hybrid_layer_pattern")
    if listed and len(listed) >= count:
        return ["sliding" if slides else "full" for slides in listed[:count]]
    softmax = fields.numbers("attn_type_list")
    if softmax and len(softmax) >= count:
        return ["full" if attends else "linear" for attends in softmax[:count]]
    kda = fields.section("linear_attn_config")
    if kda is not None and isinstance(kda.get("kda_layers"), list):
        return ["linear" if index + 1 in kda["kda_layers"] else "full" for index in range(count)]
    return None


def _by_rule(fields: Fields, model_type: str, count: int) -> list[str]:
    listed = _by_list(fields, count)
    if listed is not None:
        return listed
    interval = fields.maybe("full_attention_interval")
    if interval:
        return ["full" if (index + 1) % interval == 0 else "linear" for index in range(count)]
    period, offset = fields.maybe("attn_layer_period"), fields.maybe("attn_layer_offset") or 0
    if period:
        return ["full" if index % period == offset % period else "mamba" for index in range(count)]
    if model_type in ("mamba", "mamba2", "falcon_mamba"):
        return ["mamba"] * count
    if fields.maybe("attention_chunk_size"):
        full = _no_rope(fields, count)
        return ["full" if index in full else "chunked" for index in range(count)]
    crossing = set(fields.numbers("cross_attention_layers") or ())
    if crossing:
        return ["cross" if index in crossing else "full" for index in range(count)]
    window = fields.maybe("sliding_window")
    longest = fields.maybe(*POSITIONS)
    uses = fields.raw("use_sliding_window")
    if not window or uses is False or (longest is not None and window >= longest):
        return ["full"] * count
    letters = fields.text("sliding_window_pattern")
    if letters and set(letters) <= {"L", "G"}:
        return ["full" if letters[index % len(letters)] == "G" else "sliding" for index in range(count)]
    every = fields.maybe("sliding_window_pattern", "_sliding_window_pattern") or _PATTERN.get(model_type)
    if every:
        return ["full" if (index + 1) % every == 0 else "sliding" for index in range(count)]
    start = fields.maybe("max_window_layers") if uses else 0
    return ["sliding" if index >= (start or 0) else "full" for index in range(count)]


def _no_rope(fields: Fields, count: int) -> set[int]:
    """Llama 4's full layers: those without rotary embedding."""
    listed = fields.numbers("no_rope_layers")
    if listed and len(listed) == count:
        return {index for index, rotary in enumerate(listed) if not rotary}
    every = fields.maybe("no_rope_layer_interval") or _CHUNK_PATTERN
    return {index for index in range(count) if (index + 1) % every == 0}


def moe_layers(fields: Fields, layer_kinds: list[str]) -> list[int]:
    """Indices of the layers whose feed-forward part is a mixture of experts."""
    count = len(layer_kinds)
    names = fields.words("layers_block_type")
    pattern = fields.raw("hybrid_override_pattern")
    sparse = fields.words("mlp_layer_types")
    if sparse is not None and len(sparse) >= count:
        return [index for index, name in enumerate(sparse[:count]) if name != "dense"]
    if isinstance(pattern, str):
        return [index for index, name in enumerate(pattern[:count]) if name == "E"]
    if names is not None and "moe" in names:
        return [index for index, name in enumerate(names[:count]) if name == "moe"]
    listed = fields.raw("moe_layers_enum", "moe_layer_freq", "moe_layers")
    if isinstance(listed, str):
        numbers = [int(part) for part in listed.split(",") if part.strip().isdigit()]
        return [index for index in numbers if index < count]
    if isinstance(listed, list) and len(listed) == count and set(listed) <= {0, 1}:
        return [index for index, is_moe in enumerate(listed) if is_moe]
    if isinstance(listed, list):
        return [index for index in listed if isinstance(index, int) and 0 <= index < count]
    first = fields.maybe("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers") or 0
    last = fields.maybe("moe_layer_end_index")
    step = fields.maybe(
        "interleave_moe_layer_step",
        "decoder_sparse_step",
        "moe_every_n_layers",
        "moe_layer_interval",
        "expert_layer_period",
    )
    freq = fields.maybe("moe_layer_freq") or 1
    offset = fields.maybe("expert_layer_offset")
    dense = set(fields.numbers("mlp_only_layers") or ())
    chosen = []
    for index in range(count):
        if index < first or index in dense or (last is not None and last > 0 and index > last):
            continue
        if offset is not None and step:
            keep = index % step == offset
        elif step:
            keep = (index + 1) % step == 0
        else:
            keep = index % freq == 0
        if keep:
            chosen.append(index)
    return chosen
