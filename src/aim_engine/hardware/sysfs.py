"""Reading small kernel files that may be absent, forbidden, padded or cut short. Absent means None, never zero."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def text(path: Path) -> str | None:
    """The file without padding, None when it is absent, unreadable or empty.

    Recorded dumps are padded with NUL bytes to a page, hence the stripping.
    """
    try:
        with path.open("rb") as handle:
            content = handle.read(65536)
    except OSError:
        return None
    return content.replace(b"\0", b"").decode("utf-8", "replace").strip() or None


def integer(path: Path) -> int | None:
    """The file as a whole number, decimal or 0x hexadecimal."""
    return to_int(text(path))


def to_int(value: str | None) -> int | None:
    """A decimal or 0x number; None for anything else."""
    if value is None:
        return None
    try:
        return int(value, 16 if value.lower().startswith("0x") else 10)
    except ValueError:
        return None


def properties(path: Path) -> dict[str, int]:
    """A KFD `properties` file: one `name number` a line; lines of another form are passed over."""
    found = {}
    for line in (text(path) or "").splitlines():
        name, _, value = line.partition(" ")
        number = to_int(value.strip())
        if number is not None:
            found[name] = number
    return found


def children(path: Path) -> Iterator[Path]:
    """Sub-folders of a folder, numbered ones in numeric order; none when it is absent or forbidden."""
    try:
        entries = [entry for entry in path.iterdir() if entry.is_dir()]
    except OSError:
        return
    yield from sorted(
        entries,
        key=lambda entry: (not entry.name.isdigit(), int(entry.name) if entry.name.isdigit() else 0, entry.name),
    )
