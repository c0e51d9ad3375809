"""A prediction beside its measurement."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from aim_engine.perf.estimate import Estimate, Range

FEW_REQUESTS = 20
"""Below it averages say little; advice on load waits, comparisons are marked."""
Kpis = Mapping[str, float | None]
"""Measured figures by the names of `kpi.names`; None where unknown."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction beside its measurement."""

    kpi: str
    predicted: float
    low: float
    high: float
    measured: float
    inside_band: bool


def compare(estimate: Estimate, kpis: Kpis) -> tuple[Comparison, ...]:
    """Latency predictions beside what was measured, where it was. Both must be for the same traffic."""
    pairs: tuple[tuple[str, Range], ...] = (("ttft_ms", estimate.ttft_ms), ("tpot_ms", estimate.tpot_ms))
    return tuple(
        Comparison(
            kpi=name,
            predicted=predicted.value,
            low=predicted.low,
            high=predicted.high,
            measured=measured,
            inside_band=predicted.low <= measured <= predicted.high,
        )
        for name, predicted in pairs
        if (measured := kpis.get(name)) is not None
    )
