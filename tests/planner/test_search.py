"""The search: how much it looks at, that its short cuts change nothing, and what it says of a load nobody named."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_engine import backend
from aim_engine.hardware import catalog
from aim_engine.hardware.cluster import asked
from aim_engine.model import catalog as models
from aim_engine.perf import calibration, memory, predict
from aim_engine.perf.roofline import Model
from aim_engine.planner import rank
from aim_engine.planner.family import Option
from aim_engine.planner.plan import Inputs
from aim_engine.planner.search import Found, front, parallelisms, search
from aim_engine.recipe.recipe import Parallelism
from aim_engine.workload import Slo, Workload

ENGINE = backend.get("vllm")
SETS = calibration.load()


def inputs(model: str = "Qwen/Qwen3-32B", card: str = "MI300X", count: int = 8, **changes: object) -> Inputs:
    spec, gpu = models.load(model), catalog.load(card)
    assert spec is not None
    plain = Inputs(
        model=spec,
        cluster=asked(count, gpu),
        gpu=gpu,
        workload=Workload(concurrency=64),
        slo=Slo(),
        objective="throughput",
        engine="vllm",
        engine_version=ENGINE.newest(gpu),
    )
    return msgspec.structs.replace(plain, **changes)


def found(asked_for: Inputs, available: int = 8) -> Found:
    return search(asked_for, available, ENGINE, calibration.pick(SETS, asked_for.gpu), ())


def test_a_full_search_of_one_node_looks_at_twenty_thousand() -> None:
    """What `make bench` times: every spread, format, pair of limits and number of replicas at every load it carries."""
    got = found(inputs(allow_lossy=True))
    assert got.points >= 20_000
    sizes = {(option.max_num_seqs, option.max_num_batched_tokens) for option in got.options}
    assert {size for size, _ in sizes} >= {16, 1024}
    assert {tokens for _, tokens in sizes} == {2048, 4096, 8192, 16384, 32768}
    assert {option.kv_cache_dtype for option in got.options} == {"auto", "fp8"}
    assert {option.precision for option in got.options} == {"bf16", "fp8"}
    assert {option.replicas for option in got.options if option.split.tp == 1} == set(range(1, 9))


@given(
    model=st.sampled_from(["Qwen/Qwen3-32B", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-R1", "Qwen/Qwen3-30B-A3B"]),
    pick=st.integers(0, 10**6),
    concurrency=st.sampled_from([1, 64, 700]),
)
@settings(deadline=None, max_examples=40)
def test_what_is_looked_up_is_what_a_whole_recipe_gives(model: str, pick: int, concurrency: int) -> None:
    asked_for = inputs(model, workload=Workload(concurrency=concurrency))
    options = found(asked_for).options
    option = options[pick % len(options)]
    whole = option.candidate()
    spec, gpu, workload = asked_for.model, asked_for.gpu, asked_for.workload
    assert whole.estimate.memory == memory.breakdown(spec, gpu, whole.recipe, workload)
    assert whole.key == option.key
    model_of = Model(spec, gpu, whole.recipe, workload, calibration.pick(SETS, gpu))
    slots = predict.capacity(whole.recipe, whole.estimate.memory)
    load, problem = predict.settle(model_of, slots, whole.replicas, workload, Slo(), "throughput")
    assert problem is None
    assert whole.estimate.tpot_ms.value == pytest.approx(load.tpot_s * 1e3)
    assert whole.estimate.ttft_ms.value >= load.ttft_s * 1e3 * (1 - 1e-9)
    assert whole.output_tok_s == pytest.approx(option.output_tok_s)
    assert whole.devices == option.devices


@pytest.mark.parametrize("limit", [Slo(tpot_ms=20.0), Slo(ttft_ms=500.0), Slo(e2e_ms=15_000.0)])
def test_a_spread_that_is_left_out_could_not_have_kept_the_limit(limit: Slo) -> None:
    asked_for = inputs(slo=limit)
    bounded, whole = found(asked_for), found(msgspec.structs.replace(asked_for, slo=Slo()))
    left_out = [r for r in bounded.rejected if "for one request alone" in r.reason]
    looked_at = {rank.spread(option) for option in bounded.options}
    missing = [option for option in whole.options if rank.spread(option) not in looked_at]
    assert bool(left_out) == bool(missing)
    for option in missing:
        limited = limit.limits[0]
        assert option.load.seconds(limited.name, None) * 1e3 > limited.ms


def test_more_pieces_of_a_prompt_never_come_earlier() -> None:
    long = inputs(workload=Workload(input_tokens=12_000, output_tokens=100, concurrency=16))
    by_budget: dict[int, float] = {}
    for option in found(long).options:
        if option.split == Parallelism(tp=4) and option.replicas == 1 and option.max_num_seqs == 64:
            by_budget[option.max_num_batched_tokens] = option.load.ttft_s
    times = [by_budget[budget] for budget in sorted(by_budget)]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_without_a_load_requests_are_added_only_while_they_are_worth_it() -> None:
    for option in found(inputs(workload=Workload())).options[::7]:
        speed, requests = option.family.speed, option.load.requests
        if requests >= option.fitted.slots:
            continue
        more = min(2 * requests, option.fitted.slots)
        gain = speed.closed(more, more).requests_s / speed.closed(requests, requests).requests_s - 1
        assert gain < predict.WORTHWHILE_FRACTION * math.log2(more / requests) + 1e-9


def test_no_limit_is_kept_by_letting_users_wait_for_a_slot() -> None:
    asked_for = inputs("deepseek-ai/DeepSeek-R1", workload=Workload(concurrency=64), slo=Slo(tpot_ms=50.0))
    for option in found(asked_for).options:
        assert option.max_num_seqs * option.split.dp * option.replicas >= 64
    crowd = inputs("openai/gpt-oss-120b", workload=Workload(concurrency=100_000))
    assert {option.max_num_seqs for option in found(crowd).options} == {1024}


def test_attention_is_data_parallel_where_more_splitting_would_copy_the_cache() -> None:
    latent, grouped, dense = (
        models.load(name) for name in ("deepseek-ai/DeepSeek-R1", "Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-32B")
    )
    assert latent is not None
    assert grouped is not None
    assert dense is not None
    assert Parallelism(tp=2, dp=4, ep=True) in set(parallelisms(latent, 8))
    assert Parallelism(tp=4, dp=2, ep=True) in set(parallelisms(grouped, 8))  # four KV heads
    assert {split.tp for split in parallelisms(grouped, 8) if split.dp > 1} == {4}
    assert {split.dp for split in parallelisms(dense, 8)} == {1}


def test_the_front_holds_all_loads_and_nothing_that_is_beaten() -> None:
    asked_for = inputs()
    points = front(found(asked_for).options, asked_for, 8)
    assert len({point.estimate.concurrency for point in points}) > 5
    for faster, denser in itertools.pairwise(points):
        assert faster.tok_s_per_user >= denser.tok_s_per_user
        assert faster.tok_s_per_gpu < denser.tok_s_per_gpu


def test_an_open_count_is_the_smallest_that_closed_forms_find_enough() -> None:
    asked_for = inputs(
        workload=Workload(rate_requests_s=30.0),
        slo=Slo(tpot_ms=60.0),
        open_count=True,
        cluster=asked(8, catalog.load("MI300X")),
    )

    def keeps(option: Option, replicas: int) -> bool:
        load, problem = option.family.speed.arriving(30.0 / replicas, option.fitted.slots)
        return problem is None and not predict.missed(load, asked_for.slo)

    for option in found(asked_for).options[::11]:
        assert keeps(option, option.replicas)
        assert option.replicas == 1 or not keeps(option, option.replicas - 1)
