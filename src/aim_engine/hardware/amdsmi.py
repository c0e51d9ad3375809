"""What amd-smi says, in the shapes of ROCm 6.0 to 7.14: JSON, and through `amdsmi_text` what people record instead.

The envelope is a list, `{"gpu_data": [...]}` or `{"gpu_0": {...}}`; numbers are bare or `{"value", "unit"}`; "N/A", 0xFFFF and
65535 mean unknown; text may stand before and after the JSON; keys change case between releases. Sections are therefore looked
up by name, whatever surrounds them. "MB" of these tools is MiB.
Source: ROCm/amdsmi CHANGELOG (shapes by release).
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.hardware import amdsmi_text
from aim_engine.hardware.cluster import Device
from aim_engine.hardware.sensors import Readings
from aim_engine.units import KIB, MIB

COMMANDS = (("static",), ("metric",), ("list",), ("partition", "--current"))
TIMEOUT_S = 5.0
FIRST_TIMEOUT_S = 15.0
"""The first call may wait for the driver. A tool that does not answer it is not asked again."""
_ATTEMPTS = 200
"""Places in a text where JSON may begin that are tried."""
logger = logging.getLogger(__name__)
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
    """The devices that one or more outputs (static, metric, list, partition, monitor) describe, joined by GPU number.

    JSON, CSV or text. Raises: Corrupt when an output describes no GPU.
    """
    joined: dict[int, dict[str, Any]] = {}
    for output in outputs:
        for number, entry in _gpus(output):
            _merge(joined.setdefault(number, {}), entry)
    return tuple(_device(number, entry) for number, entry in sorted(joined.items()))


def parse_topology(output: str) -> tuple[Link, ...]:
    """The links of `amd-smi topology --json`: a list of links per GPU (6.1.1 and later) or a mapping per property (before)."""
    found = []
    for number, entry in _gpus(output):
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
    import shutil
    import subprocess

    program = shutil.which("amd-smi") or shutil.which("/opt/rocm/bin/amd-smi")
    if program is None:
        return None
    usable: list[str] = []
    for command in COMMANDS:
        try:
            done = subprocess.run(
                [program, *command, "--json"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s if usable else max(timeout_s, FIRST_TIMEOUT_S),
                check=False,
            )
            parse(done.stdout)
        except (subprocess.TimeoutExpired, OSError) as err:
            logger.debug("amd-smi %s: %s", command[0], err)
            if not usable:
                return None
            continue
        except Corrupt as err:
            logger.debug("amd-smi %s: %s", command[0], err)
            continue
        usable.append(done.stdout)
    return parse(*usable) if usable else None


def _device(number: int, entry: Mapping[str, Any]) -> Device:
    asic, bus, vram = _section(entry, "asic"), _section(entry, "bus"), _section(entry, "vram")
    numa, driver, limit = _section(entry, "numa"), _section(entry, "driver"), _section(entry, "limit")
    partition = (
        _section(entry, "accelerator_partition") or _section(entry, "partition") or _section(entry, "compute_partition")
    )
    memory, usage = _section(entry, "mem_usage"), _section(entry, "vram_usage")
    caps = _lower(limit.get("ppt0")) or limit
    device_id, revision = _text(asic.get("device_id")), _text(asic.get("rev_id"))
    total = (
        _bytes(vram.get("size"), "mib")
        or _bytes(memory.get("total_vram"), "mib")
        or _bytes(usage.get("vram_total"), "mib")
    )
    cap_w = _first(caps, ("socket_power_limit", "socket_power"))
    affinity = _number(numa.get("node"))
    mode = _text(
        partition.get("accelerator_partition")
        or partition.get("compute_partition")
        or partition.get("accelerator_type")
        or partition.get("type")
    )
    found: dict[str, Any] = {
        "product": _text(asic.get("market_name")),
        "arch": _arch(asic.get("target_graphics_version")),
        "bdf": _address(bus.get("bdf")) or _address(entry.get("bdf")),
        "pci_id": _hexadecimal(device_id, 4),
        "revision": _hexadecimal(revision, 2),
        "uuid": _text(entry.get("uuid")),
        "partition": mode.upper() if mode is not None and mode.isalnum() else None,
        "memory_partition": _text(partition.get("memory_partition") or partition.get("memory")),
        "numa_node": affinity if affinity is not None and affinity >= 0 else None,
        "compute_units": _number(asic.get("num_compute_units") or asic.get("num_of_compute_units")),
        "memory_total_bytes": total,
        "memory_used_bytes": _bytes(memory.get("used_vram"), "mib", zero=True),
        "power_cap_w": round(cap_w) if cap_w else None,
        "driver": _text(driver.get("name")),
    }
    return Device(
        index=number,
        gpu=None,
        product=found.pop("product") or "AMD GPU",
        readings=_readings(entry, caps, limit),
        sources={name: "amd-smi" for name, value in found.items() if value is not None},
        **found,
    )


def _readings(entry: Mapping[str, Any], caps: Mapping[str, Any], limit: Mapping[str, Any]) -> Readings | None:
    """Temperatures, power and load, where the output has any. `hotspot` is what hwmon calls junction, `vram` its mem."""
    power, heat, load = _section(entry, "power"), _section(entry, "temperature"), _section(entry, "usage")
    readings = Readings(
        temperature_c=_by_place({place: heat.get(place) for place in heat}),
        temperature_critical_c=_by_place(_limits(limit, "slowdown")),
        temperature_emergency_c=_by_place(_limits(limit, "shutdown")),
        power_w=_first(power, ("socket_power", "current_socket_power", "average_socket_power")),
        power_cap_w=_first(caps, ("socket_power_limit", "socket_power")),
        power_cap_min_w=_first(caps, ("min_power_limit", "min_power")),
        power_cap_max_w=_first(caps, ("max_power_limit", "max_power")),
        gpu_busy_percent=_number(load.get("gfx_activity")),
        mem_busy_percent=_number(load.get("umc_activity")),
        pcie_replay_count=_number(_section(entry, "pcie").get("replay_count")),
        vram_vendor=_text(_section(entry, "vram").get("vendor")),
    )
    return readings if readings != Readings() else None


def _limits(limit: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found = {}
    for key, value in limit.items():
        match = re.fullmatch(rf"{kind}_(\w+?)(?:_temperature)?", key)
        if match:
            found[match[1]] = value
    return found


def _by_place(values: Mapping[str, Any]) -> dict[str, float]:
    names = {"edge": "edge", "hotspot": "junction", "junction": "junction", "mem": "mem", "vram": "mem"}
    found = {names[place]: _float(value) for place, value in values.items() if place in names}
    return {place: value for place, value in found.items() if value is not None and value > 0}


def _gpus(output: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """GPU number and its sections, whatever the form. Raises: Corrupt."""
    found = list(_entries(_document(output))) or list(amdsmi_text.entries(output))
    if not found:
        raise Corrupt(
            "this is not output of amd-smi",
            why="it describes no GPU" if output.strip() else "it is empty",
            hint="record it with: amd-smi static --json > static.json",
        )
    yield from found


def _document(output: str) -> Any:
    """The first JSON value with GPUs in it, whatever text surrounds it; None without one."""
    import json

    decoder = json.JSONDecoder()
    position = 0
    text = output.replace("\0", "")
    for match in itertools.islice(re.finditer(r"[\[{]", text), _ATTEMPTS):
        if match.start() < position:
            continue
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if next(_entries(value), None) is not None:
            return value
    return None


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


def _float(value: Any) -> float | None:
    """A number, bare or before a unit; None for the tool's ways of saying that it does not know."""
    plain = _scalar(value)
    if isinstance(plain, str):
        match = re.match(r"\s*(-?\d{1,19}(?:\.\d{1,9})?)(?:\s*[A-Za-z%°][A-Za-z/°]*)?\s*$", plain)
        plain = float(match[1]) if match else None
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not math.isfinite(plain):
        return None
    return None if plain in _UNKNOWN_NUMBERS or abs(plain) >= 2**63 else float(plain)


def _number(value: Any) -> int | None:
    number = _float(value)
    return None if number is None else int(number)


def _first(section: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    return next((number for name in names if (number := _float(section.get(name))) is not None), None)


def _hexadecimal(text: str | None, digits: int) -> str | None:
    plain = (text or "").lower().removeprefix("0x")
    return plain.zfill(digits) if re.fullmatch(rf"[0-9a-f]{{1,{digits}}}", plain) else None


def _bytes(value: Any, default_unit: str, *, zero: bool = False) -> int | None:
    number = _float(value)
    if number is None or number < 0 or (number == 0 and not zero):
        return None
    unit = str(_lower(value).get("unit", default_unit)).strip().lower()
    if isinstance(value, str):
        match = re.search(r"([A-Za-z]+)\s*$", value)
        unit = match[1].lower() if match else unit
    return round(number * _MEMORY_UNITS.get(unit, MIB))


def _address(value: Any) -> str | None:
    text = _text(value)
    pattern = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F]"
    return text.lower() if text and re.fullmatch(pattern, text) else None


def _arch(value: Any) -> str | None:
    text = _text(value)
    return text.lower() if text and re.fullmatch(r"gfx[0-9a-fA-F]{3,5}", text.lower()) else None
