"""Reads the store little by little, so that every file is held against its checksum once in a cycle, and silent decay is found.

Files are read in the order of their checksums, on from where the last run stopped: that place and what is due lie in the store, so that any process of any
node goes on there, and a lost index costs nothing. What is due grows with time, a whole store per cycle; a run that was cut short leaves the rest
to the next. One thread reads, and what it read leaves the page cache again unless somebody uses it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from aim_engine.cache import holds, layout, locks, pack, space
from aim_engine.errors import AimError
from aim_engine.units import format_bytes

if TYPE_CHECKING:
    from aim_engine.cache.layout import Store
    from aim_engine.cache.manager import ModelCacheManager

CYCLE_DAYS = 30.0
_DAY_S = 86_400.0
_FIRST_S = _DAY_S
"""The first run reads as if the one before had been a day ago."""
_NOTE_S = 2.0
_FILE = "scrub.json"


class State(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-scrub-state/v1"):
    """How far the store was read."""

    after: str
    """Checksum of the file that was read last."""
    paid_until: float
    """Up to this moment, by the store's clock, what was due was read."""


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is not what it was."""

    model_id: str
    commit: str
    path: str
    used_by: tuple[str, ...]
    """Deployments that serve its model."""
    mended: bool = False


class Scrubbed(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-scrub/v1"):
    """What one run read and found."""

    files: int
    read_bytes: int
    left_bytes: int
    """What is due and was not read."""
    damaged: tuple[Damage, ...]

    @property
    def fine(self) -> bool:
        """Is nothing damaged, or all of it mended?"""
        return all(each.mended for each in self.damaged)


def scrub(
    manager: ModelCacheManager,
    *,
    cycle_days: float = CYCLE_DAYS,
    most_s: float | None = None,
    mend: bool = False,
    stop: threading.Event | None = None,
    now_s: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Scrubbed:
    """Read what is due by `now_s`, the store's own clock if it is not given, for at most so long. Damage is set aside and told; with `mend` its model is fetched again.

    Raises: Unreachable (disk).
    """
    store, index = manager.store, manager.index
    nothing = Scrubbed(files=0, read_bytes=0, left_bytes=0, damaged=())
    lock = locks.attempt(store, "scrub") if store.exists else None
    if lock is None:
        tell("another process reads the store" if store.exists else "there is no cache yet")
        return nothing
    try:
        index.refresh()
        sizes = {sha256: blob.size_bytes for sha256, blob in index.blobs().items()}
        sizes |= {sha256: size for sha256, size in pack.sizes(store).items() if sha256 not in sizes}
        total = sum(sizes.values())
        now_s, cycle_s = now_s or store.now_s(), max(cycle_days, 1e-6) * _DAY_S
        state = _read(store) or State(after="", paid_until=now_s - min(_FIRST_S, cycle_s))
        paid_s = max(state.paid_until, now_s - cycle_s)
        due = total * max(0.0, now_s - paid_s) / cycle_s
        used = {sha256 for each in manager.candidates() if each.held for sha256 in each.content}
        began, noted_s, done, after, files = time.monotonic(), time.monotonic(), 0, state.after, 0
        found: list[Damage] = []
        ahead = sorted(sizes)
        ahead = [each for each in ahead if each > after] + [each for each in ahead if each <= after]
        for sha256 in ahead:
            over = most_s is not None and time.monotonic() - began >= most_s
            if done >= due or over or (stop is not None and stop.is_set()):
                break
            found += _prove(manager, sha256, keep=sha256 in used)
            done, after, files = done + sizes[sha256], sha256, files + 1
            if time.monotonic() - noted_s > _NOTE_S:
                noted_s = time.monotonic()
                _write(store, State(after=after, paid_until=paid_s + cycle_s * done / total))
        _write(store, State(after=after, paid_until=paid_s + cycle_s * done / max(1, total)))
    finally:
        lock.release()
    for each in found:
        serving = f", which {', '.join(each.used_by)} serves" if each.used_by else ""
        tell(f"{each.model_id}@{each.commit[:12]}{serving}: {each.path} is damaged and was set aside")
    if mend:
        found = _mend(manager, found, tell)
    index.count(scrubbed_bytes=done, damaged_files=len({(each.path, each.commit) for each in found}))
    return Scrubbed(files=files, read_bytes=done, left_bytes=max(0, int(due) - done), damaged=tuple(found))


def _prove(manager: ModelCacheManager, sha256: str, *, keep: bool) -> list[Damage]:
    """Read one content; every file that had it, when it is damaged."""
    store, index = manager.store, manager.index
    users = index.users(sha256)
    try:
        with store.blob(sha256).open("rb", buffering=0) as handle:
            fine = hashlib.file_digest(handle, "sha256").hexdigest() == sha256
            if not keep:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if fine:
            index.verified(sha256, store.now_s())
        else:
            space.quarantine(store, index, sha256)
    except FileNotFoundError:
        fine = not pack.is_packed(store, sha256) or pack.proves(store, sha256)
        if not fine:
            pack.set_aside(store, sha256)
    except OSError:  # the disk cannot read it any more
        fine = False
        space.quarantine(store, index, sha256)
    if fine:
        return []
    if not users:  # an image's manifest, which is known from elsewhere, or content of no model
        for known in index.revisions():
            index.write_documents(known.revision)
    leases = holds.leases(store)
    return [
        Damage(
            model_id=model_id,
            commit=commit,
            path=path,
            used_by=tuple(
                sorted({each.holder for each in leases if (each.model_id, each.commit) == (model_id, commit)})
            ),
        )
        for model_id, commit, path in users
    ]


def _mend(manager: ModelCacheManager, found: list[Damage], tell: Callable[[str], None]) -> list[Damage]:
    """Fetch what is damaged again: only those files move."""
    refs = {(each.revision.model_id, each.revision.commit): each.refs for each in manager.revisions()}
    mended = set()
    for model_id, commit in sorted({(each.model_id, each.commit) for each in found}):
        try:
            # By its commit: a branch may have moved on, and what is served must stay what it is.
            manager.download_model(model_id, revision=commit)
            mended.add((model_id, commit))
            tell(
                f"{model_id}@{commit[:12]} is whole again ({', '.join(refs.get((model_id, commit), ())) or 'no branch'})"
            )
        except AimError as err:
            tell(f"{model_id}@{commit[:12]} cannot be fetched again: {err}")
    return [msgspec.structs.replace(each, mended=(each.model_id, each.commit) in mended) for each in found]


def describe(done: Scrubbed) -> str:
    """One line for people."""
    left = f", {format_bytes(done.left_bytes)} more are due" if done.left_bytes else ""
    return f"{done.files} files read, {format_bytes(done.read_bytes)}{left}"


def _read(store: Store) -> State | None:
    try:
        return msgspec.json.decode(store.path(_FILE).read_bytes(), type=State)
    except (OSError, msgspec.DecodeError):
        return None


def _write(store: Store, state: State) -> None:
    with layout.typed(store.path(_FILE)):
        layout.write(store.path(_FILE), msgspec.json.encode(state))
