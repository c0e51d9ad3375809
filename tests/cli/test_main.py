"""The command line itself: exit codes, where words go, and what mistakes get."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from aim_engine import __version__
from aim_engine.cli import main


def test_version_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"aim-engine {__version__}\n"


def test_version_imports_neither_the_parser_nor_the_catalogue() -> None:
    program = "import sys; sys.argv=['aim-engine','--version']\nfrom aim_engine.cli.main import main\n"
    program += "try:\n    main()\nexcept SystemExit:\n    pass\n"
    program += "assert not {'click', 'msgspec', 'yaml', 'rich'} & set(sys.modules), 'slow start'"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_help_lists_every_command_and_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in main.COMMANDS)
    assert "Example:" in text.splitlines()[-1]


def test_a_mistyped_command_gets_the_close_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["pln"]) == 2
    captured = capsys.readouterr()
    assert "Did you mean plan" in captured.err
    assert captured.out == ""


def test_an_unknown_option_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["settings", "--colour"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_settings_are_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["settings", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "aim-engine/settings/v1"
    assert {setting["name"] for setting in document["settings"]} >= {"state_dir", "offline"}


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_command_loads_and_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    assert "Example: aim-engine" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + "/x", "x/" + "a" * 300, "-", "", " ", "../..", "é/é"])
@pytest.mark.parametrize(
    "command",
    [
        ["plan", "{}", "--gpus", "1xMI300X"],
        ["plan", "Qwen/Qwen3-32B", "--gpus", "{}"],
        ["model", "{}"],
        ["estimate", "{}"],
        ["recipes", "show", "{}"],
        ["recipes", "lint", "{}"],
        ["validate", "{}"],
        ["accuracy", "{}"],
        ["gpus", "--root", "{}"],
        ["cache", "verify", "{}"],
        ["cache", "pin", "{}"],
        ["status", "{}"],
        ["logs", "{}"],
        ["down", "{}"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_none_is_wrong_input(
    command: list[str],
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("AIM_ENGINE_OFFLINE", "1")
    monkeypatch.setenv("AIM_ENGINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code = main.run([part.format(name) for part in command])
    captured = capsys.readouterr()
    assert code in (0, 1, 2, 3), captured.err[:300]
    assert "this is a bug" not in captured.err
