"""The alert rules for those who run Prometheus: the same conditions as PromQL, as a rule file or a PrometheusRule.

Written for Prometheus 2.42 and newer. Left out, and said so: rules on findings of the host or on ratings, which no series tells, and
rules that need a limit which the plan does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aim_engine.kpi import formula, measures, names
from aim_engine.kpi.formula import Unknown
from aim_engine.kpi.measures import Measure
from aim_engine.render import alert_rules
from aim_engine.render.alert_rules import Condition, Rule

CARD_LABELS = "hostname, gpu_id"
"""What AMD's device metrics exporter tells cards apart by. Source: its docs/configuration/metricslist.md."""
CARD_TEMPLATE = "GPU {{ $labels.gpu_id }} of {{ $labels.hostname }}"


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """A rule file, and the rules it lacks."""

    groups: list[dict[str, Any]]
    left_out: dict[str, str]
    """Rule -> why."""


def export(
    rules: Sequence[Rule],
    *,
    deployment: str,
    selector: str,
    devices: str,
    parameters: Mapping[str, float],
    engine: str = "vllm",
    prefill: str = "",
) -> Exported:
    """The rules of one deployment. `selector` picks its engines' series, `devices` those of its cards, `prefill` servers that only prefill."""
    found, left_out = [], {}
    for rule in rules:
        if rule.facts:
            left_out[rule.name] = "no series tells what doctor finds"
            continue
        if not alert_rules.applies(rule, parameters):
            left_out[rule.name] = f"of this plan it does not hold, or is not known, that {rule.needs}"
            continue
        told_apart = rule.scope == "card" and all(_counted(each) is not None for group in rule.groups for each in group)
        try:
            groups = [
                " and ".join(_condition(each, selector, devices, parameters, engine, prefill) for each in group)
                for group in rule.groups
            ]
        except Unknown as err:
            left_out[rule.name] = str(err)
            continue
        document: dict[str, Any] = {
            "alert": f"AimEngine{rule.name}",
            "expr": groups[0] if len(groups) == 1 else " or ".join(f"({group})" for group in groups),
            "for": rule.for_,
        }
        if alert_rules.seconds(rule.keep_for):
            document["keep_firing_for"] = rule.keep_for
        document["labels"] = {"severity": rule.severity, "deployment": deployment}
        whose = f", {CARD_TEMPLATE}" if told_apart else ""
        summary = f"{deployment}{whose}: {_summary(rule, parameters)}"
        document["annotations"] = {"summary": summary, "basis": rule.basis}
        found.append(document)
    return Exported(groups=[{"name": f"aim-engine.{deployment}", "rules": found}], left_out=left_out)


def prometheus_rule(exported: Exported, *, name: str, namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The rules as a resource of the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {"groups": exported.groups},
    }


def _counted(condition: Condition) -> Measure | None:
    """The events of single cards that a condition counts; None where it asks for something else. An alert on them names the card."""
    told = names.BY_NAME[condition.kpi].formula
    if not isinstance(told, formula.Increase) or condition.rising:
        return None
    measure = measures.BY_NAME[told.measure]
    return measure if measure.device else None


def _condition(
    condition: Condition, selector: str, devices: str, parameters: Mapping[str, float], engine: str, prefill: str
) -> str:
    def made(one: Condition, offset: str = "") -> str:
        return _figure(one, selector, devices, parameters, engine, prefill, offset)

    figure = made(condition)
    parts = []
    if condition.missing:
        return f"(absent({figure}) or {figure} == 0)"
    for operator, bound in ((">", condition.above), ("<", condition.below), ("==", condition.equals)):
        if bound is not None:
            number = alert_rules.limit(bound, parameters)
            if number is None:
                raise Unknown(f"the plan does not say {bound}")
            parts.append(f"{figure} {operator} {number:.12g}")
    if condition.beyond is not None:
        other = msgspec.structs.replace(condition, kpi=condition.beyond, quantile=None)
        parts.append(f"{figure} > {made(other)}")
    if condition.rising:
        parts.append(f"{figure} > {made(condition, condition.over)}")
    return " and ".join(f"({part})" for part in parts) if len(parts) > 1 else parts[0]


def _figure(
    condition: Condition,
    selector: str,
    devices: str,
    parameters: Mapping[str, float],
    engine: str,
    prefill: str,
    offset: str,
) -> str:
    kpi = names.BY_NAME[condition.kpi]
    if kpi.formula is None:
        raise Unknown(f"no series tells {kpi.label}")
    if any(measures.BY_NAME[name].ours for name in formula.measures_of(kpi.formula)):
        raise Unknown(f"AMD's exporter does not tell {kpi.label}; aim-engine monitor reads it from the driver")
    if (counted := _counted(condition)) is not None:
        labels = ",".join(filter(None, (devices, *(f'{key}="{value}"' for key, value in counted.where))))
        text = " or ".join(
            f"sum by ({CARD_LABELS}) (increase({metric}{{{labels}}}[{condition.over}]))"
            for metric in formula.prometheus_names(counted, engine)
        )
    elif condition.quantile is not None and kpi.measure is not None:
        share = alert_rules.limit(condition.quantile, parameters)
        if share is None:
            raise Unknown(f"the plan does not say {condition.quantile}")
        text = formula.quantile_promql(
            kpi.measure, share, selector=selector, window=condition.over, engine=engine, prefill=prefill
        )
    else:
        text = formula.promql(
            kpi.formula,
            selector=selector,
            devices=devices,
            window=condition.over,
            engine=engine,
            parameters=parameters,
            offset=offset,
            prefill=prefill,
        )
    return text if kpi.scale == 1.0 else f"({text} * {kpi.scale:.12g})"


def _summary(rule: Rule, parameters: Mapping[str, float]) -> str:
    shown = {name: f"{number:g}" for name, number in parameters.items()}
    shown |= {"value": "{{ $value | humanize }}", "percent": "{{ $value | humanizePercentage }}"}
    share = alert_rules.share_beyond(rule, parameters)
    if share is not None:
        shown["share"] = f"{share:.1%}"
    text = rule.summary
    for name, value in shown.items():
        text = text.replace("{" + name + "}", value)
    return text
