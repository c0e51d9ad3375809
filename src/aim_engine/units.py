"""Units at the border: parse what a person types, print what a person reads.

Inside, quantities are plain numbers in base units (bytes, seconds, tokens); a name's ending says which.
"""

from __future__ import annotations

import re

from aim_engine.errors import InvalidInput

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": KIB,
    "m": MIB,
    "g": GIB,
    "t": 1024 * GIB,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024 * GIB,
}
_TIME_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3, "min": 60e3, "h": 3600e3}
_COUNT_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
_NUMBER_UNIT = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*$")


def format_bytes(count: float) -> str:
    """Bytes as binary units with one decimal: `206158430208` -> `192.0 GiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def format_gib(count: float) -> str:
    """Bytes always in GiB, for columns that are compared with each other."""
    return f"{count / GIB:.1f} GiB"


def format_count(count: float) -> str:
    """A parameter or token count: `32762123264` -> `32.8 B`, `40960` -> `41.0 k`."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f}"


def format_ms(ms: float) -> str:
    """Milliseconds at a readable scale: `12.3 ms`, `1.25 s`, `3.1 min`."""
    if ms < 1000:
        return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"
    return f"{ms / 1000:.2f} s" if ms < 120_000 else f"{ms / 60_000:.1f} min"


def parse_bytes(text: str) -> int:
    """`16GiB`, `16g`, `500MB`, `1024` -> bytes. Raises InvalidInput."""
    number, unit = _split(text, "a size such as 16GiB")
    if unit not in _BYTE_UNITS:
        raise InvalidInput(
            f"'{text}' is not a size", why=f"unknown unit '{unit}'", hint="use B, KiB, MiB, GiB, TiB or kB, MB, GB, TB"
        )
    return round(number * _BYTE_UNITS[unit])


def parse_ms(text: str) -> float:
    """`500ms`, `0.05s`, `2min` -> milliseconds. A bare number has no unit and is refused."""
    number, unit = _split(text, "a duration such as 500ms or 0.5s")
    if unit not in _TIME_UNITS_MS:
        why = f"unknown unit '{unit}'" if unit else "it has no unit"
        raise InvalidInput(
            f"'{text}' is not a duration", why=why, hint=f"write for example {number:g}ms or {number:g}s"
        )
    return number * _TIME_UNITS_MS[unit]


def parse_count(text: str) -> int:
    """`4096`, `4k`, `1.5M` -> a whole number of tokens or requests. Raises InvalidInput."""
    number, unit = _split(text, "a count such as 4096 or 4k")
    if unit not in _COUNT_UNITS:
        raise InvalidInput(f"'{text}' is not a count", why=f"unknown unit '{unit}'", hint="use a plain number, k or M")
    return round(number * _COUNT_UNITS[unit])


def _split(text: str, wanted: str) -> tuple[float, str]:
    match = _NUMBER_UNIT.match(text)
    if match is None:
        raise InvalidInput(f"'{text}' is not {wanted}")
    return float(match.group(1)), match.group(2).lower()
