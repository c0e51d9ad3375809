"""Locks that keep two processes, or two nodes on a shared file system, from doing the same work twice.

They save work; no content depends on them, since everything is written under a name of its own and published at once.
On a network file system the kernel's locks may not reach other nodes, so a protocol over plain files is used there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aim_engine.cache.layout import Store, typed

if TYPE_CHECKING:
    from filelock import BaseFileLock

_SHARED = (
    "nfs",
    "lustre",
    "ceph",
    "gpfs",
    "beegfs",
    "afs",
    "9p",
    "fuse",
    "glusterfs",
    "ocfs2",
    "gfs2",
    "wekafs",
    "virtiofs",
)
"""Types of file systems that several nodes may mount; cifs is not among them, its kernel locks are the server's."""
_POLL_S = 0.1


def is_shared(place: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """May another node write there too, as far as the type of its file system says?"""
    return is_shared_type(file_system(place, mounts))


def is_shared_type(kind: str) -> bool:
    """May several nodes mount file systems of this type at once, each with locks of its own?"""
    return kind.startswith(_SHARED)


def file_system(place: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds a path, such as ext4 or nfs4; empty when it cannot be told.

    Source: proc(5), /proc/pid/mountinfo: field 5 is the mount point, the type follows the hyphen.
    """
    best, found = "", ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    resolved = str(place.resolve())
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = fields[4].replace("\\040", " ")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, found = point, right.split()[0]
    return found


def attempt(store: Store, name: str) -> BaseFileLock | None:
    """The lock of this name, held; None when somebody else holds it. The caller releases it. Raises: Unreachable."""
    import filelock

    lock = _lock(store, name)
    with typed(store.path("locks")):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return None
    return lock


@contextmanager
def held(store: Store, name: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock; `waiting` is told once when another has it. Raises: Unreachable."""
    lock = attempt(store, name)
    if lock is None and waiting is not None:
        waiting()
    while lock is None:
        time.sleep(_POLL_S)
        lock = attempt(store, name)
    try:
        yield
    finally:
        lock.release()


def unlock(store: Store, name: str, *, force: bool = False) -> str | None:
    """Who holds a lock of a shared file system, and with `force` no longer does; None when nobody.

    A node that died holds its locks for ever: only a person can know that it will not come back.
    """
    import filelock

    lock = filelock.StrictSoftFileLock(store.path("locks", f"{name}.strict"))
    claims = lock.claims
    for claim in claims if force else ():
        with contextlib.suppress(FileNotFoundError):
            lock.force_break(claim.name)
    return "; ".join(f"process {claim.pid} on {claim.hostname}" for claim in claims) or None


def _lock(store: Store, name: str) -> BaseFileLock:
    import filelock

    if is_shared(store.root):
        return filelock.StrictSoftFileLock(store.path("locks", f"{name}.strict"), thread_local=False)
    return filelock.FileLock(store.path("locks", name), thread_local=False)
