"""Written files handed to the programs that read them for real. `make consumers` needs the programs on PATH."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import plans
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.targets import render

pytestmark = pytest.mark.consumers


def written(folder: Path, target: str, case: str) -> list[Path]:
    image = "registry.local/vllm:v0.32.0" if case == "small-cpu" else None
    found: list[Artifact] = list(render(plans.ALL[case](), target, Options(name="demo", image=image)))
    for file in found:
        (folder / file.path).write_text(file.content, encoding="utf-8")
    return [folder / file.path for file in found if not file.secret]


def accepted(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("case", plans.ALL)
def test_systemd_finds_nothing_to_say_about_our_units(case: str, tmp_path: Path) -> None:
    assert accepted("systemd-analyze", "--man=no", "verify", *written(tmp_path, "systemd", case)) == ""


@pytest.mark.parametrize("case", plans.ALL)
@pytest.mark.parametrize("target", ["shell", "docker"])
def test_shellcheck_finds_nothing_to_say_about_our_scripts(target: str, case: str, tmp_path: Path) -> None:
    # SC2030, SC2031: replicas' variables are meant to stay in their subshells.
    assert accepted("shellcheck", "--exclude=SC2030,SC2031", *written(tmp_path, target, case)) == ""
