"""Speed at a load: anchors, and directions that must never turn round."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specs
from aim_engine.errors import MissingFigure
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import calibration, memory, predict
from aim_engine.perf.estimate import Estimate
from aim_engine.perf.roofline import Model
from aim_engine.recipe.recipe import Parallelism, Recipe
from aim_engine.workload import Objective, Slo, Workload

SETS = calibration.load()
NO_LIMITS = Slo()


def model(spec: ModelSpec, recipe: Recipe, workload: Workload = specs.WORKLOAD) -> Model:
    gpu = specs.card()
    return Model(spec, gpu, recipe, workload, calibration.pick(SETS, gpu))


def estimate(
    spec: ModelSpec, recipe: Recipe, workload: Workload, slo: Slo = NO_LIMITS, objective: Objective = "throughput"
) -> tuple[Estimate, str | None]:
    gpu = specs.card()
    breakdown = memory.breakdown(spec, gpu, recipe, workload)
    steps = model(spec, recipe, workload)
    load, problem = predict.settle(
        steps, predict.capacity(recipe, breakdown), recipe.replicas, workload, slo, objective
    )
    return predict.estimate(spec, recipe, workload, slo, calibration.pick(SETS, gpu), breakdown, steps, load), problem


def test_one_user_is_never_faster_than_memory_allows() -> None:
    spec = specs.dense()
    bound_s = 2 * (spec.parameters.total - spec.parameters.embedding) / specs.card().bandwidth()
    assert model(spec, specs.recipe(spec)).tpot_s(1) > bound_s


def test_the_ledger_of_a_step_adds_up_to_the_time_per_token() -> None:
    spec = specs.mixture()
    got, _ = estimate(spec, specs.recipe(spec, parallelism=Parallelism(tp=2)), Workload(concurrency=32))
    assert sum(got.step_ms.values()) == pytest.approx(got.tpot_ms.value)
    assert got.tpot_ms.low < got.tpot_ms.value < got.tpot_ms.high
    assert got.output_tok_s.low < got.output_tok_s.value < got.output_tok_s.high


def test_littles_law_ties_concurrency_rate_and_time() -> None:
    spec = specs.dense()
    got, _ = estimate(spec, specs.recipe(spec), Workload(concurrency=64))
    assert got.requests_s.value * got.e2e_ms.value / 1e3 == pytest.approx(64)


def test_requests_beyond_the_slots_wait() -> None:
    spec = specs.dense()
    recipe = specs.recipe(spec, max_num_seqs=64)
    running, _ = estimate(spec, recipe, Workload(concurrency=64))
    waiting, _ = estimate(spec, recipe, Workload(concurrency=256))
    assert waiting.ttft_ms.value > running.e2e_ms.value
    assert waiting.output_tok_s.value == pytest.approx(running.output_tok_s.value, rel=0.01)


def test_a_rate_beyond_one_replica_is_said_with_both_numbers() -> None:
    spec = specs.dense()
    _, problem = estimate(spec, specs.recipe(spec), Workload(rate_requests_s=500.0))
    assert problem is not None
    assert "500.00 arrive" in problem


def test_a_rate_settles_where_as_many_finish_as_arrive() -> None:
    spec = specs.dense()
    got, problem = estimate(spec, specs.recipe(spec), Workload(rate_requests_s=1.5))
    assert problem is None
    assert got.requests_s.value == pytest.approx(1.5, rel=1e-3)


def test_without_a_load_throughput_takes_the_most_that_keeps_the_limit() -> None:
    spec = specs.dense()
    free, _ = estimate(spec, specs.recipe(spec), Workload())
    bound, _ = estimate(spec, specs.recipe(spec), Workload(), Slo(tpot_ms=50.0))
    assert bound.tpot_ms.value <= 50.0 < free.tpot_ms.value
    assert bound.meets_slo
    assert 0 <= bound.slo_margin["tpot"] < 0.05


def test_a_missing_figure_names_the_file_to_fill() -> None:
    spec = specs.dense()
    gpu = specs.card(bandwidth_bytes_s=None)
    with pytest.raises(MissingFigure) as raised:
        Model(spec, gpu, specs.recipe(spec), specs.WORKLOAD, calibration.pick(SETS, gpu))
    assert "data/gpus/MI300X.yaml" in (raised.value.hint or "")


def test_two_gpus_share_one_link_and_eight_share_seven() -> None:
    spec = specs.dense()
    at2, at8 = (model(spec, specs.recipe(spec, parallelism=Parallelism(tp=tp))) for tp in (2, 8))
    per_byte2 = at2.features.link_s_per_row / (2 * 1 / 2)
    per_byte8 = at8.features.link_s_per_row / (2 * 7 / 8)
    assert per_byte2 / per_byte8 == pytest.approx(7)


@given(pair=st.tuples(st.integers(1, 512), st.integers(1, 512)), tp=st.sampled_from([1, 2, 4, 8]))
@settings(deadline=None, max_examples=50)
def test_more_requests_never_make_a_token_faster(pair: tuple[int, int], tp: int) -> None:
    spec = specs.mixture()
    steps = model(spec, specs.recipe(spec, parallelism=Parallelism(tp=tp)))
    few, many = sorted(pair)
    assert steps.tpot_s(few) <= steps.tpot_s(many)
    assert predict.Load(steps, few, few).e2e_s <= predict.Load(steps, many, many).e2e_s


def test_more_devices_never_slow_the_memory_bound_part() -> None:
    spec = specs.dense()
    times = [model(spec, specs.recipe(spec, parallelism=Parallelism(tp=tp))).features.dense_s for tp in (1, 2, 4, 8)]
    assert all(slow > fast for slow, fast in itertools.pairwise(times))
