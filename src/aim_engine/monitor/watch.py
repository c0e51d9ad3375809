"""The monitor that stays: it looks, keeps, judges the alert rules and tells those who asked to be told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from aim_engine.errors import AimError
from aim_engine.monitor import alerts, notify, views
from aim_engine.monitor.collect import Collector
from aim_engine.monitor.history import History, Look
from aim_engine.monitor.ledger import Alert, Ledger, Message
from aim_engine.monitor.span import Span
from aim_engine.planner.plan import Plan
from aim_engine.render.alert_rules import Rule, applies

logger = logging.getLogger(__name__)
JUDGE_S, HOUR_S = 10.0, 3600.0
"""Rules are judged after every second look, and at least so often."""
FEW_RATINGS = 10
"""Of fewer, one bad answer would be a drop."""


class Watch:
    """Rules over the deployments of one history."""

    def __init__(
        self,
        history: History,
        ledger: Ledger,
        rules: Sequence[Rule],
        plans: Mapping[str, Plan | None],
        *,
        receivers: Sequence[str] = (),
        findings: Sequence[str] = (),
    ) -> None:
        """`plans` are the deployments to judge, with the plan of each where there is one; `findings` the ids that doctor found."""
        self._history, self._ledger, self._rules = history, ledger, tuple(rules)
        self._plans, self._receivers, self._findings = dict(plans), tuple(receivers), frozenset(findings)
        self._renewed = 0.0
        self._dropped: frozenset[str] = frozenset()

    def follow(self, plans: Mapping[str, Plan | None]) -> None:
        """Judge these deployments from now on. The alerts of those that are not among them are over."""
        self._dropped = (self._dropped | self._plans.keys()) - plans.keys()
        self._plans = dict(plans)

    def judge(self, now_s: float) -> tuple[Alert, ...]:
        """Every rule at every deployment, now; keeps the states and the messages they call for. Gives what is or was on."""
        known = {(alert.deployment, alert.rule): alert for alert in self._ledger.alerts()}
        found: list[Alert] = []
        for deployment, plan in self._plans.items():
            found += self._of(deployment, plan, known, now_s)
        found += self._left_behind(known.values(), now_s)
        marked = alerts.muted(found, self._rules, self._ledger.silences(now_s), now_s)
        news: list[Message] = []
        kept = []
        for alert in marked:
            told = msgspec.structs.replace(alert, judged_s=now_s)
            if alerts.to_tell(told, now_s):
                told = alerts.told(told, now_s)
                news += notify.messages(told, self._receivers)
            kept.append(told)
        news += self._renewals(kept, now_s)
        self._ledger.put_alerts(kept, news, now_s)
        present = {(alert.deployment, alert.rule) for alert in kept}
        for key, alert in known.items():
            if key not in present and (alert.deployment in self._plans or self._is_left(alert, now_s)):
                self._ledger.forget_alert(alert)
        return tuple(kept)

    def _left_behind(self, known: Iterable[Alert], now_s: float) -> list[Alert]:
        """What is still to be told of deployments that went away, or that nobody watches any more."""
        found = []
        for alert in known:
            if self._is_left(alert, now_s):
                why = alerts.GONE if alert.deployment in self._dropped else "no monitor watches the deployment any more"
                ended = alerts.over(alert, now_s, why)
                if ended is not None and (ended is not alert or not _over(alert, now_s)):
                    found.append(ended)
        return found

    def _is_left(self, alert: Alert, now_s: float) -> bool:
        """Is an alert one of a deployment that is gone? Those that another monitor judges are not ours to end."""
        return alert.deployment not in self._plans and (
            alert.deployment in self._dropped
            or alerts.is_stale(alert, now_s)
            or (bool(self._receivers) and alert.state == "resolved" and alerts.to_tell(alert, now_s))
        )

    def deliver(self, now_s: float) -> tuple[int, tuple[str, ...]]:
        """Hand out what is due; see `notify.deliver`."""
        return notify.deliver(self._ledger, now_s)

    def _of(
        self, deployment: str, plan: Plan | None, known: Mapping[tuple[str, str], Alert], now_s: float
    ) -> list[Alert]:
        spans: dict[tuple[float, float], Span] = {}

        def span(length: float, back: float) -> Span:
            if (length, back) not in spans:
                end = now_s - back
                spans[length, back] = views.span(self._history, deployment, end - length, end)
            return spans[length, back]

        given = {
            **views.parameters(plan),
            **views.quality(self._ledger, deployment, now_s - 3600, now_s, at_least=FEW_RATINGS),
        }
        found = []
        for rule in self._rules:
            before = known.get((deployment, rule.name))
            if not applies(rule, given):
                continue
            held: bool | None
            value: float | None = None
            if rule.facts:
                held = bool(self._findings & set(rule.facts))
            else:
                held, value = alerts.judge(
                    rule,
                    lambda length: (span(length, 0.0), span(length, length)),
                    given,
                    firing=before is not None and before.state == "firing",
                )
            alert = alerts.step(rule, held, value, before, deployment=deployment, now_s=now_s, parameters=given)
            if alert is not None:
                found.append(alert)
            elif before is not None and before.state == "resolved" and not _over(before, now_s):
                found.append(before)
        return found

    def _renewals(self, kept: Sequence[Alert], now_s: float) -> list[Message]:
        """An Alertmanager must hear again and again of what still fires."""
        managers = [each for each in self._receivers if each.startswith(notify.ALERTMANAGER)]
        if not managers or now_s - self._renewed < notify.RENEW_S:
            return []
        self._renewed = now_s
        return [
            Message(receiver=receiver, alert=msgspec.structs.replace(alert, told_s=now_s))
            for alert in kept
            if alert.state == "firing" and "firing" in alert.told and not alert.inhibited_by and not alert.silenced
            for receiver in managers
        ]


def _over(alert: Alert, now_s: float) -> bool:
    """Is a resolved alert old enough to be forgotten?"""
    return now_s - alert.since_s > 3600


def taken_down(ledger: Ledger, deployments: Iterable[str], receivers: Sequence[str], now_s: float) -> tuple[Alert, ...]:
    """End the alerts of deployments that are no more, and tell `receivers`; gives those that fired.

    Without receivers the news waits for the next monitor, which knows its own.
    """
    gone = frozenset(deployments)
    ended = []
    for alert in ledger.alerts():
        if alert.deployment not in gone or alert.state == "resolved":
            continue
        found = alerts.over(alert, now_s, alerts.DOWN)
        if found is None:
            ledger.forget_alert(alert)
            continue
        telling = bool(receivers) and alerts.to_tell(found, now_s)
        found = alerts.told(found, now_s) if telling else found
        ledger.put_alerts([found], notify.messages(found, receivers) if telling else [], now_s)
        ended.append(found)
    return tuple(ended)


def run(
    collector: Collector,
    watch: Watch,
    stop: threading.Event,
    *,
    renew: Callable[[], None] = lambda: None,
    hourly: Callable[[float], None] = lambda _: None,
) -> None:
    """Look and judge until `stop`. `renew` is called before each judgement, `hourly` with the time once an hour."""
    judged, hour = 0.0, time.monotonic()
    judge_s = min(JUDGE_S, 2 * collector.interval_s)

    def batch(_: list[Look]) -> None:
        nonlocal judged, hour
        if time.monotonic() - judged < judge_s:
            return
        judged = time.monotonic()
        try:
            renew()
            now_s = time.time()
            for alert in watch.judge(now_s):
                if alert.told_s == now_s:
                    logger.warning("%s: %s %s: %s", alert.deployment, alert.rule, alert.state, alert.summary)
            for why in watch.deliver(now_s)[1]:
                logger.warning("not delivered, will be tried again: %s", why)
            if judged - hour >= HOUR_S:
                hour = judged
                hourly(now_s)
        except AimError as err:
            logger.warning("%s; the monitor goes on", err)

    collector.run(stop, batch)
