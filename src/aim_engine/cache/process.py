"""Who is at work in a store: a process on a node, named so that others can tell whether it still lives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process, unique over nodes, restarts of nodes, containers and reused process ids."""

    node: str
    boot: str
    namespace: str
    pid: int
    started: str
    """Clock ticks after boot at which it started. Source: proc(5), field 22 of /proc/pid/stat."""


def me() -> Process:
    """This process."""
    return Process(
        node=os.uname().nodename,
        boot=_boot(),
        namespace=_namespace(),
        pid=os.getpid(),
        started=_started(os.getpid()) or "",
    )


def is_gone(process: Process) -> bool:
    """Is it certain that this process no longer runs? A process of another node or container may always still run."""
    if process.node != os.uname().nodename:
        return False
    if process.boot != _boot():
        return True
    if process.namespace != _namespace():
        return False
    return _started(process.pid) != process.started


def in_use(folder: Path) -> bool:
    """Has some process a file below this folder open or mapped, as far as this user may see?"""
    return bool(opened_below(folder))


def opened_below(folder: Path) -> set[str]:
    """First parts of the paths, relative to a folder, of files that some process has open or mapped."""
    prefix = str(folder.resolve()) + os.sep
    found: set[str] = set()
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names only
        if entry.isdigit():
            for path in _opened(Path("/proc", entry)):
                if path.startswith(prefix):
                    found.add(path.removeprefix(prefix).partition(os.sep)[0])
    return found


def _opened(process: Path) -> Iterator[str]:
    """Paths that a process has mapped or open; those of others may not be seen, and may vanish meanwhile."""
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            _, slash, path = line.partition("/")
            if slash:
                yield slash + path
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(link.readlink())


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]
