"""Bundled facts of popular models, so that planning works without a hub: one YAML file per model id.

A file holds the essential keys of the model's own config.json, and `model.config` reads them like any other config.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import msgspec

from aim_engine import facts
from aim_engine.hardware.gpu import Provenance
from aim_engine.model import config
from aim_engine.model.spec import ModelSpec

FOLDER = "models"
_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BASE = re.compile(r"^base_model: *(\S+) *$", re.MULTILINE)


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the catalogue."""

    model_id: str
    config: dict[str, Any]
    """The essential keys of config.json, unchanged."""
    published_parameters: int | None = None
    """Total that the hub's safetensors metadata states; packed 4-bit weights are counted as stored."""
    license: str | None = None
    gated: bool | None = None
    base_model: str | None = None
    """The model this one is another precision of."""
    provenance: Provenance


def names(overlay: Path | None = None) -> tuple[str, ...]:
    """Ids of all bundled models, sorted."""
    return tuple(sorted(_paths(overlay)))


def entry(model_id: str, overlay: Path | None = None) -> Entry | None:
    """The catalogue's entry for an id, whatever its case; None when there is none."""
    if not _ID.fullmatch(model_id) or ".." in model_id:
        return None
    path = facts.find(f"{FOLDER}/{model_id}.yaml", overlay)
    if path is None:
        exact = next((name for name in names(overlay) if name.lower() == model_id.lower()), None)
        path = facts.find(f"{FOLDER}/{exact}.yaml", overlay) if exact else None
    return facts.read(path, Entry) if path is not None else None


def load(model_id: str, overlay: Path | None = None) -> ModelSpec | None:
    """The bundled description of a model; None when the catalogue has none."""
    found = entry(model_id, overlay)
    if found is None:
        return None
    return config.parse(
        found.config,
        model_id=found.model_id,
        source=f"catalogue, {FOLDER}/{found.model_id}.yaml",
        license=found.license,
        gated=found.gated,
    )


def variants(model_id: str, overlay: Path | None = None) -> tuple[str, ...]:
    """Ids of bundled checkpoints of the same model in other precisions, sorted; the model they were made from included."""
    bases = {name: base for name, path in _paths(overlay).items() if (base := _base_model(path)) is not None}
    wanted = model_id.lower()
    family = next((base for name, base in bases.items() if name.lower() == wanted), model_id).lower()
    found = {name for name, base in bases.items() if base.lower() == family}
    found |= {name for name in _paths(overlay) if name.lower() == family}
    return tuple(sorted(name for name in found if name.lower() != wanted))


def copies(overlay: Path | None = None) -> frozenset[str]:
    """Ids of bundled checkpoints that are another model in another precision."""
    return frozenset(name for name, path in _paths(overlay).items() if _base_model(path) is not None)


def _paths(overlay: Path | None) -> dict[str, Path]:
    """Files by model id; the overlay's win."""
    return {
        f"{path.parent.name}/{path.stem}": path
        for root in (facts.BUNDLED, overlay)
        if root is not None
        for path in (root / FOLDER).glob("*/*.yaml")
    }


def _base_model(path: Path) -> str | None:
    """The `base_model` of an entry, found without parsing the file: hundreds are looked through."""
    found = _BASE.search(path.read_text(encoding="utf-8", errors="replace"))
    return found[1].strip("'\"") if found else None


def close_matches(model_id: str, overlay: Path | None = None, count: int = 3) -> tuple[str, ...]:
    """Ids of the catalogue that look like this one; the part after the organisation counts too."""
    known = {name.lower(): name for name in names(overlay)}
    wanted = model_id.lower()
    found = difflib.get_close_matches(wanted, known, n=count, cutoff=0.6)
    tails = {name.split("/")[1]: name for name in known}
    found += [tails[tail] for tail in difflib.get_close_matches(wanted.split("/")[-1], tails, n=count, cutoff=0.6)]
    return tuple(known[name] for name in dict.fromkeys(found))[:count]
