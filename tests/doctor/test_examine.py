"""Hosts built from facts, broken in one place each: the check of that place speaks, and no other."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import machines
from aim_engine.doctor import host as hosts
from aim_engine.doctor import pci
from aim_engine.doctor.examine import CHECKS, examine
from aim_engine.doctor.host import DeviceFile
from aim_engine.doctor.report import Diagnosis, Problem
from aim_engine.errors import InvalidInput

Break = Callable[[Path], object]
CARD = "sys/devices/pci0000:00/0000:05:00.0"


def told(path: Path, environment: dict[str, str] | None = None) -> Diagnosis:
    return examine(hosts.read(path, environment=environment))


def wrong(diagnosis: Diagnosis) -> dict[str, Problem]:
    """What is wrong, without what is only good to know."""
    return {problem.id: problem for problem in diagnosis.problems if problem.severity != "info"}


def instinct(path: Path, count: int = 4) -> Path:
    return machines.well_kept(machines.mi300x(path, count=count))


def put(name: str, value: object) -> Break:
    return lambda path: machines.write(path, {name: value})


def replace(name: str, old: str, new: str) -> Break:
    def change(path: Path) -> None:
        text = (path / name).read_text()
        assert old in text
        (path / name).write_text(text.replace(old, new))

    return change


def in_docker(then: Break) -> Break:
    def change(path: Path) -> None:
        machines.write(path, {".dockerenv": ""})
        then(path)

    return change


def no_link(path: Path) -> None:
    """Devices 0 and 1 lose the link between them, in both directions."""
    nodes = path / "sys/class/kfd/kfd/topology/nodes"
    for one, other in ((2, 3), (3, 2)):
        for link in (nodes / str(one) / "io_links").iterdir():
            if f"node_to {other}\n" in (link / "properties").read_text() + "\n":
                text = (link / "properties").read_text().replace("type 11", "type 2").replace("weight 15", "weight 40")
                (link / "properties").write_text(text)


def without_driver(path: Path) -> None:
    machines.write(
        path / "sys/bus/pci/devices/0000:41:00.0",
        {"vendor": "0x1002", "device": "0x74a1", "class": "0x120000", "uevent": "PCI_SLOT_NAME=0000:41:00.0"},
    )


def redirecting(path: Path) -> None:
    """A bridge above one card whose ACS capability redirects."""
    config = bytearray(0x120)
    config[0x100:0x104] = (0x000D | 1 << 16).to_bytes(4, "little")
    config[0x106:0x108] = (0x1D).to_bytes(2, "little")
    bridge = path / "sys/devices/pci0000:00/0000:00:01.1"
    bridge.mkdir()
    (bridge / "config").write_bytes(config)
    (path / CARD).rename(bridge / "0000:05:00.0")
    for link in (path / "sys/class/drm").iterdir():
        if "0000:05:00.0" in str(link.readlink()):
            target = str(link.readlink()).replace("0000:05:00.0", "0000:00:01.1/0000:05:00.0")
            link.unlink()
            link.symlink_to(target)
    bus = path / "sys/bus/pci/devices/0000:05:00.0"
    bus.unlink()
    bus.symlink_to("../../../devices/pci0000:00/0000:00:01.1/0000:05:00.0")


BROKEN: dict[str, tuple[str, Break, str]] = {
    "HST001": ("warning", put("proc/sys/kernel/numa_balancing", 1), "sudo sysctl -w kernel.numa_balancing=0"),
    "HST002": ("warning", replace("proc/cmdline", " iommu=pt", ""), "iommu=pt"),
    "HST003": ("warning", redirecting, "sudo setpci -s 0000:00:01.1 ECAP_ACS+0x6.w=0000"),
    "HST004": ("warning", without_driver, "sudo modprobe amdgpu"),
    "HST005": ("error", lambda path: (path / "dev/kfd").unlink(), "sudo modprobe amdgpu"),
    "HST006": ("warning", replace("proc/self/status", "Groups:\t44 109", "Groups:\t44"), "sudo usermod -aG render USER"),
    "HST012": ("warning", put("opt/rocm/.info/version", "6.1.2"), "newer"),
    "HST016": ("warning", replace("proc/meminfo", "HugePages_Free:        0", "HugePages_Free:   500000"), "vm.nr_hugepages=0"),
    "HST017": ("warning", put("proc/sys/vm/overcommit_memory", 2), "sudo sysctl -w vm.overcommit_memory=0"),
    "HST018": (
        "warning",
        lambda path: (
            replace("proc/meminfo", "SwapFree:        8388604", "SwapFree:        1000")(path),
            replace("proc/meminfo", "MemAvailable:   1610612736", "MemAvailable:   10485760")(path),
        ),
        "ps -eo",
    ),
    "HST020": (
        "error",
        put("var/log/dmesg", "[ 9.1] amdgpu 0000:05:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x1]"),
        "iommu=pt",
    ),
    "HST021": ("error", in_docker(replace("proc/self/mounts", "size=67108864k", "size=65536k")), "--shm-size 16g"),
    "HST022": (
        "warning",
        replace("proc/self/limits", "memory         unlimited            unlimited", "memory         8388608              8388608"),
        "memlock",
    ),
    "HST023": ("warning", replace("proc/self/limits", "1048576", "4096   "), "nofile"),
    "HST024": (
        "warning",
        lambda path: machines.write(
            path / "sys/fs/cgroup", {"memory.max": 64 * machines.GIB, "memory.events": "low 0\noom 3\noom_kill 3"}
        ),
        "memory limit",
    ),
    "HST025": (
        "warning",
        lambda path: machines.write(path / "sys/fs/cgroup", {"pids.max": 1000, "pids.current": 900}),
        "--pids-limit",
    ),
    "HST026": (
        "error",
        in_docker(put("sys/fs/cgroup/devices/devices.list", "c 1:3 rwm\nc 226:* rwm")),
        "--device /dev/kfd",
    ),
    "HST027": ("warning", lambda path: machines.write(path / "sys/fs/cgroup", {"cpu.max": "400000 100000"}), "--cpus"),
    "HW002": (
        "warning",
        lambda path: (path / "sys/class/kfd/kfd/topology/nodes/33/properties").unlink(),
        "echo CPX | sudo tee",
    ),
    "HW005": ("warning", put(f"{CARD}/hwmon/hwmon1/power1_cap", 500_000_000), "echo 750000000 | sudo tee /sys/class/drm/card1/device/hwmon/hwmon1/power1_cap"),
    "HW006": ("warning", put(f"{CARD}/power_dpm_force_performance_level", "low"), "echo auto | sudo tee"),
    "HW013": ("warning", put(f"{CARD}/current_memory_partition", "NPS4"), "current_compute_partition"),
    "HW014": ("warning", no_link, "amd-smi xgmi"),
    "HW015": ("warning", lambda path: None, "dmesg"),
    "HW016": ("warning", put(f"{CARD}/hwmon/hwmon1/temp2_input", 104000), "airflow"),
    "HW017": ("error", put(f"{CARD}/ras/umc_err_count", "ue: 2\nce: 0"), "sudo reboot"),
    "HW018": ("warning", put(f"{CARD}/ras/gpu_vram_bad_pages", "0x00012345 : 0x00001000 : P"), "sudo reboot"),
    "HW019": ("warning", put(f"{CARD}/current_link_width", 8), "lspci"),
    "HW020": ("warning", put(f"{CARD}/aer_dev_nonfatal", "TLP 2\nTOTAL_ERR_NONFATAL 2"), "reseat"),
    "HW021": ("warning", put(f"{CARD}/mem_info_vis_vram_total", 256 * machines.MIB), "BIOS"),
    "HW022": ("warning", put(f"{CARD}/mem_info_vram_used", 100 * machines.GIB), "amd-smi process"),
    "HW023": ("warning", put(f"{CARD}/fw_version/mec_fw_version", "0x000000a0"), "HSA_NO_SCRATCH_RECLAIM=1"),
}  # fmt: skip


def test_a_well_kept_host_has_nothing_wrong(tmp_path: Path) -> None:
    diagnosis = told(instinct(tmp_path))
    assert diagnosis.problems == ()
    assert not diagnosis.breaks_serving
    assert {question.id for question in diagnosis.unknown} <= {
        "ENV003", "ENV004", "ENV005", "ENV010", "HW010", "HST003", "HST028",
    }  # fmt: skip
    assert len(diagnosis.fine) > 25


@pytest.mark.parametrize("identity", sorted(BROKEN))
def test_each_fault_is_found_alone_with_its_command(tmp_path: Path, identity: str) -> None:
    severity, spoil, command = BROKEN[identity]
    if identity == "HW002":
        machines.well_kept(machines.mi300x(tmp_path, count=4, partition="CPX"))
    else:
        instinct(tmp_path, count=5 if identity == "HW015" else 4)
    spoil(tmp_path)
    found = wrong(told(tmp_path))
    assert set(found) - ({"HW001"} if identity == "HW002" else set()) == {identity}
    assert found[identity].severity == severity
    assert command in "\n".join(found[identity].fix)
    assert found[identity].effect
    assert found[identity].source


def test_every_check_is_shown_to_find_something() -> None:
    elsewhere = {
        "ENV003", "ENV004", "ENV005", "ENV010", "HST011", "HST013", "HST014", "HST015", "HST019", "HST028", "HW001",
        "HW003", "HW004", "HW007", "HW008", "HW009", "HW010", "HW011", "HW012", "HW024", "HW025",
        "HW031", "HW032", "HW033",
    }  # fmt: skip
    assert {check.id for check in CHECKS} == set(BROKEN) | elsewhere
    assert len({check.id for check in CHECKS}) == len(CHECKS)


def test_a_capped_card_is_found_beside_numa_balancing_and_nothing_else(tmp_path: Path) -> None:
    machines.well_kept(machines.rx9070xt(tmp_path, power_cap_w=120))
    machines.write(tmp_path, {"proc/sys/kernel/numa_balancing": 1})
    diagnosis = told(tmp_path)
    assert [problem.id for problem in diagnosis.problems] == ["HST001", "HW005"]
    cap = diagnosis.problems[1]
    assert "120 W, 39% of its default" in cap.message
    assert cap.fix == ("echo 304000000 | sudo tee /sys/class/drm/card1/device/hwmon/hwmon1/power1_cap",)
    assert not diagnosis.breaks_serving


def test_a_missing_partition_is_found_beside_numa_balancing_and_nothing_else(tmp_path: Path) -> None:
    machines.well_kept(machines.mi300x(tmp_path, partition="CPX", missing=(65,)))
    machines.write(tmp_path, {"proc/sys/kernel/numa_balancing": 1})
    diagnosis = told(tmp_path)
    assert set(wrong(diagnosis)) == {"HST001", "HW002"}
    assert [problem.id for problem in diagnosis.problems if problem.severity == "info"] == ["HW024"]
    assert "0000:75:00.0 shows 7 of 8 partitions" in wrong(diagnosis)["HW002"].message


def test_remarks_of_detection_come_with_effect_and_command(tmp_path: Path) -> None:
    machines.well_kept(machines.radeon(tmp_path, with_igpu=False))
    environment = {
        "HIP_VISIBLE_DEVICES": "0",
        "CUDA_VISIBLE_DEVICES": "1",
        "HSA_OVERRIDE_GFX_VERSION": "11.0.0",
        "HSA_CU_MASK": "0:0-3",
    }
    found = {problem.id: problem for problem in told(tmp_path, environment).problems}
    assert set(found) == {"ENV003", "ENV005", "ENV010"}
    assert found["ENV003"].severity == "error"
    assert found["ENV003"].fix == ("unset CUDA_VISIBLE_DEVICES",)
    hidden = told(tmp_path, {"ROCR_VISIBLE_DEVICES": ""})
    assert {problem.id: problem.severity for problem in hidden.problems}["ENV004"] == "error"
    assert hidden.breaks_serving


def test_a_processors_own_graphics_do_not_make_a_multi_gpu_host(tmp_path: Path) -> None:
    machines.radeon(tmp_path, with_igpu=True)
    machines.write(tmp_path, {"proc/cmdline": "ro quiet", "proc/sys/kernel/numa_balancing": 0})
    found = {problem.id for problem in told(tmp_path).problems}
    assert "HW007" in found
    assert not {"HST002", "HST021", "HST022"} & found


def test_throttling_by_heat_is_believed_of_a_card_that_works(tmp_path: Path) -> None:
    machines.well_kept(machines.rx9070xt(tmp_path))
    table = bytearray(120)
    table[:4] = (120).to_bytes(2, "little") + bytes([1, 3])
    table[112:120] = (1 << 36).to_bytes(8, "little")
    device = tmp_path / "sys/devices/pci0000:00/0000:03:00.0"
    (device / "gpu_metrics").write_bytes(table)
    assert told(tmp_path).problems == ()
    machines.write(device, {"gpu_busy_percent": 97})
    (problem,) = told(tmp_path).problems
    assert problem.id == "HW016"
    assert "97 % busy, edge 53 C, junction 61 C" in problem.evidence


def test_an_apu_is_told_how_to_map_more_memory(tmp_path: Path) -> None:
    (problem,) = (p for p in told(machines.strix_halo(tmp_path)).problems if p.id == "HW025")
    assert "ttm.pages_limit=25165824" in problem.fix[0]
    assert problem.fix[-1] == "# gives 96.0 GiB"


def test_instinct_hosts_are_told_about_governor_and_sleep_states(tmp_path: Path) -> None:
    instinct(tmp_path)
    machines.write(tmp_path / "sys/devices/system/cpu/cpu0", {"cpufreq/scaling_governor": "schedutil"})
    machines.write(tmp_path / "sys/devices/system/cpu/cpu0", {"cpuidle/state2/disable": 0})
    assert [(p.id, p.severity) for p in told(tmp_path).problems] == [("HST014", "info"), ("HST015", "info")]


def test_cards_of_two_groups_and_kinds_are_said(tmp_path: Path) -> None:
    found = {problem.id for problem in told(machines.mi210_two_hives(tmp_path / "a")).problems}
    assert found == {"HW011"}
    machines.mi300x(tmp_path / "b", count=1)
    machines.gpu_node(
        tmp_path / "b", 9, location=0x9900, device_id=0x744C, target=110000, units=96, vram_bytes=25753026560
    )
    assert "HW012" in {problem.id for problem in told(tmp_path / "b").problems}


def test_what_cannot_be_read_is_unknown_and_never_fine(tmp_path: Path) -> None:
    diagnosis = told(machines.mi300x(tmp_path))
    unknown = {question.id for question in diagnosis.unknown}
    assert {"HST001", "HST002", "HST005", "HST020", "HST021", "HST023", "HW017", "HW018", "HW019"} <= unknown
    assert not unknown & set(diagnosis.fine)
    assert all(question.why for question in diagnosis.unknown)


def test_a_recording_without_sys_leaves_questions_on_gpus_open(tmp_path: Path) -> None:
    machines.write(tmp_path / "proc", {"version": "Linux version 6.8.0-60-generic (builder)"})
    diagnosis = told(tmp_path)
    assert diagnosis.kernel == "6.8.0-60-generic"
    assert diagnosis.not_applicable == ()
    assert {"HST001", "HST005", "HW005", "HST011"} <= {question.id for question in diagnosis.unknown}
    with pytest.raises(InvalidInput, match="no recording of a machine"):
        told(tmp_path / "proc")


def test_a_machine_without_gpu_hears_what_it_can_do(tmp_path: Path) -> None:
    machines.cpu_only(tmp_path)
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    diagnosis = told(tmp_path)
    assert not diagnosis.breaks_serving
    (problem,) = diagnosis.problems
    assert problem.id == "HST011"
    assert "8 cores" in problem.evidence
    assert any("--gpus cpu" in line for line in problem.fix)


def test_a_card_without_driver_says_what_keeps_it_away(tmp_path: Path) -> None:
    machines.cpu_only(tmp_path)
    without_driver(tmp_path)
    machines.write(tmp_path, {"etc/modprobe.d/gpu.conf": "blacklist amdgpu", "proc/cmdline": "ro nomodeset"})
    diagnosis = told(tmp_path)
    assert diagnosis.breaks_serving
    (problem,) = wrong(diagnosis).values()
    assert problem.id == "HST004"
    assert "/etc/modprobe.d/gpu.conf, kernel parameter nomodeset" in problem.evidence
    assert problem.fix[0] == "sudo sed -i '/amdgpu/s/^/#/' /etc/modprobe.d/gpu.conf"


def test_permission_clock_and_disk_are_judged_on_a_live_machine(tmp_path: Path) -> None:
    facts = hosts.read(instinct(tmp_path))
    closed = DeviceFile(path="/dev/kfd", openable=False, owner="crw-rw---- root:render", group_id=109)
    spoilt = msgspec.structs.replace(
        facts,
        live=True,
        device_files=(closed, DeviceFile(path="/dev/dri/renderD128", openable=True)),
        clock_synchronised=False,
        cache_free_bytes=10**9,
        cache_dir="/root/.cache",
    )
    found = {problem.id: problem for problem in examine(spoilt).problems}
    assert set(found) == {"HST006", "HST019", "HST028"}
    assert found["HST006"].severity == "error"
    assert "root:render; uid 1000, groups 44, 109, 1000" in found["HST006"].evidence
    in_container = msgspec.structs.replace(
        spoilt, container=msgspec.structs.replace(facts.container, kind="docker"), container_engines=()
    )
    fix = next(problem.fix for problem in examine(in_container).problems if problem.id == "HST006")
    assert fix == ("# start the container with --group-add 109",)
    bare = msgspec.structs.replace(facts, container_engines=())
    assert [problem.id for problem in examine(bare).problems] == ["HST013"]


def test_the_kernels_own_form_of_its_log_is_read(tmp_path: Path) -> None:
    instinct(tmp_path)
    line = "6,1234,5678,-;amdgpu 0000:05:00.0: amdgpu: GPU reset begin!"
    machines.write(tmp_path, {"var/log/dmesg": f"{line}\n{line}"})
    (problem,) = told(tmp_path).problems
    assert problem.message == "a GPU was reset, 2 times"
    assert problem.evidence.startswith("amdgpu 0000:05:00.0")


def test_capability_lists_that_loop_or_end_early_are_no_finding() -> None:
    assert pci.redirects(b"") is None
    assert pci.redirects(bytes(64)) is None
    loop = bytearray(0x200)
    loop[0x100:0x104] = (0x0001 | 0x100 << 20).to_bytes(4, "little")
    assert pci.redirects(bytes(loop)) is False


def test_this_machine_is_examined_without_an_error() -> None:
    diagnosis = examine(hosts.read(cache_dir=Path.home()))
    assert len(diagnosis.fine) + len(diagnosis.unknown) + len(diagnosis.not_applicable) + len(diagnosis.problems) >= 40


@functools.cache
def tree() -> tuple[tempfile.TemporaryDirectory[str], list[Path]]:
    folder = tempfile.TemporaryDirectory()
    root = instinct(Path(folder.name), count=2)
    return folder, sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.none()
        | st.binary(max_size=40)
        | st.sampled_from([b"N/A", b"-1", b"65535", b"18446744073709551615", b"0x", b"\0" * 64, b"1" * 30]),
    ),
    min_size=1,
    max_size=6,
)
"""Which file, and what it holds then; None removes it."""


@settings(max_examples=60)
@given(DAMAGE)
def test_a_damaged_tree_is_still_diagnosed(changes: list[tuple[int, bytes | None]]) -> None:
    folder, files = tree()
    kept: dict[Path, bytes] = {}
    try:
        for number, content in changes:
            path = files[number % len(files)]
            kept.setdefault(path, path.read_bytes() if path.exists() else b"")
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        diagnosis = told(Path(folder.name))
        answered = {each.id for each in (*diagnosis.unknown, *diagnosis.not_applicable)}
        answered |= {problem.id for problem in diagnosis.problems}
        assert answered | set(diagnosis.fine) >= {check.id for check in CHECKS}
        msgspec.json.encode(diagnosis)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
