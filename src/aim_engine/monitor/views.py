"""A deployment over a window, as one document: figures beside their targets and an earlier window, curves, cards, alerts, odd events.

The same document whether the looks are our own or those of a Prometheus server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from aim_engine.kpi import measures, names
from aim_engine.kpi.cards import DEVICES
from aim_engine.kpi.figure import Kpi
from aim_engine.monitor import figures
from aim_engine.monitor.figures import KpiReport
from aim_engine.monitor.history import History, Kept
from aim_engine.monitor.ledger import Alert, Ledger
from aim_engine.monitor.prometheus import Prometheus
from aim_engine.monitor.span import Gauge, Span, side_by_side
from aim_engine.monitor.track import Event
from aim_engine.perf.estimate import Estimate, Range
from aim_engine.planner.plan import Plan
from aim_engine.render import alert_rules
from aim_engine.workload import Limit, Workload

Predict = Callable[[Plan, Workload], Estimate | None]
CURVES = (
    "ttft_ms",
    "tpot_ms",
    "e2e_ms",
    "output_tok_s",
    "requests_s",
    "batch",
    "waiting_mean",
    "kv_usage_peak_fraction",
    "prefix_hit_fraction",
    "gpu_busy_fraction",
    "power_w",
    "junction_c",
)
"""Figures that are drawn over time, where they are told."""
SAME = 0.05
"""A change of less is no change: runs of one configuration differ by as much."""
POINTS = 96
GONE_S = 120.0
"""A replica that was last looked at so long before the others is no more."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One place of a curve."""

    time_s: float
    value: float
    high: float | None = None
    """95th percentile of a latency."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the table."""

    kpi: str
    label: str
    unit: str
    measured: float | None
    why: str = ""
    p95: float | None = None
    planned: float | None = None
    """What the plan promised for the load it was made for."""
    predicted: float | None = None
    """The same for the load that came; None where nobody told it."""
    low: float | None = None
    high: float | None = None
    """Band of the prediction."""
    limit: float | None = None
    """What the plan was asked to keep."""
    limit_percentile: int | None = None
    """What of it has to keep the limit; None: the mean."""
    at_limit: float | None = None
    """What was measured of that."""
    before: float | None = None
    change_fraction: float | None = None
    verdict: Literal["met", "missed", "inside", "outside", ""] = ""
    """met or missed: the limit; inside or outside: the band of the prediction."""
    trend: Literal["better", "worse", "same", ""] = ""
    """Against the earlier window."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One card in the window."""

    name: str
    figures: dict[str, float]


class Document(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/report/v1"):
    """The report of one deployment."""

    deployment: str
    model: str
    recipe: str
    begin_s: float
    end_s: float
    figures: KpiReport
    lines: tuple[Line, ...]
    traffic: Workload | None = None
    """The load that was measured and predictions are for; None where they are for the load of the plan."""
    before: KpiReport | None = None
    before_label: str = ""
    curves: dict[str, tuple[Point, ...]] = {}
    cards: tuple[Card, ...] = ()
    alerts: tuple[Alert, ...] = ()
    events: tuple[Event, ...] = ()
    notes: tuple[str, ...] = ()


def parameters(plan: Plan | None) -> dict[str, float]:
    """Numbers of the plan that figures and limits are made of; what it does not say is absent."""
    if plan is None:
        return {}
    found: dict[str, float | None] = {**alert_rules.of_limits(plan.inputs.slo)}
    if plan.chosen is not None:
        recipe = plan.chosen.recipe
        found |= {
            "usd_h": plan.chosen.running.usd_h,
            "gpus": float(recipe.gpu_count),
            "replicas": float(recipe.replicas),
            "max_num_seqs": float(recipe.max_num_seqs),
            "max_num_batched_tokens": float(recipe.max_num_batched_tokens),
        }
    return {name: value for name, value in found.items() if value is not None}


def quality(ledger: Ledger, deployment: str, begin_s: float, end_s: float, *, at_least: int = 1) -> dict[str, float]:
    """Scores of a deployment: the newest evaluation, and the share of good answers among those rated or checked.

    The share is left out below `at_least` of them.
    """
    found = {}
    scores = [score for score in ledger.scores(deployment) if score.time_s <= end_s]
    if scores:
        found["accuracy_score"] = scores[-1].value
    ratings = ledger.ratings(deployment, begin_s, end_s)
    if len(ratings) >= at_least:
        found["response_quality_score"] = sum(rating.good for rating in ratings) / len(ratings)
    return found


def span(history: History, deployment: str, begin_s: float, end_s: float) -> Span:
    """Everything of a deployment in a window: its replicas and its cards."""
    engines: list[tuple[float | None, Span]] = []
    cards: list[Span] = []
    for kept in history.targets(deployment):
        found = history.window(kept, begin_s, end_s)
        if kept.target.kind == "engine":
            engines.append((history.last_s(kept, end_s), found))
        else:
            cards.append(found)
    times = [(last_s, found) for last_s, found in engines if last_s is not None and last_s > begin_s and found.scrapes]
    newest = max((last_s for last_s, _ in times), default=end_s)
    whole = joined(
        [_gone(found) if last_s is not None and newest - last_s > GONE_S else found for last_s, found in engines], cards
    )
    covered_s = newest - min((last_s - found.seconds for last_s, found in times), default=newest)
    return _stretched(whole, min(covered_s, end_s - begin_s))


def _stretched(whole: Span, covered_s: float) -> Span:
    """Replicas that followed each other, as pods do in a rollout, cover more time together than the longest of them."""
    if not 0 < whole.seconds < covered_s:
        return whole
    longer = covered_s / whole.seconds
    levels = {
        name: Gauge(g.last, g.low, g.high, g.total, g.count, g.area, g.seconds * longer)
        if measures.BY_NAME[name].across == "sum"
        else g
        for name, g in whole.gauges.items()
    }
    return msgspec.structs.replace(whole, seconds=covered_s, gauges=levels)


def _gone(found: Span) -> Span:
    """A replica that went away, such as a pod before a rollout: what it did counts, and now nothing runs or waits there."""
    levels = {
        name: Gauge(0.0, 0.0, gauge.high, gauge.total, gauge.count, gauge.area, gauge.seconds)
        for name, gauge in found.gauges.items()
    }
    return msgspec.structs.replace(found, gauges=levels)


def joined(engines: Sequence[Span], cards: Sequence[Span]) -> Span:
    """Replicas and cards of one deployment; how often it answered is told by its replicas alone."""
    engine, card = side_by_side(engines) if engines else Span(0.0), side_by_side(cards) if cards else Span(0.0)
    return Span(
        engine.seconds or card.seconds,
        {**card.counters, **engine.counters},
        {**card.gauges, **engine.gauges},
        engine.histograms,
        engine.scrapes,
        engine.failed,
        engine.restarts,
        engine.side,
    )


def of_history(
    history: History,
    deployment: str,
    begin_s: float,
    end_s: float,
    *,
    plan: Plan | None = None,
    ledger: Ledger | None = None,
    before: tuple[float, float, str] | None = None,
    points: int = POINTS,
    predict: Predict | None = None,
) -> Document:
    """The report from our own history. `before` is an earlier window and what to call it; without `points` no curves.

    `predict` says what the plan's recipe does under a load.
    """
    kept = history.targets(deployment)
    given = parameters(plan)
    about = next((each.about for each in kept if each.target.kind == "engine"), None)
    families = {name: family for each in reversed(kept) for name, family in each.about.families.items()}

    def told(begin: float, end: float) -> KpiReport:
        return figures.of(
            span(history, deployment, begin, end),
            endpoint=", ".join(each.target.endpoint for each in kept if each.target.kind == "engine"),
            families=families,
            engine=about.engine if about is not None else None,
            models=about.models if about is not None else (),
            parameters=given,
            scores=quality(ledger, deployment, begin, end) if ledger is not None else {},
        )

    now = told(begin_s, end_s)
    earlier = told(before[0], before[1]) if before is not None else None
    load, predicted = expected_for(now, plan, predict)
    begins = [first for each in kept if (first := history.first_s(each)) is not None]
    notes = []
    if begins and min(begins) > begin_s + 60:
        notes.append(f"the history begins {(min(begins) - begin_s) / 60:.0f} minutes after the window")
    notes += now.notes
    if not kept:
        notes.append("nothing of this deployment was kept yet")
    return Document(
        deployment=deployment,
        model=_model(plan, now),
        recipe=plan.chosen.recipe.key if plan is not None and plan.chosen is not None else "",
        begin_s=begin_s,
        end_s=end_s,
        figures=now,
        lines=lines(now, earlier, plan, predicted),
        traffic=load if predicted is not None else None,
        before=earlier,
        before_label=before[2] if before is not None else "",
        curves=_curves(history, kept, begin_s, end_s, points) if points else {},
        cards=_cards(history, kept, begin_s, end_s),
        alerts=tuple(a for a in ledger.alerts() if a.deployment == deployment) if ledger is not None else (),
        events=tuple(
            sorted(
                (event for each in kept for event in history.events(each, begin_s, end_s, most=50)),
                key=lambda event: event.time_s,
            )
        ),
        notes=tuple(notes),
    )


def of_prometheus(
    server: Prometheus,
    deployment: str,
    begin_s: float,
    end_s: float,
    *,
    plan: Plan | None = None,
    before: tuple[float, float, str] | None = None,
    points: int = 0,
    predict: Predict | None = None,
) -> Document:
    """The report from a Prometheus server; `predict` as for `of_history`. Raises: Unreachable."""
    given = parameters(plan)

    def told(begin: float, end: float) -> KpiReport:
        return figures.of(server.window(begin, end), endpoint=server.url, engine="vllm", parameters=given)

    now = told(begin_s, end_s)
    earlier = told(before[0], before[1]) if before is not None else None
    load, predicted = expected_for(now, plan, predict)
    step_s = (end_s - begin_s) / points if points else 0.0
    spans = [
        (begin_s + (n + 1) * step_s, server.window(begin_s + n * step_s, begin_s + (n + 1) * step_s))
        for n in range(points)
    ]
    return Document(
        deployment=deployment,
        model=_model(plan, now),
        recipe=plan.chosen.recipe.key if plan is not None and plan.chosen is not None else "",
        begin_s=begin_s,
        end_s=end_s,
        figures=now,
        lines=lines(now, earlier, plan, predicted),
        traffic=load if predicted is not None else None,
        before=earlier,
        before_label=before[2] if before is not None else "",
        curves=curves(spans),
    )


def expected_for(now: KpiReport, plan: Plan | None, predict: Predict | None) -> tuple[Workload | None, Estimate | None]:
    """The load that came, and what was to be expected under it."""
    if plan is None or plan.chosen is None or predict is None:
        return None, None
    load = figures.traffic(now, engines=plan.chosen.recipe.replicas * plan.chosen.recipe.parallelism.dp)
    return load, predict(plan, load) if load is not None else None


def lines(
    now: KpiReport, before: KpiReport | None, plan: Plan | None, predicted: Estimate | None = None
) -> tuple[Line, ...]:
    """Every figure that is told, beside what was planned, `predicted` for the load that came, asked and measured earlier."""
    found = []
    for kpi in names.ALL:
        reading = now.readings[kpi.name]
        was = before.value(kpi.name) if before is not None else None
        planned, limit = planned_for(plan, kpi.name), limit_on(plan, kpi.name)
        reached = None if limit is None else at_level(now, kpi.name, limit.percentile)
        expected = planned if predicted is None else ranges(predicted).get(kpi.name)
        if reading.value is None and was is None and planned is None:
            continue
        change = None
        if was is not None and reading.value is not None and was != 0:
            change = reading.value / was - 1
        found.append(
            Line(
                kpi=kpi.name,
                label=kpi.label,
                unit=kpi.unit,
                measured=reading.value,
                why=reading.why,
                p95=now.quantile(kpi.name, "p95"),
                planned=planned.value if planned is not None else None,
                predicted=expected.value if expected is not None and predicted is not None else None,
                low=expected.low if expected is not None else None,
                high=expected.high if expected is not None else None,
                limit=None if limit is None else limit.ms,
                limit_percentile=None if limit is None else limit.percentile,
                at_limit=reached,
                before=was,
                change_fraction=change,
                verdict=_verdict(kpi, reading.value, expected, reached, limit),
                trend=_trend(kpi, change),
            )
        )
    return tuple(found)


def planned_for(plan: Plan | None, kpi: str) -> Range | None:
    """What the plan predicted of a figure."""
    return None if plan is None or plan.chosen is None else ranges(plan.chosen.estimate).get(kpi)


def limit_on(plan: Plan | None, kpi: str) -> Limit | None:
    """The limit on a figure that the plan was asked to keep."""
    if plan is None:
        return None
    return next((limit for limit in plan.inputs.slo.limits if kpi == f"{limit.name}_ms"), None)


def at_level(report: KpiReport, kpi: str, percentile: int | None) -> float | None:
    """What is held against a limit: the mean of a figure, or the percentile that the limit is on."""
    return report.value(kpi) if percentile is None else report.quantile(kpi, f"p{percentile}")


def ranges(estimate: Estimate) -> dict[str, Range]:
    """What an estimate predicts, by figure."""
    return {
        "ttft_ms": estimate.ttft_ms,
        "tpot_ms": estimate.tpot_ms,
        "e2e_ms": estimate.e2e_ms,
        "output_tok_s": estimate.output_tok_s,
        "requests_s": estimate.requests_s,
    }


def curves(spans: Sequence[tuple[float, Span]]) -> dict[str, tuple[Point, ...]]:
    """Figures over time."""
    found: dict[str, list[Point]] = {}
    for time_s, each in spans:
        for name in CURVES:
            reading = figures.reading(names.BY_NAME[name], each, {}, {}, {})
            if reading.value is not None:
                p95 = reading.quantiles.get("p95")
                found.setdefault(name, []).append(Point(time_s, reading.value, None if p95 is None else p95.value))
    return {name: tuple(points) for name, points in found.items()}


def _curves(
    history: History, kept: Sequence[Kept], begin_s: float, end_s: float, count: int
) -> dict[str, tuple[Point, ...]]:
    engines: dict[float, list[Span]] = {}
    cards: dict[float, list[Span]] = {}
    for each in kept:
        into = engines if each.target.kind == "engine" else cards
        for time_s, found in history.steps(each, begin_s, end_s, count):
            into.setdefault(time_s, []).append(found)
    times = sorted(engines.keys() | cards.keys())
    return curves([(time_s, joined(engines.get(time_s, ()), cards.get(time_s, ()))) for time_s in times])


def _cards(history: History, kept: Sequence[Kept], begin_s: float, end_s: float) -> tuple[Card, ...]:
    found = []
    for each in kept:
        if each.target.kind != "card":
            continue
        own = history.window(each, begin_s, end_s)
        readings = {kpi.name: figures.reading(kpi, own, {}, {}, {}).value for kpi in DEVICES}
        told = {name: value for name, value in readings.items() if value is not None}
        if told:
            found.append(Card(name=each.target.name, figures=told))
    return tuple(found)


def _model(plan: Plan | None, now: KpiReport) -> str:
    return plan.inputs.model.model_id if plan is not None else ", ".join(now.models)


def _verdict(
    kpi: Kpi, value: float | None, planned: Range | None, reached: float | None, limit: Limit | None
) -> Literal["met", "missed", "inside", "outside", ""]:
    if value is None:
        return ""
    if limit is not None:
        return "" if reached is None else "met" if reached <= limit.ms else "missed"
    if planned is not None and kpi.better == "lower":
        return "inside" if planned.low <= value <= planned.high else "outside"
    return ""


def _trend(kpi: Kpi, change: float | None) -> Literal["better", "worse", "same", ""]:
    if change is None or kpi.better == "band":
        return ""
    if abs(change) < SAME:
        return "same"
    return "better" if (change > 0) == (kpi.better == "higher") else "worse"
