"""`aim-engine settings`."""

from __future__ import annotations

import click

from aim_engine import settings as values
from aim_engine.cli import output


@click.command(epilog="Example: aim-engine settings --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def settings(as_json: bool) -> None:
    """Show every setting, its value and where the value comes from."""
    origins = values.resolve()
    if as_json:
        output.data({"schema": "aim-engine/settings/v1", "file": str(values.file_path()), "settings": origins})
        return
    output.table(None, ("setting", "value", "from"), [(o.name, str(o.value), o.origin) for o in origins])
    output.next_step(f"edit {values.file_path()} or set {values.PREFIX}<NAME>")
