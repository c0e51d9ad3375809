"""How devices are joined: what tools say of pairs, the groups that xGMI makes of them, and a matrix that a person can read.

Weights are the kernel's: 13 between dies of one package, 15 over one xGMI step, 40 and more over PCIe. Tools report one hop for every
xGMI pair, which is not believed. Where a source gives only the kind of a link, the smallest weight of that kind stands for it.
Source: Linux drivers/gpu/drm/amd/amdkfd/kfd_topology.c, kfd_crat.h (KFD_CRAT_XGMI_WEIGHT and its like).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from aim_engine.hardware.cluster import Node

SAME_PACKAGE, ONE_STEP, PCIE = 13, 15, 40
MOST_DEVICES = 512
"""More devices than any node shows: 64 GPUs of 8 partitions. A tool's number beyond it is damage."""
_WORDS = ((SAME_PACKAGE, "die"), (ONE_STEP, "xGMI"), (PCIE - 1, "xGMI+"))
_TABLE = re.compile(r"\b(?P<what>weight|link[ _]type)\b[^|]*?(?:between|table)", re.IGNORECASE)
_OTHER_TABLE = re.compile(r"={4,}|\btable\b", re.IGNORECASE)
_LABEL = re.compile(r"GPU\[?\d{1,6}\]?|[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]", re.IGNORECASE)


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool says of one pair of devices, by their numbers."""

    source: int
    target: int
    kind: str = ""
    """SELF, PCIE, XGMI or what the tool says."""
    accessible: bool | None = None
    weight: int | None = None


def weights(links: Iterable[Link]) -> dict[str, int]:
    """`i-j` (i < j) -> the smallest weight that is said of the pair."""
    found: dict[str, int] = {}
    for link in links:
        weight = link.weight or {"XGMI": ONE_STEP, "PCIE": PCIE}.get(link.kind)
        if weight is None or not _is_pair(link):
            continue
        key = f"{min(link.source, link.target)}-{max(link.source, link.target)}"
        found[key] = min(weight, found.get(key, weight))
    return dict(sorted(found.items()))


def groups(links: Iterable[Link]) -> dict[int, str]:
    """Device -> its xGMI group, numbered in the order of devices; devices without such a link are in none."""
    return joined((link.source, link.target) for link in links if link.kind == "XGMI" and _is_pair(link))


def joined(pairs: Iterable[tuple[int, int]]) -> dict[int, str]:
    """Device -> number of the group that the pairs make, in the order of devices."""
    parent: dict[int, int] = {}

    def root(device: int) -> int:
        while parent.setdefault(device, device) != device:
            parent[device] = parent[parent[device]]
            device = parent[device]
        return device

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    order = sorted({root(device) for device in parent})
    return {device: str(order.index(root(device))) for device in sorted(parent)}


def largest_group(node: Node) -> int:
    """How many devices of a node reach each other without PCIe: the most that tensor parallelism should span. 1 where none do."""
    sizes: dict[str, int] = {}
    for device in node.devices:
        if device.hive is not None:
            sizes[device.hive] = sizes.get(device.hive, 0) + 1
    return max(sizes.values(), default=min(1, len(node.devices)))


def tables(text: str) -> tuple[tuple[str, ...], tuple[Link, ...]]:
    """The matrices that rocm-smi --showtopo and amd-smi topology print: labels in their order, and what is said of the pairs."""
    labels: list[str] = []
    kinds: dict[tuple[int, int], str] = {}
    values: dict[tuple[int, int], int] = {}
    what = ""
    columns: list[int] = []
    for line in text.replace("\0", "").splitlines():
        if len(line) > 20_000:
            continue
        heading = _TABLE.search(line)
        cells = line.split()
        if heading is not None:
            what, columns = heading["what"].lower().replace("_", " "), []
        elif _OTHER_TABLE.search(line):
            what, columns = "", []
        elif what and not columns and cells and all(_LABEL.fullmatch(cell) for cell in cells):
            columns = _numbered(labels, cells)
        elif columns and len(cells) == len(columns) + 1 and _LABEL.fullmatch(cells[0]):
            (row,) = _numbered(labels, cells[:1])
            for column, cell in zip(columns, cells[1:], strict=True):
                if what == "weight" and cell.isdecimal() and len(cell) < 7:
                    values[row, column] = int(cell)
                elif what != "weight" and cell.isalpha():
                    kinds[row, column] = cell.upper()
    pairs = sorted({*kinds, *values})
    return tuple(labels), tuple(
        Link(source=one, target=other, kind=kinds.get((one, other), ""), weight=values.get((one, other)))
        for one, other in pairs
    )


def matrix(node: Node) -> Iterator[tuple[str, ...]]:
    """One row for each device: its number, and how it is joined to every other; `?` where nothing says."""
    numbers = [device.index for device in node.devices]
    for one in numbers:
        yield (str(one), *(_word(node.link_weights, one, other) for other in numbers))


def _word(known: Mapping[str, int], one: int, other: int) -> str:
    if one == other:
        return "-"
    weight = known.get(f"{min(one, other)}-{max(one, other)}")
    if weight is None:
        return "?"
    return next((word for limit, word in _WORDS if weight <= limit), "PCIe")


def _numbered(labels: list[str], cells: Sequence[str]) -> list[int]:
    found = []
    for cell in cells:
        label = cell.lower()
        if label not in labels and len(labels) < MOST_DEVICES:
            labels.append(label)
        found.append(labels.index(label) if label in labels else -1)
    return found


def _is_pair(link: Link) -> bool:
    return link.source != link.target and 0 <= link.source < MOST_DEVICES and 0 <= link.target < MOST_DEVICES
