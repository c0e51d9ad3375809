"""The model cache: fetch, find, count and clean up, over one store that proves what it holds.

Names become folders through the store's views; nothing is fetched that the store, or the hub cache of other tools, has already.
Any number of processes and nodes may use a cache at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import msgspec

from aim_engine.cache import approval, evict, holds, hub, names, presence, process, safety, space, views
from aim_engine.cache.content import Known
from aim_engine.cache.index import Index
from aim_engine.cache.layout import Store
from aim_engine.cache.manifest import Revision
from aim_engine.errors import InvalidInput
from aim_engine.settings import Settings
from aim_engine.units import GIB, parse_bytes

if TYPE_CHECKING:
    from aim_engine.cache import acquire, bundle, sources
    from aim_engine.cache.pace import Pace
    from aim_engine.cache.progress import Progress as Transfer
    from aim_engine.cache.transport import Client, Patience

Progress = Callable[[str], None]
_DAY_S = 86_400.0
PEER_TOKEN = "AIM_ENGINE_PEER_TOKEN"  # noqa: S105 - the name of the variable
"""Variable with the token that other nodes' caches ask for."""


class CacheStats(TypedDict):
    """What `get_cache_stats` gives."""

    total_models: int
    total_size_gb: float
    cache_dir: str


class CachedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the cache."""

    model_id: str
    path: str
    """Its newest complete revision."""
    size_bytes: int
    revisions: int
    complete: bool
    last_used: float
    """Latest use, seconds since 1970."""
    origin: str
    """hub, or the package it was converted from."""


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """What a clean-up removed, or would remove."""

    model_id: str
    size_bytes: int
    idle_days: float


def _silent(line: str) -> None:
    """Tells nobody."""


class ModelCacheManager:
    """Manages the models in one cache folder, by default the one that the settings name."""

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        *,
        endpoint: str | None = None,
        progress: Progress = _silent,
        transfer: Callable[[Transfer], None] = lambda _: None,
        hub_cache: str | Path | None = None,
        index_dir: str | Path | None = None,
        patience: Patience | None = None,
        limit_bytes: int | None = None,
        peers: Collection[str] | None = None,
        bandwidth_bytes_s: float | None = None,
        xet_first: bool | None = None,
    ) -> None:
        """`cache_dir` is the store, made when something is fetched.

        `endpoint` names where models come from (see `sources`), separated by commas; None means the setting `cache_sources`, else
        HF_ENDPOINT, else the hub. `peers` are addresses of other nodes' caches, and `bandwidth_bytes_s` is how fast all processes
        of this node together may fill the store; None means the settings `cache_peers` and `cache_bandwidth`. `hub_cache` is a
        folder of the hub's client to take models over from, by default its usual one, and the cache folder itself, which held
        that layout in earlier versions. `index_dir` is a folder on this node's own disk.
        `limit_bytes` is the most that the store may take; None means the setting `cache_limit`. `xet_first` has all large files of a
        hub come through its library for Xet storage; None means the setting `cache_xet`.
        """
        loaded = _settings()
        self.cache_dir = Path(cache_dir if cache_dir is not None else loaded.cache_dir).expanduser().absolute()
        self.store = Store(self.cache_dir)
        self.index = Index(self.store, Path(index_dir or Path(loaded.state_dir) / "cache").expanduser())
        outside = Path(hub_cache).expanduser() if hub_cache is not None else hub.default_cache_dir()
        self._hub_caches = tuple(dict.fromkeys((self.cache_dir, outside.absolute())))
        self._places = endpoint or loaded.cache_sources or hub.endpoints()
        self._peers = tuple(peers if peers is not None else _list(loaded.cache_peers))
        self._bandwidth = bandwidth_bytes_s
        if bandwidth_bytes_s is None and loaded.cache_bandwidth:
            self._bandwidth = parse_bytes(loaded.cache_bandwidth.removesuffix("/s"))
        self._xet_first = loaded.cache_xet if xet_first is None else xet_first
        self._write_back = loaded.cache_write_back
        self._progress = progress
        self._transfer = transfer
        self._patience = patience
        self.limit_bytes = limit_bytes
        if limit_bytes is None and loaded.cache_limit:
            self.limit_bytes = parse_bytes(loaded.cache_limit)

    @property
    def sources(self) -> tuple[sources.Source, ...]:
        """Where models come from, in order of preference. Raises: InvalidInput."""
        from aim_engine.cache import sources

        return sources.parse_all(self._places)

    def plan_download(
        self, model_id: str, revision: str = "main", *, force: bool = False, approved: Collection[str] = ()
    ) -> acquire.Plan:
        """What `download_model` would fetch, exactly. Raises: InvalidInput, Unreachable."""
        return self._plan(self.client(), model_id, revision, force=force, approved=approved)

    def download_model(
        self, model_id: str, force: bool = False, revision: str = "main", *, approved: Collection[str] = ()
    ) -> Path:
        """Have a model in the cache, proved, and return its folder. `force` fetches every file again.

        `approved` are checksums of pickles that may be stored; they count as approved from then on. Raises: InvalidInput (unknown, gated, unsafe), Unreachable
        (network, disk), Corrupt.
        """
        names.require_model_id(model_id)
        names.require_revision(revision)
        if not force:
            present = self._stored(model_id, revision)
            if present is not None:
                self.index.touch(present.model_id, present.commit)
                self.index.count(hits=1)
                return views.snapshot(self.store, present.model_id, present.commit)
            adopted = self._adopt(model_id, revision, approved)
            if adopted is not None:
                return views.snapshot(self.store, adopted.model_id, adopted.commit)
        if hub.is_offline():
            raise hub.offline_error(model_id)
        from aim_engine.cache import acquire

        if self._write_back:
            from aim_engine.cache import writeback

            writeback.require_place(self._write_back)
        self.store.ensure()
        client = self.client()
        chosen = self._plan(client, model_id, revision, force=force, approved=approved)
        self._progress(chosen.describe())
        if force:
            for sha256 in {file.sha256 for file in chosen.files if file.sha256 is not None}:
                if self.store.blob(sha256).exists():
                    space.discard(self.store, self.index, sha256)
        acquire.apply(
            chosen,
            self.store,
            self.index,
            client,
            tell=self._progress,
            progress=self._transfer,
            limit_bytes=self.limit_bytes,
            pace=self.pace(),
        )
        self.pass_on(chosen)
        given = [file for file in chosen.files if file.sha256 in approved and safety.runs_code(file.path)]
        if given:
            now_s = self.store.now_s()
            approval.approve(
                self.store, model_id, [approval.Approval(sha256=f.sha256 or "", path=f.path, at=now_s) for f in given]
            )
        evict.empty_trash(self.store)
        return views.snapshot(self.store, model_id, chosen.commit)

    def pass_on(self, fetched: acquire.Plan) -> None:
        """Note what was fetched for the place that the setting `cache_write_back` names. Raises: InvalidInput, Unreachable."""
        if self._write_back:
            from aim_engine.cache import writeback

            writeback.queue(self.store, fetched, self._write_back)

    def is_cached(self, model_id: str, revision: str = "main") -> bool:
        """Is everything that an engine loads of this model there?"""
        names.require_model_id(model_id)
        if self._stored(model_id, revision, packed=True) is not None:
            return True
        return any(hub.cached(model_id, place, revision) is not None for place in self._hub_caches)

    def get_model_path(self, model_id: str, revision: str = "main") -> Path | None:
        """The folder of a cached model; None when it is not completely there.

        Asks nobody. A model that only the hub cache holds is found there, unproved until it is downloaded or used.
        """
        names.require_model_id(model_id)
        present = self._stored(model_id, revision)
        if present is not None:
            return views.snapshot(self.store, present.model_id, present.commit)
        for place in self._hub_caches:
            found = hub.cached(model_id, place, revision)
            if found is not None:
                return found
        return None

    def models(self) -> tuple[CachedModel, ...]:
        """The cached models, by name. Raises: Unreachable when the cache cannot be read."""
        by_model: dict[str, list[Known]] = {}
        for known in self.revisions():
            by_model.setdefault(known.revision.model_id, []).append(known)
        found = []
        for model_id, revisions in sorted(by_model.items()):
            newest = max(revisions, key=lambda known: (bool(known.refs), known.added_at))
            unique = {file.sha256: file.size_bytes for known in revisions for file in known.revision.files}
            found.append(
                CachedModel(
                    model_id=model_id,
                    path=str(views.snapshot(self.store, model_id, newest.revision.commit)),
                    size_bytes=sum(unique.values()),
                    revisions=len(revisions),
                    complete=presence.is_right(self.store, self.index, newest.revision, self._progress),
                    last_used=max(known.last_use for known in revisions),
                    origin="hub",
                )
            )
        return tuple(found)

    def cleanup_old_models(self, max_age_days: float = 30, *, dry_run: bool = False) -> tuple[Removed, ...]:
        """Remove models of which nobody used any revision for `max_age_days`, and say which. Held models stay."""
        if max_age_days < 0:
            raise InvalidInput(f"an age of {max_age_days} days is not possible", hint="give 0 or more")
        if not self.store.exists:
            return ()
        by_model: dict[str, list[evict.Candidate]] = {}
        for each in self.candidates():
            by_model.setdefault(each.model_id, []).append(each)
        old = []
        for model_id, revisions in sorted(by_model.items()):
            idle_days = min(each.idle_s for each in revisions) / _DAY_S
            if idle_days > max_age_days and not any(each.held for each in revisions):
                size = sum({sha256: size for each in revisions for sha256, size in each.content.items()}.values())
                old.append(Removed(model_id=model_id, size_bytes=size, idle_days=idle_days))
        for removed in old if not dry_run else ():
            self.remove_model(removed.model_id)
        return tuple(old)

    def candidates(self) -> tuple[evict.Candidate, ...]:
        """Every revision with the reasons that hold it."""
        if not self.store.exists:
            return ()
        return evict.candidates(self.store, self.index, in_use=self.opened())

    def opened(self) -> set[str]:
        """Models of which a process has a file open, as far as this user may see."""
        folders = process.opened_below(self.store.path("views", "hf")) if self.store.exists else set()
        return {model_id for folder in folders if (model_id := names.model_id(folder)) is not None}

    def plan_prune(self, *, target_bytes: int = 0, older_than_days: float | None = None) -> evict.Eviction:
        """What a prune would remove: content of no model, and models idle for longer or as many as free so much."""
        older_than_s = None if older_than_days is None else older_than_days * _DAY_S
        found = self.candidates()
        loose = evict.orphans(self.store, self.index) if self.store.exists else {}
        return evict.choose(found, target_bytes=target_bytes, older_than_s=older_than_s, orphans=loose)

    def remove_model(self, model_id: str) -> evict.Eviction:
        """Take a model out of the cache; content that no other model has goes to the trash.

        Raises: InvalidInput when it is not there, or held; Unreachable.
        """
        found = self.candidates()
        mine = [each for each in found if each.model_id == model_id]
        if not mine:
            raise InvalidInput(f"{model_id} is not in the cache", hint="aim-engine cache ls")
        reasons = sorted({reason for each in mine for reason in each.held})
        if reasons:
            remedies = {
                "pinned": f"aim-engine cache unpin {model_id}",
                "named": "delete that plan",
                "leased": "stop that",
            }
            raise InvalidInput(
                f"{model_id} must stay",
                why="; ".join(reasons),
                hint="; ".join(remedy for word, remedy in remedies.items() if any(r.startswith(word) for r in reasons))
                or None,
            )
        others = {sha256 for each in found if each.model_id != model_id for sha256 in each.content}
        content = {sha256: size for each in mine for sha256, size in each.content.items() if sha256 not in others}
        gone = evict.Eviction(revisions=tuple(mine), digests=tuple(sorted(content)), freed_bytes=sum(content.values()))
        evict.apply(gone, self.store, self.index)
        return gone

    def stand(
        self, model_id: str, *, pinned: bool | None = None, priority: holds.Priority | None = None
    ) -> holds.Standing:
        """Pin or unpin a model, or set its class. It need not be here yet. Raises: InvalidInput, Unreachable."""
        names.require_model_id(model_id)
        self.store.ensure()
        said = holds.standing(self.store, model_id)
        changed = msgspec.structs.replace(
            said,
            pinned=said.pinned if pinned is None else pinned,
            priority=said.priority if priority is None else priority,
        )
        holds.stand(self.store, changed)
        return changed

    def lease(self, folder: Path, holder: str, records: Path | None = None) -> None:
        """Keep the revision shown in `folder` while this process lives, or below `records` there is one of the holder's.

        Other folders need no lease.
        """
        root = self.store.path("views", "hf")
        if not self.store.exists or not folder.is_relative_to(root):
            return
        model_id = names.model_id(folder.relative_to(root).parts[0])
        if model_id is not None:
            taken = holds.Lease(
                model_id=model_id,
                commit=folder.name,
                holder=holder,
                by=process.me(),
                records=None if records is None else str(records),
            )
            holds.lease(self.store, taken)

    def hold_for_plan(self, plan: Path, models: Collection[tuple[str, str]]) -> None:
        """Keep models, each with its revision, while the file `plan` is there and names them. Raises: InvalidInput, Unreachable."""
        self.store.ensure()
        holds.hold_for_plan(self.store, plan, tuple(models))

    def import_bundle(self, place: Path) -> bundle.Moved:
        """Take the models of a bundle, proving every file. Raises: InvalidInput, Corrupt, Unreachable."""
        from aim_engine.cache import bundle

        return bundle.read(self.store, self.index, place, limit_bytes=self.limit_bytes)

    def why(self, sha256: str) -> tuple[str, ...]:
        """Every reason for which content is kept, or will go. `sha256` may be its first digits. Raises: InvalidInput."""
        return evict.why(self.store, self.index, sha256, in_use=self.opened())

    def verify(
        self, model_id: str | None = None, *, older_than_days: float | None = None
    ) -> tuple[tuple[str, str, str], ...]:
        """Read every stored file, or a model's, against its checksum; asks nobody.

        With `older_than_days`, what was proved since then is only looked at. Damaged content is set aside. Gives model, commit and path of what was damaged or is missing. Raises: InvalidInput when
        the cache has no such model.
        """
        revisions = [known.revision for known in self.revisions()]
        if model_id is not None:
            revisions = [revision for revision in revisions if revision.model_id == model_id]
            if not revisions:
                raise InvalidInput(f"{model_id} is not in the cache", hint="aim-engine cache ls")
        after_s = None if older_than_days is None else self.store.now_s() - older_than_days * _DAY_S
        return presence.verify(self.store, self.index, revisions, proved_after_s=after_s)

    def get_cache_stats(self) -> CacheStats:
        """How many models there are and what they take; `total_size_gb` counts in units of 1024^3 bytes."""
        models, total = 0, 0
        if self.store.exists:
            self.index.refresh()
            models, _, _, total = self.index.totals()
        return {"total_models": models, "total_size_gb": total / GIB, "cache_dir": str(self.cache_dir)}

    def client(self) -> Client:
        """Connections with the user's token, for the first hub only."""
        from aim_engine.cache.transport import Client

        first = next((each.endpoint for each in self.sources if isinstance(each, hub.Hub)), "")
        return Client(
            token=hub.token(),
            token_for=first,
            peers=self._peers,
            peer_token=os.environ.get(PEER_TOKEN) or None,
            patience=self._patience,
            tell=self._progress,
        )

    def pace(self, *, background_fraction: float | None = None, otherwise_bytes_s: float | None = None) -> Pace:
        """How fast the store may be filled; with a fraction, that of it, behind everything that somebody waits for.

        `otherwise_bytes_s` is what the fraction is of when there is no limit.
        """
        from aim_engine.cache.pace import Pace

        place = self.index.path.with_suffix(".pace")
        if background_fraction is None:
            return Pace(place, self._bandwidth)
        whole = self._bandwidth or otherwise_bytes_s
        share = None if whole is None else whole * background_fraction
        return Pace(place, share, background=True)

    def _plan(
        self, client: Client, model_id: str, revision: str, *, force: bool, approved: Collection[str]
    ) -> acquire.Plan:
        from aim_engine.cache import acquire

        return acquire.plan(
            self.store,
            self.index,
            client,
            self.sources,
            model_id,
            revision,
            approved=approved,
            force=force,
            peers=self._peers,
            xet_first=self._xet_first,
        )

    def revisions(self) -> tuple[Known, ...]:
        """Every revision in the store, by model and commit."""
        if not self.store.exists:
            return ()
        self.index.refresh()
        return self.index.revisions()

    def _stored(self, model_id: str, revision: str, *, packed: bool = False) -> Revision | None:
        return presence.find(
            self.store,
            self.index,
            model_id,
            revision,
            packed=packed,
            limit_bytes=self.limit_bytes,
            tell=self._progress,
        )

    def _adopt(self, model_id: str, revision: str, approved: Collection[str]) -> Revision | None:
        from aim_engine.cache import adopt

        for place in self._hub_caches:
            if hub.cached(model_id, place, revision) is not None:
                adopted = adopt.snapshot(
                    self.store, self.index, place, model_id, revision, approved=approved, tell=self._progress
                )
                if adopted is not None:
                    return adopted
        return None


def _list(text: str) -> tuple[str, ...]:
    return tuple(each.strip().rstrip("/") for each in text.split(",") if each.strip())


def _settings() -> Settings:
    from aim_engine import settings

    return settings.load()
