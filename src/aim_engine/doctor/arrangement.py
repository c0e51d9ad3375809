"""How the cards are put together: links, kinds, partitions, and what of their memory is reached."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from aim_engine.doctor.cards import called, silence, states
from aim_engine.doctor.host import Host
from aim_engine.doctor.report import Answer, NotHere, Symptom, Unknown, check, kernel_parameters
from aim_engine.errors import InvalidInput
from aim_engine.hardware import catalog, identity, kfd
from aim_engine.hardware.cluster import Device
from aim_engine.hardware.gpu import Gpu
from aim_engine.units import GIB, format_bytes

_THERMAL = "Linux Documentation/gpu/amdgpu/thermal; limits are the card's own"
_LOADED_PERCENT = 50
_VISIBLE_BYTES = 256 * 2**20
_XGMI_WEIGHTS = (13, 15, 41)
_SMALL_BYTES = 70 * GIB
_PAGE_BYTES = 4096


@check(
    "HW019",
    "Does every PCIe link run at its full width and speed?",
    severity="warning",
    effect="weights load slower, and ranks without xGMI wait for each other",
    source="ROCm/device-metrics-exporter@afd0fe8 (pcie fields); Linux Documentation/ABI/testing/sysfs-bus-pci",
)
def pcie_link(host: Host) -> Iterator[Answer]:
    """An idle card with a display lowers its link, so only a loaded one or an accelerator is judged."""
    silent, asleep = [], []
    for card, device in states(host):
        known = [link for link in card.links if link.width and link.max_width]
        if not known:
            silent.append(card.address or card.name)
        for link in known:
            narrow = (link.width or 0) < (link.max_width or 0)
            slow = bool(link.speed_gt_s and link.max_speed_gt_s and link.speed_gt_s < link.max_speed_gt_s)
            if not narrow and not slow:
                continue
            if not card.instinct and (card.readings.gpu_busy_percent or 0) < _LOADED_PERCENT:
                asleep.append(card.address or card.name)
                break
            yield Symptom(
                message=f"the link of {called(card, device)} runs at x{link.width} {link.speed_gt_s or '?'} GT/s",
                evidence=f"{link.address}: it can do x{link.max_width} {link.max_speed_gt_s or '?'} GT/s",
                fix=(
                    f"sudo lspci -vvs {link.address} | grep -E 'LnkCap|LnkSta'",
                    "# reseat the card; check the slot and its BIOS setting",
                ),
            )
            break
    if asleep:
        yield Unknown(
            why=f"{', '.join(asleep)} {'are' if len(asleep) > 1 else 'is'} idle, and an idle card lowers its link: look again under load"
        )
    yield from silence(host, silent, "no link width is shown")


@check(
    "HW021",
    "Can the processor address the whole memory of every card?",
    severity="info",
    effect="weights load through a window of 256 MiB, and cards cannot read each other's memory",
    source=f"{_THERMAL.split(';')[0]} (mem_info_vis_vram_total); ROCm/ROCm mi300x.rst: above 4G decoding",
)
def visible_memory(host: Host) -> Iterator[Answer]:
    """The resizable BAR."""
    silent = []
    for card, device in states(host):
        if device is not None and device.shared_memory:
            continue
        if card.visible_vram_bytes is None or card.vram_total_bytes is None:
            silent.append(card.address or card.name)
        elif card.visible_vram_bytes <= _VISIBLE_BYTES < card.vram_total_bytes:
            yield Symptom(
                message=f"the processor sees {format_bytes(card.visible_vram_bytes)} of {called(card, device)}",
                evidence=f"of {format_bytes(card.vram_total_bytes)}",
                fix=("# enable 'Above 4G decoding' and 'Resizable BAR' in the BIOS",),
                severity="warning" if len(host.serving) > 1 else None,
            )
    yield from silence(host, silent, "no visible memory is shown")


@check(
    "HW012",
    "Are all cards of one kind?",
    severity="info",
    effect="the engine asks only the first device what it can do; ranks on different cards fail or crawl",
    source="vllm-project/vllm:vllm/platforms/rocm.py@v0.33.0",
)
def one_kind(host: Host) -> Iterator[Answer]:
    """Kinds of cards, the processor's own graphics aside."""
    if len(host.node.devices) < 2:
        yield NotHere(why="fewer than two GPUs")
        return
    kinds: dict[str, list[int]] = defaultdict(list)
    for device in host.serving:
        known = identity.of(device.pci_id)
        if not (known and known.apu and len(host.serving) > 1):
            kinds[device.product].append(device.index)
    if len(kinds) > 1:
        main = max(kinds.values(), key=len)
        yield Symptom(
            message=f"{len(kinds)} kinds of cards: " + ", ".join(f"{len(v)} x {k}" for k, v in sorted(kinds.items())),
            fix=(f"export HIP_VISIBLE_DEVICES={','.join(map(str, main))}",),
        )


@check(
    "HW013",
    "Are all cards partitioned alike?",
    severity="warning",
    effect="devices differ in size, and plans use the smallest",
    source="ROCm/amdgpu-docs: GPU partitioning",
)
def partition_modes(host: Host) -> Iterator[Answer]:
    """Compute and memory modes of the packages."""
    modes: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for device in host.node.devices:
        if device.partition is not None and device.bdf is not None:
            modes[device.partition, device.memory_partition].append(kfd.package_of(device.bdf))
    if not modes:
        yield NotHere(why="no card that can be partitioned")
    elif len(modes) > 1:
        common = max(modes, key=lambda mode: (len(set(modes[mode])), mode[0]))
        odd = sorted({address for mode, members in modes.items() if mode != common for address in members})
        yield Symptom(
            message="cards differ in their partition mode: "
            + ", ".join(f"{len(set(v))} x {'/'.join(filter(None, k))}" for k, v in sorted(modes.items(), key=str)),
            evidence=", ".join(odd[:8]),
            fix=tuple(
                f"echo {common[0]} | sudo tee /sys/bus/pci/devices/{address}/current_compute_partition"
                for address in odd
            ),
        )


@check(
    "HW024",
    "Is every device a whole card?",
    severity="info",
    effect="the engine starts devices below 70 GiB with 2048 batched tokens and 256 sequences, and large models do not fit",
    source="vllm-project/vllm:vllm/engine/arg_utils.py@v0.33.0; ROCm/amdgpu-docs: GPU partitioning",
)
def partitioned(host: Host) -> Iterator[Answer]:
    """Partitions of Instinct cards, which a reboot or a reload of the driver undoes."""
    parts = [device for device in host.node.devices if device.partition not in (None, "SPX")]
    if not any(device.partition for device in host.node.devices):
        yield NotHere(why="no card that can be partitioned")
    elif parts:
        first = parts[0]
        size = first.memory_total_bytes
        packages = sorted({kfd.package_of(device.bdf) for device in parts if device.bdf is not None})
        yield Symptom(
            message=f"{len(packages)} cards show as {len(parts)} devices"
            + (f" of {format_bytes(size)}" if size is not None else ""),
            evidence=f"compute partition {first.partition}"
            + ("; below 70 GiB" if size is not None and size < _SMALL_BYTES else ""),
            fix=("# if large models are to be served:", "sudo amd-smi set --compute-partition SPX"),
        )


@check(
    "HW014",
    "Does every pair of GPUs have its xGMI link?",
    severity="warning",
    effect="tensor parallelism crosses PCIe, and the engine switches its own collectives off",
    source="vllm-project/vllm:vllm/distributed/device_communicators/custom_all_reduce.py@v0.33.0; Linux kfd_topology.c",
)
def xgmi_links(host: Host) -> Iterator[Answer]:
    """Only cards whose catalogue entry says that they form a full mesh are judged."""
    members: dict[str, list[Device]] = defaultdict(list)
    meshed = 0
    for device in host.node.devices:
        card = _catalogued(device)
        if card is None or card.links is None or card.links.kind != "xgmi" or device.partition not in (None, "SPX"):
            continue
        if card.links.peers >= card.devices_per_node - 1:
            meshed += 1
            if device.hive is not None:
                members[device.hive].append(device)
    if meshed < 2:
        yield NotHere(why="fewer than two cards that form a mesh")
        return
    weights = host.node.link_weights
    if not weights or not members:
        yield Unknown(why="no links between the cards are shown")
        return
    missing = [
        (one.index, other.index)
        for devices in members.values()
        for number, one in enumerate(devices)
        for other in devices[number + 1 :]
        if weights.get(f"{min(one.index, other.index)}-{max(one.index, other.index)}") not in _XGMI_WEIGHTS
    ]
    alone = [hive for hive, devices in members.items() if len(devices) == 1]
    if missing:
        yield Symptom(
            message=f"{len(missing)} pair{'s' * (len(missing) > 1)} of GPUs without an xGMI link",
            evidence=", ".join(f"{one}-{other}" for one, other in missing[:8]),
            fix=(
                "amd-smi xgmi --link-status",
                "# power the host off and on; if the link stays down, have the board checked",
            ),
        )
    if alone and len(members) > 1:
        yield Symptom(
            message=f"{len(alone)} GPU{'s' * (len(alone) > 1)} stand outside of the xGMI groups of the others",
            evidence=", ".join(f"device {members[hive][0].index}" for hive in alone),
            fix=("amd-smi xgmi --link-status",),
        )


@check(
    "HW015",
    "Are all GPUs of the board there?",
    severity="warning",
    effect="plans count on fewer GPUs; one is broken, hidden or switched off",
    source="ROCm/ROCm:docs/how-to/system-optimization/mi300x.rst@e396b48 (5 of 8 shown: hardware)",
)
def whole_board(host: Host) -> Iterator[Answer]:
    """Boards of eight that show an odd number."""
    if any(finding.id in ("ENV004", "HW001") for finding in host.node.findings):
        yield Unknown(why="devices are hidden from this process")
        return
    packages: Counter[str] = Counter()
    for address in {kfd.package_of(d.bdf): d for d in host.node.devices if d.bdf is not None}.values():
        card = _catalogued(address)
        if card is not None and card.links is not None and card.links.peers == 7:
            packages[card.name.split("-")[0]] += 1
    if not packages:
        yield NotHere(why="no board of eight")
    for name, count in sorted(packages.items()):
        if count in (3, 5, 6, 7):
            yield Symptom(
                message=f"{count} of 8 {name} are there",
                fix=(
                    "sudo dmesg | grep -iE 'amdgpu|pcieport'",
                    "# power the host off and on; if it stays, have the board checked",
                ),
            )


@check(
    "HW025",
    "May the GPU of an APU use most of the memory?",
    severity="info",
    effect="models larger than that do not fit, although the machine has the memory",
    source="Linux drivers/gpu/drm/ttm (pages_limit, half of the memory unless told otherwise); ROCm/legacy-rocm-build issue 5595",
)
def mapped_memory(host: Host) -> Iterator[Answer]:
    """What the GPU may map against what the machine has."""
    total = host.memory.get("MemTotal")
    shared = [d for d in host.node.devices if d.shared_memory]
    if not shared or len(shared) < len(host.node.devices):
        yield NotHere(why="no APU that serves alone")
        return
    for card, device in states(host):
        if device is None or not device.shared_memory:
            continue
        if card.gtt_total_bytes is None or not total:
            yield Unknown(why=f"{card.name} does not show what it may map")
        elif max(card.gtt_total_bytes, card.vram_total_bytes or 0) < 0.55 * total:
            fitted = -(-(total + (card.vram_total_bytes or 0)) // (16 * GIB)) * 16 * GIB
            pages = fitted * 3 // 4 // _PAGE_BYTES
            yield Symptom(
                message=f"the GPU may map {format_bytes(card.gtt_total_bytes)} of {format_bytes(total)}",
                evidence=f"mem_info_gtt_total of {card.name}; carve-out {format_bytes(card.vram_total_bytes or 0)}",
                fix=(*kernel_parameters(f"ttm.pages_limit={pages}"), f"# gives {format_bytes(pages * _PAGE_BYTES)}"),
            )


def _catalogued(device: Device) -> Gpu | None:
    """The whole card of a device."""
    if device.gpu is None:
        return None
    name = device.gpu.removesuffix(f"-{device.partition}") if device.partition else device.gpu
    try:
        return catalog.load(name)
    except InvalidInput:
        return None


CHECKS = (
    pcie_link,
    visible_memory,
    one_kind,
    partition_modes,
    partitioned,
    xgmi_links,
    whole_board,
    mapped_memory,
)
