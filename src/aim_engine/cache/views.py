"""The stored files under the names that engines look for: as the hub's own cache lays them out, and as one plain folder.

A view costs names, not bytes: its files are hardlinks to the store's content, so two servers share one page cache. It appears
whole or not at all, and a branch names a commit only after the commit's files are there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from aim_engine.cache import layout, names
from aim_engine.cache.layout import Store, typed
from aim_engine.cache.manifest import Revision, StoredFile

_FLAT_COMMIT = 12


def hub_folder(store: Store, model_id: str) -> Path:
    """The model's folder in the hub-shaped view. Raises: InvalidInput."""
    return store.path("views", "hf", names.folder(model_id))


def snapshot(store: Store, model_id: str, commit: str) -> Path:
    """The folder of a revision in the hub-shaped view."""
    return hub_folder(store, model_id) / "snapshots" / commit


def flat(store: Store, model_id: str, commit: str) -> Path:
    """The folder of a revision under a readable name."""
    return store.path("views", "flat", f"{model_id.replace('/', '--')}@{commit[:_FLAT_COMMIT]}")


def make(store: Store, revision: Revision) -> Path:
    """Show a revision in both views and return the hub-shaped one. Files that are already right stay as they are.

    Raises: FileNotFoundError naming the content that is gone, Unreachable.
    """
    place = snapshot(store, revision.model_id, revision.commit)
    for target in (place, flat(store, revision.model_id, revision.commit)):
        parts = target.relative_to(store.root).parts
        if target.is_symlink():
            target.unlink()
        if target.is_dir():
            for file in revision.files:
                _put(store, parts, file)
            _drop_strangers(target, revision)
            continue
        temporary = (*parts[:-1], f".{parts[-1]}.{secrets.token_hex(8)}")
        try:
            with layout.inside(store.root, *temporary, create=True):
                pass
            for file in revision.files:
                _put(store, temporary, file)
            with contextlib.suppress(FileExistsError, OSError):  # another process made it: equal content
                store.path(*temporary).rename(target)
            layout.sync_folder(target.parent)
        finally:
            _clear(store.path(*temporary))
    return place


def hide(store: Store, model_id: str, commit: str) -> None:
    """Take a revision's files out of both views; its branches stay. Raises: Unreachable."""
    with typed(hub_folder(store, model_id)):
        for target in (snapshot(store, model_id, commit), flat(store, model_id, commit)):
            doomed = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
            with contextlib.suppress(FileNotFoundError):
                target.rename(doomed)
                _clear(doomed)


def remove(store: Store, model_id: str, commit: str) -> None:
    """Take a revision out of both views, and the model's folder when it was the last. Raises: Unreachable."""
    hide(store, model_id, commit)
    with typed(hub_folder(store, model_id)):
        for ref, named in refs(store, model_id).items():
            if named == commit:
                (hub_folder(store, model_id) / "refs" / ref).unlink(missing_ok=True)
        snapshots = hub_folder(store, model_id) / "snapshots"
        if snapshots.is_dir() and not any(snapshots.iterdir()):
            _clear(hub_folder(store, model_id))


def set_ref(store: Store, model_id: str, ref: str, commit: str) -> None:
    """Let a branch or tag name a commit, at once. Raises: Unreachable."""
    if names.COMMIT.fullmatch(ref):
        return
    place = hub_folder(store, model_id) / "refs" / ref
    with typed(place):
        with layout.inside(store.root, *place.parent.relative_to(store.root).parts, create=True):
            pass
        layout.write(place, commit.encode())


def ref(store: Store, model_id: str, name: str) -> str | None:
    """The commit that a branch or tag named when it was last asked for; None when it never was."""
    if names.COMMIT.fullmatch(name):
        return name
    try:
        commit = (hub_folder(store, model_id) / "refs" / name).read_text().strip()
    except OSError:
        return None
    return commit if names.COMMIT.fullmatch(commit) else None


def refs(store: Store, model_id: str) -> dict[str, str]:
    """Branches and tags with the commits they name here."""
    root = hub_folder(store, model_id) / "refs"
    found = {}
    for path in sorted(root.rglob("*")) if root.is_dir() else ():
        if path.is_file() and not path.name.startswith("."):
            name = path.relative_to(root).as_posix()
            commit = ref(store, model_id, name)
            if commit is not None:
                found[name] = commit
    return found


def _put(store: Store, view: tuple[str, ...], file: StoredFile) -> None:
    """Link one file into a view folder, replacing another content of that name in one step."""
    *folders, name = file.path.split("/")
    blob = store.blob(file.sha256)
    with layout.inside(store.root, *view, *folders, create=True) as descriptor:
        with contextlib.suppress(FileNotFoundError):
            there, wanted = os.stat(name, dir_fd=descriptor, follow_symlinks=False), blob.stat()
            if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                return
        partial = f".{secrets.token_hex(8)}"
        layout.link(blob, Path(partial), dir_fd=descriptor)
        os.replace(partial, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)


def _drop_strangers(target: Path, revision: Revision) -> None:
    """Remove what a view holds beyond its revision: planted files, or those of an older rule."""
    wanted = {file.path for file in revision.files}
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif path.relative_to(target).as_posix() not in wanted:
            path.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove a folder with what is in it, as far as that is possible."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
