"""What rules may know beyond a command line: the host it runs on, as `doctor` reads it, and the use it was planned for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from aim_engine import facts
from aim_engine.backend import rules
from aim_engine.doctor.host import Host
from aim_engine.units import GIB


def of_host(host: Host) -> dict[str, Any]:
    """The names that begin with `host_`, and the driver. What the host does not show is left out, and then not judged."""
    devices = host.serving
    found: dict[str, Any] = {"host_gpus": len(devices)}
    cards = sorted({device.gpu for device in devices if device.gpu is not None})
    if len(cards) == 1:
        found["host_card"] = cards[0]
    known = [
        (device.memory_total_bytes, device.memory_used_bytes)
        for device in devices
        if device.memory_total_bytes is not None and device.memory_used_bytes is not None
    ]
    if known and len(known) == len(devices):
        found["host_free_gib"] = round(min(total - used for total, used in known) / GIB, 1)
        found["host_used_percent"] = max(round(100 * used / total) for total, used in known if total)
    modes = sorted({device.partition for device in devices if device.partition is not None})
    if modes:
        found["host_partition"] = modes[0] if len(modes) == 1 else "mixed"
    memory_bytes = host.container.memory_limit_bytes or host.memory.get("MemTotal")
    if memory_bytes is not None:
        found["host_memory_gib"] = memory_bytes // GIB
    firmware = [card.mec_firmware for card in host.cards if card.mec_firmware]
    if firmware:
        found["host_mec"] = min(firmware)
    driver = host.node.driver_version
    if driver is not None and re.match(r"\d+\.\d+", driver):
        found |= {"driver": rules.version_of(driver), "driver_text": driver}
    return found


def of_cdi(root: Path) -> dict[str, Any]:
    """How many GPUs the CDI files of a host name; nothing where it has none. Raises: Corrupt."""
    counts = []
    for folder in ("etc/cdi", "run/cdi", "var/run/cdi"):
        for path in sorted((root / folder).glob("*")):
            if path.suffix not in (".json", ".yaml"):
                continue
            document = facts.parse_yaml(path.read_bytes(), str(path))
            if isinstance(document, dict) and document.get("kind") == "amd.com/gpu":
                devices = [each.get("name") for each in document.get("devices") or () if isinstance(each, dict)]
                counts.append(sum(name != "all" for name in devices))
    return {"host_cdi": max(counts)} if counts else {}
