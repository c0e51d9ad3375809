"""Kubernetes objects out of what people record: kubectl's JSON and YAML, lists, single objects, bare labels, `describe`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aim_engine import facts
from aim_engine.errors import AimError, Corrupt, InvalidInput

Object = Mapping[Any, Any]
WANTED = ("Node", "Pod", "ResourceSlice", "ResourceClaim")
_LABEL = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?(/[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?)?")
_ASSIGNMENT = re.compile(rf"(?P<key>{_LABEL.pattern})=(?P<value>[\w.-]*)")
_KNOWN = re.compile(r"(beta\.)?amd\.com/|kubernetes\.io/|k8s\.io/")
_HINT = "kubectl get nodes -o json > nodes.json; kubectl get nodes,pods -A -o json also tells what is free"
_MAX_CHARS = 2**28


def objects(*texts: str, name: str = "the input") -> dict[str, tuple[Object, ...]]:
    """The nodes, pods, slices and claims in `texts`, by kind. Raises: InvalidInput without nodes, Corrupt when one is cut off."""
    found: dict[str, list[Object]] = {kind: [] for kind in WANTED}
    others: set[str] = set()
    for text in texts:
        for kind, each in _all_of(text, name):
            if kind in found:
                found[kind].append(each)
            else:
                others.add(kind)
    if not found["Node"] and not found["ResourceSlice"]:
        kinds = sorted(kind for kind in {*others, *(kind for kind in WANTED if found[kind])} if kind)
        raise InvalidInput(
            f"{name} holds no Kubernetes nodes", why=f"it holds {', '.join(kinds[:5])}" if kinds else None, hint=_HINT
        )
    return {kind: tuple(members) for kind, members in found.items()}


def _all_of(text: str, name: str) -> Iterator[tuple[str, Object]]:
    if len(text) > _MAX_CHARS:
        raise InvalidInput(f"{name} is too large to be a recording of a cluster")
    text = text.lstrip("\ufeff").strip()
    if not text:
        raise InvalidInput(f"{name} is empty", hint=_HINT)
    for document in _documents(text, name):
        yield from _flat(document, None, 0)


def mapping(value: object) -> Mapping[Any, Any]:
    """`value` when it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: object) -> list[Any]:
    """`value` when it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def word(value: object) -> str | None:
    """`value` when it is text that says something."""
    return value.strip() or None if isinstance(value, str) else None


def _documents(text: str, name: str) -> Iterator[object]:
    if text[0] in "{[":
        yield from _json(text, name)
        return
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and re.match(r"NAME\s+STATUS\b.*\bLABELS\s*$", lines[0]):
        yield from _table(lines[1:])
        return
    if any(re.match(r"(Labels|Capacity|Allocatable):", line) for line in lines) and not re.search(
        r"^(apiVersion|kind):", text, re.MULTILINE
    ):
        yield from _described(text)
        return
    labels = dict(pair for line in lines if (pairs := _assignments(line)) is not None for pair in pairs)
    if labels and all(_assignments(line) is not None for line in lines):
        yield labels
        return
    try:
        for part in re.split(r"^---(?:\s.*)?$", text, flags=re.MULTILINE):
            if part.strip():
                yield facts.parse_yaml(part, name)
    except AimError as err:
        raise InvalidInput(f"{name} is neither JSON, YAML nor a list of labels", why=err.why, hint=_HINT) from err
    except (ValueError, TypeError, RecursionError, LookupError) as err:
        raise InvalidInput(
            f"{name} is neither JSON, YAML nor a list of labels", why=str(err)[:200], hint=_HINT
        ) from err


def _json(text: str, name: str) -> Iterator[object]:
    """One document after another, as `kubectl` prints them when it is called more than once."""
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        try:
            document, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as err:
            raise Corrupt(
                f"{name} is cut off or no JSON", why=str(err)[:200] or "it is nested too deeply", hint=_HINT
            ) from err
        yield document
        while position < len(text) and text[position] in " \t\r\n,\0":
            position += 1


def _assignments(line: str) -> list[tuple[str, str]] | None:
    """`key=value`, or several of them with commas; None for anything else."""
    parts = [part.strip() for part in line.strip().rstrip(",").split(",")]
    matches = [_ASSIGNMENT.fullmatch(part) for part in parts]
    if not all(matches):
        return None
    return [(match["key"], match["value"]) for match in matches if match is not None]


def _table(lines: list[str]) -> Iterator[object]:
    """`kubectl get nodes --show-labels`."""
    for line in lines:
        parts = line.split()
        pairs = _assignments(parts[-1]) if len(parts) > 1 else None
        if pairs is not None:
            conditions = [{"type": "Ready", "status": "True" if parts[1].split(",")[0] == "Ready" else "False"}]
            yield {
                "kind": "Node",
                "metadata": {"name": parts[0], "labels": dict(pairs)},
                "spec": {"unschedulable": "SchedulingDisabled" in parts[1]},
                "status": {"conditions": conditions},
            }


def _described(text: str) -> Iterator[object]:
    """`kubectl describe node`, whole or in part: labels, taints, capacity, allocatable and what is requested."""
    for part in re.split(r"^(?=Name:)", text, flags=re.MULTILINE):
        sections: dict[str, list[str]] = {}
        current = ""
        for line in part.splitlines():
            head = re.match(r"([A-Z][\w ]*?):(.*)", line)
            if head:
                current = head[1]
                sections[current] = [head[2].strip()]
            elif line.startswith((" ", "\t")) and current:
                sections[current].append(line.strip())
        if not any(sections.get(name) for name in ("Labels", "Capacity", "Allocatable")):
            continue
        labels = dict(pair for line in sections.get("Labels", []) for pair in _assignments(line) or ())
        status = {
            name.lower(): {
                key: value.strip() for line in sections[name] for key, colon, value in [line.partition(":")] if colon
            }
            for name in ("Capacity", "Allocatable")
            if name in sections
        }
        rows = [line.split() for line in sections.get("Allocated resources", [])]
        taints = [
            {"key": match[1], "value": match[2] or "", "effect": match[3]}
            for line in sections.get("Taints", [])
            if (match := re.fullmatch(r"([^=:\s]+)(?:=([^:]*))?:(\w+)", line))
        ]
        yield {
            "kind": "Node",
            "metadata": {"name": (sections.get("Name") or [""])[0], "labels": labels},
            "spec": {"unschedulable": (sections.get("Unschedulable") or [""])[0] == "true", "taints": taints},
            "status": status,
            "requested": {row[0]: row[1] for row in rows if len(row) >= 2 and row[0].startswith("amd.com/")},
        }


def _flat(document: object, kind: str | None, depth: int) -> Iterator[tuple[str, Object]]:
    """Objects of a document with their kinds: lists are opened, labels without a node get one."""
    if depth > 4:
        return
    if isinstance(document, list):
        for each in document:
            yield from _flat(each, kind, depth + 1)
        return
    if not isinstance(document, Mapping):
        return
    named = word(document.get("kind")) or kind
    if isinstance(document.get("items"), list):
        inner = named.removesuffix("List") if named and named not in ("List", "Table") else None
        for each in document["items"]:
            yield from _flat(each, inner or None, depth + 1)
        return
    if named is not None:
        yield named, document
        return
    metadata, spec, status = (mapping(document.get(part)) for part in ("metadata", "spec", "status"))
    if "containers" in spec:
        yield "Pod", document
    elif "labels" in metadata or "allocatable" in status or "capacity" in status:
        yield "Node", document
    elif _are_labels(document.get("labels")):
        yield "Node", {"metadata": {"name": document.get("name"), "labels": document["labels"]}, "status": document}
    elif _are_labels(document):
        yield "Node", {"metadata": {"labels": document}}
    else:
        for name, inner in document.items():
            if isinstance(inner, Mapping) and not isinstance(inner.get("items"), list):
                yield from _named(str(name), inner)


def _named(name: str, inner: Object) -> Iterator[tuple[str, Object]]:
    """A node under its name: its labels, or labels with numbers beside them."""
    if _are_labels(inner):
        yield "Node", {"metadata": {"name": name, "labels": inner}}
    elif _are_labels(inner.get("labels")):
        yield "Node", {"metadata": {"name": name, "labels": inner["labels"]}, "status": inner}


def _are_labels(value: object) -> bool:
    """A map of plain values, one of whose keys is a label that we know the like of."""
    if not isinstance(value, Mapping) or not value:
        return False
    plain = all(isinstance(each, str | int | float | bool) or each is None for each in value.values())
    return plain and any(isinstance(key, str) and _KNOWN.search(key) and _LABEL.fullmatch(key) for key in value)
