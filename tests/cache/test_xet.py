"""Files in Xet storage, through the hub's real library against a storage of our own, and what goes wrong with both."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub_server
import xet_server
from aim_engine.cache import acquire, xet
from aim_engine.cache.faults import Damaged, Unavailable
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.progress import Tally
from aim_engine.cache.transport import Patience
from caches import MODEL, WEIGHTS, Make

FILE = "model.safetensors"
PIECE = 64 * 1024
PATIENT = Patience(connect_s=5, read_s=5, stall_s=4, attempts=4, backoff_s=0.01)
"""A process takes longer to begin than a connection."""
LARGE = hub_server.safetensors(24 << 20)


@pytest.fixture
def make(make: Make) -> Make:
    return functools.partial(make, patience=PATIENT)


@pytest.fixture
def storage(server: hub_server.Hub) -> Iterator[xet_server.Xet]:
    with xet_server.serving(server) as found:
        yield found


def pull(manager: ModelCacheManager, piece_bytes: int = PIECE) -> tuple[Path, Tally]:
    manager.store.ensure()
    plan = manager.plan_download(MODEL)
    tally = acquire.apply(plan, manager.store, manager.index, manager.client(), piece_bytes=piece_bytes)
    found = manager.get_model_path(MODEL)
    assert found is not None
    return found, tally


def helpers(parent: int) -> list[int]:
    """The library's processes that a process started."""
    found = []
    for each in Path("/proc").iterdir():
        try:
            told = (each / "stat").read_text().rpartition(")")[2].split()
            if int(told[1]) == parent and b"aim_engine.cache.xet" in (each / "cmdline").read_bytes():
                found.append(int(each.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def test_a_file_that_lies_in_xet_storage_only_comes_from_there(
    make: Make, server: hub_server.Hub, storage: xet_server.Xet
) -> None:
    server.plain_status = 403
    path, _ = pull(make())
    assert (path / FILE).read_bytes() == WEIGHTS
    assert storage.reconstructions == [f"0-{len(WEIGHTS)}"]
    assert storage.posted == []  # it reports nothing
    assert list((make().cache_dir / "parts").iterdir()) == []


def test_large_files_come_through_the_library_when_asked_for_and_small_ones_do_not(
    make: Make, server: hub_server.Hub, storage: xet_server.Xet
) -> None:
    server.models[MODEL]["model.safetensors"] = LARGE
    path, tally = pull(make(xet_first=True), 1 << 20)
    assert (path / FILE).read_bytes() == LARGE
    assert storage.sent_bytes > len(LARGE)
    assert not [each for each in server.requests if each.startswith("GET /content/")]
    assert tally.received_bytes == len(LARGE) + 41
    assert (path / "config.json").is_file()


@pytest.mark.parametrize(
    ("size_bytes", "wanted", "first"),
    [(60 * 1000**3, False, True), (40 * 1000**3, False, False), (40 * 1000**3, True, True), (1 << 20, True, False)],
)
def test_the_library_is_asked_first_where_that_pays(size_bytes: int, wanted: bool, first: bool) -> None:
    assert xet.goes_first(size_bytes, wanted=wanted) is first


def test_the_librarys_process_is_bounded_and_told_its_token_in_secret(
    make: Make, server: hub_server.Hub, storage: xet_server.Xet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_user")
    monkeypatch.setenv("HF_XET_HIGH_PERFORMANCE", "1")
    server.plain_status, storage.rate_bytes_s = 403, 400_000
    seen: list[tuple[bytes, bytes, str]] = []

    def watch() -> None:
        until = time.monotonic() + 20
        while not seen and time.monotonic() < until:
            for each in helpers(os.getpid()):
                place = Path("/proc", str(each))
                limits = (place / "limits").read_text()
                if f"{xet.MEMORY_BYTES}" in limits:
                    seen.append(((place / "cmdline").read_bytes(), (place / "environ").read_bytes(), limits))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    pull(make())
    watcher.join()
    [(arguments, environment, limits)] = seen
    assert b"hf_secret_of_the_user" not in arguments + environment
    assert xet_server.TOKEN.encode() not in arguments + environment
    assert b"HIGH_PERFORMANCE" not in environment
    data = next(line for line in limits.splitlines() if line.startswith("Max data size"))
    assert str(xet.MEMORY_BYTES) in data


def test_what_the_library_lets_through_is_found_and_fetched_again(
    make: Make, server: hub_server.Hub, storage: xet_server.Xet
) -> None:
    server.plain_status, storage.flip = 403, 1
    path, tally = pull(make())
    assert (path / FILE).read_bytes() == WEIGHTS
    assert tally.repaired_files == 1
    assert tally.received_bytes <= 2 * len(WEIGHTS) + 41
    storage.flip = 1000
    make().store.blob(hub_server._sha256(WEIGHTS)).unlink()
    with pytest.raises(Damaged, match="wrong checksum"):
        make().download_model(MODEL, force=True)


def test_a_library_that_brings_nothing_is_ended_and_the_plain_address_goes_on_there(
    make: Make, server: hub_server.Hub, storage: xet_server.Xet
) -> None:
    server.models[MODEL]["model.safetensors"] = LARGE
    storage.silent_after = 4
    said: list[str] = []
    path, tally = pull(make(xet_first=True, progress=said.append), 1 << 20)
    assert (path / FILE).read_bytes() == LARGE
    assert any("Xet storage brought nothing for" in each for each in said)
    assert helpers(os.getpid()) == []
    plain = [each for each in server.requests if each.startswith("GET /content/")]
    assert 0 < len(plain) < 24  # not the pieces that the library brought before
    assert tally.received_bytes < len(LARGE) + (2 << 20)


def test_a_storage_that_refuses_leaves_the_plain_address(
    make: Make, server: hub_server.Hub, storage: xet_server.Xet
) -> None:
    server.models[MODEL]["model.safetensors"] = LARGE
    storage.refuse = True
    path, _ = pull(make(xet_first=True), 1 << 20)
    assert (path / FILE).read_bytes() == LARGE
    assert storage.sent_bytes == 0


def test_without_the_library_a_refusal_says_what_helps(
    make: Make, server: hub_server.Hub, storage: xet_server.Xet, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plain_status = 403
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with pytest.raises(Unavailable) as caught:
        pull(make())
    assert "status 403" in str(caught.value.why)
    assert "Xet storage" in str(caught.value.why)
    assert "aim-engine[xet]" in str(caught.value.hint)


def _pull_in_its_own_process(folder: Path, address: str) -> None:
    os.setpgid(0, 0)
    manager = ModelCacheManager(
        folder / "cache",
        endpoint=address,
        hub_cache=folder / "hub",
        index_dir=folder / "index2",
        patience=PATIENT,
        xet_first=True,
    )
    pull(manager, 1 << 20)


def test_a_killed_download_from_xet_storage_goes_on_and_leaves_no_process(
    make: Make, server: hub_server.Hub, storage: xet_server.Xet, tmp_path: Path
) -> None:
    server.models[MODEL]["model.safetensors"] = LARGE
    storage.rate_bytes_s = 4_000_000
    other = multiprocessing.get_context("spawn").Process(
        target=_pull_in_its_own_process, args=(tmp_path, server.address)
    )
    other.start()
    assert other.pid is not None
    until = time.monotonic() + 60
    while storage.sent_bytes < 9_000_000 and time.monotonic() < until:
        time.sleep(0.02)
    mine = helpers(other.pid)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert len(mine) == 1
    while Path("/proc", str(mine[0])).exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path("/proc", str(mine[0])).exists()
    storage.rate_bytes_s = None
    path, tally = pull(make(xet_first=True), 1 << 20)
    assert (path / FILE).read_bytes() == LARGE
    assert tally.resumed_bytes > 0
    assert storage.reconstructions[-1] == f"{tally.resumed_bytes}-{len(LARGE)}"
