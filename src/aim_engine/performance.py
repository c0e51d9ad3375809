"""`PerformanceMonitor`: runtime metrics and the plan's targets go in; reports, alerts and suggestions come out."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine.advise.diagnose import Diagnosis
from aim_engine.errors import InvalidInput
from aim_engine.kpi import names
from aim_engine.kpi.figure import Target
from aim_engine.monitor import report as reports
from aim_engine.monitor import scrape, views
from aim_engine.monitor.figures import KpiReport
from aim_engine.monitor.history import History
from aim_engine.planner.plan import Plan


class Missed(msgspec.Struct, frozen=True, kw_only=True):
    """A figure outside its target."""

    kpi: str
    value: float
    unit: str
    target: Target
    side: Literal["above", "below"]
    message: str


class PerformanceMonitor:
    """Watches one engine. The first `collect` covers its life so far, each further one the time since the last."""

    def __init__(
        self, endpoint: str, targets: Mapping[str, Target | float] | None = None, *, plan: Plan | None = None
    ) -> None:
        """`targets` maps names of figures to a Target, or to a plain limit on the worse side.

        Without it the limits of `plan` hold, and where there is no plan the targets of the vocabulary. Raises: InvalidInput for an
        unknown figure.
        """
        self.endpoint = endpoint
        self.plan = plan
        if targets is not None:
            self.targets = {name: target(name, limit) for name, limit in targets.items()}
        elif plan is not None:
            self.targets = {
                f"{limit.name}_ms": Target(high=limit.ms, percentile=limit.percentile, source="the plan")
                for limit in plan.inputs.slo.limits
            }
        else:
            self.targets = {kpi.name: kpi.target for kpi in names.ALL if kpi.target is not None}
        self._last: scrape.Snapshot | None = None
        self._report: KpiReport | None = None

    def collect(self) -> KpiReport:
        """Scrape now and report what happened since the last time. Raises: Unreachable."""
        snapshot = scrape.fetch(self.endpoint)
        report = reports.summarise(self._last, snapshot, endpoint=self.endpoint)
        self._last, self._report = snapshot, report
        return report

    def report(self) -> KpiReport:
        """The latest report; the first one is collected when there is none. Raises: Unreachable."""
        return self._report or self.collect()

    def history(self, deployment: str, seconds: float, state_dir: str | Path) -> views.Document:
        """What `aim-engine monitor` kept of a deployment over the last `seconds`. Raises: Corrupt, Unreachable."""
        kept = History(Path(state_dir) / "history.db")
        try:
            now_s = time.time()
            return views.of_history(kept, deployment, now_s - seconds, now_s, plan=self.plan)
        finally:
            kept.close()

    def check_targets(self, report: KpiReport) -> tuple[Missed, ...]:
        """The figures of `report` that lie outside their targets; unknown figures raise no alert."""
        found = []
        for kpi in names.ALL:
            wanted = self.targets.get(kpi.name)
            value = None if wanted is None else views.at_level(report, kpi.name, wanted.percentile)
            if value is None or wanted is None:
                continue
            if wanted.high is not None and value > wanted.high:
                found.append(_missed(kpi.name, value, wanted, "above", wanted.high))
            elif wanted.low is not None and value < wanted.low:
                found.append(_missed(kpi.name, value, wanted, "below", wanted.low))
        return tuple(found)

    def suggest(self, report: KpiReport) -> tuple[Diagnosis, ...]:
        """What to change, from what `report` shows, most likely cause first."""
        from aim_engine.advise import diagnose, subject

        return diagnose.diagnose(subject.of(report, self.plan)).found


def target(name: str, limit: Target | float) -> Target:
    """`limit` as a target of the figure `name`; a number bounds its worse side. Raises: InvalidInput."""
    kpi = names.BY_NAME.get(name)
    if kpi is None:
        close = difflib.get_close_matches(name, names.BY_NAME, n=3)
        raise InvalidInput(
            f"there is no figure '{name}'",
            hint=f"did you mean {' or '.join(close)}?" if close else "docs/reference/figures.md lists them",
        )
    if isinstance(limit, Target):
        return limit
    return Target(low=limit) if kpi.better == "higher" else Target(high=limit)


def _missed(name: str, value: float, wanted: Target, side: Literal["above", "below"], limit: float) -> Missed:
    kpi = names.BY_NAME[name]
    level = "" if wanted.percentile is None else f"p{wanted.percentile} of "
    return Missed(
        kpi=name,
        value=value,
        unit=kpi.unit,
        target=wanted,
        side=side,
        message=f"{level}{kpi.label} is {value:.4g} {kpi.unit}, {side} its target of {limit:g} {kpi.unit}",
    )
