"""Fetches ahead of need what `prefetch` chose, behind everything that somebody waits for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from aim_engine.cache import acquire, evict, layout, prefetch, schedule, space
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.pace import Pace
from aim_engine.cache.prefetch import Decision, Wish
from aim_engine.errors import AimError

_ASSUMED_BYTES_S = 100e6
"""Until this node fetched something, values are compared at this rate; it cancels out between models."""
_AHEAD_S = 86_400.0


def decide(manager: ModelCacheManager, *, budget_bytes: int | None = None) -> tuple[Decision, ...]:
    """Judge every model that has an appointment or was used before and is not here. Raises: Unreachable.

    Each such model costs one question to its source, if it is likely enough to be needed.
    """
    manager.store.ensure()
    store, index = manager.store, manager.index
    now_s = store.now_s()
    needed = schedule.needed(store, now_s)
    uses = index.uses()
    wishes = []
    for model_id in sorted(needed.keys() | uses.keys()):
        if manager.is_cached(model_id):
            continue
        start_s = needed.get(model_id)
        soon = start_s is not None and start_s - now_s <= _AHEAD_S
        likely = prefetch.probability(uses.get(model_id, ()), now_s) >= prefetch.LEAST_PROBABILITY
        size = None
        if soon or likely:
            with contextlib.suppress(AimError):  # the decision says that the size is not told
                plan = manager.plan_download(model_id)
                size = plan.missing_bytes - plan.resumed_bytes
        wishes.append(
            Wish(
                model_id=model_id,
                size_bytes=size,
                needed_in_s=start_s - now_s if soon and start_s is not None else None,
                uses_s=uses.get(model_id, ()),
            )
        )
    return prefetch.choose(
        wishes,
        manager.candidates(),
        now_s=now_s,
        refetch_bytes_s=refetch_bytes_s(manager),
        free_bytes=_free_bytes(manager),
        uses_s=uses,
        budget_bytes=budget_bytes,
        models_needed=needed,
    )


def carry_out(
    manager: ModelCacheManager,
    decisions: tuple[Decision, ...],
    tell: Callable[[str], None] = lambda _: None,
    *,
    pace: Pace | None = None,
) -> int:
    """Fetch what was decided, one model after the other; gives the bytes fetched. A model that fails is told and passed over."""
    fetched = 0
    for decision in decisions:
        if decision.does != "fetch":
            continue
        tell(f"fetching {decision.model_id} ahead: {decision.why}, worth {decision.value_s:.0f} s")
        try:
            _let_go(manager, decision)
            plan = manager.plan_download(decision.model_id)
            tally = acquire.apply(
                plan,
                manager.store,
                manager.index,
                manager.client(),
                tell=tell,
                limit_bytes=manager.limit_bytes,
                pace=pace or background_pace(manager),
                connections=4,
            )
            manager.pass_on(plan)
        except AimError as err:
            tell(f"{decision.model_id}: {err}")
            continue
        fetched += tally.received_bytes
        manager.index.count(prefetched_bytes=tally.received_bytes)
    return fetched


def background_pace(manager: ModelCacheManager) -> Pace:
    """A share of the bandwidth that is allowed or was measured."""
    return manager.pace(background_fraction=prefetch.BANDWIDTH_FRACTION, otherwise_bytes_s=_measured_bytes_s(manager))


def refetch_bytes_s(manager: ModelCacheManager) -> float:
    """How fast this node fetched so far."""
    return _measured_bytes_s(manager) or _ASSUMED_BYTES_S


def _measured_bytes_s(manager: ModelCacheManager) -> float | None:
    counted = manager.index.counters()
    seconds, fetched = counted.get("download_seconds", 0.0), counted.get("fetched_bytes", 0.0)
    return fetched / seconds if seconds > 0 and fetched > 0 else None


def _free_bytes(manager: ModelCacheManager) -> int:
    """Room below the low-water mark: of the limit when there is one, and of the disk."""
    store = manager.store
    free = layout.free_bytes(store.root) - space.reserve_bytes(store.root)
    if manager.limit_bytes is not None:
        free = min(free, int(manager.limit_bytes * prefetch.LOW_WATER_FRACTION) - evict.used_bytes(store))
    return max(0, free)


def _let_go(manager: ModelCacheManager, decision: Decision) -> None:
    """Remove what a decision gives up; what became held meanwhile stays."""
    doomed = [each for each in manager.candidates() if (each.model_id, each.commit) in decision.evicts]
    if not doomed:
        return
    others = {
        sha256
        for each in manager.candidates()
        if (each.model_id, each.commit) not in decision.evicts
        for sha256 in each.content
    }
    content = {sha256: size for each in doomed for sha256, size in each.content.items() if sha256 not in others}
    gone = evict.Eviction(revisions=tuple(doomed), digests=tuple(sorted(content)), freed_bytes=sum(content.values()))
    evict.apply(gone, manager.store, manager.index)
