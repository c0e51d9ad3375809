"""GPUs that AMD's DRA driver publishes: ResourceSlices, and the claims that hold devices of them.

Source: ROCm/k8s-gpu-dra-driver:docs/driver-attributes.md@06dbe58; Kubernetes resource.k8s.io/v1, v1beta2 (plain devices), v1beta1
and v1alpha3 (devices under `basic`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from aim_engine.hardware.cluster import Finding
from aim_engine.hardware.nodes_labels import partition_of
from aim_engine.hardware.nodes_text import Object, items, mapping, word
from aim_engine.hardware.quantity import whole

DRIVER = "gpu.amd.com"
_STANDARD = "resource.kubernetes.io/"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a slice."""

    pool: str
    name: str
    product: str | None
    pci_id: str | None
    address: str | None
    partition: str | None
    memory_partition: str | None
    numa_node: int | None
    memory_bytes: int | None
    """None where the driver publishes 0, which is its word for unknown."""
    compute_units: int | None
    driver_version: str | None
    kept_away: tuple[str, ...] = ()
    """Taints of the device that keep claims from it."""
    allocated: bool | None = None
    """None where no claims were recorded."""


def published(
    slices: Iterable[Object], claims: Iterable[Object] | None
) -> tuple[dict[str, tuple[Published, ...]], dict[str, tuple[Finding, ...]]]:
    """Devices and remarks by node. Only the newest generation of a pool counts."""
    pools: dict[tuple[str, str], dict[int, list[Object]]] = defaultdict(lambda: defaultdict(list))
    for each in slices:
        spec = mapping(each.get("spec"))
        node = word(spec.get("nodeName"))
        if spec.get("driver") != DRIVER or node is None:
            continue
        pool = mapping(spec.get("pool"))
        generation = whole(pool.get("generation")) or 0
        pools[node, word(pool.get("name")) or node][generation].append(spec)
    held = _held(claims) if claims is not None else None
    devices: dict[str, list[Published]] = defaultdict(list)
    findings: dict[str, list[Finding]] = defaultdict(list)
    for (node, pool_name), generations in sorted(pools.items()):
        newest = generations[max(generations)]
        wanted = max(whole(mapping(spec.get("pool")).get("resourceSliceCount")) or 0 for spec in newest)
        if len(newest) < wanted:
            findings[node].append(
                Finding(
                    id="K8S115",
                    severity="warning",
                    message=f"{len(newest)} of {wanted} slices of the pool {pool_name} are there",
                    remedy="record all: kubectl get resourceslices -o json",
                )
            )
        found = [
            device
            for spec in newest
            for each in items(spec.get("devices"))
            if (device := _device(mapping(each), pool_name, held)) is not None
        ]
        devices[node].extend(_exclusive(found))
    return {node: tuple(each) for node, each in devices.items()}, {node: tuple(each) for node, each in findings.items()}


def _device(device: Object, pool: str, held: frozenset[tuple[str, str]] | None) -> Published | None:
    name = word(device.get("name"))
    body = mapping(device.get("basic")) or device
    attributes = {_short(key): _value(value) for key, value in mapping(body.get("attributes")).items()}
    capacity = {_short(key): _amount(value) for key, value in mapping(body.get("capacity")).items()}
    if name is None or attributes.get("type") == "vfio":
        return None
    mode, memory_mode = partition_of(str(attributes.get("partitionProfile") or ""))
    if mode is None:
        mode, memory_mode = partition_of(f"{attributes.get('computePartition')}_{attributes.get('memoryPartition')}")
    pci_id = str(attributes.get("deviceID") or "").lower().removeprefix("0x")
    address = str(attributes.get("pciBusID") or attributes.get("pciAddr") or "").lower()
    numa = attributes.get("numaNode")
    return Published(
        pool=pool,
        name=name,
        product=(word(attributes.get("productName")) or "").replace("_", " ") or None,
        pci_id=pci_id if re.fullmatch(r"[0-9a-f]{4}", pci_id) else None,
        address=address if re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]", address) else None,
        partition=mode,
        memory_partition=memory_mode,
        numa_node=numa if isinstance(numa, int) and not isinstance(numa, bool) and 0 <= numa < 1024 else None,
        memory_bytes=capacity.get("memory") or None,
        compute_units=capacity.get("computeUnits") or None,
        driver_version=word(attributes.get("driverVersionFull")) or word(attributes.get("driverVersion")),
        kept_away=tuple(
            f"{word(taint.get('key')) or '?'}:{taint.get('effect')}"
            for taint in map(mapping, items(body.get("taints")))
            if taint.get("effect") in ("NoSchedule", "NoExecute")
        ),
        allocated=None if held is None else (pool, name) in held,
    )


def _exclusive(devices: list[Published]) -> list[Published]:
    """The driver may offer every partition mode of a card at once, of which one can be taken: the whole card stands for it."""
    virtual = re.compile(r"gpu-\d+-(spx|dpx|tpx|qpx|cpx)-nps\d")
    whole_cards = [each for each in devices if not virtual.fullmatch(each.name)]
    offered: dict[str, list[Published]] = defaultdict(list)
    for each in devices:
        if virtual.fullmatch(each.name):
            offered[each.address or each.name.rsplit("-", 2)[0]].append(each)
    for _, modes in sorted(offered.items()):
        taken = [each for each in modes if each.allocated]
        chosen = taken or [each for each in modes if each.partition == "SPX" and not each.kept_away] or modes[:1]
        whole_cards.append(chosen[0])
    return whole_cards


def _held(claims: Iterable[Object]) -> frozenset[tuple[str, str]]:
    """(pool, device) of every claim that has been allocated."""
    found = set()
    for claim in claims:
        allocation = mapping(mapping(claim.get("status")).get("allocation"))
        for result in map(mapping, items(mapping(allocation.get("devices")).get("results"))):
            pool, device = word(result.get("pool")), word(result.get("device"))
            if result.get("driver") == DRIVER and pool is not None and device is not None:
                found.add((pool, device))
    return frozenset(found)


def _short(key: object) -> str:
    return str(key).removeprefix(f"{DRIVER}/").removeprefix(_STANDARD)


def _value(value: object) -> Any:
    """`{"string": "amdgpu"}` -> amdgpu."""
    if isinstance(value, Mapping):
        return next((value[kind] for kind in ("string", "int", "version", "bool") if kind in value), None)
    return value


def _amount(value: object) -> int | None:
    return whole(value.get("value")) if isinstance(value, Mapping) else whole(value)
