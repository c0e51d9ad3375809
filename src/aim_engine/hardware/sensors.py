"""How a card is at this moment: temperatures, power and its caps, clocks, load, PCIe link. Read from hwmon and the device folder.

Sensors are found by their label, never by number; hwmon counts in thousandths of a degree and millionths of a watt. A value that
is absent or cannot be (a temperature of 0) stays out. Format: Linux Documentation/gpu/amdgpu/thermal and hwmon/sysfs-interface.
"""

from __future__ import annotations

import re
from pathlib import Path

from aim_engine.hardware import gpu_metrics, sysfs
from aim_engine.hardware.readings import Readings

_SENSOR = re.compile(r"(?:temp|power)\d+")


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
    memory_levels, memory_clock = _levels(sysfs.text(device / "pp_dpm_mclk"))
    table = gpu_metrics.parse(sysfs.content_of(device / "gpu_metrics", gpu_metrics.LIMIT) or b"")
    if table is None:
        table = gpu_metrics.Metrics(header=gpu_metrics.NO_HEADER)
    if current is None:
        current = _hertz(device)
    if memory_clock is None:
        memory_clock = table.mclk_mhz
    busy, memory_busy = _percent(device / "gpu_busy_percent"), _percent(device / "mem_busy_percent")
    return Readings(
        temperature_c=temperatures["input"] or table.temperature_c,
        temperature_critical_c=temperatures["crit"],
        temperature_emergency_c=temperatures["emergency"],
        power_w=power.get("now") if power.get("now") is not None else table.power_w,
        power_cap_w=power.get("cap"),
        power_cap_min_w=power.get("min"),
        power_cap_max_w=power.get("max"),
        power_cap_default_w=power.get("default"),
        power_caps_w=caps if len(caps) > 1 else {},
        gpu_busy_percent=busy if busy is not None else _rounded(table.gfx_busy_percent),
        mem_busy_percent=memory_busy if memory_busy is not None else _rounded(table.memory_busy_percent),
        sclk_mhz=current if current is not None else table.sclk_mhz,
        sclk_levels_mhz=levels,
        sclk_max_mhz=max(levels, default=None),
        mclk_mhz=memory_clock,
        mclk_max_mhz=max(memory_levels, default=None),
        fan_percent=_fan(device),
        throttle_counts=table.throttle_counts,
        throttle_reasons=table.throttle_reasons,
        link=_link(device),
        performance_level=sysfs.text(device / "power_dpm_force_performance_level"),
        pcie_replay_count=sysfs.integer(device / "pcie_replay_count"),
        vram_vendor=sysfs.text(device / "mem_info_vram_vendor"),
        metrics=table.header if table.header.structure_size else None,
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


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def _fan(device: Path) -> float | None:
    """The duty cycle of the first fan: hwmon counts it to 255."""
    for monitor in sysfs.children(device / "hwmon"):
        value = sysfs.integer(monitor / "pwm1")
        if value is not None and 0 <= value <= 255:
            return round(value / 255 * 100, 1)
    return None
