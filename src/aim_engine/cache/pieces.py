"""A file under way: its bytes in one part file, and beside it the claims of which pieces arrived.

    parts/<key>.<nonce>.part     the bytes, each piece at its place
    parts/<key>.<nonce>.claims   who writes it (one JSON line), then one record per finished piece with its CRC-32

A claim is believed only after the piece was read back, so nothing needs to reach the disk in order. A part has one writer: the
next process takes it over when the writer is known to be dead, and copies what it proves from one that may live.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import zlib
from pathlib import Path

import msgspec

from aim_engine.cache import layout, locks, process
from aim_engine.cache.layout import Store

PIECE_BYTES = 16 << 20
_RECORD = struct.Struct("<III")
_MAGIC = 0x61696D31
_READ_BYTES = 4 << 20
_RESERVE_CHEAPLY = ("ext4", "xfs", "btrfs", "f2fs")
"""File systems that keep extents which were not written yet. Source: fallocate(2); others write, or allocate memory, at once."""
_open_here: set[Path] = set()
"""Parts that this process writes at the moment."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a claims file."""

    size_bytes: int
    piece_bytes: int
    owner: process.Process


class Part:
    """A part file that this process writes."""

    def __init__(self, store: Store, key: str, size_bytes: int, piece_bytes: int) -> None:
        """Use `open_part`."""
        stem = f"{key}.{secrets.token_hex(8)}"
        self.path = store.path("parts", f"{stem}.part")
        self.claims_path = store.path("parts", f"{stem}.claims")
        self.size_bytes = size_bytes
        self.piece_bytes = piece_bytes
        self.done: dict[int, int] = {}
        """Piece number -> CRC-32 of pieces that are here."""
        self._descriptor = -1
        self._claims = -1

    @property
    def count(self) -> int:
        """How many pieces the file has."""
        return -(-self.size_bytes // self.piece_bytes)

    @property
    def done_bytes(self) -> int:
        """Bytes in finished pieces."""
        return sum(self.span(piece)[1] - self.span(piece)[0] for piece in self.done)

    def span(self, piece: int) -> tuple[int, int]:
        """First byte of a piece, and the one after its last."""
        start = piece * self.piece_bytes
        return start, min(start + self.piece_bytes, self.size_bytes)

    def write(self, content: bytes | memoryview, offset: int) -> None:
        """Put bytes at their place. Raises: OSError."""
        view = memoryview(content)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from a place and say how many bytes there were. Raises: OSError."""
        return os.preadv(self._descriptor, [buffer], offset)

    def checksum(self, piece: int) -> int:
        """The CRC-32 of a piece as it lies there. Raises: OSError."""
        return _crc(self._descriptor, *self.span(piece))

    def claim(self, piece: int, crc: int) -> None:
        """Record that a piece is here. Raises: OSError."""
        os.write(self._claims, _record(piece, crc))
        self.done[piece] = crc

    def disclaim(self) -> None:
        """Take all claims back: the whole of the pieces is wrong, and none says which. Raises: OSError."""
        self.done.clear()
        os.ftruncate(self._claims, len(_line(self._header())))

    def close(self) -> None:
        """Close the files, which stay."""
        for descriptor in (self._descriptor, self._claims):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._claims = -1
        _open_here.discard(self.path)

    def discard_claims(self) -> None:
        """Remove the claims: the content was published or set aside."""
        self.close()
        self.claims_path.unlink(missing_ok=True)

    def _header(self) -> Header:
        return Header(size_bytes=self.size_bytes, piece_bytes=self.piece_bytes, owner=process.me())

    def _begin(self, claims: dict[int, int]) -> None:
        self.done = dict(claims)
        content = _line(self._header()) + b"".join(_record(piece, crc) for piece, crc in sorted(claims.items()))
        self._claims = os.open(
            self.claims_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600
        )
        os.write(self._claims, content)

    def _open(self, flags: int) -> None:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | flags, 0o600)
        _open_here.add(self.path)


def open_part(store: Store, key: str, size_bytes: int, piece_bytes: int = PIECE_BYTES) -> Part:
    """The part file of a content, with every piece that earlier attempts of any process left and that proves right.

    Raises: OSError.
    """
    part = Part(store, key, size_bytes, piece_bytes)
    for path, header, claims in _left(store, key):
        if header.size_bytes != size_bytes or header.piece_bytes != piece_bytes:
            continue
        proven = _prove(path, header, claims)
        if not _is_free(path, header) or not proven:
            continue
        part._begin(proven)  # noqa: SLF001 - same concept
        path.rename(part.path)
        path.with_suffix(".claims").unlink(missing_ok=True)
        part._open(0)  # noqa: SLF001
        break
    else:
        part._begin({})  # noqa: SLF001
        part._open(os.O_CREAT | os.O_EXCL)  # noqa: SLF001
    _reserve(store, part)
    for path, header, claims in _left(store, key):
        if path == part.path or header.size_bytes != size_bytes or header.piece_bytes != piece_bytes:
            continue
        _copy_proven(path, part, {piece: crc for piece, crc in claims.items() if piece not in part.done})
        if _is_free(path, header):
            path.unlink(missing_ok=True)
            path.with_suffix(".claims").unlink(missing_ok=True)
    return part


def under_way(store: Store, key: str, size_bytes: int) -> int:
    """Bytes of a content that earlier attempts claim to have; the most that any one of them has."""
    most = 0
    for _, header, claims in _left(store, key):
        if header.size_bytes == size_bytes:
            most = max(most, min(size_bytes, len(claims) * header.piece_bytes))
    return most


def held(store: Store, key: str) -> tuple[tuple[int, int], ...] | None:
    """The ranges of a content that attempts of any process on this store claim to have, in order; None without an attempt."""
    attempts = _left(store, key)
    if not attempts:
        return None
    found: list[tuple[int, int]] = []
    claimed = {
        (piece * header.piece_bytes, min((piece + 1) * header.piece_bytes, header.size_bytes))
        for _, header, claims in attempts
        for piece in claims
    }
    for start, end in sorted(claimed):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


def open_proven(store: Store, key: str, start: int, end: int) -> tuple[int, int] | None:
    """A descriptor of an attempt whose pieces over a range prove right, and the size of the content; None when none has them.

    Whoever asked closes it. What is read may change while it is sent, if its checksum turns out to be wrong.
    """
    for path, header, claims in _left(store, key):
        if not 0 <= start < end <= header.size_bytes:
            continue
        over = range(start // header.piece_bytes, -(-end // header.piece_bytes))
        if not all(piece in claims for piece in over):
            continue
        if len(_prove(path, header, {piece: claims[piece] for piece in over})) == len(over):
            with contextlib.suppress(OSError):
                return os.open(path, os.O_RDONLY | os.O_NOFOLLOW), header.size_bytes
    return None


def abandoned(store: Store) -> tuple[Path, ...]:
    """Part and claims files whose writer is known to be dead, and claims whose part is gone."""
    found = []
    for path in sorted(store.path("parts").iterdir()) if store.path("parts").is_dir() else ():
        if path.suffix == ".small":
            owner = path.name.split(".")[1]
            if not Path("/proc", owner).exists():
                found.append(path)
            continue
        header = _read(path.with_suffix(".claims"))[0]
        if header is None or _is_free(path.with_suffix(".part"), header):
            found.append(path)
    return tuple(found)


def _is_free(path: Path, header: Header) -> bool:
    """Will its writer certainly not touch this part again?"""
    return process.is_gone(header.owner) or (header.owner == process.me() and path not in _open_here)


def _left(store: Store, key: str) -> list[tuple[Path, Header, dict[int, int]]]:
    """What other attempts left of a content: those with the most pieces first."""
    found = []
    for path in store.path("parts").glob(f"{key}.*.part"):
        header, claims = _read(path.with_suffix(".claims"))
        if header is not None:
            found.append((path, header, claims))
    return sorted(found, key=lambda each: (-len(each[2]), str(each[0])))


def _read(path: Path) -> tuple[Header | None, dict[int, int]]:
    """A claims file: its header and the claims whose record is whole."""
    try:
        line, _, records = path.read_bytes().partition(b"\n")
        header = msgspec.json.decode(line, type=Header)
    except (OSError, msgspec.DecodeError):
        return None, {}
    if header.size_bytes < 0 or header.piece_bytes <= 0:
        return None, {}
    claims = {}
    for start in range(0, len(records) - _RECORD.size + 1, _RECORD.size):
        piece, crc, check = _RECORD.unpack_from(records, start)
        if check == (piece ^ crc ^ _MAGIC) and piece * header.piece_bytes < header.size_bytes:
            claims[piece] = crc
    return header, claims


def _prove(path: Path, header: Header, claims: dict[int, int]) -> dict[int, int]:
    """The claims whose piece has the CRC-32 it was claimed with."""
    proven = {}
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return {}
    try:
        for piece, crc in claims.items():
            start = piece * header.piece_bytes
            if _crc(descriptor, start, min(start + header.piece_bytes, header.size_bytes)) == crc:
                proven[piece] = crc
    finally:
        os.close(descriptor)
    return proven


def _copy_proven(path: Path, part: Part, claims: dict[int, int]) -> None:
    """Copy pieces of another attempt and claim those that arrive right."""
    if not claims:
        return
    with contextlib.suppress(FileNotFoundError):
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            for piece, crc in claims.items():
                start, end = part.span(piece)
                layout.copy_range(source, part._descriptor, end - start, start)  # noqa: SLF001
                if _crc(part._descriptor, start, end) == crc:  # noqa: SLF001
                    part.claim(piece, crc)
        finally:
            os.close(source)


def _crc(descriptor: int, start: int, end: int) -> int:
    crc = 0
    while start < end:
        content = os.pread(descriptor, min(_READ_BYTES, end - start), start)
        if not content:
            return -1
        crc = zlib.crc32(content, crc)
        start += len(content)
    return crc


def _reserve(store: Store, part: Part) -> None:
    """Take the space before the first byte, so that a full disk is met now, where that costs no writing of zeros."""
    if part.size_bytes == 0:
        return
    if locks.file_system(store.root) in _RESERVE_CHEAPLY:
        os.posix_fallocate(part._descriptor, 0, part.size_bytes)  # noqa: SLF001
    else:
        os.ftruncate(part._descriptor, part.size_bytes)  # noqa: SLF001


def _record(piece: int, crc: int) -> bytes:
    return _RECORD.pack(piece, crc, piece ^ crc ^ _MAGIC)


def _line(header: Header) -> bytes:
    return msgspec.json.encode(header) + b"\n"
