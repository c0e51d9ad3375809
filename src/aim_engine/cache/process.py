"""Who is at work in a store: a process on a node, named so that others can tell whether it still lives."""

from __future__ import annotations

import os
import socket
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
        node=socket.gethostname(),
        boot=_boot(),
        namespace=_namespace(),
        pid=os.getpid(),
        started=_started(os.getpid()) or "",
    )


def is_gone(process: Process) -> bool:
    """Is it certain that this process no longer runs? A process of another node or container may always still run."""
    if process.node != socket.gethostname():
        return False
    if process.boot != _boot():
        return True
    if process.namespace != _namespace():
        return False
    return _started(process.pid) != process.started


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
