"""The binary table `gpu_metrics` of the amdgpu driver, versions 1.0 to 1.8, 2.0 to 2.4 and 3.0.

Each version has its own layout, and they are not append-only. All ones mean that the card does not say. The size in the header
counts, not that of the file: recordings are padded to a page. Version 1.9 and later describe their fields themselves and are not
read. Tables of 2.0 to 2.3 state load in units that differ by processor, which is therefore left out.
Source: Linux drivers/gpu/drm/amd/include/kgd_pp_interface.h, gpu_metrics_v1_0 to gpu_metrics_v3_0; sentinel: swsmu/smu_cmn.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

LIMIT = 8192
"""The largest table read; version 1.8 has 3,360. Unit: bytes."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first four bytes."""

    structure_size: int
    format_revision: int
    content_revision: int


NO_HEADER = Header(structure_size=0, format_revision=0, content_revision=0)


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a table says. None means unknown."""

    header: Header
    temperature_c: dict[str, float] = {}
    """By place: edge, junction, mem."""
    power_w: float | None = None
    gfx_busy_percent: float | None = None
    memory_busy_percent: float | None = None
    sclk_mhz: int | None = None
    mclk_mhz: int | None = None
    memory_bandwidth_bytes_s: int | None = None
    throttle_counts: dict[str, int] = {}
    """Samples in which power, socket, memory, voltage regulators or the board's signal held the clock down, and `samples`; since boot."""
    throttle_reasons: tuple[str, ...] = ()
    """Groups that hold the clock down now, from the status that is the same for all cards: power, current,
    temperature. An idle card may set them too."""


class _Field(NamedTuple):
    offset: int
    code: str
    """struct's letter: H 16, I 32, Q 64 bits, unsigned."""
    scale: float = 1


_V1_0: dict[str, _Field] = {
    "edge": _Field(16, "H"),
    "junction": _Field(18, "H"),
    "mem": _Field(20, "H"),
    "gfx": _Field(28, "H"),
    "umc": _Field(30, "H"),
    "power": _Field(34, "H"),
    "sclk": _Field(54, "H"),
    "mclk": _Field(58, "H"),
}
_V1_1 = {
    "edge": _Field(4, "H"),
    "junction": _Field(6, "H"),
    "mem": _Field(8, "H"),
    "gfx": _Field(16, "H"),
    "umc": _Field(18, "H"),
    "power": _Field(22, "H"),
    "sclk": _Field(54, "H"),
    "mclk": _Field(58, "H"),
}
_V1_4 = {
    "junction": _Field(4, "H"),
    "mem": _Field(6, "H"),
    "power": _Field(10, "H"),
    "gfx": _Field(12, "H"),
    "umc": _Field(14, "H"),
}
_V2_1 = {
    "edge": _Field(4, "H", 0.01),
    "power": _Field(40, "H", 0.001),
    "sclk": _Field(76, "H"),
    "mclk": _Field(80, "H"),
}
_COUNTS = ("samples", "prochot", "power", "socket", "voltage_regulator", "memory")


def _counts(offset: int) -> dict[str, _Field]:
    return {f"count of {name}": _Field(offset + 4 * place, "I") for place, name in enumerate(_COUNTS)}


_LAYOUTS: Mapping[tuple[int, int], tuple[int, Mapping[str, _Field]]] = {
    (1, 0): (80, _V1_0),
    (1, 1): (96, _V1_1),
    (1, 2): (104, _V1_1),
    (1, 3): (120, {**_V1_1, "status": _Field(112, "Q")}),
    (1, 4): (288, {**_V1_4, "sclk": _Field(240, "H"), "mclk": _Field(280, "H")}),
    (1, 5): (328, {**_V1_4, "sclk": _Field(280, "H"), "mclk": _Field(320, "H")}),
    (1, 6): (1664, {**_V1_4, **_counts(32), "sclk": _Field(264, "H"), "mclk": _Field(304, "H")}),
    (1, 7): (
        2208,
        {**_V1_4, **_counts(40), "rate": _Field(16, "Q", 1e9), "sclk": _Field(296, "H"), "mclk": _Field(336, "H")},
    ),
    (1, 8): (
        3360,
        {**_V1_4, **_counts(40), "rate": _Field(16, "Q", 1e9), "sclk": _Field(296, "H"), "mclk": _Field(336, "H")},
    ),
    (2, 0): (
        120,
        {
            "edge": _Field(16, "H", 0.01),
            "power": _Field(44, "H", 0.001),
            "sclk": _Field(80, "H"),
            "mclk": _Field(84, "H"),
        },
    ),
    (2, 1): (120, _V2_1),
    (2, 2): (128, {**_V2_1, "status": _Field(120, "Q")}),
    (2, 3): (152, {**_V2_1, "status": _Field(120, "Q")}),
    (2, 4): (168, {**_V2_1, "gfx": _Field(28, "H", 0.01), "status": _Field(120, "Q")}),
    (3, 0): (
        264,
        {
            "edge": _Field(4, "H", 0.01),
            "gfx": _Field(42, "H"),
            "power": _Field(112, "I", 0.001),
            "sclk": _Field(174, "H"),
            "mclk": _Field(186, "H"),
        },
    ),
}
"""(format, content) -> size, and where its fields are."""
_SHARED_END = 16
"""Versions 1.4 to 1.8 agree up to here. A table of another size than its version's (an early 1.6 exists) is read only so far."""
_REASONS = {"power": range(8), "current": range(16, 24), "temperature": range(32, 48)}
"""Bits of the throttle status that is the same for all cards. Source: Linux amdgpu_smu.h, SMU_THROTTLER_*_BIT."""
_HOTTEST_C = 200
_MOST_W = 5000


def header(content: bytes) -> Header | None:
    """The header of a table; None when there is none."""
    if len(content) < 4:
        return None
    size, form, revision = struct.unpack_from("<HBB", content)
    return Header(structure_size=size, format_revision=form, content_revision=revision) if size else None


def parse(content: bytes) -> Metrics | None:
    """A table; None when it is none. Of a version that is not known, or beyond where it is cut off, nothing but the header."""
    head = header(content)
    if head is None:
        return None
    version = (head.format_revision, head.content_revision)
    size, fields = _LAYOUTS.get(version, (0, {}))
    end = min(len(content), head.structure_size)
    if head.structure_size != size and size:
        end = min(end, _SHARED_END if version[0] == 1 and version[1] >= 4 else 0)
    found = {name: value for name, field in fields.items() if (value := _value(content, end, field)) is not None}
    return Metrics(
        header=head,
        temperature_c={
            place: round(found[place], 2)
            for place in ("edge", "junction", "mem")
            if 0 < found.get(place, 0) < _HOTTEST_C
        },
        power_w=round(found["power"], 3) if found.get("power", _MOST_W) < _MOST_W else None,
        gfx_busy_percent=_percent(found.get("gfx")),
        memory_busy_percent=_percent(found.get("umc")),
        sclk_mhz=_whole(found.get("sclk")),
        mclk_mhz=_whole(found.get("mclk")),
        memory_bandwidth_bytes_s=_whole(found.get("rate")) or None,
        throttle_counts={name: int(found[key]) for name in _COUNTS if (key := f"count of {name}") in found},
        throttle_reasons=tuple(
            reason for reason, bits in _REASONS.items() if any(int(found.get("status", 0)) >> bit & 1 for bit in bits)
        ),
    )


def _value(content: bytes, end: int, field: _Field) -> float | None:
    width = struct.calcsize(field.code)
    if field.offset + width > end:
        return None
    (number,) = struct.unpack_from(f"<{field.code}", content, field.offset)
    return None if number == (1 << 8 * width) - 1 else number * field.scale if field.scale != 1 else number


def _percent(value: float | None) -> float | None:
    return value if value is not None and 0 <= value <= 100 else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
