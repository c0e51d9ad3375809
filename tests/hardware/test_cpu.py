from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import machines
from aim_engine.errors import MissingFigure
from aim_engine.hardware import cpu
from aim_engine.hardware.cluster import Cpu

GIB = machines.GIB


def read(root: Path) -> Cpu:
    found = cpu.read(root)
    assert found is not None
    return found


def test_cores_are_physical_and_threads_are_not(tmp_path: Path) -> None:
    found = read(machines.host(tmp_path, cores=8, sockets=2, threads_per_core=2, numa_nodes=4))
    assert (found.sockets, found.cores, found.threads, found.numa_nodes) == (2, 16, 32, 4)
    assert found.vendor == "AuthenticAMD"
    assert found.architecture == "x86_64"
    assert found.memory_total_bytes == 64 * GIB
    assert found.features == ("avx2", "avx512f", "avx512_bf16", "avx512_vnni")


def test_only_processors_of_the_affinity_count(tmp_path: Path) -> None:
    machines.host(tmp_path, cores=8, threads_per_core=2)
    machines.write(tmp_path / "proc/self", {"status": "Cpus_allowed_list:\t0-1,8-9"})
    found = read(tmp_path)
    assert (found.cores, found.threads) == (2, 4)


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/", {"cpu.max": "350000 100000"}, 3),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/kubepods/pod1", {"kubepods/cpu.max": "200000 100000", "kubepods/pod1/cpu.max": "max 100000"}, 2),
        ("0::/not/here", {"cpu.max": "400000 100000"}, 4),
        (
            "3:cpu,cpuacct:/docker/x",
            {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("3:cpu,cpuacct:/docker/x", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_quota_limits_the_cores(tmp_path: Path, group: str, files: dict[str, str], cores: int) -> None:
    machines.host(tmp_path, cores=8, threads_per_core=1)
    machines.write(tmp_path / "proc/self", {"cgroup": group})
    machines.write(tmp_path / "sys/fs/cgroup", files)
    assert read(tmp_path).cores == cores


@pytest.mark.parametrize(
    ("files", "total", "available"),
    [
        ({"memory.max": "max"}, 64, 64),
        ({"memory.max": 16 * GIB, "memory.current": 6 * GIB}, 16, 10),
        (
            {"memory.max": 16 * GIB, "memory.current": 6 * GIB, "memory.stat": f"anon 1\ninactive_file {4 * GIB}"},
            16,
            14,
        ),
        ({"memory.max": 999 * GIB}, 64, 64),
        ({"memory/memory.limit_in_bytes": 8 * GIB, "memory/memory.usage_in_bytes": 1 * GIB}, 8, 7),
        ({"memory/memory.limit_in_bytes": 9223372036854771712}, 64, 64),
    ],
)
def test_a_memory_limit_is_the_memory(tmp_path: Path, files: dict[str, object], total: int, available: int) -> None:
    machines.host(tmp_path, memory_bytes=64 * GIB)
    machines.write(tmp_path / "sys/fs/cgroup", files)
    found = read(tmp_path)
    assert found.memory_total_bytes == total * GIB
    assert found.memory_available_bytes == available * GIB


def test_an_arm_host_is_read(tmp_path: Path) -> None:
    machines.host(tmp_path)
    block = "processor\t: {}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"
    machines.write(tmp_path / "proc", {"cpuinfo": "\n".join(block.format(number) for number in range(4))})
    machines.write(tmp_path / "proc/self", {"status": "Cpus_allowed_list:\t0-3"})
    machines.write(tmp_path / "sys/devices/system/cpu/cpu0/cpufreq", {"cpuinfo_max_freq": 3_000_000})
    found = read(tmp_path)
    assert (found.model, found.vendor, found.architecture) == ("ARM Neoverse-V2", "ARM", "aarch64")
    assert found.cores == 4
    assert found.features == ("neon", "bf16", "sve")
    gpu = cpu.as_gpu(found)
    assert gpu.arch == "armv8-bf16"
    assert gpu.compute("fp32") == 4 * 3_000_000_000 * 16
    assert gpu.compute("bf16") == 2 * gpu.compute("fp32")


def test_a_host_that_says_nothing_is_none(tmp_path: Path) -> None:
    assert cpu.read(tmp_path) is None


@pytest.mark.parametrize(
    "content", ["", "garbage\n\n:::\n", "processor\t: 0\n", "processor : x\ncore id : 1", "\xff" * 50]
)
def test_damaged_cpuinfo_is_read_as_far_as_it_goes(tmp_path: Path, content: str) -> None:
    machines.host(tmp_path)
    machines.write(tmp_path / "proc", {"cpuinfo": content})
    found = cpu.read(tmp_path)
    assert found is None or found.cores >= 1


@pytest.mark.parametrize(
    ("files", "hertz"),
    [
        ({"cpufreq/base_frequency": 2_000_000}, 2_000_000_000),
        ({"acpi_cppc/nominal_freq": 2400}, 2_400_000_000),
        ({}, 3_100_000_000),
    ],
)
def test_the_base_clock_is_preferred_to_the_one_of_this_moment(
    tmp_path: Path, files: dict[str, int], hertz: int
) -> None:
    machines.host(tmp_path, mhz=3100.0)
    machines.write(tmp_path / "sys/devices/system/cpu/cpu0", files)
    assert read(tmp_path).clock_hz == hertz


HOST = Cpu(
    model="AMD EPYC 9654",
    vendor="AuthenticAMD",
    architecture="x86_64",
    sockets=1,
    cores=10,
    threads=20,
    numa_nodes=1,
    memory_total_bytes=100 * GIB,
    memory_available_bytes=60 * GIB,
    clock_hz=1_000_000_000,
)


@pytest.mark.parametrize(
    ("vendor", "model", "family", "number", "features", "fp32", "bf16"),
    [
        ("AuthenticAMD", "AMD EPYC 7551", 23, 0x01, ("avx2",), 16, 16),
        ("AuthenticAMD", "AMD EPYC 7763", 25, 0x01, ("avx2",), 32, 32),
        ("AuthenticAMD", "AMD EPYC 9654", 25, 0x11, ("avx2", "avx512f", "avx512_bf16"), 32, 64),
        ("AuthenticAMD", "AMD EPYC 9755", 26, 0x02, ("avx2", "avx512f", "avx512_bf16"), 64, 128),
        ("GenuineIntel", "Intel(R) Xeon(R) Gold 6248", 6, 85, ("avx2", "avx512f"), 64, 64),
        (
            "GenuineIntel",
            "Intel(R) Xeon(R) Platinum 8480+",
            6,
            143,
            ("avx2", "avx512f", "avx512_bf16", "amx_bf16"),
            64,
            1024,
        ),
        ("GenuineIntel", "11th Gen Intel(R) Core(TM) i7", 6, 140, ("avx2", "avx512f"), 32, 32),
        ("unknown", "QEMU", None, None, (), 8, 8),
    ],
)
def test_peaks_follow_from_cores_clock_and_vector_units(
    vendor: str, model: str, family: int | None, number: int | None, features: tuple[str, ...], fp32: int, bf16: int
) -> None:
    host = msgspec.structs.replace(
        HOST, vendor=vendor, model=model, family=family, model_number=number, features=features
    )
    gpu = cpu.as_gpu(host)
    assert gpu.compute("fp32") == 10 * 10**9 * fp32
    converted = max(1, round(0.18 * fp32))  # without instructions for it, as it was measured
    assert gpu.compute("bf16") == 10 * 10**9 * (bf16 if bf16 != fp32 else converted)
    assert gpu.provenance["compute_flop_s"].kind == "derived"


def test_a_tenth_of_the_memory_is_left_to_the_system() -> None:
    gpu = cpu.as_gpu(HOST, 10**10)
    assert gpu.memory_bytes == 50 * GIB
    assert gpu.shared_memory
    assert gpu.bandwidth() == 10**10
    assert gpu.provenance["bandwidth_bytes_s"].kind == "measured"


def test_what_was_not_measured_is_missing_not_guessed() -> None:
    gpu = cpu.as_gpu(msgspec.structs.replace(HOST, clock_hz=None))
    with pytest.raises(MissingFigure):
        gpu.bandwidth()
    with pytest.raises(MissingFigure):
        gpu.compute("bf16")


def test_a_machine_with_less_free_than_the_reserve_still_has_a_figure() -> None:
    assert cpu.as_gpu(msgspec.structs.replace(HOST, memory_available_bytes=1)).memory_bytes > 0


def test_the_copy_rate_of_this_machine_is_that_of_a_memory() -> None:
    assert 10**8 < cpu.measure_bandwidth() < 10**13
    assert 10**8 < cpu.measure_bandwidth(threads=1) < 10**12
