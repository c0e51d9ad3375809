"""Kernels are one choice: each part fits the others, the card, the release and what the user allows."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import specs
from aim_engine import backend
from aim_engine.backend import kernels, release
from aim_engine.backend.kernels import Choice, Features
from aim_engine.hardware import catalog
from aim_engine.model import catalog as models
from aim_engine.model.spec import LayerGroup, ModelSpec, Quantization

ENGINE = backend.get("vllm")
ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
KV_FORMATS = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")


def model(name: str) -> ModelSpec:
    found = models.load(name)
    assert found is not None
    return found


def chosen(spec: ModelSpec, arch: str, version: str = "0.33.0", **features: object) -> Choice:
    values = msgspec.convert(features, Features)
    return kernels.choose(spec, arch, version, values, table=release.flags("vllm", version))


def of(choice: Choice, topic: str) -> str:
    return next(reason.choice for reason in choice.reasons if reason.topic == topic)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen3-32B", "ROCM_AITER_FA"),
        ("Qwen/Qwen3-235B-A22B", "ROCM_AITER_FA"),
        ("MiniMaxAI/MiniMax-M2.5", "ROCM_AITER_FA"),
        ("openai/gpt-oss-120b", "ROCM_AITER_UNIFIED_ATTN"),
        ("google/gemma-2-2b", "ROCM_AITER_UNIFIED_ATTN"),
        ("google/gemma-3-27b-it", "TRITON_ATTN"),
        ("Qwen/Qwen3.5-122B-A10B", "ROCM_AITER_UNIFIED_ATTN"),
        ("deepseek-ai/DeepSeek-V3", None),
        ("microsoft/Phi-3-mini-128k-instruct", "ROCM_AITER_UNIFIED_ATTN"),
    ],
)
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_the_attention_backend_follows_heads_sinks_and_windows(name: str, arch: str, expected: str | None) -> None:
    assert chosen(model(name), arch).attention_backend == expected


@given(
    arch=st.sampled_from(ARCHS),
    name=st.sampled_from(models.names()),
    version=st.sampled_from(ENGINE.versions()),
    tp=st.sampled_from((1, 2, 4, 8)),
    kv=st.sampled_from(KV_FORMATS),
)
def test_a_named_backend_never_meets_its_own_objection(arch: str, name: str, version: str, tp: int, kv: str) -> None:
    spec = model(name)
    choice = chosen(spec, arch, version, tp=tp, kv_cache_dtype=kv)
    if choice.attention_backend is not None:
        against = kernels.objection(
            choice.attention_backend,
            spec,
            arch,
            version,
            aiter_on=choice.env.get("VLLM_ROCM_USE_AITER") == "1",
            kv_cache_dtype=kv,
            block_size=choice.block_size,
        )
        assert against is None
    for variable in choice.env:
        assert not variable.startswith("VLLM_") or variable in release.flags("vllm", version).env


@given(name=st.sampled_from(models.names()), arch=st.sampled_from(ARCHS), tp=st.sampled_from((1, 2, 8)))
def test_nothing_lossy_is_chosen_unless_it_was_allowed(name: str, arch: str, tp: int) -> None:
    choice = chosen(model(name), arch, tp=tp)
    assert "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION" not in choice.env
    assert all(reason.topic == "left out" for reason in choice.reasons if reason.lossy)


def test_a_lossy_switch_is_taken_when_allowed_and_shown_when_not() -> None:
    spec = model("openai/gpt-oss-120b")
    allowed, refused = (chosen(spec, "gfx942", tp=2, allow_lossy=flag) for flag in (True, False))
    assert allowed.env["VLLM_ROCM_QUICK_REDUCE_QUANTIZATION"] == "INT4"
    assert "INT4" in of(refused, "left out")
    assert "INT4" not in " ".join(refused.env.values())


def test_every_part_has_its_evidence() -> None:
    for name in models.names():
        for arch in ARCHS:
            for reason in chosen(model(name), arch, tp=2).reasons:
                assert reason.why, (name, reason)
                assert reason.source, (name, reason)


def test_an_fp8_cache_drops_kernels_that_cannot_read_it() -> None:
    spec = model("Qwen/Qwen3-14B")
    assert chosen(spec, "gfx1201").env["VLLM_ROCM_USE_AITER"] == "1"
    assert "VLLM_ROCM_USE_AITER" not in chosen(spec, "gfx1201", kv_cache_dtype="fp8").env
    assert "VLLM_ROCM_USE_AITER" not in chosen(spec, "gfx1201", "0.28.0").env


def test_sinks_wait_for_the_release_in_which_a_backend_learnt_them() -> None:
    spec = model("openai/gpt-oss-20b")
    for version, objects in (("0.22.1", True), ("0.23.0", False)):
        against = kernels.objection("ROCM_AITER_FA", spec, "gfx942", version, aiter_on=True)
        assert (against is not None) == objects


@pytest.mark.parametrize(
    ("name", "spec", "arch", "options"),
    [
        ("ROCM_AITER_FA", specs.dense(), "gfx90a", {}),
        ("ROCM_AITER_FA", specs.dense(), "gfx942", {"aiter_on": False}),
        ("ROCM_AITER_FA", specs.dense(head_dim=96), "gfx942", {}),
        ("ROCM_AITER_FA", specs.dense(), "gfx942", {"block_size": 24}),
        ("ROCM_AITER_FA", specs.latent(), "gfx942", {}),
        ("TRITON_MLA", specs.dense(), "gfx942", {}),
        ("TRITON_MLA", specs.latent(), "gfx942", {"kv_cache_dtype": "fp8_e5m2"}),
        ("ROCM_ATTN", specs.dense(), "gfx942", {"kv_connector": True}),
        ("ROCM_ATTN", specs.dense(has_sinks=True), "gfx942", {}),
        ("ROCM_AITER_UNIFIED_ATTN", model("google/gemma-3-27b-it"), "gfx942", {}),
    ],
)
def test_what_a_backend_cannot_serve_is_said(name: str, spec: ModelSpec, arch: str, options: dict[str, object]) -> None:
    asked = {"aiter_on": True, **options}
    assert kernels.objection(name, spec, arch, "0.33.0", **asked) is not None  # type: ignore[arg-type]
    assert kernels.objection("SOMETHING_NEW", spec, arch, "0.33.0", aiter_on=True) is None


def test_known_bad_releases_are_worked_around() -> None:
    spec = model("moonshotai/Kimi-K2.5")
    tables = release.flags("vllm", "0.28.0")
    few_heads = kernels.choose(spec, "gfx942", "0.27.1", Features(tp=8, precision="int4"), table=tables)
    assert few_heads.attention_backend == "TRITON_MLA"
    many_heads = kernels.choose(spec, "gfx942", "0.27.1", Features(tp=4, precision="int4"), table=tables)
    assert many_heads.attention_backend is None
    slow = kernels.choose(spec, "gfx950", "0.21.0", Features(tp=8, precision="int4"), table=tables)
    assert slow.env["VLLM_ROCM_USE_AITER_MOE"] == "0"
    assert of(slow, "experts") == "Triton"


@pytest.mark.parametrize(
    ("arch", "form", "how"),
    [
        ("gfx942", "fp8", "native"),
        ("gfx90a", "fp8", "none"),
        ("gfx1201", "fp8", "native"),
        ("gfx1100", "fp8", "none"),
        ("gfx950", "mxfp4", "native"),
        ("gfx942", "mxfp4", "emulated"),
        ("gfx942", "mxfp8", "converted"),
        ("gfx90a", "int8", "native"),
        ("gfx942", "nvfp4", "none"),
        ("gfx90a", "bf16", "native"),
    ],
)
def test_weights_are_computed_as_the_card_can(arch: str, form: str, how: str) -> None:
    assert kernels.computed(form, arch).how == how


@pytest.mark.parametrize(
    ("spec", "arch", "options", "why"),
    [
        (specs.dense(), "gfx942", {}, None),
        (specs.dense(head_dim=96), "gfx942", {}, "heads of 96"),
        (specs.dense(heads=64, kv_heads=2), "gfx942", {}, "32 heads"),
        (specs.dense(), "gfx942", {"max_model_len": 262144}, "context"),
        (specs.dense(), "gfx942", {"block_size": 64}, "blocks of 64"),
        (specs.dense(), "gfx1100", {"kv_cache_dtype": "fp8"}, "KV cache"),
        (specs.dense(has_sinks=True), "gfx942", {}, "sinks"),
        (specs.latent(), "gfx942", {}, None),
    ],
)
def test_the_engines_own_choice_falls_back_where_its_kernel_ends(
    spec: ModelSpec, arch: str, options: dict[str, object], why: str | None
) -> None:
    asked: dict[str, object] = {"kv_cache_dtype": "auto", "block_size": None, "max_model_len": 8192, **options}
    found = kernels.falls_back(spec, arch, **asked)  # type: ignore[arg-type]
    assert (found is None) if why is None else (found is not None and why in found)


def test_a_window_takes_the_native_kernel_away() -> None:
    group = LayerGroup(
        kind="sliding", count=64, heads=64, kv_heads=8, head_dim_k=128, head_dim_v=128, window_tokens=4096
    )
    spec = specs.dense(groups=(group,))
    assert (
        kernels.falls_back(spec, "gfx942", kv_cache_dtype="auto", block_size=16, max_model_len=8192)
        == "a sliding window"
    )


def test_a_plan_tells_what_was_chosen_together_and_a_cpu_has_no_choice() -> None:
    gpu = catalog.load("MI300X")
    recipe = specs.recipe(specs.mixture())
    topics = {reason.topic for reason in ENGINE.explain(specs.mixture(), gpu, recipe)}
    assert topics == {"weights", "AITER", "attention", "experts", "KV cache"}
    assert ENGINE.explain(specs.small(), msgspec.structs.replace(gpu, kind="cpu"), recipe) == ()


def test_a_calibrated_cache_is_not_called_lossy() -> None:
    scheme = Quantization(
        method="quark", format="fp8", bytes_per_weight=1, quantised_parts=("dense_mlp",), kv_cache_dtype="fp8"
    )
    reasons = chosen(specs.dense(quantization=scheme), "gfx942", precision="fp8", kv_cache_dtype="fp8").reasons
    assert not any(reason.lossy for reason in reasons)
    made = chosen(specs.dense(), "gfx942", precision="fp8", online_quantization="fp8", kv_cache_dtype="fp8").reasons
    assert {reason.topic for reason in made if reason.lossy} == {"weights", "KV cache"}
