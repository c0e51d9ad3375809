"""Programs in a model's folder: there only when exactly their content was approved."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import hub_server
from aim_engine.cache import adopt, approval, bundle, doctor, programs, weights
from aim_engine.cache.faults import Damaged, Unsafe
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cli import main
from aim_engine.errors import InvalidInput
from aim_engine.settings import Settings
from caches import MODEL, WEIGHTS, Make

CODE = b"from .helper import help\nclass Model: pass\n"
HELPER = b"help = 1\n"
CHANGED = "fedcba9876543210fedcba9876543210fedcba98"
PICKLE = b"pickled" * 100


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def coded(server: hub_server.Hub) -> hub_server.Hub:
    """The hub's model asks for code of its repository."""
    config = {
        "model_type": "odd",
        "auto_map": {"AutoModel": "modeling_odd.Model", "AutoConfig": ["other/repo--x.C", None]},
    }
    files = server.models[MODEL]
    del files["modeling_llama.py"]
    files |= {"config.json": json.dumps(config).encode(), "modeling_odd.py": CODE, "helper.py": HELPER}
    return server


def shown(manager: ModelCacheManager) -> set[str]:
    return {path.name for path in manager.download_model(MODEL).iterdir() if path.suffix == ".py"}


def test_code_waits_for_its_approval_and_is_there_at_once_then(
    manager: ModelCacheManager, coded: hub_server.Hub
) -> None:
    path = manager.download_model(MODEL)
    assert approval.lacking(path) == ("modeling_odd.py",)
    listed = {each.path: each for each in programs.of(manager, MODEL)}
    assert sorted(listed) == ["helper.py", "modeling_odd.py"]
    assert listed["modeling_odd.py"].sha256 == sha256(CODE)
    assert not any(each.approved for each in listed.values())
    sent = coded.sent_bytes
    programs.approve(manager, MODEL, ["modeling_odd.py", "helper.py"])
    assert coded.sent_bytes - sent < len(WEIGHTS)
    assert (path / "modeling_odd.py").read_bytes() == CODE
    assert (path / "modeling_odd.py").stat().st_mode & 0o777 == 0o444
    assert shown(manager) == {"modeling_odd.py", "helper.py"}
    assert approval.lacking(path) == ()
    assert all(each.approved for each in programs.of(manager, MODEL))
    assert "approved 20" in manager.why(sha256(CODE))[0]
    assert all(each.fine for each in doctor.examine(manager))


def test_approved_code_comes_with_its_model(make: Make, manager: ModelCacheManager, coded: hub_server.Hub) -> None:
    programs.approve(manager, MODEL, ["modeling_odd.py"])
    said: list[str] = []
    assert shown(make(progress=said.append)) == {"modeling_odd.py"}
    assert not any("asks to run code" in line for line in said)


def test_a_changed_file_is_not_approved_any_more(make: Make, manager: ModelCacheManager, coded: hub_server.Hub) -> None:
    programs.approve(manager, MODEL, ["modeling_odd.py", "helper.py"])
    assert len(shown(manager)) == 2
    coded.models[MODEL]["modeling_odd.py"] = CODE + b"import os\n"
    coded.commits[MODEL] = CHANGED
    said: list[str] = []
    fresh = make(progress=said.append)
    path = fresh.download_model(MODEL, revision=CHANGED)
    assert {each.name for each in path.glob("*.py")} == {"helper.py"}
    assert any(f"aim-engine cache approve {MODEL}" in line for line in said)
    assert {each.path: each.approved for each in programs.of(fresh, MODEL, CHANGED)} == {
        "modeling_odd.py": False,
        "helper.py": True,
    }


def test_a_checksum_alone_approves_whatever_has_it(manager: ModelCacheManager, coded: hub_server.Hub) -> None:
    programs.approve(manager, MODEL, [sha256(CODE)])
    assert not coded.requests, "an approval by checksum asks nobody"
    assert shown(manager) == {"modeling_odd.py"}


def test_code_that_is_not_what_the_hub_lists_is_not_approved(manager: ModelCacheManager, coded: hub_server.Hub) -> None:
    coded.flip["modeling_odd.py"] = 1
    with pytest.raises(Damaged, match="modeling_odd"):
        programs.approve(manager, MODEL, ["modeling_odd.py"])
    assert approval.of(manager.store, MODEL) == ()


def test_revoked_code_leaves_every_view(manager: ModelCacheManager, coded: hub_server.Hub) -> None:
    programs.approve(manager, MODEL, ["modeling_odd.py", "helper.py"])
    path = manager.download_model(MODEL)
    gone = programs.revoke(manager, MODEL, ["modeling_odd.py"])
    assert [each.path for each in gone] == ["modeling_odd.py"]
    assert {each.name for each in path.glob("*.py")} == {"helper.py"}
    assert not list(manager.store.path("views").rglob("modeling_odd.py"))
    assert not manager.store.blob(sha256(CODE)).exists()
    assert manager.is_cached(MODEL)
    with pytest.raises(InvalidInput, match="was not approved"):
        programs.revoke(manager, MODEL, ["modeling_odd.py"])


def test_pickled_weights_need_approval_and_go_with_it(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.add("org/old", config__json=b"{}", pytorch_model__bin=PICKLE)
    with pytest.raises(Unsafe, match="weights in pickles only") as caught:
        manager.download_model("org/old")
    assert str(caught.value.hint).endswith("aim-engine cache approve org/old pytorch_model.bin")
    sent = server.sent_bytes
    programs.approve(manager, "org/old", ["pytorch_model.bin"])
    assert server.sent_bytes - sent < 2000, "its checksum is listed; it need not be read"
    path = manager.download_model("org/old")
    assert (path / "pytorch_model.bin").read_bytes() == PICKLE
    server.models["org/old"]["pytorch_model.bin"] = PICKLE + b"!"
    server.commits["org/old"] = CHANGED
    with pytest.raises(Unsafe, match="weights in pickles only"):
        manager.download_model("org/old", revision=CHANGED)
    programs.revoke(manager, "org/old")
    assert not manager.is_cached("org/old")
    assert not path.exists()


def test_what_no_program_has_for_a_name_is_refused(manager: ModelCacheManager, coded: hub_server.Hub) -> None:
    with pytest.raises(InvalidInput, match="no program") as caught:
        programs.approve(manager, MODEL, ["config.json"])
    assert "modeling_odd.py" in str(caught.value.why)


def test_a_bundle_with_code_is_taken_where_it_was_approved(
    manager: ModelCacheManager, coded: hub_server.Hub, tmp_path: Path
) -> None:
    programs.approve(manager, MODEL, ["modeling_odd.py"])
    manager.download_model(MODEL)
    bundle.write(manager.store, manager.index, (), tmp_path / "b.tar")
    other = ModelCacheManager(tmp_path / "other", hub_cache=tmp_path / "none", index_dir=tmp_path / "other-index")
    with pytest.raises(Unsafe, match="in the bundle is refused") as caught:
        other.import_bundle(tmp_path / "b.tar")
    assert sha256(CODE) in str(caught.value.hint)
    programs.approve(other, MODEL, [sha256(CODE)])
    other.import_bundle(tmp_path / "b.tar")
    assert shown(other) == {"modeling_odd.py"}


def test_approved_code_is_taken_over_from_a_hub_cache(
    manager: ModelCacheManager, coded: hub_server.Hub, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / hub_server.COMMIT
    snapshot.mkdir(parents=True)
    for name, content in coded.models[MODEL].items():
        (snapshot / name).write_bytes(content)
    programs.approve(manager, MODEL, [sha256(CODE)])
    adopted = adopt.snapshot(manager.store, manager.index, tmp_path / "hub", MODEL, hub_server.COMMIT)
    assert adopted is not None
    assert [file.path for file in adopted.files if file.path.endswith(".py")] == ["modeling_odd.py"]


def test_a_store_with_unapproved_programs_is_told(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.add("org/old", config__json=b"{}", pytorch_model__bin=PICKLE)
    programs.approve(manager, "org/old", ["pytorch_model.bin"])
    manager.download_model("org/old")
    manager.store.path("pins", "approved", "models--org--old.json").unlink()
    wrong = [each for each in doctor.examine(manager) if not each.fine]
    assert [each.what.split()[0] for each in wrong] == ["pytorch_model.bin"]
    assert "nobody approved it" in manager.why(sha256(PICKLE))[0]


def test_an_engine_that_would_miss_code_is_not_started(
    manager: ModelCacheManager, coded: hub_server.Hub, tmp_path: Path
) -> None:
    settings = Settings(cache_dir=str(tmp_path / "cache"))
    path = manager.download_model(MODEL)
    with pytest.raises(InvalidInput, match="nobody approved") as caught:
        weights.require_programs(path, MODEL, settings)
    assert str(caught.value.hint) == f"read it, then: aim-engine cache approve {MODEL} modeling_odd.py"
    programs.approve(manager, MODEL, ["modeling_odd.py"])
    weights.require_programs(path, MODEL, settings)


def test_the_command_lists_approves_and_takes_back(
    make: Make,
    coded: hub_server.Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", coded.address)
    monkeypatch.setenv("AIM_ENGINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    make().download_model(MODEL)
    assert main.run(["cache", "approve", MODEL]) == 0
    said = capsys.readouterr()
    assert f"modeling_odd.py  {len(CODE)} B  not approved\n  {sha256(CODE)}\n  {coded.address}" in said.out
    assert main.run(["cache", "approve", MODEL, "modeling_odd.py", "--yes"]) == 0
    assert capsys.readouterr().out == f"{sha256(CODE)}  modeling_odd.py\n"
    assert shown(make()) == {"modeling_odd.py"}
    assert main.run(["cache", "approve", MODEL, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["approved"] for each in document["programs"]] == [False, True]
    assert main.run(["cache", "approve", MODEL, "--drop"]) == 0
    assert "no longer approved: modeling_odd.py" in capsys.readouterr().out
    assert shown(make()) == set()
    monkeypatch.setenv("AIM_ENGINE_OFFLINE", "1")
    asked = len(coded.requests)
    assert main.run(["cache", "approve", MODEL]) == 3
    assert "settings say offline" in capsys.readouterr().err
    assert main.run(["cache", "approve", MODEL, sha256(CODE), "--yes"]) == 0
    assert len(coded.requests) == asked
