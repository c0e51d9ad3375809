"""When does somebody have to know? Rules over figures, as data (`data/alerts`).

The same rule is evaluated by the monitor or written for Prometheus (`rulefile`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from aim_engine import facts
from aim_engine.backend import rules as expressions
from aim_engine.workload import Slo

Limit = float | str
"""A number, or an expression over parameters of the plan such as `slo_ttft_ms`."""


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One comparison of a figure over a window."""

    kpi: str
    over: str
    """Length of the window, such as 5m."""
    quantile: Limit | None = None
    """Of the histogram behind the figure, instead of its mean; a share, or an expression over parameters that gives one."""
    above: Limit | None = None
    below: Limit | None = None
    equals: Limit | None = None
    beyond: str | None = None
    """Another figure that it must exceed."""
    rising: bool = False
    """Is it higher than in the window before?"""
    missing: bool = False
    """Does nobody tell it, or is it always zero?"""
    until: Limit | None = None
    """Once it fires, it goes on until the figure is back on this side of this limit."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One alert."""

    name: str
    severity: Literal["critical", "warning", "info"]
    summary: str
    """With `{value}`, `{percent}`, `{share}` and parameters in braces; the share is of what lies beyond the first quantile."""
    basis: str
    """Where the limit comes from."""
    all_of: tuple[Condition, ...] = ()
    any_of: tuple[tuple[Condition, ...], ...] = ()
    """Groups of conditions of which one must hold."""
    facts: tuple[str, ...] = ()
    """Findings of `doctor`, one of which must be there, instead of figures."""
    for_: str = msgspec.field(name="for", default="0s")
    keep_for: str = "0s"
    """How long the condition must be gone before it is over."""
    inhibits: tuple[str, ...] = ()
    """Rules not to be told of while this one fires at the same deployment; * for all others."""
    needs: str | None = None
    """Judged only where this expression over the plan's parameters holds."""
    scope: Literal["engine", "card"] = "engine"
    fires: dict[str, Any] = {}
    """A case: values of figures, and of parameters, for which it must fire."""
    silent: dict[str, Any] = {}
    """A case for which it must not."""

    @property
    def groups(self) -> tuple[tuple[Condition, ...], ...]:
        """All conditions, as groups of which one must hold."""
        return self.any_of or ((self.all_of,) if self.all_of else ())


@functools.cache
def load(overlay: Path | None = None) -> tuple[Rule, ...]:
    """Every rule by name, the user's own in place of bundled ones of the same name. Raises: InvalidInput."""
    found: dict[str, Rule] = {}
    for root in (facts.BUNDLED, overlay):
        for path in sorted((root / "alerts").glob("*.yaml")) if root is not None else ():
            for rule in facts.read(path, tuple[Rule, ...]):
                found[rule.name] = rule
    return tuple(found[name] for name in sorted(found))


def seconds(text: str) -> float:
    """`90s`, `5m`, `2h` as seconds. Raises: InvalidInput."""
    from aim_engine.units import parse_ms

    return parse_ms(text) / 1000


def limit(value: Limit, parameters: Mapping[str, float]) -> float | None:
    """A limit as a number; None when the plan lacks what it is made of."""
    if not isinstance(value, str):
        return float(value)
    try:
        found = expressions.compiled(value)(parameters)
    except expressions.UnknownName:
        return None
    return None if found is None else float(found)


def of_limits(slo: Slo) -> dict[str, float]:
    """Parameters of the limits that are set: `slo_ttft_ms` and the percentile that it is on, 0 for the mean."""
    found: dict[str, float] = {}
    for each in slo.limits:
        found[f"slo_{each.name}_ms"] = each.ms
        found[f"slo_{each.name}_percentile"] = float(each.percentile or 0)
    return found


def share_beyond(rule: Rule, parameters: Mapping[str, float]) -> float | None:
    """The share of observations that lies beyond the first quantile that a rule asks for; None where it asks for none."""
    asked = next((each.quantile for group in rule.groups for each in group if each.quantile is not None), None)
    found = None if asked is None else limit(asked, parameters)
    return None if found is None else 1 - found


def applies(rule: Rule, parameters: Mapping[str, float]) -> bool:
    """Can this rule be judged for a deployment with these parameters?"""
    if rule.needs is None:
        return True
    try:
        return bool(expressions.compiled(rule.needs)(parameters))
    except expressions.UnknownName:
        return False
