"""Stored content and revisions as the index knows them: how a file looked when it was proved, and how a revision was used."""

from __future__ import annotations

import os

import msgspec

from aim_engine.cache.manifest import Revision


class Fingerprint(msgspec.Struct, frozen=True, array_like=True):
    """How a file looked: enough to notice a rewrite or a truncation without reading it. Not ctime, which a new link changes."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """Stored content."""

    sha256: str
    size_bytes: int
    fingerprint: Fingerprint
    verified_at: float | None
    """Seconds since 1970 when its checksum was last compared; None when not since the index was made."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A revision in the store, and how it was used."""

    revision: Revision
    refs: tuple[str, ...]
    added_at: float
    last_use: float
    """By the store's own clock."""
    uses: float


def fingerprint(about: os.stat_result) -> Fingerprint:
    """The fingerprint in a stat result."""
    return Fingerprint(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
