"""All models that can be named: the catalogue's, and those of a folder of configs."""

from __future__ import annotations

import math
from pathlib import Path

from aim_engine.errors import AimError, InvalidInput
from aim_engine.model import catalog, naming, source
from aim_engine.model.naming import Library
from aim_engine.model.spec import ModelSpec

_SHAPES = "the shapes of"
_SAME_SIZE = 1.5
"""Two models are alike in size up to this ratio."""
_SIDE_FILES = (".hf_quant_config.json", ".safetensors_index.json")


def build(folder: Path | None = None, overlay: Path | None = None) -> Library:
    """The library of catalogue and `folder`, whose configs are called org__name.json and win over the catalogue.

    Raises: InvalidInput when the folder is not there.
    """
    files = _configs(folder) if folder is not None else {}

    def load(model_id: str) -> ModelSpec | None:
        if model_id not in files:
            return catalog.load(model_id, overlay)
        try:
            return source.from_file(files[model_id])
        except AimError:
            return catalog.load(model_id, overlay)

    return Library({*catalog.names(overlay), *files}, load, naming.aliases(overlay), catalog.copies(overlay))


def _configs(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder", hint="give a folder of configs called org__name.json")
    return {
        path.stem.replace("__", "/", 1): path
        for path in sorted(folder.glob("*.json"))
        if not path.name.endswith(_SIDE_FILES)
    }


def has_its_shapes(spec: ModelSpec) -> bool:
    """`spec` was read, or is taken for one of the same family and size; a likeness of another of its size has shapes of its own."""
    return spec.basis != "name" or f": {_SHAPES} " in spec.source


def likeness(ref: str, size_billions: float | None, overlay: Path | None = None) -> tuple[ModelSpec, str] | None:
    """A bundled model like the one `ref` names, and in what: its family and size, else the size alone; None when neither is said.

    By size alone the closest dense model in 16 bit stands in, for most models of a size have similar shapes.
    """
    named = build(None, overlay).find(ref)
    if named is not None:
        return named.spec, f"{_SHAPES} {named.spec.model_id}"
    if size_billions is None:
        return None
    closest: tuple[float, str, ModelSpec] | None = None
    for model_id in catalog.names(overlay):
        spec = catalog.load(model_id, overlay)
        if spec is None or spec.is_moe or spec.is_hybrid or spec.quantization is not None or spec.modality != "text":
            continue
        apart = abs(math.log(spec.parameters.total / 1e9 / size_billions))
        if closest is None or (apart, model_id) < closest[:2]:
            closest = (apart, model_id, spec)
    if closest is None or closest[0] > math.log(_SAME_SIZE):
        return None
    return closest[2], f"a dense model of {size_billions:g} billion parameters, shaped like {closest[1]}"
