"""Power is lost: an ext4 of our own is cut off at random moments, with all that it had not written, and mounted again.

Source: linux fs/ext4/ioctl.c EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH, as xfstests' src/godown.c does.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub_server
from aim_engine.cache import manifest, pieces
from aim_engine.cache.manager import ModelCacheManager
from caches import HASTY

ROUNDS = 6
MANY = int(os.environ.get("AIM_ENGINE_POWER_CUTS", "60"))
_SHUTDOWN = 0x8004587D
_LOSE_EVERYTHING = 2
_PROGRAM = """
import sys
from aim_engine.cache import evict
from aim_engine.cache.manager import ModelCacheManager
place, address, index, first = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
for step in range(first, first + 1000):
    manager = ModelCacheManager(place + "/cache", endpoint=address, hub_cache="/nowhere", index_dir=index)
    manager.download_model(f"org/m{step % 8}")
    print("have", step % 8, flush=True)
    if step % 3 == 2:
        print("drop", (step - 1) % 8, flush=True)
        manager.remove_model(f"org/m{(step - 1) % 8}")
        evict.empty_trash(manager.store, grace_s=0)
    manager.index.close()
"""


@contextlib.contextmanager
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small ext4 that may be cut off."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as handle:
        handle.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    try:
        mount(image, place)
    except subprocess.CalledProcessError as err:
        pytest.skip(f"nothing can be mounted here: {err.stderr}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def mount(image: Path, place: Path) -> None:
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True, text=True)


def cut(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _LOSE_EVERYTHING))
    finally:
        os.close(descriptor)


def lose_power(rounds: int, tmp_path: Path, seed: int) -> int:
    """Rounds of work that a loss of power ends; how often something was there to be lost."""
    rng = random.Random(seed)
    behind = hub_server.Hub()
    weights = [hub_server.safetensors(1_500_000, number) for number in range(8)]
    for number, content in enumerate(weights):
        behind.add(f"org/m{number}", config__json=b'{"n": %d}' % number, model__safetensors=content)
    met, first = 0, 0
    with hub_server.serving(behind) as address, disk(tmp_path) as place:
        for number in range(rounds):
            index = tmp_path / "index"  # on a disk of its own, which may be ahead of what is left
            worker = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(place), address, str(index), str(first)],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            assert worker.stdout is not None
            said = [worker.stdout.readline()] if number else []
            time.sleep(rng.uniform(0.0, 1.2))
            cut(place)
            worker.kill()
            said += worker.communicate()[0].splitlines()
            subprocess.run(["umount", str(place)], check=True)
            mount(tmp_path / "image", place)
            have: set[int] = set()
            for line in said:
                word, _, which = line.strip().partition(" ")
                (have.add if word == "have" else have.discard)(int(which)) if which else None
            met += bool(said)
            manager = ModelCacheManager(
                place / "cache", endpoint=address, hub_cache="/nowhere", index_dir=index, patience=HASTY
            )
            if not manager.store.exists:
                assert not have
                continue
            for blob in manager.store.path("blobs", "sha256").iterdir():
                assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
            for path in manager.store.path("manifests").glob("*/*.json"):
                revision = manifest.decode(path.read_bytes(), str(path))
                assert all(manager.store.blob(file.sha256).exists() for file in revision.files)
            for each in sorted(have):
                found = manager.get_model_path(f"org/m{each}")
                assert found is not None, (each, said)
                assert (found / "model.safetensors").read_bytes() == weights[each]
            assert manager.verify() == ()
            assert len(pieces.abandoned(manager.store)) == len(list(manager.store.path("parts").iterdir()))
            manager.index.close()
            if rng.random() < 0.5:
                shutil.rmtree(index)
            first = rng.randrange(8)
    return met


@pytest.fixture(autouse=True)
def mounting_is_possible() -> None:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None or not Path("/dev/loop-control").exists():
        pytest.skip("mounting a disk of one's own takes root, loop devices and mkfs.ext4: apt-get install e2fsprogs")


def test_losing_power_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    assert lose_power(ROUNDS, tmp_path, seed=3) >= ROUNDS - 2


@pytest.mark.kill
def test_losing_power_very_often_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    assert lose_power(MANY, tmp_path, seed=random.randrange(10**6)) >= MANY // 2
