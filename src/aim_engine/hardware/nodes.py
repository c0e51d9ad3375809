"""The GPUs of a Kubernetes cluster from its own objects: nodes, and where they are given pods, slices and claims.

What pods may ask for is what counts (allocatable, published devices); labels say which cards these are. Labels without capacity
and capacity without labels both happen and are both said. Source: ROCm/k8s-device-plugin, ROCm/gpu-operator@6df13c1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.hardware import catalog, naming, nodes_labels, nodes_remarks, nodes_slices, nodes_text
from aim_engine.hardware.cluster import UNNAMED, Cluster, Device, Finding, Labelled, Node, Resource, Scheduling
from aim_engine.hardware.nodes_labels import Told
from aim_engine.hardware.nodes_slices import Published
from aim_engine.hardware.nodes_text import Object, items, mapping, word
from aim_engine.hardware.quantity import whole

GPU_RESOURCE = "amd.com/gpu"
_RESOURCE = re.compile(r"amd\.com/(gpu|(?:spx|dpx|tpx|qpx|cpx)_nps[1248])")
_LIKELY = re.compile(
    r"""(?:amd\.com/(?:gpu|[a-z]px_nps)|kubernetes\.io/|["']?kind["']?\s*:\s*["']?(?:Node|Pod|ResourceSlice|List)\b|k8s\.io/v)"""
)
_FINISHED = ("Succeeded", "Failed")
_LOOKED_UP = ("gpu", "product", "arch", "compute_units", "memory_total_bytes")
"""Fields of a device that the catalogue may fill."""
_MOST_DEVICES = 4096
"""More than any node has, so that a nonsensical count does not become as many devices."""


def read(*texts: str, name: str = "the input", overlay: Path | None = None) -> Cluster:
    """The cluster in a recording: `kubectl get nodes -o json` or yaml, labels alone, pods, slices and claims beside them.

    Raises: InvalidInput when it holds no nodes, Corrupt when it is cut off.
    """
    found = nodes_text.objects(*texts, name=name)
    return assemble({kind: members for kind, members in found.items() if members}, overlay)


def is_one(text: str) -> bool:
    """Does `text` look like something of Kubernetes, so that it is worth reading as that?"""
    return bool(_LIKELY.search(text[:200_000]))


def assemble(objects: Mapping[str, Sequence[Object]], overlay: Path | None = None) -> Cluster:
    """The cluster of objects by kind: Node, and where they were asked for Pod, ResourceSlice, ResourceClaim.

    A kind that is missing was not asked for, so that what is free is unknown; one that is empty holds nothing.
    """
    pods, claims = objects.get("Pod"), objects.get("ResourceClaim")
    devices, remarks = nodes_slices.published(objects.get("ResourceSlice", ()), claims)
    requested = _requested(pods) if pods is not None else None
    catalogue = _Catalogue(overlay)
    found: dict[str, Node] = {}
    for number, node in enumerate(objects.get("Node", ())):
        metadata = mapping(node.get("metadata"))
        labels = mapping(metadata.get("labels"))
        name = word(metadata.get("name")) or word(labels.get("kubernetes.io/hostname")) or f"node-{number}"
        asked = None if requested is None else requested.get(name, Counter())
        found[name] = _node(name, node, asked, devices.get(name), remarks.get(name, ()), catalogue)
    for name in sorted(set(devices) - set(found)):
        found[name] = _node(name, {}, None, devices[name], remarks.get(name, ()), catalogue)
    nodes = tuple(found[name] for name in sorted(found))
    return Cluster(origin="detected", nodes=nodes if len(nodes) == 1 else tuple(map(_signed, nodes)))


def _signed(node: Node) -> Node:
    """The node with its name in every remark, so that they can be told apart once they are together."""
    remarks = tuple(msgspec.structs.replace(each, message=f"{node.name}: {each.message}") for each in node.findings)
    return msgspec.structs.replace(node, findings=remarks)


def free(cluster: Cluster) -> Cluster:
    """The cluster without what cannot be had: closed nodes, and as many devices as pods hold.

    Where nothing says how many are held, all stay.
    """
    return msgspec.structs.replace(cluster, nodes=tuple(map(_free_node, cluster.nodes)))


def _free_node(node: Node) -> Node:
    state = node.scheduling
    if state is None:
        return node
    if not state.open:
        return msgspec.structs.replace(node, devices=())
    left = [device for device in node.devices if not device.held]
    for resource in state.resources:
        if resource.free is None or resource.name == nodes_slices.DRIVER:
            continue
        members = [device for device in left if device.resource == resource.name]
        for device in members[resource.free :]:
            left.remove(device)
    return msgspec.structs.replace(node, devices=tuple(left))


class _Catalogue:
    """What labels and devices mean, looked up once for each kind: a cluster has many equal nodes."""

    def __init__(self, overlay: Path | None) -> None:
        self.overlay = overlay
        self._told: dict[frozenset[tuple[str, str]], Told] = {}
        self._named: dict[tuple[object, ...], Device] = {}

    def read(self, labels: Mapping[Any, Any]) -> Told:
        """The cards that labels describe."""
        key = frozenset((str(name), str(value)) for name, value in labels.items() if nodes_labels.speaks(name))
        if key not in self._told:
            self._told[key] = nodes_labels.read(labels, self.overlay)
        return self._told[key]

    def name(self, index: int, device: Device) -> Device:
        """The device with its card, under its number."""
        key = (device.pci_id, device.product, device.partition, device.compute_units, device.memory_total_bytes)
        if key not in self._named:
            named = naming.named(device, self.overlay)
            self._named[key] = msgspec.structs.replace(named, memory_total_bytes=_no_more(named, self.overlay))
        card = self._named[key]
        looked_up = {name: card.sources[name] for name in _LOOKED_UP if name in card.sources}
        return msgspec.structs.replace(
            device,
            index=index,
            **{name: getattr(card, name) for name in _LOOKED_UP},
            sources={**device.sources, **looked_up},
        )


def _node(
    name: str,
    node: Object,
    requested: Counter[str] | None,
    slices: tuple[Published, ...] | None,
    remarks: tuple[Finding, ...],
    catalogue: _Catalogue,
) -> Node:
    labels = mapping(mapping(node.get("metadata")).get("labels"))
    told = catalogue.read(labels)
    status, spec = mapping(node.get("status")), mapping(node.get("spec"))
    resources = _resources(status, requested, mapping(node.get("requested")) or None)
    counted = "allocatable" in status or "capacity" in status
    findings = [*told.findings, *remarks]
    if slices is not None:
        devices = tuple(_published(index, each) for index, each in enumerate(slices))
        known = [each.allocated for each in slices if each.allocated is not None]
        resources += (
            Resource(
                name=nodes_slices.DRIVER,
                capacity=len(slices),
                allocatable=sum(not each.kept_away for each in slices),
                requested=sum(known) if known else None,
            ),
        )
        devices = tuple(device for device, each in zip(devices, slices, strict=True) if not each.kept_away)
    else:
        devices = _devices(resources, told, counted, findings)
    devices = tuple(catalogue.name(index, device) for index, device in enumerate(devices))
    conditions = [mapping(each) for each in items(status.get("conditions"))]
    ready = next((each.get("status") == "True" for each in conditions if each.get("type") == "Ready"), None)
    state = Scheduling(
        resources=resources,
        labelled=told.cards,
        ready=ready,
        cordoned=spec.get("unschedulable") is True,
        taints=tuple(
            f"{word(taint.get('key')) or '?'}={word(taint.get('value')) or ''}:{taint.get('effect')}".replace("=:", ":")
            for taint in map(mapping, items(spec.get("taints")))
            if taint.get("effect") in ("NoSchedule", "NoExecute")
        ),
    )
    findings += nodes_remarks.of_node(told, state, slices, counted, devices, catalogue.overlay)
    versions = {card.driver_version for card in told.cards if card.driver_version} or {
        each.driver_version for each in slices or () if each.driver_version
    }
    return Node(
        name=name,
        devices=devices,
        driver_version=versions.pop() if len(versions) == 1 else None,
        findings=tuple(findings),
        scheduling=state,
    )


def _resources(
    status: Object, requested: Counter[str] | None, described: Mapping[str, Any] | None
) -> tuple[Resource, ...]:
    capacity, allocatable = mapping(status.get("capacity")), mapping(status.get("allocatable"))
    names = {
        key for each in (capacity, allocatable) for key in each if isinstance(key, str) and _RESOURCE.fullmatch(key)
    }
    found = []
    for name in sorted(names, key=lambda each: (each != GPU_RESOURCE, each)):
        asked: int | None = None
        if requested is not None:
            asked = requested[name]
        elif described is not None:
            asked = whole(described.get(name))
        found.append(
            Resource(
                name=name,
                capacity=_number(capacity.get(name)),
                allocatable=_number(allocatable.get(name, capacity.get(name))),
                requested=asked,
            )
        )
    return tuple(found)


def _number(value: object) -> int | None:
    """How many GPUs a node says it has; None when that cannot be."""
    number = whole(value)
    return number if number is not None and number <= _MOST_DEVICES else None


def _requested(pods: Iterable[Object]) -> dict[str, Counter[str]]:
    """Node -> resource -> what its unfinished pods hold: their containers together, or one that runs before them.

    Source: Kubernetes documentation, init containers (effective request) and sidecar containers.
    """
    found: dict[str, Counter[str]] = {}
    for pod in pods:
        spec, status = mapping(pod.get("spec")), mapping(pod.get("status"))
        node = word(spec.get("nodeName"))
        if node is None or status.get("phase") in _FINISHED:
            continue
        together: Counter[str] = Counter()
        before: Counter[str] = Counter()
        for container in map(mapping, items(spec.get("containers"))):
            together.update(_asked(container))
        for container in map(mapping, items(spec.get("initContainers"))):
            if container.get("restartPolicy") == "Always":
                together.update(_asked(container))
            else:
                before |= _asked(container)
        found.setdefault(node, Counter()).update(together | before)
    return found


def _asked(container: Object) -> Counter[str]:
    resources = mapping(container.get("resources"))
    amounts = {**mapping(resources.get("limits")), **mapping(resources.get("requests"))}
    return Counter(
        {key: whole(value) or 0 for key, value in amounts.items() if isinstance(key, str) and _RESOURCE.fullmatch(key)}
    )


def _devices(resources: Sequence[Resource], told: Told, counted: bool, findings: list[Finding]) -> tuple[Device, ...]:
    """One device for each that pods may ask for; where no counts were recorded, as many as the labels say, at least one."""
    found: list[Device] = []
    for resource in resources:
        count = resource.allocatable or 0
        mode, memory = nodes_labels.partition_of(resource.name.partition("/")[2])
        if mode is None:
            mode, memory = told.partition, told.memory_partition
        cards = _spread(told.cards, count, findings)
        found.extend(_labelled(card, resource.name, mode, memory) for card in cards)
    if counted:
        return tuple(found)
    if not told.cards:
        findings.append(
            Finding(
                id="K8S112",
                severity="warning",
                message="neither what the node offers nor labels of GPUs were recorded: whether it has any is not known",
                remedy="kubectl get nodes -o json says it",
            )
        )
        return ()
    counts = [card.count for card in told.cards]
    if any(count is None for count in counts):
        findings.append(
            Finding(
                id="K8S112",
                severity="warning",
                message="only labels were recorded, and they do not say how many GPUs there are: one of each is assumed",
                remedy="kubectl get nodes -o json has the numbers",
            )
        )
    else:
        findings.append(
            Finding(
                id="K8S112",
                severity="info",
                message="only labels were recorded: whether pods may ask for these GPUs is not known",
                remedy="kubectl get nodes -o json says it",
            )
        )
    return tuple(
        _labelled(card, None, told.partition, told.memory_partition)
        for card in told.cards
        for _ in range(min(card.count or 1, _MOST_DEVICES))
    )


def _spread(cards: Sequence[Labelled], count: int, findings: list[Finding]) -> list[Labelled]:
    """Which card each device of a resource is."""
    if len(cards) <= 1:
        return [cards[0] if cards else Labelled()] * count
    listed = [card for card in cards for _ in range(min(card.count or 0, _MOST_DEVICES))]
    if count and len(listed) != count:
        findings.append(
            Finding(
                id="K8S113",
                severity="warning",
                message=f"the labels describe {len(listed)} GPUs of {len(cards)} kinds, pods may ask for {count}",
                remedy="the labels are stale, or devices are unhealthy; which card a pod gets is not known",
            )
        )
        return [Labelled()] * count
    return listed


def _labelled(card: Labelled, resource: str | None, mode: str | None, memory: str | None) -> Device:
    product = None if nodes_labels.generic(card.product) and card.pci_id else card.product
    said: dict[str, object] = {
        "pci_id": card.pci_id,
        "product": product,
        "partition": mode,
        "memory_partition": memory,
        "compute_units": card.compute_units,
        "memory_total_bytes": card.memory_bytes,
    }
    return Device(
        index=0,
        gpu=None,
        product=product or UNNAMED,
        arch=None,
        pci_id=card.pci_id,
        partition=mode,
        memory_partition=memory,
        compute_units=card.compute_units,
        memory_total_bytes=card.memory_bytes,
        resource=resource,
        sources={field: "label" for field, value in said.items() if value is not None},
    )


def _published(index: int, device: Published) -> Device:
    fields = ("product", "pci_id", "partition", "memory_partition", "numa_node", "compute_units")
    sources = {field: "slice" for field in fields if getattr(device, field) is not None}
    if device.memory_bytes is not None:
        sources["memory_total_bytes"] = "slice"
    product = None if nodes_labels.generic(device.product) and device.pci_id else device.product
    return Device(
        index=index,
        gpu=None,
        product=product or UNNAMED,
        arch=None,
        bdf=device.address,
        pci_id=device.pci_id,
        partition=device.partition,
        memory_partition=device.memory_partition,
        numa_node=device.numa_node,
        compute_units=device.compute_units,
        memory_total_bytes=device.memory_bytes,
        resource=nodes_slices.DRIVER,
        held=device.allocated,
        sources=sources,
    )


def _no_more(device: Device, overlay: Path | None) -> int | None:
    """A label is rounded to GiB: never more than the catalogue has."""
    total = device.memory_total_bytes
    if total is None or device.gpu is None or device.sources.get("memory_total_bytes") != "label":
        return total
    card = catalog.load(device.gpu, overlay)
    return total if card.shared_memory else min(total, card.memory_bytes)
