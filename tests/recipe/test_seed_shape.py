"""The first specification's recipe shape, read into a recipe."""

from __future__ import annotations

import copy
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.errors import InvalidInput
from aim_engine.hardware.quantity import quantity
from aim_engine.recipe.seed_shape import from_seed, is_seed_shape
from aim_engine.units import GIB

SEED: dict[str, Any] = {
    "huggingface_id": "Qwen/Qwen3-32B",
    "precision": "bf16",
    "gpu_count": 4,
    "config": {
        "args": {"max_model_len": 32768, "max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.9},
        "env_vars": {"VLLM_ROCM_USE_AITER": 1},
    },
    "resources": {"requests": {"memory": "64Gi", "cpu": "16"}, "limits": {"memory": "128Gi", "cpu": "32"}},
}


def seed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SEED), **changes}


def with_args(**args: Any) -> dict[str, Any]:
    document = seed()
    document["config"]["args"] |= args
    return document


def read(document: dict[str, Any]) -> Any:
    return from_seed(document, engine_version="0.32.0")


def test_every_part_of_the_shape_arrives() -> None:
    recipe = read(seed())
    assert (recipe.model_id, recipe.precision, recipe.gpu_count) == ("Qwen/Qwen3-32B", "bf16", 4)
    assert recipe.parallelism.tp == 4
    assert (recipe.max_model_len, recipe.max_num_batched_tokens, recipe.gpu_memory_utilization) == (32768, 8192, 0.9)
    assert recipe.env == {"VLLM_ROCM_USE_AITER": "1"}
    assert (recipe.resources.cpu_cores, recipe.resources.memory_bytes) == (16, 128 * GIB)


def test_code_from_the_model_runs_only_when_asked() -> None:
    assert read(seed()).trust_remote_code is False
    assert read(with_args(trust_remote_code=True)).trust_remote_code is True


def test_arguments_may_be_spelt_with_hyphens_and_further_ones_are_kept() -> None:
    document = seed()
    document["config"]["args"] = {
        "max-model-len": 4096,
        "--max-num-batched-tokens": 2048,
        "enable_prefix_caching": False,
        "async-scheduling": True,
        "limit_mm_per_prompt": {"image": 2},
        "seed": 7,
    }
    recipe = read(document)
    assert recipe.max_model_len == 4096
    assert recipe.extra_args == (
        "--async-scheduling",
        "--no-enable-prefix-caching",
        "--limit-mm-per-prompt",
        '{"image": 2}',
        "--seed",
        "7",
    )


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (seed(precision="bf17"), "bf17"),
        (seed(gpu_count=-1), "gpu_count"),
        (seed(gpu_count="four"), "gpu_count"),
        (seed(gpu_count=True), "gpu_count"),
        (seed(huggingface_id=""), "huggingface_id"),
        (seed(config=[]), "config"),
        (seed(config={}), "config.args"),
        (with_args(max_model_len="long"), "config.args.max_model_len"),
        (with_args(max_num_batched_tokens=0), "config.args.max_num_batched_tokens"),
        (with_args(gpu_memory_utilization="high"), "gpu_memory_utilization"),
        (with_args(gpu_memory_utilization=1.5), "1.5"),
        (with_args(tensor_parallel_size=3), "disagree"),
        (seed(resources={"limits": {"memory": "256GB"}}), "256GB"),
        (seed(resources={"requests": {"cpu": "many"}}), "many"),
    ],
)
def test_what_is_wrong_is_named(document: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read(document)


def test_the_shape_is_told_from_others() -> None:
    assert is_seed_shape(SEED)
    assert not is_seed_shape({"schema": "aim-engine/recipe/v1", "huggingface_id": "x"})
    assert not is_seed_shape(["huggingface_id"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64Gi", 64 * GIB),
        ("8", 8),
        ("500m", Decimal("0.5")),
        ("1.5G", 1_500_000_000),
        ("1e3", 1000),
        ("2E", 2 * 10**18),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str, value: Decimal | int) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["256GB", "16GiB", "", "Gi", "1 Gi", "1gi", "0x10", "1..2", "K"])
def test_what_kubernetes_refuses_is_no_quantity(text: str) -> None:
    assert quantity(text) is None


@given(st.text(max_size=12))
def test_no_text_breaks_the_reader_of_quantities(text: str) -> None:
    quantity(text)
