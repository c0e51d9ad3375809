"""Writes cached models to where other caches fetch from: an object store or a shared folder, with a SHA256SUMS file that proves them.

The list of checksums comes last, so a model that is written half never passes for whole where the list is asked for.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aim_engine.cache import layout, names, objects, pack, sources
from aim_engine.cache.folder import Folder
from aim_engine.cache.layout import typed
from aim_engine.cache.objects import Objects
from aim_engine.cache.pace import UNPACED, Pace
from aim_engine.errors import InvalidInput

if TYPE_CHECKING:
    from aim_engine.cache.manager import ModelCacheManager
    from aim_engine.cache.manifest import Revision


_READ_BYTES = 1 << 20


class Synced(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-sync/v1"):
    """What was written where."""

    model_id: str
    commit: str
    place: str
    written_bytes: int
    present_bytes: int
    """What was there already, by name, size and checksum list."""


def write(
    manager: ModelCacheManager, model_id: str, target: str, tell: Callable[[str], None] = lambda _: None
) -> Synced:
    """Write a model's revision that a branch names, or its newest, to a place. Raises: InvalidInput, Unreachable."""
    known = [each for each in manager.revisions() if each.revision.model_id == names.require_model_id(model_id)]
    if not known:
        raise InvalidInput(f"{model_id} is not in the cache", hint="aim-engine cache ls")
    revision = max(known, key=lambda each: (bool(each.refs), each.added_at)).revision
    return write_revision(manager, revision, target, tell)


def write_revision(
    manager: ModelCacheManager,
    revision: Revision,
    target: str,
    tell: Callable[[str], None] = lambda _: None,
    *,
    ref: str = "main",
    there: Mapping[str, str] | None = None,
    noted: Callable[[str, str], None] = lambda _path, _sha256: None,
    pace: Pace = UNPACED,
) -> Synced:
    """Write a revision to a place, no faster than `pace`. Raises: InvalidInput, Unreachable.

    `there` is the path and sha256 of what an earlier attempt wrote, beyond what the list of checksums there says, and `noted` hears of
    each file that is written now.
    """
    place = sources.parse(target)
    if not isinstance(place, (Objects, Folder)):
        raise InvalidInput(
            f"nothing can be written to {place.name}", hint="s3://BUCKET/PATH, gs://, az://, or a folder"
        )
    pack.thaw(manager.store, manager.index, revision)
    base = sources.expand(place.text if isinstance(place, Objects) else place.name, revision.model_id, ref)
    shelf: _Bucket | _Shelf = _Bucket(base, pace) if isinstance(place, Objects) else _Shelf(Path(base), pace)
    told = {**sources.sums(shelf.read(sources.SUMS).decode(errors="replace")), **(there or {})}
    written = present = 0
    for file in revision.files:
        if told.get(file.path) == file.sha256 and shelf.size(file.path) == file.size_bytes:
            present += file.size_bytes
            continue
        tell(f"writing {file.path} to {base}")
        shelf.put(file.path, manager.store.blob(file.sha256))
        noted(file.path, file.sha256)
        written += file.size_bytes
    shelf.write(sources.SUMS, _sums(revision))
    return Synced(
        model_id=revision.model_id, commit=revision.commit, place=base, written_bytes=written, present_bytes=present
    )


def _paced(source: Path, pace: Pace) -> Iterator[bytes]:
    """A file's content, no faster than a pace."""
    with source.open("rb", buffering=0) as handle:
        while content := handle.read(pace.most_bytes(_READ_BYTES)):
            pace.take(len(content))
            yield content


def _sums(revision: Revision) -> bytes:
    return "".join(f"{file.sha256}  {file.path}\n" for file in revision.files).encode()


class _Bucket:
    """A prefix in an object store. Large files go up in parts, several at once."""

    def __init__(self, base: str, pace: Pace) -> None:
        self._base, self._pace = base, pace

    def read(self, path: str) -> bytes:
        return objects.read(f"{self._base}/{path}")

    def size(self, path: str) -> int | None:
        return objects.size(f"{self._base}/{path}")

    def put(self, path: str, source: Path) -> None:
        content = source if self._pace is UNPACED else _paced(source, self._pace)
        objects.put(f"{self._base}/{path}", content, size_bytes=source.stat().st_size)

    def write(self, path: str, content: bytes) -> None:
        objects.put(f"{self._base}/{path}", content, size_bytes=len(content))


class _Shelf:
    """A folder that other nodes see. Each file appears whole."""

    def __init__(self, base: Path, pace: Pace) -> None:
        self._base, self._pace = base, pace

    def read(self, path: str) -> bytes:
        try:
            return (self._base / path).read_bytes()
        except FileNotFoundError:
            return b""

    def size(self, path: str) -> int | None:
        try:
            return (self._base / path).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, path: str, source: Path) -> None:
        target = self._base / path
        with typed(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
            try:
                with source.open("rb") as reader, partial.open("xb") as writer:
                    if self._pace is UNPACED:
                        layout.copy_range(reader.fileno(), writer.fileno(), source.stat().st_size)
                    else:
                        writer.writelines(_paced(source, self._pace))
                    writer.flush()
                    os.fsync(writer.fileno())
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    def write(self, path: str, content: bytes) -> None:
        with typed(self._base):
            self._base.mkdir(parents=True, exist_ok=True)
            layout.write(self._base / path, content)
