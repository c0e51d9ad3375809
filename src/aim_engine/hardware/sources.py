"""Recorded outputs of tools, each read by the module that knows its format; the format is recognised."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Protocol

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.hardware import amdsmi, joining, lspci, rocmsmi, rocprof, topology
from aim_engine.hardware.cluster import Finding, Node


class Source(Protocol):
    """One format of recorded output. A module with these names is one."""

    NAME: str

    def is_one(self, text: str, /) -> bool:
        """Is this text of the format? Never raises."""

    def read(self, texts: Sequence[str], name: str, /) -> Node:
        """The machine that the texts describe, without names of the catalogue. Raises: Corrupt."""


LONGEST = 4 * 1024 * 1024
"""Characters of a text that is cut off which are looked at."""
_STARTS, _DEEPEST = 5, 100
_TOKEN = re.compile(r'"(?:[^"\\\\]|\\\\.)*(?:"|$)|[\[\]{},]')
KNOWN: tuple[Source, ...] = (topology, rocprof, lspci, rocmsmi, amdsmi)
"""In the order in which they are asked whether a text is theirs: the most particular format first."""
_AUTHORITY: tuple[Source, ...] = (amdsmi, rocmsmi, topology, rocprof, lspci)
"""Whose word stands where several recordings of a machine are given."""


def read(texts: Sequence[str], name: str) -> Node:
    """One machine of all that was recorded of it. Raises: Corrupt."""
    parts: dict[str, list[str]] = {}
    findings: list[Finding] = []
    for number, given in enumerate(texts, 1):
        text, source = given, _of(given)
        if not _says_something(source, text) and (closed := closed_json(given)) is not None:
            whole_part = _of(closed)
            if whole_part is not None and _says_something(whole_part, closed):
                text, source = closed, whole_part
                findings.append(_cut_off(source.NAME, len(given)))
        if source is None:
            raise Corrupt(
                f"{name} is no recording of GPUs" if len(texts) == 1 else f"recording {number} is none of GPUs",
                why="it is not output of amd-smi, rocm-smi, kubectl, rocprof or lspci that describes a GPU, and no topology file",
                hint="amd-smi static --json > gpus.json; aim-engine gpus --from gpus.json",
            )
        parts.setdefault(source.NAME, []).append(text)
    machines = [source.read(parts[source.NAME], name) for source in _AUTHORITY if source.NAME in parts]
    whole = joining.nodes(machines, next((machine.name for machine in machines if machine.name != name), name))
    return msgspec.structs.replace(whole, findings=(*findings, *whole.findings))


def _of(text: str) -> Source | None:
    return next((source for source in KNOWN if source.is_one(text)), None)


def _says_something(source: Source | None, text: str) -> bool:
    if source is None:
        return False
    try:
        source.read([text], "")
    except Corrupt:
        return False
    return True


def _cut_off(name: str, characters: int) -> Finding:
    return Finding(
        id="HW036",
        severity="warning",
        message=f"the output of {name} is cut off: devices and figures after that are unknown",
        evidence=f"after {characters:,} characters",
        remedy="record it again",
    )


def closed_json(text: str) -> str | None:
    """A JSON document that was cut off, as far as it is whole: its last complete value, and what is open closed. None for others."""
    for start in itertools.islice(re.finditer(r"^[ \t]*[\[{]", text[:LONGEST], re.MULTILINE), _STARTS):
        end, still_open = 0, ""
        stack = ""
        for token in _TOKEN.finditer(text, start.end() - 1, LONGEST):
            mark = token[0]
            if mark in "[{":
                stack += "]" if mark == "[" else "}"
            elif mark == ",":
                end, still_open = token.start(), stack
            elif mark in "]}":
                if not stack.endswith(mark):
                    break
                stack = stack[:-1]
                end, still_open = token.end(), stack
                if not stack:
                    break
            if len(stack) > _DEEPEST:
                break
        if still_open:
            return text[start.start() : end] + still_open[::-1]
    return None
