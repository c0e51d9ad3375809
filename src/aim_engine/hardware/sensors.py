"""How a card is at this moment: temperatures, power and its caps, clocks, load, PCIe link. Read from hwmon and the device folder.

Sensors are found by their label, never by number; hwmon counts in thousandths of a degree and millionths of a watt. A value that
is absent or cannot be (a temperature of 0) stays out. Format: Linux Documentation/gpu/amdgpu/thermal and hwmon/sysfs-interface.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import msgspec

from aim_engine.hardware import sysfs

_SENSOR = re.compile(r"(?:temp|power)\d+")


class MetricsHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first four bytes of the gpu_metrics table. Its size counts, not that of the file."""

    structure_size: int
    format_revision: int
    content_revision: int


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one card."""

    temperature_c: dict[str, float] = {}
    """By place: edge, junction (hotspot), mem."""
    temperature_critical_c: dict[str, float] = {}
    """Where the card slows down."""
    temperature_emergency_c: dict[str, float] = {}
    """Where it switches off."""
    power_w: float | None = None
    power_cap_w: float | None = None
    power_cap_min_w: float | None = None
    """0 is what some drivers say; it is not a usable limit."""
    power_cap_max_w: float | None = None
    power_cap_default_w: float | None = None
    power_caps_w: dict[str, float] = {}
    """By rail, where there is more than one: slowPPT and fastPPT of an APU."""
    gpu_busy_percent: int | None = None
    mem_busy_percent: int | None = None
    sclk_mhz: int | None = None
    """Shader clock as the level list marks it."""
    sclk_levels_mhz: tuple[int, ...] = ()
    link: str | None = None
    """Current PCIe speed and width, as `16.0 GT/s x16`; an idle card lowers both."""
    performance_level: str | None = None
    pcie_replay_count: int | None = None
    vram_vendor: str | None = None
    metrics: MetricsHeader | None = None


def read(device: Path) -> Readings:
    """What the device folder of a card (drm.Card.folder) says now."""
    temperatures: dict[str, dict[str, float]] = {"input": {}, "crit": {}, "emergency": {}}
    power: dict[str, float | None] = {}
    caps: dict[str, float] = {}
    for monitor in sysfs.children(device / "hwmon"):
        names = {match[0] for path in sysfs.files(monitor, "*_*") if (match := _SENSOR.match(path.name))}
        for name in sorted(names, key=lambda name: (len(name), name)):
            label = sysfs.text(monitor / f"{name}_label")
            if name.startswith("temp"):
                for kind, found in temperatures.items():
                    value = _scaled(monitor / f"{name}_{kind}", 1000)
                    if value is not None and value > 0:
                        found.setdefault(label or name, value)
            else:
                cap = _scaled(monitor / f"{name}_cap", 10**6)
                if cap is not None:
                    caps.setdefault(label or name, cap)
                power = power or _power(monitor, name)
    levels, current = _levels(sysfs.text(device / "pp_dpm_sclk"))
    return Readings(
        temperature_c=temperatures["input"],
        temperature_critical_c=temperatures["crit"],
        temperature_emergency_c=temperatures["emergency"],
        power_w=power.get("now"),
        power_cap_w=power.get("cap"),
        power_cap_min_w=power.get("min"),
        power_cap_max_w=power.get("max"),
        power_cap_default_w=power.get("default"),
        power_caps_w=caps if len(caps) > 1 else {},
        gpu_busy_percent=_percent(device / "gpu_busy_percent"),
        mem_busy_percent=_percent(device / "mem_busy_percent"),
        sclk_mhz=current if current is not None else _hertz(device),
        sclk_levels_mhz=levels,
        link=_link(device),
        performance_level=sysfs.text(device / "power_dpm_force_performance_level"),
        pcie_replay_count=sysfs.integer(device / "pcie_replay_count"),
        vram_vendor=sysfs.text(device / "mem_info_vram_vendor"),
        metrics=_header(device),
    )


def _power(monitor: Path, name: str) -> dict[str, float | None]:
    """The first rail: `average` on most cards, `input` where there is no average."""
    average = _scaled(monitor / f"{name}_average", 10**6)
    found = {
        "now": average if average is not None else _scaled(monitor / f"{name}_input", 10**6),
        "cap": _scaled(monitor / f"{name}_cap", 10**6),
        "min": _scaled(monitor / f"{name}_cap_min", 10**6),
        "max": _scaled(monitor / f"{name}_cap_max", 10**6),
        "default": _scaled(monitor / f"{name}_cap_default", 10**6),
    }
    return found if any(value is not None for value in found.values()) else {}


def _scaled(path: Path, divisor: int) -> float | None:
    value = sysfs.integer(path)
    return None if value is None else value / divisor


def _percent(path: Path) -> int | None:
    value = sysfs.integer(path)
    return value if value is not None and 0 <= value <= 100 else None


def _levels(text: str | None) -> tuple[tuple[int, ...], int | None]:
    """`0: 500Mhz`, `1: 2219Mhz *` -> all levels, and the marked one. The mark may lie outside the range of the others."""
    levels, current = [], None
    for line in (text or "").splitlines():
        match = re.match(r"\s*\w+:\s*(\d{1,6})\s*[Mm][Hh][Zz]\s*(\*?)", line)
        if match:
            levels.append(int(match[1]))
            current = int(match[1]) if match[2] else current
    return tuple(levels), current


def _hertz(device: Path) -> int | None:
    for monitor in sysfs.children(device / "hwmon"):
        value = sysfs.integer(monitor / "freq1_input")
        if value is not None:
            return round(value / 10**6)
    return None


def _link(device: Path) -> str | None:
    speed, width = sysfs.text(device / "current_link_speed"), sysfs.integer(device / "current_link_width")
    if speed is None or width is None or "GT/s" not in speed:
        return None
    return f"{speed.removesuffix('PCIe').strip()} x{width}"


def _header(device: Path) -> MetricsHeader | None:
    content = sysfs.content_of(device / "gpu_metrics", 4)
    if content is None or len(content) < 4:
        return None
    size, form, revision = struct.unpack("<HBB", content)
    return MetricsHeader(structure_size=size, format_revision=form, content_revision=revision) if size else None
