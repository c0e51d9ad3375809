"""Carrying models between stores as OCI image layouts."""

from __future__ import annotations

import io
import json
import shutil
import socket
import tarfile
from pathlib import Path

import pytest

import hub_server
from aim_engine.cache import bundle
from aim_engine.cache.faults import Damaged, Unsafe
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.errors import AimError, InvalidInput
from caches import MODEL, WEIGHTS


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCacheManager:
    """A cache where no network is."""
    return ModelCacheManager(
        tmp_path / "other",
        endpoint="http://127.0.0.1:9",
        hub_cache=tmp_path / "none",
        index_dir=tmp_path / "other-index",
    )


def carried(manager: ModelCacheManager, place: Path, *models: str) -> Path:
    bundle.write(manager.store, manager.index, models, place)
    return place


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_a_bundle_brings_a_model_where_no_network_is(
    name: str, manager: ModelCacheManager, other: ModelCacheManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.download_model(MODEL)
    place = carried(manager, tmp_path / name, MODEL)

    def refuse(*args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    moved = other.import_bundle(place)
    assert moved.models == (f"{MODEL}@{hub_server.COMMIT}",)
    path = other.download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert other.verify() == ()


def test_a_folder_on_the_same_disk_costs_no_bytes(manager: ModelCacheManager, tmp_path: Path) -> None:
    path = manager.download_model(MODEL)
    place = carried(manager, tmp_path / "bundle")
    linked = [each for each in (place / "blobs" / "sha256").iterdir() if each.samefile(path / "model.safetensors")]
    assert len(linked) == 1
    assert json.loads((place / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_another_caches_folder_is_a_bundle(manager: ModelCacheManager, other: ModelCacheManager) -> None:
    manager.download_model(MODEL)
    other.import_bundle(manager.cache_dir)
    assert other.is_cached(MODEL, hub_server.COMMIT)


def test_only_what_was_named_is_carried(manager: ModelCacheManager, server: hub_server.Hub, tmp_path: Path) -> None:
    server.models["org/other"] = {"config.json": b"{}", "model.safetensors": hub_server.safetensors(9000, 7)}
    manager.download_model(MODEL)
    manager.download_model("org/other")
    place = carried(manager, tmp_path / "bundle", "org/other")
    assert len(list((place / "blobs" / "sha256").iterdir())) == 3  # config {} is the empty configuration too
    with pytest.raises(InvalidInput, match="exists"):
        carried(manager, place)
    with pytest.raises(InvalidInput, match="org/absent is not in the cache"):
        carried(manager, tmp_path / "b2", "org/absent")


def biggest(place: Path) -> Path:
    return max((place / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing", "symlink", "no index", "manifest"])
def test_a_damaged_bundle_is_refused(
    fault: str, manager: ModelCacheManager, other: ModelCacheManager, tmp_path: Path
) -> None:
    manager.download_model(MODEL)
    place = tmp_path / "copy"
    shutil.copytree(carried(manager, tmp_path / "bundle"), place)
    blob = biggest(place)
    blob.chmod(0o644)
    if fault == "flipped":
        blob.write_bytes(WEIGHTS[:-1] + b"!")
    elif fault == "truncated":
        blob.write_bytes(WEIGHTS[:-1])
    elif fault in ("missing", "symlink"):
        blob.unlink()
        if fault == "symlink":
            secret = tmp_path / "secret"
            secret.write_bytes(WEIGHTS)
            blob.symlink_to(secret)
    elif fault == "no index":
        (place / "index.json").write_text("{}")
    else:
        (entry,) = json.loads((place / "index.json").read_text())["manifests"]
        manifest = place / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")
        manifest.chmod(0o644)
        manifest.write_bytes(manifest.read_bytes().replace(b"model.safetensors", b"../../safetensors"))
    with pytest.raises(AimError):
        other.import_bundle(place)
    assert not other.is_cached(MODEL)
    assert list((other.cache_dir / "parts").iterdir()) == []


def test_a_tar_with_paths_that_lead_out_writes_nothing_there(
    manager: ModelCacheManager, other: ModelCacheManager, tmp_path: Path
) -> None:
    manager.download_model(MODEL)
    place = carried(manager, tmp_path / "bundle.tar")
    with tarfile.open(place, "a:") as archive:
        for name in ("../escaped", "/tmp/aim-engine-escaped", "blobs/sha256/../../../escaped"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
    other.import_bundle(place)
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/aim-engine-escaped").exists()


def test_a_bundle_with_code_is_refused(
    manager: ModelCacheManager, other: ModelCacheManager, tmp_path: Path, server: hub_server.Hub
) -> None:
    import hashlib

    server.add("org/old", config__json=b"{}", pytorch_model__bin=b"pickled" * 100)
    manager.download_model("org/old", approved=[hashlib.sha256(b"pickled" * 100).hexdigest()])
    with pytest.raises(Unsafe, match="runs code"):
        other.import_bundle(carried(manager, tmp_path / "bundle"))


def test_what_is_no_bundle_is_said_to_be_that(other: ModelCacheManager, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(Damaged):
        other.import_bundle(tmp_path / "x.tar")
    with pytest.raises(InvalidInput, match="does not exist"):
        other.import_bundle(tmp_path / "nothing.tar")
