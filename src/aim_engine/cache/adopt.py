"""Takes over what other tools, and earlier versions of this one, fetched into a hub cache: by name, not by copy.

The hub's client checks sizes only, so content is hashed once before it counts. The hub cache stays as it was.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path

from aim_engine.cache import acquire, approval, hub, names, safety, space
from aim_engine.cache.content import fingerprint
from aim_engine.cache.index import Index
from aim_engine.cache.layout import Store, typed
from aim_engine.cache.manifest import Revision, StoredFile
from aim_engine.units import format_bytes


def snapshot(
    store: Store,
    index: Index,
    hub_cache: Path,
    model_id: str,
    revision: str,
    *,
    approved: Collection[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Revision | None:
    """Adopt a model from a hub cache on the same file system; None when it is not whole there, is damaged, or lies elsewhere.

    What is damaged is told, and left for a download to replace. Raises: Unreachable.
    """
    folder = hub.cached(model_id, hub_cache, revision)
    if folder is None or not names.COMMIT.fullmatch(folder.name):
        return None
    repository = (hub_cache / names.folder(model_id)).resolve()
    found = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    approved = {*approved, *approval.checksums(approval.of(store, model_id))}
    chosen = [file.path for file in hub.choose_files(hub.File(path, None) for path in found)]
    chosen += [path for path in found if safety.is_code(path) and space.digest(folder / path) in approved]
    names.require_paths(chosen)
    store.ensure()
    total = sum((folder / path).stat().st_size for path in chosen)
    tell(f"checking {model_id} in the hub cache {hub_cache}: {len(chosen)} files, {format_bytes(total)}")
    files: list[StoredFile] = []
    damaged = False
    for path in chosen:
        real = (folder / path).resolve()
        if not real.is_relative_to(repository) and not real.is_relative_to(hub_cache.resolve()):
            tell(f"{path} of {model_id} leads out of the hub cache and is not taken")
            return None
        if not _as_named(real):
            tell(f"{path} of {model_id} is damaged in the hub cache: {real} has another checksum than its name")
            damaged = True
            continue
        digest = _link(store, index, real)
        if digest is None:
            return None
        if safety.runs_code(path) and digest not in approved:
            continue
        safety.require_sound(store.blob(digest), path)
        files.append(StoredFile(path=path, sha256=digest, size_bytes=real.stat().st_size))
    if damaged or not any(hub.is_weight(file.path) for file in files):
        return None
    adopted = Revision(model_id=model_id, commit=folder.name, files=tuple(files), source=f"{hub.ENDPOINT}/{model_id}")
    acquire.show(store, index, adopted, revision)
    index.count(adopted_bytes=total)
    return adopted


def _as_named(real: Path) -> bool:
    """Has a file of the hub cache the checksum that it is named by: sha256, or git's for small files? Copies have no such name."""
    if names.COMMIT.fullmatch(real.name):
        return space.git_oid(real) == real.name
    return not names.is_sha256(real.name) or space.digest(real) == real.name


def _link(store: Store, index: Index, real: Path) -> str | None:
    """Give a file's content a second name in the store; None where that takes a copy. A name that is a sha256 was just proved."""
    with typed(real):
        before = real.stat()
        if not stat.S_ISREG(before.st_mode) or before.st_dev != store.root.stat().st_dev:
            return None
        digest = real.name if names.is_sha256(real.name) else space.digest(real)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(real, store.blob(digest), follow_symlinks=False)
        except OSError:  # no hardlinks here
            return None
        if fingerprint(real.stat()) != fingerprint(before):
            return None
        index.verified(digest, store.now_s())
    return digest
