"""GPUs on the PCI bus and the state of a card that serving depends on: its link, errors it counted, pages it lost, firmware.

Nothing is read that reading changes: `xgmi_error` clears its count when it is read, so it stays closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from aim_engine.hardware import drm, sensors, sysfs
from aim_engine.hardware.readings import Readings

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
_CLASSES = ("0x03", "0x12")
"""Display controllers and processing accelerators."""
_INSTINCT_CLASS = "0x12"
_BRIDGE_CLASS = "0x0604"
_ACS = 0x000D
"""Extended capability id of Access Control Services. Source: PCI Express Base Specification; Linux include/uapi/linux/pci_regs.h."""
_ACS_REDIRECTS = 0b11100
"""P2P request redirect, P2P completion redirect, upstream forwarding: what sends traffic between two cards up to the root."""
_PAGE = re.compile(r"0x[0-9a-f]+\s*:\s*0x[0-9a-f]+\s*:\s*([RPF])\s*", re.IGNORECASE)


class PciGpu(msgspec.Struct, frozen=True, kw_only=True):
    """An AMD GPU on the bus."""

    address: str
    pci_id: str | None
    driver: str | None
    pci_class: str


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """A bridge above a card."""

    address: str
    redirects: bool | None
    """Does it send traffic between cards up to the root (ACS)? None where its configuration space could not be read."""


class PcieLink(msgspec.Struct, frozen=True, kw_only=True):
    """One PCIe link on the way to a card."""

    address: str
    speed_gt_s: float | None
    max_speed_gt_s: float | None
    width: int | None
    max_width: int | None


class CardState(msgspec.Struct, frozen=True, kw_only=True):
    """What a card says about itself beside its identity."""

    name: str
    """The kernel's name, such as card0."""
    address: str | None
    folder: str
    """Its folder on the machine, for commands."""
    pci_id: str | None
    instinct: bool
    """True for an accelerator without display, whose link never sleeps."""
    readings: Readings
    power_cap_file: str | None
    links: tuple[PcieLink, ...]
    bridges: tuple[Bridge, ...] | None
    """From the card up; None where the tree does not show where the card hangs."""
    hot: bool | None
    """Does the firmware say that heat holds the clocks back? Noisy on an idle card. None where its table does not tell, as on MI300."""
    iommu_type: str | None
    """identity is passthrough; DMA, DMA-FQ translate."""
    errors: dict[str, tuple[int, int]] | None
    """By block: uncorrectable, correctable. None where the card counts none or does not say."""
    bad_pages: dict[str, int] | None
    """R retired, P pending, F could not be reserved."""
    aer: dict[str, int]
    """PCIe errors since boot: fatal, nonfatal, correctable."""
    vram_total_bytes: int | None
    visible_vram_bytes: int | None
    gtt_total_bytes: int | None
    mec_firmware: int | None


def gpus(root: Path) -> tuple[PciGpu, ...] | None:
    """AMD GPUs on the bus below `root`, by address; None where the bus is not shown."""
    bus = root / "sys/bus/pci/devices"
    if not bus.is_dir():
        return None
    found = []
    for folder in sysfs.children(bus):
        kind = sysfs.text(folder / "class") or ""
        if sysfs.integer(folder / "vendor") != drm.VENDOR or not kind.startswith(_CLASSES):
            continue
        number = sysfs.integer(folder / "device")
        found.append(
            PciGpu(
                address=folder.name.lower(),
                pci_id=f"{number:04x}" if number else None,
                driver=sysfs.assignments(folder / "uevent").get("DRIVER") or sysfs.link_name(folder / "driver"),
                pci_class=kind,
            )
        )
    return tuple(found)


def state(card: drm.Card) -> CardState:
    """The state of one card of `drm.cards`."""
    folder = card.folder
    return CardState(
        name=card.name,
        address=card.address,
        folder=f"/sys/class/drm/{card.name}/device",
        pci_id=card.pci_id,
        instinct=(sysfs.text(folder / "class") or "").startswith(_INSTINCT_CLASS),
        readings=sensors.read(folder),
        power_cap_file=_power_cap_file(card),
        links=tuple(_links(folder, card.address)),
        bridges=_bridges(folder, card.address),
        hot=_hot(sysfs.content_of(folder / "gpu_metrics", 4096)),
        iommu_type=sysfs.text(folder / "iommu_group/type"),
        errors=_errors(folder / "ras"),
        bad_pages=_bad_pages(folder / "ras/gpu_vram_bad_pages"),
        aer=_aer(folder),
        vram_total_bytes=card.vram_total_bytes,
        visible_vram_bytes=card.vis_vram_total_bytes,
        gtt_total_bytes=card.gtt_total_bytes,
        mec_firmware=sysfs.integer(folder / "fw_version/mec_fw_version"),
    )


def redirects(config: bytes) -> bool | None:
    """Does a bridge's configuration space switch on ACS redirects? None when its extended part was not readable."""
    if len(config) < 0x104:
        return None
    offset, seen = 0x100, set()
    while 0x100 <= offset <= len(config) - 8 and offset not in seen:
        seen.add(offset)
        header = int.from_bytes(config[offset : offset + 4], "little")
        if header in (0, 0xFFFFFFFF):
            return False
        if header & 0xFFFF == _ACS:
            return bool(int.from_bytes(config[offset + 6 : offset + 8], "little") & _ACS_REDIRECTS)
        offset = header >> 20 & 0xFFC
    return False


def _ancestors(folder: Path, address: str | None) -> list[Path] | None:
    """Folders of the PCI devices above a card, nearest first; None where the tree is flat."""
    try:
        place = folder.resolve()
    except (OSError, RuntimeError):
        return None
    if address is None or place.name.lower() != address:
        return None
    return [parent for parent in place.parents if ADDRESS.fullmatch(parent.name.lower())]


def _bridges(folder: Path, address: str | None) -> tuple[Bridge, ...] | None:
    above = _ancestors(folder, address)
    if above is None:
        return None
    found = []
    for place in above:
        content = sysfs.content_of(place / "config", 4096)
        found.append(Bridge(address=place.name.lower(), redirects=None if content is None else redirects(content)))
    return tuple(found)


def _links(folder: Path, address: str | None) -> Iterator[PcieLink]:
    """The card's own link, and those of the maker's bridges above it: on Radeons the slot is beyond a switch in the package."""
    yield _link(folder, address or folder.name)
    for place in _ancestors(folder, address) or ():
        is_bridge = (sysfs.text(place / "class") or "").startswith(_BRIDGE_CLASS)
        if not is_bridge or sysfs.integer(place / "vendor") != drm.VENDOR:
            return
        yield _link(place, place.name.lower())


def _link(folder: Path, address: str) -> PcieLink:
    return PcieLink(
        address=address,
        speed_gt_s=_speed(folder / "current_link_speed"),
        max_speed_gt_s=_speed(folder / "max_link_speed"),
        width=_width(folder / "current_link_width"),
        max_width=_width(folder / "max_link_width"),
    )


def _speed(path: Path) -> float | None:
    match = re.match(r"(\d{1,3}(?:\.\d{1,3})?) GT/s", sysfs.text(path) or "")
    return float(match[1]) or None if match else None


def _width(path: Path) -> int | None:
    width = sysfs.integer(path)
    return width if width is not None and 0 < width <= 32 else None


def _hot(table: bytes | None) -> bool | None:
    """The thermal bits (32 to 47) of the table's status that is the same for all chips.

    Source: Linux drivers/gpu/drm/amd/include/kgd_pp_interface.h (gpu_metrics_v1_3, v2_2 to v2_4: indep_throttle_status); the bits:
    drivers/gpu/drm/amd/pm/swsmu/inc/amdgpu_smu.h.
    """
    if table is None or len(table) < 4:
        return None
    size, revision = int.from_bytes(table[:2], "little"), (table[2], table[3])
    offset = {(1, 3): 112, (2, 2): 120, (2, 3): 120, (2, 4): 120}.get(revision)
    if offset is None or min(size, len(table)) < offset + 8:
        return None
    status = int.from_bytes(table[offset : offset + 8], "little")
    return None if status == 2**64 - 1 else bool(status >> 32 & 0xFFFF)


def _power_cap_file(card: drm.Card) -> str | None:
    for monitor in sysfs.children(card.folder / "hwmon"):
        for path in sysfs.files(monitor, "power*_cap"):
            return f"/sys/class/drm/{card.name}/device/hwmon/{monitor.name}/{path.name}"
    return None


def _errors(folder: Path) -> dict[str, tuple[int, int]] | None:
    """`ue: 0` and `ce: 3` in <block>_err_count. Source: Linux drivers/gpu/drm/amd/amdgpu/amdgpu_ras.c."""
    found = {}
    for path in sysfs.files(folder, "*_err_count"):
        counts = dict(re.findall(r"\b(ue|ce):\s*(\d{1,18})", sysfs.text(path) or ""))
        if counts:
            found[path.name.removesuffix("_err_count")] = (int(counts.get("ue", 0)), int(counts.get("ce", 0)))
    return found or None


def _bad_pages(path: Path) -> dict[str, int] | None:
    """Lines `page : size : flag`; an empty file means that there are none. Source: amdgpu_ras.c."""
    content = sysfs.content_of(path, 2**20)
    if content is None:
        return None
    flags = [match[1].upper() for match in _PAGE.finditer(content.decode("ascii", "replace"))]
    return {flag: flags.count(flag) for flag in "RPF"}


def _aer(folder: Path) -> dict[str, int]:
    """Totals of the PCIe error counters. Source: Linux Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats."""
    found = {}
    for kind in ("fatal", "nonfatal", "correctable"):
        total = re.search(r"TOTAL_ERR_\w+ (\d{1,18})", sysfs.text(folder / f"aer_dev_{kind}") or "")
        if total:
            found[kind] = int(total[1])
    return found
