"""The cards themselves: power, heat, errors, memory that others hold, firmware."""

from __future__ import annotations

from collections.abc import Iterator

from aim_engine.doctor.host import Host
from aim_engine.doctor.pci import CardState
from aim_engine.doctor.report import Answer, NotHere, Symptom, Unknown, check
from aim_engine.hardware import kfd
from aim_engine.hardware.cluster import Device
from aim_engine.units import format_bytes

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
_MEC_FIRMWARE = 177


def states(host: Host) -> Iterator[tuple[CardState, Device | None]]:
    """Every card with its first device."""
    for card in host.cards:
        yield (
            card,
            next((d for d in host.node.devices if d.bdf is not None and kfd.package_of(d.bdf) == card.address), None),
        )


def called(card: CardState, device: Device | None) -> str:
    """A card as messages name it."""
    where = card.address or card.name
    return f"device {device.index} ({device.product}, {where})" if device is not None else where


def silence(host: Host, silent: list[str], why: str) -> Iterator[Answer]:
    """What cards did not say; without cards the question does not arise."""
    if not host.cards:
        if host.node.devices:
            yield Unknown(why="/sys/class/drm is not shown")
        else:
            yield NotHere(why="no AMD GPU under the driver")
    elif silent:
        yield Unknown(why=f"{why}: {', '.join(silent[:8])}{' ...' if len(silent) > 8 else ''}")


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
    for card, device in states(host):
        cap, default = card.readings.power_cap_w, card.readings.power_cap_default_w or card.readings.power_cap_max_w
        if not cap or not default:
            silent.append(card.address or card.name)
        elif cap < _LOWERED_FRACTION * default:
            word = "default" if card.readings.power_cap_default_w else "maximum"
            yield Symptom(
                message=f"{called(card, device)} is capped at {cap:g} W, {cap / default:.0%} of its {word}",
                evidence=f"power1_cap {cap:g} W, {word} {default:g} W",
                fix=(f"echo {round(default * 10**6)} | sudo tee {card.power_cap_file}",),
            )
    yield from silence(host, silent, "no power cap is shown")


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
    for card, device in states(host):
        level = card.readings.performance_level
        if level is None:
            silent.append(card.address or card.name)
        elif level != "auto":
            yield Symptom(
                message=f"the performance level of {called(card, device)} is {level}",
                fix=(f"echo auto | sudo tee {card.folder}/power_dpm_force_performance_level",),
                severity="warning" if level in ("low", "profile_min_sclk", "profile_min_mclk") else None,
            )
    yield from silence(host, silent, "no performance level is shown")


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
    for card, device in states(host):
        readings = card.readings
        if card.hot and (readings.gpu_busy_percent or 0) >= _LOADED_PERCENT:
            yield Symptom(
                message=f"heat holds back the clocks of {called(card, device)}",
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
                    message=f"{called(card, device)}: {place} is at {now:g} C, it slows down at {limit:g} C",
                    evidence=f"temp*_input {now:g}, temp*_crit {limit:g}",
                    fix=("# check fans, airflow and dust; until then lower the power cap",),
                    severity="error" if now >= limit - _AT_C else None,
                )
    yield from silence(
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
    for card, device in states(host):
        if card.errors is None:
            if card.instinct:
                silent.append(card.address or card.name)
            continue
        lost = {block: counts[0] for block, counts in card.errors.items() if counts[0]}
        mended = {block: counts[1] for block, counts in card.errors.items() if counts[1]}
        if lost:
            yield Symptom(
                message=f"{called(card, device)}: {sum(lost.values())} uncorrectable errors",
                evidence=", ".join(f"{block} {count}" for block, count in sorted(lost.items())),
                fix=("# drain this host", "sudo reboot", "# if they come back: have the card replaced"),
            )
        if mended:
            yield Symptom(
                message=f"{called(card, device)}: {sum(mended.values())} errors were corrected",
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
    for card, device in states(host):
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
            message=f"{called(card, device)}: {total} bad memory page{'s' * (total > 1)}"
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
    "HW020",
    "Is PCIe free of errors that were not corrected?",
    severity="warning",
    effect="transfers are lost or the card leaves the bus",
    source="Linux Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats",
)
def pcie_errors(host: Host) -> Iterator[Answer]:
    """Fatal and non-fatal errors since boot; corrected ones matter only when they grow."""
    for card, device in states(host):
        counts = {kind: card.aer.get(kind, 0) for kind in ("fatal", "nonfatal")}
        if any(counts.values()):
            yield Symptom(
                message=f"{called(card, device)}: {sum(counts.values())} PCIe errors were not corrected",
                evidence=", ".join(f"{kind} {count}" for kind, count in counts.items() if count),
                fix=("# reseat the card and its cables", "sudo dmesg | grep -i 'pcie bus error'"),
                severity="error" if counts["fatal"] else None,
            )
    silent = [card.address or card.name for card in host.cards if not card.aer]
    yield from silence(host, silent, "no PCIe error counters are shown")


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
    yield from silence(host, silent, "no use of memory is shown")


@check(
    "HW023",
    "Is the firmware of the compute queues new enough?",
    severity="warning",
    effect="reclaiming scratch memory stalls kernels, unless HSA_NO_SCRATCH_RECLAIM=1 (engine images set it)",
    source="SemiAnalysisAI/InferenceX@843c625 (MEC firmware below 177)",
)
def firmware(host: Host) -> Iterator[Answer]:
    """MI300 only: the release in which the fault was mended."""
    concerned = [(card, device) for card, device in states(host) if device is not None and device.arch == "gfx942"]
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


CHECKS = (
    power_cap,
    performance_level,
    heat,
    memory_errors,
    bad_pages,
    pcie_errors,
    held_memory,
    firmware,
)
