"""Ten thousand hostile values in every list of free text and in every single field, over all targets, read back for real."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import hostile as short
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import replace
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.targets import TARGETS, render

pytestmark = pytest.mark.hostile

COUNT = 10_000
BATCH = 500
PIECES = (
    *short.NASTY,
    "{{ .Values }}",
    "{{`",
    "}}",
    "%{x}",
    "$(LWS_LEADER_ADDRESS)",
    "#SBATCH --x",
    "---",
    "...",
    "? ",
    "|",
    ">",
)
ALPHABET = "'\"\\$`{}[]()<>|&;#!*?~%@:,=-+ \t\n\rabcZ019é😀\u2028\u2029\x85\ufeff\x7f\x1b\xa0"
SH = ("shell", "docker", "slurm")


def values() -> list[str]:
    """The same each time: known tricks, chains of them, random text, and a few of a megabyte."""
    chance = random.Random(7)
    found = list(PIECES)
    while len(found) < COUNT - 3:
        if chance.random() < 0.5:
            found.append("".join(chance.choices(PIECES, k=chance.randint(1, 4))))
        else:
            found.append("".join(chance.choices(ALPHABET, k=chance.randint(1, 40))))
    return [*found, "x" * 1_000_000, "'\n" * 500_000, "$(id)" * 200_000]


VALUES = values()


def batches(most: int = 100_000) -> Iterator[list[str]]:
    """The values in lists, without those that the kernel takes for no argument when `most` is its limit."""
    fit = [value for value in VALUES if len(value.encode()) < most]
    for start in range(0, len(fit), BATCH):
        yield fit[start : start + BATCH]


def plan(words: list[str]) -> Plan:
    """Every value as a variable and as an argument."""
    made = short.hostile("m", "v", "a")
    assert made.chosen is not None
    recipe = replace(
        made.chosen.recipe,
        env={"VLLM_TARGET_DEVICE": "cpu", **{f"N{index}": value for index, value in enumerate(words)}},
        extra_args=("--chat-template", *words),
    )
    return msgspec.structs.replace(made, chosen=msgspec.structs.replace(made.chosen, recipe=recipe))


def options(words: list[str], target: str) -> Options:
    takes = target not in ("env", "shell", "slurm", "systemd", "docker", "compose", "podman")
    notes = {f"note{index}": value for index, value in enumerate(words)} if takes else {}
    return Options(name="x", image="local/cpu:v1", annotations=notes)


def contains(found: Any, words: list[str], undo: Any) -> bool:
    """Some list of `found` ends in, or holds in a row, exactly `words`."""
    if isinstance(found, dict):
        return any(contains(entry, words, undo) for entry in found.values())
    if isinstance(found, list):
        texts = [undo(entry) if isinstance(entry, str) else None for entry in found]
        rows = [row for row in range(len(texts) - len(words) + 1) if texts[row] == words[0]]
        return any(texts[row : row + len(words)] == words for row in rows) or any(
            contains(entry, words, undo) for entry in found if isinstance(entry, (dict, list))
        )
    return False


LONE = re.compile(r"(?<!\$)(?:\$\$)*\$(?!\$)")


def undoubled(value: str) -> str:
    """What Compose and the kubelet make of `value`: `$$` is `$`; a lone `$` would be looked up."""
    assert not LONE.search(value) or value.startswith("$(LWS_") or len(value) < 30, value[:100]
    return value.replace("$$", "$")


def documents(files: tuple[Artifact, ...]) -> list[Any]:
    return [yaml.load(file.content, Loader=yaml.CSafeLoader) for file in files if file.is_yaml]


@pytest.mark.parametrize("target", ["kubernetes", "kustomize", "helm", "lws", "kserve", "kserve-llm", "compose"])
def test_arguments_variables_and_annotations_are_read_from_yaml_unchanged(target: str) -> None:
    undo = undoubled
    for words in batches(most=2_000_000):
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


def variables(found: Any) -> Iterator[tuple[str, str]]:
    """Each variable of every container and service."""
    if isinstance(found, dict):
        for name, value in found.get("environment", {}).items() if isinstance(found.get("environment"), dict) else ():
            if str(name)[1:].isdecimal():
                yield name, value
        for entry in found.get("env", []) if isinstance(found.get("env"), list) else ():
            if entry["name"][1:].isdecimal():
                yield entry["name"], entry.get("value", "")
        for entry in found.values():
            yield from variables(entry)
    elif isinstance(found, list):
        for entry in found:
            yield from variables(entry)


def noted(found: Any) -> Iterator[dict[str, str]]:
    if isinstance(found, dict):
        if isinstance(found.get("annotations"), dict):
            yield found["annotations"]
        for entry in found.values():
            yield from noted(entry)
    elif isinstance(found, list):
        for entry in found:
            yield from noted(entry)


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("target", SH)
def test_shells_hand_arguments_and_variables_over_unchanged(shell: str, target: str, tmp_path: Path) -> None:
    if target == "slurm" and shell == "sh":
        pytest.skip("Slurm runs the script with the shell of its first line")
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
            files = render(made, target, Options(name="x", image="local/cpu:v1", model_path=folder))
        except InvalidInput:
            continue
        for file in files:
            if file.path.endswith(".sh"):
                subprocess.run(["bash", "-n"], input=file.content.encode(), check=True)
        texts = json.dumps(documents(files), ensure_ascii=True)
        if target in ("kubernetes", "kustomize", "lws", "kserve", "kserve-llm"):
            assert json.dumps(folder)[1:-1] in texts
            assert json.dumps(f"org/{value}")[1:-1] in texts
