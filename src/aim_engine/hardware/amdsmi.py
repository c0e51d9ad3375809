"""What `amd-smi ... --json` says, in the shapes of ROCm 6.0 to 7.14.

The envelope is a list, `{"gpu_data": [...]}` or `{"gpu_0": {...}}`; numbers are bare or `{"value", "unit"}`; "N/A", 0xFFFF and
65535 mean unknown; text may stand before and after the JSON; keys change case between releases. Sections are therefore looked
up by name, whatever surrounds them. "MB" of these tools is MiB.
Source: ROCm/amdsmi CHANGELOG (shapes by release).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.hardware.cluster import Device
from aim_engine.units import KIB, MIB

COMMANDS = (("static",), ("metric", "--mem-usage"), ("list",))
TIMEOUT_S = 5.0
_UNKNOWN_NUMBERS = frozenset({0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})
_MEMORY_UNITS = {"b": 1, "kb": KIB, "kib": KIB, "mb": MIB, "mib": MIB, "gb": 1024 * MIB, "gib": 1024 * MIB}


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `amd-smi topology`."""

    source: int
    target: int
    kind: str
    """SELF, PCIE, XGMI or what the tool says."""
    accessible: bool | None = None
    weight: int | None = None


def parse(*outputs: str) -> tuple[Device, ...]:
    """The devices that one or more outputs (static, metric, list, partition) describe, joined by GPU number.

    Raises: Corrupt when an output holds no JSON with GPUs in it.
    """
    joined: dict[int, dict[str, Any]] = {}
    for output in outputs:
        for number, entry in _entries(_document(output)):
            _merge(joined.setdefault(number, {}), entry)
    return tuple(_device(number, entry) for number, entry in sorted(joined.items()))


def parse_topology(output: str) -> tuple[Link, ...]:
    """The links of `amd-smi topology --json`: a list of links per GPU (6.1.1 and later) or a mapping per property (before)."""
    found = []
    for number, entry in _entries(_document(output)):
        links = entry.get("links")
        if isinstance(links, list):
            for link in links:
                fields = _lower(link)
                target = _number(fields.get("gpu"))
                if target is not None:
                    found.append(
                        _link(number, target, fields.get("link_type"), fields.get("link_status"), fields.get("weight"))
                    )
            continue
        kinds = _lower(entry.get("link_type"))
        for key, kind in kinds.items():
            match = re.fullmatch(r"gpu_?(\d+)", key)
            if match:
                status = _lower(entry.get("link_accessibility")).get(key)
                found.append(_link(number, int(match[1]), kind, status, _lower(entry.get("weight")).get(key)))
    return tuple(found)


def run(timeout_s: float = TIMEOUT_S) -> tuple[Device, ...] | None:
    """Ask the tool of this machine; None when it is not installed or does not answer usefully in time."""
    program = shutil.which("amd-smi") or shutil.which("/opt/rocm/bin/amd-smi")
    if program is None:
        return None
    outputs = []
    for command in COMMANDS:
        try:
            done = subprocess.run(
                [program, *command, "--json"], capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except (subprocess.TimeoutExpired, OSError):
            continue
        outputs.append(done.stdout)
    usable = []
    for output in outputs:
        try:
            parse(output)
        except Corrupt:
            continue
        usable.append(output)
    return parse(*usable) if usable else None


def _device(number: int, entry: Mapping[str, Any]) -> Device:
    asic, bus, vram = _section(entry, "asic"), _section(entry, "bus"), _section(entry, "vram")
    numa, driver, limit = _section(entry, "numa"), _section(entry, "driver"), _section(entry, "limit")
    partition = (
        _section(entry, "accelerator_partition") or _section(entry, "partition") or _section(entry, "compute_partition")
    )
    memory, usage = _section(entry, "mem_usage"), _section(entry, "vram_usage")
    limit = {**limit, **{f"ppt0.{key}": value for key, value in _lower(limit.get("ppt0")).items()}}
    device_id = _text(asic.get("device_id"))
    total = (
        _bytes(vram.get("size"), "mib")
        or _bytes(memory.get("total_vram"), "mib")
        or _bytes(usage.get("vram_total"), "mib")
    )
    used = _bytes(memory.get("used_vram"), "mib")
    affinity = _number(numa.get("node"))
    found: dict[str, Any] = {
        "product": _text(asic.get("market_name")),
        "arch": _arch(asic.get("target_graphics_version")),
        "bdf": _address(bus.get("bdf")) or _address(entry.get("bdf")),
        "pci_id": device_id.lower().removeprefix("0x") if device_id else None,
        "uuid": _text(entry.get("uuid")),
        "partition": _text(
            partition.get("accelerator_partition") or partition.get("compute_partition") or partition.get("type")
        ),
        "memory_partition": _text(partition.get("memory_partition") or partition.get("memory")),
        "numa_node": affinity if affinity is not None and affinity >= 0 else None,
        "compute_units": _number(asic.get("num_compute_units")),
        "memory_total_bytes": total,
        "memory_used_bytes": used,
        "power_cap_w": _number(limit.get("ppt0.socket_power_limit")) or _number(limit.get("socket_power")),
        "driver": _text(driver.get("version")),
    }
    return Device(
        index=number,
        gpu=None,
        product=found.pop("product") or "AMD GPU",
        **{name: value for name, value in found.items() if name != "arch"},
        arch=found["arch"],
        sources={name: "amd-smi" for name, value in found.items() if value is not None},
    )


def _document(output: str) -> Any:
    """The first JSON value with GPUs in it, whatever text surrounds it. Raises: Corrupt."""
    decoder = json.JSONDecoder()
    position = 0
    text = output.replace("\0", "")
    for match in re.finditer(r"[\[{]", text):
        if match.start() < position:
            continue
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if next(_entries(value), None) is not None:
            return value
    raise Corrupt(
        "this is not JSON output of amd-smi",
        why="no list of GPUs was found in it" if text.strip() else "it is empty",
        hint="record it with: amd-smi static --json > static.json",
    )


def _entries(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    if isinstance(value, dict):
        fields = _lower(value)
        if isinstance(fields.get("gpu_data"), list):
            yield from _entries(fields["gpu_data"])
            return
        for key, entry in fields.items():
            match = re.fullmatch(r"gpu_?(\d+)", key)
            if match and isinstance(entry, dict):
                yield int(match[1]), _lower(entry)
    elif isinstance(value, list):
        for entry in value:
            fields = _lower(entry)
            number = _number(fields.get("gpu"))
            if number is not None and number >= 0:
                yield number, fields


def _merge(into: dict[str, Any], entry: Mapping[str, Any]) -> None:
    for key, value in entry.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            into[key] = {**into[key], **value}
        else:
            into.setdefault(key, value)


def _link(source: int, target: int, kind: Any, status: Any, weight: Any) -> Link:
    accessible = {"ENABLED": True, "DISABLED": False}.get(str(status).upper())
    return Link(
        source=source, target=target, kind=str(kind or "").upper(), accessible=accessible, weight=_number(weight)
    )


def _section(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section by name; some releases wrap it in a list of one."""
    value = entry.get(name)
    if isinstance(value, list) and value:
        value = value[0]
    return _lower(value)


def _lower(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    return {str(key).strip().lower().replace(" ", "_"): inner for key, inner in value.items()}


def _scalar(value: Any) -> Any:
    return _lower(value).get("value") if isinstance(value, dict) else value


def _text(value: Any) -> str | None:
    plain = _scalar(value)
    if plain is None or isinstance(plain, list | dict):
        return None
    text = str(plain).strip()
    return None if text.upper() in ("", "N/A", "NONE", "UNKNOWN") else text


def _number(value: Any) -> int | None:
    plain = _scalar(value)
    if isinstance(plain, bool):
        return None
    if isinstance(plain, float):
        plain = int(plain) if plain == plain and abs(plain) < 2**63 else None
    if isinstance(plain, str):
        match = re.match(r"\s*(-?\d+)(?:\.\d+)?\s*[A-Za-z%]*\s*$", plain)
        plain = int(match[1]) if match and len(match[1]) < 20 else None
    return plain if isinstance(plain, int) and plain not in _UNKNOWN_NUMBERS else None


def _bytes(value: Any, default_unit: str) -> int | None:
    number = _number(value)
    if number is None or number <= 0:
        return None
    unit = str(_lower(value).get("unit", default_unit)).strip().lower()
    if isinstance(value, str):
        match = re.search(r"([A-Za-z]+)\s*$", value)
        unit = match[1].lower() if match else unit
    return number * _MEMORY_UNITS.get(unit, MIB)


def _address(value: Any) -> str | None:
    text = _text(value)
    return (
        text.lower()
        if text and re.fullmatch(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F]", text)
        else None
    )


def _arch(value: Any) -> str | None:
    text = _text(value)
    return text.lower() if text and re.fullmatch(r"gfx[0-9a-fA-F]{3,5}", text.lower()) else None
