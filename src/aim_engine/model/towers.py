"""Vision and audio encoders of multimodal models: their parameters, from their own section of a config.json.

A tower is a stack of plain transformer blocks over patches. What the class builds around them is in
`data/towers/<kind>.yaml`; the projector into the language model's width belongs to the model that owns the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from aim_engine import facts
from aim_engine.hardware.gpu import Provenance

FOLDER = "towers"
MAX_SIZE = 2**24
_ALWAYS = {"llama4": "llama4_vision_model", "step3p7": "step3p7", "gemma4": "gemma4_vision"}
"""Models whose class builds a tower from its own defaults when their config has no section for it."""
_SECTIONS = ("vision_config", "visual", "vision_tower_config", "vit_config")
_AUDIO = ("audio_config", "audio_encoder_config")


class Tower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tower's class builds."""

    kind: str
    gated_mlp: bool = False
    qkv_bias: bool = True
    output_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    vectors_per_block: int = 0
    """Vectors of the hidden width beside norms and biases, such as layer scales."""
    patch_bias: bool = True
    positions: Literal["grid", "grid_and_class", "table", "none"] = "none"
    """grid: one row per patch of the image; table: as many rows as the config says."""
    class_token: bool = False
    outer_norms: int = 0
    """Norms before and after the blocks."""
    pooling_head: bool = False
    """An attention pooling block at the end, unless the config's vision_use_head is false."""
    projector: Literal[
        "mlp",
        "linear",
        "matrix",
        "merger",
        "deepstack",
        "glm",
        "shuffle",
        "pixtral",
        "llama4",
        "downsampled",
        "merged",
        "joined",
        "none",
    ] = "mlp"
    defaults: dict[str, Any] = {}
    """Keys of the section that the class fills in."""
    provenance: Provenance


class Section:
    """One section of a config with the class's defaults below it."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._values = values
        self._defaults = defaults

    def number(self, *names: str, default: int = 0) -> int:
        """The first of `names` that is a positive whole number; a pair counts as its first side."""
        for source in (self._values, self._defaults):
            for name in names:
                value = source.get(name)
                value = value[0] if isinstance(value, list) and value else value
                if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIZE:
                    return value
        return default

    def ratio(self, name: str) -> float | None:
        """A positive number."""
        value = self._values.get(name, self._defaults.get(name))
        usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_SIZE
        return float(value) if usable and value is not None else None

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(name, self._defaults.get(name))
        return value if isinstance(value, bool) else default

    def length(self, name: str) -> int:
        """Entries of a list; 0 when it is none."""
        value = self._values.get(name, self._defaults.get(name))
        return len(value) if isinstance(value, list) else 0


def count(outer: Mapping[str, Any], text_hidden: int) -> int:
    """Parameters of all towers and projectors of a model."""
    owner = outer.get("model_type")
    owner = owner if isinstance(owner, str) else ""
    sections = [found for key in _SECTIONS if isinstance(found := outer.get(key), dict)]
    if not sections and owner in _ALWAYS:
        sections = [{"model_type": _ALWAYS[owner]}]
    total = sum(_tower(found, owner, text_hidden) for found in sections)
    total += sum(_audio(found, text_hidden) for key in _AUDIO if isinstance(found := outer.get(key), dict))
    if owner == "phi3_v" and isinstance(outer.get("img_processor"), dict):
        total += _phi3_vision(text_hidden)
    return total


def _tower(values: Mapping[str, Any], owner: str, text_hidden: int) -> int:
    params = values.get("params")
    if isinstance(params, dict):
        values = {**params, **values}
    named = values.get("model_type")
    rules = _rules(owner) or _rules(named if isinstance(named, str) else "")
    if rules is None:
        rules = Tower(kind="", outer_norms=1, provenance=Provenance(kind="unsourced", source="", checked=""))
    section = Section(values, rules.defaults)
    if rules.kind == "mllama_vision_model":
        return _mllama(section, text_hidden)
    hidden = section.number("embed_dim", "vt_hidden_size", "hidden_size", "width", "d_model", "mm_hidden_size")
    depth = section.number("depth", "num_hidden_layers", "vt_num_hidden_layers", "layers", "num_layers")
    if not hidden or not depth:
        return 0
    ratio = section.ratio("mlp_ratio")
    width = section.number("intermediate_size", "vt_intermediate_size", "mlp_dim")
    if ratio is not None or not width:
        width = round(hidden * (ratio if ratio is not None else 4))
    if rules.kind in ("glm4v", "glm4v_moe") and values:
        width = section.number("out_hidden_size", default=width)
    total = depth * _block(rules, section, hidden, width)
    total += _patches(rules, section, hidden) + rules.outer_norms * hidden * (2 if rules.norm_bias else 1)
    if rules.pooling_head and section.flag("vision_use_head", default=True):
        total += 4 * hidden * hidden + 2 * hidden * width + 8 * hidden + width
    projector = _OF_OWNER.get(owner) or _PROJECTORS[rules.projector]
    return total + projector(section, hidden, text_hidden)


def _rules(kind: str) -> Tower | None:
    """The tower's catalogue entry, None when there is none."""
    if not kind or "/" in kind or kind.startswith("."):
        return None
    path = facts.find(f"{FOLDER}/{kind}.yaml")
    if path is None and kind.endswith("_vision"):
        path = facts.find(f"{FOLDER}/{kind.removesuffix('_vision')}.yaml")
    return facts.read(path, Tower) if path is not None else None


def _block(rules: Tower, section: Section, hidden: int, width: int) -> int:
    inner = section.number("qkv_hidden_size", default=hidden)
    attention = 4 * hidden * inner
    attention += 3 * inner if section.flag("qkv_bias", section.flag("attention_bias", rules.qkv_bias)) else 0
    attention += hidden if section.flag("attention_bias", rules.output_bias) or rules.output_bias else 0
    mlp = (3 if rules.gated_mlp else 2) * hidden * width
    mlp += (hidden + (2 if rules.gated_mlp else 1) * width) if rules.mlp_bias else 0
    norms = 2 * hidden * (2 if rules.norm_bias else 1)
    norms += 2 * hidden if section.flag("use_qk_norm", section.flag("qk_normalization", default=False)) else 0
    return attention + mlp + norms + rules.vectors_per_block * hidden


def _patches(rules: Tower, section: Section, hidden: int) -> int:
    side = section.number("patch_size", "spatial_patch_size", default=14)
    total = 3 * section.number("temporal_patch_size", default=1) * side * side * hidden
    total += hidden if rules.patch_bias else 0
    total += hidden if rules.class_token else 0
    if rules.positions == "table":
        rows = section.number("num_position_embeddings", "init_pos_emb_height")
        rows *= section.number("init_pos_emb_width", default=1)
        return total + (rows or 2 * section.number("position_embedding_size")) * hidden
    if rules.positions == "none":
        return total
    rows = (section.number("image_size", default=side) // side) ** 2
    return total + (rows + (1 if rules.positions == "grid_and_class" else 0)) * hidden


def _mlp(_: Section, hidden: int, text: int) -> int:
    """Two layers with biases into the text width."""
    return (hidden + 1) * text + (text + 1) * text


def _linear(_: Section, hidden: int, text: int) -> int:
    return (hidden + 1) * text


def _merger(section: Section, hidden: int, text: int) -> int:
    """Neighbouring patches joined, then two layers at the joined width (Qwen-VL, Kimi)."""
    merged = hidden * section.number("spatial_merge_size", "merge_kernel_size", default=2) ** 2
    text = section.number("out_hidden_size", default=text)
    return (merged + 1) * merged + (merged + 1) * text + 2 * hidden


def _deepstack(section: Section, hidden: int, text: int) -> int:
    """A merger at the end and one for every intermediate layer that feeds the language model too (Qwen3-VL)."""
    merged = hidden * section.number("spatial_merge_size", default=2) ** 2
    one = (merged + 1) * merged + (merged + 1) * section.number("out_hidden_size", default=text)
    deep = section.length("deepstack_visual_indexes")
    return one * (1 + deep) + 2 * hidden + 2 * merged * deep


def _glm(section: Section, hidden: int, _: int) -> int:
    """GLM-4.1V: a strided convolution, then a gated block."""
    out, width = section.number("out_hidden_size"), section.number("intermediate_size")
    return (
        hidden * out * section.number("spatial_merge_size", default=2) ** 2
        + out
        + out * out
        + 3 * out * width
        + 2 * out
    )


def _shuffle(_: Section, hidden: int, text: int) -> int:
    """InternVL: four patches joined, a norm and two layers."""
    return 8 * hidden + (4 * hidden + 1) * text + (text + 1) * text


def _matrix(_: Section, hidden: int, text: int) -> int:
    """One matrix without bias (Gemma 4)."""
    return hidden * text


def _downsampled(_: Section, hidden: int, text: int) -> int:
    """Step 3.7: two strided convolutions that double the width, then one matrix."""
    return 9 * 2 * hidden * hidden + 2 * hidden + 9 * 8 * hidden * hidden + 4 * hidden + 4 * hidden * text


def _mistral(_: Section, hidden: int, text: int) -> int:
    """Mistral 3: a norm, patches merged two by two, then two layers without biases."""
    return 4 * hidden * hidden + hidden + hidden * text + text * text


def _llama4(section: Section, hidden: int, text: int) -> int:
    """An adapter after pixel shuffle, then one matrix."""
    into, out = section.number("projector_input_dim"), section.number("projector_output_dim")
    width = section.number("intermediate_size", default=4 * hidden)
    return width * into + into * out + section.number("vision_output_dim", default=out) * text


def _soft(_: Section, hidden: int, text: int) -> int:
    """Gemma 3: a norm and one matrix."""
    return hidden * text + hidden


def _shuffled(_: Section, hidden: int, text: int) -> int:
    """Idefics 3, SmolVLM: patches joined four by four (two by two in the larger), one matrix."""
    return 16 * hidden * text if hidden < 1024 else 4 * hidden * text


def _joined(_: Section, hidden: int, text: int) -> int:
    """LFM2-VL: four patches joined, a norm, two layers."""
    return 8 * hidden + (4 * hidden + 1) * text + (text + 1) * text


def _merged(_: Section, hidden: int, text: int) -> int:
    """MiniMax M3: two layers for each patch, four patches joined, two layers again."""
    return (hidden + 1) * text + 2 * (text + 1) * text + (4 * text + 1) * text


def _deepseek(_: Section, hidden: int, text: int) -> int:
    """DeepSeek-VL2: four patches joined, two layers, and two separators between tiles."""
    return (4 * hidden + 1) * text + (text + 1) * text + 2 * text


def _none(*_: object) -> int:
    return 0


_PROJECTORS: dict[str, Callable[[Section, int, int], int]] = {
    "mlp": _mlp,
    "linear": _linear,
    "merger": _merger,
    "deepstack": _deepstack,
    "glm": _glm,
    "shuffle": _shuffle,
    "pixtral": _mlp,
    "llama4": _llama4,
    "none": _none,
    "matrix": _matrix,
    "downsampled": _downsampled,
    "merged": _merged,
    "joined": _deepseek,
}
_OF_OWNER: dict[str, Callable[[Section, int, int], int]] = {
    "gemma3": _soft,
    "paligemma": _linear,
    "idefics3": _shuffled,
    "smolvlm": _shuffled,
    "lfm2_vl": _joined,
    "mistral3": _mistral,
}
"""Projectors that differ from their tower's usual one."""


def _mllama(section: Section, text: int) -> int:
    """Llama 3.2 Vision: local and gated global blocks over tiles, each with position tables of its own.

    Source: transformers 5.19.0 modeling_mllama.py MllamaVisionModel.
    """
    hidden, width = section.number("hidden_size"), section.number("intermediate_size")
    side, tiles = section.number("patch_size"), section.number("max_num_tiles")
    ratios = section.length("supported_aspect_ratios") or 8
    rows = (section.number("image_size") // side) ** 2 + 1
    block = 4 * hidden * hidden + 2 * hidden * width + width + hidden + 4 * hidden
    blocks = section.number("num_hidden_layers") * block + section.number("num_global_layers") * (block + 2)
    positions = rows * hidden + (ratios + 1) * tiles * hidden * (rows + 2) + 3
    out = section.number("vision_output_dim")
    return blocks + positions + 3 * side * side * hidden + 5 * hidden + (out + 1) * text


def _phi3_vision(text: int) -> int:
    """Phi-3-vision's CLIP ViT-L/14-336 and its projector, which the config only names.

    Source: microsoft/Phi-3-vision-128k-instruct image_embedding_phi3_v.py.
    """
    hidden, width, layers, rows = 1024, 4096, 24, 577
    block = 4 * (hidden * hidden + hidden) + 2 * hidden * width + width + hidden + 4 * hidden
    clip = layers * block + 3 * 14 * 14 * hidden + rows * hidden + hidden + 4 * hidden
    return clip + (4 * hidden + 1) * text + (text + 1) * text + 5 * 4 * hidden


def _audio(values: Mapping[str, Any], text: int) -> int:
    """A Whisper-like encoder: two convolutions, plain blocks, a projection."""
    section = Section(values, {})
    hidden = section.number("d_model", "hidden_size", "n_state")
    depth = section.number("encoder_layers", "num_hidden_layers", "n_layer")
    if not hidden or not depth:
        return 0
    width = section.number("encoder_ffn_dim", "intermediate_size", default=4 * hidden)
    block = 4 * hidden * hidden + 2 * hidden * width + width + 8 * hidden
    mels = section.number("num_mel_bins", default=128)
    positions = section.number("max_source_positions") * hidden
    return depth * block + 3 * hidden * (mels + hidden) + 4 * hidden + positions + (hidden + 1) * text
