"""What an engine's own argument parser says against a command line; runs inside any environment that has Python alone."""

from __future__ import annotations

import argparse
import contextlib
import io


def complaint(parser: argparse.ArgumentParser, line: list[str]) -> str | None:
    """What the parser says against a command line; None when it takes it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(line)
    except SystemExit:
        return said.getvalue().strip()
    return None
