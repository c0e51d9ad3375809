"""A report of figures as a table, for every command that shows one."""

from __future__ import annotations

from aim_engine.cli import output
from aim_engine.kpi import names
from aim_engine.kpi.figure import Kpi
from aim_engine.monitor.figures import KpiReport, Reading
from aim_engine.units import format_ms

FEW = 20
"""Quantiles of fewer observations say more about the buckets than about the engine."""


_ALWAYS = (*names.LATENCIES, *names.COUNTERS, *names.GAUGES)
"""Figures of which it is worth knowing that they are not told."""


def show(report: KpiReport, title: str | None = None) -> None:
    """Print every figure of a report that the engine exports, with quantiles where it has them."""
    rows = []
    for kpi in names.ALL:
        reading = report.readings.get(kpi.name)
        if reading is None or (reading.value is None and kpi not in _ALWAYS):
            continue
        rows.append(
            (
                kpi.label,
                format_value(kpi, reading),
                *(_quantile(reading, which) for which in ("p50", "p90", "p99")),
                _count(reading),
            )
        )
    output.table(title, ("figure", "mean", "p50", "p90", "p99", "of"), rows, right=("mean", "p50", "p90", "p99", "of"))
    window = "unknown length" if report.window_s is None else format_ms(report.window_s * 1000)
    output.note(f"{report.engine or 'engine'} at {report.endpoint}, {report.basis}: {window}")
    for note in report.notes:
        output.note(f"note: {note}")


def format_value(kpi: Kpi, reading: Reading) -> str:
    """A value with its unit, or why there is none."""
    if reading.value is None:
        return f"- ({reading.why})"
    if kpi.unit == "ms":
        return format_ms(reading.value)
    if kpi.unit in ("fraction", "score"):
        return f"{reading.value:.1%}"
    if kpi.unit in ("requests", "tokens"):
        return f"{reading.value:.0f}"
    return f"{reading.value:.2f} {kpi.unit}" if reading.value < 10 else f"{reading.value:.1f} {kpi.unit}"


def _quantile(reading: Reading, which: str) -> str:
    """As far as the engine's buckets tell: in the first and the last one there is only one edge."""
    quantile = reading.quantiles.get(which) if reading.unit == "ms" else None
    if quantile is None or (reading.count or 0) < FEW:
        return ""
    if quantile.high is None:
        return f"> {format_ms(quantile.low)}"
    return f"< {format_ms(quantile.high)}" if quantile.low == 0 else f"~ {format_ms(quantile.value)}"


def _count(reading: Reading) -> str:
    return "" if reading.count is None or reading.value is None else f"{reading.count:.0f}"
