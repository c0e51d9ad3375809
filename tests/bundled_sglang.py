"""Every bundled recipe as SGLang's command line, whichever engine it was published for."""

from __future__ import annotations

import functools

import msgspec

import specs
from aim_engine import backend
from aim_engine.hardware import catalog
from aim_engine.model import catalog as models
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.database import Known, RecipeDatabase
from aim_engine.recipe.recipe import Parallelism, Recipe, Resources

RELEASES = ("0.5.23", "0.5.21", "0.5.18", "0.5.12.post1")
"""The newest, and three older ones: before arguments of attention ranks were renamed, and with the oldest ROCm 7.2 images."""


def lines(version: str) -> list[tuple[Known, tuple[str, ...], dict[str, str]]]:
    """(recipe, arguments, environment) of one release, lossy switches included."""
    engine = backend.get("sglang")
    found = []
    for known in RecipeDatabase():
        spec = _shapes(known.model_id)
        gpu = catalog.load(
            next((name for name in known.gpus if catalog.load(name).arch in ("gfx942", "gfx950")), "MI300X")
        )
        split = known.parallelism or Parallelism()
        recipe = Recipe(
            model_id=known.model_id,
            gpu=gpu.name,
            gpu_count=split.world_size,
            engine="sglang",
            engine_version=version,
            parallelism=split,
            precision=known.precision,
            kv_cache_dtype="fp8" if known.kv_cache_dtype.startswith("fp8") else "auto",
            max_model_len=known.max_model_len or 8192,
            max_num_seqs=known.max_num_seqs or 64,
            max_num_batched_tokens=known.max_num_batched_tokens or 8192,
            gpu_memory_utilization=known.gpu_memory_utilization or 0.72,
            resources=Resources(cpu_cores=8, memory_bytes=2**35, shm_bytes=2**34, gpus=split.world_size),
        )
        if known.engine == "sglang":
            recipe = engine.adopt(recipe, known, allow_lossy=True)
        spec = msgspec.structs.replace(spec, model_id=known.model_id)
        recipe = engine.tune(spec, gpu, recipe, allow_lossy=True)
        command = engine.command(recipe, model_ref=known.model_id, host="127.0.0.1", port=8000)
        found.append((known, command.args, command.env))
    return found


@functools.cache
def _shapes(model_id: str) -> ModelSpec:
    return models.load(model_id) or specs.mixture()
