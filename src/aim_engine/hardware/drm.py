"""AMD cards as the kernel's DRM folders show them: identity, memory, partition mode. With or without compute (KFD).

Only vendor 0x1002 under the driver amdgpu can serve models; cards of the old radeon driver are listed with their driver so that
this can be said. Format: Linux Documentation/gpu/amdgpu. What a file does not say stays None.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from aim_engine.hardware import identity, sysfs

FOLDER = "sys/class/drm"
VENDOR = 0x1002
COMPUTE_DRIVER = "amdgpu"


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One AMD card. `folder` is its device folder, for reading more of it."""

    name: str
    """The kernel's name, such as card0."""
    folder: Path
    driver: str | None
    address: str | None
    """PCI address domain:bus:device.function."""
    pci_id: str | None
    """Lower-case hexadecimal without 0x."""
    revision: str | None
    product: str | None
    """As the card itself or the machine's list of names says it."""
    vram_total_bytes: int | None
    """Of the whole package, also where it is partitioned; the carve-out on an APU."""
    vram_used_bytes: int | None
    vis_vram_total_bytes: int | None
    """What the host can address; 256 MiB without resizable BAR."""
    gtt_total_bytes: int | None
    """System memory that the GPU may map."""
    gtt_used_bytes: int | None
    compute_partition: str | None
    memory_partition: str | None
    numa_node: int | None
    """As the kernel says it: -1 means that the machine has one node."""
    render_minor: int | None
    unique_id: str | None

    @property
    def usable(self) -> bool:
        """False under another driver than amdgpu. An unknown driver is given the benefit of the doubt."""
        return self.driver in (None, COMPUTE_DRIVER)


def cards(root: Path) -> tuple[Card, ...]:
    """All AMD cards below `root` (`/` or a recorded tree), whatever their driver, by PCI address."""
    found = []
    minors = _minors(root)
    for folder in sysfs.children(root / FOLDER):
        if not (folder.name.startswith("card") and folder.name[4:].isdecimal()):
            continue
        device = folder / "device"
        uevent = sysfs.assignments(device / "uevent")
        vendor, device_id = _ids(device, uevent)
        if vendor != VENDOR:
            continue
        address = uevent.get("PCI_SLOT_NAME") or sysfs.link_name(device)
        if address is not None and ":" not in address:
            address = None
        pci_id = f"{device_id:04x}" if device_id else None
        revision = sysfs.integer(device / "revision")
        minor = _own_minor(device)
        found.append(
            Card(
                name=folder.name,
                folder=device,
                driver=uevent.get("DRIVER") or sysfs.link_name(device / "driver"),
                address=address.lower() if address else None,
                pci_id=pci_id,
                revision=f"{revision:02x}" if revision is not None and revision >= 0 else None,
                product=sysfs.text(device / "product_name")
                or identity.product_of(root, pci_id, f"{revision or 0:02x}" if revision is not None else None),
                vram_total_bytes=sysfs.integer(device / "mem_info_vram_total") or None,
                vram_used_bytes=_count(device / "mem_info_vram_used"),
                vis_vram_total_bytes=sysfs.integer(device / "mem_info_vis_vram_total") or None,
                gtt_total_bytes=sysfs.integer(device / "mem_info_gtt_total") or None,
                gtt_used_bytes=_count(device / "mem_info_gtt_used"),
                compute_partition=_mode(device / "current_compute_partition"),
                memory_partition=_mode(device / "current_memory_partition"),
                numa_node=sysfs.integer(device / "numa_node"),
                render_minor=minor if minor is not None else minors.get(address.lower() if address else ""),
                unique_id=_unique(sysfs.text(device / "unique_id")),
            )
        )
    return tuple(sorted(found, key=lambda card: (card.address or "~", card.name)))


def _ids(device: Path, uevent: dict[str, str]) -> tuple[int | None, int | None]:
    """Vendor and device id, from the files or, where a recording lacks them, from uevent."""
    vendor, _, device_id = uevent.get("PCI_ID", "").partition(":")
    return (
        sysfs.integer(device / "vendor") or sysfs.to_int("0x" + vendor if vendor else None),
        sysfs.integer(device / "device") or sysfs.to_int("0x" + device_id if device_id else None),
    )


def _minors(root: Path) -> dict[str, int]:
    """PCI address -> render minor, from the renderD links beside the cards."""
    found: dict[str, int] = {}
    for folder in sysfs.children(root / FOLDER):
        minor = _minor(folder.name)
        address = sysfs.link_name(folder / "device") or sysfs.assignments(folder / "device/uevent").get("PCI_SLOT_NAME")
        if minor is not None and address is not None:
            found.setdefault(address.lower(), minor)
    return found


def _own_minor(device: Path) -> int | None:
    return next((minor for entry in sysfs.children(device / "drm") if (minor := _minor(entry.name)) is not None), None)


def _minor(name: str) -> int | None:
    return sysfs.to_int(name[7:]) if name.startswith("renderD") else None


def _count(path: Path) -> int | None:
    value = sysfs.integer(path)
    return value if value is not None and value >= 0 else None


def _mode(path: Path) -> str | None:
    value = sysfs.text(path)
    return value.upper() if value and value.isalnum() and value.upper() != "UNKNOWN" else None


def _unique(value: str | None) -> str | None:
    """A serial in hexadecimal; zeros mean that the card has none."""
    plain = (value or "").lower().removeprefix("0x")
    return plain if plain.strip("0") else None
