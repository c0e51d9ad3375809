"""Values of charts are read as what their templates would make of them."""

from __future__ import annotations

from typing import Any

from aim_engine import backend
from aim_engine.render import check_values

ENGINE = backend.get("vllm")


def ids(entry: dict[str, Any]) -> set[str]:
    assert check_values.is_values(entry)
    return {finding.id for finding in check_values.check(entry, ENGINE)}


def test_a_production_stack_that_asks_for_another_makers_gpus_and_image_is_told() -> None:
    model = {"repository": "vllm/vllm-openai", "tag": "v0.33.0", "modelURL": "Qwen/Qwen3-32B", "requestGPU": 1}
    assert {"VER008", "K8S001"} <= ids({"servingEngineSpec": {"modelSpec": [model]}})


def test_a_production_stack_for_amd_is_fine() -> None:
    model = {
        "repository": "vllm/vllm-openai-rocm",
        "tag": "v0.33.0",
        "modelURL": "Qwen/Qwen3-32B",
        "requestGPU": 2,
        "requestGPUType": "amd.com/gpu",
        "vllmConfig": {"tensorParallelSize": 2, "maxModelLen": 32768, "extraArgs": ["--kv-cache-dtype", "fp8"]},
    }
    assert not ids({"servingEngineSpec": {"modelSpec": [model]}})
    model["vllmConfig"] = {"tensorParallelSize": 4, "extraArgs": ["--swap-space", "4"]}
    assert {"PAR006", "VER002"} <= ids({"servingEngineSpec": {"modelSpec": [model]}})


def test_an_image_in_parts_with_a_command_is_read() -> None:
    image = {
        "repository": "rocm/vllm",
        "tag": "latest",
        "command": ["vllm", "serve", "m", "--num-lookahead-slots", "2"],
    }
    found = ids({"image": image, "replicaCount": 1, "resources": {"limits": {"amd.com/gpu": 1}}})
    assert {"VER007", "VER009"} <= found


def test_containers_deep_inside_are_found_where_they_are() -> None:
    container = {"image": "vllm/vllm-openai-rocm:v0.33.0", "args": ["m", "--swap-space", "4"]}
    values = {"replicas": 1, "decode": {"containers": [{"name": "vllm", **container}]}}
    (finding,) = check_values.check(values, ENGINE)
    assert finding.id == "VER002"
    assert finding.evidence == "values: decode.containers[0]: args"


def test_other_documents_are_no_values() -> None:
    assert not check_values.is_values({"apiVersion": "v1", "kind": "Pod", "image": "a", "args": ["b"], "resources": {}})
    assert not check_values.is_values({"image": "a", "args": ["b"], "devices": ["/dev/kfd"]})
    assert not check_values.is_values({"replicas": 3})
    assert not check_values.is_values([1])
