"""Which cached models their sources have newer versions of, and what a new version would change. Nothing is fetched or replaced."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import msgspec

from aim_engine.cache import acquire, hub, names
from aim_engine.cache.faults import RateLimited
from aim_engine.errors import AimError

if TYPE_CHECKING:
    from aim_engine.cache.manager import ModelCacheManager

TTL_S = 3600.0
"""For so long an answer counts: branches move rarely, and hubs count requests."""
Kind = Literal["weights", "tokenizer", "configuration", "other"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a new version changes."""

    path: str
    how: Literal["added", "changed", "removed"]
    kind: Kind
    size_bytes: int


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """How a branch of a model stands."""

    model_id: str
    ref: str
    have: str
    """Commit in the cache."""
    newest: str
    asked: bool
    """Was the source asked just now?"""
    changes: tuple[Change, ...] = ()
    fetch_bytes: int = 0
    """What fetching it would take, after what is here already."""
    fault: str = ""
    """Why the source gave no answer."""

    @property
    def outdated(self) -> bool:
        """Is there a newer version?"""
        return self.have != self.newest

    def describe(self) -> str:
        """One line for people."""
        if self.fault:
            return f"{self.model_id} ({self.ref}): not known: {self.fault}"
        if not self.outdated:
            return f"{self.model_id} ({self.ref}): up to date"
        kinds = ", ".join(sorted({change.kind for change in self.changes})) or "nothing that an engine loads"
        return f"{self.model_id} ({self.ref}): {self.have[:12]} -> {self.newest[:12]} changes {kinds}"


def check(manager: ModelCacheManager, models: Collection[str] = (), *, ttl_s: float = TTL_S) -> tuple[Update, ...]:
    """Ask for each branch that a model was fetched by, once, unless that was done within `ttl_s`. Raises: RateLimited."""
    client = manager.client()
    found = []
    for known in manager.revisions():
        model_id, commit = known.revision.model_id, known.revision.commit
        if models and model_id not in models:
            continue
        for ref in known.refs:
            last = manager.index.last_check(model_id, ref)
            now = time.time()
            if last is not None and 0 <= now - last[1] < ttl_s and last[0] == commit:
                found.append(Update(model_id=model_id, ref=ref, have=commit, newest=last[0], asked=False))
                continue
            try:
                plan = acquire.plan(
                    manager.store, manager.index, client, manager.sources, model_id, ref, approved=_all(known.revision)
                )
            except RateLimited:
                raise
            except AimError as err:
                found.append(Update(model_id=model_id, ref=ref, have=commit, newest=commit, asked=True, fault=str(err)))
                continue
            manager.index.remember_check(model_id, ref, plan.commit, now)
            found.append(
                Update(
                    model_id=model_id,
                    ref=ref,
                    have=commit,
                    newest=plan.commit,
                    asked=True,
                    changes=_changes({file.path: file.sha256 for file in known.revision.files}, plan),
                    fetch_bytes=plan.missing_bytes,
                )
            )
    return tuple(found)


def _all(revision: object) -> Collection[str]:
    """Pickles that were approved for the version that is here say nothing against looking at a new one."""
    files = getattr(revision, "files", ())
    return {file.sha256 for file in files if names.is_sha256(file.sha256)}


def _changes(have: dict[str, str], plan: acquire.Plan) -> tuple[Change, ...]:
    found = []
    for file in plan.files:
        now = plan.present.get(file.path, file.sha256)
        if file.path not in have:
            found.append(Change(path=file.path, how="added", kind=_kind(file.path), size_bytes=file.size_bytes))
        elif now != have[file.path]:
            found.append(Change(path=file.path, how="changed", kind=_kind(file.path), size_bytes=file.size_bytes))
    gone = have.keys() - {file.path for file in plan.files}
    found += [Change(path=path, how="removed", kind=_kind(path), size_bytes=0) for path in gone]
    return tuple(sorted(found, key=lambda change: change.path)) if plan.commit else ()


def _kind(path: str) -> Kind:
    name = path.rsplit("/", 1)[-1]
    if hub.is_weight(path) or name.endswith(".safetensors.index.json"):
        return "weights"
    if name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")):
        return "tokenizer"
    return "configuration" if name.endswith((".json", ".jinja")) else "other"
