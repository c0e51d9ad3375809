"""Everything a machine shows about itself, joined into one cluster. Fields say who said them; disagreements are reported."""

from __future__ import annotations

import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.hardware import amdsmi, catalog, cpu, drm, identity, kfd, recording, rocmsmi, sysfs, topology
from aim_engine.hardware.cluster import Cluster, Cpu, Device, Finding, Node
from aim_engine.hardware.gpu import Gpu
from aim_engine.units import format_bytes

LIVE = Path("/")
UNNAMED = "AMD GPU"
"""Product of a device until somebody names it."""
_COMPARED = ("arch", "pci_id", "partition", "compute_units", "memory_total_bytes")
_SAME_MEMORY_FRACTION = 0.01
_LOWERED_CAP_FRACTION = 0.95
"""A power cap below this share of the default is worth saying."""
_RESERVE_FRACTION = 0.1
"""Of the system's memory, left to it where the GPU takes from the same."""
_PCI_CLASSES = ("0x03", "0x12")
"""Display controllers and processing accelerators."""


def detect(
    root: Path = LIVE,
    *,
    run_tools: bool = True,
    overlay: Path | None = None,
    environment: Mapping[str, str] | None = None,
    readings: bool = False,
    name: str | None = None,
) -> Cluster:
    """The machine below `root`: GPUs from the kernel's files and `amd-smi`, the CPU and its memory from /proc.

    `run_tools` asks the installed tools too, which only makes sense for the live machine. `environment` supplies the visibility
    variables; None takes this process' own on the live machine and nothing for a recorded one. `readings` keeps temperatures, power
    and load, which change from call to call. `name` is what the node is called where its own name was not recorded.
    """
    live = root == LIVE
    shown = kfd.read(root, overlay)
    host = cpu.read(root)
    said = amdsmi.run() if run_tools and live else None
    devices, findings = join(shown.devices, said or ())
    devices = name_all(devices, overlay)
    devices = tuple(_limited(device, host) for device in devices)
    remarks = [*shown.findings, *findings, *_remarks(devices, overlay)]
    environment = environment if environment is not None else (os.environ if live else {})
    visible, hidden = _visible(devices, environment)
    if not readings:
        visible = tuple(msgspec.structs.replace(device, readings=None) for device in visible)
    node = Node(
        name=platform.node() if live else sysfs.text(root / "proc/sys/kernel/hostname") or name or root.resolve().name,
        cpu=host,
        devices=tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(visible)),
        driver_version=sysfs.text(root / "sys/module/amdgpu/version"),
        rocm_version=sysfs.text(root / "opt/rocm/.info/version"),
        link_weights=_renumbered(shown.link_weights, [device.index for device in visible]),
        findings=(*remarks, *hidden, *_access(root, devices)),
    )
    return Cluster(origin="detected", nodes=(node,))


def from_tool(*outputs: str, name: str = "amd-smi", overlay: Path | None = None, readings: bool = False) -> Cluster:
    """The machine that recorded outputs of amd-smi or rocm-smi, or a topology file, describe.

    Raises: Corrupt when they describe none.
    """
    shown = next((output for output in outputs if topology.is_one(output)), None)
    if shown is not None:
        machine = topology.read(shown, name)
        named = name_all(machine.devices, overlay)
        findings = (*machine.findings, *_remarks(named, overlay))
        return Cluster(origin="detected", nodes=(msgspec.structs.replace(machine, devices=named, findings=findings),))
    older = [output for output in outputs if rocmsmi.is_one(output)]
    newer = [output for output in outputs if not rocmsmi.is_one(output)]
    found = amdsmi.parse(*newer) if newer else rocmsmi.parse(*older)
    devices = name_all(found, overlay)
    if not readings:
        devices = tuple(msgspec.structs.replace(device, readings=None) for device in devices)
    node = Node(
        name=name,
        devices=devices,
        driver_version=rocmsmi.driver_version(*older),
        findings=tuple(_remarks(devices, overlay)),
    )
    return Cluster(origin="detected", nodes=(node,))


def join(kernel: tuple[Device, ...], tool: tuple[Device, ...]) -> tuple[tuple[Device, ...], tuple[Finding, ...]]:
    """Devices of both sources, matched by PCI address; the kernel's word stands, gaps are filled, differences reported.

    Tools before ROCm 6.4 give all partitions of a package its address: those are matched in their order.
    """
    if not kernel:
        return tool, ()
    exact = {device.bdf: device for device in tool if device.bdf is not None}
    by_package: dict[str, list[Device]] = defaultdict(list)
    for device in tool:
        if device.bdf is not None:
            by_package[kfd.package_of(device.bdf)].append(device)
    alone = tool[0] if len(kernel) == len(tool) == 1 and tool[0].bdf is None else None
    joined, findings = [], []
    taken: dict[str, int] = defaultdict(int)
    for device in kernel:
        other = alone
        if device.bdf is not None and other is None:
            package = kfd.package_of(device.bdf)
            members = by_package.get(package, [])
            same_address = len(members) > 1 and len({member.bdf for member in members}) == 1
            if same_address and taken[package] < len(members):
                other = members[taken[package]]
            elif not same_address:
                other = exact.get(device.bdf)
            taken[package] += 1
        if other is None:
            joined.append(device)
            continue
        findings.extend(_disagreements(device, other))
        joined.append(_filled(device, other))
    return tuple(joined), tuple(findings)


def name_all(devices: Iterable[Device], overlay: Path | None = None) -> tuple[Device, ...]:
    """All devices with their cards; equal devices are looked up once."""
    known: dict[tuple[object, ...], Gpu | None] = {}
    found = []
    for device in devices:
        memory_bytes = device.memory_total_bytes if device.partition in (None, "SPX") else None
        units = device.compute_units if device.partition in (None, "SPX") else None
        key = (device.pci_id, device.revision, memory_bytes, units, device.product)
        if key not in known:
            known[key] = _card_of(device, memory_bytes, units, overlay)
        found.append(_with_card(device, known[key], overlay))
    return tuple(found)


def named(device: Device, overlay: Path | None = None) -> Device:
    """The device with its card from the catalogue, and what follows from that where the machine said nothing."""
    return name_all([device], overlay)[0]


class GPUDetector:
    """Detection under the names of the product's first specification."""

    def __init__(self, root: str | Path = LIVE, *, overlay: Path | None = None) -> None:
        self._root = Path(root)
        self._overlay = overlay

    def detect_available_gpus(self) -> tuple[Device, ...]:
        """The AMD GPUs this process can use, in ROCm's order; empty without any."""
        return self._cluster().devices

    def get_gpu_info(self) -> dict[str, Any]:
        """The whole picture as plain data: count, name, memory per GPU (GiB), and each device with its sources and readings."""
        cluster = self._cluster()
        devices = cluster.devices
        known = [device.memory_total_bytes for device in devices if device.memory_total_bytes is not None]
        return {
            "gpu_count": len(devices),
            "gpus": cluster.describe(),
            "memory_per_gpu": min(known) / 1024**3 if known else None,
            "devices": msgspec.to_builtins(devices),
            "findings": msgspec.to_builtins([finding for node in cluster.nodes for finding in node.findings]),
        }

    def _cluster(self) -> Cluster:
        with recording.opened(self._root) as folder:
            return detect(folder, run_tools=folder == LIVE, overlay=self._overlay, readings=True)


def _card_of(device: Device, memory_bytes: int | None, units: int | None, overlay: Path | None) -> Gpu | None:
    product = "" if device.product == UNNAMED else device.product
    if device.pci_id is not None:
        return catalog.by_pci_id(
            device.pci_id, device.revision, memory_bytes, compute_units=units, product=product, overlay=overlay
        )
    if not product:
        return None
    try:
        return catalog.load(product, overlay)
    except InvalidInput:
        return None


def _with_card(device: Device, card: Gpu | None, overlay: Path | None) -> Device:
    sources = dict(device.sources)
    changes: dict[str, Any] = {}
    if card is None:
        known = identity.of(device.pci_id, device.revision, overlay)
        if known is not None and device.product == UNNAMED:
            changes["product"], sources["product"] = known.product, "pci id"
        if known is not None and known.arch is not None and device.arch is None:
            changes["arch"], sources["arch"] = known.arch, "pci id"
        return msgspec.structs.replace(device, **changes, sources=sources) if changes else device
    if device.product == UNNAMED:
        changes["product"], sources["product"] = card.product, "catalogue"
    if device.arch is None:
        changes["arch"], sources["arch"] = card.arch, "catalogue"
    if device.partition not in (None, "SPX"):
        try:
            card = catalog.partition(card, device.partition)
        except InvalidInput:
            return msgspec.structs.replace(device, **changes, sources=sources)
    changes["gpu"], sources["gpu"] = card.name, "pci id" if device.pci_id is not None else "product"
    if device.memory_total_bytes is None and not card.shared_memory:
        changes["memory_total_bytes"], sources["memory_total_bytes"] = card.memory_bytes, "catalogue"
    if device.compute_units is None and card.compute_units is not None:
        changes["compute_units"], sources["compute_units"] = card.compute_units, "catalogue"
    return msgspec.structs.replace(device, **changes, sources=sources)


def _filled(device: Device, other: Device) -> Device:
    filled: dict[str, Any] = {
        field: getattr(other, field)
        for field in Device.__struct_fields__
        if field not in ("index", "gpu", "product", "sources", "shared_memory")
        and getattr(device, field) is None
        and getattr(other, field) is not None
    }
    if device.product == UNNAMED and other.product != UNNAMED:
        filled["product"] = other.product
    return msgspec.structs.replace(device, **filled, sources={**device.sources, **dict.fromkeys(filled, "amd-smi")})


def _disagreements(kernel: Device, tool: Device) -> list[Finding]:
    found = []
    for field in _COMPARED:
        ours, theirs = getattr(kernel, field), getattr(tool, field)
        if ours is None or theirs is None or ours == theirs:
            continue
        if field == "memory_total_bytes" and abs(ours - theirs) <= _SAME_MEMORY_FRACTION * max(ours, theirs):
            continue
        found.append(
            Finding(
                id="HW010",
                severity="warning",
                message=f"sources disagree on {field} of {kernel.bdf}: the kernel says {ours}, amd-smi says {theirs}",
                remedy="the kernel's word is used",
            )
        )
    return found


def _limited(device: Device, host: Cpu | None) -> Device:
    """A device that shares the system's memory can use no more of it than is free now, less a reserve for the system."""
    total = device.memory_total_bytes
    if not device.shared_memory or total is None or host is None:
        return device
    free = max(0, host.memory_available_bytes - round(host.memory_total_bytes * _RESERVE_FRACTION))
    used = max(device.memory_used_bytes or 0, total - free)
    return msgspec.structs.replace(
        device, memory_used_bytes=used, sources={**device.sources, "memory_used_bytes": "proc"}
    )


def _remarks(devices: Sequence[Device], overlay: Path | None) -> list[Finding]:
    return [*_uncatalogued(devices, overlay), *_shared(devices, overlay), *_hives(devices), *_throttled(devices)]


def _uncatalogued(devices: Sequence[Device], overlay: Path | None) -> list[Finding]:
    """Devices whose figures are not known, so that plans leave them out."""
    found = []
    unknown = [device for device in devices if device.gpu is None]
    if len(unknown) < len(devices):
        # A processor's own graphics beside a card get a remark of their own.
        unknown = [d for d in unknown if not ((known := identity.of(d.pci_id, None, overlay)) and known.apu)]
    for key in sorted({(d.product, d.pci_id or "", d.revision or "") for d in unknown}):
        product, pci_id, revision = key
        members = [d.index for d in unknown if (d.product, d.pci_id or "", d.revision or "") == key]
        candidates = [gpu.name for gpu in catalog.sharing(pci_id or None, revision or None, overlay)]
        remedy = "describe it in gpus/NAME.yaml of your catalogue folder"
        message = f"{product} ({pci_id or 'no PCI id'}) is not in the catalogue: plans leave it out"
        if candidates:
            message = f"{product} ({pci_id}) may be {' or '.join(candidates)}, and nothing here tells which: plans leave it out"
            remedy = f"name it: --gpus {len(members)}x{candidates[0]}"
        found.append(
            Finding(
                id="HW009",
                severity="warning",
                message=message,
                evidence=f"device {', '.join(map(str, members))}",
                remedy=remedy,
            )
        )
    return found


def _shared(devices: Sequence[Device], overlay: Path | None) -> list[Finding]:
    """Processors' own graphics: beside a card they are not counted on; alone they share memory with the system."""
    own = [d for d in devices if d.shared_memory or ((i := identity.of(d.pci_id, None, overlay)) and i.apu)]
    if own and len(own) < len(devices):
        return [
            Finding(
                id="HW007",
                severity="info",
                message=f"device {', '.join(str(d.index) for d in own)} is the processor's own graphics beside a discrete GPU",
                remedy="keep it from the engine, which takes the first device: list the others in HIP_VISIBLE_DEVICES",
            )
        ]
    return [
        Finding(
            id="HW008",
            severity="info",
            message=f"the {format_bytes(d.memory_total_bytes)} of device {d.index} are shared with the operating system",
            remedy="plans use what is free now, less a reserve; a fixed carve-out in the BIOS or a higher ttm.pages_limit gives more",
        )
        for d in own
        if d.shared_memory and d.memory_total_bytes is not None
    ]


def _hives(devices: Sequence[Device]) -> list[Finding]:
    """Several link groups on one node: what crosses them goes over PCIe."""
    hives: dict[str, list[int]] = defaultdict(list)
    for device in devices:
        if device.hive is not None:
            hives[device.hive].append(device.index)
    if len(hives) < 2:
        return []
    groups = " | ".join(", ".join(map(str, members)) for members in hives.values())
    return [
        Finding(
            id="HW011",
            severity="warning",
            message=f"the GPUs form {len(hives)} xGMI groups; between them traffic crosses PCIe",
            evidence=f"devices {groups}",
            remedy=f"keep tensor parallelism within {max(len(members) for members in hives.values())} GPUs of one group",
        )
    ]


def _throttled(devices: Sequence[Device]) -> list[Finding]:
    """Settings somebody left behind that make a card slower than its figures."""
    found = []
    for device in devices:
        readings = device.readings
        if readings is None:
            continue
        cap, default = readings.power_cap_w, readings.power_cap_default_w or readings.power_cap_max_w
        if cap and default and cap < _LOWERED_CAP_FRACTION * default:
            word = "default" if readings.power_cap_default_w else "maximum"
            found.append(
                Finding(
                    id="HW005",
                    severity="warning",
                    message=f"the power cap of device {device.index} is {cap:g} W, {cap / default:.0%} of its {word} {default:g} W",
                    remedy="raise it with amd-smi set --power-cap, unless it is meant",
                )
            )
        if readings.performance_level not in (None, "auto"):
            found.append(
                Finding(
                    id="HW006",
                    severity="info",
                    message=f"the performance level of device {device.index} is {readings.performance_level}, so its clocks may be pinned",
                    remedy="amd-smi set --perf-level auto, unless it is meant",
                )
            )
    return found


def _visible(devices: tuple[Device, ...], environment: Mapping[str, str]) -> tuple[tuple[Device, ...], list[Finding]]:
    """What the visibility variables leave: ROCR's list first, HIP's (or CUDA's) on what that leaves.

    An empty ROCR list means none; an empty HIP or CUDA list counts as unset, as the engine has it.
    Source: ROCm documentation, GPU isolation techniques; vllm-project/vllm:vllm/platforms/rocm.py@v0.32.0.
    """
    findings = []
    hip, cuda = environment.get("HIP_VISIBLE_DEVICES"), environment.get("CUDA_VISIBLE_DEVICES")
    if hip and cuda and hip != cuda:
        findings.append(
            Finding(
                id="ENV003",
                severity="error",
                message=f"HIP_VISIBLE_DEVICES={hip} and CUDA_VISIBLE_DEVICES={cuda} differ, which the engine refuses",
                remedy="unset CUDA_VISIBLE_DEVICES",
                source="vllm-project/vllm:vllm/platforms/rocm.py@v0.32.0",
            )
        )
    override = environment.get("HSA_OVERRIDE_GFX_VERSION")
    if override and devices:
        findings.append(
            Finding(
                id="ENV005",
                severity="warning",
                message=f"HSA_OVERRIDE_GFX_VERSION={override} makes ROCm report another target than the card has",
                remedy="unset it, unless the engine was built for that target",
            )
        )
    left = devices
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES" if hip else "CUDA_VISIBLE_DEVICES"):
        value = environment.get(name)
        if value is None or not left or (not value and name != "ROCR_VISIBLE_DEVICES"):
            continue
        chosen = _chosen(left, value)
        if len(chosen) != len(left):
            findings.append(
                Finding(
                    id="ENV004",
                    severity="info",
                    message=f"{name}={value} leaves {len(chosen)} of {len(left)} GPUs",
                    remedy=f"unset {name} to plan on all of them",
                )
            )
        left = chosen
    return left, findings


def _chosen(devices: tuple[Device, ...], value: str) -> tuple[Device, ...]:
    """Devices of a list of indices or GPU-<uuid>; the first that is not one ends it, as in ROCm."""
    found: list[Device] = []
    for part in (part.strip() for part in value.split(",")):
        if re.fullmatch(r"[0-9]{1,6}", part) and int(part) < len(devices):
            matching = [devices[int(part)]]
        elif part.lower().startswith("gpu-"):
            matching = [d for d in devices if d.uuid and d.uuid.lower() == part.lower()[4:]]
        else:
            matching = []
        if not matching or matching[0] in found:
            break
        found.extend(matching)
    return tuple(found)


def _renumbered(weights: Mapping[str, int], kept: Sequence[int]) -> dict[str, int]:
    """Link weights between the devices that are left, under their new numbers."""
    if list(kept) == sorted(kept) and not weights:
        return {}
    new = {old: index for index, old in enumerate(kept)}
    found = {}
    for key, weight in weights.items():
        first, second = (new.get(int(part)) for part in key.split("-"))
        if first is not None and second is not None:
            found[f"{min(first, second)}-{max(first, second)}"] = weight
    return found


def _access(root: Path, devices: Sequence[Device]) -> list[Finding]:
    """Whether this process could open what ROCm opens; device files are only asked of the live machine."""
    if not devices:
        folders = sysfs.children(root / "sys/bus/pci/devices")
        present = sorted(folder.name for folder in folders if _is_amd_gpu(folder))
        explained = [card for card in drm.cards(root) if not card.usable] if present else []
        if len(present) <= len(explained):
            return []
        return [
            Finding(
                id="HST004",
                severity="error",
                message=f"{len(present)} AMD GPU(s) on the PCI bus, but the amdgpu driver shows none for compute",
                evidence=", ".join(present[:8]),
                remedy="install the amdgpu driver, or pass /dev/kfd and /dev/dri into the container",
            )
        ]
    if root != LIVE:
        return []
    node = root / "dev/kfd"
    if not node.exists():
        return [
            Finding(
                id="HST005",
                severity="error",
                message="/dev/kfd does not exist here",
                remedy="pass it into the container: --device /dev/kfd --device /dev/dri",
            )
        ]
    if not os.access(node, os.R_OK | os.W_OK):
        return [
            Finding(
                id="HST006",
                severity="error",
                message="no permission to open /dev/kfd",
                remedy="add this user to the groups render and video, then log in again",
            )
        ]
    return []


def _is_amd_gpu(folder: Path) -> bool:
    kind = sysfs.text(folder / "class") or ""
    return sysfs.integer(folder / "vendor") == drm.VENDOR and kind.startswith(_PCI_CLASSES)
