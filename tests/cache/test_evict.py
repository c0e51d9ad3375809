"""What goes when room is needed, and what never does."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hub_server
from aim_engine.cache import evict, holds, process, space
from aim_engine.cache.evict import Candidate
from aim_engine.cache.faults import NoSpace
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.errors import InvalidInput
from caches import MODEL, WEIGHTS, Make

DAY_S = 86_400.0


def candidate(name: str, size: int = 100, **changes: object) -> Candidate:
    values: dict[str, object] = {
        "model_id": name,
        "commit": "a" * 40,
        "content": {name: size},
        "idle_s": 0.0,
        "uses": 1.0,
    }
    return Candidate(**{**values, **changes})  # type: ignore[arg-type]


def test_the_least_used_goes_first_and_no_more_than_needed() -> None:
    found = [candidate("often", uses=50.0), candidate("old", idle_s=40 * DAY_S, uses=5.0), candidate("once")]
    chosen = evict.choose(found, target_bytes=150)
    assert [each.model_id for each in chosen.revisions] == ["old", "once"]
    assert chosen.freed_bytes == 200
    assert evict.choose(found, target_bytes=0).revisions == ()


def test_shared_content_goes_with_its_last_revision() -> None:
    a, b = candidate("a", content={"base": 100, "a": 1}), candidate("b", content={"base": 100, "b": 1}, uses=9.0)
    assert evict.choose([a, b], target_bytes=1).freed_bytes == 1
    assert evict.choose([a, b], target_bytes=2).freed_bytes == 102


@pytest.mark.parametrize("reason", ["pinned", "leased by up on node", "open in a process"])
def test_what_is_held_stays_whatever_is_needed(reason: str) -> None:
    assert evict.choose([candidate("a", held=(reason,))], target_bytes=10**12).revisions == ()


def test_a_critical_model_survives_a_thousand_opportunistic_ones() -> None:
    found = [candidate(f"o{number}", uses=20.0, priority="opportunistic") for number in range(1000)]
    found.append(candidate("critical", idle_s=30 * DAY_S, priority="critical"))
    chosen = evict.choose(found, target_bytes=1000 * 100)
    assert "critical" not in {each.model_id for each in chosen.revisions}
    assert len(chosen.revisions) == 1000


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 1000), st.booleans(), st.floats(0, 1e7), st.floats(0, 1e3)),
        max_size=12,
    ),
    st.integers(0, 20_000),
)
def test_enough_is_freed_unless_all_that_is_left_is_held(
    drawn: list[tuple[int, int, bool, float, float]], target: int
) -> None:
    found = [
        candidate(f"m{number}", content={f"s{shared}": 500, f"own{number}": size}, idle_s=idle, uses=uses,
                  held=("pinned",) if held else ())
        for number, (shared, size, held, idle, uses) in enumerate(drawn)
    ]  # fmt: skip
    chosen = evict.choose(found, target_bytes=target)
    kept = {sha for each in found if each not in chosen.revisions for sha in each.content}
    assert not kept & set(chosen.digests)
    assert chosen.freed_bytes == sum(
        {sha: s for each in found for sha, s in each.content.items() if sha not in kept}.values()
    )
    assert chosen.freed_bytes >= target or all(each.held for each in found if each not in chosen.revisions)


def test_the_limit_holds_and_pins_and_leases_are_respected(make: Make, server: hub_server.Hub) -> None:
    for number in range(6):
        server.models[f"org/m{number}"] = {
            "config.json": b"{}", "model.safetensors": hub_server.safetensors(100_000, number),
        }  # fmt: skip
    manager = make(limit_bytes=330_000)
    manager.stand("org/m0", pinned=True)
    leased = manager.download_model("org/m1")
    manager.lease(leased, "serving")
    for number in (0, 2, 3, 4):
        manager.download_model(f"org/m{number}")
        assert evict.used_bytes(manager.store) <= 330_000
    assert [model.model_id for model in manager.models()] == ["org/m0", "org/m1", "org/m4"]
    manager.stand("org/m4", pinned=True)
    asked = len(server.requests)
    with pytest.raises(NoSpace, match="not enough disk space for org/m5") as caught:
        manager.download_model("org/m5")
    assert not any("/resolve/" in each for each in server.requests[asked:])
    assert "may go" in str(caught.value.why)
    with pytest.raises(InvalidInput, match="must stay: leased by serving"):
        manager.remove_model("org/m1")
    holds.release(manager.store, "serving")
    manager.download_model("org/m5")
    assert not manager.is_cached("org/m1")


def test_a_lease_lasts_as_long_as_the_deployment_is_recorded(manager: ModelCacheManager, tmp_path: Path) -> None:
    path = manager.download_model(MODEL)
    record = tmp_path / "deployments" / "chat-2" / "deployment.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    gone = process.Process(node=process.me().node, boot="earlier", namespace="", pid=1, started="")
    holds.lease(
        manager.store,
        holds.Lease(model_id=MODEL, commit=path.name, holder="chat", by=gone, records=str(tmp_path / "deployments")),
    )
    assert [each.held for each in manager.candidates()] == [(f"leased by chat on {gone.node}",)]
    record.unlink()
    assert [each.held for each in manager.candidates()] == [()]


def test_clocks_that_differ_evict_nothing_early(manager: ModelCacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    manager.download_model(MODEL)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert manager.cleanup_old_models(1) == ()


def test_why_names_every_reason(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.models["org/fork"] = {**server.models[MODEL], "config.json": b'{"a": 1}'}
    manager.download_model(MODEL)
    manager.download_model("org/fork")
    manager.stand(MODEL, pinned=True, priority="critical")
    reasons = manager.why(hashlib.sha256(WEIGHTS).hexdigest()[:12])
    assert len(reasons) == 2
    assert "may go" in reasons[0]
    assert "org/fork" in reasons[0]
    assert "(critical): pinned" in reasons[1]
    with pytest.raises(InvalidInput):
        manager.why("zz")


def test_a_prune_takes_what_no_model_has_and_the_trash_ages(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    manager.download_model(MODEL)
    loose = manager.store.path("parts", "loose.part")
    loose.write_bytes(b"loose" * 100)
    digest = space.digest(loose)
    manager.store.publish(loose, digest)
    manager.index.reconcile()
    chosen = manager.plan_prune()
    assert (chosen.revisions, chosen.digests, chosen.freed_bytes) == ((), (digest,), 500)
    evict.apply(chosen, manager.store, manager.index)
    assert manager.is_cached(MODEL)
    (binned,) = evict.trash(manager.store)
    assert evict.empty_trash(manager.store) == 0
    binned.rename(binned.with_name(f"{int(time.time() - 2 * DAY_S)}-{digest}"))
    assert evict.empty_trash(manager.store) == 500


def test_silent_decay_is_found_by_reading(manager: ModelCacheManager, make: Make) -> None:
    path = manager.download_model(MODEL) / "model.safetensors"
    assert manager.verify() == ()
    about = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"\xff")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert manager.is_cached(MODEL)  # it looks as it did
    assert manager.verify(older_than_days=30) == (), "what was proved lately is not read again"
    assert manager.verify() == ((MODEL, hub_server.COMMIT, "model.safetensors"),)
    assert not make().is_cached(MODEL)


def test_a_timer_reads_only_what_was_not_proved_for_long(manager: ModelCacheManager) -> None:
    path = manager.download_model(MODEL) / "model.safetensors"
    (blob,) = [each for each in manager.index.blobs().values() if each.size_bytes == path.stat().st_size]
    manager.index.verified(blob.sha256, time.time() - 31 * DAY_S)
    manager.verify(older_than_days=32)
    assert manager.index.blobs()[blob.sha256].verified_at == pytest.approx(time.time() - 31 * DAY_S, abs=60)
    manager.verify(older_than_days=30)
    assert manager.index.blobs()[blob.sha256].verified_at == pytest.approx(time.time(), abs=60)
