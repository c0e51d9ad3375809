"""The `sysinfo.csv` that ROCm's profilers write beside a recording: one line about the machine and the GPU that was profiled.

Columns were renamed between Omniperf 1 and rocprofiler-compute, and stand in any order. It names no PCI address or id, states the
series where the product is not known ("MI200"), and describes one GPU, however many the machine has.
Source: ROCm/rocprofiler-compute src/utils/specs.py (MachineSpecs), AMDResearch/omniperf src/utils/perfagg.py (gen_sysinfo).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aim_engine.errors import Corrupt
from aim_engine.hardware.cluster import UNNAMED, Device, Finding, Memory, Node
from aim_engine.hardware.readings import Readings

NAME = "rocprof"
_ARCH = ("gpu_arch", "gpu_soc", "arch")
_UNITS = ("cu_per_gpu", "numcu")
_NAMES = ("gpu_model", "name", "gpu_name", "gpu_series")
_CSV_LIMIT = 100_000


def is_one(text: str) -> bool:
    """Is this a sysinfo.csv?"""
    return _header(text) is not None


def read(texts: Sequence[str], name: str) -> Node:
    """The machine, with the one GPU that was profiled. Raises: Corrupt."""
    fields: dict[str, str] = {}
    for text in texts:
        fields = {**_fields(text), **fields}
    arch = _first(fields, _ARCH)
    if not fields or (arch is None and _first(fields, _NAMES) is None):
        raise Corrupt(f"{name} describes no GPU", why="its line is missing or cut off", hint="profile again")
    device = _device(fields, arch)
    return Node(
        name=_first(fields, ("hostname", "host_name")) or name,
        devices=(device,),
        rocm_version=(_first(fields, ("rocm_version", "host_rocmver")) or "").partition("-")[0] or None,
        driver_version=_first(fields, ("amd_gpu_kernel_version",)),
        findings=(
            Finding(
                id="HW034",
                severity="info",
                message="a profiler's recording describes the one GPU that was profiled: how many the machine has is not known",
                evidence=NAME,
                remedy="record amd-smi static --json for all of them",
            ),
        ),
    )


def _device(fields: Mapping[str, str], arch: str | None) -> Device:
    rate = _number(_first(fields, ("hbm_bw", "hbmbw")))
    units, dies = _whole(fields, _UNITS), _whole(fields, ("num_xcd", "num_xcc"))
    found: dict[str, Any] = {
        "product": _first(fields, _NAMES),
        "arch": arch.lower() if arch is not None and re.fullmatch(r"gfx[0-9a-f]{3,5}", arch.lower()) else None,
        "partition": _mode(fields.get("compute_partition")),
        "memory_partition": _mode(fields.get("memory_partition")),
        "compute_units": units,
        "compute_dies": dies,
        "vbios": _known(fields.get("vbios")),
    }
    memory = Memory(bandwidth_bytes_s=round(rate * 1e9) if rate else None)
    readings = Readings(
        sclk_max_mhz=_whole(fields, ("max_sclk", "sclk")),
        mclk_max_mhz=_whole(fields, ("max_mclk", "mclk")),
        sclk_mhz=_whole(fields, ("cur_sclk",)),
        mclk_mhz=_whole(fields, ("cur_mclk",)),
    )
    return Device(
        index=0,
        gpu=None,
        product=found["product"] or UNNAMED,
        arch=found["arch"],
        partition=found["partition"],
        memory_partition=found["memory_partition"],
        compute_units=units,
        compute_dies=dies,
        vbios=found["vbios"],
        memory=memory if memory != Memory() else None,
        readings=readings if readings != Readings() else None,
        sources={field: NAME for field, value in found.items() if value is not None},
    )


def _header(text: str) -> list[str] | None:
    for line in text.lstrip("\ufeff \r\n\t\0").splitlines()[:5]:
        columns = [column.strip().strip('"').lower() for column in line[:_CSV_LIMIT].split(",")]
        if len(columns) > 4 and set(columns) & set(_ARCH) and set(columns) & set(_UNITS):
            return columns
    return None


def _fields(text: str) -> dict[str, str]:
    """Column -> value of the first line of data; values that look like the header are none."""
    plain = text.replace("\0", "").lstrip("\ufeff \r\n\t")
    header = _header(plain)
    if header is None:
        return {}
    try:
        for row in csv.reader(plain.splitlines(), strict=False):
            cells = [cell.strip() for cell in row]
            if len(cells) > 1 and [cell.lower() for cell in cells] != header:
                return dict(zip(header, cells, strict=False))
    except csv.Error:
        return {}
    return {}


def _first(fields: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((value for name in names if (value := _known(fields.get(name))) is not None), None)


def _known(text: str | None) -> str | None:
    plain = (text or "").strip()
    return None if plain.lower() in ("", "na", "n/a", "nan", "none", "null", "unknown") else plain


def _number(text: str | None) -> float | None:
    plain = _known(text)
    if plain is None or not re.fullmatch(r"\d{1,15}(?:\.\d{1,9})?", plain):
        return None
    return float(plain)


def _whole(fields: Mapping[str, str], names: Sequence[str]) -> int | None:
    value = _number(_first(fields, names))
    return round(value) if value else None


def _mode(text: str | None) -> str | None:
    plain = _known(text)
    return plain.upper() if plain is not None and re.fullmatch(r"[A-Za-z]{3}\d?", plain) else None
