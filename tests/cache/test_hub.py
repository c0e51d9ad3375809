"""Choosing, fetching and finding checkpoints, against a hub of our own."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub_server
from aim_engine.cache import hub
from aim_engine.cache.hub import File
from aim_engine.cache.manager import ModelCacheManager, in_use
from aim_engine.errors import AimError, InvalidInput, Unreachable

MODEL = "org/model"
WEIGHTS = b"w" * 100_000


@pytest.fixture
def server() -> Iterator[tuple[hub_server.Hub, str]]:
    behind = hub_server.Hub()
    behind.add(
        MODEL,
        config__json=b'{"model_type": "llama"}',
        tokenizer__json=b"{}",
        model__safetensors=WEIGHTS,
        pytorch_model__bin=b"p" * 50_000,
        README__md=b"# hello",
    )
    with hub_server.serving(behind) as address:
        yield behind, address


@pytest.fixture
def manager(server: tuple[hub_server.Hub, str], tmp_path: Path) -> ModelCacheManager:
    return ModelCacheManager(tmp_path / "hub", endpoint=server[1])


def chosen(*names: str) -> list[str]:
    return [file.path for file in hub.choose_files(File(name, 1) for name in names)]


def test_safetensors_are_taken_and_other_formats_left() -> None:
    found = chosen(
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "original/consolidated.00.pth",
        "original/params.json", "onnx/model.onnx", "README.md", "tokenizer.model", "chat_template.jinja", "flax_model.msgpack",
    )  # fmt: skip
    assert found == [
        "chat_template.jinja", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.model",
    ]  # fmt: skip


def test_pytorch_files_are_taken_only_without_safetensors() -> None:
    assert chosen("config.json", "pytorch_model.bin", "training_args.bin") == ["config.json", "pytorch_model.bin"]
    assert chosen("pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin", "pytorch_model.bin.index.json") == [
        "pytorch_model-1-of-2.bin",
        "pytorch_model-2-of-2.bin",
        "pytorch_model.bin.index.json",
    ]


def test_the_makers_own_copy_of_the_weights_is_left() -> None:
    assert chosen("consolidated.safetensors", "model.safetensors", "config.json") == [
        "config.json",
        "model.safetensors",
    ]
    assert chosen("consolidated.safetensors", "params.json") == ["consolidated.safetensors", "params.json"]
    assert "original/model.safetensors" not in chosen("model.safetensors", "original/model.safetensors")


def test_a_model_is_fetched_once(manager: ModelCacheManager, server: tuple[hub_server.Hub, str]) -> None:
    assert not manager.is_cached(MODEL)
    assert manager.get_model_path(MODEL) is None
    path = manager.download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert not (path / "pytorch_model.bin").exists()
    assert manager.is_cached(MODEL)
    assert manager.get_model_path(MODEL) == path
    asked = len(server[0].requests)
    assert manager.download_model(MODEL) == path
    assert len(server[0].requests) == asked
    assert path.parts[-3:-1] == ("models--org--model", "snapshots")


def test_force_fetches_again(manager: ModelCacheManager, server: tuple[hub_server.Hub, str]) -> None:
    manager.download_model(MODEL)
    sent = server[0].sent_bytes
    manager.download_model(MODEL, force=True)
    assert server[0].sent_bytes >= sent + len(WEIGHTS)


def test_there_is_no_index_file_of_ours(manager: ModelCacheManager) -> None:
    manager.download_model(MODEL)
    assert not list(manager.cache_dir.rglob("metadata.json"))
    shutil.rmtree(manager.cache_dir / "models--org--model")
    assert not manager.is_cached(MODEL)
    assert manager.get_cache_stats()["total_models"] == 0


def test_statistics_count_what_is_there(manager: ModelCacheManager) -> None:
    assert manager.get_cache_stats() == {"total_models": 0, "total_size_gb": 0.0, "cache_dir": str(manager.cache_dir)}
    manager.download_model(MODEL)
    stats = manager.get_cache_stats()
    assert stats["total_models"] == 1
    assert stats["total_size_gb"] == pytest.approx((len(WEIGHTS) + 25) / 1024**3, rel=1e-3)
    (listed,) = manager.models()
    assert (listed.model_id, listed.complete, listed.origin) == (MODEL, True, "hub")


def test_an_interrupted_transfer_is_not_a_cached_model_and_goes_on_later(
    manager: ModelCacheManager, server: tuple[hub_server.Hub, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    server[0].cut["model.safetensors"] = 30_000
    with pytest.raises(AimError):
        manager.download_model(MODEL)
    assert not manager.is_cached(MODEL)
    server[0].cut.clear()
    sent = server[0].sent_bytes
    path = manager.download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert server[0].sent_bytes - sent < 2 * len(WEIGHTS)


def test_a_missing_shard_makes_a_model_incomplete(
    manager: ModelCacheManager, server: tuple[hub_server.Hub, str]
) -> None:
    index = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}).encode()
    server[0].models[MODEL] = {
        "config.json": b"{}", "model.safetensors.index.json": index, "model-1-of-2.safetensors": b"1", "model-2-of-2.safetensors": b"2",
    }  # fmt: skip
    path = manager.download_model(MODEL)
    assert manager.is_cached(MODEL)
    (path / "model-2-of-2.safetensors").unlink()
    assert not manager.is_cached(MODEL)
    manager.download_model(MODEL)
    assert manager.is_cached(MODEL)


def test_an_unknown_model_is_said_to_be_that(manager: ModelCacheManager) -> None:
    with pytest.raises(InvalidInput, match="the hub knows no model org/nothing"):
        manager.download_model("org/nothing")


def test_a_gated_model_says_how_to_get_access(manager: ModelCacheManager, server: tuple[hub_server.Hub, str]) -> None:
    server[0].gated.add(MODEL)
    with pytest.raises(InvalidInput, match="is gated") as caught:
        manager.download_model(MODEL)
    assert "HF_TOKEN" in str(caught.value.hint)


def test_an_unknown_revision_is_named(manager: ModelCacheManager) -> None:
    with pytest.raises(InvalidInput, match="has no revision 'v9'"):
        manager.download_model(MODEL, revision="v9")


@pytest.mark.parametrize(("status", "words"), [(429, "rate limit"), (500, "500"), (401, "HF_TOKEN")])
def test_a_refusing_hub_is_quoted(
    manager: ModelCacheManager, server: tuple[hub_server.Hub, str], status: int, words: str
) -> None:
    server[0].fail_api = status
    with pytest.raises(AimError) as caught:
        manager.download_model(MODEL)
    assert words in f"{caught.value.what} {caught.value.why} {caught.value.hint}"


def test_no_network_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="the hub cannot be reached to fetch org/model"):
        ModelCacheManager(tmp_path, endpoint="http://127.0.0.1:9").download_model(MODEL)


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a b", "-x/y", "x" * 200])
def test_what_is_no_model_id_is_refused(manager: ModelCacheManager, name: str) -> None:
    with pytest.raises(InvalidInput):
        manager.download_model(name)


def test_a_repository_without_weights_is_refused(
    manager: ModelCacheManager, server: tuple[hub_server.Hub, str]
) -> None:
    server[0].add("org/gguf", config__json=b"{}", model__gguf=b"x")
    with pytest.raises(InvalidInput, match="no weights that an engine loads"):
        manager.download_model("org/gguf")


def test_too_little_disk_space_is_known_before_the_first_byte(
    manager: ModelCacheManager, server: tuple[hub_server.Hub, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10_000))
    with pytest.raises(Unreachable, match="not enough disk space"):
        manager.download_model(MODEL)
    assert not any("/resolve/" in request for request in server[0].requests)


def test_old_models_go_and_used_ones_stay(manager: ModelCacheManager, server: tuple[hub_server.Hub, str]) -> None:
    server[0].models["org/other"] = dict(server[0].models[MODEL])
    old, young = manager.download_model(MODEL), manager.download_model("org/other")
    long_ago = time.time() - 90 * 86_400
    for path in (manager.cache_dir / "models--org--model").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert manager.cleanup_old_models(120) == ()
    (would,) = manager.cleanup_old_models(30, dry_run=True)
    assert would.model_id == MODEL
    assert would.idle_days == pytest.approx(90, abs=0.1)
    assert old.exists()
    with (old / "model.safetensors").open("rb"):
        assert in_use(manager.cache_dir / "models--org--model")
        assert manager.cleanup_old_models(30) == ()
    for path in (manager.cache_dir / "models--org--model").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert [removed.model_id for removed in manager.cleanup_old_models(30)] == [MODEL]
    assert not old.exists()
    assert young.exists()
    with pytest.raises(InvalidInput):
        manager.cleanup_old_models(-1)
