"""The cards themselves: power, heat, errors, links, partitions, memory that others hold, firmware."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from aim_engine.doctor.host import Host
from aim_engine.doctor.pci import CardState
from aim_engine.doctor.report import Answer, NotHere, Symptom, Unknown, check, kernel_parameters
from aim_engine.errors import InvalidInput
from aim_engine.hardware import catalog, identity, kfd
from aim_engine.hardware.cluster import Device
from aim_engine.hardware.gpu import Gpu
from aim_engine.units import GIB, format_bytes

_VIOLATIONS = "ROCm/rocm-systems:projects/amdsmi/docs/conceptual/gpu-violations.md@01d7eee"
_THERMAL = "Linux Documentation/gpu/amdgpu/thermal; limits are the card's own"
_SCRAPER = "amd/node-scraper; ROCm/device-metrics-exporter@afd0fe8"
_LOWERED_FRACTION = 0.95
_NEAR_C, _AT_C = 10.0, 3.0
"""Degrees below the slow-down limit: worth a warning; as good as there."""
_BAD_PAGES = 128
"""Threshold of the driver. Source: amd/node-scraper, message "Saved bad pages N reaches threshold value 128"."""
_LOADED_PERCENT = 50
_HELD_FRACTION = 0.08
"""The engine takes 0.92 of the memory unless told otherwise, and refuses to start when less is free."""
_VISIBLE_BYTES = 256 * 2**20
_XGMI_WEIGHTS = (13, 15, 41)
_MEC_FIRMWARE = 177
_SMALL_BYTES = 70 * GIB
_PAGE_BYTES = 4096


def _cards(host: Host) -> Iterator[tuple[CardState, Device | None]]:
    """Every card with its first device."""
    for card in host.cards:
        yield (
            card,
            next((d for d in host.node.devices if d.bdf is not None and kfd.package_of(d.bdf) == card.address), None),
        )


def _called(card: CardState, device: Device | None) -> str:
    where = card.address or card.name
    return f"device {device.index} ({device.product}, {where})" if device is not None else where


@check(
    "HW005",
    "Is the power cap of every card its default?",
    severity="warning",
    effect="the card clocks lower under load than its figures promise",
    source=_VIOLATIONS,
)
def power_cap(host: Host) -> Iterator[Answer]:
    """A cap below the default. A card without a cap of its own (a guest, an APU) does not say."""
    silent = []
    for card, device in _cards(host):
        cap, default = card.readings.power_cap_w, card.readings.power_cap_default_w or card.readings.power_cap_max_w
        if not cap or not default:
            silent.append(card.address or card.name)
        elif cap < _LOWERED_FRACTION * default:
            word = "default" if card.readings.power_cap_default_w else "maximum"
            yield Symptom(
                message=f"{_called(card, device)} is capped at {cap:g} W, {cap / default:.0%} of its {word}",
                evidence=f"power1_cap {cap:g} W, {word} {default:g} W",
                fix=(f"echo {round(default * 10**6)} | sudo tee {card.power_cap_file}",),
            )
    yield from _silence(host, silent, "no power cap is shown")


@check(
    "HW006",
    "Are the clocks left to the driver?",
    severity="info",
    effect="a pinned clock is slower than the card under load, or hotter than it needs to be when idle",
    source="Linux Documentation/gpu/amdgpu/thermal (power_dpm_force_performance_level)",
)
def performance_level(host: Host) -> Iterator[Answer]:
    """Anything but `auto` is somebody's choice; `low` is never one for serving."""
    silent = []
    for card, device in _cards(host):
        level = card.readings.performance_level
        if level is None:
            silent.append(card.address or card.name)
        elif level != "auto":
            yield Symptom(
                message=f"the performance level of {_called(card, device)} is {level}",
                fix=(f"echo auto | sudo tee {card.folder}/power_dpm_force_performance_level",),
                severity="warning" if level in ("low", "profile_min_sclk", "profile_min_mclk") else None,
            )
    yield from _silence(host, silent, "no performance level is shown")


@check(
    "HW016",
    "Are the cards cooler than where they slow down?",
    severity="warning",
    effect="the card lowers its clocks; near the emergency limit it switches off",
    source=_THERMAL,
)
def heat(host: Host) -> Iterator[Answer]:
    """Each place against the limit the card itself names, and the firmware's own word while the card works."""
    silent = []
    for card, device in _cards(host):
        readings = card.readings
        if card.hot and (readings.gpu_busy_percent or 0) >= _LOADED_PERCENT:
            yield Symptom(
                message=f"heat holds back the clocks of {_called(card, device)}",
                evidence=f"gpu_metrics throttle status, {readings.gpu_busy_percent} % busy"
                + "".join(f", {place} {now:g} C" for place, now in sorted(readings.temperature_c.items())),
                fix=("# check fans, airflow and dust; until then lower the power cap",),
            )
            continue
        limits = readings.temperature_critical_c
        judged = [place for place in readings.temperature_c if place in limits]
        if not judged and card.hot is None:
            silent.append(card.address or card.name)
        for place in judged:
            now, limit = readings.temperature_c[place], limits[place]
            if now >= limit - _NEAR_C:
                yield Symptom(
                    message=f"{_called(card, device)}: {place} is at {now:g} C, it slows down at {limit:g} C",
                    evidence=f"temp*_input {now:g}, temp*_crit {limit:g}",
                    fix=("# check fans, airflow and dust; until then lower the power cap",),
                    severity="error" if now >= limit - _AT_C else None,
                )
    yield from _silence(
        host,
        silent,
        "no temperature limit is shown; two readings of the violation counters would say (amd-smi metric --throttle)",
    )


@check(
    "HW017",
    "Has memory made no errors that could not be corrected?",
    severity="error",
    effect="answers can be wrong, and the driver resets the card",
    source=_SCRAPER,
)
def memory_errors(host: Host) -> Iterator[Answer]:
    """The counters of each block since the driver was loaded."""
    silent = []
    for card, device in _cards(host):
        if card.errors is None:
            if card.instinct:
                silent.append(card.address or card.name)
            continue
        lost = {block: counts[0] for block, counts in card.errors.items() if counts[0]}
        mended = {block: counts[1] for block, counts in card.errors.items() if counts[1]}
        if lost:
            yield Symptom(
                message=f"{_called(card, device)}: {sum(lost.values())} uncorrectable errors",
                evidence=", ".join(f"{block} {count}" for block, count in sorted(lost.items())),
                fix=("# drain this host", "sudo reboot", "# if they come back: have the card replaced"),
            )
        if mended:
            yield Symptom(
                message=f"{_called(card, device)}: {sum(mended.values())} errors were corrected",
                evidence=", ".join(f"{block} {count}" for block, count in sorted(mended.items())),
                fix=("# look again in an hour: a number that grows is an early warning",),
                severity="info",
            )
    if silent:
        yield Unknown(why=f"no error counters are shown of {', '.join(silent[:8])}")
    elif not any(card.errors is not None for card in host.cards):
        yield NotHere(why="no card that counts errors")


@check(
    "HW018",
    "Are no memory pages lost?",
    severity="warning",
    effect="lost pages are left out; at the driver's threshold the card no longer starts",
    source=_SCRAPER,
)
def bad_pages(host: Host) -> Iterator[Answer]:
    """Retired pages are dealt with, pending ones wait for a reset."""
    silent = []
    for card, device in _cards(host):
        pages = card.bad_pages
        if pages is None:
            if card.instinct:
                silent.append(card.address or card.name)
            continue
        total = sum(pages.values())
        if not total:
            continue
        waiting = pages.get("P", 0) + pages.get("F", 0)
        yield Symptom(
            message=f"{_called(card, device)}: {total} bad memory page{'s' * (total > 1)}"
            + (f", {waiting} of them still in use" if waiting else ", all retired"),
            evidence="ras/gpu_vram_bad_pages",
            fix=("sudo reboot",)
            if waiting
            else (f"# the driver gives up at {_BAD_PAGES}; have the card replaced before",),
            severity="error" if total >= _BAD_PAGES else None if waiting else "info",
        )
    if silent:
        yield Unknown(why=f"no list of bad pages is shown of {', '.join(silent[:8])} (it is for root)")
    elif not any(card.bad_pages is not None for card in host.cards):
        yield NotHere(why="no card that keeps a list")


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
    for card, device in _cards(host):
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
                message=f"the link of {_called(card, device)} runs at x{link.width} {link.speed_gt_s or '?'} GT/s",
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
    yield from _silence(host, silent, "no link width is shown")


@check(
    "HW020",
    "Is PCIe free of errors that were not corrected?",
    severity="warning",
    effect="transfers are lost or the card leaves the bus",
    source="Linux Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats",
)
def pcie_errors(host: Host) -> Iterator[Answer]:
    """Fatal and non-fatal errors since boot; corrected ones matter only when they grow."""
    for card, device in _cards(host):
        counts = {kind: card.aer.get(kind, 0) for kind in ("fatal", "nonfatal")}
        if any(counts.values()):
            yield Symptom(
                message=f"{_called(card, device)}: {sum(counts.values())} PCIe errors were not corrected",
                evidence=", ".join(f"{kind} {count}" for kind, count in counts.items() if count),
                fix=("# reseat the card and its cables", "sudo dmesg | grep -i 'pcie bus error'"),
                severity="error" if counts["fatal"] else None,
            )
    silent = [card.address or card.name for card in host.cards if not card.aer]
    yield from _silence(host, silent, "no PCIe error counters are shown")


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
    for card, device in _cards(host):
        if device is not None and device.shared_memory:
            continue
        if card.visible_vram_bytes is None or card.vram_total_bytes is None:
            silent.append(card.address or card.name)
        elif card.visible_vram_bytes <= _VISIBLE_BYTES < card.vram_total_bytes:
            yield Symptom(
                message=f"the processor sees {format_bytes(card.visible_vram_bytes)} of {_called(card, device)}",
                evidence=f"of {format_bytes(card.vram_total_bytes)}",
                fix=("# enable 'Above 4G decoding' and 'Resizable BAR' in the BIOS",),
                severity="warning" if len(host.serving) > 1 else None,
            )
    yield from _silence(host, silent, "no visible memory is shown")


@check(
    "HW022",
    "Is the memory of the cards free?",
    severity="warning",
    effect="the engine takes 92 % of each card's memory unless told otherwise, and refuses to start when less is free",
    source="vllm-project/vllm:vllm/v1/worker/utils.py, config/cache.py@v0.33.0; amd-enterprise-ai/aim-build@2be2cf8",
)
def held_memory(host: Host) -> Iterator[Answer]:
    """Memory that other programs hold, and who they are where the driver says."""
    silent = []
    for device in host.serving:
        total, used = device.memory_total_bytes, device.memory_used_bytes
        if device.shared_memory or device.partition not in (None, "SPX"):
            continue
        if total is None or used is None:
            silent.append(device.bdf or str(device.index))
        elif used > _HELD_FRACTION * total:
            holders = [each for each in host.holders or () if each.vram_bytes > 0]
            who = ", ".join(f"{each.name} (pid {each.pid}): {format_bytes(each.vram_bytes)}" for each in holders[:4])
            yield Symptom(
                message=f"{format_bytes(used)} of {format_bytes(total)} of device {device.index} ({device.product}) are in use",
                evidence=who,
                fix=(
                    "amd-smi process",
                    f"# stop those programs, or plan with less: --gpu-memory-utilization {max(0.1, int((1 - used / total) * 100 - 2) / 100):.2f}",
                ),
            )
    yield from _silence(host, silent, "no use of memory is shown")


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
    "HW023",
    "Is the firmware of the compute queues new enough?",
    severity="warning",
    effect="reclaiming scratch memory stalls kernels, unless HSA_NO_SCRATCH_RECLAIM=1 (engine images set it)",
    source="SemiAnalysisAI/InferenceX@843c625 (MEC firmware below 177)",
)
def firmware(host: Host) -> Iterator[Answer]:
    """MI300 only: the release in which the fault was mended."""
    concerned = [(card, device) for card, device in _cards(host) if device is not None and device.arch == "gfx942"]
    if not concerned or host.environment.get("HSA_NO_SCRATCH_RECLAIM") == "1":
        yield NotHere(why="HSA_NO_SCRATCH_RECLAIM=1 is set" if concerned else "no MI300 series card")
        return
    old = [(card, device) for card, device in concerned if card.mec_firmware and card.mec_firmware < _MEC_FIRMWARE]
    if old:
        yield Symptom(
            message=f"{len(old)} card{'s' * (len(old) > 1)} with MEC firmware {old[0][0].mec_firmware}, below {_MEC_FIRMWARE}",
            evidence="fw_version/mec_fw_version",
            fix=("export HSA_NO_SCRATCH_RECLAIM=1", "# or update the driver's firmware package and reboot"),
        )
    elif not all(card.mec_firmware for card, _ in concerned):
        yield Unknown(why="no MEC firmware version is shown")


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
    for card, device in _cards(host):
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


def _silence(host: Host, silent: list[str], why: str) -> Iterator[Answer]:
    """What cards did not say; without cards the question does not arise."""
    if not host.cards:
        if host.node.devices:
            yield Unknown(why="/sys/class/drm is not shown")
        else:
            yield NotHere(why="no AMD GPU under the driver")
    elif silent:
        yield Unknown(why=f"{why}: {', '.join(silent[:8])}{' ...' if len(silent) > 8 else ''}")


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
    power_cap,
    performance_level,
    heat,
    memory_errors,
    bad_pages,
    pcie_link,
    pcie_errors,
    visible_memory,
    held_memory,
    one_kind,
    partition_modes,
    partitioned,
    xgmi_links,
    whole_board,
    firmware,
    mapped_memory,
)
