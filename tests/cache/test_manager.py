"""Fetching models once, finding them again, and removing old ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache

import hub_server
from aim_engine.cache import approval, layout
from aim_engine.cache.faults import AccessRefused, Gated, NoSpace, NoSuchModel, NoSuchRevision
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.process import in_use
from aim_engine.errors import AimError, InvalidInput, Unreachable
from caches import MODEL, WEIGHTS, Make


def test_a_model_is_fetched_once(manager: ModelCacheManager, make: Make, server: hub_server.Hub) -> None:
    assert not manager.is_cached(MODEL)
    assert manager.get_model_path(MODEL) is None
    path = manager.download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(each.name for each in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    asked = len(server.requests)
    again = make()
    assert again.is_cached(MODEL)
    assert again.get_model_path(MODEL) == path
    assert again.download_model(MODEL) == path
    assert again.download_model(MODEL, revision=hub_server.COMMIT) == path
    assert len(server.requests) == asked


def test_the_hubs_own_client_finds_what_was_fetched(
    manager: ModelCacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manager.download_model(MODEL)
    views = manager.cache_dir / "views" / "hf"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert snapshot_download(MODEL, cache_dir=views, local_files_only=True) == str(path)
    assert try_to_load_from_cache(MODEL, "config.json", cache_dir=views) == str(path / "config.json")
    (repo,) = scan_cache_dir(views).repos
    assert (repo.repo_id, repo.size_on_disk >= len(WEIGHTS)) == (MODEL, True)


def test_files_are_stored_once_read_only_and_shown_by_name(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.models["org/fork"] = {**server.models[MODEL], "config.json": b'{"model_type": "other"}'}
    first = manager.download_model(MODEL)
    sent = server.sent_bytes
    second = manager.download_model("org/fork")
    assert server.sent_bytes - sent < 5_000  # the listing and one changed file
    a, b = (first / "model.safetensors").stat(), (second / "model.safetensors").stat()
    assert a.st_ino == b.st_ino
    assert stat.S_IMODE(a.st_mode) == 0o444
    flat = manager.cache_dir / "views" / "flat" / f"org--model@{hub_server.COMMIT[:12]}"
    assert (flat / "model.safetensors").stat().st_ino == a.st_ino


def test_a_new_commit_costs_its_changed_file(manager: ModelCacheManager, make: Make, server: hub_server.Hub) -> None:
    files = {f"model-{number:05}-of-00050.safetensors": hub_server.safetensors(20_000, number) for number in range(49)}
    server.models[MODEL] = {"config.json": b"{}", **files}
    old = manager.download_model(MODEL)
    manager.index.path.unlink()  # even without the index
    changed = hub_server.safetensors(20_000, 99)
    server.models[MODEL]["model-00007-of-00050.safetensors"] = changed
    server.commits[MODEL] = "f" * 40
    requests, sent = len(server.requests), server.sent_bytes
    fresh = make()
    plan = fresh.plan_download(MODEL)
    assert [file.path for file in plan.missing] == ["model-00007-of-00050.safetensors"]
    assert plan.missing_bytes == len(changed)
    assert f"1 of 50 files to fetch, {len(changed) / 1024:.1f} KiB" in plan.describe()
    requests += 1
    new = fresh.download_model(MODEL, force=False, revision="f" * 40)
    assert len(server.requests) - requests <= 3
    assert server.sent_bytes - sent < len(changed) + 40_000  # two listings
    assert new != old
    assert (new / "config.json").stat().st_ino == (old / "config.json").stat().st_ino


def test_force_fetches_again(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    manager.download_model(MODEL)
    sent = server.sent_bytes
    path = manager.download_model(MODEL, force=True)
    assert server.sent_bytes >= sent + len(WEIGHTS)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_cached_model_needs_no_network(manager: ModelCacheManager, make: Make) -> None:
    path = manager.download_model(MODEL)
    offline = make(endpoint="http://127.0.0.1:9")
    began = time.perf_counter()
    assert offline.download_model(MODEL) == path
    assert time.perf_counter() - began < 1


def test_losing_the_index_loses_nothing(manager: ModelCacheManager, make: Make, server: hub_server.Hub) -> None:
    path = manager.download_model(MODEL)
    stats = manager.get_cache_stats()
    manager.index.close()
    manager.index.path.write_bytes(b"no database" * 1000)
    again = make()
    assert again.get_cache_stats() == stats
    assert again.get_model_path(MODEL) == path
    shutil.rmtree(again.index.path.parent)
    assert [model.model_id for model in make().models()] == [MODEL]


def test_statistics_have_the_promised_keys(manager: ModelCacheManager) -> None:
    assert manager.get_cache_stats() == {"total_models": 0, "total_size_gb": 0.0, "cache_dir": str(manager.cache_dir)}
    assert not manager.cache_dir.exists()
    manager.download_model(MODEL)
    stats = manager.get_cache_stats()
    assert stats["total_models"] == 1
    assert stats["total_size_gb"] == pytest.approx((len(WEIGHTS) + 41) / 1024**3)
    (listed,) = manager.models()
    assert (listed.model_id, listed.complete, listed.origin, listed.revisions) == (MODEL, True, "hub", 1)


@pytest.mark.parametrize("damage", ["rewritten", "truncated", "removed"])
def test_damaged_content_is_noticed_set_aside_and_fetched_again(
    damage: str, manager: ModelCacheManager, make: Make, server: hub_server.Hub
) -> None:
    path = manager.download_model(MODEL) / "model.safetensors"
    if damage == "removed":
        blob = next(each for each in (manager.cache_dir / "blobs" / "sha256").iterdir() if each.samefile(path))
        blob.unlink()
        path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes(WEIGHTS[:-1] + b"!" if damage == "rewritten" else WEIGHTS[:1000])
    said: list[str] = []
    again = make(progress=said.append)
    assert not again.is_cached(MODEL)
    sent = server.sent_bytes
    assert (again.download_model(MODEL) / "model.safetensors").read_bytes() == WEIGHTS
    assert server.sent_bytes - sent < len(WEIGHTS) + 5_000  # only what was damaged
    if damage != "removed":
        assert any("damaged content set aside: org/model model.safetensors" in line for line in said)
        assert len(list((manager.cache_dir / "quarantine").iterdir())) == 1


def test_touched_content_is_still_right(manager: ModelCacheManager, make: Make, server: hub_server.Hub) -> None:
    path = manager.download_model(MODEL)
    os.utime(path / "model.safetensors")
    asked = len(server.requests)
    assert make().download_model(MODEL) == path
    assert len(server.requests) == asked


def test_an_unknown_model_is_said_to_be_that(manager: ModelCacheManager) -> None:
    with pytest.raises(NoSuchModel, match="the hub knows no model org/nothing"):
        manager.download_model("org/nothing")


def test_a_gated_model_says_how_to_get_access(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.gated.add(MODEL)
    with pytest.raises(Gated, match="is gated") as caught:
        manager.download_model(MODEL)
    assert "HF_TOKEN" in str(caught.value.hint)
    assert "https://huggingface.co/org/model" in str(caught.value.hint)


def test_a_private_model_needs_its_token_and_keeps_it_secret(
    manager: ModelCacheManager, server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_canary0123456789"
    with pytest.raises(NoSuchModel, match="private"):
        manager.download_model(MODEL)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AimError) as caught:
        manager.download_model(MODEL)
    assert isinstance(caught.value, AccessRefused | NoSuchModel)
    monkeypatch.setenv("HF_TOKEN", server.token)
    manager.download_model(MODEL)
    content_host = server.content_address.removeprefix("http://")
    assert server.authorised
    assert not [request for request in server.authorised if request.startswith(content_host)]
    manager.index.close()
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.address,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "AIM_ENGINE_CACHE_DIR": str(tmp_path / "cache"),
        "AIM_ENGINE_STATE_DIR": str(tmp_path / "state"),
        "AIM_ENGINE_DATA_DIR": str(tmp_path / "data"),
    }
    server.fail_files.append((503, {}))
    for words in (
        ["cache", "pull", MODEL, "--force", "--json"],
        ["cache", "pull", MODEL, "--dry-run", "--json"],
        ["--debug", "cache", "pull", "org/unknown"],
        ["cache", "ls", "--files", "--json"],
        ["cache", "metrics"],
        ["cache", "export", "-o", str(tmp_path / "out.tar")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "aim_engine", *words], env=environment, capture_output=True, check=False
        )
        assert done.returncode in (0, 1), done.stderr  # with --debug an error is a traceback
        assert b"hf_canary" not in done.stdout + done.stderr
    assert (tmp_path / "out.tar").stat().st_size > len(WEIGHTS)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"hf_canary" not in path.read_bytes(), path


def test_an_unknown_revision_is_named(manager: ModelCacheManager) -> None:
    with pytest.raises(NoSuchRevision, match="has no revision 'v9'"):
        manager.download_model(MODEL, revision="v9")


@pytest.mark.parametrize(("status", "words"), [(429, "rate limit"), (500, "500"), (401, "HF_TOKEN"), (403, "HF_TOKEN")])
def test_a_refusing_hub_is_quoted(manager: ModelCacheManager, server: hub_server.Hub, status: int, words: str) -> None:
    server.fail_api = status
    with pytest.raises(AimError) as caught:
        manager.download_model(MODEL)
    assert words in f"{caught.value.what} {caught.value.why} {caught.value.hint}"


def test_no_network_is_unreachable(make: Make) -> None:
    with pytest.raises(Unreachable, match="the hub cannot be reached to fetch org/model"):
        make(endpoint="http://127.0.0.1:9").download_model(MODEL)


def test_a_mirror_answers_for_a_hub_that_does_not(make: Make, server: hub_server.Hub) -> None:
    path = make(endpoint=f"http://127.0.0.1:9, {server.address}").download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


def test_switched_off_network_is_respected(
    manager: ModelCacheManager, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE is set"):
        manager.download_model(MODEL)
    assert server.requests == []


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a b", "-x/y", "x" * 200, "a/..", "a\nb", "models--x"])
def test_what_is_no_model_id_is_refused(manager: ModelCacheManager, name: str) -> None:
    with pytest.raises(InvalidInput):
        manager.download_model(name)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("https://huggingface.co/org/model", "did you mean org/model?"),
        ("https://huggingface.co/org/model/tree/main?x=1", "did you mean org/model?"),
        ("org/model ", "did you mean org/model?"),
        ("org/model@v1", "did you mean org/model --revision v1?"),
        ("org/model:latest", "did you mean org/model --revision latest?"),
        ("./weights", "there is no folder ./weights"),
        ("hf://", "for example Qwen/Qwen3-32B, or the path of a folder"),
        ("a--b", "for example Qwen/Qwen3-32B, or the path of a folder"),
    ],
)
def test_what_was_probably_meant_is_said(given: str, meant: str, manager: ModelCacheManager) -> None:
    with pytest.raises(InvalidInput, match="not a model id") as caught:
        manager.download_model(given)
    assert caught.value.hint == meant


def test_a_folder_that_cannot_be_made_is_told(make: Make) -> None:
    manager = make()
    manager.store.root = Path("/proc/nothing")
    with pytest.raises(Unreachable, match="/proc/nothing"):
        manager.store.ensure()


def test_a_repository_without_weights_is_refused(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.add("org/gguf", config__json=b"{}", model__gguf=b"x")
    with pytest.raises(InvalidInput, match="no weights that an engine loads"):
        manager.download_model("org/gguf")


def test_a_pickle_may_be_accepted_by_its_checksum(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    content = b"pickled" * 100
    server.add("org/old", config__json=b"{}", pytorch_model__bin=content)
    digest = hashlib.sha256(content).hexdigest()
    path = manager.download_model("org/old", approved=[digest])
    assert (path / "pytorch_model.bin").read_bytes() == content
    assert [each.sha256 for each in approval.of(manager.store, "org/old")] == [digest]


def test_too_little_disk_space_is_known_before_the_first_byte(
    manager: ModelCacheManager, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10_000))
    with pytest.raises(NoSpace, match="not enough disk space"):
        manager.download_model(MODEL)
    assert not any("/resolve/" in request for request in server.requests)


def test_old_models_go_and_used_ones_stay(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.models["org/other"] = {**server.models[MODEL], "model.safetensors": hub_server.safetensors(9_000, 3)}
    old, young = manager.download_model(MODEL), manager.download_model("org/other")
    used = manager.cache_dir / "manifests" / "models--org--model" / f"{hub_server.COMMIT}.used"
    long_ago = time.time() - 90 * 86_400
    os.utime(used, (long_ago, long_ago))
    assert manager.cleanup_old_models(120) == ()
    (would,) = manager.cleanup_old_models(30, dry_run=True)
    assert would.model_id == MODEL
    assert would.idle_days == pytest.approx(90, abs=0.1)
    assert old.exists()
    with (old / "model.safetensors").open("rb"):
        assert in_use(manager.cache_dir / "views" / "hf" / "models--org--model")
        assert manager.cleanup_old_models(30) == ()
    assert [removed.model_id for removed in manager.cleanup_old_models(30)] == [MODEL]
    assert not old.exists()
    assert (young / "tokenizer.json").exists()  # it shares this file with the one that went
    assert manager.is_cached("org/other")
    with pytest.raises(InvalidInput):
        manager.cleanup_old_models(-1)


def test_what_was_removed_comes_back_from_the_trash(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    manager.download_model(MODEL)
    manager.remove_model(MODEL)
    assert not manager.is_cached(MODEL)
    sent = server.sent_bytes
    path = manager.download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert server.sent_bytes - sent < 5_000


def test_a_read_only_cache_still_answers(
    manager: ModelCacheManager, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manager.download_model(MODEL)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(layout, "write", refuse)
    assert make().get_model_path(MODEL) == path
    assert make().get_cache_stats()["total_models"] == 1
