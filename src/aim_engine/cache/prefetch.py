"""What to fetch before anybody asks for it: by appointment exactly, by past uses with a probability.

    value = probability that it is needed within a day x seconds that fetching it would take then

A model is fetched ahead into free room, or into that of models of which the value is less; it takes a share of the bandwidth and stops
while anybody fetches what is needed now. Every decision carries its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from aim_engine.cache.evict import HALF_LIFE_S, Candidate

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
LOW_WATER_FRACTION = 0.85
"""Fuller than this, the rest is left for what is needed now."""
BANDWIDTH_FRACTION = 0.3
LEAST_PROBABILITY = 0.05
_NEAR_S = 3600.0
"""A past use echoes a week later for so long before and after."""
_ECHO_HALF_LIFE_S = 28 * DAY_S
_PRIORITY_VALUE = {"critical": 1000.0, "normal": 1.0, "opportunistic": 0.01}


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is not here and may be needed."""

    model_id: str
    size_bytes: int | None
    """None: its source has to be asked."""
    needed_in_s: float | None = None
    """By appointment."""
    uses_s: tuple[float, ...] = ()
    """When it was used before, seconds since 1970."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to a wish, and why."""

    model_id: str
    does: Literal["fetch", "skip"]
    why: str
    probability: float
    value_s: float
    size_bytes: int | None
    evicts: tuple[tuple[str, str], ...] = ()
    """Model and commit of what goes for it."""


def probability(uses_s: Collection[float], now_s: float) -> float:
    """That a model is used within a day, by its past uses: how often lately, and whether it was at such times of the week."""
    if not uses_s:
        return 0.0
    lately = sum(0.5 ** ((now_s - use) / HALF_LIFE_S) for use in uses_s if use <= now_s)
    per_day = lately * math.log(2) / (HALF_LIFE_S / DAY_S)
    weekly = 0.0
    for use in uses_s:
        age = now_s - use
        if age < WEEK_S - DAY_S - _NEAR_S:
            continue
        ahead = -age % WEEK_S  # seconds from now to the next moment of the week like that one
        if ahead <= DAY_S + _NEAR_S or ahead >= WEEK_S - _NEAR_S:
            weekly += 0.5 ** (age / _ECHO_HALF_LIFE_S)
    return 1 - math.exp(-max(per_day, weekly))


def value_s(chance: float, size_bytes: int, refetch_bytes_s: float) -> float:
    """Seconds that having a model is expected to save within a day."""
    return chance * size_bytes / refetch_bytes_s


def choose(
    wishes: Collection[Wish],
    candidates: Collection[Candidate],
    *,
    now_s: float,
    refetch_bytes_s: float,
    free_bytes: int,
    uses_s: Mapping[str, tuple[float, ...]],
    budget_bytes: int | None = None,
    models_needed: Mapping[str, float] | None = None,
) -> tuple[Decision, ...]:
    """Judge every wish, the most valuable first. `free_bytes` is the room below the low-water mark.

    `uses_s` tells past uses of all models, `models_needed` when which has an appointment. `budget_bytes` bounds what is fetched.
    """
    here: dict[tuple[str, str], tuple[float, int]] = {}
    for each in candidates:
        if each.held:
            continue
        size = sum(each.content.values())
        appointed = (models_needed or {}).get(each.model_id)
        chance = 1.0 if appointed is not None else probability(uses_s.get(each.model_id, ()), now_s)
        worth = value_s(chance, size, refetch_bytes_s) * _PRIORITY_VALUE[each.priority]
        here[each.model_id, each.commit] = (worth, size)
    judged = []
    for wish in wishes:
        chance = 1.0 if wish.needed_in_s is not None else probability(wish.uses_s, now_s)
        judged.append((value_s(chance, wish.size_bytes or 0, refetch_bytes_s), chance, wish))
    room, budget = free_bytes, budget_bytes
    decisions = []
    for value, chance, wish in sorted(judged, key=lambda each: (-each[0], each[2].model_id)):
        why = _reason(wish, chance, now_s)
        said = {"model_id": wish.model_id, "probability": chance, "value_s": value, "size_bytes": wish.size_bytes}
        if chance < LEAST_PROBABILITY:
            decisions.append(Decision(does="skip", why=f"{why}: too unlikely", **said))  # type: ignore[arg-type]
            continue
        if wish.size_bytes is None:
            decisions.append(Decision(does="skip", why=f"{why}, but its source does not tell its size", **said))  # type: ignore[arg-type]
            continue
        if budget is not None and wish.size_bytes > budget:
            decisions.append(Decision(does="skip", why=f"{why}, but the budget is used up", **said))  # type: ignore[arg-type]
            continue
        gone: list[tuple[str, str]] = []
        freed, worth = 0, 0.0
        for key, (lost, size) in sorted(here.items(), key=lambda each: (each[1][0], each[0])):
            if room + freed >= wish.size_bytes:
                break
            gone.append(key)
            freed, worth = freed + size, worth + lost
        if room + freed < wish.size_bytes:
            decisions.append(Decision(does="skip", why=f"{why}, but there is no room", **said))  # type: ignore[arg-type]
            continue
        if worth >= value:
            decisions.append(
                Decision(does="skip", why=f"{why}, but what would go is worth more ({worth:.0f} s)", **said)  # type: ignore[arg-type]
            )
            continue
        for key in gone:
            del here[key]
        room += freed - wish.size_bytes
        budget = None if budget is None else budget - wish.size_bytes
        decisions.append(Decision(does="fetch", why=why, evicts=tuple(gone), **said))  # type: ignore[arg-type]
    return tuple(decisions)


def _reason(wish: Wish, chance: float, now_s: float) -> str:
    if wish.needed_in_s is not None:
        return f"needed by appointment in {max(0.0, wish.needed_in_s) / 3600:.1f} h"
    last = max(wish.uses_s, default=now_s)
    return f"{len(wish.uses_s)} uses, the last {(now_s - last) / DAY_S:.1f} days ago, so {chance:.0%} within a day"
