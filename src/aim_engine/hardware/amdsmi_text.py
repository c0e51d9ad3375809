"""amd-smi's outputs that are not JSON, as the same entries: indented text, CSV, the monitor table and the default box.

People record what they see, so a file may be any of these. Values keep their unit in the text (`750 W`, `196592 MB`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aim_engine.hardware import links

_BLOCK = re.compile(r"^GPU:\s*(\d{1,6})\s*$", re.IGNORECASE)
_LINE = re.compile(r"^(?P<indent>\s*)(?P<key>[A-Za-z][\w ()%/-]*):(?:\s+(?P<value>.*?))?\s*$")
_ADDRESS = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F]"
_BOX_CARD = re.compile(rf"^\|\s*(?P<bdf>{_ADDRESS})\s+(?P<name>[^|]*?)\s*\|(?P<rest>[^|]*)\|\s*$")
_BOX_STATE = re.compile(
    r"^\|\s*(?P<gpu>\d{1,6})\s+\S+\s+\S+\s+(?P<mode>[A-Za-z/0-9-]+)\s*\|\s*(?:(?P<busy>\d{1,6})\s*%)?.*?(?P<used>\d{1,15})\s*/\s*(?P<total>\d{1,15})\s*(?P<unit>[KMGT]i?B)\s*\|\s*$"
)
_PLACES: dict[str, tuple[str, str]] = {
    "market_name": ("asic", "market_name"),
    "device_id": ("asic", "device_id"),
    "rev_id": ("asic", "rev_id"),
    "num_compute_units": ("asic", "num_compute_units"),
    "num_of_compute_units": ("asic", "num_compute_units"),
    "target_graphics_version": ("asic", "target_graphics_version"),
    "size": ("vram", "size"),
    "vram_size": ("vram", "size"),
    "node": ("numa", "node"),
    "numa_node": ("numa", "node"),
    "driver_version": ("driver", "version"),
    "compute_partition": ("partition", "compute_partition"),
    "accelerator_partition": ("partition", "accelerator_partition"),
    "memory_partition": ("partition", "memory_partition"),
    "max_power": ("limit", "max_power"),
    "min_power": ("limit", "min_power"),
    "total_vram": ("mem_usage", "total_vram"),
    "used_vram": ("mem_usage", "used_vram"),
    "vram_total": ("mem_usage", "total_vram"),
    "vram_used": ("mem_usage", "used_vram"),
    "power": ("power", "socket_power"),
    "power_usage": ("power", "socket_power"),
    "average_power": ("power", "socket_power"),
    "gpu_t": ("temperature", "hotspot"),
    "gpu_temp": ("temperature", "hotspot"),
    "hotspot": ("temperature", "hotspot"),
    "hotspot_temp": ("temperature", "hotspot"),
    "hotspot_temperature": ("temperature", "hotspot"),
    "edge": ("temperature", "edge"),
    "edge_temperature": ("temperature", "edge"),
    "mem": ("temperature", "mem"),
    "mem_t": ("temperature", "mem"),
    "mem_temp": ("temperature", "mem"),
    "memory_temperature": ("temperature", "mem"),
    "gfx%": ("usage", "gfx_activity"),
    "gfx_util": ("usage", "gfx_activity"),
    "gfx_activity": ("usage", "gfx_activity"),
    "mem_util": ("usage", "umc_activity"),
    "umc_activity": ("usage", "umc_activity"),
}
"""Column of a flat output -> section and key of the nested ones."""


def entries(output: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """GPU number and its sections, from any form but JSON; nothing when the text is none of them."""
    lines = output.replace("\0", "").replace("\r", "").splitlines()
    for reader in (_blocks, _box, _comma_separated, _topology, _columns):
        found = list(reader(lines))
        if found:
            yield from found
            return


def _blocks(lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """`GPU: 0` followed by indented `KEY: value` lines; a key without value opens a section."""
    number: int | None = None
    top: dict[str, Any] = {}
    stack: list[tuple[int, dict[str, Any]]] = []
    for line in lines:
        block = _BLOCK.match(line.strip()) if not line.startswith((" ", "\t")) else None
        if block:
            if number is not None:
                yield number, top
            number, top = int(block[1]), {}
            stack = [(-1, top)]
            continue
        match = _LINE.match(line)
        if number is None or match is None:
            continue
        indent, key, value = len(match["indent"].expandtabs(4)), _key(match["key"]), match["value"]
        while len(stack) > 1 and indent <= stack[-1][0]:
            stack.pop()
        if value is not None and value != "":
            stack[-1][1].setdefault(key, value)
        elif len(stack) < 20:
            section: dict[str, Any] = {}
            stack[-1][1].setdefault(key, section)
            stack.append((indent, section))
    if number is not None:
        yield number, top


def _comma_separated(lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """A header with a column `gpu`, and a row for each; later samples of one GPU are passed over."""
    import csv

    start = next(
        (i for i, line in enumerate(lines) if "gpu" in [cell.strip().lower() for cell in line.split(",")]), None
    )
    if start is None or "," not in lines[start]:
        return
    header: list[str] | None = None
    seen: set[int] = set()
    try:
        for row in csv.reader(lines[start:]):
            if header is None:
                header = [_key(cell) for cell in row]
                continue
            named = dict(zip(reversed(header), reversed(row), strict=False)) if len(row) == len(header) else {}
            number = named.get("gpu", "").strip()
            if number.isdecimal() and len(number) < 7 and int(number) not in seen:
                seen.add(int(number))
                yield int(number), _nested(named)
    except csv.Error:
        return


def _columns(lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The monitor table: `GPU  POWER  GPU_T ...`, cells set apart by two blanks or more."""
    header: list[str] | None = None
    seen: set[int] = set()
    for line in lines:
        cells = re.split(r"\s{2,}|\t", line.strip())
        if cells[0].upper() == "GPU" and len(cells) > 1:
            header = [_key(cell) for cell in cells]
        elif header is not None and len(cells) == len(header):
            number = cells[0]
            if number.isdecimal() and len(number) < 7 and int(number) not in seen:
                seen.add(int(number))
                yield int(number), _nested(dict(zip(header, cells, strict=True)))


def _box(lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """What `amd-smi` alone prints since ROCm 7.0: two lines for each GPU in a frame."""
    card: re.Match[str] | None = None
    for line in lines:
        if len(line) > 400:
            continue
        first = _BOX_CARD.match(line)
        if first is not None:
            card = first
            continue
        state = _BOX_STATE.match(line)
        if state is None or card is None:
            continue
        mode, _, memory_mode = state["mode"].upper().replace("N/A", "").partition("/")
        entry: dict[str, Any] = {
            "bdf": card["bdf"],
            "asic": {"market_name": card["name"]},
            "partition": {"accelerator_partition": mode, "memory_partition": memory_mode or "N/A"},
            "mem_usage": {
                "total_vram": f"{state['total']} {state['unit']}",
                "used_vram": f"{state['used']} {state['unit']}",
            },
        }
        power = re.search(r"(\d{1,6})\s*/\s*(\d{1,6})\s*W\b", card["rest"])
        if power:
            entry["power"] = {"socket_power": f"{power[1]} W"}
            entry["limit"] = {"socket_power": f"{power[2]} W"}
        heat = re.search(r"(\d{1,6})\s*°\s*C\b", card["rest"])
        if heat:
            entry["temperature"] = {"hotspot": f"{heat[1]} C"}
        if state["busy"]:
            entry["usage"] = {"gfx_activity": f"{state['busy']} %"}
        yield int(state["gpu"]), entry
        card = None


def _topology(lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The tables of `amd-smi topology`: what they call a GPU is its PCI address."""
    labels, _ = links.tables("\n".join(lines))
    for number, label in enumerate(labels):
        if re.fullmatch(_ADDRESS, label):
            yield number, {"bdf": label}


def _nested(flat: Mapping[str, str]) -> dict[str, Any]:
    """A flat row as sections. `socket_power` is a limit beside other limits, and the power drawn elsewhere."""
    found: dict[str, Any] = {}
    is_limit = any(key in flat for key in ("max_power", "min_power"))
    for key, value in flat.items():
        cell = value.strip()
        if key in ("bdf", "gpu_bdf"):
            found["bdf"] = cell
        elif key in ("uuid", "gpu_uuid"):
            found["uuid"] = cell
        elif key == "socket_power":
            found.setdefault("limit" if is_limit else "power", {})["socket_power"] = cell
        elif key == "vram_usage" and "/" in cell:
            used, _, total = cell.partition("/")
            unit = "".join(re.findall(r"[A-Za-z]+$", total.strip()))
            found.setdefault("mem_usage", {}).update(
                total_vram=total.strip(), used_vram=f"{used.strip()} {unit}".strip()
            )
        elif match := re.fullmatch(r"(ppt\d)_(max|min|socket)_power_limit", key):
            found.setdefault("limit", {}).setdefault(match[1], {})[f"{match[2]}_power_limit"] = cell
        elif re.fullmatch(r"(slowdown|shutdown)_\w+_temperature", key):
            found.setdefault("limit", {})[key] = cell
        elif key in _PLACES:
            section, name = _PLACES[key]
            found.setdefault(section, {}).setdefault(name, cell)
    return found


def _key(text: str) -> str:
    return text.strip().lower().replace(" ", "_")
