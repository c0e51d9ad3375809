"""Devices get their cards from the catalogue, and what follows from that where the machine said nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.hardware import catalog, identity
from aim_engine.hardware.cluster import UNNAMED, Device, Memory
from aim_engine.hardware.gpu import Gpu


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


def candidates(device: Device, overlay: Path | None = None) -> tuple[str, ...]:
    """Cards that a device may be, where what is known of it does not tell which."""
    if device.pci_id is not None:
        return tuple(gpu.name for gpu in catalog.sharing(device.pci_id, device.revision, overlay))
    if device.arch is None or device.partition not in (None, "SPX"):
        return ()
    units = device.compute_units
    return tuple(
        gpu.name for gpu in catalog.by_arch(device.arch, overlay) if units is None or gpu.compute_units in (None, units)
    )


def _card_of(device: Device, memory_bytes: int | None, units: int | None, overlay: Path | None) -> Gpu | None:
    product = "" if device.product == UNNAMED else device.product
    if device.pci_id is not None:
        return catalog.by_pci_id(
            device.pci_id, device.revision, memory_bytes, compute_units=units, product=product, overlay=overlay
        )
    return catalog.by_product(product, memory_bytes, compute_units=units, overlay=overlay) if product else None


def _with_card(device: Device, card: Gpu | None, overlay: Path | None) -> Device:
    sources = dict(device.sources)
    changes: dict[str, Any] = {}
    if device.virtual_function is None and device.pci_id in identity.VIRTUAL_IDS:
        changes["virtual_function"], sources["virtual_function"] = True, "pci id"
    if card is None:
        known = identity.of(device.pci_id, device.revision, overlay) or identity.called(device.product, overlay)
        if known is not None:
            by = "pci id" if device.pci_id is not None else "product"
            if device.product == UNNAMED:
                changes["product"], sources["product"] = known.product, by
            if known.arch is not None and device.arch is None:
                changes["arch"], sources["arch"] = known.arch, by
            if known.apu and device.integrated is None:
                changes["integrated"], sources["integrated"] = True, by
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
    if device.compute_dies is None and card.compute_dies is not None:
        changes["compute_dies"], sources["compute_dies"] = card.compute_dies, "catalogue"
    if card.shared_memory:
        changes["integrated"], sources["integrated"] = True, "catalogue"
    else:
        changes["memory"] = msgspec.structs.replace(device.memory or Memory(), physical_bytes=card.memory_bytes)
    return msgspec.structs.replace(device, **changes, sources=sources)
