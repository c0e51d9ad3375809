"""Each rule fires on its own evidence, and not without it."""

from __future__ import annotations

import specs
from aim_engine.advise import rules
from aim_engine.perf import calibration, memory, predict
from aim_engine.perf.roofline import Model
from aim_engine.planner.plan import Candidate
from aim_engine.recipe.recipe import Parallelism
from aim_engine.workload import Slo, Workload

HEALTHY = {"kv_usage_fraction": 0.6, "preemptions": 0.0, "running": 20.0, "waiting": 0.0}


def chosen(tp: int = 1) -> Candidate:
    spec, gpu, workload = specs.dense(), specs.card(), Workload(concurrency=32)
    recipe = specs.recipe(spec, parallelism=Parallelism(tp=tp))
    breakdown = memory.breakdown(spec, gpu, recipe, workload)
    coefficients = calibration.pick(calibration.load(), gpu)
    model = Model(spec, gpu, recipe, workload, coefficients)
    load, _ = predict.settle(model, predict.capacity(recipe, breakdown), 1, workload, Slo(), "throughput")
    return Candidate(
        recipe=recipe,
        estimate=predict.estimate(spec, recipe, workload, Slo(), coefficients, breakdown, model, load),
    )


def identities(kpis: dict[str, float | None], tp: int = 1, finished: float = 100) -> list[str]:
    return [suggestion.id for suggestion in rules.suggest(chosen(tp), kpis, finished)]


def test_a_healthy_server_gets_no_advice() -> None:
    assert identities(dict(HEALTHY)) == []


def test_preemptions_with_a_full_cache_lower_the_number_of_sequences() -> None:
    (found,) = rules.suggest(chosen(), {**HEALTHY, "kv_usage_fraction": 0.99, "preemptions": 7.0}, 100)
    assert found.id == "K1"
    assert found.recipe_change["max_num_seqs"] < chosen().recipe.max_num_seqs


def test_full_slots_with_free_cache_raise_it() -> None:
    (found,) = rules.suggest(chosen(), {**HEALTHY, "running": 256.0, "waiting": 40.0, "kv_usage_fraction": 0.3}, 100)
    assert found.id == "S1"
    assert found.recipe_change == {"max_num_seqs": 512}


def test_an_idle_cache_on_many_devices_asks_for_fewer() -> None:
    idle: dict[str, float | None] = {**HEALTHY, "kv_usage_fraction": 0.05}
    assert identities(idle, tp=8) == ["K4"]
    assert identities(idle, tp=1) == []


def test_slower_than_the_band_is_said_with_the_band() -> None:
    slow: dict[str, float | None] = {**HEALTHY, "tpot_ms": chosen().estimate.tpot_ms.high * 2}
    (found,) = rules.suggest(chosen(), slow, 100)
    assert found.id == "D0"
    assert "tpot_ms" in found.evidence


def test_few_requests_are_too_little_to_judge_on() -> None:
    assert identities({**HEALTHY, "kv_usage_fraction": 0.99, "preemptions": 7.0}, finished=3) == []


def test_unknown_figures_are_not_read_as_zero() -> None:
    assert identities({"kv_usage_fraction": None, "preemptions": None, "running": None, "waiting": None}) == []


def test_a_prediction_is_compared_only_where_it_was_measured() -> None:
    candidate = chosen()
    (comparison,) = rules.compare(candidate.estimate, {"tpot_ms": candidate.estimate.tpot_ms.value, "ttft_ms": None})
    assert comparison.kpi == "tpot_ms"
    assert comparison.inside_band
