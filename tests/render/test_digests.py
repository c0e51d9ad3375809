"""Images named by their content: every file of every target says the digest, given by hand or asked of the registry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import plans
import registry_server
from aim_engine import backend
from aim_engine.cli import main
from aim_engine.errors import InvalidInput
from aim_engine.planner import plan as plan_module
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.targets import TARGETS, images, render
from registry_server import Registry

PLAIN = Options(name="demo")
DIGEST = f"sha256:{'d' * 64}"
WITHOUT = ("env", "shell", "systemd", "slurm", "gateway", "monitoring", "keda", "hpa")
"""Targets that start no container, or only refer to one."""
WITH = [target for target in TARGETS if target not in WITHOUT]


def named(files: tuple[Artifact, ...]) -> set[str]:
    """The images that the files name where their readers look for one."""
    found: set[str] = set()
    for file in files:
        if file.is_yaml:
            for document in yaml.load_all(file.content, Loader=yaml.CSafeLoader):
                found |= set(_images(document))
        elif file.path.endswith(".container"):
            found |= set(re.findall(r"^Image=(.+)$", file.content, re.MULTILINE))
        elif file.path.endswith(".docker.sh"):
            found |= set(re.findall(r"[a-z0-9./:-]+/[a-z0-9./-]+:v[0-9.]+(?:@sha256:[0-9a-f]+)?", file.content))
    return found


def _images(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, entry in value.items():
            if key == "image" and isinstance(entry, str):
                yield entry
            else:
                yield from _images(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _images(entry)


@pytest.mark.parametrize("target", WITH)
@pytest.mark.parametrize("case", ["qwen3-32b-8xmi300x", "mixture-2x2xmi355x"])
def test_every_image_of_a_target_is_asked_for_and_pinned(target: str, case: str) -> None:
    plan, engine = plans.ALL[case](), backend.get("vllm")
    asked = images(plan, target, PLAIN, engine)
    assert asked
    assert named(render(plan, target, PLAIN)) == set(asked)
    pinned = msgspec.structs.replace(PLAIN, digests=dict.fromkeys(asked, DIGEST))
    assert named(render(plan, target, pinned)) == {f"{each}@{DIGEST}" for each in asked}


@pytest.mark.parametrize("target", WITHOUT)
def test_targets_without_containers_ask_nothing(target: str) -> None:
    assert images(plans.replicas(), target, PLAIN, backend.get("vllm")) == ()


def test_the_image_that_fetches_is_pinned_too() -> None:
    options = msgspec.structs.replace(PLAIN, fetch_image="registry.local/aim-engine:1")
    assert images(plans.replicas(), "job", options, backend.get("vllm")) == ("registry.local/aim-engine:1",)
    pinned = msgspec.structs.replace(options, digests={"registry.local/aim-engine:1": DIGEST})
    assert named(render(plans.replicas(), "job", pinned)) == {f"registry.local/aim-engine:1@{DIGEST}"}


@pytest.mark.parametrize("target", WITH)
@pytest.mark.parametrize("image", ["registry.local:5000/team/vllm:v0.32.0", "registry.local:5000/team/vllm", "vllm"])
def test_a_digest_given_by_hand_arrives_everywhere_and_is_not_asked_for(target: str, image: str) -> None:
    options = msgspec.structs.replace(PLAIN, image=f"{image}@{DIGEST}", digests={image: f"sha256:{'0' * 64}"})
    files = render(plans.replicas(), target, options)
    text = "".join(line for file in files for line in file.content.splitlines(keepends=True) if line[:1] != "#")
    assert f"{image}@{DIGEST}" in text
    assert text.count(DIGEST) == text.count(f"{image}@{DIGEST}")
    assert not any("vllm" in each for each in images(plans.replicas(), target, options, backend.get("vllm")))


@pytest.mark.parametrize("digest", ["sha256:short", f"sha512:{'0' * 128}", f"sha256:{'D' * 64}", "", "latest"])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(InvalidInput, match="is not an image reference"):
        render(plans.replicas(), "kubernetes", msgspec.structs.replace(PLAIN, image=f"a/b:c@{digest}"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    with registry_server.serving(Registry()) as found:
        yield found


def test_pinned_renders_are_the_same_to_the_byte_without_a_network(
    server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(plan_module.encode(plans.replicas()))
    image = f"{server.address}/team/vllm:v0.32.0"
    server.wants_token, expected = True, server.push("team/vllm", "v0.32.0", "amd64", "arm64")
    words = ["render", str(plan), "-t", "kubernetes", "--name", "demo", "--image", image, "--pin-digests"]
    assert main.run(words) == 0
    first = capsys.readouterr()
    assert f"image: {image}@{expected}" in first.out.replace('"', "")
    assert f"{image} is {expected}, asked 2" in first.err
    monkeypatch.setenv("AIM_ENGINE_OFFLINE", "true")
    moved = server.push("team/vllm", "v0.32.0", "amd64")
    questions = len(server.requests)
    assert main.run(words) == 0
    assert capsys.readouterr().out == first.out
    assert len(server.requests) == questions
    assert main.run([*words, "--refresh-digests"]) == 2
    assert "the setting offline forbids it now" in capsys.readouterr().err
    monkeypatch.delenv("AIM_ENGINE_OFFLINE")
    assert main.run([*words, "--refresh-digests"]) == 0
    again = capsys.readouterr()
    assert f"{moved}, asked 2" in again.err
    assert f"which was {expected} before: the tag has moved" in again.err
    assert main.run(words) == 0
    assert capsys.readouterr().out == again.out != first.out


def test_without_asking_for_it_nothing_is_pinned(server: Registry, tmp_path: Path) -> None:
    """What is kept must not change what the same command wrote before."""
    plan = tmp_path / "plan.json"
    plan.write_bytes(plan_module.encode(plans.replicas()))
    image = f"{server.address}/team/vllm:v0.32.0"
    server.push("team/vllm", "v0.32.0", "amd64")
    words = ["render", str(plan), "-t", "kubernetes", "--name", "demo", "--image", image]
    assert main.run([*words, "-o", str(tmp_path / "before")]) == 0
    assert main.run([*words, "--pin-digests", "-o", str(tmp_path / "pinned")]) == 0
    assert main.run([*words, "-o", str(tmp_path / "after")]) == 0
    before, pinned, after = (
        (tmp_path / each / "deployment.yaml").read_text() for each in ("before", "pinned", "after")
    )
    assert before == after != pinned


def test_a_refused_question_writes_nothing(
    server: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(plan_module.encode(plans.replicas()))
    words = ["render", str(plan), "-t", "helm", "--image", f"{server.address}/team/vllm:v9", "--pin-digests"]
    assert main.run([*words, "-o", str(tmp_path / "out")]) == 2
    assert f"{server.address} has no team/vllm:v9" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", WITH)
def test_pinned_files_are_found_in_order(target: str, tmp_path: Path) -> None:
    """The release is still read from the tag."""
    plan, engine = plans.replicas(), backend.get("vllm")
    options = msgspec.structs.replace(PLAIN, digests=dict.fromkeys(images(plan, target, PLAIN, engine), DIGEST))
    for file in render(plan, target, options):
        (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.path).write_text(file.content)
    if target == "podman":
        return  # a quadlet is not read by `validate`
    folder = tmp_path / "base" if target == "kustomize" else tmp_path
    assert main.run(["validate", str(folder)]) == 0
