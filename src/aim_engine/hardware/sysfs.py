"""Reading small kernel files that may be absent, forbidden, padded or cut short. Absent means None, never zero."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

LIMIT = 65536
"""Bytes read of one file: kernel files of interest are a page or less. Unit: bytes."""


def text(path: Path | str, limit: int = LIMIT) -> str | None:
    """The file without padding, None when it is absent, unreadable or empty.

    Recorded dumps are padded with NUL bytes to a page, hence the stripping.
    """
    content = content_of(path, limit)
    return None if content is None else content.replace(b"\0", b"").decode("utf-8", "replace").strip() or None


def content_of(path: Path | str, limit: int = LIMIT) -> bytes | None:
    """The first bytes of a file as they are, None when it is absent or unreadable."""
    # A node of 64 partitions has 4,000 of these files: a descriptor is four times as quick as a file object.
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        return os.read(handle, limit)
    except OSError:
        return None
    finally:
        os.close(handle)


def integer(path: Path) -> int | None:
    """The file as a whole number, decimal or 0x hexadecimal."""
    return to_int(text(path))


def to_int(value: str | None) -> int | None:
    """A decimal or 0x number of at most 64 bits; None for anything else."""
    if value is None or len(value) > 20:
        return None
    try:
        number = int(value, 16 if value.lower().startswith(("0x", "-0x")) else 10)
    except ValueError:
        return None
    return number if -(2**63) <= number < 2**64 else None


def properties(path: Path | str) -> dict[str, int]:
    """A KFD `properties` file: one `name number` a line; lines of another form are passed over."""
    found = {}
    for line in (text(path) or "").split("\n"):
        name, _, value = line.partition(" ")
        if value.isdecimal() and len(value) < 19:
            found[name] = int(value)
        elif (number := to_int(value.strip())) is not None:
            found[name] = number
    return found


def all_properties(path: Path) -> Iterator[dict[str, int]]:
    """The `properties` of every numbered sub-folder, in numeric order."""
    try:
        with os.scandir(path) as listed:
            names = [entry.name for entry in listed if _number(entry.name)]
    except OSError:
        return
    for name in sorted(names, key=int):
        yield properties(f"{path}/{name}/properties")


def assignments(path: Path) -> dict[str, str]:
    """A `uevent` file: one `NAME=value` a line."""
    return dict(line.split("=", 1) for line in (text(path) or "").splitlines() if "=" in line)


def children(path: Path) -> Iterator[Path]:
    """Sub-folders of a folder, numbered ones in numeric order; none when it is absent or forbidden."""
    try:
        with os.scandir(path) as listed:
            entries = [path / entry.name for entry in listed if entry.is_dir()]
    except OSError:
        return
    yield from sorted(entries, key=lambda entry: (not _number(entry.name), int(_number(entry.name) or 0), entry.name))


def files(path: Path, pattern: str) -> list[Path]:
    """Files of a folder that match a pattern, by name; none when it is absent or forbidden."""
    try:
        return sorted(path.glob(pattern))
    except OSError:
        return []


def link_name(path: Path) -> str | None:
    """The last part of where a link points, None when it is not a link."""
    try:
        return path.readlink().name or None
    except OSError:
        return None


def _number(name: str) -> str | None:
    return name if name.isascii() and name.isdigit() and len(name) < 10 else None
