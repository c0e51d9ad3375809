"""`aim-engine report`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cli import observed, output
from aim_engine.cli.advice import subject_of
from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.monitor import page, views
from aim_engine.monitor.prometheus import Prometheus
from aim_engine.monitor.views import Document, Line
from aim_engine.perf.estimate import Estimate
from aim_engine.planner.plan import Plan
from aim_engine.workload import Workload

_EARLIER = {"previous": None, "day": 86400.0, "week": 7 * 86400.0}


@click.command(epilog="Example: aim-engine report http://127.0.0.1:8000 --since 24h --compare week")
@click.argument("name", required=False, metavar="[NAME|ADDRESS]")
@click.option(
    "--since", metavar="TIME", default="1h", show_default=True, help="Length of the window, such as 15m, 24h or 7d."
)
@click.option("--until", metavar="TIME", help="End of the window, so long ago. Default: now.")
@click.option("--compare", metavar="WHAT", help="Earlier window: previous, day, week, or how long ago, such as 3h.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "html", "json"]),
    help="Default: by the file's name, else table.",
)
@click.option("-o", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file.")
@click.option("--prometheus", metavar="URL", help="Ask a Prometheus-compatible server instead of our own history.")
@click.option("--selector", default="", help="Label matchers of the engine's series there, such as 'pod=~\"qwen-.*\"'.")
@click.option("--cards", "cards", metavar="SELECTOR", help="Label matchers of the cards' series there.")
@click.option(
    "--prefill", default="", help="Label matcher there of servers that only prefill, beside others that only decode."
)
@click.option("--learn", is_flag=True, help="Correct the next predictions by this window.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; the same as --format json.")
def report(
    name: str | None,
    since: str,
    until: str | None,
    compare: str | None,
    form: str | None,
    path: Path | None,
    prometheus: str | None,
    selector: str,
    cards: str | None,
    prefill: str,
    learn: bool,
    as_json: bool,
) -> int:
    """Say how a deployment did: figures beside the plan's targets and an earlier window, curves, cards, alerts, advice.

    Exit code 1 when a limit of the plan was missed.
    """
    settings = all_settings.load()
    begin_s, end_s = observed.window(since, until)
    before = _before(compare, begin_s, end_s)
    form = "json" if as_json else form or _by_name(path)
    found = observed.one(name, settings)

    def predict(plan: Plan, load: Workload) -> Estimate | None:
        return workflow.expect(plan, load, settings)

    if prometheus:
        document = views.of_prometheus(
            Prometheus(prometheus, selector=selector, devices=cards, prefill=prefill),
            found.name,
            begin_s,
            end_s,
            plan=found.plan,
            before=before,
            points=24 if form == "html" else 0,
            predict=predict,
        )
        advice: list[tuple[str, str, str]] = []
    else:
        history, ledger = observed.history(settings), observed.ledger(settings)
        try:
            document = views.of_history(
                history,
                found.name,
                begin_s,
                end_s,
                plan=found.plan,
                ledger=ledger,
                before=before,
                points=views.POINTS if form in ("html", "json") else 0,
                predict=predict,
            )
            diagnosed = subject_of(found, history, begin_s, end_s, settings)
            advice = [
                (each.id, each.change.say if each.change is not None else each.title, each.evidence)
                for each in diagnosed.found
            ]
            if learn and found.plan is not None:
                from aim_engine import improve

                output.note(improve.learn(found.plan, document.figures, settings, ledger, now_s=time.time()))
        finally:
            history.close()
            ledger.close()
    _give(document, form, path, advice)
    return 1 if any(line.verdict == "missed" for line in document.lines) else 0


def _give(document: Document, form: str, path: Path | None, advice: list[tuple[str, str, str]]) -> None:
    if form == "table" and path is None:
        _table(document, advice)
        return
    if form == "json" and path is None:
        output.data(document)
        return
    if form == "html":
        content = page.page(document, advice)
    elif form == "json":
        import msgspec

        content = msgspec.json.format(msgspec.json.encode(document, order="deterministic"), indent=2).decode() + "\n"
    else:
        content = page.markdown(document, advice)
    if path is None:
        output.text(content.rstrip("\n"))
        return
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as err:
        raise Unreachable(f"{path} cannot be written", why=err.strerror, hint="choose another file with -o") from err
    output.note(f"written to {path}")


def _table(document: Document, advice: list[tuple[str, str, str]]) -> None:
    output.heading(f"{document.deployment}: {document.model}")
    output.text(page.subtitle(document))
    columns = ["figure", "measured", "p95", page.promised(document), "limit"]
    if document.before is not None:
        columns += [document.before_label, "change"]
    output.table(None, (*columns, ""), [_row(document, line) for line in document.lines], right=columns[1:])
    for alert in document.alerts:
        if alert.state == "firing" and not alert.inhibited_by:
            output.text(f"{alert.severity}: {alert.rule}: {alert.summary}")
    for rule, change, evidence in advice:
        output.text(f"{rule}: {change} ({evidence})")
    for event in document.events[-10:]:
        output.text(f"{page.when(event.time_s)} {event.kind}: {event.text}")
    for note in (*filter(None, [page.loads(document)]), *document.notes):
        output.note(f"note: {note}")


def _row(document: Document, line: Line) -> list[str]:
    unit = line.unit
    cells = [
        line.label,
        page.value(unit, line.measured) or "-",
        page.value(unit, line.p95),
        page.value(unit, page.promise(document, line)),
        page.limited(line),
    ]
    if document.before is not None:
        change = "" if line.change_fraction is None else f"{line.change_fraction:+.1%}"
        cells += [page.value(unit, line.before), change]
    return [*cells, page.verdict(line)]


def _before(compare: str | None, begin_s: float, end_s: float) -> tuple[float, float, str] | None:
    if compare is None:
        return None
    back_s = _EARLIER.get(compare, 0.0)
    if back_s is None:
        back_s = end_s - begin_s
    label = {"previous": "before", "day": "a day before", "week": "a week before"}.get(compare, f"{compare} before")
    try:
        back_s = back_s or observed.seconds(compare)
    except InvalidInput as err:
        raise InvalidInput(
            f"--compare {compare} is no earlier window", hint="previous, day, week, or how long ago, such as 3h"
        ) from err
    return begin_s - back_s, end_s - back_s, label


def _by_name(path: Path | None) -> str:
    return {".html": "html", ".md": "markdown", ".json": "json"}.get(
        path.suffix if path is not None else "", "table" if path is None else "markdown"
    )
