"""Disks that are really full, out of inodes, read-only or cut off from power: file systems of their own, mounted for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hub_server
from caches import MODEL

_PROGRAM = """
import os, sys
from pathlib import Path
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.transport import Patience
from aim_engine.errors import AimError
place, address, index, what = sys.argv[1:5]
def manager():
    return ModelCacheManager(place + "/cache", endpoint=address, hub_cache="/nowhere", index_dir=index,
                             patience=Patience(attempts=2, backoff_s=0.01))
kept = manager().download_model("org/kept")
if what == "inodes":
    for number in range(10_000):
        try:
            Path(place, f"filler{number}").touch()
        except OSError:
            break
if what == "fills":
    from aim_engine.cache import layout
    layout.free_bytes = lambda _: 1 << 40  # others fill the disk meanwhile
if what == "read-only":
    os.system(f"mount -o remount,ro {place}")
try:
    manager().download_model("org/model")
except AimError as err:
    print(type(err).__name__, "|", err, "|", err.hint)
again = manager()
assert again.get_model_path("org/kept") == kept
assert (kept / "model.safetensors").stat().st_size > 0
assert again.get_cache_stats()["total_models"] == 1
assert again.verify() == ()
if what == "inodes":
    for path in Path(place).glob("filler*"):
        path.unlink()
    print(manager().download_model("org/model").name)
if what == "fills":
    os.system(f"mount -o remount,size=40m {place}")
    print(manager().download_model("org/model").name)
"""


def mounted(what: str, options: str, address: str, tmp_path: Path) -> str:
    """What a program says that uses a cache on a small file system, in a namespace of its own where mounting is its right."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f'mount -t tmpfs -o {options} tmpfs {disk} && exec "$@"'
    arguments = [sys.executable, "-c", _PROGRAM, str(disk), address, str(tmp_path / "index"), what]
    probe = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True, check=False
    )
    if probe.returncode != 0:
        pytest.skip("no user namespaces for mounting here: apt-get install util-linux, sysctl user.max_user_namespaces")
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command, "sh", *arguments],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def address(server: hub_server.Hub) -> str:
    server.models[MODEL] = {"config.json": b"{}", "model.safetensors": hub_server.safetensors(12 << 20)}
    server.models["org/kept"] = {"config.json": b'{"kept": 1}', "model.safetensors": hub_server.safetensors(1 << 20, 5)}
    return server.address


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    address: str, server: hub_server.Hub, tmp_path: Path
) -> None:
    said = mounted("small", "size=8m", address, tmp_path)
    assert said.startswith("NoSpace | ")
    assert not any("/resolve/" in each and "model.safetensors" in each for each in server.requests if MODEL in each)


def test_a_disk_that_others_fill_is_told_and_the_download_goes_on_when_there_is_room(
    address: str, server: hub_server.Hub, tmp_path: Path
) -> None:
    said = mounted("fills", "size=9m", address, tmp_path).splitlines()
    assert said[0].startswith("NoSpace | ")
    assert said[-1] == hub_server.COMMIT


def test_a_disk_without_inodes_is_told_and_goes_on_when_there_are_some(address: str, tmp_path: Path) -> None:
    said = mounted("inodes", "size=60m,nr_inodes=120", address, tmp_path).splitlines()
    assert said[0].startswith("NoSpace | ")
    assert said[-1] == hub_server.COMMIT


def test_a_disk_that_became_read_only_is_told_and_still_answers(address: str, tmp_path: Path) -> None:
    said = mounted("read-only", "size=60m", address, tmp_path)
    assert "cannot be written" in said
