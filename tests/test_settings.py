"""Where a setting's value comes from, and what bad values get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aim_engine import settings
from aim_engine.errors import InvalidInput


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith((settings.PREFIX, "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def origin(name: str, overrides: dict[str, object] | None = None) -> settings.Origin:
    return next(found for found in settings.resolve(overrides) if found.name == name)


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert origin("engine_version").origin == "default"
    path = tmp_path / "settings.yaml"
    path.write_text("engine_version: 0.31.0\n")
    monkeypatch.setenv("AIM_ENGINE_CONFIG", str(path))
    assert (origin("engine_version").value, origin("engine_version").origin) == ("0.31.0", str(path))
    monkeypatch.setenv("AIM_ENGINE_ENGINE_VERSION", "0.32.0")
    assert origin("engine_version").value == "0.32.0"
    assert origin("engine_version", {"engine_version": "0.33.0"}).origin == "flag"


def test_folders_follow_the_desktop_conventions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load().state_dir == str(tmp_path / ".local/state/aim-engine")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert settings.load().state_dir == "/var/state/aim-engine"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("no", False)])
def test_booleans_are_read_from_variables(text: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIM_ENGINE_OFFLINE", text)
    assert settings.load().offline is value


def test_a_bad_variable_is_named_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIM_ENGINE_OFFLINE", "maybe")
    with pytest.raises(InvalidInput, match="AIM_ENGINE_OFFLINE=maybe"):
        settings.load()


@pytest.mark.parametrize("content", ["ofline: true\n", "offline: perhaps\n", "a: [b\n", "- a\n"])
def test_a_bad_file_is_named(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    monkeypatch.setenv("AIM_ENGINE_CONFIG", str(path))
    with pytest.raises(InvalidInput, match=r"settings\.yaml"):
        settings.load()
