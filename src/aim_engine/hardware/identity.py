"""What an AMD PCI id is called, for processors outside the catalogue and for ids that several products share."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import msgspec

from aim_engine import facts
from aim_engine.hardware import sysfs
from aim_engine.hardware.gpu import Provenance

FILE = "pci_ids.yaml"
NAME_LISTS = ("usr/share/libdrm/amdgpu.ids", "opt/amdgpu/share/libdrm/amdgpu.ids", "usr/local/share/libdrm/amdgpu.ids")
"""Where a machine itself keeps product names by device and revision (libdrm)."""

VIRTUAL_IDS = frozenset({"7410", "74b5", "74b6", "74b9", "74bc", "74bd", "75b0", "75b3", "75b8"})
"""Virtual functions. Source: ROCm/amdsmi and vllm-project/vllm device tables: MI210 to MI355X VF."""


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One PCI device id."""

    product: str
    """Name of the product, or of the family where the revision decides."""
    arch: str | None = None
    apu: bool = False
    """True where the graphics share the system's memory."""
    revisions: dict[str, str] = {}
    """Revision -> product."""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    provenance: Provenance
    devices: dict[str, Identity]


def of(pci_id: str | None, revision: str | None = None, overlay: Path | None = None) -> Identity | None:
    """The identity of an id, with the product of its revision where the revision is known; None for an unknown id."""
    if not pci_id:
        return None
    found = _devices(overlay).get(pci_id.lower().removeprefix("0x"))
    if found is None or revision is None:
        return found
    exact = found.revisions.get(revision.lower().removeprefix("0x").zfill(2))
    return msgspec.structs.replace(found, product=exact) if exact else found


def called(product: str, overlay: Path | None = None) -> Identity | None:
    """The one identity that a product's name means, by its model number such as 680M; None where none or several may be meant."""
    numbers = set(re.findall(r"\b[A-Z]*\d{3,}[A-Z]*\b", product.upper()))
    if not numbers:
        return None
    found = [
        known
        for known in _devices(overlay).values()
        if numbers & set(re.findall(r"\b[A-Z]*\d{3,}[A-Z]*\b", known.product.upper()))
    ]
    return found[0] if len(found) == 1 else None


def product_of(root: Path, pci_id: str | None, revision: str | None) -> str | None:
    """The product name in the machine's own list of names; None where it has no list or no such line."""
    if pci_id is None or revision is None:
        return None
    wanted = (pci_id.lower(), revision.lower().removeprefix("0x").zfill(2))
    for name in NAME_LISTS:
        for line in (sysfs.text(root / name, limit=2**20) or "").splitlines():
            parts = [part.strip() for part in line.split(",", 2)]
            if len(parts) == 3 and (parts[0].lower(), parts[1].lower()) == wanted:
                return parts[2]
    return None


@functools.cache
def _devices(overlay: Path | None) -> dict[str, Identity]:
    return facts.load(FILE, _File, overlay).devices
