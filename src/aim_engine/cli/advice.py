"""What is known of a deployment, brought together for advice; shared by the commands that give some."""

from __future__ import annotations

from aim_engine import improve
from aim_engine.advise import diagnose
from aim_engine.advise.diagnose import Diagnosed, Diagnosis
from aim_engine.cli import output
from aim_engine.cli.deployments import runner
from aim_engine.cli.observed import Observed
from aim_engine.deploy.records import Store
from aim_engine.kpi import names
from aim_engine.monitor import views
from aim_engine.monitor.history import History
from aim_engine.monitor.page import value
from aim_engine.settings import Settings
from aim_engine.workflow import overlay_dir


def subject_of(
    found: Observed,
    history: History,
    begin_s: float,
    end_s: float,
    settings: Settings,
    *,
    log: str | None = None,
    findings: tuple[str, ...] | None = None,
) -> Diagnosed:
    """Advice for a window of a deployment. Its own log is read when none is given."""
    document = views.of_history(history, found.name, begin_s, end_s, plan=found.plan, points=0)
    length = end_s - begin_s
    earlier = views.of_history(history, found.name, begin_s - length, begin_s, plan=found.plan, points=0)
    store = Store(settings.state_dir)
    if log is None and found.members:
        log = improve.log_of(store, found.members, lambda deployment: runner(deployment, store, settings))
    known = improve.look(
        found.plan,
        views.span(history, found.name, begin_s, end_s),
        document.figures,
        settings,
        before=earlier.figures if earlier.figures.window_s else None,
        log=log,
        findings=findings,
        cards={card.name: card.figures for card in document.cards},
    )
    return diagnose.diagnose(known, overlay_dir(settings))


def show(each: Diagnosis) -> None:
    """One diagnosis for a person."""
    output.heading(f"{each.id}  {each.title}  [{each.severity}, confidence {each.confidence}]")
    output.text(f"  evidence  {each.evidence}")
    if each.change is not None:
        output.text(f"  change    {each.change.say}")
        for line in changes(each):
            output.text(f"            {line}")
    for other in each.others:
        output.text(f"  or        {other}")
    if each.predicted:
        for effect in each.predicted:
            kpi = names.BY_NAME[effect.kpi]
            output.text(
                f"  predicted {kpi.label}: {value(kpi.unit, effect.now)} -> {value(kpi.unit, effect.then)} "
                f"({value(kpi.unit, effect.low)} to {value(kpi.unit, effect.high)})"
            )
    else:
        output.text(f"  expected  {each.effect}")
    output.text(f"  verify    {names.BY_NAME[each.verify.kpi].label} {each.verify.want} {each.verify.by}".rstrip())
    if each.risk:
        output.text(f"  risk      {each.risk}")
    if each.explains:
        output.text(f"  explains  {', '.join(each.explains)}")
    if each.held_back_by:
        output.text(f"  waits     for {each.held_back_by}, whose remedy it would undo")
    output.text(f"  source    {each.source}")


def changes(each: Diagnosis) -> list[str]:
    """What to change, as assignments, arguments and commands."""
    change = each.change
    if change is None:
        return []
    lines = [f"{name} = {found}" for name, found in change.recipe.items()]
    lines += [f"{name}={found}" for name, found in change.env.items()]
    lines += [f"unset {name}" for name in change.unset]
    if change.args:
        lines.append(" ".join(change.args))
    lines += [f"without {flag}" for flag in change.drop]
    return [*lines, *change.do]
