"""Machines built from facts: sysfs and proc trees in the kernel's own formats and layout, for tests that need no recording.

Every function writes below `path` and returns it, so that `detect.detect(machines.mi300x(tmp_path))` reads naturally.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

GIB = 1024**3
MIB = 1024**2

MI300X_VRAM = 206141652992
"""196592 MiB, what a driver shows of 192 GiB."""
MI210_VRAM = 65520 * MIB
PARTITIONS = {"SPX": 1, "DPX": 2, "QPX": 4, "CPX": 8}


def write(path: Path, files: Mapping[str, object]) -> None:
    """Files of one value each, with the newline that the kernel writes."""
    path.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"{value}\n")


def properties(values: Mapping[str, int]) -> str:
    """The text of a KFD `properties` file."""
    return "\n".join(f"{name} {value}" for name, value in values.items())


def host(
    path: Path,
    *,
    model: str = "AMD EPYC 9654 96-Core Processor",
    vendor: str = "AuthenticAMD",
    family: int = 25,
    model_number: int = 17,
    cores: int = 8,
    sockets: int = 1,
    threads_per_core: int = 2,
    memory_bytes: int = 64 * GIB,
    available_bytes: int | None = None,
    flags: str = "fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni",
    mhz: float = 2400.0,
    numa_nodes: int = 1,
) -> Path:
    """An x86 host with its memory; `cores` are physical ones of one socket."""
    blocks = []
    number = 0
    for thread in range(threads_per_core):
        for socket in range(sockets):
            for core in range(cores):
                blocks.append(
                    f"processor\t: {number}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model_number}\n"
                    f"model name\t: {model}\ncpu MHz\t\t: {mhz:.3f}\nphysical id\t: {socket}\n"
                    f"siblings\t: {cores * threads_per_core}\ncore id\t\t: {core}\ncpu cores\t: {cores}\nflags\t\t: {flags}\n"
                )
                number += 1
        del thread
    available = memory_bytes if available_bytes is None else available_bytes
    write(
        path / "proc",
        {
            "cpuinfo": "\n".join(blocks),
            "meminfo": f"MemTotal:       {memory_bytes // 1024} kB\nMemFree:        {available // 2048} kB\n"
            f"MemAvailable:   {available // 1024} kB",
            "self/status": f"Name:\tpython\nCpus_allowed_list:\t0-{number - 1}",
            "self/cgroup": "0::/",
        },
    )
    for node in range(numa_nodes):
        (path / f"sys/devices/system/node/node{node}").mkdir(parents=True, exist_ok=True)
    return path


def cpu_only(path: Path) -> Path:
    """A server without any GPU."""
    (path / "sys/class/drm").mkdir(parents=True)
    return host(path)


def cpu_node(path: Path, number: int, *, threads: int, memory_bytes: int = 64 * GIB) -> None:
    """A CPU node of the KFD topology."""
    node = path / f"sys/class/kfd/kfd/topology/nodes/{number}"
    write(
        node,
        {"gpu_id": 0, "properties": properties({"cpu_cores_count": threads, "simd_count": 0, "gfx_target_version": 0})},
    )
    bank = properties({"heap_type": 0, "size_in_bytes": memory_bytes, "width": 64})
    write(node / "mem_banks/0", {"properties": bank})


def gpu_node(
    path: Path,
    number: int,
    *,
    location: int,
    device_id: int,
    target: int | None,
    units: int,
    dies: int | None = 1,
    vram_bytes: int | None = None,
    minor: int = 128,
    hive: int = 0,
    unique: int = 0,
    domain: int = 0,
) -> None:
    """A GPU node of the KFD topology; None leaves a line out, as old kernels do."""
    values = {
        "cpu_cores_count": 0,
        "simd_count": units * 4,
        "simd_per_cu": 4,
        "vendor_id": 4098,
        "device_id": device_id,
        "location_id": location,
        "domain": domain,
        "drm_render_minor": minor,
        "hive_id": hive,
        "local_mem_size": 0,
        "unique_id": unique,
    }
    if target is not None:
        values["gfx_target_version"] = target
    if dies is not None:
        values["num_xcc"] = dies
    node = path / f"sys/class/kfd/kfd/topology/nodes/{number}"
    write(node, {"gpu_id": 1000 + number, "name": "ip discovery", "properties": properties(values)})
    if vram_bytes is not None:
        write(node / "mem_banks/0", {"properties": properties({"heap_type": 1, "size_in_bytes": vram_bytes})})


def link(path: Path, source: int, target: int, *, kind: int, weight: int, megabytes_s: int = 0) -> None:
    """One link of a KFD node: kind 2 is PCIe, 11 xGMI."""
    folder = path / f"sys/class/kfd/kfd/topology/nodes/{source}/io_links"
    values = {"type": kind, "node_from": source, "node_to": target, "weight": weight, "max_bandwidth": megabytes_s}
    write(folder / str(len(list(folder.glob("*")))), {"properties": properties(values)})


def card(
    path: Path,
    number: int,
    *,
    address: str,
    device_id: str,
    files: Mapping[str, object],
    driver: str = "amdgpu",
    revision: str = "0x00",
    pci_class: str = "0x030000",
    minor: int | None = None,
    hwmon: Mapping[str, object] | None = None,
) -> Path:
    """A DRM card as the kernel lays it out: the device under its bus, and links to it from the classes. Returns the device."""
    device = path / "sys/devices/pci0000:00" / address
    uevent = f"DRIVER={driver}\nPCI_CLASS={pci_class[2:]}\nPCI_ID=1002:{device_id.upper()}\nPCI_SLOT_NAME={address}"
    write(
        device,
        {"vendor": "0x1002", "device": f"0x{device_id}", "revision": revision, "class": pci_class, "uevent": uevent},
    )
    write(device, files)
    if hwmon is not None:
        write(device / f"hwmon/hwmon{number}", {"name": driver, **hwmon})
    names = [f"card{number}"] + ([f"renderD{minor}"] if minor is not None else [])
    for name in names:
        folder = device / "drm" / name
        folder.mkdir(parents=True)
        (folder / "device").symlink_to("../..")
        classes = path / "sys/class/drm"
        classes.mkdir(parents=True, exist_ok=True)
        (classes / name).symlink_to(f"../../devices/pci0000:00/{address}/drm/{name}")
    bus = path / "sys/bus/pci/devices"
    bus.mkdir(parents=True, exist_ok=True)
    (bus / address).symlink_to(f"../../../devices/pci0000:00/{address}")
    return device


def mi300x(
    path: Path, *, count: int = 8, partition: str = "SPX", with_drm: bool = True, missing: Sequence[int] = ()
) -> Path:
    """A node of MI300X in one hive, half of them at each socket. `missing` names KFD nodes that do not show."""
    host(path, sockets=2, cores=96, memory_bytes=1536 * GIB, numa_nodes=2)
    cpu_node(path, 0, threads=192)
    cpu_node(path, 1, threads=192)
    parts = PARTITIONS[partition]
    numbers: list[tuple[int, int]] = []
    number = 2
    for package in range(count):
        bus = 0x05 + 0x10 * package
        for part in range(parts):
            if number not in missing:
                gpu_node(
                    path,
                    number,
                    location=bus << 8 | part,
                    device_id=0x74A1,
                    target=90402,
                    units=304 // parts,
                    dies=8 // parts,
                    vram_bytes=MI300X_VRAM // parts if with_drm else None,
                    minor=128 + number - 2,
                    hive=0xD2C9A1,
                    unique=0xE3A0 + package,
                )
                numbers.append((number, package))
            number += 1
        if with_drm:
            card(
                path,
                package + 1,
                address=f"0000:{bus:02x}:00.0",
                device_id="74a1",
                pci_class="0x120000",
                minor=128 + package * parts,
                files={
                    "mem_info_vram_total": MI300X_VRAM,
                    "mem_info_vram_used": 283 * MIB,
                    "mem_info_gtt_total": 768 * GIB,
                    "current_compute_partition": partition,
                    "current_memory_partition": "NPS1",
                    "numa_node": 0 if package < count / 2 else 1,
                    "unique_id": f"{0xE3A0 + package:016x}",
                },
                hwmon={
                    "power1_label": "PPT",
                    "power1_cap": 750_000_000,
                    "power1_cap_default": 750_000_000,
                    "temp2_input": 41000,
                    "temp2_label": "junction",
                },
            )
    for source, package in numbers:
        link(path, source, 0 if package < count / 2 else 1, kind=2, weight=20, megabytes_s=64000)
        for target, other in numbers:
            if target != source and parts == 1:
                link(path, source, target, kind=11, weight=15, megabytes_s=50000)
            elif target != source:
                link(path, source, target, kind=11, weight=13 if package == other else 41)
    return path


def rx9070xt(path: Path, *, power_cap_w: int = 304) -> Path:
    """A workstation with one RX 9070 XT, whose default cap is 304 W."""
    return radeon(
        path,
        device_id="7550",
        revision="0xc0",
        target=120001,
        units=64,
        vram_bytes=17095983104,
        power_cap_w=power_cap_w,
        power_default_w=304,
    )


def well_kept(path: Path) -> Path:
    """Everything a diagnosis reads of a machine that another function wrote, as AMD asks for it."""
    write(
        path / "proc",
        {
            "sys/kernel/numa_balancing": 0,
            "sys/kernel/osrelease": "6.8.0-60-generic",
            "sys/vm/overcommit_memory": 0,
            "cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro iommu=pt",
            "self/mounts": "proc /proc proc rw 0 0\ntmpfs /dev/shm tmpfs rw,nosuid,size=67108864k 0 0",
            "self/limits": "Limit                     Soft Limit           Hard Limit           Units\n"
            "Max open files            1024                 1048576              files\n"
            "Max locked memory         unlimited            unlimited            bytes",
            "devices": "Character devices:\n226 drm\n236 kfd\n\nBlock devices:\n  8 sd",
        },
    )
    status, meminfo = path / "proc/self/status", path / "proc/meminfo"
    status.write_text(
        status.read_text() + "Uid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t44 109 1000\n"
    )
    meminfo.write_text(
        meminfo.read_text()
        + "SwapTotal:       8388604 kB\nSwapFree:        8388604 kB\nHugePages_Total:       0\nHugePages_Free:        0\n"
        "Hugepagesize:       2048 kB\n"
    )
    write(path / "etc", {"group": "root:x:0:\nvideo:x:44:user\nrender:x:109:user"})
    write(path / "sys/module/amdgpu", {"version": "6.16.6"})
    write(path / "sys/devices/system/cpu/cpu0", {"cpufreq/scaling_governor": "performance"})
    write(path / "sys/devices/system/cpu/cpu0/cpuidle", {"state0/name": "POLL", "state0/disable": 0})
    write(path / "sys/devices/system/cpu/cpu0/cpuidle", {"state2/name": "C2", "state2/disable": 1})
    (path / "sys/class/iommu/ivhd0").mkdir(parents=True)
    write(path / "dev", {"kfd": "", "dri/renderD128": ""})
    write(path / "run", {"systemd/timesync/synchronized": "", "docker.sock": ""})
    write(path / "var/log", {"dmesg": "[    0.000000] Linux version 6.8.0"})
    for device in (path / "sys/devices/pci0000:00").glob("0*"):
        speed = {"current_link_speed": "32.0 GT/s PCIe", "max_link_speed": "32.0 GT/s PCIe"}
        counters = {f"aer_dev_{kind}": f"TLP 0\nTOTAL_ERR_{kind.upper()} 0" for kind in ("fatal", "nonfatal")}
        write(device, {**speed, "current_link_width": 16, "max_link_width": 16, **counters})
        write(device, {"mem_info_vis_vram_total": (device / "mem_info_vram_total").read_text().strip()})
        write(device, {"ras/umc_err_count": "ue: 0\nce: 0", "ras/gpu_vram_bad_pages": ""})
        write(device, {"fw_version/mec_fw_version": "0x000000b1", "power_dpm_force_performance_level": "auto"})
        (monitor,) = (device / "hwmon").iterdir()
        write(monitor, {"temp2_crit": 110000})
    return path


def mi210_two_hives(path: Path) -> Path:
    """Eight MI210 in two bridges of four, without DRM files: memory is not shown."""
    host(path, sockets=2, cores=32, memory_bytes=512 * GIB, numa_nodes=2)
    cpu_node(path, 0, threads=64)
    cpu_node(path, 1, threads=64)
    buses = [0x63, 0x43, 0x03, 0x26, 0xE3, 0xC3, 0x83, 0xA3]
    for index, bus in enumerate(buses):
        hive = 0xAF if index < 4 else 0xFB
        gpu_node(
            path, 2 + index, location=bus << 8, device_id=0x740F, target=90010, units=104, minor=128 + index, hive=hive
        )
        link(path, 2 + index, index // 4, kind=2, weight=20, megabytes_s=32000)
        for other in range(8):
            if other != index and other // 4 == index // 4:
                link(path, 2 + index, 2 + other, kind=11, weight=15, megabytes_s=50000)
            elif other != index:
                link(path, 2 + index, 2 + other, kind=2, weight=72)
    return path


def radeon(
    path: Path,
    *,
    device_id: str = "744c",
    revision: str = "0xc8",
    target: int = 110000,
    units: int = 96,
    vram_bytes: int = 25753026560,
    power_cap_w: int = 303,
    power_default_w: int = 303,
    with_igpu: bool = False,
) -> Path:
    """A workstation with one Radeon (RX 7900 XTX unless told), and the processor's own graphics if asked."""
    host(path, model="AMD Ryzen 9 7950X 16-Core Processor", model_number=97, cores=16, memory_bytes=64 * GIB)
    cpu_node(path, 0, threads=32)
    gpu_node(path, 1, location=0x0300, device_id=int(device_id, 16), target=target, units=units, vram_bytes=vram_bytes)
    link(path, 1, 0, kind=2, weight=20, megabytes_s=32000)
    card(
        path,
        1,
        address="0000:03:00.0",
        device_id=device_id,
        revision=revision,
        minor=128,
        files={
            "mem_info_vram_total": vram_bytes,
            "mem_info_vram_used": 512 * MIB,
            "mem_info_gtt_total": 32 * GIB,
            "numa_node": -1,
            "power_dpm_force_performance_level": "auto",
            "pp_dpm_sclk": "0: 500Mhz \n1: 31Mhz *\n2: 2219Mhz ",
            "current_link_speed": "16.0 GT/s PCIe",
            "current_link_width": 16,
            "gpu_busy_percent": 3,
        },
        hwmon={
            "temp1_input": 53000,
            "temp1_label": "edge",
            "temp1_crit": 100000,
            "temp2_input": 61000,
            "temp2_label": "junction",
            "temp3_input": 0,
            "temp3_label": "mem",
            "power1_average": 68_000_000,
            "power1_label": "PPT",
            "power1_cap": power_cap_w * 10**6,
            "power1_cap_default": power_default_w * 10**6,
            "power1_cap_max": round(power_default_w * 1.1) * 10**6,
        },
    )
    if with_igpu:
        heap = 31 * GIB
        gpu_node(path, 2, location=0x1100, device_id=0x164E, target=100306, units=2, vram_bytes=heap, minor=129)
        card(
            path,
            2,
            address="0000:11:00.0",
            device_id="164e",
            revision="0xd8",
            minor=129,
            files={"mem_info_vram_total": 512 * MIB, "mem_info_gtt_total": heap},
        )
    return path


def strix_halo(path: Path, *, carve_out_bytes: int = 512 * MIB, available_bytes: int = 110 * GIB) -> Path:
    """A Ryzen AI Max+ 395 with 128 GiB: a small carve-out, and half of the rest mapped by the GPU."""
    memory = 128 * GIB - carve_out_bytes
    gtt = memory // 2
    host(
        path,
        model="AMD RYZEN AI MAX+ 395 w/ Radeon 8060S",
        family=26,
        model_number=112,
        cores=16,
        memory_bytes=memory,
        available_bytes=available_bytes,
    )
    cpu_node(path, 0, threads=32, memory_bytes=memory)
    gpu_node(path, 1, location=0xC400, device_id=0x1586, target=110501, units=40, vram_bytes=gtt)
    link(path, 1, 0, kind=2, weight=20)
    card(
        path,
        0,
        address="0000:c4:00.0",
        device_id="1586",
        revision="0xc1",
        pci_class="0x038000",
        minor=128,
        files={
            "mem_info_vram_total": carve_out_bytes,
            "mem_info_vram_used": 100 * MIB,
            "mem_info_gtt_total": gtt,
            "mem_info_gtt_used": 20 * MIB,
        },
    )
    return path


def radeon_under_old_driver(path: Path) -> Path:
    """An HD 7870 under the driver radeon, which has no compute."""
    host(path)
    card(path, 0, address="0000:01:00.0", device_id="6818", driver="radeon", files={})
    return path
