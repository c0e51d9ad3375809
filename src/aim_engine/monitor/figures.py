"""Figures of a span, and the report that holds them. Pure.

A figure that cannot be had says why: not exported, nothing happened in the window, or no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from aim_engine.kpi import formula, measures, names
from aim_engine.kpi.figure import Kpi
from aim_engine.kpi.formula import Formula, Increase, Mean, Over, Rate, Unknown
from aim_engine.monitor.span import Quantile, Span, quantile
from aim_engine.workload import Workload

SPLIT = (
    "some servers only prefill and others only decode: requests, answers and times per token are counted at those that decode, prompts and "
    "waits at those that prefill; of vLLM the time to the first token is that of the prefill, and the transfer and the first step after it "
    "come on top, as the prefill comes on top of the time of a request"
)
QUANTILES = (0.5, 0.9, 0.95, 0.99)


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
    """`p50`, `p90`, `p95`, `p99` of a latency."""
    why: str = ""
    """Why `value` is None."""


class KpiReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/kpis/v1"):
    """The figures of one deployment over one window."""

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
    scrapes: int = 0
    failed_scrapes: int = 0
    restarts: int = 0
    notes: tuple[str, ...] = ()

    def value(self, kpi: str) -> float | None:
        """The value of one figure, None when it could not be had."""
        reading = self.readings.get(kpi)
        return None if reading is None else reading.value

    def quantile(self, kpi: str, which: str) -> float | None:
        """A quantile of a latency, such as `p95`; None when it could not be had."""
        reading = self.readings.get(kpi)
        found = None if reading is None else reading.quantiles.get(which)
        return None if found is None else found.value


def of(
    span: Span,
    *,
    endpoint: str,
    families: Mapping[str, str] | None = None,
    engine: str | None = None,
    models: tuple[str, ...] = (),
    basis: Literal["window", "since start"] = "window",
    parameters: Mapping[str, float] | None = None,
    scores: Mapping[str, float] | None = None,
    notes: tuple[str, ...] = (),
) -> KpiReport:
    """The figures of a span. `parameters` are numbers that no metric tells: limits of the plan, the price of its devices.

    `scores` are results of evaluations and ratings by figure.
    """
    read_from = families or {}
    return KpiReport(
        endpoint=endpoint,
        engine=engine,
        models=models,
        basis=basis,
        window_s=span.seconds if span.seconds > 0 else None,
        readings={kpi.name: reading(kpi, span, parameters or {}, read_from, scores or {}) for kpi in names.ALL},
        finished={
            reason: span.counters[name]
            for reason in measures.FINISH_REASONS
            if (name := f"finished_{reason}") in span.counters
        },
        scrapes=span.scrapes,
        failed_scrapes=span.failed,
        restarts=span.restarts,
        notes=notes + ((SPLIT,) if span.side == "both" else ()),
    )


def traffic(report: KpiReport, *, engines: int = 1) -> Workload | None:
    """The load that was measured, as a workload; None where nobody told it.

    Each step of an engine makes a token for every request in its batch, so answers over steps are the batch while there was work: the
    mean over the window has idle times in it, in which nobody waited for a token. `engines` share the load.
    """
    prompt, output, batch = (report.value(name) for name in ("prompt_tokens", "output_tokens", "batch"))
    if not prompt or not output or not batch:
        return None
    made, steps = report.readings["output_tok_s"].count, report.readings["step_tokens"].count
    busy = max(batch, made / steps * engines) if made and steps else batch
    waiting = (report.value("waiting_mean") or 0.0) / batch
    return Workload(
        input_tokens=max(1, round(prompt)),
        output_tokens=max(1, round(output)),
        concurrency=max(1, round(busy * (1 + waiting))),
        prefix_hit_fraction=min(0.99, max(0.0, report.value("prefix_hit_fraction") or 0.0)),
    )


def reading(
    kpi: Kpi, span: Span, parameters: Mapping[str, float], families: Mapping[str, str], scores: Mapping[str, float]
) -> Reading:
    """One figure of a span."""
    if kpi.formula is None:
        value = scores.get(kpi.name)
        return Reading(kpi=kpi.name, value=value, unit=kpi.unit, why="" if value is not None else "none is stored")
    used = [name for name in formula.measures_of(kpi.formula) if name in families]
    metric, count = families[used[0]] if used else None, _count(kpi.formula, span)
    try:
        value = formula.evaluate(kpi.formula, span.source(parameters)) * kpi.scale
    except Unknown as err:
        return Reading(kpi=kpi.name, value=None, unit=kpi.unit, metric=metric, count=count, why=str(err))
    return Reading(
        kpi=kpi.name,
        value=value,
        unit=kpi.unit,
        metric=metric,
        count=count,
        quantiles=_quantiles(kpi, span) if isinstance(kpi.formula, Mean) else {},
    )


def _quantiles(kpi: Kpi, span: Span) -> dict[str, Quantile]:
    histogram = span.histograms.get(kpi.measure or "")
    if histogram is None:
        return {}
    buckets = histogram.cumulative()
    found = {f"p{share * 100:g}": quantile(buckets, share) for share in QUANTILES}
    return {
        label: Quantile(
            value=each.value * kpi.scale,
            low=each.low * kpi.scale,
            high=None if each.high is None else each.high * kpi.scale,
        )
        for label, each in found.items()
        if each is not None
    }


def _count(asked: Formula, span: Span) -> float | None:
    match asked:
        case Rate(name) | Increase(name):
            return span.counters.get(name)
        case Mean(name):
            return span.histograms[name].count if name in span.histograms else None
        case Over(_, bottom):
            return _count(bottom, span)
        case formula.First(parts):
            return next((found for part in parts if (found := _count(part, span)) is not None), None)
        case _:
            return None
