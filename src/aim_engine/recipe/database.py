"""Recipes that somebody ran: bundled ones and the user's own, found by model and hardware.

A file `recipes/<org>/<model>.yaml` lists configurations of one model, each with the cards it was run on and its source. It
fixes only what was found to matter; the planner proves memory and fills in the rest for the hardware at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from aim_engine import facts
from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Provenance
from aim_engine.recipe.recipe import Parallelism, Precision


class Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One configuration that was run, as far as its source tells."""

    model_id: str
    gpus: tuple[str, ...]
    """Cards it was run on."""
    parallelism: Parallelism
    precision: Precision
    kv_cache_dtype: str = "auto"
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    objective: str | None = None
    """latency or throughput, where the source names one."""
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    provenance: Provenance

    @property
    def gpu_count(self) -> int:
        """Devices one replica takes."""
        return self.parallelism.world_size


class RecipeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the database."""

    model_id: str
    recipes: tuple[dict[str, Any], ...]


class RecipeDatabase:
    """The bundled recipes, with a user's overlay folder on top."""

    def __init__(self, overlay: Path | None = None) -> None:
        self._overlay = overlay

    def models(self) -> tuple[str, ...]:
        """Ids of all models with a recipe, sorted."""
        return tuple(sorted({known.model_id for known in self}))

    def __iter__(self) -> Iterator[Known]:
        for root in (self._overlay, facts.BUNDLED):
            if root is not None:
                for path in sorted((root / "recipes").glob("**/*.yaml")):
                    yield from _read(path)

    def load_recipes(self, model_id: str) -> tuple[Known, ...]:
        """Everything known about one model; empty when nothing is. Raises: InvalidInput on a broken file."""
        if ".." in model_id.split("/") or model_id.startswith("/"):
            return ()
        path = facts.find(f"recipes/{model_id}.yaml", self._overlay)
        return _read(path) if path is not None else ()

    def find_matching_recipe(self, requirements: Mapping[str, Any]) -> Known | None:
        """The best known configuration for `model_id`, `gpu`, `gpu_count` and, where given, `precision` and `objective`.

        Prefers one run on that card, then the most devices that are there.
        """
        model_id = requirements.get("model_id")
        if not isinstance(model_id, str):
            raise InvalidInput("find_matching_recipe needs requirements['model_id']")
        gpu, precision = requirements.get("gpu"), requirements.get("precision")
        count, objective = requirements.get("gpu_count"), requirements.get("objective")
        fitting = [
            known
            for known in self.load_recipes(model_id)
            if (gpu is None or gpu in known.gpus)
            and (precision is None or precision == known.precision)
            and (count is None or known.gpu_count <= count)
        ]
        return max(fitting, key=lambda known: (known.objective == objective, known.gpu_count), default=None)


def _read(path: Path) -> tuple[Known, ...]:
    document = facts.read(path, RecipeFile)
    return tuple(
        facts.msgspec_convert({"model_id": document.model_id, **entry}, Known, str(path)) for entry in document.recipes
    )
