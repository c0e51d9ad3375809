"""One's own measurements move what is like them, and little else."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specs
from aim_engine.perf import calibration, local, situation
from aim_engine.perf.local import Point
from aim_engine.perf.roofline import Model
from aim_engine.perf.situation import Situation

SETS = calibration.load()
HERE = situation.of(specs.dense(), specs.card(), specs.recipe(specs.dense()), specs.WORKLOAD)


def points(deviation: float, loads: tuple[int, ...], where: Situation = HERE) -> list[Point]:
    return [local.point(str(load), where, load, step=math.log(deviation), first=math.log(deviation)) for load in loads]


def test_a_single_point_moves_its_own_configuration_most_of_the_way() -> None:
    step, first = local.solve(points(1.5, (32,)), "fit").near(HERE)(32)
    assert 1.35 < math.exp(step) < 1.5
    assert step == pytest.approx(first)


def test_points_that_agree_carry_to_other_loads_of_the_model() -> None:
    moved = local.solve(points(1.5, (4, 16, 64)), "fit").near(HERE)
    assert all(1.35 < math.exp(moved(requests)[0]) < 1.6 for requests in (1, 8, 128, 512))


def test_another_family_on_another_card_hardly_moves() -> None:
    other = msgspec.structs.replace(HERE, family="other", checkpoint="other", gpu="MI355X")
    moved = local.solve(points(1.5, (4, 16, 64)), "fit").near(other)(32)[0]
    assert 0 <= math.exp(moved) - 1 < 0.1


def test_a_model_with_local_points_predicts_them() -> None:
    spec, gpu = specs.dense(), specs.card()
    plain = calibration.pick(SETS, gpu)
    before = Model(spec, gpu, specs.recipe(spec), specs.WORKLOAD, plain)
    corrected = msgspec.structs.replace(
        plain, local=local.solve(points(0.7, (8, 32, 128), before.situation), plain.name)
    )
    after = Model(spec, gpu, specs.recipe(spec), specs.WORKLOAD, corrected)
    assert after.tpot_s(32) / before.tpot_s(32) == pytest.approx(0.7, rel=0.05)
    assert sum(after.step_s(32).values()) == pytest.approx(after.tpot_s(32))


@given(deviations=st.lists(st.floats(0.6, 1.6), min_size=1, max_size=6))
@settings(deadline=None, max_examples=30)
def test_what_is_left_of_a_point_is_what_the_others_do_not_say(deviations: list[float]) -> None:
    held = [
        local.point(str(number), HERE, 2.0**number, step=math.log(value)) for number, value in enumerate(deviations)
    ]
    rest = local.left_out(held, [one.step for one in held])
    for number, (one, left) in enumerate(zip(held, rest, strict=True)):
        others = [other for place, other in enumerate(held) if place != number]
        said = local.solve(others, "fit").near(HERE)(2.0**number)[0]
        assert one.step is not None
        assert left == pytest.approx(one.step - said, abs=1e-6)
