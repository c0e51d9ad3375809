"""What rocm-smi says, in the shapes of ROCm 4.3 to 7: one JSON object of cards with flat, spoken keys, or a `GPU[0] : key: value` line each.

Keys change case and words between releases ("GPU ID" became "Device ID", power is "Average" on one card and "Current Socket" on
another), numbers are texts, "N/A" and "0x1002" as a name mean unknown, and warnings may stand before the document. `system` holds the
driver, and is no card.
Source: ROCm/rocm_smi_lib python_smi_tools/rocm_smi.py (printLog, logging names by release).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.hardware import links
from aim_engine.hardware.cluster import UNNAMED, Device, Node
from aim_engine.hardware.readings import Readings

NAME = "rocm-smi"
_CARD = re.compile(r"card(\d{1,6})")
_LINE = re.compile(r"GPU\[(\d{1,6})\]\s*:\s*(.+?)\s*:\s+(\S.*?)\s*$")
_BANNER = "ROCm System Management Interface"
_ATTEMPTS = 50
_PLACES = {"edge": "edge", "junction": "junction", "memory": "mem"}
_NAMES = ("device name", "market name", "card series", "card model", "product name")
_PAIR = re.compile(
    r"\(Topology\) (?P<what>Weight|Link type) between DRM devices (?P<one>\d{1,4}) and (?P<other>\d{1,4})\"?\s*:\s*\"?(?P<value>\w{1,8})",
    re.IGNORECASE,
)
_BARE_ID = re.compile(r"0x[0-9a-f]+", re.IGNORECASE)


def is_one(output: str) -> bool:
    """Is this a recorded output of rocm-smi?"""
    return _BANNER in output or re.search(r'"card\d+"\s*:\s*\{', output) is not None or bool(_LINE.search(output))


def read(outputs: Sequence[str], name: str) -> Node:
    """The machine that one or more outputs describe, with the links that --showtopo prints. Raises: Corrupt."""
    pairs = [link for output in outputs for link in _links(output)]
    hives = links.groups(pairs)
    devices = tuple(
        msgspec.structs.replace(device, hive=hive, sources={**device.sources, "hive": NAME})
        if (hive := hives.get(device.index)) is not None
        else device
        for device in parse(*outputs)
    )
    return Node(name=name, devices=devices, driver_version=driver_version(*outputs), link_weights=links.weights(pairs))


def parse(*outputs: str) -> tuple[Device, ...]:
    """The devices that one or more outputs describe, joined by card number. Raises: Corrupt when they describe none."""
    joined: dict[int, dict[str, str]] = {}
    for output in outputs:
        for number, entry in _cards(output).items():
            joined.setdefault(number, {}).update(entry)
    if not joined:
        raise Corrupt("the rocm-smi output describes no GPU", hint="record it again: rocm-smi -a --json")
    return tuple(_device(number, entry) for number, entry in sorted(joined.items()))


def driver_version(*outputs: str) -> str | None:
    """The kernel driver's version that an output states; None when none does."""
    for output in outputs:
        found = re.search(r'"?Driver version"?\s*:\s*"?([^\s",]+)', output, re.IGNORECASE)
        if found is not None and _known(found[1]) is not None:
            return found[1]
    return None


def _cards(output: str) -> dict[int, dict[str, str]]:
    document = _document(output)
    found: dict[int, dict[str, str]] = {}
    for name, entry in document.items():
        card = _CARD.fullmatch(str(name))
        if card is not None and isinstance(entry, dict):
            found[int(card[1])] = {_key(key): str(value) for key, value in entry.items()}
    if found:
        return found
    for line in output.splitlines():
        stated = _LINE.search(line)
        if stated is not None and len(stated[1]) < 6:
            found.setdefault(int(stated[1]), {}).setdefault(_key(stated[2]), stated[3])
    return found


def _links(output: str) -> list[links.Link]:
    """What --showtopo says of pairs, as tables or in the JSON entry of the system."""
    found = list(links.tables(output)[1])
    said: dict[tuple[int, int], dict[str, str]] = {}
    for match in _PAIR.finditer(output):
        said.setdefault((int(match["one"]), int(match["other"])), {})[match["what"].lower()] = match["value"]
    for (one, other), about in said.items():
        weight = about.get("weight", "")
        found.append(
            links.Link(
                source=one,
                target=other,
                kind=about.get("link type", "").upper(),
                weight=(int(weight) or None) if weight.isdecimal() else None,
            )
        )
    return found


def _document(output: str) -> Mapping[str, Any]:
    """The first JSON object in a text that holds a card; an empty one when there is none."""
    decoder, at = json.JSONDecoder(), -1
    for _ in range(_ATTEMPTS):
        at = output.find("{", at + 1)
        if at < 0:
            break
        try:
            value, _ = decoder.raw_decode(output, at)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and any(_CARD.fullmatch(str(key)) for key in value):
            return value
    return {}


def _device(number: int, entry: Mapping[str, str]) -> Device:
    name = next((value for key in _NAMES if (value := _name(entry.get(key))) is not None), None)
    pci_id = _hexadecimal(entry.get("device id") or entry.get("gpu id"), 4)
    if pci_id is None and (model := entry.get("card model")) is not None:
        pci_id = _hexadecimal(model, 4)
    numa = _number(entry.get("(topology) numa node"))
    cap_w = _number(entry.get("max graphics package power (w)"))
    total, used = (_number(entry.get(f"vram total {what}memory (b)")) for what in ("", "used "))
    found: dict[str, Any] = {
        "product": name,
        "arch": _arch(entry.get("gfx version")),
        "bdf": _address(entry.get("pci bus")),
        "pci_id": None if pci_id == "1002" else pci_id,
        "revision": _hexadecimal(entry.get("device rev"), 2),
        "uuid": _known(entry.get("unique id")),
        "partition": _known(entry.get("compute partition")),
        "memory_partition": _known(entry.get("memory partition")),
        "numa_node": round(numa) if numa is not None and numa >= 0 else None,
        "memory_total_bytes": round(total) if total else None,
        "memory_used_bytes": round(used) if used is not None and used >= 0 else None,
        "power_cap_w": round(cap_w) if cap_w else None,
    }
    return Device(
        index=number,
        gpu=None,
        product=found.pop("product") or UNNAMED,
        readings=_readings(entry, cap_w),
        sources={key: NAME for key, value in found.items() if value is not None},
        **found,
    )


def _readings(entry: Mapping[str, str], cap_w: float | None) -> Readings:
    temperatures = {
        label: value
        for place, label in _PLACES.items()
        if (value := _number(entry.get(f"temperature (sensor {place}) (c)"))) is not None and value > 0
    }
    power = next(
        (value for key, text in entry.items() if _is_power(key) and (value := _number(text)) is not None), None
    )
    busy = _number(entry.get("gpu use (%)"))
    clock = re.search(
        r"\((\d{1,6})\s*Mhz\)", entry.get("sclk clock level", entry.get("sclk clock speed", "")), re.IGNORECASE
    )
    return Readings(
        temperature_c=temperatures,
        power_w=power,
        power_cap_w=cap_w or None,
        gpu_busy_percent=round(busy) if busy is not None and 0 <= busy <= 100 else None,
        sclk_mhz=int(clock[1]) if clock is not None else None,
        performance_level=_known(entry.get("performance level")),
    )


def _is_power(key: str) -> bool:
    return key.endswith("graphics package power (w)") and not key.startswith("max")


def _key(text: object) -> str:
    return " ".join(str(text).lower().rstrip(":").split())


def _known(text: str | None) -> str | None:
    plain = (text or "").strip()
    return None if plain.lower() in ("", "n/a", "none", "unknown", "unsupported", "not supported") else plain


def _name(text: str | None) -> str | None:
    plain = _known(text)
    return None if plain is None or _BARE_ID.fullmatch(plain) else plain


def _number(text: str | None) -> float | None:
    plain = _known(text)
    found = re.match(r"[-+]?\d+(?:\.\d+)?", plain) if plain is not None else None
    if found is None or len(found[0]) > 24:
        return None
    value = float(found[0])
    return value if math.isfinite(value) and value not in (65535.0, 4294967295.0) else None


def _hexadecimal(text: str | None, digits: int) -> str | None:
    plain = _known(text)
    found = re.fullmatch(r"(?:0x)?([0-9a-f]{1,4})", plain.lower()) if plain is not None else None
    return found[1].zfill(digits) if found is not None else None


def _arch(text: str | None) -> str | None:
    plain = _known(text)
    return plain.lower() if plain is not None and re.fullmatch(r"gfx[0-9a-f]{3,5}", plain.lower()) else None


def _address(text: str | None) -> str | None:
    plain = _known(text)
    found = re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", plain.lower()) if plain is not None else None
    return found[0] if found is not None else None
