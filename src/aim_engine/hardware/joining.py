"""What several sources say of one machine, as one: devices are the same by PCI address, the first source stands, differences are told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from aim_engine.hardware import kfd
from aim_engine.hardware.cluster import UNNAMED, Device, Finding, Memory, Node
from aim_engine.hardware.readings import Readings

_COMPARED = (
    "arch",
    "pci_id",
    "partition",
    "memory_partition",
    "compute_units",
    "compute_dies",
    "numa_node",
    "memory_total_bytes",
)
_SAME_MEMORY_FRACTION = 0.01
Part = TypeVar("Part", Memory, Readings)
_MOST_NAMED = 8
"""Addresses or devices that a finding lists."""


def join(
    first: Sequence[Device], other: Sequence[Device], by: str = "amd-smi"
) -> tuple[tuple[Device, ...], tuple[Finding, ...]]:
    """Devices of two sources; the first one's word stands, gaps are filled, differences reported.

    Tools before ROCm 6.4 give all partitions of a package its address: those are matched in their order. `by` names the second
    source where its devices do not say it themselves.
    """
    pairs, unmatched = _pairs(first, other)
    joined, differences = [], []
    for device, match in pairs:
        if match is None:
            joined.append(device)
            continue
        differences.extend(_disagreements(device, match, by))
        joined.append(_filled(device, match, by))
    return tuple(joined), (*_told(differences), *_strangers(first, other, unmatched, by))


def nodes(machines: Sequence[Node], name: str) -> Node:
    """One machine of what several sources say of it, the first of them first in authority."""
    whole = machines[0]
    for machine in machines[1:]:
        devices, findings = (machine.devices, ()) if not whole.devices else join(whole.devices, machine.devices)
        numbers = _numbers(machine, devices)
        whole = msgspec.structs.replace(
            whole,
            devices=devices,
            cpu=whole.cpu or machine.cpu,
            driver_version=whole.driver_version or machine.driver_version,
            rocm_version=whole.rocm_version or machine.rocm_version,
            guest=whole.guest if whole.guest is not None else machine.guest,
            link_weights=whole.link_weights or renumbered(machine.link_weights, numbers),
            nics=whole.nics or machine.nics,
            findings=tuple(
                finding
                for finding in (*whole.findings, *machine.findings, *findings)
                if not (devices and finding.id == "HW030")
            ),
        )
    return msgspec.structs.replace(whole, name=name)


def renumbered(weights: Mapping[str, int], new: Mapping[int, int]) -> dict[str, int]:
    """Link weights under other device numbers (old -> new); pairs with a device that is not among them are left out."""
    found = {}
    for key, weight in weights.items():
        one, two = (new.get(int(part)) for part in key.split("-"))
        if one is not None and two is not None:
            found[f"{min(one, two)}-{max(one, two)}"] = weight
    return found


def _pairs(first: Sequence[Device], other: Sequence[Device]) -> tuple[list[tuple[Device, Device | None]], list[Device]]:
    """Each device of the first source with the same one of the other, and those of the other that are none of the first."""
    if len(first) == len(other) == 1 and None in (first[0].bdf, other[0].bdf):
        return [(first[0], other[0])], []
    exact = {device.bdf: device for device in other if device.bdf is not None}
    by_package: dict[str, list[Device]] = defaultdict(list)
    for device in other:
        if device.bdf is not None:
            by_package[kfd.package_of(device.bdf)].append(device)
    pairs: list[tuple[Device, Device | None]] = []
    taken: dict[str, int] = defaultdict(int)
    used = set()
    for device in first:
        match = None
        if device.bdf is not None:
            package = kfd.package_of(device.bdf)
            members = by_package.get(package, [])
            if len(members) > 1 and len({member.bdf for member in members}) == 1:
                match = members[taken[package]] if taken[package] < len(members) else None
            else:
                match = exact.get(device.bdf)
            taken[package] += 1
        if match is not None:
            used.add(id(match))
        pairs.append((device, match))
    return pairs, [device for device in other if id(device) not in used]


def _filled(device: Device, other: Device, by: str) -> Device:
    filled: dict[str, Any] = {
        field: getattr(other, field)
        for field in Device.__struct_fields__
        if field not in ("index", "gpu", "product", "sources", "shared_memory", "memory", "readings")
        and getattr(device, field) is None
        and getattr(other, field) is not None
    }
    if device.product == UNNAMED and other.product != UNNAMED:
        filled["product"] = other.product
    sources = {field: other.sources.get(field, by) for field in filled}
    return msgspec.structs.replace(
        device,
        **filled,
        memory=merged(device.memory, other.memory, Memory()),
        readings=merged(device.readings, other.readings, Readings()),
        sources={**device.sources, **sources},
    )


def merged(first: Part | None, other: Part | None, empty: Part) -> Part | None:
    """The first with its gaps filled from the other: what has the value of `empty` is a gap."""
    if first is None or other is None:
        return first if other is None else other
    gaps = {
        field: getattr(other, field)
        for field in first.__struct_fields__
        if getattr(first, field) == getattr(empty, field)
    }
    return msgspec.structs.replace(first, **gaps)


def _disagreements(device: Device, other: Device, by: str) -> list[tuple[str, Device, str, str]]:
    """Field, device, and what each of the two says of it."""
    found = []
    for field in _COMPARED:
        ours, theirs = getattr(device, field), getattr(other, field)
        if ours is None or theirs is None or ours == theirs:
            continue
        if field == "memory_total_bytes" and abs(ours - theirs) <= _SAME_MEMORY_FRACTION * max(ours, theirs):
            continue
        said = f"{device.sources.get(field, 'the kernel')} says {ours}", f"{other.sources.get(field, by)} says {theirs}"
        found.append((field, device, *said))
    return found


def _told(differences: Sequence[tuple[str, Device, str, str]]) -> list[Finding]:
    """One finding for each kind of difference, however many devices show it."""
    kinds: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for field, device, ours, theirs in differences:
        kinds[field, ours, theirs].append(device.bdf or f"device {device.index}")
    return [
        Finding(
            id="HW010",
            severity="warning",
            message=f"sources disagree on {field} of {_listed(where)}: {ours}, {theirs}",
            remedy=f"used is what {ours.partition(' says ')[0]} says",
        )
        for (field, ours, theirs), where in kinds.items()
    ]


def _strangers(first: Sequence[Device], other: Sequence[Device], unmatched: Sequence[Device], by: str) -> list[Finding]:
    if not unmatched:
        return []
    source = next((name for device in unmatched for name in device.sources.values()), by)
    if all(device.bdf is None for device in unmatched) or all(device.bdf is None for device in first):
        return [
            Finding(
                id="HW031",
                severity="warning",
                message=f"what {source} says of {len(unmatched)} of its {len(other)} devices cannot be matched with the other source",
                evidence="one of the two gives no PCI address",
                remedy="record with the address: amd-smi static --json, rocm-smi --showbus",
            )
        ]
    return [
        Finding(
            id="HW032",
            severity="warning",
            message=f"{source} lists {len(unmatched)} devices that the other source does not show",
            evidence=_listed([device.bdf or "no address" for device in unmatched]),
            remedy="they are left out; record all sources on one machine at one time",
        )
    ]


def _numbers(machine: Node, devices: Sequence[Device]) -> dict[int, int]:
    """The machine's device numbers -> those of the joined devices, by address, else as they are."""
    index_of = {device.bdf: device.index for device in devices if device.bdf is not None}
    if any(device.bdf in index_of for device in machine.devices):
        return {device.index: index_of[device.bdf] for device in machine.devices if device.bdf in index_of}
    return {device.index: device.index for device in machine.devices} if len(machine.devices) == len(devices) else {}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
