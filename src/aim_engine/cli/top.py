"""`aim-engine top`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.advise import diagnose, subject
from aim_engine.cli import observed, output
from aim_engine.cli.observed import Observed
from aim_engine.errors import InvalidInput
from aim_engine.kpi import names
from aim_engine.monitor import figures, page, smi, views
from aim_engine.monitor.collect import Collector
from aim_engine.monitor.figures import KpiReport
from aim_engine.monitor.history import Look
from aim_engine.monitor.ledger import Alert
from aim_engine.monitor.span import Span, in_a_row, side_by_side

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN = (
    "output_tok_s",
    "requests_s",
    "ttft_ms",
    "tpot_ms",
    "e2e_ms",
    "queue_ms",
    "running",
    "waiting",
    "kv_usage_fraction",
    "prefix_hit_fraction",
    "preemptions",
    "error_fraction",
    "acceptance_fraction",
    "gpu_busy_fraction",
    "power_w",
)
KEPT = 60
"""Looks that a sparkline shows."""
WINDOW = 12
"""Looks that a figure is of."""
_BARS = " ▁▂▃▄▅▆▇█"


class Screen:
    """What the live view knows of one deployment."""

    def __init__(self, found: Observed) -> None:
        self.found = found
        self.spans: deque[Span] = deque(maxlen=KEPT)
        self.cards: dict[str, deque[Span]] = {}
        self.error = ""

    def add(self, looks: Sequence[Look]) -> None:
        """One round of looks."""
        engines = [look.span for look in looks if look.target.kind == "engine"]
        failed = [look for look in looks if look.span.failed]
        self.error = next((event.text for look in failed for event in look.events), self.error if failed else "")
        for look in looks:
            if look.target.kind == "card":
                self.cards.setdefault(look.target.name, deque(maxlen=KEPT)).append(look.span)
        cards = [spans[-1] for spans in self.cards.values()]
        self.spans.append(views.joined(engines, cards))

    def span(self) -> Span:
        """The last minute or so."""
        return in_a_row(list(self.spans)[-WINDOW:])

    def report(self) -> KpiReport:
        """Its figures."""
        return figures.of(self.span(), endpoint=self.found.name, parameters=views.parameters(self.found.plan))

    def trail(self, kpi: str) -> list[float | None]:
        """One figure at each look."""
        given = views.parameters(self.found.plan)
        return [figures.reading(names.BY_NAME[kpi], each, given, {}, {}).value for each in self.spans]


@click.command(epilog="Example: aim-engine top --rounds 1")
@click.argument("names_", nargs=-1, metavar="[NAME|ADDRESS]...")
@click.option("--interval", metavar="TIME", default="2s", show_default=True, help="Between two looks.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="End after N looks. Default: at Ctrl-C.")
def top(names_: tuple[str, ...], interval: str, rounds: int | None) -> int:
    """Watch deployments live: figures with their course, against the plan; cards, queue, alerts and advice."""
    settings = all_settings.load()
    found = observed.deployments(names_, settings)
    if not found:
        raise InvalidInput(
            "nothing is deployed",
            hint="name an address, such as http://127.0.0.1:8000, or start with: aim-engine up MODEL",
        )
    cards = smi.Cards(Path(settings.sysfs_root))
    collector = Collector(
        [page_ for each in found for page_ in each.pages],
        None,
        interval_s=observed.seconds(interval),
        key=observed.key(),
        cards=cards,
        deployment=found[0].name,
    )
    screens = [Screen(each) for each in found]
    from rich.live import Live

    console = output.console()
    live = Live(console=console, screen=console.is_terminal, auto_refresh=False, transient=True)
    left = rounds
    try:
        if console.is_terminal:
            live.start()
        while True:
            began = time.monotonic()
            looks = collector.once()
            for screen in screens:
                screen.add([look for look in looks if look.target.deployment == screen.found.name])
            if console.is_terminal:
                live.update(frame(screens, _alerts(found)), refresh=True)
            left = None if left is None else left - 1
            if left == 0:
                break
            time.sleep(max(0.0, observed.seconds(interval) - (time.monotonic() - began)))
    finally:
        if console.is_terminal:
            live.stop()
        collector.close()
        cards.close()
    console.print(frame(screens, _alerts(found)))
    return 0


def frame(screens: Sequence[Screen], alerts: Sequence[Alert]) -> RenderableType:
    """One picture of everything."""
    from rich.console import Group

    return Group(*(_panel(screen, alerts) for screen in screens))


def sparkline(values: Sequence[float | None], width: int = 24) -> str:
    """The last values as bars, from zero to their peak; a gap where there was none."""
    shown = list(values)[-width:]
    peak = max((value for value in shown if value is not None), default=0.0)
    bars = []
    for value in shown:
        if value is None:
            bars.append(" ")
        else:
            bars.append(_BARS[1 + round((len(_BARS) - 2) * value / peak)] if peak > 0 else _BARS[1])
    return "".join(bars)


def _panel(screen: Screen, alerts: Sequence[Alert]) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    report, plan = screen.report(), screen.found.plan
    settings = all_settings.load()
    _, predicted = views.expected_for(report, plan, lambda made, load: workflow.expect(made, load, settings))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    for column in ("figure", "now", "p95", "target", "course"):
        table.add_column(column, justify="left" if column in ("figure", "course") else "right", no_wrap=True)
    for name in SHOWN:
        reading, kpi = report.readings[name], names.BY_NAME[name]
        trail = screen.trail(name)
        if reading.value is None and all(value is None for value in trail):
            continue
        planned, limit = views.planned_for(plan, name), views.limit_on(plan, name)
        if predicted is not None:  # for the load that is there
            planned = views.ranges(predicted).get(name)
        level = "" if limit is None or limit.percentile is None else f"p{limit.percentile} "
        target = f"{level}< {page.value(kpi.unit, limit.ms)}" if limit is not None else ""
        if not target and planned is not None:
            target = f"~ {page.value(kpi.unit, planned.value)}"
        reached = None if limit is None else views.at_level(report, name, limit.percentile)
        missed = limit is not None and reached is not None and reached > limit.ms
        now = Text(page.value(kpi.unit, reading.value) or "-", style="bold red" if missed else "bold")
        if missed:
            now.append(" !")
        p95 = report.quantile(name, "p95")
        table.add_row(kpi.label, now, page.value(kpi.unit, p95), target, Text(sparkline(trail), style="cyan"))
    parts: list[RenderableType] = [table]
    if screen.cards:
        parts.append(_cards(screen))
    firing = [
        alert
        for alert in alerts
        if alert.deployment == screen.found.name and alert.state == "firing" and not alert.inhibited_by
    ]
    parts += [Text(f"{alert.severity}: {alert.rule}: {alert.summary}", style="red") for alert in firing]
    if screen.error:
        parts.append(Text(f"no answer: {screen.error}", style="red"))
    told = diagnose.diagnose(subject.of(report, plan, span=screen.span())).found
    for each in told[:3]:
        change = each.change.say if each.change is not None else each.title
        parts.append(Text(f"{each.id} {change} ({each.evidence})", style="yellow"))
    model = plan.inputs.model.model_id if plan is not None else ""
    title = f"{screen.found.name}  {model}".strip()
    return Panel(
        Group(*parts), title=title, title_align="left", subtitle=time.strftime("%H:%M:%S"), subtitle_align="right"
    )


def _cards(screen: Screen) -> RenderableType:
    from rich import box
    from rich.table import Table

    shown = ("gpu_busy_fraction", "gpu_memory_fraction", "power_w", "junction_c", "thermal_throttled_fraction")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("card")
    for name in shown:
        table.add_column(names.BY_NAME[name].label, justify="right")
    for card, spans in sorted(screen.cards.items()):
        last = side_by_side([in_a_row(list(spans)[-WINDOW:])])
        values = [figures.reading(names.BY_NAME[name], last, {}, {}, {}).value for name in shown]
        table.add_row(card, *(page.value(names.BY_NAME[n].unit, v) for n, v in zip(shown, values, strict=True)))
    return table


def _alerts(found: Sequence[Observed]) -> tuple[Alert, ...]:
    ledger = observed.ledger(all_settings.load())
    try:
        names_ = {each.name for each in found}
        return tuple(alert for alert in ledger.alerts() if alert.deployment in names_)
    finally:
        ledger.close()
