"""Examines a cache: does it hold what it says, in a place that keeps its promises, and is nothing left lying?"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import msgspec

from aim_engine.cache import approval, evict, layout, locks, pack, pieces, space, writeback
from aim_engine.errors import Unreachable
from aim_engine.units import format_bytes

if TYPE_CHECKING:
    from aim_engine.cache.manager import ModelCacheManager

_SKEW_S = 5.0
_KIND = {True: "files, which hold between nodes", False: "those of the kernel"}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    what: str
    fine: bool = True
    remedy: str = ""


def examine(manager: ModelCacheManager) -> tuple[Finding, ...]:
    """Look at everything but the content, which `verify` reads. Rebuilds the index. Raises: ForeignStore, Unreachable."""
    store, index = manager.store, manager.index
    if not store.exists:
        return (Finding(what=f"there is no cache at {store.root} yet"),)
    kind = locks.file_system(store.root) or "unknown"
    shared = locks.is_shared(store.root)
    found = [Finding(what=f"{store.root} is a store on {kind}; locks are {_KIND[shared]}")]
    try:
        found.append(_links(manager))
    except Unreachable as err:
        why = f" ({err.why})" if err.why else ""
        found.append(Finding(what=f"nothing can be written here{why}: models can be used, and none fetched or removed"))
    skew_s = abs(store.now_s() - time.time())
    found.append(
        Finding(
            what=f"its clock and this machine's differ by {skew_s:.1f} s",
            fine=skew_s < _SKEW_S,
            remedy="" if skew_s < _SKEW_S else "ages are taken from the store's clock; correct this machine's",
        )
    )
    unreadable = index.reconcile()
    found.extend(Finding(what=each, fine=False, remedy="fetch that model again") for each in unreadable)
    damaged = [blob.sha256 for blob in index.blobs().values() if not space.looks_right(store, blob)]
    index.rebuild()
    models, revisions, files, total = index.totals()
    found.append(Finding(what=f"{models} models, {revisions} revisions, {files} files, {format_bytes(total)}"))
    if damaged:
        found.append(
            Finding(
                what=f"{len(damaged)} files changed since they were proved",
                fine=False,
                remedy="aim-engine cache verify",
            )
        )
    missing = [
        f"{known.revision.model_id} {file.path}"
        for known in index.revisions()
        for file in known.revision.files
        if not store.blob(file.sha256).exists() and not pack.is_packed(store, file.sha256)
    ]
    if missing:
        found.append(
            Finding(what=f"{len(missing)} files are missing: {missing[0]}", fine=False, remedy="aim-engine cache pull")
        )
    for known in index.revisions():
        revision = known.revision
        refused = approval.unapproved(store, revision)
        if refused:
            found.append(
                Finding(
                    what=f"{refused[0]} of {revision.model_id}@{revision.commit[:12]} runs code, and nobody approved it",
                    fine=False,
                    remedy=f"read it, then: aim-engine cache approve {revision.model_id} {refused[0]}; or --drop it",
                )
            )
    loose = evict.orphans(store, index)
    if loose:
        found.append(
            Finding(
                what=f"{len(loose)} stored files belong to no model, {format_bytes(sum(loose.values()))}",
                remedy="aim-engine cache prune",
            )
        )
    left = pieces.abandoned(store)
    if left:
        found.append(
            Finding(what=f"{len(left)} files of interrupted downloads; the next pull of their model goes on there")
        )
    binned = sum(path.stat().st_size for path in evict.trash(store))
    if binned:
        found.append(Finding(what=f"{format_bytes(binned)} in the trash", remedy="aim-engine cache prune --trash"))
    for wish in writeback.pending(store):
        why = f": {wish.problem}" if wish.problem else ""
        found.append(
            Finding(
                what=f"{wish.model_id} waits to be written to {wish.place}{why}",
                fine=not wish.problem,
                remedy="aim-engine cache sync --pending",
            )
        )
    aside = list(store.path("quarantine").iterdir())
    if aside:
        found.append(
            Finding(
                what=f"{len(aside)} damaged files were set aside in {store.path('quarantine')}",
                remedy="look at them, then delete",
            )
        )
    return tuple(found)


def _links(manager: ModelCacheManager) -> Finding:
    """Can files have two names here? Without, every view is a copy."""
    place = manager.store.path("parts", f"probe.{secrets.token_hex(8)}")
    with layout.typed(place):
        layout.write(place, b"probe")
        second = place.with_suffix(".second")
        try:
            layout.link(place, second)
            linked = second.stat().st_ino == place.stat().st_ino
        finally:
            place.unlink(missing_ok=True)
            second.unlink(missing_ok=True)
    return Finding(
        what="files can have several names" if linked else "files cannot have several names: every view is a copy",
        fine=linked,
        remedy="" if linked else "choose a file system with hardlinks",
    )
