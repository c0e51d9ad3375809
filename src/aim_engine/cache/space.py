"""What is in the store and whether it may stay: damage, room on the disk, and the way out through the trash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from pathlib import Path

from aim_engine.cache import layout, views
from aim_engine.cache.content import Blob, fingerprint
from aim_engine.cache.faults import Damaged
from aim_engine.cache.index import Index
from aim_engine.cache.layout import Store
from aim_engine.units import GIB

_READ_BYTES = 4 << 20


def reserve_bytes(place: Path) -> int:
    """What downloads leave free on a disk: 5 % or 10 GiB, whichever is more, but at most a tenth of a small disk."""
    while not place.exists():
        place = place.parent
    total = shutil.disk_usage(place).total
    return min(max(total // 20, 10 * GIB), total // 10)


def looks_right(store: Store, blob: Blob) -> bool:
    """Does stored content look as it did when it was proved? Finds truncation and rewriting, not silent decay: see `digest`."""
    try:
        return fingerprint(store.blob(blob.sha256).lstat()) == blob.fingerprint
    except OSError:
        return False


def digest(path: Path) -> str:
    """The sha256 of a file's content. Raises: OSError."""
    with path.open("rb", buffering=0) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def git_oid(path: Path) -> str:
    """Git's name for a file's content: SHA-1 over a header and the content. Raises: OSError."""
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb", buffering=0) as handle:
        while content := handle.read(_READ_BYTES):
            found.update(content)
    return found.hexdigest()


def quarantine(store: Store, index: Index, sha256: str) -> tuple[tuple[str, str, str], ...]:
    """Set damaged content aside, out of every view, and say which files (model, commit, path) had it. Raises: Unreachable."""
    users = index.users(sha256)
    with layout.typed(store.blob(sha256)):
        with contextlib.suppress(FileNotFoundError):
            store.blob(sha256).rename(store.path("quarantine", f"{sha256}.{secrets.token_hex(4)}"))
        for model_id, commit, path in users:
            for view in (views.snapshot(store, model_id, commit), views.flat(store, model_id, commit)):
                (view / path).unlink(missing_ok=True)
    index.forget(sha256)
    return users


def discard(store: Store, index: Index, sha256: str) -> None:
    """Move content to the trash, from where it comes back at no cost until it is emptied. Raises: Unreachable."""
    with layout.typed(store.blob(sha256)):
        store.blob(sha256).rename(store.path("trash", f"{int(store.now_s())}-{sha256}"))
    index.forget(sha256)


def restore(store: Store, index: Index, sha256: str) -> None:
    """Take content back out of the trash, proving it. Raises: FileNotFoundError when it is not there."""
    for path in sorted(store.path("trash").glob(f"*-{sha256}"), reverse=True):
        if digest(path) != sha256:
            path.rename(store.path("quarantine", f"{sha256}.{secrets.token_hex(4)}"))
            continue
        try:
            os.link(path, store.blob(sha256), follow_symlinks=False)
        except FileExistsError:
            pass
        except OSError:
            path.rename(store.blob(sha256))
        path.unlink(missing_ok=True)
        index.verified(sha256, store.now_s())
        return
    raise FileNotFoundError(sha256)


def verify(store: Store, index: Index, sha256: str) -> bool:
    """Compare stored content with its checksum; what is wrong is set aside. Raises: Damaged when it cannot be read."""
    try:
        found = digest(store.blob(sha256))
    except OSError as err:
        raise Damaged(f"{store.blob(sha256)} cannot be read", why=err.strerror) from err
    if found == sha256:
        index.verified(sha256, store.now_s())
        return True
    quarantine(store, index, sha256)
    return False
