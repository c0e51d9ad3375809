"""What a figure is: its name, unit, meaning and formula, and where it should lie."""

from __future__ import annotations

from typing import Literal

import msgspec

from aim_engine.kpi import measures
from aim_engine.kpi.formula import Formula, Mean, measures_of

Kind = Literal["histogram", "counter", "gauge", "derived", "device", "evaluation"]
Better = Literal["higher", "lower", "band"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a figure should lie. None leaves that side open."""

    low: float | None = None
    high: float | None = None
    percentile: int | None = None
    """What of a latency should lie there: 50, 90, 95 or 99; None: its mean."""
    source: str = ""


class Kpi(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: what it is called, in which unit, what it means and where it comes from."""

    name: str
    label: str
    """As tables print it."""
    unit: str
    """ms, tok/s, requests/s, requests, tokens, fraction, score."""
    meaning: str
    better: Better
    kind: Kind
    formula: Formula | None = None
    """None where it is no metric: an evaluation, a person's rating."""
    scale: float = 1.0
    """What the formula's result is multiplied by to be in `unit`."""
    seed_name: str = ""
    """What the product's first description called it."""
    target: Target | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metric families it is read from, newest name first, without the suffixes of counters and histograms."""
        if self.formula is None:
            return ()
        found = (measures.BY_NAME[name].families for name in measures_of(self.formula))
        return tuple(dict.fromkeys(family for families in found for family in families))

    @property
    def measure(self) -> str | None:
        """The one histogram it is the mean of; None for other figures."""
        return self.formula.measure if isinstance(self.formula, Mean) else None
