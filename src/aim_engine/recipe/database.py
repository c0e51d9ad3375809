"""Recipes that somebody ran: bundled ones and the user's own, found by model and hardware.

A file `recipes/<org>/<model>.yaml` lists configurations of one checkpoint, each with the cards it was run on and its source, and
what its family needs whatever the hardware. It fixes only what was found to matter; the planner proves memory and fills in the
rest for the hardware at hand.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from aim_engine import facts
from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Provenance
from aim_engine.recipe.recipe import Parallelism, Precision


class Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One configuration that was run, as far as its source tells."""

    model_id: str
    gpus: tuple[str, ...]
    """Cards it was run on."""
    parallelism: Parallelism | None = None
    """None where the source names no split."""
    precision: Precision
    kv_cache_dtype: str = "auto"
    attention_backend: str | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float | None = None
    objective: str | None = None
    """latency or throughput, where the source names one."""
    engine: str = "vllm"
    """What served it; its arguments and variables are in this engine's words."""
    engine_version: str | None = None
    """Release it was run with, where the source names one; its figures count for that release only."""
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    lossy_env: dict[str, str] = {}
    """Variables that change answers, used only where the user allows that."""
    measured: dict[str, float] = {}
    """Figures of the run by their names in the vocabulary, such as tpot_ms; they count for its release only."""
    provenance: Provenance

    @property
    def gpu_count(self) -> int:
        """Devices one replica takes; 1 where no split is named."""
        return self.parallelism.world_size if self.parallelism is not None else 1

    @property
    def split(self) -> str:
        """`tp8 ep`, or `planned` where no split is named."""
        return self.parallelism.describe() if self.parallelism is not None else "planned"


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model needs on any hardware."""

    tool_parser: str | None = None
    reasoning_parser: str | None = None
    tool_chat_template: str | None = None
    """A chat template that tool calls need beside the checkpoint's own: a file among the engine's examples."""
    tokenizer_mode: str | None = None
    speculative: dict[str, dict[str, Any]] = {}
    """Draft heads and models by name, in the words of the engine's --speculative-config."""
    speculative_default: str | None = None
    remote_code: bool = False
    """Its makers' recipe runs code from the repository."""
    least_vllm: str | None = None
    """First release that serves it."""
    gated: bool | None = None
    licence: str | None = None
    provenance: dict[str, Provenance]
    """By field; `default` for the others."""


class RecipeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file of the database."""

    model_id: str
    base_model: str | None = None
    """The checkpoint whose family this one, in another format, belongs to."""
    family: Family | None = None
    least_memory_bytes: int | None = None
    """Device memory below which its authors do not start it: weights and some cache."""
    unsupported: tuple[str, ...] = ()
    """Cards on which its authors found that it does not run."""
    recipes: tuple[dict[str, Any], ...]


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """A known configuration beside what was asked, best first in a list of them."""

    known: Known
    score: int
    reasons: tuple[str, ...]
    """What speaks for it and what does not."""


class RecipeDatabase:
    """The bundled recipes, with a user's overlay folder on top, and those that were measured on this machine."""

    def __init__(self, overlay: Path | None = None, measured: Path | None = None) -> None:
        self._overlay = overlay
        self._measured = measured

    def models(self) -> tuple[str, ...]:
        """Ids of all models with a file, sorted."""
        found = set()
        for root in (self._measured, self._overlay, facts.BUNDLED):
            if root is not None:
                base = root / "recipes"
                found |= {path.relative_to(base).with_suffix("").as_posix() for path in base.glob("**/*.yaml")}
        return tuple(sorted(found))

    def __iter__(self) -> Iterator[Known]:
        for model_id in self.models():
            yield from self.load_recipes(model_id)

    def file(self, model_id: str) -> RecipeFile | None:
        """Everything the database holds of one model; None without an entry. Raises: InvalidInput on a broken file."""
        if ".." in model_id.split("/") or model_id.startswith("/"):
            return None
        path = facts.find(f"recipes/{model_id}.yaml", self._overlay)
        return _read(path, path.stat().st_mtime_ns) if path is not None else None

    def family(self, model_id: str) -> Family | None:
        """What the model needs on any hardware, its base model's entry for another format of it."""
        found = self.file(model_id)
        if found is None or (found.family is None and found.base_model is None):
            return None
        return found.family or self.family(found.base_model or "")

    def load_recipes(self, model_id: str, engine: str | None = None) -> tuple[Known, ...]:
        """Everything known about one model, or what is known of it with one engine. Raises: InvalidInput on a broken file."""
        name = f"recipes/{model_id}.yaml"
        files = (self._own(model_id), self.file(model_id))
        known = (
            facts.msgspec_convert({"model_id": model_id, **entry}, Known, name)
            for found in files
            if found is not None
            for entry in found.recipes
        )
        return tuple(each for each in known if engine in (None, each.engine))

    def _own(self, model_id: str) -> RecipeFile | None:
        """What was measured here of a model; it stands beside the catalogue's and hides nothing of it."""
        if self._measured is None or ".." in model_id.split("/") or model_id.startswith("/"):
            return None
        path = facts.find_below(self._measured, f"recipes/{model_id}.yaml")
        return _read(path, path.stat().st_mtime_ns) if path is not None else None

    def match(self, requirements: Mapping[str, Any]) -> tuple[Match, ...]:
        """Known configurations for `model_id` beside `gpu`, `gpu_count`, `precision`, `objective`, `engine` and `engine_version`.

        Those that cannot serve (another card, more devices than there are, another precision or engine) are left out; the rest is
        ordered by own measurement, objective, release, a named split and the number of devices, in this order.
        Raises: InvalidInput without a model_id.
        """
        model_id = requirements.get("model_id")
        if not isinstance(model_id, str):
            raise InvalidInput("a match needs requirements['model_id']")
        found = [scored for known in self.load_recipes(model_id) if (scored := _score(known, requirements)) is not None]
        return tuple(sorted(found, key=lambda match: -match.score))

    def find_matching_recipe(self, requirements: Mapping[str, Any]) -> Known | None:
        """The best of `match`; None when nothing is known. Raises: InvalidInput."""
        return next((match.known for match in self.match(requirements)), None)


@functools.lru_cache(maxsize=64)
def _read(path: Path, _changed_ns: int) -> RecipeFile:
    return facts.read(path, RecipeFile)


def _score(known: Known, requirements: Mapping[str, Any]) -> Match | None:
    """How well a configuration answers; None when it cannot."""
    gpu, precision, count = (requirements.get(name) for name in ("gpu", "precision", "gpu_count"))
    if gpu is not None and gpu not in known.gpus:
        return None
    if precision is not None and precision != known.precision:
        return None
    if count is not None and known.gpu_count > count:
        return None
    if requirements.get("engine", known.engine) != known.engine:
        return None
    score, reasons = 0, []
    if gpu is not None:
        reasons.append(f"run on {gpu}")
    objective, version = requirements.get("objective"), requirements.get("engine_version")
    if objective is not None and known.objective is not None:
        same = known.objective == objective
        score += 4000 if same else 0
        reasons.append(f"made for {known.objective}" + ("" if same else f", not {objective}"))
    if version is not None and known.engine_version is not None:
        same = known.engine_version.split(".")[:2] == str(version).split(".")[:2]
        score += 2000 if same else 0
        reasons.append(f"run with {known.engine_version}" + ("" if same else f": figures do not count for {version}"))
    if known.measured:
        score += 8000
        reasons.append("measured here: " + ", ".join(f"{name} {value:g}" for name, value in known.measured.items()))
    if known.parallelism is not None:
        score += 1000
        reasons.append(known.split)
    return Match(known=known, score=score + known.gpu_count, reasons=tuple(reasons))
