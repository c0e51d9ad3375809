"""What was fetched goes on to a nearer place, and survives whatever interrupts that."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import hub_server
from aim_engine.cache import doctor, metrics, objects, writeback
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.pace import UNPACED
from aim_engine.cli.cache import cache
from aim_engine.errors import InvalidInput
from caches import HASTY, MODEL, WEIGHTS, Make, bucket

SETTING = "AIM_ENGINE_CACHE_WRITE_BACK"


def elsewhere(place: str, tmp_path: Path) -> ModelCacheManager:
    """A node that reaches no hub."""
    return ModelCacheManager(
        tmp_path / "elsewhere", endpoint=place, hub_cache="/nowhere", index_dir=tmp_path / "e", patience=HASTY
    )


def test_nothing_is_written_anywhere_unless_it_is_asked_for(make: Make) -> None:
    manager = make()
    manager.download_model(MODEL)
    assert writeback.pending(manager.store) == ()
    assert writeback.drain(manager) == ()


def test_what_was_fetched_is_at_the_nearer_place_for_the_next_node(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket(monkeypatch):
        monkeypatch.setenv(SETTING, "s3://models/near")
        manager = make()
        manager.download_model(MODEL)
        assert metrics.gauges(manager)["write_back_pending"] == 1
        [written] = writeback.drain(manager, pace=UNPACED)
        assert written.written_bytes > len(WEIGHTS)
        assert writeback.pending(manager.store) == ()
        assert manager.index.counters()["written_back_bytes"] == written.written_bytes
        assert (
            elsewhere("s3://models/near", tmp_path).download_model(MODEL) / "model.safetensors"
        ).read_bytes() == WEIGHTS
        manager.download_model(MODEL)  # it was there: nothing to pass on
        assert writeback.pending(manager.store) == ()


def test_a_place_that_fails_is_told_and_gets_the_rest_later(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "shared"
    monkeypatch.setenv(SETTING, str(place))
    (place / MODEL / "model.safetensors").mkdir(parents=True)  # a file cannot go there
    manager = make()
    manager.download_model(MODEL)
    said: list[str] = []
    assert writeback.drain(manager, said.append, pace=UNPACED) == ()
    [wish] = writeback.pending(manager.store)
    assert wish.attempts == 1
    assert "config.json" in wish.written
    assert any("waits to be written" in each for each in said)
    assert any(not each.fine and "waits to be written" in each.what for each in doctor.examine(manager))
    shutil.rmtree(place / MODEL / "model.safetensors")
    before = (place / MODEL / "config.json").stat().st_mtime_ns
    [written] = writeback.drain(make(), pace=UNPACED)
    assert (place / MODEL / "config.json").stat().st_mtime_ns == before
    assert written.present_bytes > 0
    assert (elsewhere(str(place), tmp_path).download_model(MODEL) / "model.safetensors").read_bytes() == WEIGHTS


def _drain_slowly(folder: Path) -> None:
    manager = ModelCacheManager(
        folder / "cache", hub_cache="/nowhere", index_dir=folder / "index", bandwidth_bytes_s=600_000
    )
    writeback.drain(manager)


def test_a_killed_write_goes_on_with_the_next_file(
    make: Make, server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "shared"
    monkeypatch.setenv(SETTING, str(place))
    for number in range(4):
        server.models[MODEL][f"model-{number}.safetensors"] = hub_server.safetensors(100_000, number)
    manager = make()
    manager.download_model(MODEL)
    began = time.monotonic()
    other = multiprocessing.get_context("spawn").Process(target=_drain_slowly, args=(tmp_path,))
    other.start()
    until = time.monotonic() + 60
    while time.monotonic() < until and "model-1.safetensors" not in writeback.pending(manager.store)[0].written:
        time.sleep(0.02)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert time.monotonic() - began > 0.8  # 200 kB at 0.3 x 600 kB/s
    [wish] = writeback.pending(manager.store)
    before = {path: (place / MODEL / path).stat().st_mtime_ns for path in wish.written}
    assert "model-1.safetensors" in before
    assert not (place / MODEL / "SHA256SUMS").exists()
    writeback.drain(manager, pace=UNPACED)
    assert {path: (place / MODEL / path).stat().st_mtime_ns for path in before} == before
    found = elsewhere(str(place), tmp_path).download_model(MODEL)
    assert (found / "model-3.safetensors").read_bytes() == hub_server.safetensors(100_000, 3)


def test_an_older_version_does_not_replace_the_newest(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, str(tmp_path / "shared"))
    manager = make()
    manager.download_model(MODEL, revision=hub_server.COMMIT)
    assert writeback.pending(manager.store) == ()
    monkeypatch.setenv(SETTING, str(tmp_path / "kept" / "{model}" / "{revision}"))
    manager = make()
    manager.download_model(MODEL, revision=hub_server.COMMIT, force=True)
    writeback.drain(manager, pace=UNPACED)
    assert (tmp_path / "kept" / MODEL / hub_server.COMMIT / "SHA256SUMS").is_file()


def test_what_comes_from_a_place_does_not_go_back_there(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "shared")
    monkeypatch.setenv(SETTING, place)
    writeback_to = make()
    writeback_to.download_model(MODEL)
    writeback.drain(writeback_to, pace=UNPACED)
    manager = elsewhere(place, tmp_path)
    manager.download_model(MODEL)
    assert writeback.pending(manager.store) == ()


def test_a_model_that_went_meanwhile_is_not_waited_for(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, str(tmp_path / "shared"))
    manager = make()
    manager.download_model(MODEL)
    manager.remove_model(MODEL)
    said: list[str] = []
    assert writeback.drain(manager, said.append) == ()
    assert writeback.pending(manager.store) == ()
    assert any("not here any more" in each for each in said)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_fetched(
    make: Make, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, "https://huggingface.co")
    with pytest.raises(InvalidInput, match="nothing can be written"):
        make().download_model(MODEL)
    assert server.sent_bytes < 5_000


def test_pull_passes_on_and_sync_carries_out_what_waits(
    make: Make, server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "shared"
    for name, value in {
        SETTING: str(place), "AIM_ENGINE_CACHE_DIR": str(tmp_path / "cache"), "AIM_ENGINE_STATE_DIR": str(tmp_path / "state"),
        "AIM_ENGINE_DATA_DIR": str(tmp_path / "data"), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": server.address,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    blocker = place / MODEL / "config.json"
    blocker.mkdir(parents=True)
    told = CliRunner().invoke(cache, ["pull", MODEL], standalone_mode=False)
    assert told.exception is None
    assert "waits to be written" in told.stderr
    assert CliRunner().invoke(cache, ["sync", "--pending"], standalone_mode=False).return_value == 1
    blocker.rmdir()
    done = CliRunner().invoke(cache, ["sync", "--pending"], standalone_mode=False)
    assert (done.return_value, "written" in done.stdout) == (0, True)
    assert (place / MODEL / "SHA256SUMS").is_file()


@pytest.mark.parametrize("size_bytes", [0, 1, 49 << 30, 900 << 30, 5 << 40])
def test_an_object_has_no_more_parts_than_a_store_takes(size_bytes: int) -> None:
    part = objects.part_bytes(size_bytes)
    assert part * 10_000 >= size_bytes
    assert 5 << 20 <= part <= 5 << 30
