"""Taking over hub caches of other tools and of earlier versions, without a copy and without trust."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

import hub_server
from aim_engine.cache.manager import ModelCacheManager
from caches import MODEL, WEIGHTS, Make


@pytest.fixture
def hub_cache(server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's own client leaves."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    snapshot_download(MODEL, cache_dir=tmp_path / "hub", endpoint=server.address)
    return tmp_path / "hub"


def blob_of(hub_cache: Path, name: str) -> Path:
    (snapshot,) = (hub_cache / "models--org--model" / "snapshots").iterdir()
    return (snapshot / name).resolve()


def test_a_hub_cache_is_adopted_without_a_copy_or_a_request(
    manager: ModelCacheManager, server: hub_server.Hub, hub_cache: Path
) -> None:
    asked = len(server.requests)
    assert manager.is_cached(MODEL)
    path = manager.download_model(MODEL)
    assert len(server.requests) == asked
    assert path.is_relative_to(manager.cache_dir)
    assert (path / "model.safetensors").stat().st_ino == blob_of(hub_cache, "model.safetensors").stat().st_ino
    assert sorted(each.name for each in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert blob_of(hub_cache, "model.safetensors").read_bytes() == WEIGHTS  # the hub cache stays as it was


def test_a_cache_of_an_earlier_version_is_read_where_it_lies(
    server: hub_server.Hub, tmp_path: Path, make: Make, hub_cache: Path
) -> None:
    old = ModelCacheManager(
        hub_cache, endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "none", index_dir=tmp_path / "i"
    )
    assert old.is_cached(MODEL)
    found = old.get_model_path(MODEL)
    assert found is not None
    assert found.is_relative_to(hub_cache / "models--org--model")
    path = old.download_model(MODEL)
    assert path.is_relative_to(hub_cache / "views" / "hf")
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert old.get_cache_stats()["total_models"] == 1


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_damage_that_the_hubs_client_accepts_is_found_and_replaced(
    damage: str, make: Make, server: hub_server.Hub, hub_cache: Path
) -> None:
    blob = blob_of(hub_cache, "model.safetensors")
    blob.write_bytes(WEIGHTS[:-1] + b"?" if damage == "flipped" else WEIGHTS[:100])
    said: list[str] = []
    sent = server.sent_bytes
    path = make(progress=said.append).download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert any("model.safetensors of org/model is damaged in the hub cache" in line for line in said)
    assert server.sent_bytes - sent < len(WEIGHTS) + 5_000  # the good files were taken over


def test_small_files_are_proved_by_their_git_name(make: Make, server: hub_server.Hub, hub_cache: Path) -> None:
    blob_of(hub_cache, "config.json").write_bytes(b'{"model_type": "evil!"}')
    path = make().download_model(MODEL)
    assert (path / "config.json").read_bytes() == server.models[MODEL]["config.json"]


def test_an_incomplete_hub_cache_is_completed(make: Make, server: hub_server.Hub, hub_cache: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        blob_of(hub_cache, name).unlink()
    assert not make().is_cached(MODEL)
    assert (make().download_model(MODEL) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_leads_out_of_the_hub_cache_is_not_taken(
    make: Make, server: hub_server.Hub, hub_cache: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (snapshot,) = (hub_cache / "models--org--model" / "snapshots").iterdir()
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(secret)
    path = make().download_model(MODEL)
    assert (path / "tokenizer.json").read_bytes() == server.models[MODEL]["tokenizer.json"]
