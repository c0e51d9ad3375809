"""`aim-engine suggest`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from aim_engine import improve
from aim_engine import settings as all_settings
from aim_engine.advise.diagnose import Diagnosed, Diagnosis
from aim_engine.cli import advice, observed, output
from aim_engine.cli.deployments import runner
from aim_engine.cli.observed import Observed
from aim_engine.deploy import endpoint as http
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment, Runner
from aim_engine.errors import InvalidInput
from aim_engine.settings import Settings


@click.command(epilog="Example: aim-engine suggest http://127.0.0.1:8000 --since 24h")
@click.argument("name", required=False, metavar="[NAME|ADDRESS]")
@click.option("--since", metavar="TIME", default="1h", show_default=True, help="Length of the window to judge.")
@click.option(
    "--log",
    "log",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The engine's log, where we did not start it.",
)
@click.option("--doctor/--no-doctor", default=True, show_default=True, help="Examine this host too.")
@click.option(
    "--apply",
    "chosen",
    metavar="ID",
    help="Deploy this change, measure it, and keep it or go back. `first` takes the first.",
)
@click.option(
    "--load", type=click.IntRange(min=1), metavar="N", help="Put N requests of our own on it, before and after."
)
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=4, show_default=True, help="Requests at once with --load."
)
@click.option(
    "--measure", metavar="TIME", default="5m", show_default=True, help="Measure the load that is there for so long."
)
@click.option("--endpoint", metavar="URL", help="Where --load reaches the deployment, when not at its own address.")
@click.option("--yes", is_flag=True, help="Do not ask before a deployment is changed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def suggest(
    name: str | None,
    since: str,
    log: Path | None,
    doctor: bool,
    chosen: str | None,
    load: int | None,
    concurrency: int,
    measure: str,
    endpoint: str | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Say what to change, most likely cause first, with evidence and predicted effect.

    Exit code 1 when --apply went back to what was before.
    """
    settings = all_settings.load()
    found = observed.one(name, settings)
    begin_s, end_s = observed.window(since)
    history = observed.history(settings)
    try:
        text = log.read_text(encoding="utf-8", errors="replace") if log is not None else None
        diagnosed = advice.subject_of(
            found, history, begin_s, end_s, settings, log=text, findings=_findings(settings) if doctor else None
        )
    finally:
        history.close()
    if chosen is None:
        if as_json:
            output.data(diagnosed)
        else:
            _show(diagnosed)
        return 0
    return _apply(_pick(diagnosed, chosen), found, settings, load, concurrency, measure, endpoint, yes, as_json)


def _show(diagnosed: Diagnosed) -> None:
    for each in diagnosed.found:
        advice.show(each)
        output.text()
    if not diagnosed.found:
        output.text("nothing to change was found")
    output.note(f"{diagnosed.judged} rules were judged; {len(diagnosed.unknown)} lacked what they judge on")
    if diagnosed.few_requests is not None:
        output.note(f"{diagnosed.few_requests:.0f} requests in the window are too few for advice on load")
    applicable = [each for each in diagnosed.found if each.change is not None and each.change.is_of_recipe]
    if applicable:
        output.next_step(f"aim-engine suggest --apply {applicable[0].id}")


def _pick(diagnosed: Diagnosed, chosen: str) -> Diagnosis:
    usable = [each for each in diagnosed.found if each.change is not None and each.change.is_of_recipe]
    for each in usable:
        if chosen in ("first", each.id):
            return each
    raise InvalidInput(
        f"there is no advice '{chosen}' that a deployment could follow now",
        hint=f"one of {', '.join(each.id for each in usable)}" if usable else "aim-engine suggest shows what there is",
    )


def _apply(
    chosen: Diagnosis,
    found: Observed,
    settings: Settings,
    load: int | None,
    concurrency: int,
    measure: str,
    endpoint: str | None,
    yes: bool,
    as_json: bool,
) -> int:
    if len(found.members) != 1 or found.plan is None:
        raise InvalidInput(
            f"{found.name} is not one deployment that aim-engine started",
            why="only then its plan is known and it can be started again",
            hint="apply the change by hand: aim-engine suggest shows it",
        )
    store = Store(settings.state_dir)
    deployment = store.load(found.members[0])
    if not as_json:
        advice.show(chosen)
    if not yes:
        how = "rolls the pods of" if deployment.target == "kubernetes" else "restarts"
        output.note(f"this {how} {deployment.name}, and again when the change does not help")
        click.confirm("Go on?", abort=True, err=True)
    with _reached(deployment, endpoint) if load else contextlib.nullcontext() as address:
        outcome = improve.apply(
            chosen,
            deployment,
            found.plan,
            settings,
            _starting(deployment.target, store, settings, found),
            load=improve.drive(load, concurrency, endpoint=address)
            if load
            else improve.wait(observed.seconds(measure)),
            tell=output.note,
        )
    if as_json:
        output.data(outcome)
    else:
        output.text(f"{'kept' if outcome.kept else 'gone back'}: {outcome.why}")
    if outcome.kept:
        output.next_step(f"aim-engine monitor {deployment.name}; aim-engine report {deployment.name} --learn")
    return 0 if outcome.kept else 1


def _reached(deployment: Deployment, endpoint: str | None) -> contextlib.AbstractContextManager[str | None]:
    """Where a load reaches a deployment, while inside: in a cluster through its API server, unless the address itself answers."""
    if endpoint is not None or deployment.target != "kubernetes" or http.answers(deployment.endpoint):
        return contextlib.nullcontext(endpoint)
    from aim_engine.deploy import reach

    return reach.service(deployment.namespace or "default", deployment.name)


def _starting(target: str, store: Store, settings: Settings, found: Observed) -> Runner:
    """A runner that can also start."""
    if target == "kubernetes":
        from aim_engine.deploy.kubernetes import KubernetesRunner
        from aim_engine.workflow import overlay_dir

        return KubernetesRunner(store, ready_timeout_s=settings.ready_timeout_s, overlay=overlay_dir(settings))
    if target == "docker" or found.plan is None:
        return runner(store.load(found.members[0]), store, settings)
    from aim_engine.deploy import environment
    from aim_engine.deploy.local import LocalRunner
    from aim_engine.workflow import overlay_dir

    overlay = overlay_dir(settings)
    device = "cpu" if found.plan.inputs.gpu.kind == "cpu" else "rocm"
    installed = environment.ensure(
        environment.for_device(found.plan.inputs.engine, device, overlay), settings, output.note
    )
    return LocalRunner(store, installed, ready_timeout_s=settings.ready_timeout_s, overlay=overlay)


def _findings(settings: Settings) -> tuple[str, ...]:
    from aim_engine.doctor import examine, host

    return tuple(problem.id for problem in examine.examine(host.read(Path(settings.sysfs_root))).problems)
