"""What happened between two looks at a metrics page, as figures.

Counters and histograms count from the engine's start, and the first requests after a start pay for compilation, so
averages over an engine's life mislead. Everything here is an increase.
"""

from __future__ import annotations

from aim_engine.monitor import figures, oddities, scrape, totals, track
from aim_engine.monitor.figures import KpiReport
from aim_engine.monitor.scrape import Snapshot


def summarise(before: Snapshot | None, after: Snapshot, *, endpoint: str = "") -> KpiReport:
    """The figures of the window between two snapshots. Pure: time is what the snapshots carry.

    Without `before`, or when the engine restarted after it, the window begins at the engine's start and the report
    says so.
    """
    now = totals.read(after)
    span, restarted = track.between(None if before is None else totals.read(before), now)
    notes = []
    if restarted:
        notes.append("the engine restarted inside the window: figures count from its start")
    elif before is None:
        notes.append("figures count from the engine's start, first requests and their compilation included")
    if now.skipped:
        notes.append(f"{now.skipped} lines of the metrics page could not be read")
    if now.engine is None:
        notes.append(oddities.no_engine("\n".join(after.samples)))
    return figures.of(
        span,
        endpoint=endpoint,
        families=now.families,
        engine=now.engine,
        models=now.models,
        basis="since start" if before is None or restarted else "window",
        notes=tuple(notes),
    )


def watch_once(endpoint: str, *, before: Snapshot | None = None, timeout_s: float = 5.0) -> KpiReport:
    """One look at a running engine: the figures since `before`, or since its start. Raises: Unreachable."""
    return summarise(before, scrape.fetch(endpoint, timeout_s=timeout_s), endpoint=endpoint)
