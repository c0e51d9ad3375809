"""What a model class builds where a config.json does not say: one catalogue file per model type.

A config.json holds what differs between checkpoints of one class. The rest (does the feed-forward block gate, which
projections have a bias, what is assumed for a key that is absent) is the class's own, and is read from
`data/architectures/<model_type>.yaml`. A new family that is built of known parts is a new file, not new code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from aim_engine import facts
from aim_engine.hardware.gpu import Provenance

FOLDER = "architectures"
Biased = Literal["qkv", "output", "mlp", "norm", "head"]


class Architecture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The class of a model type, as far as its size is concerned."""

    model_type: str
    like: str | None = None
    """Another model type whose file counts for all that this one does not state."""
    plain_mlp: bool = False
    """Two matrices in a feed-forward block; else a third one gates."""
    norms_per_layer: int = 2
    """Normalisations of the hidden width in one layer."""
    qk_norm: Literal["heads", "all"] | None = None
    """Queries and keys are normalised: with one weight vector per head width, or over all heads."""
    biases: dict[Biased, bool | str] = {}
    """Parts with a bias: always, or when the config's flag of this name is set."""
    position_rows_extra: int | None = None
    """Rows of a learned position table beyond the longest context; None without such a table."""
    attention_gate: Literal["head", "value"] | None = None
    """The attention's output is gated by a projection of its own: one value per head, or one per output value."""
    encoder_only: bool = False
    """Embeds text; keeps no KV cache and has no head."""
    remote_code: bool = False
    """Its configuration or tokenizer is code in the model's own repository."""
    defaults: dict[str, Any] = {}
    """Keys of config.json that the class fills in."""
    provenance: Provenance


def find(model_type: str, class_name: str = "", overlay: Path | None = None) -> Architecture | None:
    """The architecture of a model type, else of the class that `architectures` names; None when neither is known."""
    if model_type and "/" not in model_type and not model_type.startswith("."):
        path = facts.find(f"{FOLDER}/{model_type}.yaml", overlay)
        if path is not None:
            return _read(path, overlay)
    wanted = _stem(class_name)
    for path in sorted((facts.BUNDLED / FOLDER).glob("*.yaml")) if wanted else ():
        if path.stem.replace("_", "").replace("-", "").lower() == wanted:
            return _read(path, overlay)
    return None


def _stem(class_name: str) -> str:
    """`LlamaForCausalLM` -> `llama`."""
    for suffix in ("ForCausalLM", "LMHeadModel", "ForSequenceClassification", "ForRewardModel", "Model"):
        if class_name.endswith(suffix) and class_name != suffix:
            return class_name[: -len(suffix)].lower()
    return ""


def _read(path: Path, overlay: Path | None) -> Architecture:
    """A file, over the one that it is like."""
    document = facts.parse_yaml(path.read_bytes(), str(path))
    if isinstance(document, dict) and isinstance(document.get("like"), str):
        base = facts.find(f"{FOLDER}/{document['like']}.yaml", overlay)
        below = facts.parse_yaml(base.read_bytes(), str(base)) if base is not None else {}
        if isinstance(below, dict):
            defaults = {**(below.get("defaults") or {}), **(document.get("defaults") or {})}
            document = {**below, **document, "defaults": defaults}
    return facts.msgspec_convert(document, Architecture, str(path))
