"""The facts that the checks judge, read below a root: `/` or a recorded tree of /sys, /proc, /etc and /dev.

Absent and unreadable are None, never zero. What only a live machine can answer (may this process open a file, is the clock in
step, how much space is left) stays None in a recording.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from aim_engine.doctor import pci
from aim_engine.doctor.pci import CardState, PciGpu
from aim_engine.errors import InvalidInput
from aim_engine.hardware import cpu, detect, drm, kfd, sysfs
from aim_engine.hardware.cluster import Device, Node

ENVIRONMENT = ("HSA_CU_MASK", "HIP_DEVICE_MEMORY_LIMIT", "HSA_NO_SCRATCH_RECLAIM")
"""Variables that limit or mend what the runtime does with a card, beside those that detection reads."""
KERNEL_LOGS = ("dmesg", "dmesg.txt", "var/log/dmesg", "var/log/kern.log")
"""Where a recording may hold the kernel's log."""
_LOG_BYTES = 2**22
_TIME_ERROR = 5
"""What adjtimex returns while the clock is not synchronised. Source: adjtimex(2)."""
_ENGINES = {
    "docker": ("run/docker.sock", "var/run/docker.sock", "usr/bin/docker", "usr/bin/dockerd"),
    "podman": ("run/podman/podman.sock", "usr/bin/podman"),
    "containerd": ("run/containerd/containerd.sock", "usr/bin/containerd"),
}


class Limit(msgspec.Struct, frozen=True):
    """One resource limit of the process; None means unlimited."""

    soft: int | None
    hard: int | None


class DeviceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of /dev that ROCm opens."""

    path: str
    openable: bool | None
    """May this process read and write it? None in a recording."""
    owner: str = ""
    """Such as `crw-rw---- root:render`; empty in a recording."""
    group_id: int | None = None


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Who would run the engine."""

    uid: int
    group_ids: tuple[int, ...]


class IdleState(msgspec.Struct, frozen=True, kw_only=True):
    """A sleep state of the processor."""

    name: str
    enabled: bool


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process that uses GPUs for compute."""

    pid: int
    name: str
    vram_bytes: int


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """What control groups allow, and whether this is a container."""

    kind: str | None
    """docker, podman, kubernetes, or container; None on the host itself."""
    memory_limit_bytes: int | None = None
    oom_kills: int | None = None
    pids_max: int | None = None
    """None where there is no limit, or none could be read (`pids_known`)."""
    pids_current: int | None = None
    pids_known: bool = False
    device_rules: tuple[str, ...] | None = None
    """Version 1 only; version 2 keeps its rules in a program that cannot be read."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One machine as the checks see it."""

    live: bool
    sys_shown: bool
    """False where a recording holds nothing of /sys, so that no GPU seen does not mean that there is none."""
    node: Node
    pci_gpus: tuple[PciGpu, ...] | None
    """AMD GPUs on the bus, whatever their driver; None where the bus is not shown."""
    cards: tuple[CardState, ...]
    kernel: str | None = None
    command_line: str | None = None
    module_loaded: bool | None = None
    blacklisted_in: tuple[str, ...] = ()
    """Where the amdgpu module is kept from loading."""
    device_files: tuple[DeviceFile, ...] | None = None
    """None where /dev is not shown."""
    kfd_major: int | None = None
    user: User | None = None
    groups: dict[str, int] | None = None
    """Names of the host's groups."""
    environment: dict[str, str] = {}
    numa_balancing: int | None = None
    iommus: int | None = None
    governors: tuple[str, ...] = ()
    energy_preferences: tuple[str, ...] = ()
    idle_states: tuple[IdleState, ...] = ()
    memory: dict[str, int] = {}
    """/proc/meminfo; sizes in bytes, counts as they are."""
    overcommit: int | None = None
    shm_bytes: int | None = None
    limits: dict[str, Limit] = {}
    """By the kernel's names, such as `Max open files`."""
    container: Container
    cache_dir: str = ""
    cache_free_bytes: int | None = None
    container_engines: tuple[str, ...] | None = None
    holders: tuple[Holder, ...] | None = None
    clock_synchronised: bool | None = None
    kernel_log: str | None = None

    @property
    def serving(self) -> tuple[Device, ...]:
        """The devices one would serve on: without the processor's own graphics where there is a card beside it."""
        cards = tuple(device for device in self.node.devices if not device.shared_memory)
        return cards or self.node.devices


def read(
    root: Path = detect.LIVE,
    *,
    overlay: Path | None = None,
    environment: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    name: str | None = None,
) -> Host:
    """The facts below `root`. `environment` as for `detect.detect`; `cache_dir` is where weights are kept on a live machine.

    Raises: InvalidInput when `root` holds no machine.
    """
    live = root == detect.LIVE
    if not (root / "sys").is_dir() and not (root / "proc").is_dir():
        raise InvalidInput(f"{name or root} holds neither sys nor proc, so it is no recording of a machine")
    environment = environment if environment is not None else (os.environ if live else {})
    cluster = detect.detect(root, run_tools=live, overlay=overlay, environment=environment, readings=True, name=name)
    release = sysfs.text(root / "proc/sys/kernel/osrelease")
    version = re.match(r"Linux version (\S+)", sysfs.text(root / "proc/version") or "")
    cpus = root / "sys/devices/system/cpu"
    return Host(
        live=live,
        sys_shown=any((root / place).is_dir() for place in ("sys/bus/pci/devices", drm.FOLDER, kfd.TOPOLOGY)),
        node=cluster.nodes[0],
        pci_gpus=pci.gpus(root),
        cards=tuple(pci.state(card) for card in drm.cards(root) if card.usable),
        kernel=release or (version[1] if version else None),
        command_line=sysfs.text(root / "proc/cmdline"),
        module_loaded=_module_loaded(root),
        blacklisted_in=_blacklisted(root),
        device_files=_device_files(root, live),
        kfd_major=_major(root, "kfd"),
        user=_user(root, live),
        groups=_groups(root),
        environment={key: environment[key] for key in ENVIRONMENT if key in environment},
        numa_balancing=sysfs.integer(root / "proc/sys/kernel/numa_balancing"),
        iommus=len(list(sysfs.children(root / "sys/class/iommu"))) if (root / "sys/class/iommu").is_dir() else None,
        governors=_values(cpus, "cpu[0-9]*/cpufreq/scaling_governor"),
        energy_preferences=_values(cpus, "cpu[0-9]*/cpufreq/energy_performance_preference"),
        idle_states=_idle_states(cpus / "cpu0/cpuidle"),
        memory=_memory(root),
        overcommit=sysfs.integer(root / "proc/sys/vm/overcommit_memory"),
        shm_bytes=_shm_bytes(root),
        limits=_limits(root),
        container=_container(root, environment),
        cache_dir=str(cache_dir) if cache_dir is not None else "",
        cache_free_bytes=_free_bytes(cache_dir) if live and cache_dir is not None else None,
        container_engines=_engines(root),
        holders=_holders(root),
        clock_synchronised=_clock(root, live),
        kernel_log=_kernel_log(root, live),
    )


def _module_loaded(root: Path) -> bool | None:
    if (root / "sys/module/amdgpu").is_dir():
        return True
    return False if (root / "sys/module").is_dir() else None


def _blacklisted(root: Path) -> tuple[str, ...]:
    found = []
    for folder in ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"):
        for path in sysfs.files(root / folder, "*.conf"):
            lines = (sysfs.text(path) or "").splitlines()
            if any(
                re.match(r"\s*(blacklist\s+amdgpu|install\s+amdgpu\s+/bin/(true|false))\s*(#|$)", line)
                for line in lines
            ):
                found.append(f"/{folder}/{path.name}")
    words = (sysfs.text(root / "proc/cmdline") or "").split()
    for word in words:
        key, _, value = word.partition("=")
        if key in ("modprobe.blacklist", "module_blacklist", "rd.driver.blacklist") and "amdgpu" in value.split(","):
            found.append(f"kernel parameter {word}")
    if "nomodeset" in words:
        found.append("kernel parameter nomodeset")
    return tuple(dict.fromkeys(found))


def _device_files(root: Path, live: bool) -> tuple[DeviceFile, ...] | None:
    dev = root / "dev"
    try:
        if not dev.is_dir() or not any(dev.iterdir()):
            return None
    except OSError:
        return None
    names = _groups(root) or {}
    by_id = {number: name for name, number in names.items()}
    found = []
    for path in (dev / "kfd", *sysfs.files(dev / "dri", "renderD*")):
        try:
            status = path.stat()
        except OSError:
            continue
        if not live:
            found.append(DeviceFile(path=f"/{path.relative_to(root)}", openable=None))
            continue
        import stat

        group = by_id.get(status.st_gid, str(status.st_gid))
        owner = f"{stat.filemode(status.st_mode)} {'root' if status.st_uid == 0 else status.st_uid}:{group}"
        openable = os.access(path, os.R_OK | os.W_OK)
        found.append(DeviceFile(path=str(path), openable=openable, owner=owner, group_id=status.st_gid))
    return tuple(found)


def _major(root: Path, name: str) -> int | None:
    for line in (sysfs.text(root / "proc/devices") or "").splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[1] == name:
            return sysfs.to_int(parts[0])
    return None


def _user(root: Path, live: bool) -> User | None:
    if live:
        return User(uid=os.geteuid(), group_ids=tuple(sorted({*os.getgroups(), os.getegid()})))
    fields = {}
    for line in (sysfs.text(root / "proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        fields[key] = [number for part in value.split() if (number := sysfs.to_int(part)) is not None]
    uids, groups = fields.get("Uid", []), fields.get("Groups")
    if len(uids) < 2 or groups is None:
        return None
    return User(uid=uids[1], group_ids=tuple(sorted({*groups, *fields.get("Gid", [])[1:2]})))


def _groups(root: Path) -> dict[str, int] | None:
    text = sysfs.text(root / "etc/group", limit=2**20)
    if text is None:
        return None
    rows = (line.split(":") for line in text.splitlines())
    return {row[0]: number for row in rows if len(row) >= 3 and (number := sysfs.to_int(row[2])) is not None}


def _values(folder: Path, pattern: str) -> tuple[str, ...]:
    """The different values of one file of all processors, sorted."""
    return tuple(sorted({value for path in sysfs.files(folder, pattern) if (value := sysfs.text(path)) is not None}))


def _idle_states(folder: Path) -> tuple[IdleState, ...]:
    found = []
    for state in sysfs.children(folder):
        name, disabled = sysfs.text(state / "name"), sysfs.integer(state / "disable")
        if name is not None and disabled is not None:
            found.append(IdleState(name=name, enabled=disabled == 0))
    return tuple(found)


def _memory(root: Path) -> dict[str, int]:
    found = {}
    for line in (sysfs.text(root / "proc/meminfo") or "").splitlines():
        match = re.match(r"([\w()]+):\s+(\d{1,15})( kB)?\s*$", line)
        if match:
            found[match[1]] = int(match[2]) * (1024 if match[3] else 1)
    return found


def _shm_bytes(root: Path) -> int | None:
    """The size of the tmpfs on /dev/shm; half of the memory where its mount names none. Source: tmpfs(5)."""
    for path in ("proc/self/mounts", "proc/mounts"):
        for line in (sysfs.text(root / path, limit=2**20) or "").splitlines():
            parts = line.split()
            if len(parts) < 4 or parts[1] != "/dev/shm" or parts[2] != "tmpfs":  # noqa: S108 - the engine's own place
                continue
            total = _memory(root).get("MemTotal")
            size = re.search(r"(?:^|,)size=(\d{1,18})([kmgKMG%]?)(?:,|$)", parts[3])
            if size is None:
                return total // 2 if total else None
            if size[2] == "%":
                return total * int(size[1]) // 100 if total else None
            return int(size[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[size[2].lower()]
    return None


def _limits(root: Path) -> dict[str, Limit]:
    found = {}
    for line in (sysfs.text(root / "proc/self/limits") or "").splitlines():
        match = re.match(r"(Max .+?)\s{2,}(\S+)\s+(\S+)", line)
        if match:
            soft, hard = (None if each == "unlimited" else sysfs.to_int(each) for each in (match[2], match[3]))
            if all(each == "unlimited" or sysfs.to_int(each) is not None for each in (match[2], match[3])):
                found[match[1]] = Limit(soft, hard)
    return found


def _container(root: Path, environment: Mapping[str, str]) -> Container:
    groups = sysfs.text(root / "proc/1/cgroup") or sysfs.text(root / "proc/self/cgroup") or ""
    kind = None
    if "KUBERNETES_SERVICE_HOST" in environment or "kubepods" in groups:
        kind = "kubernetes"
    elif (root / ".dockerenv").exists() or "/docker" in groups:
        kind = "docker"
    elif (root / "run/.containerenv").exists() or "libpod" in groups:
        kind = "podman"
    elif sysfs.text(root / "run/systemd/container"):
        kind = "container"
    limit, _ = cpu.memory_limit(root)
    pids_max, pids_current, pids_known = None, None, False
    oom_kills = None
    rules: tuple[str, ...] | None = None
    for folder in cpu.cgroup_folders(root, ("pids", "memory", "devices")):
        maximum = sysfs.text(folder / "pids.max")
        if maximum is not None:
            pids_known = True
            number = sysfs.to_int(maximum)
            if number is not None and (pids_max is None or number < pids_max):
                pids_max, pids_current = number, sysfs.integer(folder / "pids.current")
        for name in ("memory.events", "memory.oom_control"):
            kills = sysfs.properties(folder / name).get("oom_kill")
            oom_kills = kills if oom_kills is None else oom_kills
        listed = sysfs.text(folder / "devices.list")
        if listed is not None and rules is None:
            rules = tuple(line.strip() for line in listed.splitlines())
    return Container(
        kind=kind,
        memory_limit_bytes=limit,
        oom_kills=oom_kills,
        pids_max=pids_max,
        pids_current=pids_current,
        pids_known=pids_known,
        device_rules=rules,
    )


def _free_bytes(folder: Path) -> int | None:
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def _engines(root: Path) -> tuple[str, ...] | None:
    if not (root / "usr").is_dir() and not (root / "run").is_dir():
        return None
    return tuple(name for name, places in _ENGINES.items() if any((root / place).exists() for place in places))


def _holders(root: Path) -> tuple[Holder, ...] | None:
    """Processes with compute contexts. Source: Linux drivers/gpu/drm/amd/amdkfd/kfd_process.c, files vram_<gpu id>."""
    folder = root / "sys/class/kfd/kfd/proc"
    if not folder.is_dir():
        return None
    found = []
    for entry in sysfs.children(folder):
        if entry.name.isdigit():
            used = sum(max(0, sysfs.integer(path) or 0) for path in sysfs.files(entry, "vram_*"))
            found.append(
                Holder(pid=int(entry.name), name=sysfs.text(root / f"proc/{entry.name}/comm") or "?", vram_bytes=used)
            )
    return tuple(found)


def _clock(root: Path, live: bool) -> bool | None:
    if (root / "run/systemd/timesync/synchronized").exists():
        return True
    if not live:
        return None
    import ctypes

    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else answer != _TIME_ERROR


def _kernel_log(root: Path, live: bool) -> str | None:
    if not live:
        for name in KERNEL_LOGS:
            text = sysfs.text(root / name, limit=_LOG_BYTES)
            if text is not None:
                return text
        return None
    try:
        descriptor = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    lines: list[bytes] = []
    try:
        while sum(map(len, lines)) < _LOG_BYTES:
            try:
                lines.append(os.read(descriptor, 8192))
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue
            except OSError:
                return None
    finally:
        os.close(descriptor)
    return b"".join(lines).decode("utf-8", "replace")
