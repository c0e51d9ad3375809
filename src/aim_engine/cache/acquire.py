"""From a model's name to its files in the store: resolve, plan, reserve, fetch, verify, publish, show.

The plan is a value and says what will move before anything does; applying it stops at any point without harm, and goes on there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping

import msgspec

from aim_engine.cache import (
    approval,
    evict,
    fetch,
    holds,
    hub,
    layout,
    names,
    pack,
    pieces,
    safety,
    sources,
    space,
    views,
    xet,
)
from aim_engine.cache.faults import NoSpace, NoSuchModel, Unavailable, Unsafe
from aim_engine.cache.index import Index
from aim_engine.cache.job import Remote
from aim_engine.cache.layout import Store
from aim_engine.cache.manifest import Revision, StoredFile
from aim_engine.cache.pace import UNPACED, Pace
from aim_engine.cache.progress import Progress, Tally
from aim_engine.cache.transport import Client
from aim_engine.errors import AimError, InvalidInput, Unreachable
from aim_engine.units import format_bytes

_SMALL_BYTES = 16 << 20
"""Up to this size a stored file's git checksum is computed when it is not known."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-plan/v1"):
    """What a download will do."""

    model_id: str
    revision: str
    """As asked for."""
    commit: str
    source: str
    """Address of the repository."""
    origin: str
    """The source that told all this."""
    licence: str
    files: tuple[Remote, ...]
    """Everything that an engine loads."""
    present: dict[str, str]
    """Path -> sha256 of what the store has already, from whatever model."""
    resumed_bytes: int
    """Bytes of missing files that earlier attempts left."""
    approved: tuple[str, ...] = ()
    """Checksums of programs that may be stored: sha256, and git's for what a hub lists by that."""

    @property
    def missing(self) -> tuple[Remote, ...]:
        """The files to fetch."""
        return tuple(file for file in self.files if file.path not in self.present)

    @property
    def missing_bytes(self) -> int:
        """Bytes that the store lacks; the same content counts once."""
        return sum({file.key: file.size_bytes for file in self.missing}.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    def describe(self) -> str:
        """One line for people."""
        left = self.missing_bytes - self.resumed_bytes
        if not self.missing:
            return f"{self.model_id}: everything is here ({format_bytes(self.total_bytes)})"
        here = self.total_bytes - sum(file.size_bytes for file in self.missing)
        parts = [f"{len(self.missing)} of {len(self.files)} files to fetch, {format_bytes(left)}"]
        if here:
            parts.append(f"{format_bytes(here)} are here already")
        if self.resumed_bytes:
            parts.append(f"{format_bytes(self.resumed_bytes)} are left from an earlier attempt")
        return f"fetching {self.model_id}: {'; '.join(parts)}"


def plan(
    store: Store,
    index: Index,
    client: Client,
    places: tuple[sources.Source, ...],
    model_id: str,
    revision: str = "main",
    *,
    approved: Collection[str] = (),
    force: bool = False,
    peers: tuple[str, ...] = (),
    xet_first: bool = False,
) -> Plan:
    """Ask the sources in turn what a revision is, until one knows it, and compare with the store.

    `approved` are checksums of programs that may be stored, beside those that were approved for good. `peers` are caches of other nodes, which are asked for content first and
    need not be trusted. With `xet_first` all large files of a hub come through its library for Xet storage, where that is installed. Raises: InvalidInput, Unreachable.
    """
    place, found = listing(client, places, model_id, revision)
    recorded = approval.of(store, model_id)
    approved = {*approved, *approval.checksums(recorded)}
    unnamed = any(each.git_oid is None for each in recorded)
    alike = (place, *(each for each in places if each is not place and isinstance(each, hub.Hub)))
    alike = alike if isinstance(place, hub.Hub) else (place,)
    chosen = _loadable(found, approved, unnamed=unnamed)
    names.require_paths(file.path for file in chosen)
    remotes = []
    for file in chosen:
        if file.size_bytes is None:
            raise Unreachable(f"the size of {file.path} in {model_id} is not told", hint=f"check {place.name}")
        near = tuple(f"{peer}/content/{file.sha256}" for peer in peers) if file.sha256 is not None else ()
        remotes.append(
            Remote(
                path=file.path,
                size_bytes=file.size_bytes,
                addresses=(*near, *_addresses(alike, found, file, xet_first=xet_first)),
                sha256=file.sha256,
                git_oid=file.git_oid,
                etag=file.etag,
            )
        )
    present = {} if force else _present(store, index, tuple(remotes))
    missing = {remote.key: remote for remote in remotes if remote.path not in present}
    resumed = sum(pieces.under_way(store, key, remote.size_bytes) for key, remote in missing.items())
    return Plan(
        model_id=model_id,
        revision=revision,
        commit=found.commit,
        source=found.source,
        origin=place.text,
        licence=found.licence,
        files=tuple(remotes),
        present=present,
        resumed_bytes=resumed,
        approved=tuple(sorted(approved)),
    )


def apply(
    chosen: Plan,
    store: Store,
    index: Index,
    client: Client,
    *,
    tell: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    piece_bytes: int = pieces.PIECE_BYTES,
    limit_bytes: int | None = None,
    pace: Pace = UNPACED,
    connections: int = fetch.MOST_CONNECTIONS,
) -> Tally:
    """Fetch what a plan misses and show the model. Raises: AimError; what arrived is kept.

    Where the store's limit or the disk leave no room, idle models go first.
    """
    wanted = tuple(sorted({*chosen.present.values(), *(remote.sha256 for remote in chosen.missing if remote.sha256)}))
    with holds.held(store, chosen.model_id, chosen.commit, f"download of {chosen.model_id}", wanted):
        evict.make_room(
            store, index, chosen.missing_bytes - chosen.resumed_bytes, chosen.model_id, limit_bytes=limit_bytes
        )
        return _apply(
            chosen,
            store,
            index,
            client,
            tell=tell,
            progress=progress,
            piece_bytes=piece_bytes,
            pace=pace,
            connections=connections,
        )


def _apply(
    chosen: Plan,
    store: Store,
    index: Index,
    client: Client,
    *,
    tell: Callable[[str], None],
    progress: Callable[[Progress], None],
    piece_bytes: int,
    pace: Pace,
    connections: int,
) -> Tally:
    digests = dict(chosen.present)
    place = sources.parse(chosen.origin)
    keys: dict[str, list[Remote]] = {}
    for remote in chosen.missing:
        keys.setdefault(remote.key, []).append(remote)

    def stored(remote: Remote, digest: str) -> None:
        now_s = time.time()
        index.verified(digest, now_s)
        for same in keys[remote.key]:
            digests[same.path] = digest
            if same.git_oid is not None:
                index.remember_oid(same.git_oid, digest)

    def refusal(status: int, headers: Mapping[str, str], path: str) -> AimError:
        return place.refusal(status, headers, chosen.model_id, path)

    fetcher = fetch.Fetcher(
        store,
        client,
        stored=stored,
        refusal=refusal,
        inspect=lambda remote, path: safety.require_sound(path, remote.path),
        progress=progress,
        tell=tell,
        piece_bytes=piece_bytes,
        pace=pace,
        connections=connections,
    )
    try:
        if chosen.missing:
            fetcher.fetch(chosen.missing)
    finally:
        index.count(
            fetched_bytes=fetcher.tally.received_bytes,
            resumed_bytes=fetcher.tally.resumed_bytes,
            repaired_files=fetcher.tally.repaired_files,
            helped_pieces=fetcher.tally.helped_pieces,
            download_seconds=fetcher.tally.seconds,
        )
    index.count(deduplicated_bytes=chosen.total_bytes - sum(remote.size_bytes for remote in chosen.missing), misses=1)
    revision = Revision(
        model_id=chosen.model_id,
        commit=chosen.commit,
        source=chosen.source,
        licence=chosen.licence,
        files=tuple(
            StoredFile(path=remote.path, sha256=digests[remote.path], size_bytes=remote.size_bytes)
            for remote in chosen.files
            if not safety.runs_code(remote.path) or digests[remote.path] in chosen.approved
        ),
    )
    if not any(hub.is_weight(file.path) for file in revision.files):
        raise Unsafe(
            f"{chosen.model_id} has other weights than were approved",
            why="they are pickles, and their sha256 is not that of what was approved",
            hint=f"aim-engine cache approve {chosen.model_id}",
        )
    show(store, index, revision, chosen.revision)
    place_shown = views.snapshot(store, revision.model_id, revision.commit)
    wish, lacking = safety.wants_code(place_shown / "config.json"), approval.lacking(place_shown)
    if wish is not None and (lacking or not any(safety.is_code(file.path) for file in revision.files)):
        tell(
            f"{chosen.model_id} asks to run code: {wish}; that code was not fetched, and no view holds it; "
            f"to read and approve it: aim-engine cache approve {chosen.model_id}"
        )
    return fetcher.tally


def show(store: Store, index: Index, revision: Revision, ref: str) -> None:
    """Publish a revision of which all content is stored: manifest, views, and the branch last.

    Content that a clean-up took in the meantime comes back from the trash. Raises: FileNotFoundError when it is not there
    either, Unreachable.
    """
    for _ in range(3):
        for file in revision.files:
            if not store.blob(file.sha256).exists() and not pack.restore(store, index, file.sha256):
                space.restore(store, index, file.sha256)
        index.publish(revision)
        with contextlib.suppress(FileNotFoundError), layout.typed(store.path("views")):
            views.make(store, revision)
            break
    views.set_ref(store, revision.model_id, ref, revision.commit)


def listing(
    client: Client, places: tuple[sources.Source, ...], model_id: str, revision: str
) -> tuple[sources.Source, hub.Listing]:
    """The first source that knows the model, and what it says. Raises: what the last source did, when none knows it."""
    for number, place in enumerate(places):
        try:
            return place, place.describe(client, model_id, revision)
        except (NoSuchModel, Unavailable) as err:
            if number < len(places) - 1:
                continue
            if isinstance(err, NoSuchModel):
                raise
            what = "the hub" if isinstance(place, hub.Hub) else place.name
            raise Unavailable(
                f"{what} cannot be reached to fetch {model_id}",
                why=f"{place.name}: {err.why or err.what}",
                hint=err.hint,
            ) from err
    raise InvalidInput("no place is named that models come from", hint="unset AIM_ENGINE_CACHE_SOURCES")


def _addresses(
    alike: tuple[sources.Source, ...], found: hub.Listing, file: hub.File, *, xet_first: bool
) -> tuple[str, ...]:
    """Where a file may be had, in order of preference."""
    plain = tuple(each.address(found, file.path) for each in alike)
    if file.sha256 is None or not isinstance(alike[0], hub.Hub) or not xet.is_installed():
        return plain
    through = tuple(xet.address(each) for each in plain)
    return (*through, *plain) if xet.goes_first(file.size_bytes or 0, wanted=xet_first) else (*plain, *through)


def _loadable(listing: hub.Listing, approved: Collection[str], *, unnamed: bool = False) -> tuple[hub.File, ...]:
    """The files of a listing that an engine loads, programs only when approved.

    With `unnamed` approvals, which give a sha256 alone, programs that are listed without one are fetched to see; what is not
    approved is left out then. Raises: InvalidInput without weights, Unsafe with unapproved pickles only.
    """
    files = hub.choose_files(listing.files)
    weights = [file for file in files if file.path.endswith((".safetensors", ".bin"))]
    if not weights:
        raise InvalidInput(
            f"{listing.model_id} has no weights that an engine loads",
            why="its repository holds neither safetensors nor PyTorch files",
            hint="look for the original of this conversion on the hub",
        )

    def allowed(file: hub.File) -> bool:
        return file.sha256 in approved or file.git_oid in approved or (unnamed and file.sha256 is None)

    refused = [file for file in files if safety.is_pickle(file.path) and not allowed(file)]
    if any(file in refused for file in weights):
        paths = " ".join(file.path for file in refused if file in weights)
        raise Unsafe(
            f"{listing.model_id} has its weights in pickles only",
            why=f"{refused[0].path} runs whatever its author put into it when an engine loads it",
            hint="look for a safetensors version of it; if you trust its author: "
            f"aim-engine cache approve {listing.model_id} {paths[:200]}",
        )
    code = [file for file in listing.files if safety.is_code(file.path) and allowed(file)]
    return tuple(sorted((*(file for file in files if file not in refused), *code), key=lambda file: file.path))


def _present(store: Store, index: Index, remotes: tuple[Remote, ...]) -> dict[str, str]:
    """Path -> sha256 of the files whose content is stored and looks as it did when it was proved."""
    if not store.exists:
        return {}
    index.refresh()
    _learn_oids(store, index, remotes)
    digests = {}
    for remote in remotes:
        digest = remote.sha256 or (index.by_oid(remote.git_oid) if remote.git_oid is not None else None)
        if digest is not None:
            digests[remote.path] = digest
    known = index.blobs(digests.values())
    present = {}
    for remote in remotes:
        digest = digests.get(remote.path)
        if digest is None:
            continue
        if digest not in known and pack.is_packed(store, digest):
            present[remote.path] = digest
        elif digest not in known:
            with contextlib.suppress(FileNotFoundError, NoSpace):
                space.restore(store, index, digest)
                present[remote.path] = digest
        elif space.looks_right(store, known[digest]) and known[digest].size_bytes == remote.size_bytes:
            present[remote.path] = digest
        else:
            space.quarantine(store, index, digest)
    return present


def _learn_oids(store: Store, index: Index, remotes: tuple[Remote, ...]) -> None:
    """Compute git checksums of small stored files when a wanted one is unknown, as after the index was lost."""
    wanted = {remote.git_oid: remote.size_bytes for remote in remotes if remote.git_oid is not None}
    unknown = {size for oid, size in wanted.items() if index.by_oid(oid) is None}
    if not unknown:
        return
    for blob in index.without_oid(unknown, _SMALL_BYTES):
        with contextlib.suppress(OSError):
            index.remember_oid(space.git_oid(store.blob(blob)), blob)
