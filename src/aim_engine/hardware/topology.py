"""Machines as their topology files show them: what RCCL dumps (NCCL_TOPO_DUMP_FILE) and what hwloc's lstopo exports.

RCCL lists GPUs below their CPU with the xGMI links of each; hwloc nests PCI devices below NUMA nodes, with what ROCm SMI said of
them. Neither knows how much memory is used. hwloc reports one xGMI hop for every pair, which is a limit of the tool and not believed.
Source: ROCm/rccl src/graph/xml.cc, topo.cc; open-mpi/hwloc hwloc/topology-rsmi.c.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.hardware import joining
from aim_engine.hardware.cluster import UNNAMED, Device, Finding, Node
from aim_engine.hardware.links import ONE_STEP, SAME_PACKAGE, joined
from aim_engine.units import KIB

if TYPE_CHECKING:
    import xml.etree.ElementTree as ET

NAME = "topology"
MAX_BYTES = 64 * 1024 * 1024
MOST_LEVELS = 200
_PACKAGE_LINKS = 4
"""xGMI links between the two dies of an MI250 package; between packages there are fewer."""
_AMD = "0x1002"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.IGNORECASE)
_HWLOC_TYPE = re.compile(r"(?P<kind>[0-9a-f]{4}) \[1002:(?P<device>[0-9a-f]{4})\]", re.IGNORECASE)
_GPU_CLASSES = ("0300", "0380", "1200")
_GCN_NUMBERS = {"908": "gfx908", "910": "gfx90a", "940": "gfx942", "942": "gfx942", "950": "gfx950"}
"""What older RCCL wrote for an architecture."""


def is_one(text: str) -> bool:
    """Is this a topology file?"""
    head = text[:4096]
    return "<" in head and re.search(r"<(system|topology)\b[^>]*version=", head) is not None


def unpacked(content: bytes, name: str) -> str:
    """The text of a file that may be gzip. Raises: Corrupt."""
    if content[:2] != b"\x1f\x8b":
        return content.decode("utf-8", errors="replace")
    try:
        opened = zlib.decompressobj(zlib.MAX_WBITS | 16)
        plain = opened.decompress(content, MAX_BYTES)
    except (zlib.error, gzip.BadGzipFile) as err:
        raise Corrupt(f"{name} cannot be unpacked", why=str(err)) from err
    if opened.unconsumed_tail:
        raise Corrupt(f"{name} is larger than any such file", why=f"over {MAX_BYTES} bytes unpacked")
    return plain.decode("utf-8", errors="replace")


def read(texts: Sequence[str], name: str) -> Node:
    """The machine in one or more topology files. Raises: Corrupt."""
    return joining.nodes([parse(text, name) for text in texts], name)


def parse(text: str, name: str = NAME) -> Node:
    """The machine in a topology file, its devices without catalogue names. Raises: Corrupt."""
    import xml.etree.ElementTree as ET

    if "<!ENTITY" in text:
        raise Corrupt(f"{name} is not a topology file", why="it defines entities, which none does")
    try:
        root = ET.fromstring(text.strip("\x00 \t\r\n"))  # noqa: S314 - entities are refused above
    except ET.ParseError as err:
        raise Corrupt(f"{name} is not readable as XML", why=str(err), hint="dump it again") from err
    if root.tag == "system":
        return _rccl(root, name)
    if root.tag == "topology":
        return _hwloc(root, name)
    raise Corrupt(f"{name} is not a topology file", why=f"it begins with <{root.tag[:40]}>")


def _rccl(root: ET.Element, name: str) -> Node:
    devices: list[Device] = []
    links: dict[tuple[str, str], int] = {}
    for cpu in root.iter("cpu"):
        numa = _whole(cpu.get("numaid"))
        for pci in cpu.iter("pci"):
            gpu = pci.find("gpu")
            address = _address(pci.get("busid"))
            if gpu is None or pci.get("vendor", _AMD) != _AMD:
                continue
            devices.append(_rccl_device(len(devices), pci, gpu, address, numa))
            for link in gpu.findall("xgmi"):
                target = _address(link.get("target"))
                if address is not None and target is not None:
                    links[address, target] = _whole(link.get("count")) or 1
    devices = [
        msgspec.structs.replace(device, index=index)
        for index, device in enumerate(sorted(devices, key=lambda device: (device.index, device.bdf or "")))
    ]
    known = {device.bdf: device.index for device in devices if device.bdf is not None}
    groups = joined((known[one], known[other]) for one, other in links if one in known and other in known)
    hives = {address: groups[index] for address, index in known.items() if index in groups}
    weights = {
        f"{known[one]}-{known[other]}": SAME_PACKAGE if count >= _PACKAGE_LINKS else ONE_STEP
        for (one, other), count in sorted(links.items())
        if one in known and other in known and known[one] < known[other]
    }
    placed = tuple(
        msgspec.structs.replace(device, hive=hives.get(device.bdf or ""), sources=_sourced(device, "rccl", hives))
        for device in devices
    )
    return Node(name=name, devices=placed, link_weights=weights, findings=_nothing(placed, name))


def _rccl_device(index: int, pci: ET.Element, gpu: ET.Element, address: str | None, numa: int | None) -> Device:
    gcn = (gpu.get("gcn") or "").lower()
    rank = _whole(gpu.get("dev"))
    return Device(
        index=index if rank is None else rank,
        gpu=None,
        product=UNNAMED,
        arch=gcn if gcn.startswith("gfx") else _GCN_NUMBERS.get(gcn),
        bdf=address,
        pci_id=_id(pci.get("device")),
        numa_node=numa if numa is not None and numa >= 0 else None,
        compute_units=_whole(gpu.get("sm")) or None,
    )


def _hwloc(root: ET.Element, name: str) -> Node:
    devices: list[Device] = []

    def walk(element: ET.Element, numa: int | None, depth: int) -> None:
        if depth > MOST_LEVELS:
            raise Corrupt(f"{name} is not a topology file", why=f"it is nested more than {MOST_LEVELS} levels deep")
        local = [child for child in element if child.tag == "object" and child.get("type") == "NUMANode"]
        if len(local) == 1:
            numa = _whole(local[0].get("os_index"))
        elif local:
            numa = None
        for child in element:
            if child.tag != "object":
                continue
            kind = _HWLOC_TYPE.match(child.get("pci_type") or "")
            if child.get("type") == "PCIDev" and kind is not None and kind["kind"] in _GPU_CLASSES:
                devices.append(_hwloc_device(child, kind["device"].lower(), numa, len(devices)))
            walk(child, numa, depth + 1)

    walk(root, None, 0)
    ordered = sorted(devices, key=lambda device: (device.index, device.bdf or ""))
    placed = tuple(
        msgspec.structs.replace(device, index=index, sources=_sourced(device, "hwloc", {device.bdf or "": device.hive}))
        for index, device in enumerate(ordered)
    )
    return Node(name=name, devices=placed, findings=_nothing(placed, name))


def _hwloc_device(element: ET.Element, device_id: str, numa: int | None, position: int) -> Device:
    about: dict[str, str] = {}
    index = 10_000 + position
    for child in element.findall("object"):
        if child.get("subtype") == "RSMI" or (child.get("name") or "").startswith("rsmi"):
            index = _whole((child.get("name") or "").removeprefix("rsmi")) or 0
            about = {info.get("name", ""): info.get("value", "") for info in child.findall("info")}
    size_kib = _whole(about.get("RSMIVRAMSize"))
    hive = about.get("XGMIHiveID", "")
    return Device(
        index=index,
        gpu=None,
        product=about.get("GPUModel") or UNNAMED,
        arch=None,
        bdf=_address(element.get("pci_busid")),
        pci_id=device_id,
        uuid=about.get("AMDUUID") or None,
        numa_node=numa,
        hive=hive if hive.strip("0") else None,
        memory_total_bytes=size_kib * KIB if size_kib else None,
    )


def _sourced(device: Device, source: str, hives: object) -> dict[str, str]:
    names = ("arch", "bdf", "pci_id", "uuid", "numa_node", "compute_units", "memory_total_bytes")
    found = {name: source for name in names if getattr(device, name) is not None}
    is_linked = isinstance(hives, dict) and hives.get(device.bdf or "") is not None
    return found | ({"hive": source} if is_linked else {})


def _nothing(devices: tuple[Device, ...], name: str) -> tuple[Finding, ...]:
    if devices:
        return ()
    return (Finding(id="HW030", severity="warning", message=f"{name} shows no AMD GPU", evidence="topology file"),)


def _address(text: str | None) -> str | None:
    return text.lower() if text is not None and _ADDRESS.fullmatch(text) else None


def _id(text: str | None) -> str | None:
    found = re.fullmatch(r"(?:0x)?([0-9a-f]{1,4})", (text or "").lower())
    return found[1].zfill(4) if found is not None else None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,15}", text) else None
