"""When does somebody have to know? The state that each alert rule has at each deployment.

The same rule (`render.alert_rules`) is evaluated here or written for Prometheus (`render.rulefile`). A rule whose figures nobody tells
is not judged: unknown is neither fine nor bad, and a firing alert stays as it is until somebody tells them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from aim_engine.kpi import formula, names
from aim_engine.kpi.figure import Kpi
from aim_engine.kpi.formula import Unknown
from aim_engine.monitor.ledger import Alert, Silence
from aim_engine.monitor.span import Span, quantile
from aim_engine.render.alert_rules import Condition, Rule, limit, seconds, share_beyond

Windows = Callable[[float], tuple[Span, Span]]
"""Length -> the span of that length that ends now, and the one before it."""
REPEAT_S = 4 * 3600.0
"""A firing alert is told again after this."""
UNJUDGED_S = 3600.0
"""A firing alert that no monitor asked about for so long is over: nobody watches its deployment any more."""
DOWN = "the deployment was taken down"
GONE = "the deployment was taken down or is being started anew"


def value_of(condition: Condition, span: Span, parameters: Mapping[str, float]) -> float:
    """The figure of a condition in a span. Raises: Unknown."""
    kpi = names.BY_NAME[condition.kpi]
    if condition.quantile is not None:
        share = limit(condition.quantile, parameters)
        if share is None:
            raise Unknown(f"the plan does not say {condition.quantile}")
        return _quantile(kpi, share, span)
    return _value(kpi, span, parameters)


def holds(
    condition: Condition, windows: Windows, parameters: Mapping[str, float], *, firing: bool
) -> tuple[bool | None, float | None]:
    """Does a condition hold, and the figure; None when that is unknown."""
    now, earlier = windows(seconds(condition.over))
    try:
        value = value_of(condition, now, parameters)
    except Unknown:
        return (True, None) if condition.missing else (None, None)
    if condition.missing:
        return value == 0, value
    try:
        if condition.rising and not value > value_of(condition, earlier, parameters):
            return False, value
        if condition.beyond is not None and not value > _value(names.BY_NAME[condition.beyond], now, parameters):
            return False, value
    except Unknown:
        return None, value
    for side, bound in (("above", condition.above), ("below", condition.below), ("equals", condition.equals)):
        if bound is None:
            continue
        number = limit(condition.until if firing and condition.until is not None else bound, parameters)
        if number is None:
            return None, value
        if not {"above": value > number, "below": value < number, "equals": value == number}[side]:
            return False, value
    return True, value


def judge(
    rule: Rule, windows: Windows, parameters: Mapping[str, float], *, firing: bool
) -> tuple[bool | None, float | None]:
    """Does a rule's condition hold, and the first figure of what does; None when that is unknown."""
    unknown = False
    seen: float | None = None
    for group in rule.groups:
        answers = [holds(condition, windows, parameters, firing=firing) for condition in group]
        seen = answers[0][1] if seen is None else seen
        if all(answer[0] for answer in answers):
            return True, answers[0][1]
        if not any(answer[0] is False for answer in answers):
            unknown = True
    return (None if unknown else False), seen


def step(
    rule: Rule,
    held: bool | None,
    value: float | None,
    before: Alert | None,
    *,
    deployment: str,
    now_s: float,
    parameters: Mapping[str, float],
) -> Alert | None:
    """The next state of an alert; None when there is nothing to remember."""
    state = before.state if before is not None and before.state != "resolved" else None
    if held is None:
        return before if state is not None else None
    if held:
        if state == "firing" and before is not None:
            return msgspec.structs.replace(
                before, clear_since_s=None, value=value, summary=_summary(rule, value, parameters)
            )
        since = before.since_s if state == "pending" and before is not None else now_s
        fires = now_s - since >= seconds(rule.for_)
        return Alert(
            deployment=deployment,
            rule=rule.name,
            severity=rule.severity,
            state="firing" if fires else "pending",
            since_s=now_s if fires else since,
            summary=_summary(rule, value, parameters),
            value=value,
        )
    if state != "firing" or before is None:
        return None
    clear_since = before.clear_since_s if before.clear_since_s is not None else now_s
    if now_s - clear_since >= seconds(rule.keep_for):
        return msgspec.structs.replace(before, state="resolved", since_s=now_s, clear_since_s=clear_since)
    return msgspec.structs.replace(before, clear_since_s=clear_since)


def over(alert: Alert, now_s: float, why: str) -> Alert | None:
    """An alert whose deployment nobody watches any more; None when nobody needs to hear of it."""
    if alert.state == "pending":
        return None
    if alert.state == "resolved":
        return alert
    said = f"{why}; it was: {alert.summary}"
    return msgspec.structs.replace(alert, state="resolved", since_s=now_s, summary=said, inhibited_by="")


def is_stale(alert: Alert, now_s: float) -> bool:
    """Did no monitor ask about an alert for so long that its deployment must be held to be watched no more?"""
    return now_s - max(alert.judged_s, alert.since_s) > UNJUDGED_S


def muted(
    alerts: Sequence[Alert], rules: Iterable[Rule], silences: Sequence[Silence], now_s: float
) -> tuple[Alert, ...]:
    """The alerts with what keeps them from being told: a firing one that explains them, or a silence."""
    by_name = {rule.name: rule for rule in rules}
    explains: dict[tuple[str, str], str] = {}
    for alert in alerts:
        if alert.state == "firing" and alert.rule in by_name:
            for name in by_name[alert.rule].inhibits:
                explains[alert.deployment, name] = alert.rule
    found = []
    for alert in alerts:
        by = explains.get((alert.deployment, alert.rule)) or explains.get((alert.deployment, "*"), "")
        quiet = any(
            silence.until_s > now_s
            and silence.rule in ("*", alert.rule)
            and silence.deployment in ("*", alert.deployment)
            for silence in silences
        )
        found.append(msgspec.structs.replace(alert, inhibited_by="" if by == alert.rule else by, silenced=quiet))
    return tuple(found)


def to_tell(alert: Alert, now_s: float) -> bool:
    """Is there news of this alert for the receivers?"""
    if alert.state == "pending" or alert.inhibited_by or alert.silenced:
        return False
    if alert.state == "resolved":
        return "firing" in alert.told and "resolved" not in alert.told
    return "firing" not in alert.told or now_s - alert.told_s >= REPEAT_S


def told(alert: Alert, now_s: float) -> Alert:
    """The alert after its news went out."""
    return msgspec.structs.replace(alert, told=tuple(dict.fromkeys((*alert.told, alert.state))), told_s=now_s)


def _value(kpi: Kpi, span: Span, parameters: Mapping[str, float]) -> float:
    if kpi.formula is None:
        if kpi.name not in parameters:
            raise Unknown("none is stored")
        return parameters[kpi.name]
    return formula.evaluate(kpi.formula, span.source(parameters)) * kpi.scale


def _quantile(kpi: Kpi, share: float, span: Span) -> float:
    histogram = span.histograms.get(kpi.measure or "")
    found = None if histogram is None else quantile(histogram.cumulative(), share)
    if found is None:
        raise Unknown("nothing was observed in the window")
    return found.value * kpi.scale


def _summary(rule: Rule, value: float | None, parameters: Mapping[str, float]) -> str:
    shown = {name: f"{number:g}" for name, number in parameters.items()}
    shown["value"] = "unknown" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    shown["percent"] = "unknown" if value is None else f"{value:.1%}"
    share = share_beyond(rule, parameters)
    shown["share"] = "?" if share is None else f"{share:.1%}"
    return rule.summary.format_map(_Shown(shown))


class _Shown(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"
