"""Rules that turn measured figures into changes of the recipe.

Each rule looks at one cause, gives its evidence in numbers and one change; the walk starts again from the planner with it.
Causes that explain others come first, and a rule that fires silences those that it explains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from aim_engine.perf.estimate import Estimate, Range
from aim_engine.planner.plan import Candidate

FULL_CACHE_FRACTION = 0.95
MUCH_CACHE_FRACTION = 0.7
IDLE_CACHE_FRACTION = 0.3
FEW_REQUESTS = 20
"""Below it averages say little; suggestions wait, comparisons are marked."""


class Suggestion(msgspec.Struct, frozen=True, kw_only=True):
    """A change worth making, and why."""

    id: str
    evidence: str
    change: str
    """In words, for a person."""
    recipe_change: dict[str, Any] = {}
    """Fields of the recipe and their new values, where one value is right."""
    expected: str = ""
    verify: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction beside its measurement."""

    kpi: str
    predicted: float
    low: float
    high: float
    measured: float
    inside_band: bool


Kpis = Mapping[str, float | None]
"""Measured figures by the names of `kpi.names`; None where unknown."""


def compare(estimate: Estimate, kpis: Kpis) -> tuple[Comparison, ...]:
    """Latency predictions beside what was measured, where it was. Both must be for the same traffic."""
    pairs: tuple[tuple[str, Range], ...] = (("ttft_ms", estimate.ttft_ms), ("tpot_ms", estimate.tpot_ms))
    return tuple(
        Comparison(
            kpi=name,
            predicted=predicted.value,
            low=predicted.low,
            high=predicted.high,
            measured=measured,
            inside_band=predicted.low <= measured <= predicted.high,
        )
        for name, predicted in pairs
        if (measured := kpis.get(name)) is not None
    )


def suggest(chosen: Candidate, kpis: Kpis, finished_requests: float) -> tuple[Suggestion, ...]:
    """What to change, most likely cause first; empty when there is nothing or too little to judge on."""
    if finished_requests < FEW_REQUESTS:
        return ()
    for rule in _RULES:
        found = rule(chosen, kpis)
        if found is not None:
            return (found,)
    return ()


def _cache_full(chosen: Candidate, kpis: Kpis) -> Suggestion | None:
    usage, preempted = kpis.get("kv_usage_fraction"), kpis.get("preemptions")
    if usage is None or not preempted or usage < FULL_CACHE_FRACTION:
        return None
    recipe, memory = chosen.recipe, chosen.estimate.memory
    slots = max(1, min(recipe.max_num_seqs - 1, memory.max_sequences))
    return Suggestion(
        id="K1",
        evidence=f"KV cache {usage:.0%} full, {preempted:.0f} requests preempted",
        change=f"run fewer requests at once: max_num_seqs {recipe.max_num_seqs} -> {slots}, or add a replica",
        recipe_change={"max_num_seqs": slots},
        expected="no recomputation of preempted requests",
        verify="preemptions stay at 0 under the same load",
    )


def _slots_full(chosen: Candidate, kpis: Kpis) -> Suggestion | None:
    running, waiting, usage = kpis.get("running"), kpis.get("waiting"), kpis.get("kv_usage_fraction")
    slots = chosen.recipe.max_num_seqs
    if running is None or usage is None or not waiting or running < slots or usage >= MUCH_CACHE_FRACTION:
        return None
    return Suggestion(
        id="S1",
        evidence=f"{running:.0f} of {slots} slots busy, {waiting:.0f} requests waiting, KV cache only {usage:.0%} full",
        change=f"run more requests at once: max_num_seqs {slots} -> {slots * 2}",
        recipe_change={"max_num_seqs": slots * 2},
        expected="more throughput until the KV cache is the limit",
        verify="waiting falls to 0 under the same load",
    )


def _cache_idle(chosen: Candidate, kpis: Kpis) -> Suggestion | None:
    running, waiting, usage = kpis.get("running"), kpis.get("waiting"), kpis.get("kv_usage_fraction")
    recipe = chosen.recipe
    if not running or waiting or usage is None or usage > IDLE_CACHE_FRACTION or recipe.parallelism.world_size == 1:
        return None
    return Suggestion(
        id="K4",
        evidence=f"KV cache {usage:.0%} full with {running:.0f} requests running and none waiting",
        change=f"fewer devices per replica than {recipe.parallelism.describe()} would do",
        expected="the same service on fewer GPUs",
        verify="TPOT stays within its limit",
    )


def _slower_than_predicted(chosen: Candidate, kpis: Kpis) -> Suggestion | None:
    slow = [c for c in compare(chosen.estimate, kpis) if c.measured > c.high]
    if not slow:
        return None
    worst = max(slow, key=lambda c: c.measured / c.high)
    return Suggestion(
        id="D0",
        evidence=f"{worst.kpi} is {worst.measured:.0f} where {worst.low:.0f} to {worst.high:.0f} was predicted",
        change="check the host (aim-engine gpus) and the attention backend in the engine's log before changing the recipe",
        verify=f"{worst.kpi} comes below {worst.high:.0f}",
    )


_RULES: tuple[Callable[[Candidate, Kpis], Suggestion | None], ...] = (
    _cache_full,
    _slots_full,
    _slower_than_predicted,
    _cache_idle,
)
