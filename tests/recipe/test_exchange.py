"""Recipes of others are read without loss, written back alike, and what they cannot say is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.errors import InvalidInput
from aim_engine.recipe import exchange
from aim_engine.recipe.database import Known, RecipeDatabase

PROFILE: dict[str, Any] = {
    "aim_id": "openai/gpt-oss-120b",
    "model_id": "openai/gpt-oss-120b",
    "metadata": {
        "engine": "vllm",
        "gpu": "MI300X",
        "gpu_count": 4,
        "manual_selection_only": False,
        "metric": "latency",
        "precision": "fp4",
        "type": "optimized",
    },
    "engine_args": {
        "compilation-config": {"cudagraph_mode": "FULL_AND_PIECEWISE"},
        "enable-auto-tool-choice": None,
        "enable-log-requests": False,
        "distributed_executor_backend": "mp",
        "gpu-memory-utilization": 0.95,
        "max-num-seqs": 512,
        "tensor-parallel-size": 4,
        "kv-cache-dtype": "auto",
    },
    "env_vars": {"VLLM_ROCM_USE_AITER": "1", "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION": "INT4"},
}


def read(document: dict[str, Any]) -> Known:
    return exchange.read(document, source="a test", checked="2026-11-23")


def changed(**changes: Any) -> dict[str, Any]:
    return {**PROFILE, **changes}


def test_a_profile_becomes_a_known_configuration() -> None:
    known = read(PROFILE)
    assert known.split == "tp4"
    assert (known.precision, known.objective, known.gpus) == ("mxfp4", "latency", ("MI300X",))
    assert (known.max_num_seqs, known.gpu_memory_utilization, known.kv_cache_dtype) == (512, 0.95, "auto")
    assert known.extra_args == (
        *("--compilation-config", '{"cudagraph_mode": "FULL_AND_PIECEWISE"}'),
        *("--distributed-executor-backend", "mp"),
        "--enable-auto-tool-choice",
        "--no-enable-log-requests",
    )
    assert known.lossy_env == {"VLLM_ROCM_QUICK_REDUCE_QUANTIZATION": "INT4"}
    assert known.provenance.source == "a test (profile type optimized)"


def test_a_profile_for_every_model_is_kept_as_general() -> None:
    document = {key: value for key, value in PROFILE.items() if key not in ("aim_id", "model_id")}
    assert read(document).model_id == exchange.GENERAL


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (changed(metadata={**PROFILE["metadata"], "engine": "sglang"}), "sglang"),
        (changed(metadata={**PROFILE["metadata"], "precision": "fp5"}), "fp5"),
        (changed(engine_args={"tensor-parallel-size": "many"}), "tensor-parallel-size"),
        (changed(engine_args={"max-num-seqs": "many"}), "many"),
        (changed(engine_args=["--tensor-parallel-size"]), "engine_args"),
        (changed(env_vars="A=1"), "env_vars"),
        ({"huggingface_id": "a/b", "precision": "bf16", "config": ["x"]}, "config"),
        ({"huggingface_id": "a/b", "precision": "bf16", "config": {"args": "x"}}, "config.args"),
        ({"something": "else"}, "neither"),
    ],
)
def test_what_cannot_be_read_is_named(document: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read(document)
    assert named in f"{raised.value} {raised.value.why}"


def same(one: Known, other: Known) -> bool:
    """Equal but for what a shape cannot hold."""
    return msgspec.structs.replace(one, provenance=other.provenance, objective=other.objective) == other


flags = st.dictionaries(
    st.sampled_from(
        ["swap-space", "seed", "api-server-count", "enforce-eager", "no-async-scheduling", "O", "lora-modules"]
    ),
    st.one_of(
        st.none(), st.integers(0, 9), st.just("x y"), st.lists(st.sampled_from(["a", "b"]), min_size=2, max_size=3)
    ),
)


@given(flags=flags, tp=st.sampled_from([1, 2, 8]), ep=st.booleans(), shape=st.sampled_from(["aim", "seed"]))
def test_reading_what_was_written_gives_the_same(
    flags: dict[str, Any], tp: int, ep: bool, shape: exchange.Shape
) -> None:
    arguments = {**flags, "tensor-parallel-size": tp, **({"enable-expert-parallel": None} if ep else {})}
    known = read(changed(engine_args=arguments))
    assert same(read(exchange.write(known, shape)), known)


def test_every_bundled_recipe_with_a_split_survives_both_shapes() -> None:
    for known in RecipeDatabase():
        if known.parallelism is not None and known.engine == "vllm":
            one = msgspec.structs.replace(known, gpus=known.gpus[:1], engine_version=None)
            for shape in ("aim", "seed"):
                again = read(exchange.write(one, shape))
                assert sorted(again.extra_args) == sorted(one.extra_args), known
                assert msgspec.structs.replace(again, extra_args=()) == msgspec.structs.replace(
                    one, extra_args=(), provenance=again.provenance, objective=again.objective
                ), known


def test_a_recipe_without_a_split_is_not_exported() -> None:
    known = msgspec.structs.replace(read(PROFILE), parallelism=None)
    with pytest.raises(InvalidInput, match="no split"):
        exchange.write(known, "aim")
