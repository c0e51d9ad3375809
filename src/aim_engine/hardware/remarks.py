"""What a person should know about the devices that were found, beyond the devices themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from aim_engine.hardware import naming
from aim_engine.hardware.cluster import Device, Finding
from aim_engine.units import format_bytes

_LOWERED_CAP_FRACTION = 0.95
"""A power cap below this share of the default is worth saying."""


def of(devices: Sequence[Device], overlay: Path | None) -> list[Finding]:
    """All remarks on the devices of one machine."""
    return [*_uncatalogued(devices, overlay), *_shared(devices), *_hives(devices), *_throttled(devices)]


def _uncatalogued(devices: Sequence[Device], overlay: Path | None) -> list[Finding]:
    """Devices whose figures are not known, so that plans leave them out."""
    found = []
    unknown = [device for device in devices if device.gpu is None]
    if len(unknown) < len(devices):
        # A processor's own graphics beside a card get a remark of their own.
        unknown = [device for device in unknown if not device.integrated]
    for key in sorted({(d.product, d.pci_id or "", d.revision or "") for d in unknown}):
        product, pci_id, _ = key
        members = [d.index for d in unknown if (d.product, d.pci_id or "", d.revision or "") == key]
        candidates = naming.candidates(next(d for d in unknown if d.index == members[0]), overlay)
        remedy = "describe it in gpus/NAME.yaml of your catalogue folder"
        message = f"{product} ({pci_id or 'no PCI id'}) is not in the catalogue: plans leave it out"
        if candidates:
            message = f"{product} ({pci_id or 'no PCI id'}) may be {' or '.join(candidates)}, and nothing here tells which: plans leave it out"
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


def _shared(devices: Sequence[Device]) -> list[Finding]:
    """Processors' own graphics: beside a card they are not counted on; alone they share memory with the system."""
    own = [device for device in devices if device.shared_memory or device.integrated]
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
