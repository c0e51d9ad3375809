"""`aim-engine calibrate`."""

from __future__ import annotations

from pathlib import Path

import click

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cli import output
from aim_engine.cli.accuracy import read
from aim_engine.planner.own import Calibrated, Change

SHOWN = 10


@click.command(epilog="Example: aim-engine calibrate measured.csv")
@click.argument("table", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--models",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder of org__name.json configs for models that the catalogue lacks.",
)
@click.option("--dry-run", is_flag=True, help="Show what would change, keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def calibrate(table: Path, folder: Path | None, dry_run: bool, as_json: bool) -> int:
    """Correct predictions by measurements of your own; a handful is enough.

    The table has the columns that `estimate --batch` reads, and those of what was measured. It replaces what was kept before; keep
    one table and add to it. Predictions of what is like the measurements follow them, the others stay as they are.
    """
    settings = all_settings.load({"offline": True})
    found = workflow.calibrate(read(table), str(table), folder, settings)
    path = workflow.measured(settings)
    kept = bool(found.used) and not dry_run
    if kept:
        workflow.keep_measured(found.local, settings)
    if as_json:
        output.data(found)
    else:
        show(found, path if kept else None)
    return 0 if found.used else 1


def show(found: Calibrated, path: Path | None) -> None:
    """The change for a person."""
    output.heading(f"{found.used} measurements used, {len(found.dropped)} not")
    changes = [("time per output token", found.tpot), ("time to first token", found.ttft)]
    rows = [_line(name, change) for name, change in changes if change is not None]
    if rows:
        columns = ("median error", "rows", "before", "after")
        output.table("each measurement predicted from the others", columns, rows, right=columns[1:])
    for dropped in found.dropped[:SHOWN]:
        output.text(f"row {dropped.row_id} not used: {dropped.reason}")
    if len(found.dropped) > SHOWN:
        output.text(f"and {len(found.dropped) - SHOWN} more; --json lists them all")
    if path is not None:
        output.text(f"kept in {path}; remove that file to go back")


def _line(name: str, change: Change) -> tuple[str, ...]:
    return name, f"{change.count:,}", f"{change.before:.1%}", f"{change.after:.1%}"
