"""`aim-engine status`, `aim-engine logs`, `aim-engine down`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from aim_engine import settings as all_settings
from aim_engine.cli import output
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment, Runner, Status
from aim_engine.errors import AimError, InvalidInput
from aim_engine.settings import Settings
from aim_engine.workflow import overlay_dir


@click.command(epilog="Example: aim-engine status")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def status(name: str | None, as_json: bool) -> int:
    """Show what is deployed and how it is; with NAME also its figures. Exit code 1 when a named one is not running."""
    settings = all_settings.load()
    store = Store(settings.state_dir)
    documents: list[dict[str, Any]] = []
    for each in store.members(name) if name else store.names():
        try:
            deployment = store.load(each)
            now = runner(deployment, store, settings).status(deployment)
        except AimError as err:
            if name:
                raise
            documents.append({"name": each, "error": str(err), "hint": err.hint})
        else:
            documents.append({"name": each, "deployment": deployment, "status": now})
    for document in documents if name else ():
        document["kpis"], document["kpis_error"] = _kpis(document["deployment"], document["status"])
    if as_json:
        output.data({"schema": "aim-engine/status/v1", "deployments": documents})
    elif name:
        for document in documents:
            _show_one(document)
    elif documents:
        output.table(None, ("name", "model", "target", "state", "endpoint", "since", "detail"), map(_row, documents))
    else:
        output.text("nothing is deployed")
        output.next_step("aim-engine up HuggingFaceTB/SmolLM2-135M-Instruct")
    bad = ("failed", "died", "stopped", "unresponsive")
    return 1 if name and any(document["status"].state in bad for document in documents) else 0


@click.command(epilog="Example: aim-engine logs smollm2-135m-instruct --lines 50")
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Show new lines as they come, until the engine ends.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True, help="Lines to begin with.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; not with --follow.")
def logs(name: str, follow: bool, lines: int, as_json: bool) -> None:
    """Show the log of the engine of NAME."""
    if follow and as_json:
        raise InvalidInput("--follow has no end and so no JSON document", hint="drop --json")
    settings = all_settings.load()
    store = Store(settings.state_dir)
    members = store.members(name)
    if len(members) > 1:
        raise InvalidInput(f"{name} has {len(members)} replicas", hint=f"name one of {', '.join(members)}")
    deployment = store.load(members[0])
    found = runner(deployment, store, settings).logs(deployment, lines=lines, follow=follow)
    if as_json:
        output.data({"schema": "aim-engine/log/v1", "name": name, "lines": list(found)})
        return
    for line in found:
        output.text(line)


@click.command(epilog="Example: aim-engine down smollm2-135m-instruct")
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Stop every deployment.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def down(name: str | None, everything: bool, yes: bool, as_json: bool) -> int:
    """Stop the deployment NAME, or all of them, and forget it with its log."""
    if bool(name) == everything:
        raise InvalidInput("say which deployment to stop", hint="aim-engine down NAME, or aim-engine down --all")
    settings = all_settings.load()
    store = Store(settings.state_dir)
    targets = store.names() if everything else store.members(str(name))
    if everything and targets and not yes:
        output.note(f"this stops {', '.join(targets)}")
        click.confirm("Go on?", abort=True, err=True)
    stopped, failed, gone = [], [], set()
    for each in targets:
        try:
            deployment = store.load(each)
            runner(deployment, store, settings).stop(deployment, output.note)
            store.remove(each)
            stopped.append(each)
            gone.add(deployment.group or each)
        except AimError as err:
            if not everything:
                raise
            output.error(err)
            failed.append(each)
    _end_alerts(gone, store, settings)
    if as_json:
        output.data({"schema": "aim-engine/down/v1", "stopped": stopped, "failed": failed})
    else:
        for each in stopped:
            output.text(f"{each} is down")
        if not targets:
            output.text("nothing is deployed")
    return 3 if failed else 0


def _end_alerts(gone: set[str], store: Store, settings: Settings) -> None:
    """No alert of what is gone may fire on; those who were told of it are told of its end."""
    if not gone or not (Path(settings.state_dir).expanduser() / "ledger.db").exists():
        return
    from aim_engine.cli import observed
    from aim_engine.monitor import notify, watch

    now_s = time.time()
    deployments = gone - {observed.group(store, each) for each in store.names()}
    try:
        ledger = observed.ledger(settings)
        try:
            told = notify.receivers(settings.notify_file) if settings.notify_file else ()
            for alert in watch.taken_down(ledger, deployments, told, now_s):
                output.note(f"{alert.deployment}: {alert.rule} is over")
            for why in notify.deliver(ledger, now_s)[1] if told else ():
                output.note(f"note: not delivered, the next monitor tries again: {why}")
        finally:
            ledger.close()
    except AimError as err:
        output.note(f"note: its alerts could not be ended: {err}")


def runner(deployment: Deployment, store: Store, settings: Settings) -> Runner:
    """The runner that looks after a deployment."""
    overlay = overlay_dir(settings)
    if deployment.target == "docker":
        from aim_engine.deploy.docker import DockerRunner

        return DockerRunner(store, overlay=overlay)
    if deployment.target == "kubernetes":
        from aim_engine.deploy.kubernetes import KubernetesRunner

        return KubernetesRunner(store, overlay=overlay)
    from aim_engine.deploy.local import LocalRunner

    return LocalRunner(store, overlay=overlay)


def _kpis(deployment: Deployment, now: Status) -> tuple[object, str | None]:
    if now.state != "ready":
        return None, None
    from aim_engine.monitor import report

    try:
        return report.watch_once(deployment.endpoint), None
    except AimError as err:
        return None, str(err)


def _row(document: dict[str, Any]) -> tuple[str, ...]:
    if "error" in document:
        return document["name"], "", "", "unreadable", "", "", document["error"]
    deployment, now = document["deployment"], document["status"]
    return (
        deployment.name,
        deployment.model_id,
        deployment.target,
        now.state,
        deployment.endpoint,
        deployment.created_at,
        now.detail,
    )


def _show_one(document: dict[str, Any]) -> None:
    deployment, now = document["deployment"], document["status"]
    facts = {
        "model": deployment.model_id,
        "served as": deployment.served_as,
        "target": deployment.target,
        "engine": f"{deployment.engine} {deployment.engine_version}",
        "state": now.state,
        "detail": now.detail,
        "endpoint": deployment.endpoint,
        "since": deployment.created_at,
        "ready after": None if deployment.ready_s is None else f"{deployment.ready_s:.0f} s",
        "image": deployment.image,
        "folder": deployment.folder,
    }
    output.table(deployment.name, ("", ""), [(key, str(value)) for key, value in facts.items() if value])
    if now.diagnosis is not None:
        output.text(f"likely cause: {now.diagnosis.cause}")
        if now.diagnosis.evidence:
            output.text(f"    {now.diagnosis.evidence}")
        output.text(f"remedy: {now.diagnosis.remedy}")
    if document["kpis"] is not None:
        from aim_engine.cli import kpi_table

        kpi_table.show(document["kpis"])
    elif document["kpis_error"]:
        output.note(f"note: no figures: {document['kpis_error']}")
