"""Models in a folder, such as a file system that all nodes mount: as plain folders by name, or as the hub's cache lays them out.

Files are read through the same transport as those of a server, so that they arrive in pieces, are kept across failures, and proved.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from aim_engine.cache import hub, names, sources
from aim_engine.cache.faults import NoSuchModel, Unavailable, Unsafe
from aim_engine.cache.hub import File, Listing
from aim_engine.cache.transport import Client
from aim_engine.errors import AimError

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Folder:
    """A folder with models."""

    def __init__(self, text: str) -> None:
        """`text` is a path or a file:// address."""
        self.text = text
        path = unquote(urlsplit(text).path) if text.startswith("file:") else text
        self._template = str(Path(path).expanduser().absolute())
        self.name = self._template

    def describe(self, client: Client, model_id: str, revision: str) -> Listing:
        """See `Source`."""
        place = self._place(model_id, revision)
        root = place.resolve()
        if names.COMMIT.fullmatch(place.name):  # a hub cache links into its own blobs
            root = place.parents[1].resolve()
        files = []
        with _typed(place):
            told = _sums(place)
            for path in _walk(place):
                real = path.resolve()
                relative = path.relative_to(place).as_posix()
                about = real.stat()
                if not stat.S_ISREG(about.st_mode):
                    continue
                if not real.is_relative_to(root):
                    raise Unsafe(f"{path} is refused", why=f"it leads out of {root}")
                sha256 = told.get(relative) or (real.name if names.is_sha256(real.name) else None)
                etag = f"{about.st_ino}-{about.st_mtime_ns}"
                files.append(File(relative, about.st_size, sha256, etag=None if sha256 else etag))
                if len(files) > names.MAX_FILES:
                    raise Unsafe(f"{place} is refused", why=f"it holds more than {names.MAX_FILES:,} files")
        if names.COMMIT.fullmatch(place.name):
            return Listing(model_id=model_id, commit=place.name, files=tuple(files), source=place.as_uri())
        return sources.listing(model_id, revision, files, place.as_uri())

    def address(self, listing: Listing, path: str) -> str:
        """See `Source`."""
        return f"{listing.source}/{quote(path)}"

    def refusal(self, status: int, headers: Mapping[str, str], model_id: str, path: str) -> AimError:
        """See `Source`."""
        return sources.refused(self.name, status, model_id, path)

    def _place(self, model_id: str, revision: str) -> Path:
        named = Path(sources.expand(self._template, model_id, revision))
        if (named / "config.json").is_file():
            return named
        root = Path(self._template)
        for cache in (root, root / "hub", root / "views" / "hf"):
            found = hub.cached(model_id, cache, revision)
            if found is not None:
                return found
        raise NoSuchModel(f"{self.name} has no {model_id}", why=f"there is no {named / 'config.json'}")


class FileBody:
    """A file as an answer, so that it is read as a response is."""

    def __init__(self, handle: FileIO, asked: str | None) -> None:
        """`asked` is a Range header."""
        about = os.fstat(handle.fileno())
        start, end, self.status = 0, about.st_size, 200
        self.headers: Mapping[str, str] = {"Content-Length": str(about.st_size)}
        match = _RANGE.fullmatch(asked or "")
        if match is not None:
            start = int(match[1])
            end = min(end, int(match[2]) + 1) if match[2] else end
            self.status = 206 if start < end else 416
            self.headers = {"Content-Range": f"bytes {start}-{end - 1}/{about.st_size}"}
        self._handle, self._offset, self._end = handle, start, end

    def read(self, amt: int) -> bytes:
        """The next so many bytes; fewer at the end."""
        content = os.pread(self._handle.fileno(), max(0, min(amt, self._end - self._offset)), self._offset)
        self._offset += len(content)
        return content

    read1 = read

    def close(self) -> None:
        """Let go of the file."""
        self._handle.close()


@contextlib.contextmanager
def opened(url: str, asked: str | None) -> Iterator[FileBody | None]:
    """The file of a file:// address; None when it is not there. Raises: OSError."""
    path = Path(unquote(urlsplit(url).path))
    if not path.is_file():
        yield None
        return
    with path.open("rb", buffering=0) as handle:
        yield FileBody(handle, asked)


def _walk(place: Path) -> list[Path]:
    """The files of a folder; folders that are links are not entered."""
    found: list[Path] = []
    for folder, _, inside in os.walk(place):
        found.extend(Path(folder) / name for name in inside)
        if len(found) > names.MAX_FILES:
            break
    return sorted(found)


def _sums(place: Path) -> dict[str, str]:
    try:
        return sources.sums((place / sources.SUMS).read_text(errors="replace"))
    except FileNotFoundError:
        return {}


@contextlib.contextmanager
def _typed(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise Unavailable(f"{place} cannot be read", why=err.strerror, hint="is the file system mounted?") from err
