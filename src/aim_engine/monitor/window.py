"""What happened between two snapshots of a metrics page: increases of counters, buckets of histograms, quantiles.

Counters and histograms count from the engine's start, and the first requests after a start pay for compilation, so
averages over an engine's life mislead. Everything here is a difference; an engine that restarted in between is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import msgspec

from aim_engine.kpi import names
from aim_engine.monitor.scrape import Sample, Snapshot

_SAME_WORK_LABELS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "pid"})
"""Labels of ranks that report the same requests: take one of them, do not add them up."""


class Quantile(msgspec.Struct, frozen=True, kw_only=True):
    """A quantile read from histogram buckets; the truth lies between the bucket's edges."""

    value: float
    low: float
    high: float | None
    """None when it fell into the last, open bucket."""


class Window:
    """Two snapshots of one engine, asked for sums and differences. `before` None means since the engine's start."""

    def __init__(self, before: Snapshot | None, after: Snapshot) -> None:
        self.after = after
        self.restarted = before is not None and _restarted(before, after)
        self.before = None if self.restarted else before

    def levels(self, name: str) -> list[float]:
        """Values of a gauge at the window's end, one per engine."""
        return _by_engine(self.after, name, lambda _: True)

    @property
    def seconds(self) -> float | None:
        """Length of the window, None when it is not known or not positive."""
        end = self.after.time_s
        start = self.before.time_s if self.before is not None else _start_time(self.after)
        return None if end is None or start is None or end <= start else end - start

    def exported(self, families: Iterable[str], suffixes: tuple[str, ...]) -> str | None:
        """The first sample name, of these families with one of these suffixes, that the page exports with a number."""
        for family in families:
            for suffix in suffixes:
                if self.after.has(family + suffix):
                    return family + suffix
        return None

    def increase(self, name: str, where: Callable[[Sample], bool] = lambda _: True) -> float:
        """By how much the counter samples of this name grew, all series of one server together."""
        now = _total(self.after, name, where)
        return now - (_total(self.before, name, where) if self.before is not None else 0.0)

    def buckets(self, family: str) -> list[tuple[float, float]]:
        """(upper edge, observations up to it) of a histogram in the window, ascending."""
        edges = {_edge(sample) for sample in self.after.samples.get(f"{family}_bucket", ())}
        return [
            (edge, self.increase(f"{family}_bucket", lambda sample, edge=edge: _edge(sample) == edge))  # type: ignore[misc]
            for edge in sorted(edge for edge in edges if not math.isnan(edge))
        ]


def quantile(buckets: list[tuple[float, float]], share: float) -> Quantile | None:
    """The quantile `share` of cumulative histogram buckets, linear inside a bucket; None when nothing was observed.

    In the open last bucket the value is its lower edge, as Prometheus' histogram_quantile has it.
    """
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return None
    rank = share * total
    low, below = 0.0, 0.0
    for edge, count in buckets:
        if count >= rank and count > below:
            if math.isinf(edge):
                return Quantile(value=low, low=low, high=None)
            return Quantile(value=low + (edge - low) * max(0.0, rank - below) / (count - below), low=low, high=edge)
        low, below = edge, max(below, count)
    return Quantile(value=low, low=low, high=None)


def _start_time(snapshot: Snapshot) -> float | None:
    values = [sample.value for sample in snapshot.samples.get(names.START_TIME, ()) if not math.isnan(sample.value)]
    return min(values) if values else None


def _restarted(before: Snapshot, after: Snapshot) -> bool:
    """Did the process start anew in between? Its start time moved, or an engine's counter fell."""
    was, now = _start_time(before), _start_time(after)
    if was is not None and now is not None and now > was + 0.5:
        return True
    return any(
        name.startswith(tuple(names.ENGINE_PREFIXES))
        and name.endswith(("_total", "_count"))
        and _total(after, name, lambda _: True) < _total(before, name, lambda _: True)
        for name in before.samples
        if name in after.samples
    )


def _total(snapshot: Snapshot, name: str, where: Callable[[Sample], bool]) -> float:
    return sum(_by_engine(snapshot, name, where))


def _by_engine(snapshot: Snapshot, name: str, where: Callable[[Sample], bool]) -> list[float]:
    """Values of a sample name, one per engine: ranks that report the same work count once, by their maximum."""
    groups: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in snapshot.samples.get(name, ()):
        if math.isnan(sample.value) or not where(sample):
            continue
        key = tuple(label for label in sample.labels if label[0] not in _SAME_WORK_LABELS)
        groups[key] = max(groups.get(key, -math.inf), sample.value)
    return list(groups.values())


def _edge(sample: Sample) -> float:
    try:
        return float(sample.label("le") or "nan")
    except ValueError:
        return math.nan
