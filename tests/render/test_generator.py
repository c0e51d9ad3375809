"""The first specification's generator functions, with content that works today."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import aim_engine
import plans
from aim_engine import backend
from aim_engine.errors import InvalidInput
from aim_engine.render.generator import (
    ConfigurationGenerator,
    generate_docker_config,
    generate_kubernetes_config,
    generate_vllm_config,
)

SEED: dict[str, Any] = {
    "huggingface_id": "Qwen/Qwen3-32B",
    "precision": "bf16",
    "gpu_count": 4,
    "config": {
        "args": {"max_model_len": 32768, "max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.9},
        "env_vars": {"VLLM_ROCM_USE_AITER": "1"},
    },
    "resources": {"requests": {"memory": "64Gi", "cpu": "16"}, "limits": {"memory": "128Gi", "cpu": "32"}},
}


def test_they_are_the_public_interface() -> None:
    assert aim_engine.generate_vllm_config is generate_vllm_config
    assert aim_engine.generate_docker_config is generate_docker_config
    assert aim_engine.generate_kubernetes_config is generate_kubernetes_config
    assert aim_engine.ConfigurationGenerator is ConfigurationGenerator


def test_the_engines_settings_have_the_shape_of_the_specification() -> None:
    assert generate_vllm_config(SEED) == {
        "model": "Qwen/Qwen3-32B",
        "dtype": "bfloat16",
        "tensor_parallel_size": 4,
        "max_model_len": 32768,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": 0.9,
        "trust_remote_code": False,
        "host": "127.0.0.1",
        "port": 8000,
    }


def test_docker_runs_the_engines_own_pinned_image_with_arguments_its_release_accepts() -> None:
    config = generate_docker_config(SEED)
    version = backend.get("vllm").versions()[0]
    assert config["image"] == f"vllm/vllm-openai-rocm:v{version}"
    assert "command" not in config
    assert config["args"][0] == "Qwen/Qwen3-32B"
    assert config["devices"] == ["/dev/kfd", "/dev/dri"]
    assert config["ports"] == ["127.0.0.1:8000:8000"]
    assert backend.get("vllm").check(tuple(config["args"]), config["environment"], version) == ()


def test_kubernetes_keeps_the_resources_that_were_given_and_asks_for_whole_gpus() -> None:
    deployment = generate_kubernetes_config(SEED)
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == {
        "requests": {"memory": "64Gi", "cpu": "16", "amd.com/gpu": "4"},
        "limits": {"memory": "128Gi", "cpu": "32", "amd.com/gpu": "4"},
    }


def test_a_recipe_value_works_as_well_and_keeps_its_release() -> None:
    chosen = plans.replicas().chosen
    assert chosen is not None
    assert generate_docker_config(chosen.recipe)["image"].endswith(f":v{plans.VERSION}")
    assert generate_kubernetes_config(chosen.recipe)["spec"]["replicas"] == 2


def test_an_argument_that_is_gone_is_refused_with_what_to_do() -> None:
    document = copy.deepcopy(SEED)
    document["config"]["args"]["swap_space"] = 16
    with pytest.raises(InvalidInput) as caught:
        generate_docker_config(document)
    assert "--swap-space" in (caught.value.why or "")


def test_another_release_gives_another_image() -> None:
    generator = ConfigurationGenerator(engine_version="0.28.0")
    assert generator.generate_docker_config(SEED)["image"] == "vllm/vllm-openai-rocm:v0.28.0"
