"""The choice: what it depends on, what it says, and what no change may turn round."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specs
from aim_engine import backend
from aim_engine.errors import InvalidInput
from aim_engine.hardware import catalog
from aim_engine.hardware.cluster import asked
from aim_engine.hardware.gpu import Gpu
from aim_engine.model import catalog as models
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import calibration
from aim_engine.planner import plan as plans
from aim_engine.planner import validate
from aim_engine.planner.plan import Inputs, Plan
from aim_engine.planner.select import main_gpu, select
from aim_engine.recipe.database import RecipeDatabase
from aim_engine.units import GIB
from aim_engine.workload import Objective, Slo, Workload

ENGINE = backend.get("vllm")
SETS = calibration.load()
DATABASE = RecipeDatabase()
CARDS = ("MI210", "MI250X", "MI300X", "MI325X", "MI355X", "W7900", "R9700")


def planned(model: str | ModelSpec, gpus: str, **changes: object) -> Plan:
    count, gpu = catalog.parse_request(gpus)
    spec = models.load(model) if isinstance(model, str) else model
    assert spec is not None
    inputs = Inputs(
        model=spec,
        cluster=asked(count, gpu),
        gpu=gpu,
        workload=Workload(),
        slo=Slo(),
        objective="throughput",
        engine="vllm",
        engine_version=ENGINE.newest(gpu),
    )
    return choose(msgspec.structs.replace(inputs, **changes), gpu)


def choose(inputs: Inputs, gpu: Gpu) -> Plan:
    return select(
        inputs,
        backend=ENGINE,
        calibration=calibration.pick(SETS, gpu),
        known=DATABASE.load_recipes(inputs.model.model_id),
        catalogue=lambda: [catalog.load(name) for name in catalog.names()],
    )


def test_the_six_steps_are_in_every_plan() -> None:
    for plan in (planned("Qwen/Qwen3-32B", "8xMI300X"), planned("Qwen/Qwen3-32B", "1xRX9070XT")):
        assert [step.name for step in plan.steps] == ["detect", "analyse", "match", "rank", "validate", "fallback"]
        assert all(step.summary for step in plan.steps)


def test_the_same_inputs_give_the_same_bytes() -> None:
    one, other = (plans.encode(planned("openai/gpt-oss-120b", "8xMI300X")) for _ in range(2))
    assert one == other
    assert plans.encode(msgspec.json.decode(one, type=Plan)) == one


def test_a_70b_model_needs_one_card_not_eight() -> None:
    plan = planned("meta-llama/Llama-3.3-70B-Instruct", "8xMI300X", objective="cost", workload=Workload(concurrency=8))
    assert plan.chosen is not None
    assert plan.chosen.recipe.gpu_count == 1


def test_latency_spreads_one_replica_and_throughput_many() -> None:
    fast = planned("Qwen/Qwen3-32B", "8xMI300X", objective="latency").chosen
    wide = planned("Qwen/Qwen3-32B", "8xMI300X", objective="throughput").chosen
    assert fast is not None
    assert wide is not None
    assert (fast.recipe.replicas, fast.recipe.parallelism.tp) == (1, 8)
    assert (wide.recipe.replicas, wide.recipe.parallelism.tp) == (8, 1)
    assert fast.estimate.tpot_ms.value < wide.estimate.tpot_ms.value
    assert fast.estimate.output_tok_s.value < wide.estimate.output_tok_s.value


def test_a_known_recipe_wins_within_the_error_band_and_is_named() -> None:
    plan = planned("Qwen/Qwen3-32B", "8xMI300X")
    assert plan.chosen is not None
    assert plan.chosen.recipe.provenance == "curated"
    assert "aim-build" in plan.chosen.recipe.provenance_note


def test_what_does_not_fit_says_how_much_is_missing_and_the_smallest_that_fits() -> None:
    plan = planned("meta-llama/Llama-3.1-70B-Instruct", "1xMI210")
    assert plan.chosen is None
    assert any(rejection.missing_bytes for rejection in plan.rejected)
    assert plan.hint == "aim-engine plan meta-llama/Llama-3.1-70B-Instruct --gpus 4xMI210"
    fallback = next(step for step in plan.steps if step.name == "fallback")
    assert any("smallest in the catalogue" in detail for detail in fallback.details)


def test_every_way_out_that_is_offered_works() -> None:
    for model, gpus in (("meta-llama/Llama-3.1-70B-Instruct", "1xMI210"), ("Qwen/Qwen3-32B", "2xR9700")):
        fallback = next(step for step in planned(model, gpus).steps if step.name == "fallback")
        for detail in fallback.details:
            words = detail.split("  ")[0].split()
            options = dict(itertools.pairwise(words[3:]))
            again = planned(model, options["--gpus"], precision=options.get("--precision"))
            assert again.chosen is not None, detail


def test_a_limit_that_cannot_be_kept_gets_the_closest_and_a_limit_that_can() -> None:
    plan = planned("Qwen/Qwen3-32B", "8xMI300X", slo=Slo(tpot_ms=5.0))
    assert plan.chosen is None
    assert plan.alternatives
    relaxed = float(plan.hint.rsplit(" ", 1)[1].removesuffix("ms"))
    again = planned("Qwen/Qwen3-32B", "8xMI300X", slo=Slo(tpot_ms=relaxed))
    assert again.chosen is not None
    assert again.chosen.estimate.tpot_ms.value <= relaxed


def test_a_precision_without_kernels_is_refused_by_name() -> None:
    plan = planned("Qwen/Qwen3-32B", "8xMI210", precision="fp8")
    assert plan.chosen is None
    assert any("FP8 (W8A8) has no kernel on MI210" in rejection.reason for rejection in plan.rejected)


def test_lossy_formats_are_used_only_when_allowed() -> None:
    careful = planned("Qwen/Qwen3-32B", "8xMI300X")
    allowed = planned("Qwen/Qwen3-32B", "8xMI300X", allow_lossy=True, slo=Slo(tpot_ms=60.0))
    for candidate in (careful.chosen, *careful.alternatives):
        assert candidate is not None
        assert candidate.recipe.online_quantization is None
        assert candidate.recipe.kv_cache_dtype == "auto"
    assert allowed.chosen is not None
    assert allowed.chosen.recipe.precision == "fp8"
    assert any(finding.id == "QNT100" for finding in allowed.findings)


def test_no_candidate_on_the_pareto_front_is_beaten_at_both_speeds() -> None:
    front = planned("Qwen/Qwen3-32B", "8xMI300X", objective="balanced").pareto
    for one, other in itertools.combinations(front, 2):
        faster = other.estimate.output_tok_s_per_user > one.estimate.output_tok_s_per_user
        denser = other.estimate.output_tok_s_per_gpu > one.estimate.output_tok_s_per_gpu
        assert not (faster and denser)


def test_a_card_with_a_missing_figure_loses_only_what_needs_it() -> None:
    plan = planned("Qwen/Qwen3-8B", "8xMI455X")
    needing = [rejection for rejection in plan.rejected if "is not known" in rejection.reason]
    assert needing
    assert all("data/gpus/MI455X.yaml" in rejection.reason for rejection in needing)


@given(
    model=st.sampled_from(models.names()),
    card=st.sampled_from(CARDS),
    count=st.sampled_from([1, 2, 4, 8]),
    objective=st.sampled_from(["throughput", "latency", "cost", "energy", "balanced"]),
    tokens=st.tuples(st.integers(1, 8000), st.integers(1, 4000)),
)
@settings(deadline=None, max_examples=60)
def test_every_chosen_plan_validates_and_fits(
    model: str, card: str, count: int, objective: Objective, tokens: tuple[int, int]
) -> None:
    spec = models.load(model)
    assert spec is not None
    longest = spec.max_position_embeddings // 2
    workload = Workload(input_tokens=min(tokens[0], longest), output_tokens=min(tokens[1], longest))
    plan = planned(model, f"{count}x{card}", objective=objective, workload=workload)
    if plan.chosen is None:
        assert plan.rejected
        assert plan.hint
        return
    assert not [f for f in validate.plan_findings(plan, ENGINE) if f.severity == "error"]
    assert plan.chosen.recipe.gpu_count <= count
    assert plan.chosen.estimate.memory.fits
    assert plan.chosen.recipe.max_model_len >= min(workload.total_tokens, plan.inputs.model.max_position_embeddings)


def test_a_request_longer_than_the_models_context_is_wrong_input() -> None:
    with pytest.raises(InvalidInput, match="cannot serve a request of 100,000 tokens"):
        planned("Qwen/Qwen3-32B", "8xMI300X", workload=Workload(input_tokens=90_000, output_tokens=10_000))
    with pytest.raises(InvalidInput, match="cannot serve a context of 900,000 tokens"):
        planned("Qwen/Qwen3-32B", "8xMI300X", max_model_len=900_000)


@pytest.mark.parametrize("objective", ["throughput", "latency", "cost", "energy", "balanced"])
def test_each_objective_is_best_at_its_own_goal(objective: Objective) -> None:
    from aim_engine.planner.rank import ERROR_BAND_FRACTION, value

    plan = planned(specs.dense(model_id="test/dense"), "8xMI300X", objective=objective)
    assert plan.chosen is not None
    best = max(value(candidate, objective) for candidate in (plan.chosen, *plan.alternatives))
    assert value(plan.chosen, objective) >= best * (1 - ERROR_BAND_FRACTION)


def held(used_gib: int) -> Plan:
    """Qwen3-32B on one MI300X of which others hold so much."""
    asked_for = asked(1, catalog.load("MI300X"))
    device = msgspec.structs.replace(
        asked_for.devices[0], memory_total_bytes=192 * GIB, memory_used_bytes=used_gib * GIB
    )
    node = msgspec.structs.replace(asked_for.nodes[0], devices=(device,))
    cluster = msgspec.structs.replace(asked_for, origin="detected", nodes=(node,))
    gpu = main_gpu(cluster, catalog.load)
    assert gpu is not None
    return planned("Qwen/Qwen3-32B", "1xMI300X", cluster=cluster, gpu=gpu)


def test_memory_that_others_hold_lowers_the_engines_share_and_is_told() -> None:
    """The engine refuses to start when its share of the whole is not free."""
    plan = held(96)
    assert plan.chosen is not None
    assert plan.chosen.recipe.gpu_memory_utilization == 0.46
    assert plan.chosen.estimate.memory.budget_bytes <= 96 * GIB
    assert plan.chosen.estimate.memory.device_bytes == 192 * GIB
    (told,) = [finding for finding in plan.findings if finding.id == "MEM101"]
    assert "96.0 GiB of the 192.0 GiB" in told.message
    assert "MEM013" not in {finding.id for finding in plan.findings}


def test_a_little_held_memory_changes_nothing() -> None:
    plan = held(1)
    assert plan.chosen is not None
    assert plan.chosen.recipe.gpu_memory_utilization == 0.92
    assert "MEM101" not in {finding.id for finding in plan.findings}


def test_a_card_that_others_fill_fits_nothing() -> None:
    plan = held(192)
    assert plan.chosen is None
    assert "MEM101" in {finding.id for finding in plan.findings}
