"""What was fetched goes on to a nearer place, so that the next node need not ask afar: a shared folder or an object store that the settings name.

What waits for that is a file each in the store's `outbox`, so it outlives every process, and any node that shares the store may carry it out. Files that
went there are noted as they do; the next attempt goes on after them. One process of a store writes at a time, at the pace of what is done ahead of
need: behind every download.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aim_engine.cache import holds, layout, locks, sources, sync
from aim_engine.cache.folder import Folder
from aim_engine.cache.objects import Objects
from aim_engine.errors import AimError, InvalidInput

if TYPE_CHECKING:
    from aim_engine.cache.acquire import Plan
    from aim_engine.cache.layout import Store
    from aim_engine.cache.manager import ModelCacheManager
    from aim_engine.cache.pace import Pace

_FOLDER = "outbox"


class Pending(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-pending/v1"):
    """A revision that waits to be written to a place."""

    model_id: str
    commit: str
    ref: str
    place: str
    since: float
    written: dict[str, str] = {}
    """Path -> sha256 of what is there already."""
    attempts: int = 0
    problem: str = ""
    """Why the last attempt failed."""


def require_place(text: str) -> None:
    """Can models be written there? Raises: InvalidInput."""
    if not isinstance(sources.parse(text), (Objects, Folder)):
        raise InvalidInput(f"nothing can be written to {text}", hint="s3://BUCKET/PATH, gs://, az://, or a folder")


def queue(store: Store, plan: Plan, place: str) -> bool:
    """Note that what a plan fetched is to be written to a place; False when it should not be. Raises: InvalidInput, Unreachable.

    What came from there stays there. A commit or tag that was asked for would replace the newest version, unless the place has `{revision}` in it.
    """
    require_place(place)
    if plan.origin == place or (plan.revision != "main" and "{revision}" not in place):
        return False
    wish = Pending(model_id=plan.model_id, commit=plan.commit, ref=plan.revision, place=place, since=store.now_s())
    with layout.typed(store.path(_FOLDER)):
        with layout.inside(store.root, _FOLDER, create=True):
            pass
        for older in pending(store):  # a branch that moved on meanwhile
            if (older.model_id, older.ref, older.place) == (wish.model_id, wish.ref, wish.place):
                _path(store, older).unlink(missing_ok=True)
        layout.write(_path(store, wish), msgspec.json.encode(wish))
    return True


def pending(store: Store) -> tuple[Pending, ...]:
    """What waits, oldest first."""
    found = []
    for path in store.path(_FOLDER).glob("*.json"):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Pending))
    return tuple(sorted(found, key=lambda each: (each.since, each.model_id, each.commit)))


def drain(
    manager: ModelCacheManager,
    tell: Callable[[str], None] = lambda _: None,
    *,
    pace: Pace | None = None,
    stop: threading.Event | None = None,
) -> tuple[sync.Synced, ...]:
    """Write what waits, one revision after the other. What fails is told, and waits for the next attempt. Raises: Unreachable (disk)."""
    store = manager.store
    if not store.exists or not pending(store):
        return ()
    lock = locks.attempt(store, _FOLDER)
    if lock is None:
        tell("another process writes back")
        return ()
    done = []
    try:
        for wish in pending(store):
            if stop is not None and stop.is_set():
                break
            written = _carry_out(manager, wish, tell, pace)
            if written is not None:
                done.append(written)
    finally:
        lock.release()
    return tuple(done)


def _carry_out(
    manager: ModelCacheManager, wish: Pending, tell: Callable[[str], None], pace: Pace | None
) -> sync.Synced | None:
    from aim_engine.cache import ahead

    store, path = manager.store, _path(manager.store, wish)
    manager.index.refresh()
    revision = manager.index.revision(wish.model_id, wish.commit)
    if revision is None:
        tell(f"{wish.model_id}@{wish.commit[:12]} is not here any more; it is not written to {wish.place}")
        path.unlink(missing_ok=True)
        return None
    there = dict(wish.written)

    def noted(file: str, sha256: str) -> None:
        there[file] = sha256
        _note(path, msgspec.structs.replace(wish, written=there))

    try:
        with holds.held(store, wish.model_id, wish.commit, f"writing it to {wish.place}"):
            written = sync.write_revision(
                manager, revision, wish.place, tell, ref=wish.ref, there=wish.written, noted=noted,
                pace=pace or ahead.background_pace(manager),
            )  # fmt: skip
    except AimError as err:
        tell(f"{wish.model_id} waits to be written to {wish.place}: {err}")
        _note(path, msgspec.structs.replace(wish, written=there, attempts=wish.attempts + 1, problem=str(err)[:300]))
        return None
    path.unlink(missing_ok=True)
    manager.index.count(written_back_bytes=written.written_bytes)
    return written


def _note(path: Path, wish: Pending) -> None:
    with layout.typed(path):
        layout.write(path, msgspec.json.encode(wish))


def _path(store: Store, wish: Pending) -> Path:
    named = hashlib.sha256(f"{wish.model_id} {wish.commit} {wish.ref} {wish.place}".encode()).hexdigest()[:32]
    return store.path(_FOLDER, f"{named}.json")
