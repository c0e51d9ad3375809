"""What the cards of this machine say, under the same measures as AMD's exporter: read from the driver's files, no tool needed."""

from __future__ import annotations

import re
from pathlib import Path

from aim_engine.hardware import drm, sensors, sysfs
from aim_engine.hardware.readings import Readings
from aim_engine.monitor.totals import Totals
from aim_engine.units import MIB

THROTTLES = {
    "samples": "throttle_samples",
    "power": "throttle_power",
    "socket": "throttle_socket",
    "memory": "throttle_memory",
    "voltage_regulator": "throttle_vr",
    "prochot": "throttle_prochot",
}
"""What held the clock down -> measure."""
_ERRORS = re.compile(r"^(ue|ce|de):\s*(\d+)", re.MULTILINE)
_ERROR_MEASURES = {"ue": "gpu_ecc_uncorrectable", "ce": "gpu_ecc_correctable", "de": "gpu_ecc_deferred"}
_SPEED = re.compile(r"([\d.]+)\s*GT/s")


def read(root: Path, time_s: float) -> dict[str, Totals]:
    """Each usable card below `root`, by its PCI address; empty without any."""
    found = {}
    for card in drm.cards(root):
        if card.usable:
            said = _totals(card, sensors.read(card.folder), time_s)
            if said.gauges:
                found[card.address or card.name] = said
    return found


def _totals(card: drm.Card, now: Readings, time_s: float) -> Totals:
    levels: dict[str, float | None] = {
        "gpu_busy": now.gpu_busy_percent,
        "gpu_memory_busy": now.mem_busy_percent,
        "gpu_memory_used": None if card.vram_used_bytes is None else card.vram_used_bytes / MIB,
        "gpu_memory_total": None if card.vram_total_bytes is None else card.vram_total_bytes / MIB,
        "gpu_power": now.power_w,
        "gpu_power_cap": now.power_cap_w,
        "gpu_power_cap_default": now.power_cap_default_w,
        "gpu_junction": now.temperature_c.get("junction", now.temperature_c.get("edge")),
        "gpu_junction_crit": now.temperature_critical_c.get("junction", now.temperature_critical_c.get("edge")),
        "gpu_hbm_temperature": now.temperature_c.get("mem"),
        "gpu_clock": now.sclk_mhz,
        "gpu_clock_max": now.sclk_max_mhz,
        "pcie_speed": _speed(sysfs.text(card.folder / "current_link_speed")),
        "pcie_max_speed": _speed(sysfs.text(card.folder / "max_link_speed")),
        "gpu_bad_pages": _bad_pages(card.folder),
    }
    counters = {
        measure: float(now.throttle_counts[name]) for name, measure in THROTTLES.items() if name in now.throttle_counts
    }
    if now.pcie_replay_count is not None:
        counters["pcie_replays"] = float(now.pcie_replay_count)
    counters.update(_errors(card.folder))
    return Totals(
        time_s=time_s,
        counters=counters,
        gauges={name: float(value) for name, value in levels.items() if value is not None},
        families=dict.fromkeys((*levels, *counters), "driver"),
    )


def _errors(device: Path) -> dict[str, float]:
    """Memory errors of all blocks together; a block's file says `ue: 0` and `ce: 0`."""
    found: dict[str, float] = {}
    for path in sysfs.files(device / "ras", "*_err_count"):
        for kind, count in _ERRORS.findall(sysfs.text(path) or ""):
            name = _ERROR_MEASURES[kind]
            found[name] = found.get(name, 0.0) + float(count)
            if kind == "ue" and path.name.startswith("xgmi"):
                found["xgmi_errors"] = float(count)
    return found


def _bad_pages(device: Path) -> float | None:
    listed = sysfs.text(device / "ras/gpu_vram_bad_pages")
    return None if listed is None else float(len([line for line in listed.splitlines() if line.strip()]))


def _speed(text: str | None) -> float | None:
    match = _SPEED.search(text or "")
    return float(match[1]) if match else None
