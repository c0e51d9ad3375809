"""What is odd about a node of Kubernetes: labels without devices, devices without labels, lost ones, taints, two drivers at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aim_engine.hardware import catalog, nodes_slices
from aim_engine.hardware.cluster import Device, Finding, Labelled, Scheduling
from aim_engine.hardware.nodes_labels import Told
from aim_engine.hardware.nodes_slices import Published
from aim_engine.units import format_bytes


def of_node(
    told: Told,
    state: Scheduling,
    slices: tuple[Published, ...] | None,
    counted: bool,
    devices: Sequence[Device],
    overlay: Path | None,
) -> list[Finding]:
    """Everything worth saying, in the order of what pods may ask for, how the node stands, and its cards.

    `counted`: the node's status says how many devices it has.
    """
    found: list[Finding] = []

    def say(id: str, severity: Any, message: str, remedy: str = "", evidence: str = "") -> None:  # noqa: A002
        found.append(Finding(id=id, severity=severity, message=message, remedy=remedy, evidence=evidence))

    plugin = [resource for resource in state.resources if resource.name != nodes_slices.DRIVER]
    offered = sum(resource.allocatable or 0 for resource in plugin)
    seen = bool(told.cards) or told.present
    if seen and counted and not slices and all(resource.allocatable == 0 for resource in plugin):
        what = "the node's labels describe a GPU" if told.cards else "an AMD GPU is on the node's PCI bus"
        say(
            "K8S104",
            "warning",
            f"{what}, but pods cannot ask for any",
            "check the device plugin: kubectl get pods -A | grep -i amdgpu; labels alone prove nothing",
            ", ".join(f"{each.name} {each.allocatable}" for each in plugin) or "no amd.com resource",
        )
    if offered and not told.cards:
        say(
            "K8S105",
            "warning",
            f"pods may ask for {offered} GPUs, but no label says which cards they are",
            "install AMD's node labeller; until then no plan can be made for this node",
        )
    for resource in plugin:
        if resource.allocatable is None:
            say("K8S120", "warning", f"the number of {resource.name} cannot be read", "look at the node's status")
    for resource in state.resources:
        lost = (resource.capacity or 0) - (resource.allocatable or 0)
        if resource.capacity is not None and resource.allocatable is not None and lost > 0 and resource.allocatable:
            say(
                "K8S106",
                "warning",
                f"{lost} of {resource.capacity} {resource.name} are not healthy",
                "aim-engine doctor on the node says why",
                f"capacity {resource.capacity}, allocatable {resource.allocatable}",
            )
        if resource.requested is not None and resource.requested > (resource.allocatable or 0):
            say(
                "K8S107",
                "warning",
                f"pods hold {resource.requested} {resource.name}, {resource.allocatable or 0} are allocatable",
                "devices were lost under running pods, or the recordings are of different times",
            )
    if state.cordoned:
        say("K8S110", "warning", "the node is cordoned: no new pod lands here", "kubectl uncordon NODE")
    if state.ready is False:
        say("K8S111", "error", "the node is not ready", "kubectl describe node NODE")
    repartitioned = [taint for taint in state.taints if taint.startswith("amd-dcm=")]
    if repartitioned:
        say("K8S023", "warning", "the node is being repartitioned", "wait until the taint is gone", repartitioned[0])
    others = [taint for taint in state.taints if taint not in repartitioned and not _by_kubernetes(taint)]
    if others and (offered or slices):
        say("K8S114", "info", "pods need tolerations for this node", "add them to the manifest", ", ".join(others))
    if offered and slices:
        say(
            "K8S002",
            "error",
            "the device plugin and the DRA driver offer the same GPUs",
            "switch one of them off in the DeviceConfig",
            f"{offered} by {plugin[0].name}, {len(slices)} by ResourceSlices",
        )
    if slices and not offered:
        say(
            "K8S121",
            "info",
            "the GPUs are offered by the DRA driver alone, while rendered manifests ask for amd.com/gpu",
            "ask for a ResourceClaimTemplate of the device class gpu.amd.com instead, or give the class that resource name",
        )
    kinds = sorted({device.product for device in devices})
    if len(kinds) > 1 and not slices:
        say(
            "K8S116",
            "warning",
            f"{len(kinds)} kinds of cards behind one resource name: {', '.join(kinds)}",
            "a pod cannot choose between them; use the DRA driver, or one kind for each node",
        )
    for card in told.cards:
        found.extend(_memory_remarks(card, told, slices, overlay))
    return found


def _memory_remarks(
    card: Labelled, told: Told, slices: tuple[Published, ...] | None, overlay: Path | None
) -> list[Finding]:
    """The labeller divides memory by the number of compute partitions, although under NPS1 each of them reaches all of it."""
    apart = {
        each.memory_bytes
        for each in slices or ()
        if each.memory_bytes is not None and each.pci_id in (None, card.pci_id)
    }
    found = []
    divided = card.memory_bytes is not None and told.partition not in (None, "SPX") and told.memory_partition == "NPS1"
    whole_card = next(iter(catalog.sharing(card.pci_id, overlay=overlay)), None) if divided else None
    if whole_card is not None and card.memory_bytes is not None and card.memory_bytes < whole_card.memory_bytes * 0.9:
        found.append(
            Finding(
                id="K8S117",
                severity="info",
                message=f"the label says {format_bytes(card.memory_bytes)}, a partition's even share; under NPS1 each one reaches the "
                f"card's {format_bytes(whole_card.memory_bytes)}",
                remedy="plans count on the share, since the partitions divide one memory",
                source="ROCm/gpu-operator issue 555",
            )
        )
    if card.memory_bytes is not None and apart and all(abs(each - card.memory_bytes) > 0.02 * each for each in apart):
        found.append(
            Finding(
                id="K8S118",
                severity="warning",
                message=f"the label says {format_bytes(card.memory_bytes)}, the DRA driver "
                f"{' or '.join(format_bytes(each) for each in sorted(apart))}",
                remedy="the driver's word is used",
            )
        )
    return found


def _by_kubernetes(taint: str) -> bool:
    """Taints that say what the conditions say too."""
    return taint.startswith(("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/"))
