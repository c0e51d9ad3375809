"""Models carried to where no network is: an OCI image layout as a folder or one tar file, taken out of a store and into another.

A folder on the store's file system costs names, not bytes. What comes in is proved before it counts: a bundle is read with
bounds, its names are checked, and only content that has the checksum it is named by is stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from aim_engine.cache import acquire, approval, evict, holds, layout, manifest, names, pack, safety
from aim_engine.cache.faults import Damaged, Unsafe
from aim_engine.cache.index import Index
from aim_engine.cache.layout import Store, typed
from aim_engine.cache.manifest import Revision
from aim_engine.errors import InvalidInput

_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_MAX_INDEX_BYTES = 16 << 20
_READ_BYTES = 4 << 20


class Moved(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-bundle/v1"):
    """What a bundle carried."""

    place: str
    models: tuple[str, ...]
    """model@commit of each."""
    size_bytes: int


def write(store: Store, index: Index, models: Iterable[str], place: Path) -> Moved:
    """Write models, all of them when none is named, to a new folder, or a file when the name ends in `.tar`.

    Raises: InvalidInput, Unreachable, NoSpace.
    """
    if place.exists():
        raise InvalidInput(f"{place} exists", hint="name a folder or .tar file that does not exist yet")
    index.refresh()
    known = index.revisions()
    wanted = tuple(models)
    unknown = [each for each in wanted if each not in {one.revision.model_id for one in known}]
    if unknown:
        raise InvalidInput(f"{unknown[0]} is not in the cache", hint="aim-engine cache ls")
    chosen = [(one.revision, one.refs) for one in known if not wanted or one.revision.model_id in wanted]
    content: dict[str, bytes | None] = {manifest.EMPTY_SHA256: manifest.EMPTY}
    entries = []
    for revision, refs in chosen:
        encoded = manifest.encode(revision)
        content[hashlib.sha256(encoded).hexdigest()] = encoded
        content.update((file.sha256, None) for file in revision.files)
        entries.append(manifest.descriptor(encoded, revision, refs[0] if refs else None))
    for revision, _ in chosen:
        pack.thaw(store, index, revision)
    partial = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    with typed(place):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            listing = layout.index_document(tuple(entries))
            if place.suffix == ".tar":
                _write_tar(store, partial, content, listing)
            else:
                _write_folder(store, partial, content, listing)
            partial.rename(place)
        finally:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            partial.unlink(missing_ok=True)
    total = sum(file.size_bytes for file in {f.sha256: f for revision, _ in chosen for f in revision.files}.values())
    return Moved(place=str(place), models=tuple(f"{r.model_id}@{r.commit}" for r, _ in chosen), size_bytes=total)


def read(store: Store, index: Index, place: Path, *, limit_bytes: int | None = None) -> Moved:
    """Take a bundle's models into the store, proving all of it. Raises: InvalidInput, Damaged, Unsafe, NoSpace, Unreachable."""
    store.ensure()
    with typed(place), _opened(place) as bundle:
        revisions = [_revision(store, bundle, entry) for entry in _entries(bundle)]
        wanted = {file.sha256: file for revision, _ in revisions for file in revision.files}
        missing = {
            sha256: file
            for sha256, file in wanted.items()
            if not store.blob(sha256).exists() and not pack.is_packed(store, sha256)
        }
        with contextlib.ExitStack() as stack:
            for revision, _ in revisions:
                stack.enter_context(
                    holds.held(store, revision.model_id, revision.commit, f"import of {place.name}", tuple(wanted))
                )
            needed = sum(file.size_bytes for file in missing.values())
            evict.make_room(store, index, needed, str(place), limit_bytes=limit_bytes)
            for sha256, file in sorted(missing.items()):
                _take(store, index, bundle, sha256, file.path, file.size_bytes)
            for revision, ref in revisions:
                acquire.show(store, index, revision, ref)
    return Moved(
        place=str(place),
        models=tuple(f"{revision.model_id}@{revision.commit}" for revision, _ in revisions),
        size_bytes=sum(file.size_bytes for file in wanted.values()),
    )


class _Folder:
    """A bundle that is a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file of the bundle, never through a symlink. Raises: OSError."""
        *folders, last = name.split("/")
        with layout.inside(self._root, *folders) as descriptor:
            handle = os.fdopen(os.open(last, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=descriptor), "rb")
        with handle:
            yield handle


class _Tar:
    """A bundle that is one tar file. Members are read, never unpacked by name."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members = {
            member.name.removeprefix("./"): member
            for member in archive
            if member.isreg()
            and (
                member.name.removeprefix("./") in ("index.json", "oci-layout")
                or _BLOB.fullmatch(member.name.removeprefix("./"))
            )
        }

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file of the bundle. Raises: FileNotFoundError."""
        handle = self._archive.extractfile(self._members[name]) if name in self._members else None
        if handle is None:
            raise FileNotFoundError(name)
        with handle:
            yield handle


@contextlib.contextmanager
def _opened(place: Path) -> Iterator[_Folder | _Tar]:
    if place.is_dir():
        yield _Folder(place)
        return
    try:
        archive = tarfile.open(place, "r:")  # noqa: SIM115 - closed below; only plain tar, so nothing can inflate
    except FileNotFoundError as err:
        raise InvalidInput(f"{place} does not exist") from err
    except tarfile.TarError as err:
        raise Damaged(f"{place} is no bundle", why=str(err)) from err
    with archive:
        yield _Tar(archive)


def _entries(bundle: _Folder | _Tar) -> list[dict[str, object]]:
    try:
        with bundle.open("index.json") as handle:
            document = json.loads(handle.read(_MAX_INDEX_BYTES))
        entries = [dict(entry) for entry in document["manifests"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise Damaged("the bundle's index.json cannot be read", why=str(err)) from err
    if len(entries) > names.MAX_FILES:
        raise Unsafe("the bundle is refused", why=f"it lists {len(entries):,} manifests")
    return entries


def _revision(store: Store, bundle: _Folder | _Tar, entry: dict[str, object]) -> tuple[Revision, str]:
    digest = names.require_sha256(str(entry.get("digest", "")).removeprefix("sha256:"))
    try:
        with bundle.open(f"blobs/sha256/{digest}") as handle:
            content = handle.read(manifest.MAX_BYTES)
    except FileNotFoundError as err:
        raise Damaged("the bundle is incomplete", why=f"manifest {digest[:16]}... is missing") from err
    if hashlib.sha256(content).hexdigest() != digest:
        raise Damaged("the bundle is damaged", why=f"manifest {digest[:16]}... has another checksum")
    revision = manifest.decode(content, f"manifest {digest[:16]}...")
    refused = approval.unapproved(store, revision)
    if refused:
        digests = " ".join(file.sha256 for file in revision.files if file.path in refused)
        raise Unsafe(
            f"{revision.model_id} in the bundle is refused",
            why=f"{refused[0]} runs code when it is loaded",
            hint=f"if it was read and is trusted: aim-engine cache approve {revision.model_id} {digests[:650]}",
        )
    notes = entry.get("annotations")
    ref = notes.get(manifest.REF) if isinstance(notes, dict) else None
    return revision, names.require_revision(str(ref)) if ref else revision.commit


def _take(store: Store, index: Index, bundle: _Folder | _Tar, sha256: str, path: str, size_bytes: int) -> None:
    """Copy one file's content into the store and prove it on the way. Raises: Damaged, OSError."""
    partial = store.path("parts", f"{sha256}.{os.getpid()}.{secrets.token_hex(4)}.small")
    found, taken = hashlib.sha256(), 0
    try:
        with bundle.open(f"blobs/sha256/{sha256}") as reader, partial.open("xb") as writer:
            while content := reader.read(_READ_BYTES):
                taken += len(content)
                if taken > size_bytes:
                    break
                found.update(content)
                writer.write(content)
        if taken != size_bytes or found.hexdigest() != sha256:
            raise Damaged("the bundle is damaged", why=f"{path} has another checksum than the bundle says")
        safety.require_sound(partial, path)
        store.publish(partial, sha256)
        index.verified(sha256, store.now_s())
    except FileNotFoundError as err:
        raise Damaged("the bundle is incomplete", why=f"{path} is missing") from err
    finally:
        partial.unlink(missing_ok=True)


def _write_folder(store: Store, place: Path, content: dict[str, bytes | None], listing: bytes) -> None:
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for sha256, data in sorted(content.items()):
        if data is None:
            layout.link(store.blob(sha256), blobs / sha256)
        else:
            (blobs / sha256).write_bytes(data)
    (place / "oci-layout").write_bytes(layout.OCI_LAYOUT)
    (place / "index.json").write_bytes(listing)


def _write_tar(store: Store, place: Path, content: dict[str, bytes | None], listing: bytes) -> None:
    import io

    with tarfile.open(place, "x:") as archive:
        small = {"oci-layout": layout.OCI_LAYOUT, "index.json": listing}
        small.update({f"blobs/sha256/{sha256}": data for sha256, data in content.items() if data is not None})
        for name, data in sorted(small.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o444
            archive.addfile(member, io.BytesIO(data))
        for sha256 in sorted(sha256 for sha256, data in content.items() if data is None):
            member = tarfile.TarInfo(f"blobs/sha256/{sha256}")
            with store.blob(sha256).open("rb") as handle:
                member.size, member.mode = os.fstat(handle.fileno()).st_size, 0o444
                archive.addfile(member, handle)
