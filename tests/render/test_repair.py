"""Documents of others keep what is theirs, and lose what the engine would refuse."""

from __future__ import annotations

from typing import Any

import pytest

from aim_engine import backend
from aim_engine.hardware import catalog
from aim_engine.model import catalog as models
from aim_engine.render import repair

ENGINE = backend.get("vllm").knowing(models.load, catalog.load("MI300X"))
OFFICIAL = f"vllm/vllm-openai-rocm:v{ENGINE.versions()[0]}"
SEED_DOCKER: dict[str, Any] = {
    "image": "rocm/vllm:latest",
    "ports": ["8000:8000"],
    "environment": {"VLLM_USE_TRITON_FLASH_ATTN": "0", "OURS": "1"},
    "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
    "args": ["--model", "Qwen/Qwen3-32B", "--dtype", "bf16", "--tensor-parallel-size", "8", "--trust-remote-code"],
}


def fixed(document: Any) -> Any:
    return repair.document(document, ENGINE, None)[0]


def test_the_first_specifications_container_becomes_one_that_starts() -> None:
    found = fixed(SEED_DOCKER)
    assert found["image"] == OFFICIAL
    assert "command" not in found
    assert found["ports"] == SEED_DOCKER["ports"]
    assert found["environment"] == {"OURS": "1", "VLLM_ROCM_USE_AITER": "1"}
    assert found["args"] == [
        *("--model", "Qwen/Qwen3-32B", "--dtype", "bfloat16", "--tensor-parallel-size", "8"),
        *("--attention-backend", "ROCM_AITER_FA"),
    ]
    wrong = ENGINE.check(tuple(found["args"]), found["environment"], ENGINE.versions()[0])
    assert {finding.id for finding in wrong if finding.severity != "info"} == {"PAR031"}  # more GPUs than it needs


def test_a_pod_keeps_its_secrets_and_its_other_containers() -> None:
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
    pod = {
        "kind": "Pod",
        "spec": {
            "containers": [
                {"image": "nginx:1.29", "args": ["--swap-space", "4"], "env": [{"name": "VLLM_USE_V1", "value": "1"}]},
                {**SEED_DOCKER, "environment": None, "env": [token, {"name": "VLLM_USE_V1", "value": "1"}]},
            ]
        },
    }
    del pod["spec"]["containers"][1]["environment"]  # type: ignore[index]
    other, ours = fixed(pod)["spec"]["containers"]
    assert other == pod["spec"]["containers"][0]  # type: ignore[index]
    assert ours["env"] == [token, {"name": "VLLM_ROCM_USE_AITER", "value": "1"}]


def test_a_compose_service_is_repaired_where_it_stands() -> None:
    service = {
        "image": OFFICIAL,
        "command": ["Qwen/Qwen3-32B", "--swap-space", "4"],
        "environment": ["A=1", "VLLM_USE_V1=1"],
    }
    found = fixed({"services": {"llm": service}})["services"]["llm"]
    assert found["command"] == ["Qwen/Qwen3-32B", "--attention-backend", "ROCM_AITER_FA"]
    assert found["environment"] == ["A=1", "VLLM_ROCM_USE_AITER=1"]


def test_a_recipe_of_the_first_specification_is_said_anew() -> None:
    recipe = {
        "huggingface_id": "Qwen/Qwen3-32B",
        "precision": "bf16",
        "gpu_count": 2,
        "config": {
            "args": {"max_model_len": 32768, "swap_space": 4, "trust_remote_code": True},
            "env_vars": {"VLLM_USE_V1": "1"},
        },
        "resources": {"limits": {"memory": "64Gi"}},
    }
    found = fixed(recipe)
    assert found["resources"] == recipe["resources"]
    assert found["config"]["env_vars"] == {"VLLM_ROCM_USE_AITER": "1"}
    assert found["config"]["args"]["max_model_len"] == 32768
    assert not {"swap_space", "trust_remote_code"} & set(found["config"]["args"])


@pytest.mark.parametrize(
    "document",
    [
        {
            "image": OFFICIAL,
            "args": ["Qwen/Qwen3-32B", "--attention-backend", "ROCM_AITER_FA"],
            "env": [{"name": "VLLM_ROCM_USE_AITER", "value": "1"}],
        },
        {"image": "nginx:1.29", "args": ["--swap-space"]},
        {"kind": "Service", "spec": {"ports": [{"port": 80}]}},
        {"image": OFFICIAL, "args": "a string"},
        {"image": OFFICIAL, "args": ["m"], "env": "broken"},
        [],
        None,
    ],
)
def test_what_needs_nothing_stays_as_it_is(document: Any) -> None:
    found, changes = repair.document(document, ENGINE, None)
    assert found == document
    assert changes == ()


def test_repairing_twice_changes_nothing_more() -> None:
    once = fixed(SEED_DOCKER)
    again, changes = repair.document(once, ENGINE, None)
    assert again == once
    assert changes == ()


def test_an_engines_own_configuration_file_is_repaired_in_its_own_spelling() -> None:
    written = {
        "model": "Qwen/Qwen3-32B",
        "dtype": "bf16",
        "swap_space": 4,
        "trust_remote_code": True,
        "max_model_len": 8192,
        "port": 8000,
    }
    found, changes = repair.document(written, ENGINE, None)
    assert found == {"model": "Qwen/Qwen3-32B", "dtype": "bfloat16", "max_model_len": 8192, "port": 8000}
    assert list(found) == [name for name in written if name in found]
    assert {change.what for change in changes} == {"--dtype bf16", "--swap-space 4", "--trust-remote-code"}


def test_a_backend_that_a_configuration_file_names_stays_since_its_variables_stand_elsewhere() -> None:
    written = {"model": "Qwen/Qwen3-32B", "attention-backend": "ROCM_AITER_FA"}
    assert repair.document(written, ENGINE, None) == (written, ())
    assert repair.document({"model": "Qwen/Qwen3-32B", "max-num-seqs": 64}, ENGINE, None)[1] == ()
