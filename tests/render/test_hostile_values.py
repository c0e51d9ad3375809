"""Ten thousand hostile values in every list of free text and in every single field, over all targets, read back for real."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import hostile as short
from aim_engine.errors import InvalidInput
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.targets import TARGETS, render
from hostile_values import VALUES, batches, contains, options, plan, undoubled, variables

pytestmark = pytest.mark.hostile

RUN_BY = (("bash", "shell"), ("sh", "shell"), ("bash", "docker"), ("sh", "docker"), ("bash", "slurm"))


def documents(files: tuple[Artifact, ...]) -> list[Any]:
    return [yaml.load(file.content, Loader=yaml.CSafeLoader) for file in files if file.is_yaml]


@pytest.mark.parametrize("target", ["kubernetes", "kustomize", "helm", "lws", "kserve", "kserve-llm", "compose"])
def test_arguments_variables_and_annotations_are_read_from_yaml_unchanged(target: str) -> None:
    undo = undoubled
    for words in batches(most=2_000_000):
        if target == "helm":
            words = [word for word in words if not {"\x7f", "\x85"} & set(word)]
        found = documents(render(plan(words), target, options(words, target)))
        assert contains(found, words, undo)
        env = {name: undo(value) for name, value in variables(found)}
        assert {name: env[name] for name in env if name[1:].isdecimal()} == {
            f"N{index}": value for index, value in enumerate(words)
        }
        if target != "compose":
            assert any(
                {note[4:]: value for note, value in notes.items() if note.startswith("note")}
                == {str(index): value for index, value in enumerate(words)}
                for notes in noted(found)
            )


def noted(found: Any) -> Iterator[dict[str, str]]:
    if isinstance(found, dict):
        if isinstance(found.get("annotations"), dict):
            yield found["annotations"]
        for entry in found.values():
            yield from noted(entry)
    elif isinstance(found, list):
        for entry in found:
            yield from noted(entry)


@pytest.mark.parametrize(("shell", "target"), RUN_BY)
def test_shells_hand_arguments_and_variables_over_unchanged(shell: str, target: str, tmp_path: Path) -> None:
    recorder = recording(tmp_path)
    for words in batches():
        script = next(file for file in render(plan(words), target, options(words, target)) if file.executable)
        args, env = short.run(shell, script.content, recorder, home=str(tmp_path / "home"))
        assert any(args[row : row + len(words)] == words for row in range(len(args) - len(words) + 1))
        wanted = {f"N{index}": value for index, value in enumerate(words)}
        if target == "docker":
            assert {f"{name}={value}" for name, value in wanted.items()} <= set(args)
        else:
            assert {name: env[name] for name in wanted} == wanted


def recording(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("vllm", "docker"):
        (folder / name).write_text('#!/bin/sh\nprintf "%s\\0" "$@" >"$RECORD/args"\nenv -0 >"$RECORD/env"\n')
    (folder / "srun").write_text('#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n')
    for program in folder.iterdir():
        program.chmod(0o755)
    return folder


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_model_name_and_a_folder_are_read_back_or_refused(target: str) -> None:
    """Each value goes to some target as model and folder; over all targets every value is used."""
    mine = VALUES[:-3][sorted(TARGETS).index(target) :: len(TARGETS)]
    for value in mine:
        folder = "/srv/" + value.replace("\n", "_").replace("\r", "_")
        made = short.hostile(value, value, value)
        try:
            files = render(made, target, Options(name="demo", image="local/cpu:v1", model_path=folder))
        except InvalidInput:
            continue
        for file in files:
            if file.path.endswith(".sh"):
                subprocess.run(["bash", "-n"], input=file.content.encode(), check=True)
        texts = json.dumps(documents(files), ensure_ascii=True)
        if target in ("kubernetes", "kustomize", "lws", "kserve", "kserve-llm"):
            assert json.dumps(folder)[1:-1] in texts
            assert json.dumps(f"org/{value}")[1:-1] in texts
