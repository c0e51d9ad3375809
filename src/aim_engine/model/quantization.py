"""How a checkpoint's weights are stored: every quantisation scheme's own description as one value."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.model.spec import ModelSpec, Parameters, Quantization, WeightFormat

LINEAR_PARTS = ("attention", "attention_replicated", "dense_mlp", "experts", "shared_experts")
_SCALED: dict[str, float] = {
    "fp8": 1.0,
    "int8": 1.0,
    "mxfp8": 1 + 1 / 32,
    "mxfp6": 0.75 + 1 / 32,
    "mxfp4": 0.5 + 1 / 32,
    "nvfp4": 0.5 + 1 / 16,
    "nf4": 0.5 + 1 / 64 * 0.5,
}
"""Bytes per weight with scales: OCP MX keeps one byte per 32, NVFP4 one per 16, NF4 one (itself quantised) per 64."""
_PART_WORDS = (
    ("shared_experts", ("shared_expert",)),
    ("experts", ("experts", "block_sparse_moe")),
    ("attention", ("self_attn", "attention", "linear_attn", ".attn", "mixer", "q_proj", "qkv")),
    ("dense_mlp", ("mlp", "feed_forward", "ffn")),
)
_NOT_LINEAR = re.compile(
    r"norm|bias|router|conv1d|indexer|embed|rotary|visual|vision|mtp|eh_proj|\bgate\b(?![|)])|shared_expert_gate"
)
_LAYER = re.compile(r"layers[.\\]+(\d+)[.\\]")
_WHOLE = 100
_SHARES = (
    ("q_a_proj", 10),
    ("q_b_proj", 30),
    ("kv_a_proj_with_mqa", 5),
    ("kv_b_proj", 15),
    ("q_proj", 40),
    ("k_proj", 10),
    ("v_proj", 10),
    ("qkv_proj", 60),
    ("o_proj", 40),
    ("in_proj\\w*", 30),
    ("out_proj", 35),
    ("gate_up_proj", 67),
    ("gate_proj", 34),
    ("up_proj", 33),
    ("down_proj", 33),
)
"""Percent of a part's weights in one projection: typical of grouped-query and latent attention and of gated blocks."""
_ALGORITHMS: tuple[tuple[str, WeightFormat], ...] = (
    ("NVFP4", "nvfp4"),
    ("MXFP4", "mxfp4"),
    ("MXFP8", "mxfp8"),
    ("FP8", "fp8"),
    ("INT8", "int8"),
)
_PUBLISHED: dict[str, tuple[str, Literal["16bit", "fp8", "int8", "fp4"], int | None]] = {
    "fp8": ("compressed-tensors", "fp8", None),
    "int8": ("gptq", "16bit", 128),
    "int4": ("gptq", "16bit", 128),
    "mxfp4": ("quark", "fp4", 32),
    "mxfp6": ("quark", "fp8", 32),
    "mxfp8": ("mxfp8", "fp8", 32),
    "nvfp4": ("modelopt", "fp4", 16),
    "gguf": ("gguf", "16bit", None),
}
"""Format -> method, activations and group size that its checkpoints usually have."""
_PLAIN = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
_BLOCK_FP8 = 1 + 4 / (128 * 128)


def parse(
    description: Mapping[str, Any] | None,
    *,
    name: str,
    layers: int,
    has_experts: bool,
    side_file: Mapping[str, Any] | None = None,
    expert_dtype: str = "",
) -> Quantization | None:
    """The scheme in `quantization_config`, or in ModelOpt's side file; None for a plain checkpoint.

    Raises: InvalidInput for a method that is not known.
    """
    if not description and side_file:
        inner = side_file.get("quantization")
        description = {"quant_method": "modelopt", **inner} if isinstance(inner, dict) else None
    if not description:
        return None
    method = str(description.get("quant_method") or description.get("quant_type") or "").lower()
    if not method and description.get("quant_algo"):
        method = "modelopt"
    ignored = _ignored(description)
    if method in ("fp8", "fbgemm_fp8", "ptpc_fp8", "deepseek_v4_fp8"):
        blocks = _block(description.get("weight_block_size"))
        if expert_dtype == "fp4" and has_experts:
            return _made("deepseek_v4_fp8", "mxfp4", _SCALED["mxfp4"], ("experts",), "fp8", description)
        size = 1 + 4 / (blocks[0] * blocks[1]) if blocks else 1.0
        return _made(
            method, "fp8_block" if blocks else "fp8", size, _kept(ignored, layers), "fp8", description, block=blocks
        )
    if method in (
        "awq",
        "gptq",
        "gptq_marlin",
        "awq_marlin",
        "auto-round",
        "intel/auto-round",
        "inc",
        "auto_awq",
        "auto_gptq",
    ):
        bits = _whole(description.get("bits"), description.get("w_bit"), default=4)
        group = _whole(description.get("group_size"), description.get("q_group_size"), default=128)
        return _integers(method, bits, group, ignored, layers, description)
    if method == "compressed-tensors" or (method in ("modelopt", "") and "config_groups" in description):
        return _groups(method or "compressed-tensors", description, ignored, layers)
    if method in ("modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8"):
        return _modelopt(method, description, ignored, layers)
    if method == "quark":
        return _quark(description, ignored, layers)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        parts = ("experts",) if has_experts else _kept(ignored, layers)
        return _made("mxfp4", "mxfp4", _SCALED["mxfp4"], parts, "16bit", description)
    if method == "mxfp8":
        return _made("mxfp8", "mxfp8", _SCALED["mxfp8"], _kept(ignored, layers), "fp8", description)
    if method in ("bitsandbytes", "bnb"):
        four = bool(description.get("load_in_4bit")) or "4bit" in str(description.get("quant_method"))
        form: WeightFormat = "nf4" if four else "int8"
        return _made("bitsandbytes", form, _SCALED[form], _kept(ignored, layers), "16bit", description)
    if method == "torchao":
        return _made("torchao", "int8", 1.0, _kept(ignored, layers), "16bit", description)
    if method == "gguf":
        return _made("gguf", "gguf", 0.5625, LINEAR_PARTS, "16bit", description)
    raise InvalidInput(
        f"{name}: the quantisation method '{method or 'unnamed'}' is not known",
        why="its weights' size cannot be computed",
        hint="use another checkpoint of this model",
    )


def _groups(method: str, description: Mapping[str, Any], ignored: list[str], layers: int) -> Quantization:
    """compressed-tensors: the scheme of the group that has most targets of its own, the first among equals."""
    groups = [g for g in _mapping(description.get("config_groups")).values() if isinstance(g, dict)]
    narrowest = min(groups, key=lambda g: _bits(g.get("weights")), default={})
    weights = _mapping(narrowest.get("weights"))
    inputs = narrowest.get("input_activations")
    bits, kind = _bits(weights), str(weights.get("type", "int"))
    group = weights.get("group_size")
    activations = _activations(inputs)
    if kind == "float" and bits == 8:
        blocks = _block(weights.get("block_structure"))
        if group == 32:
            return _made(method, "mxfp8", _SCALED["mxfp8"], _kept(ignored, layers), activations, description)
        size = 1 + 4 / (blocks[0] * blocks[1]) if blocks else 1.0
        return _made(
            method,
            "fp8_block" if blocks else "fp8",
            size,
            _kept(ignored, layers),
            activations,
            description,
            block=blocks,
        )
    if kind == "float":
        form: WeightFormat = "mxfp4" if group == 32 else "nvfp4"
        return _made(
            method,
            form,
            _SCALED[form],
            _kept(ignored, layers),
            "fp4" if activations != "16bit" else "16bit",
            description,
        )
    if bits == 8:
        return _made(method, "int8", 1.0, _kept(ignored, layers), activations, description)
    return _integers(method, bits, _whole(group, default=128), ignored, layers, description)


def _modelopt(method: str, description: Mapping[str, Any], ignored: list[str], layers: int) -> Quantization:
    algorithm = str(description.get("quant_algo", "")).upper()
    kept = _kept(ignored, layers)
    if "NVFP4" in algorithm or algorithm in ("FP4", "W4A4_NVFP4", "MIXED_PRECISION"):
        return _made(method, "nvfp4", _SCALED["nvfp4"], kept, "fp4", description)
    if "MXFP8" in algorithm:
        return _made(method, "mxfp8", _SCALED["mxfp8"], kept, "fp8", description)
    if "W4A16" in algorithm or "W4A8" in algorithm:
        return _integers(method, 4, _whole(description.get("group_size"), default=128), ignored, layers, description)
    return _made(method, "fp8", 1.0, kept, "fp8", description)


def _quark(description: Mapping[str, Any], ignored: list[str], layers: int) -> Quantization:
    scheme = _mapping(description.get("global_quant_config"))
    weight = scheme.get("weight")
    weight = weight[0] if isinstance(weight, list) and weight else weight
    inputs = scheme.get("input_tensors")
    inputs = inputs[0] if isinstance(inputs, list) and inputs else inputs
    dtype = str(weight.get("dtype", "")).lower() if isinstance(weight, dict) else ""
    group = weight.get("group_size") if isinstance(weight, dict) else None
    kept = _kept(ignored, layers)
    quantised_inputs = isinstance(inputs, dict) and bool(inputs.get("dtype"))
    if dtype.startswith(("fp4", "mxfp4")):
        return _made("quark", "mxfp4", _SCALED["mxfp4"], kept, "fp4" if quantised_inputs else "16bit", description)
    if dtype.startswith(("fp6", "mxfp6")):
        return _made("quark", "mxfp6", _SCALED["mxfp6"], kept, "fp8" if quantised_inputs else "16bit", description)
    if dtype.startswith("fp8"):
        return _made("quark", "fp8", 1.0, kept, "fp8" if quantised_inputs else "16bit", description)
    if dtype in ("int8", "uint8"):
        return _made("quark", "int8", 1.0, kept, "int8" if quantised_inputs else "16bit", description)
    return _integers("quark", 4, _whole(group, default=128), ignored, layers, description)


def _integers(
    method: str, bits: int, group: int, ignored: list[str], layers: int, description: Mapping[str, Any]
) -> Quantization:
    """Weight-only integers: packed weights, one 16-bit scale and one packed zero point per group."""
    size = bits / 8 + (2 + bits / 8) / group if group > 0 else bits / 8
    form: WeightFormat = "int8" if bits == 8 else "int4"
    return _made(method, form, size, _kept(ignored, layers), "16bit", description, group=group if group > 0 else None)


def _made(
    method: str,
    form: WeightFormat,
    bytes_per_weight: float,
    parts: tuple[str, ...],
    activations: Literal["16bit", "fp8", "int8", "fp4"],
    description: Mapping[str, Any],
    *,
    block: tuple[int, int] | None = None,
    group: int | None = None,
) -> Quantization:
    return Quantization(
        method=method,
        format=form,
        bytes_per_weight=bytes_per_weight,
        quantised_parts=parts,
        activations=activations,
        kv_cache_dtype=_kv_dtype(description),
        block_size=block,
        group_size=group,
    )


def _kv_dtype(description: Mapping[str, Any]) -> str | None:
    scheme = description.get("kv_cache_scheme") or description.get("kv_cache_quant_algo")
    if isinstance(scheme, dict):
        return "fp8" if scheme.get("num_bits") == 8 and scheme.get("type", "float") == "float" else None
    if isinstance(scheme, str) and "FP8" in scheme.upper():
        return "fp8"
    layers = description.get("kv_cache_config") or description.get("layer_quant_config")
    exported = description.get("export") or {}
    if description.get("quant_method") == "quark" and (
        description.get("kv_cache_quant_config") or (isinstance(exported, dict) and exported.get("kv_cache_group"))
    ):
        return "fp8"
    if isinstance(layers, dict) and any(
        "k_proj" in key and "fp8" in str(value).lower() and "output_tensors" in str(value)
        for key, value in layers.items()
    ):
        return "fp8"
    return None


def _bits(weights: object) -> int:
    return _whole(_mapping(weights).get("num_bits"), default=16)


def _activations(inputs: object) -> Literal["16bit", "fp8", "int8", "fp4"]:
    if not isinstance(inputs, dict):
        return "16bit"
    if inputs.get("num_bits") == 4:
        return "fp4"
    return "fp8" if inputs.get("type") == "float" else "int8"


def _ignored(description: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for key in ("ignore", "ignored_layers", "modules_to_not_convert", "exclude", "exclude_modules", "exclude_layers"):
        value = description.get(key)
        if isinstance(value, list):
            found.extend(str(each) for each in value)
    return found


def _kept(ignored: Iterable[str], layers: int) -> tuple[str, ...]:
    """The parts that stay quantised: one is not when most of its weights are excluded, by layer or by a pattern.

    Lists name what is never quantised too (norms, gates, biases, indexers): those entries say nothing about a part.
    """
    excluded: Counter[str] = Counter()
    everywhere: Counter[str] = Counter()
    for entry in dict.fromkeys(ignored):
        part = _part(entry)
        if part is None:
            continue
        share = _share(entry)
        if _LAYER.search(entry):
            excluded[part] += share
        elif "layers" in entry or "*" in entry or entry.startswith("re:") or entry.count(".") <= 1:
            everywhere[part] += share
    gone = {part for part, share in everywhere.items() if share > _WHOLE / 2}
    gone |= {part for part, share in excluded.items() if share * 2 > layers * _WHOLE}
    if "attention" in gone:
        gone.add("attention_replicated")
    return tuple(part for part in LINEAR_PARTS if part not in gone)


def _part(entry: str) -> str | None:
    """The part of a model that a module name or pattern belongs to; None for what has no weights worth quantising."""
    if _NOT_LINEAR.search(entry):
        return None
    return next((part for part, words in _PART_WORDS if any(word in entry for word in words)), None)


def _share(entry: str) -> int:
    """Percent of a part's weights that an entry covers: a projection its own, anything else the whole module."""
    return next((share for name, share in _SHARES if re.search(rf"\b{name}\b", entry)), _WHOLE)


def sizes(
    description: Mapping[str, Any] | None, *, side_file: Mapping[str, Any] | None = None, expert_dtype: str = ""
) -> dict[str, float]:
    """Bytes per weight by part for a checkpoint that mixes formats; empty for one that does not."""
    if not description and side_file:
        description = _mapping(side_file.get("quantization"))
    description = _mapping(description)
    if expert_dtype == "fp4" or description.get("moe_quant_algo"):
        narrow = "nvfp4" if "NVFP4" in str(description.get("moe_quant_algo")) else "mxfp4"
        return {**dict.fromkeys((*LINEAR_PARTS, "mtp"), _BLOCK_FP8), "experts": _SCALED[narrow]}
    named: dict[str, Counter[float]] = {}
    for name, size in _sized_modules(description):
        part = "lm_head" if "lm_head" in name else _part(name)
        if part is not None:
            named.setdefault(part, Counter())[size] += 1
    found = {part: counts.most_common(1)[0][0] for part, counts in named.items()}
    if "attention" in found:
        found["attention_replicated"] = found["attention"]
    return found


def _sized_modules(description: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Modules that a mixed checkpoint lists one by one, with the size of their format."""
    listed = _mapping(description.get("quantized_layers"))
    for name, scheme in listed.items():
        algorithm = str(_mapping(scheme).get("quant_algo", "")).upper()
        form = next((form for word, form in _ALGORITHMS if word in algorithm), None)
        if form is not None:
            yield name, _SCALED[form]
    groups = [group for group in _mapping(description.get("config_groups")).values() if isinstance(group, dict)]
    if listed or len(groups) < 2:
        return
    for group in groups:
        bits, kind = _bits(group.get("weights")), _mapping(group.get("weights")).get("type")
        for target in group.get("targets") or []:
            if bits < 16 and isinstance(target, str):
                yield target, bits / 8 if bits != 4 else _SCALED["nvfp4" if kind == "float" else "mxfp4"]


def with_drafts(quantised: Quantization, description: Mapping[str, Any] | None, layers: int) -> Quantization:
    """The scheme with the draft layers in it, where the checkpoint stores them so.

    Block FP8 covers them unless they are excluded (published totals of GLM-5.1-FP8, Qwen3.5-FP8 and DeepSeek-V4-Flash hold
    their scales); other schemes leave them in 16 bit (GLM-5-NVFP4).
    """
    if quantised.method not in ("fp8", "deepseek_v4_fp8") or "mtp" in quantised.quantised_parts:
        return quantised
    for entry in _ignored(_mapping(description)):
        found = re.search(r"layers\.(\d+)\W*$", entry)
        if "mtp" in entry or (found and int(found[1]) >= layers):
            return quantised
    return msgspec.structs.replace(quantised, quantised_parts=(*quantised.quantised_parts, "mtp"))


def stored_bytes(spec: ModelSpec, form: str) -> int:
    """Bytes of the weights an engine loads, if all linear parts were stored in `form` and the rest in 16 or 32 bit."""
    plain = _PLAIN[spec.dtype]
    inside = sum(int(getattr(spec.parameters, part)) for part in LINEAR_PARTS)
    return round(inside * _SCALED.get(form, _PLAIN.get(form, plain)) + (spec.served_parameters - inside) * plain)


def stored_as(
    spec: ModelSpec, form: str, bytes_per_weight: float | None = None, but: tuple[str, ...] = ()
) -> ModelSpec:
    """`spec` as a checkpoint whose linear layers, `but` some, are stored in `form`, scales included as its makers keep them.

    A GGUF file stores everything in its own types, embeddings too. How `spec` keeps its KV cache says nothing of such a checkpoint,
    which has scales of its own or none. Raises: InvalidInput for a form without a size.
    """
    if form not in _PUBLISHED:
        raise InvalidInput(f"'{form}' is not a format weights are stored in", hint=f"known: {', '.join(_PUBLISHED)}")
    method, activations, group = _PUBLISHED[form]
    # Four-bit integers keep a 16-bit scale and a packed zero point for each group of 128.
    size = bytes_per_weight if bytes_per_weight is not None else _SCALED.get(form, 0.5 + 2.5 / 128)
    parts = (*LINEAR_PARTS, "embedding", "lm_head") if form == "gguf" else LINEAR_PARTS
    kept = tuple(part for part in parts if part not in but)
    quantised = Quantization(
        method=method,
        format=form,  # type: ignore[arg-type]
        bytes_per_weight=size,
        quantised_parts=kept,
        activations=activations,
        group_size=group,
    )
    return msgspec.structs.replace(spec, quantization=quantised, weight_bytes=None)


def averaged(quantised: Quantization, by_part: Mapping[str, float], parameters: Parameters) -> Quantization:
    """The scheme with one size per weight that gives the right total where formats are mixed."""
    counts = {part: getattr(parameters, part) for part in by_part}
    total = sum(counts.values())
    if not total:
        return quantised
    size = sum(count * by_part[part] for part, count in counts.items()) / total
    return msgspec.structs.replace(quantised, bytes_per_weight=size, quantised_parts=tuple(by_part))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(*values: object, default: int) -> int:
    """The first positive whole number among `values`; -1 stays, it means one group per row."""
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool) and (0 < value < 2**20 or value == -1):
            return value
    return default


def _block(value: object) -> tuple[int, int] | None:
    """A pair of positive whole numbers, else None."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value):
        return value[0], value[1]
    return None
