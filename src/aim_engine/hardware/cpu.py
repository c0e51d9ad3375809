"""The host processor: what this process may use of it, and what that can compute."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from pathlib import Path

from aim_engine.hardware import sysfs
from aim_engine.hardware.cluster import Cpu
from aim_engine.hardware.gpu import Gpu, Provenance

FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
)
_VENDORS_ARM = {"0x41": "ARM", "0xc0": "Ampere", "0x48": "HiSilicon", "0x61": "Apple"}
_PROBE_BYTES = 64 * 1024**2
_PROBE_S = 0.05
_RESERVE_FRACTION = 0.1
"""Of the memory, left to the operating system when planning on it."""


def read(root: Path) -> Cpu | None:
    """The CPU and memory below `root`, limited to what affinity and cgroups allow; None when /proc says nothing."""
    info = sysfs.text(root / "proc/cpuinfo")
    memory = _meminfo(root)
    if info is None or "MemTotal" not in memory:
        return None
    blocks = [_fields(block) for block in re.split(r"\n\s*\n", info) if block.strip()]
    processors = [block for block in blocks if "processor" in block]
    first = processors[0] if processors else {}
    threads = max(1, len(processors))
    cores = {(block.get("physical id", "0"), block["core id"]) for block in processors if "core id" in block}
    sockets = {block["physical id"] for block in processors if "physical id" in block}
    physical = len(cores) or threads
    live = root == Path("/")
    usable_threads = min(threads, len(os.sched_getaffinity(0))) if live else threads
    usable_cores = max(1, math.ceil(physical * usable_threads / threads))
    quota = _cpu_quota(root)
    if quota is not None:
        usable_cores = max(1, min(usable_cores, math.floor(quota)))
        usable_threads = max(1, min(usable_threads, math.floor(quota)))
    total, available = memory["MemTotal"], memory.get("MemAvailable", memory.get("MemFree", 0))
    limit, used = _memory_limit(root)
    if limit is not None and limit < total:
        available = min(available, limit - (used or 0))
        total = limit
    flags = set((first.get("flags") or first.get("Features") or "").split())
    megahertz = first.get("cpu MHz")
    return Cpu(
        model=first.get("model name") or first.get("CPU part") or "unknown",
        vendor=first.get("vendor_id") or _VENDORS_ARM.get(first.get("CPU implementer", ""), "unknown"),
        architecture=platform.machine() if live else ("x86_64" if "flags" in first else "aarch64"),
        sockets=len(sockets) or 1,
        cores=usable_cores,
        threads=usable_threads,
        numa_nodes=max(
            1, len([f for f in sysfs.children(root / "sys/devices/system/node") if re.fullmatch(r"node\d+", f.name)])
        ),
        memory_total_bytes=total,
        memory_available_bytes=max(0, available),
        features=tuple(name for name in FEATURES if name in flags),
        clock_hz=round(float(megahertz) * 1e6) if megahertz else _max_clock(root),
    )


def as_gpu(cpu: Cpu, bandwidth_bytes_s: int | None = None) -> Gpu:
    """The CPU in the planner's vocabulary: what is free of its memory, its vector units, and a measured copy rate.

    FLOP per cycle and core: AVX2 2 FMA units x 8 lanes x 2 = 32 in fp32; AVX-512 64, but 32 on AMD's Zen 4, which runs it in two
    halves; bf16 instructions double it, AMX takes 1,024 a cycle. Without bf16 instructions 16-bit weights are computed in fp32.
    Source: Intel and AMD optimisation manuals.
    """
    from aim_engine import units

    reserve = round(cpu.memory_total_bytes * _RESERVE_FRACTION)
    usable = max(units.MIB, cpu.memory_available_bytes - reserve)
    lanes, level = _fp32_per_cycle(cpu)
    figures: dict[str, int] = {}
    derived = Provenance(
        kind="derived",
        source=f"{cpu.cores} cores x {cpu.clock_hz} Hz x {lanes} fp32 FLOP per cycle ({level})",
        checked="",
    )
    if cpu.clock_hz:
        fp32 = cpu.cores * cpu.clock_hz * lanes
        bf16 = fp32
        if "amx_bf16" in cpu.features:
            bf16 = cpu.cores * cpu.clock_hz * 1024
        elif "avx512_bf16" in cpu.features or "bf16" in cpu.features:
            bf16 = fp32 * 2
        figures = {"bf16": bf16, "fp16": bf16, "fp32": fp32, "int8": fp32 * (4 if "avx512_vnni" in cpu.features else 1)}
    provenance = {"compute_flop_s": derived} if figures else {}
    if bandwidth_bytes_s is not None:
        provenance["bandwidth_bytes_s"] = Provenance(
            kind="measured", source="copy of 64 MiB in this process, read and written bytes, one thread", checked=""
        )
    return Gpu(
        name="cpu",
        product=cpu.model,
        arch=level,
        kind="cpu",
        memory_bytes=usable,
        compute_units=cpu.cores,
        bandwidth_bytes_s=bandwidth_bytes_s,
        compute_flop_s=figures,
        devices_per_node=1,
        shared_memory=True,
        provenance=provenance,
    )


def measure_bandwidth() -> int:
    """Bytes per second that one thread reads and writes when copying 64 MiB: the best of the copies in 50 ms."""
    source, target = bytearray(_PROBE_BYTES), bytearray(_PROBE_BYTES)
    view = memoryview(target)
    best, ends = math.inf, time.perf_counter() + _PROBE_S
    while True:
        started = time.perf_counter()
        view[:] = source
        now_s = time.perf_counter()
        best = min(best, now_s - started)
        if now_s > ends:
            return round(2 * _PROBE_BYTES / best)


def _fp32_per_cycle(cpu: Cpu) -> tuple[int, str]:
    features = cpu.features
    if "avx512f" in features:
        suffix = "-bf16" if "avx512_bf16" in features else ""
        zen4 = cpu.vendor == "AuthenticAMD" and re.search(r"\b9[0-9]{2}4\b|\b8[0-9]{2}4\b", cpu.model) is not None
        return (32 if zen4 else 64), f"x86-64-v4{suffix}"
    if "avx2" in features:
        return 32, "x86-64-v3"
    if "sve" in features or "asimd" in features:
        return 16, "armv8-bf16" if "bf16" in features else "armv8"
    return 8, "x86-64-v2"


def _meminfo(root: Path) -> dict[str, int]:
    found = {}
    for line in (sysfs.text(root / "proc/meminfo") or "").splitlines():
        match = re.match(r"(\w+):\s+(\d+) kB", line)
        if match:
            found[match[1]] = int(match[2]) * 1024
    return found


def _fields(block: str) -> dict[str, str]:
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """The folders whose limits apply, own first: version 2 under /sys/fs/cgroup, version 1 under its controller."""
    base = root / "sys/fs/cgroup"
    folders = [base, base / controller]
    for line in (sysfs.text(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and (parts[1] == "" or controller in parts[1].split(",")):
            own = parts[2].lstrip("/")
            folders.insert(0, (base if parts[1] == "" else base / controller) / own)
    return folders


def _cpu_quota(root: Path) -> float | None:
    limits = []
    for folder in _cgroup_folders(root, "cpu"):
        maximum = (sysfs.text(folder / "cpu.max") or "").split()
        if len(maximum) == 2 and maximum[0].isdigit() and int(maximum[1]):
            limits.append(int(maximum[0]) / int(maximum[1]))
        quota, period = sysfs.integer(folder / "cpu.cfs_quota_us"), sysfs.integer(folder / "cpu.cfs_period_us")
        if quota and quota > 0 and period:
            limits.append(quota / period)
    return min(limits, default=None)


def _memory_limit(root: Path) -> tuple[int | None, int | None]:
    best: tuple[int | None, int | None] = (None, None)
    for folder in _cgroup_folders(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = sysfs.integer(folder / limit_name)
            if limit and limit < 2**60 and (best[0] is None or limit < best[0]):
                best = (limit, sysfs.integer(folder / used_name))
    return best


def _max_clock(root: Path) -> int | None:
    kilohertz = sysfs.integer(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    return kilohertz * 1000 if kilohertz else None
