"""Pages of other exporters of cards, as AMD's device metrics exporter would have written them.

Omnistat tells cards apart by `card` and amd_smi_exporter by a label called like the metric itself; both have units of their own.
Sources: ROCm/omnistat docs/metrics.md and its collectors' examples; amd/amd_smi_exporter README and its raw values of rocm_smi.
"""

from __future__ import annotations

import re

import msgspec

from aim_engine.monitor.scrape import Sample, Snapshot

_MIB = 1.0 / 2**20
_SYSTEM_CLOCK = (("clock_type", "GPU_CLOCK_TYPE_SYSTEM"),)
_OMNISTAT = {
    "rocm_utilization_percentage": ("gpu_gfx_activity", 1.0),
    "rocm_vram_busy_percentage": ("gpu_umc_activity", 1.0),
    "rocm_average_socket_power_watts": ("gpu_package_power", 1.0),
    "rocm_energy_joules": ("gpu_energy_consumed", 1e6),
    "rocm_sclk_clock_mhz": ("gpu_clock", 1.0),
    "rocm_slck_clock_mhz": ("gpu_clock", 1.0),
    "rocm_vram_total_bytes": ("gpu_total_vram", _MIB),
    "rocm_temperature_edge_celsius": ("gpu_edge_temperature", 1.0),
    "rocm_temperature_memory_celsius": ("gpu_memory_temperature", 1.0),
}
"""Name -> name of AMD's exporter, and what a value is multiplied by."""
_USED, _TEMPERATURE = "rocm_vram_used_percentage", "rocm_temperature_celsius"
_HOTTEST = ("junction", "hotspot")
_RAS = re.compile(r"rocm_ras_(\w+?)_(correctable|uncorrectable|deferred)_count")
_BLOCKS = ("umc", "sdma", "gfx", "mmhub", "pcie_bif", "hdp", "xgmi_wafl")
_ECC = {"correctable": "correct", "uncorrectable": "uncorrect", "deferred": "deferred"}
_AMD_SMI = {
    "amd_gpu_power": ("gpu_package_power", 1e-6),
    "amd_gpu_power_avg": ("gpu_average_package_power", 1e-6),
    "gpu_power_cap": ("gpu_power_cap", 1e-6),
    "amd_gpu_current_temperature": ("gpu_edge_temperature", 1e-3),
    "amd_gpu_SCLK": ("gpu_clock", 1e-6),
    "amd_gpu_use_percent": ("gpu_gfx_activity", 1.0),
    "amd_gpu_memory_use_percent": ("gpu_umc_activity", 1.0),
}
"""The same for amd_smi_exporter, whose `amd_gpu_power_cap` the reader already calls `gpu_power_cap`."""
NAMES = frozenset(
    {*_OMNISTAT, _USED, _TEMPERATURE, *_AMD_SMI}
    | {f"rocm_ras_{block}_{kind}_count" for block in _BLOCKS for kind in _ECC}
)
"""Sample names that are read beside those of AMD's exporter."""


def usual(snapshot: Snapshot) -> Snapshot:
    """A page with the names, units and labels of AMD's exporter; one of that exporter stays as it is."""
    if not any(name in NAMES for name in snapshot.samples):
        return snapshot
    found: dict[str, list[Sample]] = {}
    totals = {
        card: sample.value for sample in snapshot.samples.get("rocm_vram_total_bytes", ()) if (card := _card(sample))
    }
    errors: dict[tuple[str, str], float] = {}
    for name, group in snapshot.samples.items():
        for sample in group:
            card = _card(sample)
            if name not in NAMES or not card:
                found.setdefault(name, []).append(sample)
            elif (ras := _RAS.fullmatch(name)) is not None:
                total = f"gpu_ecc_{_ECC[ras[2]]}_total"
                errors[total, card] = errors.get((total, card), 0.0) + sample.value
                if (ras[1], ras[2]) == ("xgmi_wafl", "uncorrectable"):
                    errors["gpu_ecc_uncorrect_xgmi_wafl", card] = sample.value
            elif name == _USED:
                if card in totals:
                    _put(found, "gpu_used_vram", card, sample.value / 100 * totals[card] * _MIB)
            elif name == _TEMPERATURE:
                hot = sample.label("location") in _HOTTEST
                _put(found, "gpu_junction_temperature" if hot else "gpu_edge_temperature", card, sample.value)
            else:
                other, factor = _OMNISTAT.get(name) or _AMD_SMI[name]
                _put(found, other, card, sample.value * factor)
    for (name, card), value in errors.items():
        _put(found, name, card, value)
    return msgspec.structs.replace(snapshot, samples={name: tuple(group) for name, group in found.items()})


def _card(sample: Sample) -> str:
    """Which card a sample is of: its label `card`, or the one called like the metric without `amd_`; else nothing."""
    name = sample.name.removeprefix("amd_")
    return (sample.label("card") if sample.name.startswith("rocm_") else sample.label(name)) or ""


def _put(found: dict[str, list[Sample]], name: str, card: str, value: float) -> None:
    labels = (*(_SYSTEM_CLOCK if name == "gpu_clock" else ()), ("gpu_id", card))
    found.setdefault(name, []).append(Sample(name, labels, value, f"{name}{labels}"))
