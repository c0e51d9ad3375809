"""Splits that were measured beside each other decide where the model alone would not."""

from __future__ import annotations

import re

import msgspec
import pytest

from aim_engine import backend, workflow
from aim_engine.hardware import catalog
from aim_engine.hardware.cluster import asked
from aim_engine.perf import calibration, situation
from aim_engine.planner import beside
from aim_engine.planner.beside import Curve, Evidence, Point, Setup
from aim_engine.planner.plan import Inputs, Plan
from aim_engine.planner.select import select
from aim_engine.recipe.recipe import Parallelism
from aim_engine.settings import Settings
from aim_engine.workload import Objective, Slo, Workload
from rated import One

R1 = "deepseek-ai/DeepSeek-R1-0528"
TP4 = One(split=Parallelism(tp=4), devices=4, requests=4)
TP8 = One(split=Parallelism(tp=8), requests=4)


def inputs(objective: Objective = "latency", engine: str = "vllm", concurrency: int | None = 4) -> Inputs:
    gpu = catalog.load("MI355X")
    return Inputs(
        model=workflow.describe(R1, Settings(offline=True)),
        cluster=asked(8, gpu),
        gpu=gpu,
        workload=Workload(input_tokens=1024, output_tokens=1024, concurrency=concurrency),
        slo=Slo(),
        objective=objective,
        engine=engine,
        engine_version=backend.get(engine).newest(gpu),
    )


def setup(engine: str = "vllm", lengths: int = 1024, **curves: list[tuple[int, float, float]]) -> Setup:
    """`curves`: (requests, ms per token, tokens per second and GPU) by split."""
    return Setup(
        family=situation.family(inputs().model),
        model=R1,
        gpu="MI355X",
        precision="fp8",
        engine=engine,
        input_tokens=lengths,
        output_tokens=lengths,
        curves=tuple(
            Curve(
                split=name.replace("_", " "),
                points=tuple(Point(requests=n, tpot_ms=ms, tok_s_per_gpu=rate) for n, ms, rate in points),
            )
            for name, points in curves.items()
        ),
        source="a test",
    )


QUICKER = setup(tp4=[(4, 12.0, 80.0), (64, 40.0, 400.0)], tp8=[(4, 9.0, 55.0), (64, 20.0, 390.0)])


def test_the_measured_quicker_split_stands_before_the_predicted_one() -> None:
    evidence = Evidence(inputs(), [QUICKER])
    assert evidence.best([TP4, TP8]) is TP8
    assert evidence.best([TP8, TP4]) is None
    assert "tp8 9 ms per token at 4 to tp4 12 ms per token at 4 (vllm, 1024/1024 tokens; a test)" in evidence.decides(
        TP8, TP4
    )


def test_what_was_not_measured_is_left_to_the_model() -> None:
    evidence = Evidence(inputs(), [QUICKER])
    tp2 = One(split=Parallelism(tp=2), devices=2)
    assert evidence.best([tp2, TP8]) is None
    assert evidence.told(tp2, TP8) == ""
    assert Evidence(inputs(), []).best([TP4, TP8]) is None
    beyond = One(split=TP8.split, requests=512)
    assert evidence.best([One(split=TP4.split, devices=4, requests=512), beyond]) is None


def test_another_card_or_format_says_nothing() -> None:
    other_card = [setup_ for setup_ in beside.load() if setup_.gpu != "MI355X"]
    assert Evidence(inputs(), other_card).best([TP4, TP8]) is None
    bf16 = [One(split=one.split, devices=one.devices, requests=4, precision="bf16") for one in (TP4, TP8)]
    assert Evidence(inputs(), [QUICKER]).best(bf16) is None


def test_another_engine_decides_only_beyond_what_predictions_err() -> None:
    slightly = setup("sglang", tp4=[(4, 9.5, 80.0), (64, 40.0, 400.0)], tp8=[(4, 9.0, 55.0), (64, 20.0, 390.0)])
    assert Evidence(inputs(), [slightly]).best([TP4, TP8]) is None
    assert Evidence(inputs(engine="sglang"), [slightly]).best([TP4, TP8]) is TP8


def test_the_planned_engine_speaks_before_its_plugins_and_these_before_others() -> None:
    slower = setup("vllm+atom", tp4=[(4, 8.0, 80.0), (64, 9.0, 400.0)], tp8=[(4, 12.0, 55.0), (64, 20.0, 390.0)])
    sglang = msgspec.structs.replace(QUICKER, engine="sglang")
    assert Evidence(inputs(), [slower, sglang]).best([TP4, TP8]) is None
    assert Evidence(inputs(), [slower, QUICKER]).best([TP4, TP8]) is TP8


def test_a_load_between_two_that_were_measured_is_read_off_the_curve() -> None:
    at16 = [One(split=one.split, devices=one.devices, requests=16) for one in (TP4, TP8)]
    found = Evidence(inputs("balanced"), [QUICKER]).compare(*at16)
    assert found is not None
    assert found.ours.tpot_ms == pytest.approx((12.0 * 40.0) ** 0.5, rel=0.01)
    assert found.theirs.tok_s_per_gpu == pytest.approx((55.0 * 390.0) ** 0.5, rel=0.01)


def test_a_load_below_all_that_were_measured_is_told_as_such() -> None:
    alone = [One(split=one.split, devices=one.devices, requests=1) for one in (TP4, TP8)]
    evidence = Evidence(inputs(), [QUICKER])
    assert evidence.told(*alone).count("at 4, the least measured") == 2
    found = Evidence(inputs("balanced"), [QUICKER]).compare(*alone)
    assert found is not None
    assert found.ours.tok_s_per_gpu == pytest.approx(20.0)


def test_throughput_counts_all_devices_and_cost_is_no_matter_of_speed() -> None:
    assert Evidence(inputs("throughput"), [QUICKER]).gain(TP4, TP8) == pytest.approx(2 * 55 / 80)
    assert Evidence(inputs("cost"), [QUICKER]).best([TP4, TP8]) is None


def planned(objective: Objective, concurrency: int) -> Plan:
    asked_for = inputs(objective, concurrency=concurrency)
    sets = calibration.pick(calibration.load(), asked_for.gpu)
    return select(asked_for, backend=backend.get("vllm"), calibration=sets)


def test_a_plan_quotes_what_was_measured_of_its_neighbours() -> None:
    plan = planned("latency", 4)
    quoted = [near.reason for near in plan.neighbours if "measured beside each other" in near.reason]
    assert quoted
    assert all(
        re.search(r"\((sglang|vllm|atom|sglang\+atom|vllm\+atom), \d+/\d+ tokens; \S+/\S+, 20\d\d-", text)
        for text in quoted
    )


def test_the_bundled_setups_are_of_catalogued_cards_with_loads_in_order() -> None:
    found = beside.load()
    assert len(found) > 20
    for each in found:
        assert catalog.load(each.gpu).name == each.gpu
        assert len(each.curves) > 1
        for curve in each.curves:
            loads = [point.requests for point in curve.points]
            assert loads == sorted(set(loads))
            assert len(loads) > 1
