"""The model's step times in the scheduler: what the simulation must share with the closed forms it stands beside."""

from __future__ import annotations

import msgspec
import pytest

import specs
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import calibration, memory, play, predict
from aim_engine.perf.estimate import MemoryBreakdown
from aim_engine.perf.roofline import Model
from aim_engine.perf.simulate import Outcome
from aim_engine.recipe.recipe import Parallelism, Recipe
from aim_engine.workload import Slo, Workload

SETS = calibration.load()
TOKENS = 16384
SPLITS = {"tp1": Parallelism(tp=1), "tp4": Parallelism(tp=4), "tp4 ep": Parallelism(tp=4, ep=True)}


def built(spec: ModelSpec, split: Parallelism, workload: Workload) -> tuple[Model, Recipe, MemoryBreakdown]:
    gpu = specs.card()
    recipe = specs.recipe(
        spec,
        parallelism=split,
        gpu_count=split.world_size,
        max_num_seqs=256,
        max_num_batched_tokens=TOKENS,
        max_model_len=8192,
    )
    model = Model(spec, gpu, recipe, workload, calibration.pick(SETS, gpu))
    return model, recipe, memory.breakdown(spec, gpu, recipe, workload)


def played(spec: ModelSpec, split: Parallelism, workload: Workload, running: float, slo: Slo | None = None) -> Outcome:
    model, recipe, breakdown = built(spec, split, workload)
    return play.play(model, recipe, breakdown, slo or Slo(), default_tokens=TOKENS, running=running)


def spec_for(split: str) -> ModelSpec:
    return specs.mixture() if "ep" in split else specs.dense()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("requests", [1, 8, 64, 200])
def test_a_steady_step_takes_what_the_model_says(split: str, requests: int) -> None:
    workload = Workload(input_tokens=1024, output_tokens=512)
    model, _, _ = built(spec_for(split), SPLITS[split], workload)
    steps = play.Steps(model)
    context = 1024 + 256
    # Of 512 steps, each of the requests brings its prompt into one.
    plain = steps(requests, requests * context, 0, 0.0)
    mixed = steps(requests, requests * context, 1024, 512)
    steady = plain + (mixed - plain) * requests / 512
    assert steady == pytest.approx(model.tpot_s(requests), rel=0.08)


@pytest.mark.parametrize("split", SPLITS)
def test_one_request_alone_waits_as_long_as_the_fit_says(split: str) -> None:
    workload = Workload(input_tokens=1024, output_tokens=128, concurrency=1)
    model, _, _ = built(spec_for(split), SPLITS[split], workload)
    got = played(spec_for(split), SPLITS[split], workload, running=1)
    assert got.ttft_ms.p50 == pytest.approx(model.ttft_median_s(1.0) * 1e3, rel=0.01)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_closed_forms_of_random_arrivals_are_near_the_simulation(split: str, share: float) -> None:
    spec, workload = spec_for(split), Workload(input_tokens=1024, output_tokens=512)
    model, recipe, breakdown = built(spec, SPLITS[split], workload)
    slots = predict.capacity(recipe, breakdown)
    most = slots / (model.ttft_median_s(1.0) + 512 * model.tpot_s(slots))
    workload = msgspec.structs.replace(workload, rate_requests_s=share * most)
    model, recipe, breakdown = built(spec, SPLITS[split], workload)
    load, problem = predict.Speed(model, TOKENS).arriving(share * most, slots)
    assert problem is None
    got = played(spec, SPLITS[split], workload, running=load.requests)
    assert got.running == pytest.approx(load.requests, rel=0.25)
    assert got.tpot_ms.mean == pytest.approx(load.tpot_s * 1e3, rel=0.12)
    assert got.ttft_ms.mean == pytest.approx(load.ttft_s * 1e3, rel=0.15)
    assert got.ttft_ms.p99 <= load.seconds("ttft", 99) * 1e3 * 1.3
    assert got.requests_s == pytest.approx(share * most, rel=0.12)


def test_random_arrivals_wait_less_than_a_burst_of_as_many() -> None:
    spec = specs.dense()
    closed = played(spec, SPLITS["tp4"], Workload(concurrency=64), running=64)
    model, recipe, breakdown = built(spec, SPLITS["tp4"], Workload(concurrency=64))
    rate = closed.requests_s * 0.9
    load, _ = predict.Speed(model, TOKENS).arriving(rate, predict.capacity(recipe, breakdown))
    arriving = played(spec, SPLITS["tp4"], Workload(rate_requests_s=rate), running=load.requests)
    assert arriving.ttft_ms.p99 < closed.ttft_ms.p99


def test_smaller_steps_delay_the_first_token_and_smooth_the_others() -> None:
    spec, workload = specs.dense(), Workload(input_tokens=8000, output_tokens=100, rate_requests_s=1.0)
    gpu = specs.card()
    outcomes = []
    for tokens in (1024, 16384):
        recipe = specs.recipe(spec, max_num_seqs=256, max_num_batched_tokens=tokens, max_model_len=8192)
        model = Model(spec, gpu, recipe, workload, calibration.pick(SETS, gpu))
        breakdown = memory.breakdown(spec, gpu, recipe, workload)
        outcomes.append(play.play(model, recipe, breakdown, Slo(), default_tokens=TOKENS, running=16))
    small, large = outcomes
    assert small.ttft_ms.p50 > large.ttft_ms.p50
    assert small.itl_ms.p99 < large.itl_ms.p99


def test_closed_loops_keep_the_fitted_means_and_random_arrivals_take_the_simulated_ones() -> None:
    spec, gpu = specs.dense(), specs.card()
    for workload in (Workload(concurrency=32), Workload(rate_requests_s=1.0)):
        model, recipe, breakdown = built(spec, SPLITS["tp4"], workload)
        coefficients = calibration.pick(SETS, gpu)
        slo = Slo(ttft_ms=5000.0, ttft_percentile=99)
        load, _ = predict.settle(model, predict.capacity(recipe, breakdown), 1, workload, slo, "throughput")
        before = predict.estimate(spec, recipe, workload, slo, coefficients, breakdown, model, load)
        outcome = play.play(model, recipe, breakdown, slo, default_tokens=TOKENS, running=load.requests)
        after = predict.played(before, model, slo, outcome)
        seen = after.simulated
        assert seen is not None
        assert after.ttft_ms.value == pytest.approx(seen.ttft_ms.mean)
        assert after.limited_ms["ttft"].value == pytest.approx(seen.ttft_ms.p99)
        assert sum(after.step_ms.values()) == pytest.approx(after.tpot_ms.value)
        if workload.concurrency is not None:
            assert after.ttft_ms == before.ttft_ms
            assert after.tpot_ms == before.tpot_ms
        else:
            assert after.ttft_ms.value == pytest.approx(outcome.ttft_ms.mean)
            assert after.requests_s == before.requests_s
