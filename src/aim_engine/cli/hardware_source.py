"""Options that name hardware other than this machine: a recorded cluster, or the one kubectl talks to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Cluster, Node

Command = TypeVar("Command", bound=Callable[..., Any])

LIVE = click.option(
    "--kubernetes", "live", is_flag=True, help="The cluster that kubectl talks to; needs the right to list nodes."
)


def read(path: Path) -> str:
    """A file, or stdin for `-`. Raises: InvalidInput."""
    if str(path) == "-":
        return _read(sys.stdin.buffer, "stdin")
    try:
        with path.open("rb") as file:
            return _read(file, str(path))
    except (OSError, ValueError) as err:
        raise InvalidInput(f"{path} cannot be read", why=getattr(err, "strerror", None) or str(err)) from err


def _read(file: BinaryIO, name: str) -> str:
    """A text that may be gzip. Raises: InvalidInput when there is no end to it, Corrupt."""
    from aim_engine.hardware import topology

    content = file.read(topology.MAX_BYTES + 1)
    if len(content) > topology.MAX_BYTES:
        raise InvalidInput(f"{name} is larger than any recording", why=f"over {topology.MAX_BYTES:,} bytes")
    return topology.unpacked(content, name)


def cluster(live: bool, recorded: Path | None, overlay: Path | None) -> Cluster | None:
    """The cluster that the options name; None when they name none. Raises: InvalidInput, Corrupt, Unreachable."""
    if live:
        from aim_engine.deploy import inventory

        return inventory.read(overlay)
    if recorded is None:
        return None
    from aim_engine.hardware import detect, nodes

    text, name = read(recorded), recorded.name if str(recorded) != "-" else "stdin"
    if '"aim-engine/cluster/v1"' in text[:200_000]:
        try:
            return msgspec.json.decode(text, type=Cluster)
        except msgspec.DecodeError as err:
            raise InvalidInput(f"{name} is no cluster as gpus --json writes it", why=str(err)) from err
    if nodes.is_one(text):
        return nodes.read(text, name=name, overlay=overlay)
    return detect.from_recorded(text, name=name, overlay=overlay)


def one_of(**given: object) -> None:
    """Refuse options that name different hardware. Raises: InvalidInput."""
    named = [f"--{name}" for name, value in given.items() if value]
    if len(named) > 1:
        raise InvalidInput(f"{' and '.join(named)} name different hardware", hint="give one of them")


def rows(cluster: Cluster) -> list[tuple[str, ...]]:
    """One row for each GPU resource of each node: node, card, memory, resource, there, usable, held, free, state."""
    return [row for node in cluster.nodes for row in _rows(node)]


def _rows(node: Node) -> list[tuple[str, ...]]:
    from aim_engine.units import format_bytes

    state = node.scheduling
    if state is None:
        return []
    words = [
        word
        for word, holds in (
            ("not ready", state.ready is False),
            ("cordoned", state.cordoned),
            ("tainted", bool(state.taints)),
        )
        if holds
    ]
    found = []
    for resource in state.resources:
        members = [device for device in node.devices if device.resource == resource.name]
        sizes = sorted({device.memory_total_bytes for device in members if device.memory_total_bytes is not None})
        found.append(
            (
                node.name,
                ", ".join(sorted({device.gpu or device.product for device in members})) or "-",
                " or ".join(format_bytes(size) for size in sizes) or "?",
                resource.name,
                *(_count(number) for number in (resource.capacity, resource.allocatable, resource.requested)),
                "0" if words and not state.open else _count(resource.free),
                ", ".join(words) or ("ready" if state.ready else "?"),
            )
        )
    unknown = any(finding.id == "K8S112" for finding in node.findings)
    if not state.resources and (unknown or state.labelled):
        labelled = ", ".join(device.gpu or device.product for device in node.devices)
        found.append((node.name, labelled or "-", "?", "-", "?", "?", "?", "?", ", ".join(words) or "?"))
    return found


def _count(number: int | None) -> str:
    return "?" if number is None else str(number)
