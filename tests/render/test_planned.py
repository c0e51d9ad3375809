"""Plans as the planner makes them, over models and cards, rendered everywhere and found clean by our own checks."""

from __future__ import annotations

import functools
import re

import pytest
import yaml

from aim_engine import backend, settings, workflow
from aim_engine.planner.plan import Plan
from aim_engine.render import check_command, check_compose, check_kubernetes
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

ENGINE = backend.get("vllm")
ASKED = [
    ("Qwen/Qwen3-32B", "8xMI300X"),
    ("Qwen/Qwen3-32B", "1xMI210"),
    ("Qwen/Qwen3-32B", "2xR9700"),
    ("Qwen/Qwen3-235B-A22B", "8xMI325X"),
    ("openai/gpt-oss-120b", "4xMI355X"),
    ("meta-llama/Llama-3.1-8B-Instruct", "1xRX7900XTX"),
    ("deepseek-ai/DeepSeek-R1", "8xMI355X"),
]


@functools.cache
def planned(model: str, gpus: str) -> Plan:
    return workflow.choose(workflow.Request(model=model, gpus=gpus), settings.load({"offline": True}))


@pytest.mark.parametrize(("model", "gpus"), ASKED)
def test_what_the_planner_chooses_renders_clean_for_every_target(model: str, gpus: str) -> None:
    plan = planned(model, gpus)
    if plan.chosen is None:
        assert plan.rejected
        return
    options = Options(name="demo")
    for target in ("shell", "docker"):
        script = next(file for file in render(plan, target, options) if file.executable)
        found = check_command.check(script.content, ENGINE, plan.inputs.engine_version)
        assert [f for f in found if f.severity != "info"] == []
    compose = yaml.safe_load(render(plan, "compose", options)[0].content)
    assert [f for f in check_compose.check(compose, ENGINE) if f.severity != "info"] == []
    manifests = [yaml.safe_load(file.content) for file in render(plan, "kubernetes", options)]
    assert [f for f in check_kubernetes.check(manifests, ENGINE) if f.severity != "info"] == []


@pytest.mark.parametrize(("model", "gpus"), ASKED)
def test_a_pod_has_the_cards_a_replica_needs_and_the_image_of_the_release(model: str, gpus: str) -> None:
    plan = planned(model, gpus)
    if plan.chosen is None:
        return
    recipe = plan.chosen.recipe
    files = {file.path: yaml.safe_load(file.content) for file in render(plan, "kubernetes", Options(name="demo"))}
    spec = files["deployment.yaml"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["replicas"] == recipe.replicas
    assert container["resources"]["limits"]["amd.com/gpu"] == str(recipe.parallelism.world_size)
    assert re.fullmatch(
        rf"vllm/vllm-openai-rocm:v{re.escape(recipe.engine_version)}(@sha256:[0-9a-f]+)?", container["image"]
    )
