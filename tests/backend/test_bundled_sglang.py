"""Bundled recipes, said to SGLang releases: nothing that a release lacks, by its table and by its own parser."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aim_engine.backend import lint, release
from bundled_sglang import RELEASES, lines

TOOLS = Path(__file__).parent.parent.parent / "tools"


@pytest.mark.parametrize("version", RELEASES)
def test_no_bundled_recipe_tells_a_release_what_it_lacks(version: str) -> None:
    said = lines(version)
    assert len(said) > 250
    table = release.flags("sglang", version)
    for known, args, env in said:
        wrong = lint.check(args, env, table, lambda: release.removed("sglang"))
        assert wrong == (), (known.model_id, known.split, wrong)


@pytest.mark.rig
@pytest.mark.parametrize("version", RELEASES)
def test_the_releases_own_parser_takes_every_bundled_recipe(version: str, tmp_path: Path) -> None:
    """Its wheel is fetched and its parser built without what it depends on."""
    sys.path.insert(0, str(TOOLS))
    try:
        import engine_releases
    finally:
        sys.path.remove(str(TOOLS))
    try:
        engine_releases.unpack("sglang", "sglang", version, tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip(f"no package index here has sglang {version}")
    said = lines(version)
    nonsense = ["--model-path", "m", "--no-such-flag"]
    judged = subprocess.run(
        [sys.executable, str(TOOLS / "engine_release_sglang.py"), str(tmp_path), version, "--judge"],
        input=json.dumps([*(args for _, args, _ in said), nonsense]),
        capture_output=True,
        text=True,
        check=True,
    )
    *complaints, last = json.loads(judged.stdout)
    assert "--no-such-flag" in last
    wrong = [(known.model_id, known.split, text) for (known, _, _), text in zip(said, complaints, strict=True) if text]
    assert wrong == []
