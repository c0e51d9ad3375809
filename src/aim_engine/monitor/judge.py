"""What a report says about targets, and what to try when something is off.

Every report is judged by itself; nothing here remembers an earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.kpi import names
from aim_engine.kpi.names import Target

if TYPE_CHECKING:
    from aim_engine.monitor.report import KpiReport

KV_FULL_FRACTION = 0.95
"""Above this the scheduler preempts sooner or later. Source: vLLM optimisation guide, "Preemption"."""
QUEUE_SHARE = 0.5
"""Share of the time to first token spent waiting above which capacity, not prefill, is the problem."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A figure outside its target."""

    kpi: str
    value: float
    unit: str
    target: Target
    side: Literal["above", "below"]
    message: str


class Suggestion(msgspec.Struct, frozen=True, kw_only=True):
    """Something to change, and what in the report speaks for it."""

    change: str
    evidence: str
    kpis: tuple[str, ...]


def default_targets() -> dict[str, Target]:
    """The targets the vocabulary carries."""
    return {kpi.name: kpi.target for kpi in names.ALL if kpi.target is not None}


def check(report: KpiReport, targets: Mapping[str, Target]) -> tuple[Alert, ...]:
    """Figures outside their targets, in the vocabulary's order."""
    alerts = []
    for kpi in names.ALL:
        value, target = report.value(kpi.name), targets.get(kpi.name)
        if value is None or target is None:
            continue
        for side, limit, broken in (
            ("above", target.high, target.high is not None and value > target.high),
            ("below", target.low, target.low is not None and value < target.low),
        ):
            if broken:
                alerts.append(
                    Alert(
                        kpi=kpi.name,
                        value=value,
                        unit=kpi.unit,
                        target=target,
                        side="above" if side == "above" else "below",
                        message=f"{kpi.label} is {value:.4g} {kpi.unit}, {side} its target of {limit:g} {kpi.unit}",
                    )
                )
    return tuple(alerts)


def suggest(report: KpiReport) -> tuple[Suggestion, ...]:
    """Changes that the figures of one report speak for, most urgent first."""
    found = []
    usage, preempted, waiting = (report.value(name) for name in ("kv_usage_fraction", "preemptions", "waiting"))
    if preempted and usage is not None and usage > KV_FULL_FRACTION:
        found.append(
            Suggestion(
                change="give the KV cache more room: a higher gpu_memory_utilization, an fp8 KV cache, more devices",
                evidence=f"{usage:.0%} of the KV cache in use and {preempted:.0f} requests preempted in the window",
                kpis=("kv_usage_fraction", "preemptions"),
            )
        )
    elif waiting and usage is not None and usage > KV_FULL_FRACTION:
        found.append(
            Suggestion(
                change="add replicas, or room for the KV cache",
                evidence=f"{waiting:.0f} requests wait while {usage:.0%} of the KV cache is in use",
                kpis=("waiting", "kv_usage_fraction"),
            )
        )
    queue, ttft = report.value("queue_ms"), report.value("ttft_ms")
    if queue is not None and ttft and queue > QUEUE_SHARE * ttft:
        found.append(
            Suggestion(
                change="raise max_num_seqs while the KV cache has room, else add replicas",
                evidence=f"requests wait {queue:.0f} ms of {ttft:.0f} ms to their first token",
                kpis=("queue_ms", "ttft_ms"),
            )
        )
    total = sum(report.finished.values())
    errors = report.finished.get("error", 0.0)
    if total and errors / total > 0.01:
        found.append(
            Suggestion(
                change="read the engine's log",
                evidence=f"{errors:.0f} of {total:.0f} requests ended with an error",
                kpis=("requests_s",),
            )
        )
    return tuple(found)


def target(name: str, limit: Target | float) -> Target:
    """`limit` as a target of the figure `name`; a number bounds its worse side. Raises: InvalidInput."""
    kpi = names.BY_NAME.get(name)
    if kpi is None:
        import difflib

        close = difflib.get_close_matches(name, names.BY_NAME, n=3)
        raise InvalidInput(
            f"there is no figure '{name}'", hint=f"did you mean {' or '.join(close)}?" if close else "see kpi/names.py"
        )
    if isinstance(limit, Target):
        return limit
    return Target(low=limit) if kpi.better == "higher" else Target(high=limit)
