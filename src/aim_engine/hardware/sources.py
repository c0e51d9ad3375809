"""Recorded outputs of tools, each read by the module that knows its format; the format is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aim_engine.errors import Corrupt
from aim_engine.hardware import amdsmi, joining, lspci, rocmsmi, rocprof, topology
from aim_engine.hardware.cluster import Node


class Source(Protocol):
    """One format of recorded output. A module with these names is one."""

    NAME: str

    def is_one(self, text: str, /) -> bool:
        """Is this text of the format? Never raises."""

    def read(self, texts: Sequence[str], name: str, /) -> Node:
        """The machine that the texts describe, without names of the catalogue. Raises: Corrupt."""


KNOWN: tuple[Source, ...] = (topology, rocprof, lspci, rocmsmi, amdsmi)
"""In the order in which they are asked whether a text is theirs: the most particular format first."""
_AUTHORITY: tuple[Source, ...] = (amdsmi, rocmsmi, topology, rocprof, lspci)
"""Whose word stands where several recordings of a machine are given."""


def read(texts: Sequence[str], name: str) -> Node:
    """One machine of all that was recorded of it. Raises: Corrupt."""
    parts: dict[str, list[str]] = {}
    for number, text in enumerate(texts, 1):
        source = next((source for source in KNOWN if source.is_one(text)), None)
        if source is None:
            raise Corrupt(
                f"{name} is no recording of GPUs" if len(texts) == 1 else f"recording {number} is none of GPUs",
                why="it is not output of amd-smi, rocm-smi, kubectl, rocprof or lspci that describes a GPU, and no topology file",
                hint="amd-smi static --json > gpus.json; aim-engine gpus --from gpus.json",
            )
        parts.setdefault(source.NAME, []).append(text)
    machines = [source.read(parts[source.NAME], name) for source in _AUTHORITY if source.NAME in parts]
    return joining.nodes(machines, next((machine.name for machine in machines if machine.name != name), name))
