"""All printing: data on stdout, everything else on stderr, colour only for a terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from aim_engine.errors import AimError, EngineFailed

if TYPE_CHECKING:
    from rich.console import Console

NEXT_STEP_WIDTH = 100


def data(document: object) -> None:
    """One JSON document on stdout, stable key order."""
    encoded = msgspec.json.encode(document, order="deterministic")
    sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")


def text(line: str = "") -> None:
    """One line of data on stdout."""
    sys.stdout.write(line + "\n")


def fresh_page() -> None:
    """Begin a page that replaces the last one: a cleared terminal, an empty line elsewhere."""
    sys.stdout.write("\x1b[2J\x1b[H" if sys.stdout.isatty() else "\n")


def flush() -> None:
    """Hand on what was written so far, to readers that follow along."""
    sys.stdout.flush()


def note(line: str) -> None:
    """Progress or advice on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def next_step(command: str) -> None:
    """The likely next command, on stderr, for a terminal only."""
    if sys.stderr.isatty():
        note(f"\nnext: {command}")


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table on stdout. `right` names the columns that align right."""
    from rich import box
    from rich.table import Table

    grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_escape(cell) for cell in row))
    console().print(grid)


def heading(line: str) -> None:
    """A bold line on stdout."""
    console().print(line, style="bold", highlight=False, markup=False)


def console(stream: TextIO | None = None) -> Console:
    """A rich console on stdout: plain and 120 wide when piped or under NO_COLOR."""
    from rich.console import Console

    stream = stream or sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        no_color="NO_COLOR" in os.environ or not terminal,
        width=None if terminal else 120,
        highlight=False,
        soft_wrap=not terminal,
    )


def error(err: AimError) -> None:
    """What, why and what next, on stderr."""
    lines = [f"error: {err.what}"]
    if err.why:
        lines.append(f"  why: {err.why}")
    if isinstance(err, EngineFailed) and err.log_tail:
        lines.append("  last lines of its log:")
        lines.extend(f"    {line}" for line in err.log_tail)
    if err.hint:
        lines.extend(("", f"hint: {err.hint}"))
    note("\n".join(lines))


def bug(err: Exception, argv: list[str]) -> None:
    """An unexpected exception: said to be ours."""
    note(f"error: this is a bug in aim-engine: {type(err).__name__}: {err}")
    note(f"\nhint: run it again as `aim-engine --debug {' '.join(argv)}` and report the stack trace")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(document)


def configure_logging(*, debug: bool, log_format: str | None) -> None:
    """Logs to stderr: warnings, or everything with --debug."""
    from aim_engine import settings

    chosen = log_format or os.environ.get(settings.PREFIX + "LOG_FORMAT", "text")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if chosen == "json" else logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger("aim_engine")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.WARNING)


def _escape(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)
