"""Where the bytes go: known figures, and what must hold for every shape."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specs
from aim_engine.errors import InvalidInput
from aim_engine.model.spec import LayerGroup, ModelSpec
from aim_engine.perf import memory
from aim_engine.recipe.recipe import Parallelism
from aim_engine.units import GIB

TP = st.sampled_from([1, 2, 4, 8])


def test_kv_bytes_per_token_are_layers_times_heads_times_dims() -> None:
    # SmolLM2-135M: 30 layers x 2 x 3 KV heads x 64 x 2 bytes = 23,040 bytes; a real engine logged 46,592 tokens in 1 GiB.
    spec = specs.dense(
        hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152, tied=True
    )
    recipe = specs.recipe(spec, gpu="cpu", gpu_count=0, max_model_len=2048)
    assert memory.kv_bytes_per_token(spec, recipe) == 23_040
    assert memory.layout(spec, recipe).logged_tokens(GIB, 2048, 0, "0.20.0") == 46_592


def test_kv_heads_are_replicated_when_tp_exceeds_them() -> None:
    spec = specs.mixture()
    at4, at8 = (memory.kv_bytes_per_token(spec, specs.recipe(spec, parallelism=Parallelism(tp=tp))) for tp in (4, 8))
    assert at4 == at8


def test_a_latent_cache_is_not_split_by_tp() -> None:
    spec = specs.latent()
    at1, at8 = (memory.kv_bytes_per_token(spec, specs.recipe(spec, parallelism=Parallelism(tp=tp))) for tp in (1, 8))
    assert at1 == at8 == 61 * 576 * 2


def test_loaded_weights_match_what_a_server_logged() -> None:
    # Llama-3.1-8B on R9700: 15.06 GiB at tp1, 7.58 at tp2 (vLLM server logs).
    spec = specs.dense(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocab=128256)
    for tp, logged_gib in ((1, 15.06), (2, 7.58)):
        weights = memory.weights_bytes_per_device(spec, specs.recipe(spec, parallelism=Parallelism(tp=tp)))
        assert weights / GIB == pytest.approx(logged_gib, rel=0.01)


def test_a_window_holds_no_more_than_it_may_read_again() -> None:
    spec = specs.dense(
        layers=2,
        groups=(
            LayerGroup(
                kind="sliding", count=2, heads=64, kv_heads=8, head_dim_k=128, head_dim_v=128, window_tokens=128
            ),
        ),
    )
    recipe = specs.recipe(spec, max_num_batched_tokens=2048)
    short, long = (memory.sequence_bytes(spec, recipe, tokens) for tokens in (8192, 65536))
    assert short == long
    assert short < memory.sequence_bytes(specs.dense(layers=2), recipe, 8192)


def test_heads_that_cannot_be_split_are_named() -> None:
    spec = specs.dense(heads=40, kv_heads=8)
    with pytest.raises(InvalidInput, match="40 attention heads cannot be split over tp=16"):
        memory.check_split(spec, Parallelism(tp=16))


def test_experts_narrower_than_a_quantisation_block_are_refused_unless_whole() -> None:
    spec = specs.latent()
    assert spec.moe is not None
    moe = msgspec.structs.replace(spec.moe, intermediate_size=1536)
    narrow = msgspec.structs.replace(spec, moe=moe)
    assert "not a multiple of the quantisation block" in (memory.split_problem(narrow, Parallelism(tp=8)) or "")
    assert memory.split_problem(narrow, Parallelism(tp=8, ep=True)) is None


def test_online_fp8_halves_the_linear_layers_only() -> None:
    spec = specs.dense()
    plain = memory.weights_bytes_per_device(spec, specs.recipe(spec))
    online = memory.weights_bytes_per_device(spec, specs.recipe(spec, precision="fp8", online_quantization="fp8"))
    ends = 2 * (spec.parameters.embedding + spec.parameters.lm_head)
    assert online == pytest.approx(ends * 1.007 + (plain - ends * 1.007) / 2, rel=0.01)


@given(tp=TP, seqs=st.sampled_from([1, 64, 1024]), utilization=st.floats(0.5, 0.98), length=st.integers(16, 40_960))
@settings(deadline=None)
def test_the_parts_add_up_to_the_budget(tp: int, seqs: int, utilization: float, length: int) -> None:
    spec = specs.dense()
    recipe = specs.recipe(
        spec,
        parallelism=Parallelism(tp=tp),
        max_num_seqs=seqs,
        gpu_memory_utilization=utilization,
        max_model_len=length,
    )
    got = memory.breakdown(spec, specs.card(), recipe, specs.WORKLOAD)
    if got.fits:
        assert got.total_bytes == got.budget_bytes
        assert got.missing_bytes == 0
    assert got.total_bytes <= got.device_bytes or not got.fits


@given(spec=st.sampled_from([specs.dense(), specs.small(), specs.mixture(), specs.latent()]))
@settings(deadline=None)
def test_weights_of_one_device_never_grow_with_tp(spec: ModelSpec) -> None:
    sizes = [
        memory.weights_bytes_per_device(spec, specs.recipe(spec, parallelism=Parallelism(tp=tp))) for tp in (1, 2, 4, 8)
    ]
    assert sizes == sorted(sizes, reverse=True)


@given(memory_gib=st.integers(8, 400), more_gib=st.integers(0, 200))
@settings(deadline=None)
def test_what_fits_still_fits_with_more_memory(memory_gib: int, more_gib: int) -> None:
    spec = specs.dense()
    recipe = specs.recipe(spec)
    less, more = (
        memory.breakdown(spec, specs.card(memory_bytes=size * GIB), recipe, specs.WORKLOAD)
        for size in (memory_gib, memory_gib + more_gib)
    )
    assert more.fits or not less.fits
    assert more.kv_cache_tokens >= less.kv_cache_tokens


@given(
    spec=st.sampled_from([specs.dense(), specs.small(), specs.mixture(), specs.latent()]),
    tp=TP,
    length=st.integers(16, 40_000),
)
@settings(deadline=None)
def test_more_precision_never_takes_less_memory(spec: ModelSpec, tp: int, length: int) -> None:
    split = Parallelism(tp=tp)
    wide = specs.recipe(spec, parallelism=split, max_model_len=length)
    narrow_cache = specs.recipe(spec, parallelism=split, max_model_len=length, kv_cache_dtype="fp8")
    assert memory.sequence_bytes(spec, narrow_cache, length) <= memory.sequence_bytes(spec, wide, length)
    if spec.quantization is None:
        narrow = specs.recipe(spec, parallelism=split, precision="fp8", online_quantization="fp8")
        assert memory.weights_bytes_per_device(spec, narrow) <= memory.weights_bytes_per_device(spec, wide)
