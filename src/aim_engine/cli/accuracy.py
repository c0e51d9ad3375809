"""`aim-engine accuracy`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cli import output
from aim_engine.errors import InvalidInput
from aim_engine.planner.accuracy import Accuracy, Errors

WORST = 8


@click.command(epilog="Example: aim-engine accuracy measured.csv")
@click.argument("table", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--models",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder of org__name.json configs for models that the catalogue lacks.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def accuracy(table: Path, folder: Path | None, as_json: bool) -> int:
    """Compare predictions with a table of measurements: errors, ranges, ranking, and what our choice would lose.

    The table has the columns that `estimate --batch` reads, and those of what was measured.
    """
    found = workflow.score_table(read(table), str(table), folder, all_settings.load({"offline": True}))
    if as_json:
        output.data(found)
    else:
        show(found)
    return 0


def read(path: Path) -> str:
    """The text of a table, `-` being standard input. Raises: InvalidInput."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8", errors="replace")
    except OSError as err:
        raise InvalidInput(f"{path} cannot be read", why=err.strerror) from err


def show(found: Accuracy) -> None:
    """The comparison for a person."""
    output.heading(f"{found.answered} of {found.rows} rows compared")
    columns = ("metric", "rows", "median", "mean", "90 %", "bias", "in range")
    output.table(
        "error of predictions",
        columns,
        [_line(name, errors) for name, errors in found.metrics.items()],
        right=columns[1:],
    )
    for group, by_value in found.groups.items():
        worst = sorted(by_value.items(), key=lambda item: -item[1].count)[:WORST]
        if worst:
            output.table(
                f"time per output token by {group}",
                (group, *columns[1:]),
                [_line(name, errors) for name, errors in worst],
                right=columns[1:],
            )
    for name, ranking in found.ranking.items():
        if ranking.pairs:
            output.text(f"order by {name}: {ranking.right_fraction:.1%} of {ranking.pairs} pairs right")
    if found.regret is not None:
        output.text(
            f"our choice loses {found.regret.mean:.1%} on average and {found.regret.p95:.1%} at the 95th percentile "
            f"over {found.regret.sets} sets; it is the best in {found.regret.best_chosen_fraction:.0%}"
        )
    for reason, count in list(found.unanswered.items())[:WORST]:
        output.text(f"{count} rows: {reason}")


def _line(name: str, errors: Errors) -> tuple[str, ...]:
    shares = (errors.median, errors.mean, errors.p90)
    return (
        name,
        f"{errors.count:,}",
        *(f"{share:.1%}" for share in shares),
        f"{errors.bias:+.1%}",
        f"{errors.covered_fraction:.0%}",
    )
