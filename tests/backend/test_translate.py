"""A command line keeps its meaning from one release to the next, and what it loses is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import specs
from aim_engine import backend
from aim_engine.backend.base import Translation
from aim_engine.recipe.database import RecipeDatabase

ENGINE = backend.get("vllm")


def said(*args: str, version: str = "0.33.0", **env: str) -> Translation:
    return ENGINE.translate(args, env, version)


@pytest.mark.parametrize(
    ("args", "version", "expected"),
    [
        (("m", "--no-enable-prefix-caching"), "0.33.0", ("m", "--disable-prefix-caching")),
        (("m", "--disable-prefix-caching"), "0.30.0", ("m", "--no-enable-prefix-caching")),
        (("m", "--no_enable_prefix_caching"), "0.33.0", ("m", "--disable-prefix-caching")),
        (("m", "--swap-space", "64", "--port", "1"), "0.33.0", ("m", "--port", "1")),
        (("m", "--swap-space=64"), "0.33.0", ("m",)),
        (("m", "--cuda-graph-sizes", "8", "16"), "0.33.0", ("m", "--cudagraph-capture-sizes", "8", "16")),
        (("m", "--disable-mm-preprocessor-cache"), "0.33.0", ("m", "--mm-processor-cache-gb", "0")),
        (
            ("m", "--attention_config.indexer_kv_dtype", "fp8"),
            "0.33.0",
            ("m", "--attention_config.indexer_kv_dtype", "fp8"),
        ),
        (("m", "-cc.mode=3", "--seed", "-1"), "0.33.0", ("m", "-cc.mode=3", "--seed", "-1")),
    ],
)
def test_words_are_said_as_the_release_says_them(
    args: tuple[str, ...], version: str, expected: tuple[str, ...]
) -> None:
    assert said(*args, version=version).args == expected


def test_a_variable_becomes_the_argument_that_replaced_it() -> None:
    found = said("m", VLLM_ATTENTION_BACKEND="ROCM_AITER_FA", VLLM_USE_V1="1", NCCL_DEBUG="INFO")
    assert found.args == ("m", "--attention-backend", "ROCM_AITER_FA")
    assert found.env == {"NCCL_DEBUG": "INFO"}
    assert [(change.kind, change.to) for change in found.changes] == [
        ("renamed", "--attention-backend ROCM_AITER_FA"),
        ("dropped", ""),
    ]


def test_an_argument_given_already_wins_over_the_old_variable() -> None:
    found = said("m", "--attention-backend", "TRITON_ATTN", VLLM_ATTENTION_BACKEND="ROCM_ATTN")
    assert found.args == ("m", "--attention-backend", "TRITON_ATTN")


def test_every_change_says_why() -> None:
    changes = said("m", "--swap-space", "4", "--no-such-thing", VLLM_NOTHING="1").changes
    assert [change.what for change in changes] == ["--swap-space 4", "--no-such-thing", "VLLM_NOTHING=1"]
    assert all(change.why for change in changes)


@given(
    known=st.sampled_from(list(RecipeDatabase())),
    old=st.sampled_from(ENGINE.versions()),
    new=st.sampled_from(ENGINE.versions()),
)
def test_what_was_translated_needs_no_more_translation(known: object, old: str, new: str) -> None:
    recipe = next(k for k in RecipeDatabase().load_recipes(known.model_id) if k == known)  # type: ignore[attr-defined]
    there = ENGINE.translate(recipe.extra_args, recipe.env, old)
    back = ENGINE.translate(there.args, there.env, new)
    assert ENGINE.translate(back.args, back.env, new).changes == ()


def test_adopting_takes_switches_and_leaves_what_takes_abilities_away() -> None:
    (known,) = (
        k for k in RecipeDatabase().load_recipes("MiniMaxAI/MiniMax-M3-MXFP8") if k.gpus == ("MI300X",) and k.env
    )
    recipe = ENGINE.adopt(specs.recipe(specs.dense(), engine_version="0.33.0"), known)
    assert "--language-model-only" not in recipe.extra_args
    assert recipe.env["VLLM_ROCM_USE_AITER_MHA"] == "0"
    other = next(k for k in RecipeDatabase().load_recipes("MiniMaxAI/MiniMax-M3-MXFP8") if k.lossy_env)
    plain, lossy = (ENGINE.adopt(recipe, other, allow_lossy=allowed) for allowed in (False, True))
    assert "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION" not in plain.env
    assert lossy.env["VLLM_ROCM_QUICK_REDUCE_QUANTIZATION"] == "INT4"


def test_keys_that_a_release_refuses_are_dropped_and_listed() -> None:
    args = ("m", "--attention-config.no_such_key", "1", "--compilation-config", '{"full_cuda_graph": true, "mode": 3}')
    done = ENGINE.translate(args, {}, "0.33.0")
    assert done.args == ("m", "--compilation-config", '{"mode": 3}')
    assert [change.what for change in done.changes] == [
        "--attention-config.no_such_key",
        "--compilation-config.full_cuda_graph",
    ]
    gone = ENGINE.translate(("m", "--compilation-config", '{"full_cuda_graph": true}'), {}, "0.33.0")
    assert gone.args == ("m",)
