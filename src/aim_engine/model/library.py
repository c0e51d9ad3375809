"""All models that can be named: the catalogue's, and those of a folder of configs."""

from __future__ import annotations

from pathlib import Path

from aim_engine.errors import AimError, InvalidInput
from aim_engine.model import catalog, naming, source
from aim_engine.model.naming import Library
from aim_engine.model.spec import ModelSpec

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

    return Library({*catalog.names(overlay), *files}, load, naming.aliases(overlay))


def _configs(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder", hint="give a folder of configs called org__name.json")
    return {
        path.stem.replace("__", "/", 1): path
        for path in sorted(folder.glob("*.json"))
        if not path.name.endswith(_SIDE_FILES)
    }
