"""The store's folder: what it accepts, refuses and promises."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aim_engine.cache import layout, locks, manifest, names
from aim_engine.cache.faults import Damaged, ForeignStore
from aim_engine.cache.layout import Store
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.manifest import Revision, StoredFile
from aim_engine.errors import AimError
from caches import MODEL


def test_the_store_is_an_oci_image_layout(manager: ModelCacheManager) -> None:
    import hashlib

    manager.download_model(MODEL)
    root = manager.cache_dir
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((root / "index.json").read_text())["manifests"]
    document = json.loads((root / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")).read_bytes())
    for each in (*document["layers"], document["config"]):
        content = (root / "blobs" / "sha256" / each["digest"].removeprefix("sha256:")).read_bytes()
        assert (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}") == (each["size"], each["digest"])
    assert {each["annotations"]["org.cncf.model.filepath"] for each in document["layers"]} == {
        "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip


def test_a_newer_layout_is_refused(manager: ModelCacheManager) -> None:
    manager.store.ensure()
    mark = manager.cache_dir / "STORE"
    mark.write_text(mark.read_text().replace('"layout":1', '"layout":2'))
    with pytest.raises(ForeignStore, match="newer aim-engine"):
        Store(manager.cache_dir)


@pytest.mark.parametrize("part", ["blobs", "parts", "views/hf", "trash"])
def test_a_planted_symlink_is_refused(manager: ModelCacheManager, tmp_path: Path, part: str) -> None:
    manager.store.ensure()
    victim = tmp_path / "victim"
    victim.mkdir()
    place = manager.cache_dir / part
    place.rename(tmp_path / "moved")
    place.symlink_to(victim)
    with pytest.raises(ForeignStore, match="symlink"):
        Store(manager.cache_dir)


def test_a_planted_symlink_in_a_view_is_not_followed(manager: ModelCacheManager, tmp_path: Path) -> None:
    manager.store.ensure()
    victim = tmp_path / "victim"
    victim.mkdir()
    (manager.cache_dir / "views" / "hf" / "models--org--model").symlink_to(victim)
    with pytest.raises(AimError):
        manager.download_model(MODEL)
    assert list(victim.iterdir()) == []


def test_a_store_that_everyone_may_write_is_refused(manager: ModelCacheManager) -> None:
    manager.store.ensure()
    manager.cache_dir.chmod(0o777)
    with pytest.raises(ForeignStore, match="every user may write"):
        Store(manager.cache_dir)


def test_publishing_what_is_there_keeps_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.ensure()
    digest = "a" * 64
    for content in (b"first", b"second"):
        partial = store.path("parts", "x.part")
        partial.write_bytes(content)
        store.publish(partial, digest)
    assert store.blob(digest).read_bytes() == b"first"
    assert not store.path("parts", "x.part").exists()


def test_a_file_system_without_hardlinks_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"content")
    layout.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"content"
    with pytest.raises(FileExistsError):
        layout.link(tmp_path / "a", tmp_path / "b")


def test_network_file_systems_are_told_from_local_ones(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "30 22 0:40 / /mnt/models\\040here rw - nfs4 server:/models rw\n"
        "31 22 0:41 / /mnt/lustre rw - lustre 10.0.0.1@o2ib:/fs rw\n"
    )
    assert locks.file_system(Path("/home"), mounts) == "ext4"
    assert not locks.is_shared(Path("/mnt/modelsX"), mounts)
    assert locks.is_shared(Path("/mnt/models here/a/b"), mounts)
    assert locks.is_shared(Path("/mnt/lustre"), mounts)


def test_a_lock_of_a_shared_file_system_excludes_and_names_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    store.ensure()
    monkeypatch.setattr(locks, "is_shared", lambda _: True)
    held = locks.attempt(store, "content-x")
    assert held is not None
    assert locks.attempt(store, "content-x") is None
    assert str(os.getpid()) in str(locks.unlock(store, "content-x"))
    locks.unlock(store, "content-x", force=True)
    assert locks.attempt(store, "content-x") is not None


def test_a_manifest_reads_back_as_written() -> None:
    revision = Revision(
        model_id="org/model",
        commit="a" * 40,
        files=(StoredFile(path="a/b.json", sha256="b" * 64, size_bytes=5),),
        source="https://huggingface.co/org/model",
        licence="mit",
    )
    assert manifest.decode(manifest.encode(revision), "test") == revision


@pytest.mark.parametrize("bad", [b"", b"[]", b"{}", b'{"layers": 1, "annotations": {}}', b"[" * 100_000])
def test_what_is_no_manifest_is_damaged(bad: bytes) -> None:
    with pytest.raises(Damaged):
        manifest.decode(bad, "test")


def test_a_manifest_cannot_name_a_path_outside() -> None:
    revision = Revision(
        model_id="org/model", commit="a" * 40, files=(StoredFile(path="../x", sha256="b" * 64, size_bytes=5),)
    )
    with pytest.raises(Damaged, match="could leave its folder"):
        manifest.decode(manifest.encode(revision), "test")


@pytest.mark.parametrize("model_id", ["Qwen/Qwen3-32B", "gpt2", "a/b_c.d"])
def test_folder_names_are_those_of_the_hub(model_id: str) -> None:
    assert names.model_id(names.folder(model_id)) == model_id
