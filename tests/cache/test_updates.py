"""Which models have newer versions, what these change, and how few questions that takes."""

from __future__ import annotations

import hashlib

import pytest

import hub_server
from aim_engine.cache import metrics, updates
from aim_engine.cache.faults import RateLimited
from aim_engine.cache.manager import ModelCacheManager
from caches import MODEL, Make


def renew(server: hub_server.Hub, model: str = MODEL, **files: bytes) -> None:
    server.models[model] = {
        **server.models[model],
        **{name.replace("__", "."): content for name, content in files.items()},
    }
    server.commits[model] = hashlib.sha1(repr(files).encode(), usedforsecurity=False).hexdigest()


def test_a_new_version_is_told_by_what_it_changes(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    path = manager.download_model(MODEL)
    (same,) = updates.check(manager)
    assert not same.outdated
    renew(server, tokenizer__json=b'{"version": "2.0"}', vocab__json=b'{"a": 1}')
    (found,) = updates.check(manager, ttl_s=0)
    assert found.outdated
    assert [(each.path, each.how, each.kind) for each in found.changes] == [
        ("tokenizer.json", "changed", "tokenizer"),
        ("vocab.json", "added", "tokenizer"),
    ]
    assert found.fetch_bytes == 18 + 8
    assert "changes tokenizer" in found.describe()
    assert manager.get_model_path(MODEL) == path  # nothing was replaced
    assert not any("/resolve/" in each and "vocab" in each for each in server.requests)


def test_fifty_models_take_fifty_questions_and_none_within_the_hour(
    manager: ModelCacheManager, server: hub_server.Hub
) -> None:
    for number in range(50):
        server.models[f"org/m{number}"] = {
            "config.json": b"%d" % number,
            "model.safetensors": hub_server.safetensors(64),
        }
        manager.download_model(f"org/m{number}")
    asked = len(server.requests)
    assert len(updates.check(manager, ttl_s=0)) == 50
    assert len(server.requests) - asked <= 50
    asked = len(server.requests)
    assert not any(each.asked for each in updates.check(manager))
    assert len(server.requests) == asked


def test_being_asked_to_wait_is_honoured(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    manager.download_model(MODEL)
    server.fail_api = 429
    with pytest.raises(RateLimited):
        updates.check(manager, ttl_s=0)


def test_a_source_without_an_answer_is_told_and_the_copy_stays(
    manager: ModelCacheManager, server: hub_server.Hub
) -> None:
    manager.download_model(MODEL)
    server.gated.add(MODEL)
    (found,) = updates.check(manager, ttl_s=0)
    assert not found.outdated
    assert "gated" in found.fault
    assert manager.is_cached(MODEL)


def test_metrics_count_what_is_here_and_was_done(manager: ModelCacheManager, make: Make) -> None:
    assert "aim_cache_models 0" in metrics.render(manager)
    path = manager.download_model(MODEL)
    make().download_model(MODEL)
    manager.lease(path, "serving")
    lines = dict(line.rsplit(" ", 1) for line in metrics.render(make(limit_bytes=10**9)).splitlines() if line[0] != "#")
    assert lines["aim_cache_models"] == "1"
    assert lines["aim_cache_hits_total"] == "1"
    assert lines["aim_cache_misses_total"] == "1"
    assert float(lines["aim_cache_fetched_bytes_total"]) > 300_000
    assert float(lines["aim_cache_used_bytes"]) > 300_000
    assert lines["aim_cache_limit_bytes"] == "1000000000"
    assert lines["aim_cache_held_revisions"] == "1"
