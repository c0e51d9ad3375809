"""Neighbours name the number that lost them, and the doubt names what would settle it."""

from __future__ import annotations

import msgspec
import pytest

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.planner import explain
from aim_engine.planner.plan import Candidate, Plan
from aim_engine.workflow import Request
from aim_engine.workload import Slo, Workload

SETTINGS = all_settings.load({"offline": True})


def plan(model: str = "Qwen/Qwen3-32B", gpus: str = "8xMI300X", **changes: object) -> Plan:
    return workflow.choose(Request(model=model, gpus=gpus, **changes), SETTINGS)  # type: ignore[arg-type]


def chosen(document: Plan) -> Candidate:
    assert document.chosen is not None
    return document.chosen


def test_half_and_twice_the_split_are_always_explained() -> None:
    got = plan(workload=Workload(concurrency=64))
    tp = chosen(got).recipe.parallelism.tp
    changes = {near.change: near.reason for near in got.neighbours}
    expected = {f"tp {other} instead of {tp}" for other in (tp // 2, tp * 2) if 1 <= other <= 8}
    assert expected <= set(changes)
    assert all(changes.values())


def test_a_neighbour_that_does_not_fit_says_what_is_missing() -> None:
    got = plan("deepseek-ai/DeepSeek-R1", "8xMI325X", workload=Workload(concurrency=16), objective="cost")
    reasons = " ".join(near.reason for near in got.neighbours)
    assert "exceed" in reasons
    assert "GiB" in reasons


def test_a_neighbour_that_misses_a_limit_says_by_how_much() -> None:
    one_user = Workload(concurrency=1)
    free = chosen(plan(workload=one_user, objective="latency"))
    got = plan(workload=one_user, objective="latency", slo=Slo(tpot_ms=free.estimate.tpot_ms.value * 1.05))
    assert any(near.reason.startswith("misses tpot by") for near in got.neighbours)


def test_a_limit_inside_the_range_is_what_to_measure_first() -> None:
    free = chosen(plan(workload=Workload(concurrency=64)))
    near = plan(workload=Workload(concurrency=64), slo=Slo(tpot_ms=free.estimate.tpot_ms.value * 1.1))
    assert near.doubt.startswith("TPOT at 64 requests")
    far = plan(workload=Workload(concurrency=64), slo=Slo(tpot_ms=free.estimate.tpot_ms.high * 2))
    assert not far.doubt.startswith("TPOT")


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_overlapping_ranges_ask_for_a_measurement_and_distant_ones_do_not(factor: float) -> None:
    got = plan()
    one, other = chosen(got), got.alternatives[0]
    figure = other.estimate.output_tok_s
    far = msgspec.structs.replace(
        figure, value=figure.value / factor, low=figure.low / factor, high=figure.high / factor
    )
    moved = msgspec.structs.replace(other, estimate=msgspec.structs.replace(other.estimate, output_tok_s=far))
    said = explain.doubt(one, moved, got.inputs)
    assert said.startswith("none:") == (factor > 1)
    assert "nothing else competes" in explain.doubt(one, None, got.inputs)
