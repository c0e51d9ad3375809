"""`aim-engine alerts`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from aim_engine import settings as all_settings
from aim_engine.cli import observed, output
from aim_engine.cli.options import limits
from aim_engine.errors import AimError, InvalidInput
from aim_engine.monitor import notify, page, views
from aim_engine.monitor.ledger import Alert, Silence
from aim_engine.render import alert_rules, rulefile
from aim_engine.render.text import yaml_document
from aim_engine.workflow import overlay_dir

_RECENT_S = 600.0
"""A monitor that runs asks again long before."""


@click.group(invoke_without_command=True, epilog="Example: aim-engine alerts export http://127.0.0.1:8000")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def alerts(context: click.Context, as_json: bool) -> int | None:
    """Show what is wrong now; silence it, export the rules, or try the receivers.

    Without a subcommand: the alerts of every deployment. Exit code 1 when one fires.
    """
    if context.invoked_subcommand is not None:
        return None
    settings = all_settings.load()
    ledger = observed.ledger(settings)
    try:
        found, waiting = ledger.alerts(), ledger.waiting()
        silences = ledger.silences(time.time())
    finally:
        ledger.close()
    if as_json:
        output.data({"schema": "aim-engine/alerts/v1", "alerts": found, "silences": silences})
    else:
        if found:
            columns = ("state", "severity", "deployment", "alert", "since (UTC)", "what", "")
            output.table(None, columns, [_row(alert) for alert in found])
        else:
            output.text("no alert fires")
        for each in silences:
            output.text(f"silence {each.id}: {each.rule} at {each.deployment} until {page.when(each.until_s)} UTC")
        for message in waiting:
            output.note(
                f"not delivered yet: {message.alert.rule} to {notify.shown(message.receiver)}: {message.error or 'due now'}"
            )
    context.exit(1 if any(alert.state == "firing" for alert in found) else 0)


@alerts.command(epilog="Example: aim-engine alerts rules")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def rules(as_json: bool) -> None:
    """List the rules."""
    found = alert_rules.load(overlay_dir(all_settings.load()))
    if as_json:
        output.data({"schema": "aim-engine/alert-rules/v1", "rules": found})
        return
    output.table(
        None,
        ("rule", "severity", "for", "condition", "basis"),
        [(rule.name, rule.severity, rule.for_, said(rule), rule.basis) for rule in found],
    )


@alerts.command(
    epilog="Example: aim-engine alerts export http://127.0.0.1:8000 --selector 'instance=\"127.0.0.1:8000\"'"
)
@click.argument("name", required=False, metavar="[NAME|ADDRESS]")
@click.option("--selector", default="", help="Label matchers of the engine's series.")
@click.option("--cards", default="", help="Label matchers of the cards' series.")
@click.option(
    "--kubernetes", "namespace", metavar="NAMESPACE", help="A PrometheusRule for this namespace instead of a rule file."
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label of the PrometheusRule.")
@click.option("--ttft", metavar="[pN:]TIME", help="Limit on the time to first token, where no plan has one.")
@click.option("--tpot", metavar="[pN:]TIME", help="Limit on the time per output token, where no plan has one.")
@click.option("--e2e", metavar="[pN:]TIME", help="Limit on the time of a whole request, where no plan has one.")
@click.option("--engine", type=click.Choice(["vllm", "sglang", "atom"]), default="vllm", show_default=True)
@click.option(
    "--prefill", default="", help="Label matcher of servers that only prefill, beside others that only decode."
)
def export(
    name: str | None,
    selector: str,
    cards: str,
    namespace: str | None,
    labels: tuple[str, ...],
    ttft: str | None,
    tpot: str | None,
    e2e: str | None,
    engine: str,
    prefill: str,
) -> None:
    """Write the rules for Prometheus, with the plan's limits in them."""
    settings = all_settings.load()
    found = observed.one(name, settings)
    asked = limits({"ttft": ttft, "tpot": tpot, "e2e": e2e})
    given = {**views.parameters(found.plan), **alert_rules.of_limits(asked)}
    exported = rulefile.export(
        alert_rules.load(overlay_dir(settings)),
        deployment=found.name,
        selector=selector,
        devices=cards,
        parameters=given,
        engine=engine,
        prefill=prefill,
    )
    if namespace is None:
        document: dict[str, object] = {"groups": exported.groups}
    else:
        pairs = dict(_pair(label) for label in labels)
        document = rulefile.prometheus_rule(
            exported, name=f"aim-engine-{found.name}", namespace=namespace, labels=pairs
        )
    output.text(yaml_document(document).rstrip("\n"))
    for rule, why in exported.left_out.items():
        output.note(f"left out: {rule}: {why}")


@alerts.command(epilog="Example: aim-engine alerts silence KvSaturated --for 2h --why 'load test'")
@click.argument("rule")
@click.option("--for", "length", metavar="TIME", default="2h", show_default=True)
@click.option("--deployment", default="*", show_default=True)
@click.option("--why", default="")
def silence(rule: str, length: str, deployment: str, why: str) -> None:
    """Tell nobody of RULE for a while; * is every rule."""
    settings = all_settings.load()
    known = {each.name for each in alert_rules.load(overlay_dir(settings))}
    if rule != "*" and rule not in known:
        import difflib

        close = difflib.get_close_matches(rule, known, n=2)
        raise InvalidInput(
            f"there is no rule '{rule}'",
            hint=f"did you mean {' or '.join(close)}?" if close else "aim-engine alerts rules lists them",
        )
    until_s = time.time() + observed.seconds(length)
    ledger = observed.ledger(settings)
    try:
        number = ledger.silence(Silence(rule=rule, deployment=deployment, until_s=until_s, why=why))
    finally:
        ledger.close()
    output.text(f"silence {number}: {rule} at {deployment} until {page.when(until_s)} UTC")


@alerts.command(epilog="Example: aim-engine alerts unsilence 3")
@click.argument("number", type=int)
def unsilence(number: int) -> None:
    """End a silence."""
    ledger = observed.ledger(all_settings.load())
    try:
        if not ledger.end_silence(number):
            raise InvalidInput(f"there is no silence {number}", hint="aim-engine alerts lists them")
    finally:
        ledger.close()
    output.text(f"silence {number} is over")


@alerts.command("try", epilog="Example: aim-engine alerts try --receivers receivers.txt")
@click.option(
    "--receivers",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of receivers. Default: notify_file of the settings.",
)
def try_(receivers: Path | None) -> int:
    """Send a test message to every receiver."""
    settings = all_settings.load()
    path = receivers or (Path(settings.notify_file) if settings.notify_file else None)
    if path is None:
        raise InvalidInput("there is no file of receivers", hint="--receivers FILE, or notify_file in the settings")
    now_s = time.time()
    test = Alert(
        deployment="test",
        rule="Test",
        severity="info",
        state="firing",
        since_s=now_s,
        summary="a test; nothing is wrong",
    )
    failed = 0
    for receiver in notify.receivers(path):
        try:
            notify.send(receiver, test, now_s)
            output.text(f"{notify.shown(receiver)}: delivered")
        except AimError as err:
            failed += 1
            output.text(f"{notify.shown(receiver)}: {err}")
    return 3 if failed else 0


def said(rule: alert_rules.Rule) -> str:
    """A rule's condition in words."""
    if rule.facts:
        return f"doctor finds {' or '.join(rule.facts)}"
    groups = []
    for group in rule.groups:
        parts = []
        for each in group:
            figure = each.kpi
            if isinstance(each.quantile, str):
                figure = f"quantile {each.quantile} of {each.kpi}"
            elif each.quantile is not None:
                figure = f"{each.kpi} p{each.quantile * 100:g}"
            bounds = [
                f"{sign} {bound}"
                for sign, bound in ((">", each.above), ("<", each.below), ("=", each.equals), (">", each.beyond))
                if bound is not None
            ]
            bounds += ["is missing"] * each.missing + ["rises"] * each.rising
            parts.append(f"{figure} {' and '.join(bounds)} over {each.over}")
        groups.append(" and ".join(parts))
    return " or ".join(groups)


def _row(alert: Alert) -> tuple[str, ...]:
    mute = "silenced" if alert.silenced else f"explained by {alert.inhibited_by}" if alert.inhibited_by else ""
    if alert.state != "resolved" and alert.judged_s and time.time() - alert.judged_s > _RECENT_S:
        mute = f"no monitor asked since {page.when(alert.judged_s)}"
    return alert.state, alert.severity, alert.deployment, alert.rule, page.when(alert.since_s), alert.summary, mute


def _pair(text: str) -> tuple[str, str]:
    name, sign, found = text.partition("=")
    if not sign or not name:
        raise InvalidInput(f"'{text}' is no label", hint="--label release=prometheus")
    return name, found
