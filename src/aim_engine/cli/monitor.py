"""`aim-engine monitor`."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from aim_engine import settings as all_settings
from aim_engine.cli import kpi_table, observed, output
from aim_engine.cli.observed import Observed
from aim_engine.errors import AimError, InvalidInput
from aim_engine.monitor import figures, notify, report, smi, views
from aim_engine.monitor import watch as watching
from aim_engine.monitor.collect import Collector, Watched
from aim_engine.monitor.history import History, Look
from aim_engine.monitor.ledger import Ledger
from aim_engine.monitor.watch import Watch
from aim_engine.render import alert_rules
from aim_engine.settings import Settings
from aim_engine.workflow import overlay_dir

_RECENT_S = 300.0


@click.command(epilog="Example: aim-engine monitor --once --json")
@click.argument("names", nargs=-1, metavar="[NAME|ADDRESS]...")
@click.option("--interval", metavar="TIME", default="5s", show_default=True, help="Between two looks at an endpoint.")
@click.option("--once", is_flag=True, help="Look once, judge, and end.")
@click.option("--for", "duration", metavar="TIME", help="End after this time. Default: at Ctrl-C.")
@click.option(
    "--exporter", multiple=True, metavar="URL", help="AMD device metrics exporter whose cards belong to the deployment."
)
@click.option("--pods", metavar="REGEX", help="Of the exporter's cards only those that these pods hold.")
@click.option("--no-cards", is_flag=True, help="Leave the cards of this machine out.")
@click.option(
    "--receivers",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of receivers of alerts. Default: notify_file of the settings.",
)
@click.option(
    "--listen", metavar="HOST:PORT", help="Take ratings by POST /feedback and show figures at /metrics there."
)
@click.option("--learn", is_flag=True, help="Correct predictions by each hour that was measured under load.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; with --once only.")
def monitor(
    names: tuple[str, ...],
    interval: str,
    once: bool,
    duration: str | None,
    exporter: tuple[str, ...],
    pods: str | None,
    no_cards: bool,
    receivers: Path | None,
    listen: str | None,
    learn: bool,
    as_json: bool,
) -> int:
    """Look at running engines and their cards, keep what they do, and tell when something is wrong.

    Without a name it looks at everything that is deployed here, now and later. Exit code 1 when --once found an alert that fires, 3 when one did not answer.
    """
    if as_json and not once:
        raise InvalidInput("--json needs --once", hint="aim-engine report --json gives what was kept")
    settings = all_settings.load()
    followed = observed.Followed(names, settings)
    found = followed.now
    if not found:
        raise InvalidInput(
            "nothing is deployed",
            hint="name an address, such as http://127.0.0.1:8000, or start with: aim-engine up MODEL",
        )
    if exporter and len(found) != 1:
        raise InvalidInput("an exporter's cards must belong to one deployment", hint="name the deployment")
    exporters = [observed.exporter(url, found[0].name, pods) for url in exporter]
    path = receivers or (Path(settings.notify_file) if settings.notify_file else None)
    told = notify.receivers(path) if path is not None else ()
    history, ledger = observed.history(settings), observed.ledger(settings)
    root = Path(settings.sysfs_root)
    cards = None if no_cards or exporter else smi.Cards(root)
    if once and cards is not None:
        cards.wait()
    pages = _pages(found, exporters)
    collector = Collector(
        pages,
        history,
        interval_s=observed.seconds(interval),
        workers=max(4, min(16, len(pages))),
        key=observed.key(),
        cards=cards,
        deployment=found[0].name,
    )
    watch = Watch(
        history,
        ledger,
        alert_rules.load(overlay_dir(settings)),
        {each.name: each.plan for each in found},
        receivers=told,
        findings=_findings(found, root),
    )
    try:
        if once:
            return _once(found, collector, watch, history, as_json)
        hourly = (lambda now_s: _learn(followed.now, history, ledger, settings, now_s)) if learn else None
        _run(followed, exporters, collector, watch, settings, duration, listen, hourly)
    finally:
        collector.close()
        if cards is not None:
            cards.close()
        history.close()
        ledger.close()
    return 0


def _pages(found: tuple[Observed, ...], exporters: Sequence[Watched]) -> list[Watched]:
    """All pages of these deployments, and of the exporters whose cards are theirs."""
    own = [page for each in found for page in each.pages]
    return own + [page for page in exporters if any(page.target.deployment == each.name for each in found)]


def _run(
    followed: observed.Followed,
    exporters: Sequence[Watched],
    collector: Collector,
    watch: Watch,
    settings: Settings,
    duration: str | None,
    listen: str | None,
    hourly: Callable[[float], None] | None,
) -> None:
    stop = threading.Event()
    plans = {each.name: each.plan for each in followed.now}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    timer = None
    if duration:
        timer = threading.Timer(observed.seconds(duration), stop.set)
        timer.daemon = True
        timer.start()
    server = None
    if listen:
        from aim_engine.monitor.listen import Listener

        server = Listener(listen, Path(settings.state_dir).expanduser(), plans)
        output.note(f"ratings and figures at {server.address}")
    output.note(f"watching {', '.join(plans)}; figures: aim-engine report, aim-engine top")

    def renew() -> None:
        if not followed.changed():
            return
        before = set(plans)
        now = {each.name: each.plan for each in followed.now}
        plans.clear()
        plans.update(now)
        collector.follow(_pages(followed.now, exporters))
        watch.follow(now)
        if before != set(now):
            output.note(f"watching {', '.join(now) or 'nothing until something is deployed'}")

    try:
        watching.run(collector, watch, stop, renew=renew, hourly=hourly or (lambda _: None))
    finally:
        if timer is not None:
            timer.cancel()
        if server is not None:
            server.close()


def _learn(found: tuple[Observed, ...], history: History, ledger: Ledger, settings: Settings, now_s: float) -> None:
    """Keep the last hour of each planned deployment as a measurement, where it says enough."""
    from aim_engine import improve

    for each in found:
        if each.plan is not None:
            hour = views.of_history(history, each.name, now_s - 3600, now_s, plan=each.plan, points=0)
            output.note(f"{each.name}: {improve.learn(each.plan, hour.figures, settings, ledger, now_s=now_s)}")


def _once(
    found: tuple[Observed, ...],
    collector: Collector,
    watch: Watch,
    history: History,
    as_json: bool,
) -> int:
    looks = collector.once()
    now_s = time.time()
    state = watch.judge(now_s)
    watch.deliver(now_s)
    documents: list[dict[str, Any]] = []
    for each in found:
        document: dict[str, Any] = {"name": each.name, "alerts": [a for a in state if a.deployment == each.name]}
        own = [look for look in looks if look.target.deployment == each.name]
        errors = [event.text for look in own if look.span.failed for event in look.events]
        document["error"] = "; ".join(errors) or (
            "it does not answer" if own and all(o.span.failed for o in own) else None
        )
        document["kpis"] = None if document["error"] else _figures(each, own, history, now_s)
        documents.append(document)
    if as_json:
        output.data({"schema": "aim-engine/monitor/v1", "time_s": round(now_s, 3), "deployments": documents})
    else:
        for document in documents:
            if document["kpis"] is not None:
                kpi_table.show(document["kpis"], document["name"])
            else:
                output.text(f"{document['name']}: {document['error']}")
            for alert in document["alerts"]:
                output.text(f"{alert.severity}: {alert.rule} {alert.state}: {alert.summary}")
    if any(alert.state == "firing" for alert in state):
        return 1
    return 3 if any(document["error"] for document in documents) else 0


def _figures(each: Observed, looks: list[Look], history: History, now_s: float) -> figures.KpiReport:
    """What happened since the look before, else since the engine's start."""
    recent = views.of_history(history, each.name, now_s - _RECENT_S, now_s, plan=each.plan, points=0).figures
    if recent.window_s or len(looks) != 1 or each.pages[0].namespace:
        return recent
    return report.watch_once(looks[0].target.endpoint)


def _findings(found: tuple[Observed, ...], root: Path) -> tuple[str, ...]:
    """Ids of what doctor finds on this machine, where a deployment has GPUs."""
    if not any(each.plan is not None and each.plan.inputs.gpu.kind != "cpu" for each in found):
        return ()
    from aim_engine.doctor import examine, host

    try:
        return tuple(problem.id for problem in examine.examine(host.read(root)).problems)
    except AimError as err:
        output.note(f"note: the host could not be examined: {err}")
        return ()
