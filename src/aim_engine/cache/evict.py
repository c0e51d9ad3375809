"""What goes when room is needed: chosen from values, shown, then applied.

A revision that is pinned, leased, named by a saved plan, needed within a day or open in a process never goes. Of the others, those go first that were used least, where a use
counts half after ten days: on a synthetic trace of 4,000 deployments that lost a tenth less time to fetching than the oldest first.
Content goes with its last revision, first into the trash, from where it comes back at no cost.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fnmatch
from collections.abc import Collection
from pathlib import Path

import msgspec

from aim_engine.cache import approval, holds, layout, locks, safety, schedule, space, views
from aim_engine.cache.faults import NoSpace
from aim_engine.cache.holds import Priority
from aim_engine.cache.index import Index
from aim_engine.cache.layout import Store
from aim_engine.errors import InvalidInput
from aim_engine.units import format_bytes

_DAY_S = 86_400.0
HALF_LIFE_S = 10 * _DAY_S
GRACE_S = _DAY_S
"""How long removed content stays in the trash unless its room is needed."""
_WEIGHT: dict[Priority, float] = {"critical": 1000.0, "normal": 1.0, "opportunistic": 0.001}


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A revision, judged."""

    model_id: str
    commit: str
    content: dict[str, int]
    """sha256 -> bytes."""
    idle_s: float
    uses: float
    priority: Priority = "normal"
    held: tuple[str, ...] = ()
    """Reasons for which it must stay."""

    @property
    def score(self) -> float:
        """Worth of keeping it: aged uses times the weight of its class."""
        return max(self.uses, 1.0) * float(0.5 ** (self.idle_s / HALF_LIFE_S)) * _WEIGHT[self.priority]


class Eviction(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-eviction/v1"):
    """What will go."""

    revisions: tuple[Candidate, ...]
    digests: tuple[str, ...]
    """Content that no remaining revision has."""
    freed_bytes: int


def choose(
    candidates: Collection[Candidate],
    *,
    target_bytes: int = 0,
    older_than_s: float | None = None,
    orphans: dict[str, int] | None = None,
) -> Eviction:
    """The cheapest revisions to lose until so many bytes are free, or all idle for longer than `older_than_s`.

    `orphans` is content of no revision, which goes first. Frees less than asked when all that is left is held.
    """
    left = {(each.model_id, each.commit): each for each in candidates}
    users: dict[str, int] = {}
    for each in candidates:
        for sha256 in each.content:
            users[sha256] = users.get(sha256, 0) + 1
    digests = dict(sorted((orphans or {}).items()))
    freed = sum(digests.values())
    gone: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.score, each.model_id, each.commit)):
        if each.held:
            continue
        if older_than_s is not None:
            if each.idle_s <= older_than_s:
                continue
        elif freed >= target_bytes:
            break
        del left[each.model_id, each.commit]
        gone.append(each)
        for sha256, size in each.content.items():
            users[sha256] -= 1
            if users[sha256] == 0:
                digests[sha256] = size
                freed += size
    return Eviction(revisions=tuple(gone), digests=tuple(digests), freed_bytes=freed)


def candidates(store: Store, index: Index, *, in_use: Collection[str] = ()) -> tuple[Candidate, ...]:
    """Every revision with the reasons that hold it. `in_use` are models that some process has open."""
    index.refresh()
    now_s = store.now_s()
    said = holds.standings(store)
    needed = schedule.needed(store, now_s)
    packed = {path.stem: path.stat().st_size for path in store.path("packed").glob("*.planes")}
    leased: dict[tuple[str, str], list[str]] = {}
    for taken in holds.leases(store):
        leased.setdefault((taken.model_id, taken.commit), []).append(f"leased by {taken.holder} on {taken.by.node}")
    for plan in holds.plan_holds(store):
        for model_id, ref in plan.models:
            commit = views.ref(store, model_id, ref)
            if commit is not None:
                leased.setdefault((model_id, commit), []).append(f"named by the plan {plan.plan} on {plan.node}")
    found = []
    for known in index.revisions():
        revision = known.revision
        standing = said.get(revision.model_id, holds.Standing(model_id=revision.model_id))
        held = [*(["pinned"] if standing.pinned else []), *leased.get((revision.model_id, revision.commit), [])]
        if revision.model_id in in_use:
            held.append("open in a process")
        start_s = needed.get(revision.model_id)
        if start_s is not None and start_s - now_s <= schedule.HOLD_AHEAD_S:
            held.append(f"scheduled for {dt.datetime.fromtimestamp(start_s, dt.UTC):%Y-%m-%d %H:%M} UTC")
        found.append(
            Candidate(
                model_id=revision.model_id,
                commit=revision.commit,
                content={file.sha256: packed.get(file.sha256, file.size_bytes) for file in revision.files},
                idle_s=max(0.0, now_s - known.last_use),
                uses=known.uses,
                priority=standing.priority,
                held=tuple(held),
            )
        )
    return tuple(found)


def why(store: Store, index: Index, sha256: str, *, in_use: Collection[str] = ()) -> tuple[str, ...]:
    """Every reason for which content is kept, or will go. `sha256` may be its first digits. Raises: InvalidInput."""
    index.refresh()
    full = [each for each in index.blobs() if each.startswith(sha256)]
    if len(full) != 1 or not sha256:
        raise InvalidInput(
            f"'{sha256[:64]}' names {len(full) if sha256 else 'no'} stored files",
            hint="aim-engine cache ls --files shows their checksums",
        )
    by_revision = {(each.model_id, each.commit): each for each in candidates(store, index, in_use=in_use)}
    reasons = []
    for model_id, commit, path in index.users(full[0]):
        each = by_revision[model_id, commit]
        kept = "; ".join(each.held) or f"may go, worth {each.score:.3g}, idle {each.idle_s / _DAY_S:.1f} days"
        reasons.append(
            f"{path} of {model_id}@{commit[:12]} ({each.priority}): {kept}{_approved(store, model_id, path, full[0])}"
        )
    if not reasons and full[0] in index.used_digests():
        reasons.append("a manifest of the store")
    return tuple(reasons) or ("no model has it: it goes with the next prune",)


def _approved(store: Store, model_id: str, path: str, sha256: str) -> str:
    """What `why` adds for a program."""
    if not safety.runs_code(path):
        return ""
    found = next((each for each in approval.of(store, model_id) if each.sha256 == sha256), None)
    if found is None:
        return "; it runs code, and nobody approved it"
    return f"; approved {dt.datetime.fromtimestamp(found.at, dt.UTC):%Y-%m-%d}"


def orphans(store: Store, index: Index) -> dict[str, int]:
    """Stored content that no revision and no download in progress has."""
    wanted = {sha256 for taken in holds.leases(store) for sha256 in taken.digests}
    used = index.used_digests()
    stored = {sha256: blob.size_bytes for sha256, blob in index.blobs().items()}
    stored |= {path.stem: path.stat().st_size for path in store.path("packed").glob("*.planes")}
    return {sha256: size for sha256, size in stored.items() if sha256 not in used and sha256 not in wanted}


def apply(eviction: Eviction, store: Store, index: Index) -> None:
    """Let revisions go; what became held in the meantime stays. Raises: Unreachable."""
    from aim_engine.cache import pieces

    with locks.held(store, "prune"):
        held = {(each.model_id, each.commit) for each in candidates(store, index) if each.held}
        manifests = []
        for each in eviction.revisions:
            if (each.model_id, each.commit) in held:
                continue
            manifests.append(index.manifest_digest(each.model_id, each.commit))
            index.withdraw(each.model_id, each.commit)
            views.remove(store, each.model_id, each.commit)
        wanted = {sha256 for taken in holds.leases(store) for sha256 in taken.digests} | index.used_digests()
        for sha256 in (*eviction.digests, *filter(None, manifests)):
            if sha256 in wanted:
                continue
            store.path("packed", f"{sha256}.planes").unlink(missing_ok=True)
            if store.blob(sha256).exists():
                space.discard(store, index, sha256)
        for path in pieces.abandoned(store):
            if store.now_s() - path.stat().st_mtime > GRACE_S:
                path.unlink(missing_ok=True)
    index.count(evicted_revisions=len(eviction.revisions), evicted_bytes=eviction.freed_bytes)


def empty_trash(store: Store, *, grace_s: float = GRACE_S, needed_bytes: int | None = None) -> int:
    """Delete what lies in the trash for longer than `grace_s`, oldest first, until `needed_bytes` are freed. Gives those freed."""
    now_s, freed = store.now_s(), 0
    for path in trash(store):
        if needed_bytes is not None and freed >= needed_bytes:
            break
        if now_s - float(path.name.partition("-")[0]) < grace_s:
            continue
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def trash(store: Store) -> tuple[Path, ...]:
    """What lies in the trash, oldest first."""
    return tuple(sorted(store.path("trash").glob("[0-9]*-*"))) if store.exists else ()


def used_bytes(store: Store) -> int:
    """What the store takes: content, downloads under way, trash."""
    total = 0
    for folder in (("blobs", "sha256"), ("parts",), ("trash",), ("quarantine",), ("packed",)):
        place = store.path(*folder)
        if place.is_dir():
            for path in place.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size
    return total


def make_room(
    store: Store,
    index: Index,
    needed_bytes: int,
    what: str,
    *,
    limit_bytes: int | None = None,
    in_use: Collection[str] = (),
) -> None:
    """Have room for a download within the limit, its quotas and on the disk, letting go of what may go.

    What is opportunistic takes room only from its like. `what` is a model's name, or tells people what it is. Raises: NoSpace before
    anything is fetched.
    """
    if needed_bytes <= 0:
        return
    keep_within_quotas(store, index, needed_bytes, what, in_use=in_use)
    short = 0 if limit_bytes is None else used_bytes(store) + needed_bytes - limit_bytes
    short = max(short, needed_bytes + space.reserve_bytes(store.root) - layout.free_bytes(store.root))
    if short <= 0:
        return
    in_trash = sum(path.stat().st_size for path in trash(store))
    eviction = Eviction(revisions=(), digests=(), freed_bytes=0)
    if short > in_trash and limit_bytes is not None:
        eviction = choose(
            _below(holds.standings(store).get(what), candidates(store, index, in_use=in_use)),
            target_bytes=short - in_trash,
            orphans=orphans(store, index),
        )
    if in_trash + eviction.freed_bytes < short:
        free = layout.free_bytes(store.root)
        raise NoSpace(
            f"not enough disk space for {what}",
            why=f"{format_bytes(needed_bytes)} are to be fetched; {store.root} takes {format_bytes(used_bytes(store))}"
            + (f" of {format_bytes(limit_bytes)}" if limit_bytes is not None else "")
            + f", the disk has {format_bytes(free)} free, and {format_bytes(in_trash + eviction.freed_bytes)} may go",
            hint="aim-engine cache prune --dry-run shows what could go; AIM_ENGINE_CACHE_DIR names another place",
        )
    apply(eviction, store, index)
    empty_trash(store, grace_s=0.0, needed_bytes=short)


def keep_within_quotas(
    store: Store, index: Index, needed_bytes: int, model_id: str, *, in_use: Collection[str] = ()
) -> None:
    """Let models of the same quota go until there is room for one more. Raises: NoSpace when that is not enough."""
    for quota in holds.quotas(store):
        if not fnmatch.fnmatchcase(model_id, quota.pattern):
            continue
        mine = [
            each
            for each in candidates(store, index, in_use=in_use)
            if fnmatch.fnmatchcase(each.model_id, quota.pattern)
        ]
        taken = sum({sha256: size for each in mine for sha256, size in each.content.items()}.values())
        short = taken + needed_bytes - quota.limit_bytes
        if short <= 0:
            continue
        eviction = choose(_below(holds.standings(store).get(model_id), mine), target_bytes=short)
        left = [each for each in mine if each not in eviction.revisions]
        kept = sum({sha256: size for each in left for sha256, size in each.content.items()}.values())
        if kept + needed_bytes > quota.limit_bytes:
            raise NoSpace(
                f"{model_id} does not fit its quota",
                why=f"{format_bytes(needed_bytes)} are to be fetched; models named {quota.pattern} take "
                f"{format_bytes(taken)} of {format_bytes(quota.limit_bytes)}, and {format_bytes(taken - kept)} may go",
                hint=f"aim-engine cache quota '{quota.pattern}' SIZE",
            )
        others = {
            sha256 for each in candidates(store, index) if each not in eviction.revisions for sha256 in each.content
        }
        digests = tuple(sha256 for sha256 in eviction.digests if sha256 not in others)
        apply(msgspec.structs.replace(eviction, digests=digests), store, index)


def _below(newcomer: holds.Standing | None, found: Collection[Candidate]) -> tuple[Candidate, ...]:
    """The candidates, of which those that matter more than an opportunistic newcomer are held."""
    if newcomer is None or newcomer.priority != "opportunistic":
        return tuple(found)
    return tuple(
        each
        if each.priority == "opportunistic"
        else msgspec.structs.replace(each, held=(*each.held, "matters more than what is opportunistic"))
        for each in found
    )
