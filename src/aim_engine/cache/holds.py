"""Why a model must stay: pinned by a person, named by a saved plan, or leased by a running deployment or download.

Holds are files in the store, so that every node sees them and losing the index loses none. A lease ends when its holder does:
the process is gone and its deployment's record no longer exists. A plan's hold ends with the plan's file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine.cache import layout, locks, names, process
from aim_engine.cache.layout import Store, typed
from aim_engine.errors import InvalidInput

Priority = Literal["critical", "normal", "opportunistic"]


class Standing(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-standing/v1"):
    """What a person said of a model."""

    model_id: str
    pinned: bool = False
    priority: Priority = "normal"


class Lease(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-lease/v1"):
    """A use of a revision that must not be disturbed."""

    model_id: str
    commit: str
    holder: str
    """Name of the deployment, or what a process does."""
    by: process.Process
    records: str | None = None
    """Folder of deployments; the use goes on while one there is called as the holder, or as a replica of it."""
    digests: tuple[str, ...] = ()
    """Content that is held beyond what the revision lists."""


def standing(store: Store, model_id: str) -> Standing:
    """What was said of a model; the default when nothing was."""
    try:
        return msgspec.json.decode(_standing_path(store, model_id).read_bytes(), type=Standing)
    except (OSError, msgspec.DecodeError):
        return Standing(model_id=model_id)


def stand(store: Store, said: Standing) -> None:
    """Remember what was said of a model. Raises: Unreachable."""
    place = _standing_path(store, said.model_id)
    with typed(place):
        if said == Standing(model_id=said.model_id):
            place.unlink(missing_ok=True)
        else:
            layout.write(place, msgspec.json.encode(said))


def standings(store: Store) -> dict[str, Standing]:
    """Everything that was said, by model."""
    found = {}
    for path in sorted(store.path("pins").glob("models--*.json")):
        model_id = names.model_id(path.stem)
        if model_id is not None:
            found[model_id] = standing(store, model_id)
    return found


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """Most that some models may take together."""

    pattern: str
    """Of model ids, such as `Qwen/*`."""
    limit_bytes: int


def quotas(store: Store) -> tuple[Quota, ...]:
    """All quotas, by pattern."""
    try:
        found = msgspec.json.decode(store.path("pins", "quotas.json").read_bytes(), type=list[Quota])
    except (OSError, msgspec.DecodeError):
        return ()
    return tuple(sorted(found, key=lambda quota: quota.pattern))


def set_quota(store: Store, pattern: str, limit_bytes: int | None) -> None:
    """Limit the models of a pattern, or no longer. Raises: InvalidInput, Unreachable."""
    if not pattern or len(pattern) > 200 or any(letter.isspace() or ord(letter) < 32 for letter in pattern):
        raise InvalidInput(f"'{pattern[:200]}' is not a pattern of model ids", hint="for example 'Qwen/*'")
    if limit_bytes is not None and limit_bytes < 0:
        raise InvalidInput("a quota cannot be negative", hint="give 0 or more")
    place = store.path("pins", "quotas.json")
    with locks.held(store, "quotas"), typed(place):
        kept = [quota for quota in quotas(store) if quota.pattern != pattern]
        if limit_bytes is not None:
            kept.append(Quota(pattern=pattern, limit_bytes=limit_bytes))
        layout.write(place, msgspec.json.encode(kept))


def lease(store: Store, taken: Lease) -> Path:
    """Hold a revision; the path ends it when it is removed. Raises: Unreachable."""
    digest = hashlib.sha256(f"{taken.holder} {taken.model_id} {taken.commit} {taken.by.pid}".encode()).hexdigest()[:16]
    place = store.path("leases", _node(), f"{digest}.json")
    with typed(place):
        with layout.inside(store.root, "leases", _node(), create=True):
            pass
        layout.write(place, msgspec.json.encode(taken))
    return place


class PlanHold(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-plan-hold/v1"):
    """A saved plan, and the models it needs."""

    plan: str
    """Its file, absolute."""
    node: str
    models: tuple[tuple[str, str], ...]
    """Model and revision of each: its own, a draft model, adapters."""


def hold_for_plan(store: Store, plan: Path, models: tuple[tuple[str, str], ...]) -> None:
    """Keep models while a plan's file is there and names them. Raises: InvalidInput, Unreachable."""
    for model_id, revision in models:
        names.require_model_id(model_id)
        names.require_revision(revision)
    path = str(plan.expanduser().absolute())
    place = store.path("pins", "plans", f"{hashlib.sha256(f'{_node()} {path}'.encode()).hexdigest()[:16]}.json")
    with typed(place):
        place.parent.mkdir(mode=0o700, exist_ok=True)
        layout.write(place, msgspec.json.encode(PlanHold(plan=path, node=_node(), models=models)))


def plan_holds(store: Store) -> tuple[PlanHold, ...]:
    """The plans that hold models, each with those that it still names; a plan of this node whose file is gone holds none any more."""
    found = []
    for path in sorted(store.path("pins", "plans").glob("*.json")):
        try:
            said = msgspec.json.decode(path.read_bytes(), type=PlanHold)
        except (OSError, msgspec.DecodeError):
            continue
        if said.node == _node():
            try:
                text = Path(said.plan).read_bytes()
            except OSError:
                with contextlib.suppress(OSError):  # a read-only store keeps the note, which holds nothing
                    path.unlink(missing_ok=True)
                continue
            said = msgspec.structs.replace(said, models=tuple(each for each in said.models if each[0].encode() in text))
        found.append(said)
    return tuple(found)


@contextmanager
def held(store: Store, model_id: str, commit: str, doing: str, digests: tuple[str, ...] = ()) -> Iterator[None]:
    """Hold a revision, and content that is to become part of it, while this process is at it."""
    path = lease(store, Lease(model_id=model_id, commit=commit, holder=doing, by=process.me(), digests=digests))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def release(store: Store, holder: str) -> None:
    """End this node's leases of a holder."""
    for path in store.path("leases", _node()).glob("*.json"):
        found = _read(path)
        if found is not None and found.holder == holder:
            path.unlink(missing_ok=True)


def leases(store: Store) -> tuple[Lease, ...]:
    """The leases in force; those of this node whose holder is gone are removed."""
    found = []
    for path in sorted(store.path("leases").glob("*/*.json")):
        taken = _read(path)
        if taken is None:
            continue
        if process.is_gone(taken.by) and not _is_recorded(taken):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            continue
        found.append(taken)
    return tuple(found)


def _is_recorded(taken: Lease) -> bool:
    return taken.records is not None and any(Path(taken.records).glob(f"{taken.holder}*/deployment.json"))


def _read(path: Path) -> Lease | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Lease)
    except (OSError, msgspec.DecodeError):
        return None


def _standing_path(store: Store, model_id: str) -> Path:
    return store.path("pins", f"{names.folder(model_id)}.json")


def _node() -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in os.uname().nodename) or "node"
