"""What rendering again would change: against files of a folder, line by line; against a cluster, field by field."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aim_engine.render.artifact import Artifact


def files(current: Mapping[str, str], artifacts: Sequence[Artifact]) -> str:
    """A unified diff from `current` (path -> content) to the artifacts; empty when nothing would change.

    Files with tokens are their owner's, so their content is not compared.
    """
    lines: list[str] = []
    for artifact in artifacts:
        old = current.get(artifact.path)
        if artifact.secret or old == artifact.content:
            continue
        lines += difflib.unified_diff(
            [] if old is None else old.splitlines(keepends=True),
            artifact.content.splitlines(keepends=True),
            "/dev/null" if old is None else f"a/{artifact.path}",
            f"b/{artifact.path}",
        )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def live(wanted: Mapping[str, Any], found: Mapping[str, Any] | None) -> tuple[str, ...]:
    """`path: old -> new` of every field that `wanted` sets otherwise than the object a cluster has, None when it has none.

    Fields that only the cluster has are defaults or belong to others, and stay.
    """
    name = f"{wanted['kind']}/{wanted['metadata']['name']}"
    if found is None:
        return (f"{name}: would be made",)
    return tuple(f"{name}: {path}: {old} -> {new}" for path, old, new in _changes(wanted, found, ""))


def _changes(wanted: Any, found: Any, path: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            below = f"{path}.{key}" if path else str(key)
            if key in found:
                yield from _changes(value, found[key], below)
            elif value not in ({}, [], None):
                yield below, "nothing", _shown(value)
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, (new, old) in enumerate(zip(wanted, found, strict=True)):
            yield from _changes(new, old, f"{path}[{index}]")
    elif wanted != found:
        yield path, _shown(found), _shown(wanted)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
