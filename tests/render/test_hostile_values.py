"""Ten thousand hostile values in every list of free text and in every single field, over all targets, read back for real."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import hostile as short
import plans
from aim_engine.errors import InvalidInput
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.targets import TARGETS, render
from hostile_values import VALUES, batches, contains, on_gpus, options, plan, undoubled, variables

pytestmark = pytest.mark.hostile

CPU = plans.on_cpu()
RUN_BY = (("bash", "shell"), ("sh", "shell"), ("bash", "docker"), ("sh", "docker"), ("bash", "slurm"))


def documents(files: tuple[Artifact, ...]) -> list[Any]:
    return [yaml.load(file.content, Loader=yaml.CSafeLoader) for file in files if file.is_yaml]


@pytest.mark.parametrize("target", ["kubernetes", "helm", "lws", "kserve", "kserve-llm", "compose"])
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


@pytest.mark.parametrize("target", ["job", "gateway", "monitoring", "keda", "hpa", "kuberay"])
def test_annotations_are_read_unchanged_from_objects_without_an_engine_of_their_own(target: str) -> None:
    for words in batches(most=2_000_000):
        made = on_gpus(words if target == "kuberay" else [])
        found = documents(render(made, target, options(words, target)))
        wanted = {f"note{index}": value for index, value in enumerate(words)}
        assert any(wanted.items() <= notes.items() for notes in noted(found))
        env = {name: undoubled(value) for name, value in variables(found)}
        assert env == ({f"N{index}": value for index, value in enumerate(words)} if target == "kuberay" else {})


def test_quadlets_are_read_unchanged() -> None:
    """By the rules of the manual: Debian's podman is too old to have a reader of its own."""
    for words in batches():
        (file, _) = render(plan(words), "podman", options(words, "podman"))
        lines = file.content.replace("\\\n", " ").split("\n")
        assert contains([short.unit_words(line[5:]) for line in lines if line.startswith("Exec=")], words, str)
        pairs = [short.unit_words(line[12:])[0] for line in lines if line.startswith("Environment=")]
        env = dict(pair.split("=", 1) for pair in pairs)
        assert {name: env[name] for name in env if name[1:].isdecimal()} == {
            f"N{index}": word for index, word in enumerate(words)
        }


def test_env_files_are_read_unchanged_or_refused(tmp_path: Path) -> None:
    recorder = recording(tmp_path)
    for words in batches():
        fit = [word for word in words if not set("'\r\n") & set(word)]
        (file,) = render(plan(fit), "env", options(fit, "env"))
        _, env = short.run("bash", f"set -a\n{file.content}\nset +a\nvllm\n", recorder)
        assert {name: env[name] for name in env if name[1:].isdecimal()} == {
            f"N{index}": word for index, word in enumerate(fit)
        }
        for word in set(words) - set(fit):
            with pytest.raises(InvalidInput, match="cannot stand in an env file"):
                render(plan([word]), "env", options([], "env"))


@pytest.mark.parametrize("target", ["kubernetes", "compose"])
def test_mounts_are_read_unchanged_or_refused(target: str) -> None:
    """Every value in the folder of the host and in that of the container."""
    for words in batches(most=2_000_000):
        folders = [word for word in words if not set("\r\n") & set(word)]
        volumes = [f"/s/{word}:/{n}" for n, word in enumerate(folders)]
        volumes += [f"/{n}:/t/{word}" for n, word in enumerate(folders) if ":" not in word]
        made = render(plan([]), target, Options(name="demo", image="a:b", volumes=tuple(volumes)))
        texts = set(scalars(documents(made)))
        for volume in volumes:
            for folder in volume.removesuffix(":ro").rsplit(":", 1):
                assert (
                    folder.replace("$", "$$") if target == "compose" and folder.startswith("/s/") else folder
                ) in texts
        for word in set(words) - set(folders):
            with pytest.raises(InvalidInput, match="line break"):
                render(plan([]), target, Options(name="demo", image="a:b", volumes=(f"/s/{word}:/t",)))


@pytest.mark.parametrize("target", ["kubernetes", "helm", "compose"])
def test_files_are_read_unchanged(target: str) -> None:
    for words in batches(most=800_000):
        fit = [word for word in words if target != "helm" or not {"\x7f", "\x85"} & set(word)]
        files = {f"/f/{n:04}": word for n, word in enumerate(fit)}
        (found,) = held(documents(render(plan([]), target, Options(name="demo", image="a:b", files=files))), target)
        wanted = {f"file-{n}": word for n, word in enumerate(fit)}
        assert found == wanted
    for large in VALUES[-3:]:
        with pytest.raises(InvalidInput, match="too large"):
            render(plan([]), target, Options(name="demo", image="a:b", files={"/f": large}))


def held(found: list[Any], target: str) -> Iterator[dict[str, str]]:
    """Key -> content of the files in what was written."""
    for document in found:
        if target == "compose":
            entries = {key.removeprefix("demo-"): entry["content"] for key, entry in document["configs"].items()}
            yield {key: undoubled(text) for key, text in entries.items() if key.startswith("file-")}
        elif target == "helm" and "files" in document:
            yield document["files"]["data"]
        elif document.get("kind") == "ConfigMap":
            yield document["data"]


def test_the_address_of_a_prometheus_is_read_unchanged() -> None:
    for value in VALUES:
        (file,) = render(CPU, "keda", Options(name="demo", prometheus_url=f"http://{value}"))
        spec = yaml.load(file.content, Loader=yaml.CSafeLoader)["spec"]
        assert {trigger["metadata"]["serverAddress"] for trigger in spec["triggers"]} == {f"http://{value}"}


REFUSED: dict[str, re.Pattern[str]] = {
    "env": re.compile(r"['\r\n]"),
    "helm": re.compile("[\x7f-\x9f]"),
    "systemd": re.compile(r'[:\\"]'),
    "podman": re.compile(r'[:\\"]'),
}
"""What a target may refuse to write."""
FIELDS = {
    "systemd": ("ExecStart=", r'BindReadOnlyPaths="(.*)"'),
    "podman": ("Exec=", r"Volume=(.*):/model:ro"),
}
"""Where the command and the model's folder stand in a unit."""
NO_ENGINE = ("gateway", "keda", "hpa", "monitoring")


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_model_name_and_a_folder_are_read_back_or_refused(target: str, tmp_path: Path) -> None:
    """Each value goes to some target as model, folder, variable and argument; over all targets every value is used."""
    mine = VALUES[:-3][sorted(TARGETS).index(target) :: len(TARGETS)]
    recorder = recording(tmp_path)
    refused = 0
    for value in mine:
        folder = "/srv/" + value.replace("\n", "_").replace("\r", "_")
        made = on_gpus([value]) if target == "kuberay" else short.hostile(value, value, value)
        if target == "kuberay":
            model = msgspec.structs.replace(made.inputs.model, model_id=f"org/{value}")
            made = msgspec.structs.replace(made, inputs=msgspec.structs.replace(made.inputs, model=model))
        place = Options(name="demo", image="local/cpu:v1", model_path=None if target == "job" else folder)
        try:
            files = render(made, target, place)
        except InvalidInput:
            assert REFUSED[target].search(value)
            refused += 1
            continue
        if target in NO_ENGINE:
            assert all(document["kind"] for document in documents(files) if "kind" in document)
            continue
        if target in ("shell", "slurm"):
            args, env = short.run("bash", files[0].content, recorder)
            seen = {*args, *env.values()}
        elif target == "docker":
            subprocess.run(["bash", "-n"], input=files[0].content.encode(), check=True)
            args, _ = short.run("bash", files[0].content.replace("[ -d ", "[ -n "), recorder)
            mounts = [next(csv.reader([args[place + 1]])) for place, word in enumerate(args) if word == "--mount"]
            folders = {field.removeprefix("source=") for fields in mounts for field in fields}
            seen = {*args, *folders}
        elif target in ("systemd", "podman"):
            lines = files[0].content.replace("\\\n", " ").split("\n")
            start, pattern = FIELDS[target]
            (command,) = (line.removeprefix(start) for line in lines if line.startswith(start))
            (mounted,) = (found[1] for line in lines if (found := re.fullmatch(pattern, line)))
            read = mounted.replace("$$", "$") if target == "podman" else mounted
            seen = {*short.unit_words(command), read.replace("%%", "%")}
        elif target == "env":
            _, env = short.run("bash", f"set -a\n{files[0].content}\nset +a\nvllm\n", recorder)
            assert env["FREE"] == value
            continue
        else:
            objects = documents(files)
            objects += [yaml.safe_load(text) for text in scalars(objects) if text.startswith("applications:")]
            seen = {each for text in scalars(objects) for each in (text, text.replace("$$", "$"))}
        assert f"org/{value}" in seen
        assert target == "job" or folder in seen
    assert refused < len(mine) / 2


def scalars(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for entry in value.values():
            yield from scalars(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from scalars(entry)
    elif isinstance(value, str):
        yield value
