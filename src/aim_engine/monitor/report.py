"""What two looks at a metrics page say: the figures of the requests in between.

Counters and histograms count from the engine's start, and the first requests after a start pay for compilation, so
averages over an engine's life mislead. Everything here is the difference of two snapshots. A figure that cannot be had
says why: not exported, nothing happened in the window, or no clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal

import msgspec

from aim_engine.kpi import names
from aim_engine.kpi.names import Kpi, Target
from aim_engine.monitor import judge, scrape
from aim_engine.monitor.scrape import Snapshot
from aim_engine.monitor.window import Quantile, Window, quantile

QUANTILES = (0.5, 0.9, 0.99)
_MS = 1000.0


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a report, or why there is none."""

    kpi: str
    value: float | None
    """Mean of a latency, rate of a counter, level of a gauge, in the vocabulary's unit."""
    unit: str
    metric: str | None = None
    """The engine's name for what was read."""
    count: float | None = None
    """Observations behind a mean, events behind a rate."""
    quantiles: dict[str, Quantile] = {}
    """`p50`, `p90`, `p99` of a latency."""
    why: str = ""
    """Why `value` is None."""


class KpiReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/kpis/v1"):
    """The figures of one engine over one window."""

    endpoint: str
    engine: str | None
    models: tuple[str, ...]
    basis: Literal["window", "since start"]
    """`since start` when there was no earlier snapshot, or when the engine restarted after it."""
    window_s: float | None
    """Length of the window. None when the snapshots carry no time."""
    readings: dict[str, Reading]
    finished: dict[str, float]
    """Requests finished in the window by reason (stop, length, abort, error ...)."""
    notes: tuple[str, ...] = ()

    def value(self, kpi: str) -> float | None:
        """The value of one figure, None when it could not be had."""
        reading = self.readings.get(kpi)
        return None if reading is None else reading.value


def summarise(before: Snapshot | None, after: Snapshot, *, endpoint: str = "") -> KpiReport:
    """The figures of the window between two snapshots. Pure: time is what the snapshots carry.

    Without `before`, or when the engine restarted after it, the window begins at the engine's start and the report
    says so.
    """
    window = Window(before, after)
    readings: dict[str, Reading] = {}
    for kpi in names.LATENCIES:
        readings[kpi.name] = _latency(kpi, window)
    for kpi in names.COUNTERS:
        readings[kpi.name] = _rate(kpi, window) if kpi.unit.endswith("/s") else _events(kpi, window)
    for kpi in names.GAUGES:
        readings[kpi.name] = _level(kpi, window)
    readings["output_tok_s_per_user"] = _speed_per_user(readings["itl_ms"])
    readings["prefix_hit_fraction"] = _prefix_hits(window)
    for kpi in names.DEVICES:
        readings[kpi.name] = Reading(
            kpi=kpi.name, value=None, unit=kpi.unit, why="engines do not export it; a device exporter does"
        )
    return KpiReport(
        endpoint=endpoint,
        engine=next(
            (
                engine
                for prefix, engine in names.ENGINE_PREFIXES.items()
                if any(n.startswith(prefix) for n in after.samples)
            ),
            None,
        ),
        models=_models(after),
        basis="since start" if window.before is None else "window",
        window_s=window.seconds,
        readings=readings,
        finished=_finished(window),
        notes=_notes(window),
    )


def watch_once(endpoint: str, *, before: Snapshot | None = None, timeout_s: float = 5.0) -> KpiReport:
    """One look at a running engine: the figures since `before`, or since its start. Raises: Unreachable."""
    return summarise(before, scrape.fetch(endpoint, timeout_s=timeout_s), endpoint=endpoint)


def _latency(kpi: Kpi, window: Window) -> Reading:
    name = window.exported(kpi.metrics, ("_count",))
    if name is None:
        return _absent(kpi)
    family = name.removesuffix("_count")
    count = window.increase(name)
    if count <= 0:
        return Reading(
            kpi=kpi.name,
            value=None,
            unit=kpi.unit,
            metric=family,
            count=0.0,
            why="no request came that far in the window",
        )
    buckets = window.buckets(family)
    found = {f"p{share * 100:g}": quantile(buckets, share) for share in QUANTILES}
    return Reading(
        kpi=kpi.name,
        value=window.increase(f"{family}_sum") / count * _MS,
        unit=kpi.unit,
        metric=family,
        count=count,
        quantiles={
            label: Quantile(
                value=each.value * _MS, low=each.low * _MS, high=None if each.high is None else each.high * _MS
            )
            for label, each in found.items()
            if each is not None
        },
    )


def _rate(kpi: Kpi, window: Window) -> Reading:
    name = window.exported(kpi.metrics, ("_total", ""))
    if name is None:
        return _absent(kpi)
    events = window.increase(name)
    seconds = window.seconds
    if seconds is None:
        return Reading(
            kpi=kpi.name, value=None, unit=kpi.unit, metric=name, count=events, why="the snapshots carry no time"
        )
    return Reading(kpi=kpi.name, value=events / seconds, unit=kpi.unit, metric=name, count=events)


def _events(kpi: Kpi, window: Window) -> Reading:
    name = window.exported(kpi.metrics, ("_total", ""))
    if name is None:
        return _absent(kpi)
    events = window.increase(name)
    return Reading(kpi=kpi.name, value=events, unit=kpi.unit, metric=name, count=events)


def _level(kpi: Kpi, window: Window) -> Reading:
    name = window.exported(kpi.metrics, ("",))
    if name is None:
        return _absent(kpi)
    groups = window.levels(name)
    value = max(groups) if kpi.unit == "fraction" else sum(groups)
    return Reading(kpi=kpi.name, value=value, unit=kpi.unit, metric=name)


def _speed_per_user(gaps: Reading) -> Reading:
    kpi = names.BY_NAME["output_tok_s_per_user"]
    if gaps.value is None:
        return Reading(kpi=kpi.name, value=None, unit=kpi.unit, metric=gaps.metric, why=gaps.why)
    if gaps.value <= 0:
        return Reading(kpi=kpi.name, value=None, unit=kpi.unit, metric=gaps.metric, why="the mean gap is zero")
    return Reading(kpi=kpi.name, value=_MS / gaps.value, unit=kpi.unit, metric=gaps.metric, count=gaps.count)


def _prefix_hits(window: Window) -> Reading:
    kpi = names.BY_NAME["prefix_hit_fraction"]
    queries = window.exported(names.PREFIX_QUERIES, ("_total", ""))
    hits = window.exported(names.PREFIX_HITS, ("_total", ""))
    if queries is None or hits is None:
        return Reading(
            kpi=kpi.name, value=None, unit=kpi.unit, why="the engine does not export its prefix cache counters"
        )
    asked = window.increase(queries)
    if asked <= 0:
        return Reading(
            kpi=kpi.name, value=None, unit=kpi.unit, metric=hits, count=0.0, why="no prompt was looked up in the window"
        )
    return Reading(kpi=kpi.name, value=window.increase(hits) / asked, unit=kpi.unit, metric=hits, count=asked)


def _absent(kpi: Kpi) -> Reading:
    return Reading(kpi=kpi.name, value=None, unit=kpi.unit, why="the engine does not export it")


def _finished(window: Window) -> dict[str, float]:
    name = window.exported(("vllm:request_success",), ("_total", ""))
    if name is None:
        return {}
    reasons = {sample.label("finished_reason") or "unknown" for sample in window.after.samples[name]}
    return {
        reason: window.increase(
            name,
            lambda sample, reason=reason: (sample.label("finished_reason") or "unknown") == reason,  # type: ignore[misc]
        )
        for reason in sorted(reasons)
    }


def _notes(window: Window) -> tuple[str, ...]:
    notes = []
    if window.restarted:
        notes.append("the engine restarted inside the window: figures count from its start")
    elif window.before is None:
        notes.append("figures count from the engine's start, first requests and their compilation included")
    if window.after.skipped:
        notes.append(f"{window.after.skipped} lines of the metrics page could not be read")
    return tuple(notes)


def _models(snapshot: Snapshot) -> tuple[str, ...]:
    samples = itertools.chain.from_iterable(
        group for name, group in snapshot.samples.items() if name.startswith(tuple(names.ENGINE_PREFIXES))
    )
    return tuple(sorted({model for sample in samples if (model := sample.label("model_name"))}))


class PerformanceMonitor:
    """Watches one engine. The first `collect` covers its life so far, each further one the time since the last."""

    def __init__(self, endpoint: str, targets: Mapping[str, Target | float] | None = None) -> None:
        """`targets` maps names of figures to a Target, or to a plain limit on the worse side.

        Without it the targets of the vocabulary hold. Raises: InvalidInput for an unknown figure.
        """
        self.endpoint = endpoint
        self.targets = (
            judge.default_targets() if targets is None else {k: judge.target(k, v) for k, v in targets.items()}
        )
        self._last: scrape.Snapshot | None = None
        self._report: KpiReport | None = None

    def collect(self) -> KpiReport:
        """Scrape now and report what happened since the last time. Raises: Unreachable."""
        snapshot = scrape.fetch(self.endpoint)
        report = summarise(self._last, snapshot, endpoint=self.endpoint)
        self._last, self._report = snapshot, report
        return report

    def report(self) -> KpiReport:
        """The latest report; the first one is collected when there is none. Raises: Unreachable."""
        return self._report or self.collect()

    def check_targets(self, report: KpiReport) -> tuple[judge.Alert, ...]:
        """The figures of `report` that lie outside their targets; unknown figures raise no alert."""
        return judge.check(report, self.targets)

    def suggest(self, report: KpiReport) -> tuple[judge.Suggestion, ...]:
        """What to change, from what `report` shows."""
        return judge.suggest(report)
