"""Random operations on a small store, by one process after the other, some of which die: what must hold, holds after each."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aim_engine.cache import acquire, evict, holds, pack, process, schedule, scrub, space
from aim_engine.cache.evict import Candidate
from aim_engine.cache.faults import NoSpace
from aim_engine.cache.index import Index
from aim_engine.cache.layout import Store
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.manifest import Revision, StoredFile
from caches import checkpoint
from crashes import Dying, Killed

LIMIT = 60_000
OPERATIONS = int(os.environ.get("AIM_ENGINE_OPERATIONS", "20000"))
"""Of the heavy suite; 100000 for an afternoon."""
STEPS = 100
NUMBERS = st.integers(0, 11)


class Caches(RuleBasedStateMachine):
    """A store of at most 60 kB, twelve models that share content, and everything that people and programs do with it."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        self.store = Store(self.root / "store")
        self.leases: dict[int, Path] = {}
        self.before: set[tuple[str, str]] = set()

    @initialize()
    def make(self) -> None:
        self.store.ensure()
        self.index = Index(self.store, self.root / "index")

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
        shutil.rmtree(self.root, ignore_errors=True)

    @staticmethod
    def model(number: int) -> str:
        return f"org/m{number}"

    def here(self, number: int) -> bool:
        return self.index.revision(self.model(number), f"{number:040x}") is not None

    def found(self) -> tuple[Candidate, ...]:
        return evict.candidates(self.store, self.index)

    def held(self) -> set[tuple[str, str]]:
        return {(each.model_id, each.commit) for each in self.found() if each.held}

    def claimed(self) -> set[tuple[str, str]]:
        """What must not go, as pins, leases and appointments say, whether it is here or not."""
        soon = time.time() + schedule.HOLD_AHEAD_S
        models = {said.model_id for said in holds.standings(self.store).values() if said.pinned}
        models |= {each for each, start_s in schedule.needed(self.store, time.time()).items() if start_s <= soon}
        found = {(model, f"{int(model.removeprefix('org/m')):040x}") for model in models}
        return found | {(taken.model_id, taken.commit) for taken in holds.leases(self.store)}

    def present(self) -> set[tuple[str, str]]:
        return {(known.revision.model_id, known.revision.commit) for known in self.index.revisions()}

    def admit(self, number: int) -> None:
        """As a download does: hold, make room, store, show."""
        noise = np.random.default_rng(number % 3).normal(0, 0.02, 3000).astype(np.float32).view(np.uint32)
        weights = checkpoint({"w": ("BF16", (noise >> 16).astype("<u2").tobytes())})
        contents = {"config.json": f"own {number} ".encode() * (20 + 10 * number), "model.safetensors": weights}
        files = tuple(
            StoredFile(path=path, sha256=hashlib.sha256(each).hexdigest(), size_bytes=len(each))
            for path, each in contents.items()
        )
        revision = Revision(model_id=self.model(number), commit=f"{number:040x}", files=files)
        wanted = tuple(file.sha256 for file in files)
        with holds.held(self.store, revision.model_id, revision.commit, "download", wanted):
            missing = [
                file
                for file in files
                if not self.store.blob(file.sha256).exists() and not pack.is_packed(self.store, file.sha256)
            ]
            frozen = sum(file.size_bytes for file in files if pack.is_packed(self.store, file.sha256))
            needed = sum(file.size_bytes for file in missing) + frozen + 1500  # the manifest counts too
            try:
                evict.make_room(self.store, self.index, needed, revision.model_id, limit_bytes=LIMIT)
            except NoSpace:
                return
            for file in missing:
                try:
                    space.restore(self.store, self.index, file.sha256)
                except FileNotFoundError:
                    partial = self.store.path("parts", f"{file.sha256}.{os.getpid()}.{number}.small")
                    partial.write_bytes(contents[file.path])
                    self.store.publish(partial, file.sha256)
                    self.index.verified(file.sha256, self.store.now_s())
            acquire.show(self.store, self.index, revision, "main")

    def next_process(self) -> None:
        """The process is gone; another one goes on with what lies on the disk."""
        self.index.close()
        for folder in ("leases", "locks"):  # a dead process holds neither
            for path in self.store.path(folder).rglob("*"):
                if path.is_file() and path not in self.leases.values():
                    path.unlink()
        for path in self.store.path("parts").iterdir():
            path.unlink()
        self.index = Index(self.store, self.root / "index")
        self.index.refresh()

    @rule(number=NUMBERS)
    def download(self, number: int) -> None:
        self.admit(number)

    @rule(number=NUMBERS, after=st.integers(0, 25))
    def die_in_a_download(self, number: int, after: int) -> None:
        with Dying(after) as dying, contextlib.suppress(Killed):
            self.admit(number)
        if dying.died:
            self.next_process()

    @rule(least=st.integers(0, 40_000))
    def prune(self, least: int) -> None:
        chosen = evict.choose(self.found(), target_bytes=least, orphans=evict.orphans(self.store, self.index))
        evict.apply(chosen, self.store, self.index)

    @rule(least=st.integers(1, 40_000), after=st.integers(0, 12))
    def die_in_a_prune(self, least: int, after: int) -> None:
        with Dying(after) as dying, contextlib.suppress(Killed):
            self.prune(least)
        if dying.died:
            self.next_process()

    @rule(number=NUMBERS)
    def compress(self, number: int) -> None:
        pack.apply(pack.choose(self.store, self.index, models=(self.model(number),)), self.store, self.index)

    @rule(number=NUMBERS, after=st.integers(0, 10))
    def die_in_compressing(self, number: int, after: int) -> None:
        with Dying(after) as dying, contextlib.suppress(Killed):
            self.compress(number)
        if dying.died:
            self.next_process()

    @rule(number=NUMBERS)
    def unpack(self, number: int) -> None:
        revision = self.index.revision(self.model(number), f"{number:040x}")
        if revision is not None:
            frozen = sum(file.size_bytes for file in revision.files if pack.is_packed(self.store, file.sha256))
            with holds.held(self.store, revision.model_id, revision.commit, "unpacking"):
                try:
                    evict.make_room(self.store, self.index, frozen, revision.model_id, limit_bytes=LIMIT)
                except NoSpace:
                    return
                pack.thaw(self.store, self.index, revision)

    @rule(number=NUMBERS, pinned=st.booleans(), priority=st.sampled_from(["critical", "normal", "opportunistic"]))
    def stand(self, number: int, pinned: bool, priority: holds.Priority) -> None:
        pins = sum(each.pinned for each in holds.standings(self.store).values())
        said = holds.Standing(model_id=self.model(number), pinned=pinned and pins < 2, priority=priority)
        holds.stand(self.store, said)

    @rule(number=NUMBERS)
    def lease(self, number: int) -> None:
        if len(self.leases) < 2 and self.here(number):
            taken = holds.Lease(
                model_id=self.model(number), commit=f"{number:040x}", holder=f"serving {number}", by=process.me()
            )
            self.leases[number] = holds.lease(self.store, taken)

    @precondition(lambda self: bool(self.leases))
    @rule()
    def release(self) -> None:
        self.leases.popitem()[1].unlink(missing_ok=True)

    @rule(number=NUMBERS, hours=st.integers(1, 40))
    def appoint(self, number: int, hours: int) -> None:
        if len(schedule.appointments(self.store)) < 2:
            when = f"{np.datetime64(int(time.time()) + 3600 * hours, 's')}+00:00"
            schedule.add(self.store, schedule.Appointment(model_id=self.model(number), when=when), time.time())

    @rule(number=NUMBERS)
    def cancel(self, number: int) -> None:
        schedule.drop(self.store, self.model(number))

    @rule(kbytes=st.none() | st.integers(8, 60))
    def quota(self, kbytes: int | None) -> None:
        holds.set_quota(self.store, "org/m1*", None if kbytes is None else kbytes * 1000)

    @rule(lost=st.booleans())
    def restart(self, lost: bool) -> None:
        self.index.close()
        if lost:
            for path in (self.root / "index").iterdir():
                path.unlink()
        self.index = Index(self.store, self.root / "index")
        self.index.refresh()

    @rule()
    def empty_trash(self) -> None:
        evict.empty_trash(self.store, grace_s=0)

    @rule(number=NUMBERS, by_scrub=st.booleans())
    def rot(self, number: int, by_scrub: bool) -> None:
        """A stored file changes; whoever looks sets it aside, and the model is fetched again."""
        revision = self.index.revision(self.model(number), f"{number:040x}")
        if revision is None or self.held():
            return
        blob = self.store.blob(revision.files[0].sha256)
        if blob.exists():
            blob.unlink()
            blob.write_bytes(b"rotten")
            if by_scrub:
                manager = ModelCacheManager(self.store.root, hub_cache="/nowhere", index_dir=self.root / "index")
                self.store.path("scrub.json").unlink(missing_ok=True)
                found = scrub.scrub(manager, cycle_days=1).damaged
                manager.index.close()
                assert (self.model(number), revision.files[0].path) in {(each.model_id, each.path) for each in found}
            else:
                assert not space.verify(self.store, self.index, blob.name)
            assert not blob.exists()
            for path in self.store.path("quarantine").iterdir():
                path.unlink()
            self.admit(number)
            if not blob.exists():  # there was no room: it goes
                mine = [each for each in self.found() if blob.name in each.content]
                gone = evict.Eviction(revisions=tuple(mine), digests=(), freed_bytes=0)
                evict.apply(gone, self.store, self.index)

    @invariant()
    def everything_holds(self) -> None:
        if not hasattr(self, "index"):
            return
        assert evict.used_bytes(self.store) <= LIMIT
        assert self.before & self.claimed() <= self.present()
        self.index.refresh()
        on_disk = {path.name for path in self.store.path("blobs", "sha256").iterdir()}
        self.index.reconcile()
        assert set(self.index.blobs()) == on_disk
        packed = pack.sizes(self.store)
        for known in self.index.revisions():
            for file in known.revision.files:
                assert file.sha256 in on_disk or file.sha256 in packed
        self.before = self.claimed() & self.present()


@pytest.fixture(autouse=True)
def small_files_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_SMALLEST_BYTES", 1000)


def run(operations: int) -> None:
    run_state_machine_as_test(
        Caches,
        settings=settings(
            max_examples=max(1, operations // STEPS), stateful_step_count=STEPS, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet,
        ),
    )  # fmt: skip


def test_random_operations_never_break_the_store() -> None:
    run(300)


@pytest.mark.kill
def test_very_many_random_operations_never_break_the_store() -> None:
    run(OPERATIONS)
