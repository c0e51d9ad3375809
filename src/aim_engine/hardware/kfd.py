"""GPUs as the kernel shows them: KFD topology, joined with DRM and hwmon where they are there.

Needs no ROCm userland and no root. Format: Linux drivers/gpu/drm/amd/amdkfd/kfd_topology.c. A device's identity is its PCI
address; on a partitioned package the function is the partition number. What a file does not say stays None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import msgspec

from aim_engine.hardware import sysfs
from aim_engine.hardware.cluster import Device, Finding

TOPOLOGY = "sys/class/kfd/kfd/topology/nodes"
DRM = "sys/class/drm"
AMD_VENDOR = 0x1002
LINK_PCIE, LINK_XGMI = 2, 11
_HEAP_VRAM = (1, 2)
"""mem_banks heap types: frame buffer public and private."""
_OLD_ARCHS = {
    0x6860: "gfx900",
    0x6861: "gfx900",
    0x6862: "gfx900",
    0x6863: "gfx900",
    0x6864: "gfx900",
    0x6867: "gfx900",
    0x6868: "gfx900",
    0x687F: "gfx900",
    0x66A0: "gfx906",
    0x66A1: "gfx906",
    0x66AF: "gfx906",
    0x738C: "gfx908",
    0x738E: "gfx908",
}
"""Device ids of cards whose old kernels have no gfx_target_version line."""
_MODES = {1: "SPX", 2: "DPX", 3: "TPX", 4: "QPX", 8: "CPX"}
_WHOLE_XCCS = {"74a0": 6, "74a1": 8, "74a2": 4, "74a5": 8, "74a9": 8, "75a0": 8, "75a3": 8}
"""Compute dies of a whole package by PCI id, for telling the partition mode from a device's share."""


class Kfd(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel showed: the GPUs, the CPU nodes beside them, and what could not be read."""

    devices: tuple[Device, ...]
    cpu_nodes: int
    cpu_cores_per_node: int | None
    link_weights: dict[str, int]
    findings: tuple[Finding, ...]


def read(root: Path) -> Kfd:
    """The GPUs below `root` (`/` or a recorded tree), in the order ROCm enumerates them."""
    cpus: dict[int, Mapping[str, int]] = {}
    gpus: dict[int, tuple[Mapping[str, int], Path]] = {}
    unreadable = []
    for folder in sysfs.children(root / TOPOLOGY):
        if not folder.name.isdigit():
            continue
        properties = sysfs.properties(folder / "properties")
        number = int(folder.name)
        if not properties:
            unreadable.append(number)
        elif properties.get("simd_count", 0) > 0:
            if properties.get("vendor_id", AMD_VENDOR) == AMD_VENDOR:
                gpus[number] = (properties, folder)
        elif properties.get("cpu_cores_count", 0) > 0:
            cpus[number] = properties
    links = {number: _links(folder) for number, (_, folder) in gpus.items()}
    partitions = _partitions(gpus)
    cards = _cards(root)
    devices = [
        _device(index, number, properties, folder, links[number], cpus, partitions, cards)
        for index, (number, (properties, folder)) in enumerate(sorted(gpus.items()))
    ]
    if not devices:
        devices = [_bare_device(index, card) for index, card in enumerate(_by_address(cards))]
    cores = [properties["cpu_cores_count"] for properties in cpus.values()]
    return Kfd(
        devices=tuple(devices),
        cpu_nodes=len(cpus),
        cpu_cores_per_node=cores[0] if cores and len(set(cores)) == 1 else None,
        link_weights=_weights(devices, links),
        findings=(*_unreadable(unreadable), *_incomplete(devices), *_other_drivers(root)),
    )


def arch_of(version: int | None, device_id: int | None = None) -> str | None:
    """`gfx_target_version` as an LLVM target: decimal MMmmss, of which the last two digits print in hexadecimal.

    90010 -> gfx90a, 90402 -> gfx942, 110003 -> gfx1103. Falls back on the device id where the kernel gives no version.
    """
    if version:
        return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    return _OLD_ARCHS.get(device_id) if device_id is not None else None


def address_of(domain: int, location: int) -> str:
    """`location_id` as a PCI address: bus, device and function (the partition number) in one number."""
    return f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


def package_of(address: str) -> str:
    """The address of the package a partition belongs to: function 0."""
    return f"{address.rsplit('.', 1)[0]}.0"


def _device(
    index: int,
    number: int,
    properties: Mapping[str, int],
    folder: Path,
    links: list[Mapping[str, int]],
    cpus: Mapping[int, Mapping[str, int]],
    partitions: Mapping[str, int],
    cards: list[Card],
) -> Device:
    device_id = properties.get("device_id")
    address = (
        address_of(properties.get("domain", 0), properties["location_id"]) if "location_id" in properties else None
    )
    minor = properties.get("drm_render_minor") or None
    card = _card_of(cards, address, minor)
    per_simd = properties.get("simd_per_cu")
    cpu_link = [link["node_to"] for link in links if link.get("type") == LINK_PCIE and link.get("node_to") in cpus]
    pci_id = f"{device_id:04x}" if device_id else (card.pci_id if card else None)
    package = package_of(address) if address else None
    heap = _heap_bytes(folder)
    sources = {"arch": "kfd", "bdf": "kfd", "compute_units": "kfd"}
    total, used = None, None
    if card is not None and card.vram_total:
        total, used = card.vram_total, card.vram_used
        sources["memory_total_bytes"] = "drm"
        if heap is not None and card.is_apu:
            total, used = max(heap, card.vram_total), None
            sources["memory_total_bytes"] = "kfd"
    elif heap is not None:
        total = heap
        sources["memory_total_bytes"] = "kfd"
    mode = card.compute_partition if card else None
    if mode is None and package is not None:
        mode = _mode(properties, pci_id, partitions.get(package, 1))
    hive = properties.get("hive_id")
    return Device(
        index=index,
        gpu=None,
        product=(card.product if card else None) or "AMD GPU",
        arch=arch_of(properties.get("gfx_target_version"), device_id),
        bdf=address,
        pci_id=pci_id,
        uuid=f"{properties['unique_id']:016x}" if properties.get("unique_id") else None,
        partition=mode,
        memory_partition=card.memory_partition if card else None,
        numa_node=_numa(cpu_link, cpus, card),
        render_minor=minor,
        kfd_node=number,
        hive=str(hive) if hive else None,
        compute_units=properties["simd_count"] // per_simd if per_simd else None,
        memory_total_bytes=total,
        memory_used_bytes=used,
        power_cap_w=card.power_cap_w if card else None,
        driver="amdgpu",
        sources=sources,
    )


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One DRM card of ours: what its device folder says."""

    name: str
    address: str | None
    pci_id: str | None
    product: str | None
    vram_total: int | None
    vram_used: int | None
    gtt_total: int | None
    compute_partition: str | None
    memory_partition: str | None
    power_cap_w: int | None
    numa_node: int | None
    render_minor: int | None
    uuid: str | None
    driver: str | None

    @property
    def is_apu(self) -> bool:
        """An APU's carve-out is small beside what it may take from system memory."""
        return bool(
            self.vram_total and self.gtt_total and self.gtt_total > self.vram_total and self.vram_total <= 2**33
        )


def _card_of(cards: list[Card], address: str | None, minor: int | None) -> Card | None:
    """The DRM card of a compute device: same package address, else same render minor."""
    package = package_of(address) if address is not None else None
    for card in cards:
        if (minor is not None and card.render_minor == minor) or (
            card.render_minor is None and card.address == package
        ):
            return card
    return None


def _cards(root: Path) -> list[Card]:
    """The AMD cards under the amdgpu driver."""
    found: list[Card] = []
    folders = [f for f in sysfs.children(root / DRM) if f.name.startswith("card") and f.name[4:].isdigit()]
    minors = {path.name: path for path in sysfs.children(root / DRM) if path.name.startswith("renderD")}
    for folder in folders:
        device = folder / "device"
        vendor = sysfs.integer(device / "vendor")
        uevent = dict(line.split("=", 1) for line in (sysfs.text(device / "uevent") or "").splitlines() if "=" in line)
        if vendor is None and "PCI_ID" in uevent:
            vendor = sysfs.to_int("0x" + uevent["PCI_ID"].split(":")[0])
        driver = uevent.get("DRIVER") or _link_name(device / "driver")
        if vendor != AMD_VENDOR or driver not in (None, "amdgpu"):
            continue
        address = uevent.get("PCI_SLOT_NAME") or _link_name(device)
        minor = _minor_of(device, address, minors)
        device_id = sysfs.integer(device / "device")
        if device_id is None and "PCI_ID" in uevent:
            device_id = sysfs.to_int("0x" + uevent["PCI_ID"].partition(":")[2])
        cap = _hwmon(device, ("power1_cap",))
        found.append(
            Card(
                name=folder.name,
                address=address if address and ":" in address else None,
                pci_id=f"{device_id:04x}" if device_id else None,
                product=sysfs.text(device / "product_name"),
                vram_total=sysfs.integer(device / "mem_info_vram_total") or None,
                vram_used=sysfs.integer(device / "mem_info_vram_used"),
                gtt_total=sysfs.integer(device / "mem_info_gtt_total") or None,
                compute_partition=sysfs.text(device / "current_compute_partition"),
                memory_partition=sysfs.text(device / "current_memory_partition"),
                power_cap_w=round(cap / 1e6) if cap else None,
                numa_node=sysfs.integer(device / "numa_node"),
                render_minor=minor,
                uuid=sysfs.text(device / "unique_id"),
                driver=driver,
            )
        )
    return found


def _bare_device(index: int, card: Card) -> Device:
    """A device known from DRM alone: no compute topology, hence no arch and no compute units."""
    return Device(
        index=index,
        gpu=None,
        product=card.product or "AMD GPU",
        arch=None,
        bdf=card.address,
        pci_id=card.pci_id,
        uuid=card.uuid,
        partition=card.compute_partition,
        memory_partition=card.memory_partition,
        numa_node=card.numa_node if card.numa_node is not None and card.numa_node >= 0 else None,
        render_minor=card.render_minor,
        memory_total_bytes=card.vram_total,
        memory_used_bytes=card.vram_used,
        power_cap_w=card.power_cap_w,
        driver=card.driver,
        sources={"memory_total_bytes": "drm", "bdf": "drm"},
    )


def _by_address(cards: list[Card]) -> list[Card]:
    return sorted(cards, key=lambda card: (card.address or "", card.name))


def _minor_of(device: Path, address: str | None, minors: Mapping[str, Path]) -> int | None:
    for entry in sysfs.children(device / "drm"):
        if entry.name.startswith("renderD"):
            return sysfs.to_int(entry.name[7:])
    for name, path in minors.items():
        if address and _link_name(path / "device") == address:
            return sysfs.to_int(name[7:])
    return None


def _link_name(path: Path) -> str | None:
    return path.resolve().name if path.is_symlink() else None


def _hwmon(device: Path, names: tuple[str, ...]) -> int | None:
    for folder in sysfs.children(device / "hwmon"):
        for name in names:
            value = sysfs.integer(folder / name)
            if value:
                return value
    return None


def _links(folder: Path) -> list[Mapping[str, int]]:
    return [
        properties
        for kind in ("io_links", "p2p_links")
        for link in sysfs.children(folder / kind)
        if (properties := sysfs.properties(link / "properties"))
    ]


def _heap_bytes(folder: Path) -> int | None:
    total = 0
    for bank in sysfs.children(folder / "mem_banks"):
        properties = sysfs.properties(bank / "properties")
        if properties.get("heap_type") in _HEAP_VRAM:
            total += properties.get("size_in_bytes", 0)
    return total or None


def _partitions(gpus: Mapping[int, tuple[Mapping[str, int], Path]]) -> dict[str, int]:
    """Package address -> how many devices it shows."""
    counts: dict[str, int] = defaultdict(int)
    for properties, _ in gpus.values():
        if "location_id" in properties:
            counts[package_of(address_of(properties.get("domain", 0), properties["location_id"]))] += 1
    return counts


def _mode(properties: Mapping[str, int], pci_id: str | None, shown: int) -> str | None:
    """The compute partition mode, from a device's share of the package's dies, or from how many share a package."""
    own, whole = properties.get("num_xcc"), _WHOLE_XCCS.get(pci_id or "")
    if own and whole and whole % own == 0:
        return "CPX" if own == 1 and whole > 1 else _MODES.get(whole // own)
    if own and whole is None and shown > 1:
        return _MODES.get(shown)
    return None


def _numa(cpu_link: list[int], cpus: Mapping[int, Mapping[str, int]], card: Card | None) -> int | None:
    """The CPU node at the other end of the device's PCIe link; the kernel's own number where only DRM says it."""
    if cpu_link:
        return sorted(cpus).index(cpu_link[0])
    if card is not None and card.numa_node is not None and card.numa_node >= 0:
        return card.numa_node
    return None


def _weights(devices: list[Device], links: Mapping[int, list[Mapping[str, int]]]) -> dict[str, int]:
    """Device pair `i-j` -> smallest link weight between two devices."""
    index_of = {device.kfd_node: device.index for device in devices if device.kfd_node is not None}
    weights: dict[str, int] = {}
    for number, index in index_of.items():
        for link in links.get(number, ()):
            other = index_of.get(link.get("node_to", -1))
            weight = link.get("weight")
            if other is not None and other != index and weight:
                key = f"{min(index, other)}-{max(index, other)}"
                weights[key] = min(weight, weights.get(key, weight))
    return weights


def _unreadable(numbers: list[int]) -> list[Finding]:
    if not numbers:
        return []
    return [
        Finding(
            id="HW001",
            severity="info",
            message=f"{len(numbers)} topology nodes cannot be read",
            evidence=f"nodes {', '.join(map(str, numbers))}",
            remedy="they belong to other containers, or the files are damaged; nothing is assumed about them",
        )
    ]


def _incomplete(devices: list[Device]) -> list[Finding]:
    found = []
    packages: dict[str, list[Device]] = defaultdict(list)
    for device in devices:
        if device.bdf is not None and device.partition not in (None, "SPX"):
            packages[package_of(device.bdf)].append(device)
    wanted = {mode: count for count, mode in _MODES.items()}
    for package, members in sorted(packages.items()):
        mode = members[0].partition or ""
        whole = wanted.get(mode, 0)
        if mode == "CPX":
            whole = _WHOLE_XCCS.get(members[0].pci_id or "", whole)
        if 0 < len(members) < whole:
            found.append(
                Finding(
                    id="HW002",
                    severity="warning",
                    message=f"{package} shows {len(members)} of {whole} partitions",
                    evidence=f"compute partition {mode}",
                    remedy="check the driver's log; plan only with what is shown",
                )
            )
    unknown = [device.index for device in devices if device.memory_total_bytes is None]
    if unknown:
        found.append(
            Finding(
                id="HW003",
                severity="warning",
                message=f"the memory of {len(unknown)} devices is not shown by the kernel",
                evidence=f"devices {', '.join(map(str, unknown[:8]))}{' ...' if len(unknown) > 8 else ''}",
                remedy="the catalogue's figure is used where the card is known",
            )
        )
    return found


def _other_drivers(root: Path) -> list[Finding]:
    """AMD cards that ROCm cannot use because another driver has them."""
    found = []
    for folder in sysfs.children(root / DRM):
        if not (folder.name.startswith("card") and folder.name[4:].isdigit()):
            continue
        device = folder / "device"
        uevent = sysfs.text(device / "uevent") or ""
        driver = next(
            (line[7:] for line in uevent.splitlines() if line.startswith("DRIVER=")), _link_name(device / "driver")
        )
        if sysfs.integer(device / "vendor") == AMD_VENDOR and driver not in (None, "amdgpu"):
            found.append(
                Finding(
                    id="HW004",
                    severity="warning",
                    message=f"{folder.name} runs under the driver {driver}, which ROCm cannot use",
                    remedy="only cards under amdgpu serve models",
                )
            )
    return found
