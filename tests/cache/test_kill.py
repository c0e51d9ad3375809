"""Downloads whose process is killed again and again, at any moment: no bad file, little fetched twice, nothing left behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hub_server
from aim_engine.cache import pieces
from aim_engine.cache.manager import ModelCacheManager
from caches import MODEL

PIECE = 64 * 1024
SIZE = 2 << 20
_PROGRAM = """
import os, sys
import filelock, sqlite3, urllib3
from aim_engine.cache import acquire
from aim_engine.cache.manager import ModelCacheManager
for line in sys.stdin:
    cache, address, index, piece = line.split()
    child = os.fork()
    if child == 0:
        manager = ModelCacheManager(cache, endpoint=address, hub_cache="/nowhere", index_dir=index)
        if manager.get_model_path("org/model") is None:
            manager.store.ensure()
            plan = manager.plan_download("org/model")
            acquire.apply(plan, manager.store, manager.index, manager.client(), piece_bytes=int(piece))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LEAST_DOWNLOADS = int(os.environ.get("AIM_ENGINE_KILL_DOWNLOADS", "40"))
LEAST_KILLS = int(os.environ.get("AIM_ENGINE_KILLS", "120"))
"""How long the loop goes on; more of both for an afternoon."""
IN_FLIGHT = 4
"""Connections that a short download opens."""


class Downloads:
    """Starts downloads, each in a fresh process, without waiting for an interpreter each time."""

    def __enter__(self) -> Downloads:
        self._forker = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._forker.communicate(timeout=60)

    def run(self, arguments: list[str], after_s: float) -> bool:
        """Kill a download after a while; was it killed, rather than done?"""
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._forker.stdin.write(" ".join(arguments) + "\n")
        self._forker.stdin.flush()
        child = int(self._forker.stdout.readline())
        if not select.select([self._forker.stdout], [], [], after_s)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        code = int(self._forker.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code != 0


def rounds(tmp_path: Path, downloads: int, kills_each: int, seed: int) -> tuple[int, int]:
    """Kills that met a download, and bytes that came more than once."""
    rng = random.Random(seed)
    behind = hub_server.Hub()
    behind.rate_bytes_s = 1_000_000
    killed = wasted = 0
    with hub_server.serving(behind) as address, Downloads() as process:
        for number in range(downloads):
            weights = hub_server.safetensors(SIZE, number)
            behind.add(MODEL, config__json=b"{}", model__safetensors=weights)
            behind.commits[MODEL] = hashlib.sha1(weights, usedforsecurity=False).hexdigest()
            cache = tmp_path / f"cache-{number}"
            arguments = [str(cache), address, str(tmp_path / "index"), str(PIECE)]
            sent = behind.sent_bytes
            while process.run(arguments, rng.uniform(0.0, 0.9 / kills_each) + 0.14):
                killed += 1
            manager = ModelCacheManager(cache, endpoint=address, hub_cache="/nowhere", index_dir=tmp_path / "index")
            path = manager.get_model_path(MODEL)
            assert path is not None
            assert (path / "model.safetensors").read_bytes() == weights
            for blob in (cache / "blobs" / "sha256").iterdir():
                assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
            before = manager.index.blobs()
            manager.index.rebuild()
            assert {key: each.size_bytes for key, each in manager.index.blobs().items()} == {
                key: each.size_bytes for key, each in before.items()
            }
            left = set((cache / "parts").iterdir())
            assert left <= set(pieces.abandoned(manager.store))
            manager.index.close()
            wasted += max(0, behind.sent_bytes - sent - len(weights))
            shutil.rmtree(cache)
    return killed, wasted


def test_a_killed_download_goes_on(tmp_path: Path) -> None:
    killed, wasted = rounds(tmp_path, downloads=1, kills_each=4, seed=1)
    assert killed >= 1
    assert wasted <= 1.25 * IN_FLIGHT * PIECE * killed + 50_000 * (killed + 1)


@pytest.mark.kill
def test_many_downloads_survive_many_kills(tmp_path: Path) -> None:
    killed = wasted = downloads = 0
    with ThreadPoolExecutor(4) as pool:
        while downloads < LEAST_DOWNLOADS or killed < LEAST_KILLS:
            places = [tmp_path / f"{downloads + number}" for number in range(0, 40, 10)]
            for more, again in pool.map(lambda place: rounds(place, 10, 4, int(place.name)), places):
                killed, wasted, downloads = killed + more, wasted + again, downloads + 10
    sys.stderr.write(f"{downloads} downloads, {killed} kills, {wasted // killed:,} bytes wasted per kill\n")
    assert wasted <= 1.25 * IN_FLIGHT * PIECE * killed
