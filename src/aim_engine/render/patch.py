"""Changes of one's own to rendered YAML, instead of a fork of it: single values, merges and JSON patches.

A merge is strategic for Kubernetes objects: mappings merge, null deletes, and the lists whose entries have a name or path
merge by it, as kubectl does. Source: Kubernetes API conventions, x-kubernetes-patch-merge-key of the fields in `_MERGE_KEYS`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.render import document, text
from aim_engine.render.artifact import Artifact

_MERGE_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "imagePullSecrets": ("name",),
    "ports": ("containerPort", "port"),
    "topologySpreadConstraints": ("topologyKey",),
    "resourceClaims": ("name",),
}
"""List -> the key that tells its entries apart; all other lists are replaced whole."""
_STEP = re.compile(r"((?:[^.\[\]\\]|\\.)+)|\[([^\]]*)\]")


class Patch(msgspec.Struct, frozen=True, kw_only=True):
    """One change, and where it was asked for."""

    origin: str
    kind: str | None = None
    """Kubernetes kind of the object to change; None is the only document of the target."""
    name: str | None = None
    merge: dict[str, Any] | None = None
    operations: tuple[dict[str, Any], ...] = ()
    """JSON patch, RFC 6902."""


def read(content: str, origin: str) -> tuple[Patch, ...]:
    """The patches of a file: objects to merge, or `{target: {kind, name}, patch: [operations]}` as kustomize has it.

    Raises: InvalidInput.
    """
    documents, repeated = document.read(content, origin)
    if repeated:
        raise InvalidInput(f"{origin}: {repeated[0].message}", hint=repeated[0].remedy)
    found = []
    for entry in documents:
        if not isinstance(entry, dict):
            raise InvalidInput(
                f"{origin} holds no patch", why="a patch is a mapping", hint="kind, metadata.name and changes"
            )
        if set(entry) == {"target", "patch"} and isinstance(entry["patch"], list):
            target = document.mapping(entry["target"])
            operations = tuple(document.mappings(entry["patch"]))
            found.append(Patch(origin=origin, kind=target.get("kind"), name=target.get("name"), operations=operations))
        else:
            name = document.get(entry, "metadata", "name")
            found.append(Patch(origin=origin, kind=entry.get("kind"), name=name, merge=entry))
    return tuple(found)


def apply(artifacts: Sequence[Artifact], values: Sequence[str], patches: Sequence[Patch]) -> tuple[Artifact, ...]:
    """`artifacts` with `patches` and then the `path=value` words applied to their YAML; comments at the top stay.

    Where there are several files, a path begins with the file's name without suffix, as in `deployment.spec.replicas=3`.
    Raises: InvalidInput when a change finds nothing to change.
    """
    if not values and not patches:
        return tuple(artifacts)
    loaded = {
        artifact.path: document.read(artifact.content, artifact.path)[0][0]
        for artifact in artifacts
        if artifact.is_yaml
    }
    if not loaded:
        raise InvalidInput(
            "there is no YAML to patch", why="this target writes none", hint="--env and --arg change any target"
        )
    before = copy.deepcopy(loaded)
    for patch in patches:
        path = _object(loaded, patch)
        if patch.merge is not None:
            loaded[path] = merged(loaded[path], patch.merge)
        for operation in patch.operations:
            loaded[path] = operated(loaded[path], operation, patch.origin)
    for word in values:
        _set(loaded, word)
    return tuple(
        msgspec.structs.replace(artifact, content=_head(artifact.content) + text.yaml_document(loaded[artifact.path]))
        if artifact.path in loaded and loaded[artifact.path] != before[artifact.path]
        else artifact
        for artifact in artifacts
    )


def _head(content: str) -> str:
    lines = content.splitlines(keepends=True)
    end = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:end])


def _object(loaded: dict[str, Any], patch: Patch) -> str:
    matching = [
        path
        for path, value in loaded.items()
        if (patch.kind is None or value.get("kind") == patch.kind)
        and (patch.name is None or document.get(value, "metadata", "name") == patch.name)
    ]
    if len(matching) != 1:
        wanted = f"{patch.kind or 'object'} {patch.name or ''}".strip()
        found = sorted(
            f"{value.get('kind', 'document')} {document.get(value, 'metadata', 'name') or ''}".strip()
            for value in loaded.values()
        )
        raise InvalidInput(
            f"the patch {patch.origin} is for {wanted}, of which there are {len(matching)}",
            why=f"written are: {', '.join(found)}",
        )
    return matching[0]


def merged(value: Any, patch: Any, field: str = "") -> Any:
    """`value` changed by the strategic merge `patch`; `field` is the name of the list that they are."""
    if isinstance(value, dict) and isinstance(patch, dict):
        directive = patch.get("$patch")
        if directive == "replace":
            return {key: entry for key, entry in patch.items() if key != "$patch"}
        found = dict(value)
        for key, entry in patch.items():
            if entry is None:
                found.pop(key, None)
            elif key != "$patch":
                found[key] = merged(found[key], entry, key) if key in found else _without_nulls(entry)
        return found
    if isinstance(value, list) and isinstance(patch, list) and field in _MERGE_KEYS:
        return _merged_list(value, patch, _MERGE_KEYS[field])
    return _without_nulls(patch)


def _merged_list(value: list[Any], patch: list[Any], keys: tuple[str, ...]) -> list[Any]:
    found = list(value)
    for entry in patch:
        key = next((key for key in keys if isinstance(entry, dict) and key in entry), None)
        if key is None:
            raise InvalidInput(f"an entry to merge has no {' or '.join(keys)}", why=f"it is {entry!r:.200}")
        place = next((i for i, old in enumerate(found) if isinstance(old, dict) and old.get(key) == entry[key]), None)
        if entry.get("$patch") == "delete":
            found = [old for index, old in enumerate(found) if index != place]
        elif place is None:
            found.append(_without_nulls(entry))
        else:
            found[place] = merged(found[place], entry)
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None and key != "$patch"}
    return value


def operated(value: Any, operation: dict[str, Any], origin: str) -> Any:
    """`value` after one operation of a JSON patch. Raises: InvalidInput when it cannot be done.

    Source: RFC 6902 section 4, RFC 6901 section 4.
    """
    kind, path = operation.get("op"), operation.get("path")
    needed = {"add": "value", "replace": "value", "test": "value", "remove": "path", "move": "from", "copy": "from"}
    if kind not in needed or not isinstance(path, str) or needed[str(kind)] not in operation:
        raise InvalidInput(f"{origin}: {operation!r:.200} is no operation of a JSON patch", hint="op, path and value")
    try:
        found = copy.deepcopy(value)
        if kind == "test":
            if _taken(found, path, remove=False) != operation["value"]:
                raise InvalidInput(f"{origin}: the test of {path} failed")
            return found
        new = operation.get("value")
        if kind in ("move", "copy"):
            new = copy.deepcopy(_taken(found, str(operation["from"]), remove=kind == "move"))
        if kind in ("remove", "replace"):
            _taken(found, path, remove=kind == "remove" or bool(path))
        return found if kind == "remove" else _added(found, path, new)
    except (KeyError, IndexError, ValueError, TypeError) as err:
        raise InvalidInput(f"{origin}: there is no {path} to {kind}", hint="paths look like /spec/replicas") from err


def _tokens(pointer: str) -> list[str]:
    if pointer and not pointer.startswith("/"):
        raise ValueError(pointer)
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def _taken(root: Any, pointer: str, *, remove: bool) -> Any:
    holder: Any = None
    key: Any = None
    value = root
    for token in _tokens(pointer):
        holder, key = value, _position(token) if isinstance(value, list) else token
        value = holder[key]
    if remove:
        del holder[key]
    return value


def _added(root: Any, pointer: str, value: Any) -> Any:
    tokens = _tokens(pointer)
    if not tokens:
        return value
    holder = root
    for token in tokens[:-1]:
        holder = holder[_position(token) if isinstance(holder, list) else token]
    if isinstance(holder, list):
        place = len(holder) if tokens[-1] == "-" else _position(tokens[-1])
        if place > len(holder):
            raise IndexError(place)
        holder.insert(place, value)
    else:
        holder[tokens[-1]] = value
    return root


def _position(token: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]*", token):
        raise ValueError(token)
    return int(token)


def _set(loaded: dict[str, Any], word: str) -> None:
    path, equals, written = word.partition("=") if "[" not in word.partition("=")[0] else _split_after_brackets(word)
    steps = _steps(path)
    if not equals or not steps:
        raise InvalidInput(f"--set '{word}' is no path=value", hint="--set deployment.spec.replicas=3")
    root: Any
    if len(loaded) == 1:
        (root,) = loaded.values()
    else:
        files = _file_names(loaded)
        if steps[0] not in files or len(steps) == 1:
            meant = [f"{name}.{path}" for name, file in sorted(files.items()) if _leads_somewhere(loaded[file], steps)]
            hint = f"--set {meant[0]}=..." if meant else f"begin with one of {', '.join(sorted(files))}"
            raise InvalidInput(f"--set '{path}' names no file", why="there are several", hint=hint)
        root, steps = loaded[files[str(steps[0])]], steps[1:]
    value = document.read(written, f"--set {path}")[0] if written.strip() else [""]
    _put(root, steps, value[0] if value else None, path)


def _leads_somewhere(value: Any, steps: list[str | tuple[str, str] | int]) -> bool:
    """Is there something at this path already?"""
    for step in steps:
        if isinstance(step, str):
            if not isinstance(value, dict) or step not in value:
                return False
            value = value[step]
        elif (index := _index(value, step)) is None:
            return False
        else:
            value = value[index]
    return True


def _file_names(loaded: dict[str, Any]) -> dict[str, str]:
    """What each file is called in a path: its name without suffix, with its folders where several have that name."""
    short = [PurePosixPath(file).stem for file in loaded]
    return {
        name if short.count(name) == 1 else str(PurePosixPath(file).with_suffix("")): file
        for name, file in zip(short, loaded, strict=True)
    }


def _split_after_brackets(word: str) -> tuple[str, str, str]:
    match = re.match(r"((?:\[[^\]]*\]|[^=\[])*)(=)(.*)", word, re.DOTALL)
    return (match.group(1), match.group(2), match.group(3)) if match else (word, "", "")


def _steps(path: str) -> list[str | tuple[str, str] | int]:
    """Keys, `[0]` positions and `[name=x]` choices of a path; a dot in a key is written `\\.`."""
    found: list[str | tuple[str, str] | int] = []
    rest = path
    while rest:
        rest = rest.removeprefix(".") if found else rest
        match = _STEP.match(rest)
        if match is None:
            raise InvalidInput(f"--set cannot read the path '{path}'", hint="keys.with.dots\\.escaped, [0] or [name=x]")
        key, inside = match.groups()
        if key is not None:
            found.append(re.sub(r"\\(.)", r"\1", key))
        elif inside.isdecimal():
            found.append(int(inside))
        else:
            name, equals, value = inside.partition("=")
            if not equals:
                raise InvalidInput(f"--set cannot read '[{inside}]' in '{path}'", hint="[0] or [name=x]")
            found.append((name, value))
        rest = rest[match.end() :]
    return found


def _put(root: Any, steps: list[str | tuple[str, str] | int], value: Any, path: str) -> None:
    holder = root
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        if isinstance(step, str):
            if not isinstance(holder, dict):
                raise InvalidInput(f"--set {path}: there is no '{step}' in a list or a plain value")
            key: Any = step
            if not last and holder.get(key) is None:
                holder[key] = {}
        else:
            key = _index(holder, step)
            if key is None:
                shown = "=".join(step) if isinstance(step, tuple) else step
                raise InvalidInput(f"--set {path}: there is no entry [{shown}]", hint=_entries(holder, step))
        if last:
            holder[key] = value
        else:
            holder = holder[key]


def _entries(holder: Any, step: tuple[str, str] | int) -> str | None:
    """What may be chosen instead."""
    if not isinstance(holder, list):
        return "brackets choose an entry of a list, and there is none at this place"
    if isinstance(step, int):
        return f"there are {len(holder)}, the first is [0]"
    known = [str(entry[step[0]]) for entry in holder if isinstance(entry, dict) and step[0] in entry]
    return f"[{step[0]}=...] is one of {', '.join(known)}" if known else f"no entry there has a {step[0]}"


def _index(holder: Any, step: tuple[str, str] | int) -> int | None:
    if not isinstance(holder, list):
        return None
    if isinstance(step, int):
        return step if step < len(holder) else None
    name, wanted = step
    return next(
        (i for i, entry in enumerate(holder) if isinstance(entry, dict) and str(entry.get(name)) == wanted), None
    )
