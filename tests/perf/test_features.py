"""What a step has to do, counted."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specs
from aim_engine.model import catalog
from aim_engine.perf import calibration
from aim_engine.perf.features import INDEX, NAMES, OF_PROMPTS, Features, tokens_per_step
from aim_engine.perf.roofline import combined
from aim_engine.recipe.recipe import Parallelism
from aim_engine.workload import Workload


def features(**changes: object) -> Features:
    spec = specs.mixture()
    split = changes.pop("parallelism", Parallelism(tp=2))
    assert isinstance(split, Parallelism)
    return Features(spec, specs.card(), specs.recipe(spec, parallelism=split), Workload(), **changes)  # type: ignore[arg-type]


def test_every_feature_has_a_coefficient_in_the_shipped_fit() -> None:
    for entry in calibration.load():
        if "cpu" not in entry.archs:
            for laws in entry.laws.values():
                assert set(laws.step.coefficients) == set(NAMES)
                assert all(value > 0 for value in laws.step.coefficients.values())


def test_few_rows_touch_few_experts_and_many_touch_all() -> None:
    at = features()
    shares = [
        at.one_step(requests, at.context, 0, 0, 0)[INDEX["expert_weights"]] / at.experts_s
        for requests in (1, 8, 64, 4096)
    ]
    assert shares[0] == pytest.approx(at.active_experts / at.experts)
    assert all(few < many for few, many in itertools.pairwise(shares))
    assert shares[-1] == pytest.approx(1.0)


def test_prefill_elsewhere_leaves_no_prompt_in_the_steps() -> None:
    mixed, apart = features().step(64), features(separate_prefill=True).step(64)
    prompt = [number for number, own in enumerate(OF_PROMPTS) if own]
    assert all(apart[number] == 0 for number in prompt)
    assert any(mixed[number] > 0 for number in prompt)


def test_steady_state_is_steps_with_prompts_and_steps_without() -> None:
    at = features()
    prompts = 16 / at.output_tokens
    steady = at.step(16)
    plain = at.one_step(16, at.context, 0, 0, 0)
    with_prompt = at.one_step(16, at.context, 1, at.prompt_tokens, at.before)
    for each, without, beside in zip(steady, plain, with_prompt, strict=True):
        assert each == pytest.approx((1 - prompts) * without + prompts * beside)


def test_prompt_tokens_ride_on_weights_that_decoding_reads_anyway() -> None:
    at = features()
    alone = at.prompt()[INDEX["mixed_dense_weights"]]
    beside = at.one_step(64, at.context, 1, at.prompt_tokens, at.before)
    assert beside[INDEX["mixed_dense_weights"]] == pytest.approx(alone)
    assert beside[INDEX["dense_weights"]] == 0


def test_nothing_is_faster_than_reading_once() -> None:
    at = features()
    assert at.least_token_s < sum(
        value for value, name in zip(at.step(1), NAMES, strict=True) if name.endswith(("weights", "_read"))
    )
    assert at.least_prompt_s > 0


def test_drafts_multiply_rows_but_not_weights() -> None:
    plain, drafting = (at.one_step(16, at.context, 0, 0, 0) for at in (features(), features(drafts=3)))
    assert drafting[INDEX["attention_weights"]] == plain[INDEX["attention_weights"]]
    assert drafting[INDEX["attention_flop"]] == pytest.approx(4 * plain[INDEX["attention_flop"]])
    assert 1 < tokens_per_step(1) < tokens_per_step(3) < 4


def test_experts_over_data_parallel_ranks_exchange_rows() -> None:
    wide = features(parallelism=Parallelism(dp=4, ep=True)).step(64)
    sliced = features(parallelism=Parallelism(tp=4)).step(64)
    assert wide[INDEX["expert_exchange_bytes"]] > 0 == sliced[INDEX["expert_exchange_bytes"]]
    assert sliced[INDEX["allreduce_bytes"]] > 0 == wide[INDEX["allreduce_bytes"]]


@pytest.mark.parametrize(("tp", "again"), [(1, 0), (2, 3), (4, 1), (8, 0), (16, 0)])
def test_a_latent_is_read_again_for_heads_that_no_kernel_was_written_for(tp: int, again: float) -> None:
    spec = catalog.load("deepseek-ai/DeepSeek-R1")
    assert spec is not None
    recipe = specs.recipe(spec, parallelism=Parallelism(tp=tp))
    step = Features(spec, specs.card(), recipe, Workload()).step(64)
    assert step[INDEX["latent_rereads"]] == pytest.approx(again * step[INDEX["kv_read"]])


@given(times=st.lists(st.floats(0, 10), min_size=len(NAMES), max_size=len(NAMES)))
@settings(deadline=None, max_examples=50)
def test_reading_and_computing_together_take_between_the_longer_and_both(times: list[float]) -> None:
    together = sum(combined(list(times)))
    assert max(times, default=0) <= together * (1 + 1e-9)
    assert together <= sum(times) * (1 + 1e-9)
