"""Programs among a model's files, and which of them a person approved: by the checksum of their content, for one model.

Python files and pickles run on whoever loads them. A view holds such a file only when exactly this content was approved; a file that
changed is another content, so it waits for its own approval. Approvals are files in the store: every node that uses it sees them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from aim_engine.cache import layout, locks, names, safety
from aim_engine.cache.layout import Store, typed
from aim_engine.cache.manifest import Revision
from aim_engine.errors import InvalidInput

_MAX_CONFIG_BYTES = 16 << 20


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """Content that somebody read and trusts."""

    sha256: str
    path: str = ""
    """Its name when it was approved; empty when only its checksum was given."""
    git_oid: str | None = None
    """Git's name for it, by which a hub lists small files."""
    at: float
    """Seconds since 1970, by the store's clock."""


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a model that runs code, and whether it may."""

    path: str
    size_bytes: int
    sha256: str
    address: str
    """Where it can be read."""
    approved: bool


class _Approvals(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-approvals/v1"):
    model_id: str
    approved: tuple[Approval, ...] = ()


def of(store: Store, model_id: str) -> tuple[Approval, ...]:
    """What was approved of a model."""
    try:
        return msgspec.json.decode(_place(store, model_id).read_bytes(), type=_Approvals).approved
    except (OSError, msgspec.DecodeError):
        return ()


def checksums(approvals: Iterable[Approval]) -> frozenset[str]:
    """The checksums by which a listing may name approved content: sha256, and git's."""
    return frozenset(name for each in approvals for name in (each.sha256, each.git_oid) if name is not None)


def approve(store: Store, model_id: str, new: Collection[Approval]) -> None:
    """Remember approvals; what was approved before keeps its date. Raises: InvalidInput, Unreachable."""
    for each in new:
        names.require_sha256(each.sha256)
    _change(store, model_id, add=new)


def revoke(store: Store, model_id: str, which: Collection[str]) -> tuple[Approval, ...]:
    """Take approvals back, by path or checksum, or all when none is named; gives those that were. Raises: InvalidInput."""
    before = of(store, model_id)
    gone = tuple(each for each in before if not which or each.path in which or each.sha256 in which)
    unknown = [name for name in which if not any(name in (each.path, each.sha256) for each in gone)]
    if unknown:
        raise InvalidInput(
            f"{unknown[0]} of {model_id} was not approved", hint=f"aim-engine cache approve {model_id} lists what was"
        )
    _change(store, model_id, drop={each.sha256 for each in gone})
    return gone


def unapproved(store: Store, revision: Revision) -> tuple[str, ...]:
    """Paths of a stored revision that run code and that nobody approved."""
    programs = [file for file in revision.files if safety.runs_code(file.path)]
    if not programs:
        return ()
    allowed = {each.sha256 for each in of(store, revision.model_id)}
    return tuple(file.path for file in programs if file.sha256 not in allowed)


def lacking(folder: Path) -> tuple[str, ...]:
    """Python files that a model's configuration names and its folder does not hold.

    Source: transformers dynamic_module_utils.py get_class_from_dynamic_module: auto_map values are `module.Class`, or
    `owner/repository--module.Class` for another repository's.
    """
    wanted: set[str] = set()
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        wanted |= _named(folder / name)
    return tuple(sorted(path for path in wanted if not (folder / path).is_file()))


def _named(config: Path) -> set[str]:
    try:
        if config.stat().st_size > _MAX_CONFIG_BYTES:
            return set()
        document = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return set()
    table = document.get("auto_map") if isinstance(document, dict) else None
    if not isinstance(table, dict):
        return set()
    found = set()
    for value in table.values():
        for each in value if isinstance(value, list) else [value]:
            module, _, name = each.partition(".") if isinstance(each, str) else ("", "", "")
            if module and name and "--" not in each and "/" not in each:
                found.add(f"{module}.py")
    return found


def _change(store: Store, model_id: str, *, add: Collection[Approval] = (), drop: Collection[str] = ()) -> None:
    place = _place(store, model_id)
    with locks.held(store, "approvals"), typed(place):
        kept = {each.sha256: each for each in of(store, model_id) if each.sha256 not in drop}
        for each in add:
            known = kept.get(each.sha256)
            if known is None or (not known.path and each.path):
                kept[each.sha256] = each
        place.parent.mkdir(mode=0o700, exist_ok=True)
        ordered = tuple(sorted(kept.values(), key=lambda each: (each.path, each.sha256)))
        if ordered:
            layout.write(place, msgspec.json.encode(_Approvals(model_id=model_id, approved=ordered)))
        else:
            place.unlink(missing_ok=True)


def _place(store: Store, model_id: str) -> Path:
    return store.path("pins", "approved", f"{names.folder(model_id)}.json")
