"""Tells people: a webhook, an Alertmanager, or any service that Apprise knows (e-mail, Slack, Teams, Matrix, PagerDuty and a hundred more).

A message is kept until it is delivered, tried again with growing pauses, and sent once for each thing to tell. Receivers stand in a
file of their own, one address a line, since many hold a secret.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import stat
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.errors import InvalidInput, MissingExtra, Unreachable
from aim_engine.monitor.ledger import Alert, Ledger, Message

logger = logging.getLogger(__name__)
TIMEOUT_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 900.0
_GIVE_UP = 40
"""Attempts; some nine hours."""
ALERTMANAGER = "alertmanager+"
"""Before the address of an Alertmanager, as in alertmanager+http://127.0.0.1:9093."""
RENEW_S = 60.0
"""An Alertmanager holds an alert to be over when it does not hear of it for its `resolve_timeout`, five minutes by default."""


def receivers(path: str | Path) -> tuple[str, ...]:
    """Addresses of a receivers file, comments left out. Raises: InvalidInput."""
    where = Path(path).expanduser()
    try:
        text = where.read_text(encoding="utf-8")
        mode = where.stat().st_mode
    except OSError as err:
        raise InvalidInput(
            f"the file of receivers {where} cannot be read",
            why=err.strerror,
            hint="notify_file in the settings names it",
        ) from err
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s may be read by others, and addresses in it may hold secrets: chmod 600 %s", where, where)
    found = [line.strip() for line in text.splitlines()]
    return tuple(line for line in found if line and not line.startswith("#"))


def shown(receiver: str) -> str:
    """A receiver without what may be secret in it."""
    parts = urllib.parse.urlsplit(receiver)
    return f"{parts.scheme}://{parts.hostname or '...'}" if parts.scheme else "..."


def deliver(ledger: Ledger, now_s: float) -> tuple[int, tuple[str, ...]]:
    """Try every message that is due; gives how many went out and why others did not."""
    sent, errors = 0, []
    for message in ledger.due(now_s):
        try:
            send(message.receiver, message.alert, now_s)
        except (Unreachable, InvalidInput, MissingExtra) as err:
            why = f"{shown(message.receiver)}: {err.what}" + (f" ({err.why})" if err.why else "")
            errors.append(why)
            attempts = message.attempts + 1
            if attempts >= _GIVE_UP:
                logger.warning("given up after %d attempts: %s", attempts, why)
                ledger.delivered(message)
                continue
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempts - 1))
            ledger.postpone(msgspec.structs.replace(message, attempts=attempts, error=why), now_s + pause_s)
        else:
            ledger.delivered(message)
            sent += 1
    return sent, tuple(errors)


def send(receiver: str, alert: Alert, now_s: float) -> None:
    """Tell one receiver of one alert. Raises: Unreachable, InvalidInput, MissingExtra."""
    if receiver.startswith(ALERTMANAGER):
        base = receiver.removeprefix(ALERTMANAGER).rstrip("/")
        _post(f"{base}/api/v2/alerts", [alertmanager_alert(alert, now_s)])
    elif receiver.startswith(("http://", "https://")):
        _post(receiver, webhook(alert))
    else:
        _apprise(receiver, alert)


def webhook(alert: Alert) -> dict[str, Any]:
    """What a webhook gets."""
    return {
        "schema": "aim-engine/alert/v1",
        "status": alert.state,
        "alert": alert.rule,
        "severity": alert.severity,
        "deployment": alert.deployment,
        "summary": alert.summary,
        "value": alert.value,
        "since": _time(alert.since_s),
    }


def alertmanager_alert(alert: Alert, now_s: float) -> dict[str, Any]:
    """What an Alertmanager gets; a firing alert ends by itself unless it is told of again."""
    ends = alert.since_s if alert.state == "resolved" else now_s + 4 * RENEW_S
    document: dict[str, Any] = {
        "labels": {
            "alertname": f"AimEngine{alert.rule}",
            "severity": alert.severity,
            "deployment": alert.deployment,
        },
        "annotations": {"summary": alert.summary},
        "endsAt": _time(ends),
    }
    if alert.state == "firing":
        document["startsAt"] = _time(alert.since_s)
    return document


def messages(alert: Alert, to: Sequence[str]) -> list[Message]:
    """One message for each receiver."""
    return [Message(receiver=receiver, alert=alert) for receiver in to]


def _post(url: str, document: object) -> None:
    import urllib3

    try:
        answer = urllib3.request(
            "POST",
            url,
            body=json.dumps(document),
            headers={"Content-Type": "application/json", "User-Agent": "aim-engine"},
            timeout=TIMEOUT_S,
            retries=False,
        )
    except (urllib3.exceptions.HTTPError, ValueError) as err:
        raise Unreachable("the receiver does not answer", why=str(err).rpartition(": ")[2]) from err
    if answer.status >= 300:
        raise Unreachable(f"the receiver answered {answer.status}", why=answer.reason)


def _apprise(receiver: str, alert: Alert) -> None:
    try:
        import apprise
    except ImportError as err:
        raise MissingExtra("apprise", extra="notify", needed_for="telling this receiver") from err
    service = apprise.Apprise()
    if not service.add(receiver):
        raise InvalidInput("the address of a receiver is not one that Apprise knows", hint="see its list of services")
    kinds = {
        "critical": apprise.NotifyType.FAILURE,
        "warning": apprise.NotifyType.WARNING,
        "info": apprise.NotifyType.INFO,
    }
    kind = apprise.NotifyType.SUCCESS if alert.state == "resolved" else kinds[alert.severity]
    title = f"[{alert.state}] {alert.deployment}: {alert.rule}"
    if not service.notify(
        body=f"{alert.severity}: {alert.summary}\nsince {_time(alert.since_s)}", title=title, notify_type=kind
    ):
        raise Unreachable("the service did not take the message", why="apprise says no more than that")


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
