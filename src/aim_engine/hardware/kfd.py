"""GPUs as the kernel's compute driver shows them: KFD topology, joined with the DRM cards where they are there.

Needs no ROCm userland and no root. Format: Linux drivers/gpu/drm/amd/amdkfd/kfd_topology.c. A device's identity is its PCI
address; on a partitioned package the function is the partition number. What a file does not say stays None, and is reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine.hardware import catalog, drm, identity, sensors, sysfs
from aim_engine.hardware.cluster import UNNAMED, Device, Finding, Memory
from aim_engine.hardware.readings import Readings

TOPOLOGY = "sys/class/kfd/kfd/topology/nodes"
LINK_KINDS: dict[int, Literal["pcie", "xgmi", "ht", "qpi"]] = {1: "ht", 2: "pcie", 5: "qpi", 11: "xgmi"}
_HEAP_SYSTEM, _HEAPS_VRAM = 0, (1, 2)
"""mem_banks heap types: system memory; frame buffer, public and private."""
_MODE_OF_COUNT = {2: "DPX", 3: "TPX", 4: "QPX"}


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One link of the topology, in one direction, between KFD nodes."""

    source: int
    target: int
    kind: str
    """pcie, xgmi, ht, qpi, or the number of a kind we do not know."""
    weight: int | None
    """The kernel's distance: 13 same package, 15 one xGMI step, 20 PCIe to a CPU, 40 and more between PCIe peers."""
    bandwidth_bytes_s: int | None
    """None where the kernel says 0."""


class Kfd(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel showed: the GPUs, the CPU nodes beside them, and what could not be read."""

    devices: tuple[Device, ...]
    cpu_nodes: int
    cpu_cores_per_node: int | None
    """Hardware threads of each CPU node, where all have the same number."""
    system_memory_bytes: int | None
    links: tuple[Link, ...]
    link_weights: dict[str, int]
    """Device pair `i-j` -> smallest weight between them."""
    findings: tuple[Finding, ...]


class _Node(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU node of the topology."""

    number: int
    properties: Mapping[str, int]
    vram_bytes: int | None
    links: tuple[Link, ...]

    @property
    def address(self) -> str | None:
        if "location_id" not in self.properties:
            return None
        return address_of(self.properties.get("domain", 0), self.properties["location_id"])

    @property
    def package(self) -> str | None:
        return package_of(self.address) if self.address is not None else None


def read(root: Path, overlay: Path | None = None) -> Kfd:
    """The GPUs below `root` (`/` or a recorded tree), in the order ROCm enumerates them."""
    cpus: dict[int, Mapping[str, int]] = {}
    gpus: list[_Node] = []
    unreadable: list[int] = []
    memory: list[int] = []
    for folder in sysfs.children(root / TOPOLOGY):
        if not (folder.name.isdecimal() and len(folder.name) < 10):
            continue
        number = int(folder.name)
        properties = sysfs.properties(folder / "properties")
        if not properties:
            unreadable.append(number)
            continue
        if properties.get("cpu_cores_count", 0) > 0:
            cpus[number] = properties
            memory.append(_bank_bytes(folder, (_HEAP_SYSTEM,)) or 0)
        if properties.get("simd_count", 0) > 0 and properties.get("vendor_id", drm.VENDOR) == drm.VENDOR:
            vram_bytes = _bank_bytes(folder, _HEAPS_VRAM)
            gpus.append(
                _Node(number=number, properties=properties, vram_bytes=vram_bytes, links=_links(number, folder))
            )
    cards = drm.cards(root)
    usable = tuple(card for card in cards if card.usable and not _without_compute(card, overlay))
    partitions = _partitions(gpus)
    pci_ids = sorted({pci_id for node in gpus if (pci_id := _pci_id(node)) is not None})
    dies = {pci_id: _dies(pci_id, overlay) for pci_id in pci_ids}
    devices = tuple(_device(i, node, cpus, partitions, usable, dies, overlay) for i, node in enumerate(gpus))
    if not devices:
        devices = tuple(_bare_device(index, card, overlay) for index, card in enumerate(usable))
    cores = {properties["cpu_cores_count"] for properties in cpus.values()}
    return Kfd(
        devices=devices,
        cpu_nodes=len(cpus),
        cpu_cores_per_node=cores.pop() if len(cores) == 1 else None,
        system_memory_bytes=sum(memory) or None,
        links=tuple(link for node in gpus for link in node.links),
        link_weights=_weights(devices, gpus),
        findings=(
            *_unreadable(unreadable),
            *_incomplete(devices, dies),
            *_unknown(devices),
            *_unused(cards, devices, overlay),
        ),
    )


def arch_of(version: int | None) -> str | None:
    """`gfx_target_version` as an LLVM target: decimal MMmmss, of which minor and stepping print in hexadecimal.

    90010 -> gfx90a, 90402 -> gfx942, 110003 -> gfx1103.
    """
    if not version or version < 10000:
        return None
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def address_of(domain: int, location: int) -> str:
    """`location_id` as a PCI address: bus, device and function, with the partition number as the function.

    The partition number is in the function's bits, or in bits 28 to 31 of newer kernels.
    """
    function = location & 7 or location >> 28 & 0xF
    return f"{domain & 0xFFFFFFFF:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{function:x}"


def package_of(address: str) -> str:
    """The address of the package a partition belongs to: function 0."""
    return f"{address.rsplit('.', 1)[0]}.0"


def _device(
    index: int,
    node: _Node,
    cpus: Mapping[int, Mapping[str, int]],
    partitions: Mapping[str, int],
    cards: Sequence[drm.Card],
    dies: Mapping[str, int | None],
    overlay: Path | None,
) -> Device:
    properties = node.properties
    card = _card_of(cards, node)
    pci_id = _pci_id(node) or (card.pci_id if card else None)
    revision = card.revision if card else None
    known = identity.of(pci_id, revision, overlay)
    shown = partitions.get(node.package or "", 1)
    mode = (card.compute_partition if card else None) or _mode(properties, dies.get(pci_id or ""), shown)
    arch, arch_source = arch_of(properties.get("gfx_target_version")), "kfd"
    if arch is None and known is not None:
        arch, arch_source = known.arch, "pci id"
    total, used, source, shared = _memory(
        node, card, _count_of(mode, dies.get(pci_id or "")) or shown, known is not None and known.apu
    )
    per_simd = properties.get("simd_per_cu")
    hive = properties.get("hive_id")
    product = card.product if card else None
    numa = _numa(node, cpus, card)
    # The sensors are the package's; its first partition speaks for all of them.
    readings = sensors.read(card.folder) if card is not None and node.address in (None, node.package) else None
    power_cap_w = _watts(readings)
    xccs = properties.get("num_xcc") or None
    by_kfd = {"unique_id": bool(properties.get("unique_id")), "minor": bool(properties.get("drm_render_minor"))}
    sources = {
        "product": "drm" if product else None,
        "arch": arch_source if arch else None,
        "bdf": "kfd" if node.address else None,
        "pci_id": "kfd" if _pci_id(node) else "drm" if pci_id else None,
        "revision": "drm" if revision else None,
        "uuid": "kfd" if by_kfd["unique_id"] else "drm" if card and card.unique_id else None,
        "partition": ("drm" if card and card.compute_partition else "kfd") if mode else None,
        "memory_partition": "drm" if card and card.memory_partition else None,
        "compute_units": "kfd" if per_simd else None,
        "compute_dies": "kfd" if xccs else None,
        "memory_total_bytes": source,
        "memory_used_bytes": "drm" if used is not None else None,
        "numa_node": numa[1],
        "hive": "kfd" if hive else None,
        "kfd_node": "kfd",
        "render_minor": "kfd" if by_kfd["minor"] else "drm" if card and card.render_minor else None,
        "power_cap_w": "hwmon" if power_cap_w else None,
        "driver": "kfd",
    }
    return Device(
        index=index,
        gpu=None,
        product=product or UNNAMED,
        arch=arch,
        bdf=node.address,
        pci_id=pci_id,
        revision=revision,
        uuid=f"{properties['unique_id']:016x}" if properties.get("unique_id") else (card.unique_id if card else None),
        partition=mode,
        memory_partition=card.memory_partition if card else None,
        numa_node=numa[0],
        render_minor=properties.get("drm_render_minor") or (card.render_minor if card else None),
        kfd_node=node.number,
        hive=str(hive) if hive else None,
        compute_units=properties["simd_count"] // per_simd if per_simd else None,
        compute_dies=xccs,
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory=_kinds_of_memory(card, known is not None and known.apu),
        shared_memory=shared,
        power_cap_w=power_cap_w,
        driver=drm.COMPUTE_DRIVER,
        readings=readings,
        sources={field: source for field, source in sources.items() if source is not None},
    )


def _bare_device(index: int, card: drm.Card, overlay: Path | None) -> Device:
    """A device known from DRM alone: no compute topology, hence no compute units, and the target only by its id."""
    known = identity.of(card.pci_id, card.revision, overlay)
    said = ("product", "address", "pci_id", "revision", "unique_id", "compute_partition", "memory_partition")
    names = {"address": "bdf", "unique_id": "uuid", "compute_partition": "partition"}
    sources = {
        names.get(field, field): "drm"
        for field in (*said, "render_minor", "driver")
        if getattr(card, field) is not None
    }
    if card.numa_node is not None and card.numa_node >= 0:
        sources["numa_node"] = "drm"
    if card.vram_total_bytes is not None:
        sources["memory_total_bytes"] = "drm"
    if card.vram_used_bytes is not None:
        sources["memory_used_bytes"] = "drm"
    if known is not None and known.arch is not None:
        sources["arch"] = "pci id"
    readings = sensors.read(card.folder)
    power_cap_w = _watts(readings)
    if power_cap_w is not None:
        sources["power_cap_w"] = "hwmon"
    return Device(
        index=index,
        gpu=None,
        product=card.product or UNNAMED,
        arch=known.arch if known else None,
        bdf=card.address,
        pci_id=card.pci_id,
        revision=card.revision,
        uuid=card.unique_id,
        partition=card.compute_partition,
        memory_partition=card.memory_partition,
        numa_node=card.numa_node if card.numa_node is not None and card.numa_node >= 0 else None,
        render_minor=card.render_minor,
        memory_total_bytes=card.vram_total_bytes,
        memory_used_bytes=card.vram_used_bytes,
        memory=_kinds_of_memory(card, known is not None and known.apu),
        shared_memory=known.apu if known else False,
        power_cap_w=power_cap_w,
        driver=card.driver,
        readings=readings,
        sources=sources,
    )


def _memory(
    node: _Node, card: drm.Card | None, share: int, apu: bool
) -> tuple[int | None, int | None, str | None, bool]:
    """Total, used, who said it, and whether it is shared with the system.

    A partition's own heap is its share; a card's total is the package's and is divided by `share`. On an APU the heap is the system
    memory it may map and the card's total a carve-out, so that the larger of them is what a process can use.
    """
    whole = card.vram_total_bytes if card else None
    heap = node.vram_bytes
    if share > 1:
        if heap is None and whole is not None:
            return whole // share, None, f"drm / {share} partitions", False
        return heap, None, "kfd" if heap else None, False
    if card is not None and heap is not None and (apu or card.gtt_total_bytes == heap != whole):
        if whole is not None and whole >= heap:
            return whole, card.vram_used_bytes, "drm", False
        return heap, card.gtt_used_bytes, "kfd", True
    if card is not None and whole is not None:
        return whole, card.vram_used_bytes, "drm", apu
    return heap, None, "kfd" if heap else None, apu and heap is not None


def _kinds_of_memory(card: drm.Card | None, apu: bool) -> Memory | None:
    """What DRM says of a package's memory, each number under its own name."""
    if card is None:
        return None
    memory = Memory(
        vram_bytes=None if apu else card.vram_total_bytes,
        carve_out_bytes=card.vram_total_bytes if apu else None,
        visible_bytes=card.vis_vram_total_bytes,
        gtt_bytes=card.gtt_total_bytes,
        gtt_used_bytes=card.gtt_used_bytes,
    )
    return memory if memory != Memory() else None


def _card_of(cards: Sequence[drm.Card], node: _Node) -> drm.Card | None:
    """The DRM card of a compute device: same address, else same package, else same render minor."""
    for wanted in (node.address, node.package):
        for card in cards:
            if wanted is not None and card.address == wanted:
                return card
    minor = node.properties.get("drm_render_minor")
    return next((card for card in cards if minor and card.render_minor == minor and card.address is None), None)


def _watts(readings: Readings | None) -> int | None:
    return round(readings.power_cap_w) if readings is not None and readings.power_cap_w else None


def _links(number: int, folder: Path) -> tuple[Link, ...]:
    found = []
    for kind in ("io_links", "p2p_links"):
        for properties in sysfs.all_properties(folder / kind):
            if "node_to" not in properties or "type" not in properties:
                continue
            found.append(
                Link(
                    source=number,
                    target=properties["node_to"],
                    kind=LINK_KINDS.get(properties["type"], str(properties["type"])),
                    weight=properties.get("weight") or None,
                    bandwidth_bytes_s=properties.get("max_bandwidth", 0) * 10**6 or None,
                )
            )
    return tuple(found)


def _bank_bytes(folder: Path, heaps: tuple[int, ...]) -> int | None:
    banks = sysfs.all_properties(folder / "mem_banks")
    return sum(max(0, bank.get("size_in_bytes", 0)) for bank in banks if bank.get("heap_type", -1) in heaps) or None


def _partitions(gpus: Iterable[_Node]) -> dict[str, int]:
    """Package address -> how many partitions of it are shown. Copies of one address are not partitions."""
    addresses: dict[str, set[str]] = defaultdict(set)
    for node in gpus:
        if node.package is not None and node.address is not None:
            addresses[node.package].add(node.address)
    return {package: len(members) for package, members in addresses.items()}


def _mode(properties: Mapping[str, int], whole: int | None, shown: int) -> str | None:
    """The compute partition mode: from a device's share of the package's `whole` dies, else from how many share a package.

    A partition of one die is CPX by definition; a whole package with several dies is SPX.
    """
    own = properties.get("num_xcc")
    if not own:
        return None
    if own == 1 and (shown > 1 or (whole or 1) > 1):
        return "CPX"
    if whole is None or whole % own:
        return _MODE_OF_COUNT.get(shown)
    if whole == own:
        return "SPX" if whole > 1 else None
    return _MODE_OF_COUNT.get(whole // own)


def _pci_id(node: _Node) -> str | None:
    device_id = node.properties.get("device_id")
    return f"{device_id:04x}" if device_id else None


def _dies(pci_id: str, overlay: Path | None) -> int | None:
    """Compute dies of a whole package, where all cards of the id agree."""
    dies = {gpu.compute_dies for gpu in catalog.sharing(pci_id, overlay=overlay)}
    return dies.pop() if len(dies) == 1 else None


def _count_of(mode: str | None, dies: int | None) -> int | None:
    """How many partitions a mode makes."""
    return dies if mode == "CPX" else {"SPX": 1, **catalog.PARTITIONS}.get(mode or "")


def _numa(node: _Node, cpus: Mapping[int, Mapping[str, int]], card: drm.Card | None) -> tuple[int | None, str | None]:
    """The CPU node at the other end of the device's link; the kernel's own number where only DRM says it."""
    for link in node.links:
        if link.kind in ("pcie", "xgmi") and link.target in cpus:
            return sorted(cpus).index(link.target), "kfd"
    if node.number in cpus:
        return sorted(cpus).index(node.number), "kfd"
    if card is not None and card.numa_node is not None and card.numa_node >= 0:
        return card.numa_node, "drm"
    return None, None


def _weights(devices: Iterable[Device], gpus: Iterable[_Node]) -> dict[str, int]:
    index_of = {device.kfd_node: device.index for device in devices if device.kfd_node is not None}
    weights: dict[str, int] = {}
    for node in gpus:
        for link in node.links:
            index, other = index_of.get(link.source), index_of.get(link.target)
            if index is not None and other is not None and other != index and link.weight is not None:
                key = f"{min(index, other)}-{max(index, other)}"
                weights[key] = min(link.weight, weights.get(key, link.weight))
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


def _incomplete(devices: Sequence[Device], dies: Mapping[str, int | None]) -> list[Finding]:
    """Packages that show fewer partitions than their mode makes."""
    found = []
    packages: dict[str, list[Device]] = defaultdict(list)
    for device in devices:
        if device.bdf is not None and device.partition not in (None, "SPX"):
            packages[package_of(device.bdf)].append(device)
    for package, members in sorted(packages.items()):
        mode = members[0].partition
        whole = _count_of(mode, dies.get(members[0].pci_id or "")) or max(len(each) for each in packages.values())
        if len(members) < whole:
            found.append(
                Finding(
                    id="HW002",
                    severity="warning",
                    message=f"{package} shows {len(members)} of {whole} partitions",
                    evidence=f"compute partition {mode}",
                    remedy="check the driver's log; plans use only what is shown",
                )
            )
    return found


def _unknown(devices: Sequence[Device]) -> list[Finding]:
    """What the kernel did not say of devices it does show."""
    found = []
    for field, what in (
        ("memory_total_bytes", "memory"),
        ("arch", "target"),
        ("compute_units", "number of compute units"),
    ):
        silent = [device.index for device in devices if getattr(device, field) is None]
        if silent:
            found.append(
                Finding(
                    id="HW003",
                    severity="warning" if field == "memory_total_bytes" else "info",
                    message=f"the kernel's files do not show the {what} of {len(silent)} of {len(devices)} devices",
                    evidence=f"devices {', '.join(map(str, silent[:8]))}{' ...' if len(silent) > 8 else ''}",
                    remedy="the catalogue's figure is used where the card is known",
                )
            )
    return found


def _without_compute(card: drm.Card, overlay: Path | None) -> bool:
    """True for the generation that KFD never supported (Southern Islands), also under amdgpu."""
    known = identity.of(card.pci_id, card.revision, overlay)
    return known is not None and (known.arch or "").startswith("gfx60")


def _unused(cards: Iterable[drm.Card], devices: Sequence[Device], overlay: Path | None) -> list[Finding]:
    """AMD cards that serve no models here, and why."""
    found = []
    packages = {package_of(device.bdf) for device in devices if device.bdf is not None}
    for card in cards:
        known = identity.of(card.pci_id, card.revision, overlay)
        name = f"{card.name} ({card.product or (known.product if known else f'PCI id {card.pci_id}')})"
        if not card.usable:
            message = f"{name} runs under the driver {card.driver}, which ROCm cannot use"
            remedy = "only cards under amdgpu serve models"
        elif _without_compute(card, overlay):
            message, remedy = f"{name} has no compute support", "nothing to do: its generation is too old"
        elif card.address is not None and packages and package_of(card.address) not in packages:
            message = f"{name} is under amdgpu, but the compute topology does not list it"
            remedy = "check the driver's log, and which devices this container may use"
        else:
            continue
        found.append(
            Finding(id="HW004", severity="warning", message=message, evidence=card.address or "", remedy=remedy)
        )
    return found
