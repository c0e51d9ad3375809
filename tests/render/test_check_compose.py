"""Compose files: our own pass the specification's reader, deliberate mistakes are caught, nothing breaks the checker."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import plans
from aim_engine import backend
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_compose, document
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

ENGINE = backend.get("vllm")
Change = Callable[[dict[str, Any]], object]


def text(case: str) -> str:
    image = "registry.local/vllm:v0.32.0" if case == "small-cpu" else None
    return render(plans.ALL[case](), "compose", Options(name="demo", image=image))[0].content


def ours() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(text("qwen3-32b-8xmi300x"))
    return made


def service(made: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = made["services"]["demo"]
    return first


def problems(made: dict[str, Any], version: str | None = None) -> list[Finding]:
    return [finding for finding in check_compose.check(made, ENGINE, version) if finding.severity != "info"]


@pytest.mark.parametrize("case", plans.ALL)
def test_our_own_files_pass_the_specifications_reader_and_every_rule(case: str) -> None:
    shell = text(case).replace("${HOME}", "/home/me").replace("${RENDER_GID:-109}", "109")
    compose_spec.PyCompose.from_yaml(shell).validate()
    (made,), twice = document.read(text(case), "compose.yaml")
    assert twice == ()
    assert [f for f in check_compose.check(made, ENGINE) if f.severity != "info"] == []


MISTAKES: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda m: service(m).update(shmsize="1g"), "CMP001"),
    "unknown key of the file": (lambda m: m.update(servces={}), "CMP001"),
    "image is a list": (lambda m: service(m).update(image=["x"]), "CMP001"),
    "duration in words": (lambda m: service(m)["healthcheck"].update(interval="10 seconds"), "CMP003"),
    "duration without unit": (lambda m: service(m).update(stop_grace_period=30), "CMP003"),
    "unknown size": (lambda m: service(m).update(shm_size="16gx"), "CMP003"),
    "port too large": (lambda m: service(m).update(ports=["99999:8000"]), "CMP004"),
    "target port too large": (lambda m: service(m)["ports"][0].update(target=80000), "CMP004"),
    "unknown restart policy": (lambda m: service(m).update(restart="allways"), "CMP003"),
    "capability misspelt": (lambda m: service(m)["cap_add"].append("SYS_PTRCE"), "DOC010"),
    "volume that is not defined": (lambda m: service(m).update(volumes=["cache:/x"]), "CMP002"),
    "dependency that is not defined": (lambda m: service(m).update(depends_on=["db"]), "CMP002"),
    "neither image nor build": (lambda m: service(m).pop("image"), "CMP003"),
    "no GPU device": (lambda m: service(m).pop("devices"), "DOC001"),
    "no kernel driver device": (lambda m: service(m).update(devices=["/dev/dri:/dev/dri"]), "DOC001"),
    "no shared memory": (lambda m: service(m).pop("shm_size"), "MEM009"),
    "privileged": (lambda m: service(m).update(privileged=True), "DOC006"),
    "host network and ports": (lambda m: service(m).update(network_mode="host"), "DOC007"),
    "open to all": (lambda m: service(m).update(ports=["8000:8000"]), "SEC001"),
    "token in the clear": (lambda m: service(m)["environment"].update(HF_TOKEN="hf_abc"), "K8S021"),
    "moving tag": (lambda m: service(m).update(image="vllm/vllm-openai-rocm:latest"), "VER009"),
    "CUDA image": (lambda m: service(m).update(image="vllm/vllm-openai:v0.32.0"), "VER008"),
    "flag that is gone": (lambda m: service(m)["command"].extend(["--swap-space", "4"]), "VER002"),
    "command as one line": (lambda m: service(m).update(command="Qwen/Qwen3-32B --max-modle-len 4"), "VER001"),
    "old entry point": (
        lambda m: service(m).update(entrypoint="python3 -m vllm.entrypoints.openai.api_server"),
        "VER010",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_deliberate_mistake_is_found(mistake: str) -> None:
    change, identity = MISTAKES[mistake]
    made = ours()
    change(made)
    assert identity in {finding.id for finding in problems(made)}


def test_all_mistakes_of_a_file_are_listed_at_once() -> None:
    made = ours()
    service(made).update(shm_size="16gx", restart="allways", bogus=1)
    service(made)["healthcheck"]["interval"] = "soon"
    assert len([finding for finding in problems(made) if finding.id == "CMP001"]) == 4


def test_variables_take_their_defaults_and_unknown_ones_are_not_judged() -> None:
    made = ours()
    service(made).update(
        image="vllm/vllm-openai-rocm:${TAG:-v0.32.0}",
        shm_size="${SHM}",
        ports=["127.0.0.1:${PORT}:8000"],
        restart="$POLICY",
    )
    service(made)["environment"]["HF_TOKEN"] = "${HF_TOKEN}"
    assert problems(made) == []
    service(made)["image"] = "vllm/vllm-openai-rocm:${TAG:-latest}"
    assert {finding.id for finding in problems(made)} == {"VER009"}


def test_doubled_dollars_are_text() -> None:
    assert check_compose.interpolate({"a": ["$$HOME", "${A:-b}", "$$$$", "${A-}"]}) == {"a": ["$HOME", "b", "$$", ""]}


def test_newer_keys_of_the_specification_are_accepted() -> None:
    made = ours()
    service(made)["gpus"] = "all"
    service(made)["develop"] = {"watch": []}
    assert problems(made) == []


def test_a_digest_may_follow_a_tag() -> None:
    made = ours()
    named = service(made)["image"]
    service(made)["image"] = f"{named}@sha256:{'a' * 64}"
    assert problems(made) == []


def test_tags_of_compose_are_read() -> None:
    (made,), _ = document.read("services: {a: {image: !override 'x:1', ports: !reset [], x-y: !override [1]}}", "c")
    assert made == {"services": {"a": {"image": "x:1", "ports": None, "x-y": [1]}}}


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=6))
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=6), inner, max_size=2)),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(child, (*path, key))
    return found


OURS = ours()


@settings(max_examples=500, deadline=None)
@given(place=st.sampled_from(places(OURS)), junk=JUNK)
def test_no_value_anywhere_breaks_the_checker(place: tuple[Any, ...], junk: Any) -> None:
    made: Any = copy.deepcopy(OURS)
    holder = made
    for part in place[:-1]:
        holder = holder[part]
    holder[place[-1]] = junk
    check_compose.check(made, ENGINE)


@pytest.mark.corpus
@pytest.mark.parametrize("case", plans.ALL)
def test_our_own_files_pass_the_published_schema(case: str) -> None:
    root = os.environ.get("AIM_ENGINE_CORPUS")
    found = sorted(Path(root).glob("**/compose-spec.json")) if root else []
    if not found:
        pytest.skip("no compose-spec.json under AIM_ENGINE_CORPUS")
    jsonschema = pytest.importorskip("jsonschema")

    jsonschema.Draft7Validator(json.loads(found[0].read_text())).validate(yaml.safe_load(text(case)))


def test_short_devices_and_home_folders_are_compose() -> None:
    made = ours()
    service(made)["devices"] = ["/dev/kfd", "/dev/dri"]
    service(made)["volumes"] = ["~/.cache/huggingface:/root/.cache/huggingface"]
    assert [finding for finding in problems(made) if finding.id == "CMP001"] == []
