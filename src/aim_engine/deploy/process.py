"""Processes as the kernel shows them: which ones live, which belong together, how to end them all.

Standard library only and no package import beyond it: the supervisor of a deployment stays in memory beside the engine.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

_PROC = Path("/proc")
_STATE, _SESSION, _START = 0, 3, 19
"""Fields of /proc/PID/stat after the command name. Source: proc_pid_stat(5), fields 3, 6 and 22."""


def start_ticks(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None for a dead or defunct one."""
    fields = _stat(pid)
    return None if fields is None or fields[_STATE] in "ZX" else int(fields[_START])


def boot_id() -> str:
    """The random id of this boot, so that process numbers of an earlier one are not believed."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def all_ids() -> list[int]:
    """The numbers of all processes, ascending."""
    return sorted(int(entry) for entry in os.listdir(_PROC) if entry.isdigit())  # noqa: PTH208 - names only, thousands


def command_line(pid: int) -> str:
    """A process' command line; empty when it is gone or not ours to read."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def session_members(session: int) -> list[int]:
    """The living processes of a session, ascending."""
    members = []
    for pid in all_ids():
        fields = _stat(pid)
        if fields is not None and int(fields[_SESSION]) == session and fields[_STATE] not in "ZX":
            members.append(pid)
    return members


def end_session(session: int, *, grace_s: float, spare: int | None = None) -> list[int]:
    """End every process of a session but `spare`: SIGTERM, and after `grace_s` SIGKILL. Returns those that remain."""

    def members() -> list[int]:
        return [pid for pid in session_members(session) if pid != spare]

    for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for pid in members():
            send(pid, number)
        deadline = time.monotonic() + patience
        while members():
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        else:
            return []
    return members()


def shared_memory(pids: list[int]) -> set[Path]:
    """The POSIX shared memory segments of Python's multiprocessing that these processes have mapped."""
    found: set[Path] = set()
    for pid in pids:
        try:
            maps = (_PROC / str(pid) / "maps").read_text(errors="replace")
        except OSError:
            continue
        found.update(Path(name) for name in re.findall(r"(/dev/shm/psm_\w+)$", maps, re.MULTILINE))
    return found


def send(pid: int, number: int) -> bool:
    """Signal a process; False when it is already gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()
