"""Recipes that were measured on hardware of one's own: kept beside the state, and known to every later plan.

    <state_dir>/recipes/<org>/<model>.yaml

The files have the shape of the catalogue's, so that one can be copied into a catalogue folder as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from aim_engine import facts
from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.hardware.gpu import Provenance
from aim_engine.recipe.database import Known, RecipeFile
from aim_engine.recipe.recipe import Recipe


def of_run(recipe: Recipe, gpu: str, figures: Mapping[str, float], *, image: str | None, checked: str) -> Known:
    """`recipe` as it ran on `gpu`, with what was measured. `checked` is the day. Raises: InvalidInput without figures."""
    if not figures:
        raise InvalidInput(
            f"nothing was measured of {recipe.model_id}", why="no request has finished", hint="send it requests first"
        )
    where = f", image {image}" if image is not None else ""
    return Known(
        model_id=recipe.model_id,
        gpus=(gpu,),
        parallelism=recipe.parallelism,
        precision=recipe.precision,
        kv_cache_dtype=recipe.kv_cache_dtype,
        attention_backend=recipe.attention_backend,
        max_model_len=recipe.max_model_len,
        max_num_batched_tokens=recipe.max_num_batched_tokens,
        max_num_seqs=recipe.max_num_seqs,
        gpu_memory_utilization=recipe.gpu_memory_utilization,
        engine=recipe.engine,
        engine_version=recipe.engine_version,
        extra_args=recipe.extra_args,
        env=recipe.env,
        measured={name: float(f"{value:.4g}") for name, value in sorted(figures.items())},
        provenance=Provenance(
            kind="measured",
            source=f"aim-engine recipes keep, {recipe.engine} {recipe.engine_version}{where}",
            checked=checked,
        ),
    )


def keep(root: Path, known: Known) -> Path:
    """Add a measured recipe to the file of its model below `root`, in place of an older run of the same; the file.

    Raises: InvalidInput when the file is not readable, Unreachable when it cannot be written.
    """
    import yaml

    path = root / "recipes" / f"{known.model_id}.yaml"
    entry: dict[str, Any] = msgspec.to_builtins(known)
    del entry["model_id"]
    others = list(facts.read(path, RecipeFile).recipes) if path.is_file() else []
    kept = [each for each in others if _run(each) != _run(entry)]
    document = {"model_id": known.model_id, "recipes": [*kept, entry]}
    content = yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(content)
        Path(file.name).replace(path)
    except OSError as err:
        raise Unreachable(
            f"{path} cannot be written", why=err.strerror, hint="set AIM_ENGINE_STATE_DIR to another folder"
        ) from err
    return path


def _run(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two runs runs of the same."""
    names = (
        "gpus",
        "parallelism",
        "precision",
        "kv_cache_dtype",
        "max_num_seqs",
        "max_num_batched_tokens",
        "engine",
        "engine_version",
    )
    return tuple(msgspec.json.encode(entry.get(name)) for name in names)
