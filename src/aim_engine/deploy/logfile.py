"""Reading a log that grows: its end, and what comes next."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_BLOCK_BYTES = 64 * 1024


class Growing:
    """A log file read piece by piece. A file that does not exist yet is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""

    def new_lines(self) -> list[str]:
        """The whole lines written since the last call. A progress bar that overwrites itself gives its last state."""
        try:
            with self._path.open("rb") as handle:
                if handle.seek(0, os.SEEK_END) < self._position:  # replaced by a shorter file
                    self._position, self._rest = 0, b""
                handle.seek(self._position)
                content = handle.read()
        except FileNotFoundError:
            return []
        self._position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [_text(line) for line in lines]


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of a file, read from its end; none when it does not exist."""
    try:
        with path.open("rb") as handle:
            position = handle.seek(0, os.SEEK_END)
            content = b""
            while position > 0 and content.count(b"\n") <= lines:
                step = min(_BLOCK_BYTES, position)
                position -= step
                handle.seek(position)
                content = handle.read(step) + content
    except FileNotFoundError:
        return []
    return [_text(line) for line in content.removesuffix(b"\n").split(b"\n")][-lines:] if content and lines > 0 else []


def follow(path: Path, lines: int, goes_on: Callable[[], bool], *, pause_s: float = 0.3) -> Iterator[str]:
    """The last `lines` lines, then new ones until `goes_on` says that no more will come."""
    growing = Growing(path)
    shown = growing.new_lines()
    yield from shown[-lines:] if lines > 0 else ()
    while True:
        more = goes_on()
        yield from growing.new_lines()
        if not more:
            return
        time.sleep(pause_s)


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode("utf-8", "replace")
