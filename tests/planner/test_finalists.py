"""The best few are simulated: percentiles as limits, sizes that follow them, and the same bytes every time."""

from __future__ import annotations

import msgspec
import pytest

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.errors import InvalidInput
from aim_engine.perf.estimate import Spread
from aim_engine.planner import plan as plans
from aim_engine.planner.plan import Candidate, Plan
from aim_engine.workflow import Request
from aim_engine.workload import Slo, Workload

SETTINGS = all_settings.load({"offline": True})
RATE = Workload(rate_requests_s=12.0)


def plan(gpus: str = "anyxMI300X", model: str = "Qwen/Qwen3-32B", **changes: object) -> Plan:
    return workflow.choose(Request(model=model, gpus=gpus, **changes), SETTINGS)  # type: ignore[arg-type]


def chosen(document: Plan) -> Candidate:
    assert document.chosen is not None
    return document.chosen


def ordered(spread: Spread) -> bool:
    return spread.p50 <= spread.p90 <= spread.p95 <= spread.p99


def test_a_rate_is_simulated_and_a_concurrency_is_not_unless_asked() -> None:
    seen = chosen(plan(workload=RATE)).estimate.simulated
    assert seen is not None
    assert all(ordered(spread) for spread in (seen.ttft_ms, seen.tpot_ms, seen.itl_ms, seen.e2e_ms))
    assert chosen(plan(workload=RATE, simulate=False)).estimate.simulated is None
    many = Workload(concurrency=64)
    assert chosen(plan("8xMI300X", workload=many)).estimate.simulated is None
    assert chosen(plan("8xMI300X", workload=many, simulate=True)).estimate.simulated is not None


def test_a_percentile_is_held_against_its_own_limit() -> None:
    free = chosen(plan("8xMI300X", workload=RATE))
    assert free.estimate.simulated is not None
    limit_ms = free.estimate.simulated.ttft_ms.p99 * 1.2
    got = chosen(plan("8xMI300X", workload=RATE, slo=Slo(ttft_ms=limit_ms, ttft_percentile=99)))
    assert got.estimate.simulated is not None
    assert got.estimate.limited_ms["ttft"].value == got.estimate.simulated.ttft_ms.p99 <= limit_ms
    assert got.estimate.slo_margin["ttft"] == pytest.approx(1 - got.estimate.simulated.ttft_ms.p99 / limit_ms)


@pytest.mark.parametrize("name", ["ttft", "tpot", "e2e"])
def test_a_limit_on_a_higher_percentile_never_takes_fewer_devices(name: str) -> None:
    figures = chosen(plan(workload=RATE, slo=Slo(tpot_ms=45.0))).estimate.simulated
    assert figures is not None
    limit_ms = getattr(figures, f"{name}_ms").mean * 1.1
    counts = [
        chosen(plan(workload=RATE, slo=Slo(**{f"{name}_ms": limit_ms, f"{name}_percentile": percentile}))).devices
        for percentile in (None, 99)
    ]
    assert counts[0] <= counts[1]


def test_the_size_is_the_smallest_whose_simulated_times_keep_the_limits() -> None:
    slo = Slo(tpot_ms=40.0, tpot_percentile=90)
    got = chosen(plan(workload=RATE, slo=slo))
    assert got.meets_slo
    fewer = got.devices - got.split.world_size
    less = plan(f"{fewer}xMI300X", workload=RATE, slo=slo)
    same = [c for c in (less.chosen, *less.alternatives) if c is not None and c.split == got.split and c.meets_slo]
    assert not [c for c in same if c.estimate.simulated is not None]


def test_an_open_number_of_users_grows_until_the_simulated_tail_keeps_the_limit() -> None:
    got = chosen(plan(workload=Workload(concurrency=400), slo=Slo(ttft_ms=2500.0, ttft_percentile=95)))
    assert got.estimate.simulated is not None
    assert got.estimate.simulated.ttft_ms.p95 <= 2500.0
    assert got.estimate.concurrency == 400


def test_one_replica_less_is_named_with_the_limit_it_missed_when_simulated() -> None:
    got = plan(workload=Workload(rate_requests_s=40.0), slo=Slo(tpot_ms=60.0, tpot_percentile=90))
    count = chosen(got).replicas
    assert count > 1
    fewer = [near for near in got.neighbours if near.change == f"replicas {count - 1} instead of {count}"]
    assert len(fewer) == 1
    assert fewer[0].reason.startswith("misses p90 tpot by")


def test_a_limit_on_a_percentile_without_a_load_takes_fewer_requests() -> None:
    mean = chosen(plan("8xMI300X", slo=Slo(tpot_ms=60.0)))
    tail = chosen(plan("8xMI300X", slo=Slo(tpot_ms=60.0, tpot_percentile=99)))
    assert tail.estimate.simulated is not None
    assert tail.estimate.simulated.tpot_ms.p99 <= 60.0
    assert tail.estimate.concurrency <= mean.estimate.concurrency


def test_the_same_question_gives_the_same_bytes_simulated_or_not() -> None:
    for simulate in (True, False):
        one, other = (
            plans.encode(plan(workload=RATE, slo=Slo(ttft_ms=900.0, ttft_percentile=95), simulate=simulate))
            for _ in range(2)
        )
        assert one == other
        assert plans.encode(msgspec.json.decode(one, type=Plan)) == one


def test_a_percentile_that_nothing_keeps_is_relaxed_as_a_percentile_and_then_works() -> None:
    slo = Slo(ttft_ms=30.0, ttft_percentile=99)
    got = plan("8xMI300X", workload=RATE, slo=slo)
    assert got.chosen is None
    option, value = got.hint.removeprefix("relax it: ").split(" ")
    assert option == "--ttft"
    percentile, _, time = value.partition(":")
    assert percentile == "p99"
    relaxed = Slo(ttft_ms=float(time.removesuffix("ms")), ttft_percentile=99)
    assert plan("8xMI300X", workload=RATE, slo=relaxed).chosen is not None
    fallback = next(step for step in got.steps if step.name == "fallback")
    assert sum("p99 ttft" in detail for detail in fallback.details) == 3


def test_a_limit_below_what_physics_allows_says_the_bound() -> None:
    got = plan("8xMI300X", workload=Workload(concurrency=8), slo=Slo(tpot_ms=0.5))
    assert got.chosen is None
    fallback = next(step for step in got.steps if step.name == "fallback")
    assert "below what these devices can do at all" in fallback.summary
    assert "GiB of weights and cache per device (tp8 bf16)" in fallback.summary
    assert "at 5.3 TB/s" in fallback.summary
    assert got.hint.startswith("relax it: --tpot ")


def test_a_load_that_the_limits_allow_on_these_devices_is_offered() -> None:
    slo = Slo(tpot_ms=40.0, ttft_ms=3000.0)
    got = plan("1xMI300X", workload=Workload(concurrency=400), slo=slo)
    assert got.chosen is None
    fallback = next(step for step in got.steps if step.name == "fallback")
    offers = [detail for detail in fallback.details if detail.startswith("--concurrency ")]
    assert offers
    count = int(offers[0].split()[1])
    assert plan("1xMI300X", workload=Workload(concurrency=count), slo=slo).chosen is not None
    larger = [detail for detail in fallback.details if "--gpus anyxMI300X" in detail]
    assert larger
    assert chosen(plan("anyxMI300X", workload=Workload(concurrency=400), slo=slo)).meets_slo


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ttft_ms": 500.0, "ttft_percentile": 42}, "p42 of ttft is not predicted"),
        ({"e2e_percentile": 99}, "a percentile of e2e without a limit"),
        ({"tpot_ms": 0.0}, "can never be met"),
    ],
)
def test_limits_that_mean_nothing_are_refused(changes: dict[str, float], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        Slo(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("load", [{"rate_requests_s": 2.0}, {"concurrency": 8}])
def test_answers_of_one_token_are_planned_too(load: dict[str, float]) -> None:
    workload = Workload(output_tokens=1, **load)  # type: ignore[arg-type]
    slo = Slo(tpot_ms=200.0, tpot_percentile=99, ttft_ms=3000.0)
    got = chosen(plan("8xMI300X", workload=workload, slo=slo))
    assert got.meets_slo
    assert got.estimate.tpot_ms.value > 0
    assert got.estimate.e2e_ms.value == pytest.approx(got.estimate.ttft_ms.value)
