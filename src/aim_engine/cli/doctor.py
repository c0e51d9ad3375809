"""`aim-engine doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cache import hub
from aim_engine.cli import output
from aim_engine.doctor import host as hosts
from aim_engine.doctor.examine import examine
from aim_engine.doctor.report import Diagnosis
from aim_engine.hardware import recording


@click.command(epilog="Example: aim-engine doctor --json")
@click.option(
    "--root", type=click.Path(path_type=Path), help="A recorded tree (folder or tar) instead of this machine."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def doctor(root: Path | None, as_json: bool) -> int:
    """Say what is wrong with this host, what it costs, and which command mends it.

    Changes nothing. Exits 1 when something will break serving.
    """
    settings = all_settings.load()
    with recording.opened(root or Path(settings.sysfs_root)) as folder:
        facts = hosts.read(
            folder,
            overlay=workflow.overlay_dir(settings),
            cache_dir=hub.default_cache_dir() if root is None else None,
            name=None if root is None else root.name.removesuffix(".gz").removesuffix(".tar"),
        )
    diagnosis = examine(facts)
    if as_json:
        output.data(diagnosis)
    else:
        _show(diagnosis)
    if root is None and not diagnosis.breaks_serving:
        output.next_step("aim-engine plan Qwen/Qwen3-32B")
    return int(diagnosis.breaks_serving)


def _show(diagnosis: Diagnosis) -> None:
    software = [
        f"{name} {version}"
        for name, version in (("Linux", diagnosis.kernel), ("amdgpu", diagnosis.driver), ("ROCm", diagnosis.rocm))
        if version
    ]
    output.heading(f"{diagnosis.host}: {', '.join([diagnosis.hardware, *software])}")
    if diagnosis.problems:
        output.table(
            None,
            ("", "check", "found", "evidence"),
            [(each.severity, each.id, each.message, each.evidence) for each in diagnosis.problems],
        )
    for each in diagnosis.problems:
        output.text(f"{each.id}: {each.effect}" if each.effect else each.id)
        for line in each.fix:
            output.text(f"    {line}")
    if diagnosis.problems:
        output.text()
    counts = [
        f"{count} {severity if severity == 'info' else severity + 's' * (count != 1)}"
        for severity in ("error", "warning", "info")
        if (count := sum(each.severity == severity for each in diagnosis.problems))
    ]
    checked = f"{len(diagnosis.fine)} checks are fine, {len(diagnosis.not_applicable)} do not apply here"
    output.text(f"{', '.join(counts) or 'nothing wrong was found'}; {checked}")
    if diagnosis.unknown:
        output.text(f"{len(diagnosis.unknown)} could not be told:")
    for question in diagnosis.unknown:
        output.text(f"  {question.id} {question.asks} {question.why}")
