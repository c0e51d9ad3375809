"""What amd-smi says, in the shapes of ROCm 6.0 to 7.14: JSON, and through `amdsmi_text` what people record instead.

The envelope is a list, `{"gpu_data": [...]}` or `{"gpu_0": {...}}`; numbers are bare or `{"value", "unit"}`; "N/A", 0xFFFF and
65535 mean unknown; text may stand before and after the JSON; keys change case between releases. Sections are therefore looked
up by name, whatever surrounds them. "MB" of these tools is MiB.
Source: ROCm/amdsmi CHANGELOG (shapes by release).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.hardware import amdsmi_text, links
from aim_engine.hardware.cluster import UNNAMED, Device, Memory, Node
from aim_engine.hardware.readings import Readings
from aim_engine.units import KIB, MIB

_ATTEMPTS = 200
"""Places in a text where JSON may begin that are tried."""
NAME = "amd-smi"
LIBRARY = "amdsmi"
"""The Python library below it."""
_STATED = {
    "rocm_version": re.compile(r"\"?rocm[_ ]version\"?\s*:\s*\"?(\d[\w.+-]{0,30})", re.IGNORECASE),
    "driver_version": re.compile(r"amdgpu[_ ]version\"?\s*:\s*\"?(\d[\w.+-]{0,30})", re.IGNORECASE),
}
_STATED_WITHIN = 20_000
_UNKNOWN_NUMBERS = frozenset({0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})
_MEMORY_UNITS = {"b": 1, "kb": KIB, "kib": KIB, "mb": MIB, "mib": MIB, "gb": 1024 * MIB, "gib": 1024 * MIB}


def is_one(output: str) -> bool:
    """Is this output of amd-smi that describes GPUs?"""
    try:
        next(_gpus(output))
    except Corrupt:
        return False
    return True


def read(outputs: Sequence[str], name: str) -> Node:
    """The machine that outputs of static, metric, list, partition, topology, version or monitor describe. Raises: Corrupt."""
    devices = parse(*outputs)
    pairs = [link for output in outputs for link in parse_topology(output)]
    hives = links.groups(pairs)
    return Node(
        name=name,
        devices=tuple(_in_hive(device, hives.get(device.index)) for device in devices),
        link_weights=links.weights(pairs),
        **_versions(outputs),
    )


def parse(*outputs: str) -> tuple[Device, ...]:
    """The devices that one or more outputs (static, metric, list, partition, monitor) describe, joined by GPU number.

    JSON, CSV or text. Raises: Corrupt when an output describes no GPU.
    """
    joined: dict[int, dict[str, Any]] = {}
    for output in outputs:
        for number, entry in _gpus(output):
            _merge(joined.setdefault(number, {}), entry)
    return tuple(_device(number, entry) for number, entry in sorted(joined.items()))


def counts(output: str) -> dict[int, dict[str, float]]:
    """What `amd-smi metric` has counted by GPU number: memory errors, PCIe replays, joules, samples that something held the clock down.

    What the card does not tell is absent; a joule counter of 0 is one that it does not have. Raises: Corrupt.
    """
    found: dict[int, dict[str, float]] = {}
    for number, entry in _gpus(output):
        said = found.setdefault(number, {})
        for section, names in _COUNTS.items():
            values = _section(entry, section)
            for field, name in names.items():
                value = _float(values.get(field))
                if value is not None and value >= 0 and (value > 0 or name != "energy_j"):
                    said[name] = value
        links = _float(_lower(_section(entry, "ecc_blocks").get("xgmi_wafl")).get("uncorrectable_count"))
        if links is not None:
            said["xgmi_errors"] = links
    return found


_COUNTS = {
    "ecc": {
        "total_correctable_count": "ecc_correctable",
        "total_uncorrectable_count": "ecc_uncorrectable",
        "total_deferred_count": "ecc_deferred",
        # before ROCm 6.2
        "total_correctable": "ecc_correctable",
        "total_uncorrectable": "ecc_uncorrectable",
    },
    "pcie": {"replay_count": "pcie_replays"},
    "energy": {"total_energy_consumption": "energy_j"},
    "throttle": {
        "accumulation_counter": "samples",
        "ppt_accumulated": "power",
        "socket_thermal_accumulated": "socket",
        "hbm_thermal_accumulated": "memory",
        "vr_thermal_accumulated": "voltage_regulator",
        "prochot_accumulated": "prochot",
    },
}
"""Section and field of `amd-smi metric` -> name. Source: ROCm/amdsmi CHANGELOG 24.7 (metric --throttle), amdsmi_commands.py."""


def parse_topology(output: str) -> tuple[links.Link, ...]:
    """The links of `amd-smi topology`: a list of links per GPU (6.1.1 and later), a mapping per property (before), or tables."""
    found = list(links.tables(output)[1])
    for number, entry in _gpus(output):
        listed = entry.get("links")
        if isinstance(listed, list):
            for link in listed:
                fields = _lower(link)
                target = _number(fields.get("gpu"))
                if target is not None:
                    found.append(
                        _link(number, target, fields.get("link_type"), fields.get("link_status"), fields.get("weight"))
                    )
            continue
        kinds = _lower(entry.get("link_type"))
        for key, kind in kinds.items():
            match = re.fullmatch(r"gpu_?(\d{1,6})", key)
            if match:
                status = _lower(entry.get("link_accessibility")).get(key)
                found.append(_link(number, int(match[1]), kind, status, _lower(entry.get("weight")).get(key)))
    return tuple(found)


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
        "oam_id": _number(asic.get("oam_id")),
        "vbios": _text(_section(entry, "vbios").get("part_number"))
        or _text(_section(entry, "ifwi").get("part_number")),
    }
    return Device(
        index=number,
        gpu=None,
        product=found.pop("product") or UNNAMED,
        memory=_memory(entry, vram, memory, total),
        readings=_readings(entry, caps, limit),
        sources={name: NAME for name, value in found.items() if value is not None},
        **found,
    )


def _memory(
    entry: Mapping[str, Any], vram: Mapping[str, Any], usage: Mapping[str, Any], total: int | None
) -> Memory | None:
    rate = _float(vram.get("max_bandwidth"))
    blocks = _lower(_section(entry, "ras").get("ecc_block_state"))
    memory = Memory(
        vram_bytes=total,
        visible_bytes=_bytes(usage.get("total_visible_vram"), "mib"),
        gtt_bytes=_bytes(usage.get("total_gtt"), "mib"),
        gtt_used_bytes=_bytes(usage.get("used_gtt"), "mib", zero=True),
        kind=_text(vram.get("type")),
        bus_bits=_number(vram.get("bit_width")) or None,
        bandwidth_bytes_s=round(rate * 1e9) if rate else None,
        ecc={"ENABLED": True, "DISABLED": False}.get(str(blocks.get("umc")).upper()),
    )
    return memory if memory != Memory() else None


def _in_hive(device: Device, hive: str | None) -> Device:
    if hive is None:
        return device
    return msgspec.structs.replace(device, hive=hive, sources={**device.sources, "hive": NAME})


def _versions(outputs: Sequence[str]) -> dict[str, Any]:
    """Versions of ROCm and the driver, and whether it is a guest, where an output states them shortly. The driver's may be a banner."""
    found: dict[str, Any] = {}
    for output in outputs:
        for key, pattern in _STATED.items():
            match = pattern.search(output[:_STATED_WITHIN])
            if match is not None and _text(match[1]) is not None:
                found.setdefault(key, match[1])
        if re.search(r"Platform:\s*Linux Guest|\"platform\"\s*:\s*\"[^\"]*Guest", output[:_STATED_WITHIN]):
            found["guest"] = True
        elif re.search(r"Platform:\s*Linux Baremetal", output[:_STATED_WITHIN]):
            found.setdefault("guest", False)
    return found


def _readings(entry: Mapping[str, Any], caps: Mapping[str, Any], limit: Mapping[str, Any]) -> Readings | None:
    """Temperatures, power and load, where the output has any. `hotspot` is what hwmon calls junction, `vram` its mem."""
    power, heat, load = _section(entry, "power"), _section(entry, "temperature"), _section(entry, "usage")
    clock = _section(entry, "clock")
    (sclk_mhz, sclk_max_mhz), (mclk_mhz, mclk_max_mhz) = (
        _clock(clock, "gfx_0", "gfx", "sys"),
        _clock(clock, "mem_0", "mem"),
    )
    readings = Readings(
        temperature_c=_by_place({place: heat.get(place) for place in heat}),
        temperature_critical_c=_by_place(_limits(limit, "slowdown")),
        temperature_emergency_c=_by_place(_limits(limit, "shutdown")),
        power_w=_first(power, ("socket_power", "current_socket_power", "average_socket_power")),
        power_cap_w=_first(caps, ("socket_power_limit", "socket_power")),
        power_cap_min_w=_first(caps, ("min_power_limit", "min_power")),
        power_cap_max_w=_first(caps, ("max_power_limit", "max_power")),
        gpu_busy_percent=_percent(load.get("gfx_activity")),
        mem_busy_percent=_percent(load.get("umc_activity")),
        sclk_mhz=sclk_mhz,
        sclk_max_mhz=sclk_max_mhz,
        mclk_mhz=mclk_mhz,
        mclk_max_mhz=mclk_max_mhz,
        fan_percent=_percent(_section(entry, "fan").get("usage")),
        pcie_replay_count=_number(_section(entry, "pcie").get("replay_count")),
        vram_vendor=_text(_section(entry, "vram").get("vendor")),
    )
    return readings if readings != Readings() else None


def _clock(clock: Mapping[str, Any], *names: str) -> tuple[int | None, int | None]:
    """The first of these clocks: now and at most. Unit: MHz."""
    section = next((_lower(clock.get(name)) for name in names if isinstance(clock.get(name), dict)), {})
    levels = [_number(level) for level in _lower(section.get("frequency_levels")).values()]
    return _number(section.get("clk")), _number(section.get("max_clk")) or max(
        (level for level in levels if level), default=None
    )


def _percent(value: Any) -> int | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 100 else None


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
            match = re.fullmatch(r"gpu_?(\d{1,6})", key)
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


def _link(source: int, target: int, kind: Any, status: Any, weight: Any) -> links.Link:
    accessible = {"ENABLED": True, "DISABLED": False}.get(str(status).upper())
    return links.Link(
        source=source,
        target=target,
        kind=str(kind or "").upper(),
        accessible=accessible,
        weight=_number(weight) or None,
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
