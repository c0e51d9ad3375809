"""Is a model really there: all of its files, each looking as it did when it was proved?

Looking costs no reading: size, time and inode tell a file that was rewritten or cut short. What looks different is read, and set aside
when it is. `verify` reads everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aim_engine.cache import evict, holds, names, pack, space, views
from aim_engine.cache.faults import Damaged
from aim_engine.cache.index import Index
from aim_engine.cache.layout import Store
from aim_engine.cache.manifest import Revision
from aim_engine.units import format_bytes

Tell = Callable[[str], None]


def find(
    store: Store,
    index: Index,
    model_id: str,
    revision: str,
    *,
    packed: bool = False,
    limit_bytes: int | None = None,
    tell: Tell = lambda _: None,
) -> Revision | None:
    """A revision that is whole and looks as it did when it was proved; None otherwise. What does not, is set aside.

    What is packed is unpacked, unless it may stay `packed`. Raises: InvalidInput, NoSpace.
    """
    if not store.exists:
        return None
    commit = views.ref(store, model_id, names.require_revision(revision))
    if commit is None:
        return None
    index.refresh()
    found = index.revision(model_id, commit)
    if found is not None and not packed:
        _thaw(store, index, found, limit_bytes, tell)
    if found is None or not is_right(store, index, found, tell):
        return None
    if packed and any(pack.is_packed(store, file.sha256) for file in found.files):
        return found
    place = views.snapshot(store, model_id, commit)
    if not all((place / file.path).exists() for file in found.files):
        try:
            views.make(store, found)
        except OSError:
            return None
    return found


def is_right(store: Store, index: Index, revision: Revision, tell: Tell = lambda _: None) -> bool:
    """Does every file of a revision look as it did when it was proved? What does not is read, and set aside if it is damaged."""
    blobs = index.blobs(file.sha256 for file in revision.files)
    right = True
    for file in revision.files:
        blob = blobs.get(file.sha256)
        if blob is not None and (space.looks_right(store, blob) or _is_still_right(store, index, file.sha256)):
            continue
        if blob is None and pack.is_packed(store, file.sha256):
            continue
        right = False
        if blob is not None and store.blob(file.sha256).exists():
            users = space.quarantine(store, index, file.sha256)
            named = sorted({f"{model_id} {path}" for model_id, _, path in users})
            tell(f"damaged content set aside: {', '.join(named)}")
    return right


def verify(
    store: Store, index: Index, revisions: Iterable[Revision], *, proved_after_s: float | None = None
) -> tuple[tuple[str, str, str], ...]:
    """Read every file of the revisions against its checksum: model, commit and path of what is damaged, and set aside, or missing.

    What several revisions have is read once. What was proved after `proved_after_s` and looks as it did then is not read again.
    """
    known = index.blobs() if proved_after_s is not None else {}
    fine: dict[str, bool] = {}
    damaged: list[tuple[str, str, str]] = []
    for revision in revisions:
        for file in revision.files:
            if file.sha256 not in fine:
                blob = known.get(file.sha256)
                lately = blob is not None and (blob.verified_at or 0.0) > (proved_after_s or 0.0)
                if blob is not None and lately and space.looks_right(store, blob):
                    fine[file.sha256] = True
                elif store.blob(file.sha256).exists():
                    fine[file.sha256] = space.verify(store, index, file.sha256)
                else:
                    fine[file.sha256] = pack.is_packed(store, file.sha256) and pack.proves(store, file.sha256)
            if not fine[file.sha256]:
                damaged.append((revision.model_id, revision.commit, file.path))
    return tuple(sorted(damaged))


def _thaw(store: Store, index: Index, revision: Revision, limit_bytes: int | None, tell: Tell) -> None:
    """Unpack what a revision has packed. Damage shows as missing content, which a download brings again."""
    frozen = {f.sha256: f.size_bytes for f in revision.files if pack.is_packed(store, f.sha256)}
    if not frozen:
        return
    tell(f"unpacking {revision.model_id}: {len(frozen)} files, {format_bytes(sum(frozen.values()))}")
    with holds.held(store, revision.model_id, revision.commit, "unpacking", tuple(frozen)):
        needed = sum(frozen.values()) - sum(pack.sizes(store).get(sha256, 0) for sha256 in frozen)
        evict.make_room(store, index, needed, revision.model_id, limit_bytes=limit_bytes)
        try:
            pack.thaw(store, index, revision)
        except Damaged as err:
            tell(str(err))


def _is_still_right(store: Store, index: Index, sha256: str) -> bool:
    """Read content that looks different; a touched file is right again, a changed one is not."""
    try:
        if space.digest(store.blob(sha256)) != sha256:
            return False
        index.verified(sha256, store.now_s())
    except OSError:
        return False
    return True
