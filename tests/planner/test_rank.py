"""The order of candidates, by figures that are set here."""

from __future__ import annotations

import pytest

from aim_engine.planner import rank
from aim_engine.recipe.recipe import Parallelism
from aim_engine.workload import Objective
from rated import One


def first(*ones: One, objective: Objective) -> One:
    return rank.order(ones, objective)[0]


FEWER = Parallelism(tp=4)


def test_a_lower_latency_beyond_the_noise_is_worth_more_devices() -> None:
    wide, narrow = One(speed=106), One(split=FEWER, devices=4)
    assert first(wide, narrow, objective="latency") is wide
    assert first(One(speed=102), narrow, objective="latency") is narrow


def test_within_the_error_band_of_throughput_fewer_devices_win() -> None:
    narrow = One(split=FEWER, devices=4, per_gpu=190)
    assert first(One(), narrow, objective="throughput") is narrow


@pytest.mark.parametrize(
    ("split", "ahead", "leads"),
    [
        (Parallelism(tp=8, ep=True), 1.06, False),
        (Parallelism(tp=8, ep=True), 1.25, True),
        (Parallelism(dp=8, ep=True), 1.20, False),
        (Parallelism(dp=8, ep=True), 1.50, True),
    ],
)
def test_a_split_that_was_measured_behind_its_prediction_needs_a_lead(
    split: Parallelism, ahead: float, leads: bool
) -> None:
    plain, other = One(), One(split=split, per_gpu=100 * ahead)
    assert (first(plain, other, objective="throughput") is other) == leads
    if not leads:
        assert "slower beside tensor parallelism than predicted" in rank.preference(plain, other)


def test_the_lead_counts_twice_where_two_speeds_are_multiplied() -> None:
    plain, other = One(), One(split=Parallelism(dp=8, ep=True), speed=125, per_gpu=125)
    assert first(plain, other, objective="balanced") is plain


def test_no_lead_is_asked_of_a_split_that_somebody_runs() -> None:
    known = One(split=Parallelism(tp=8, ep=True), generated=False)
    assert rank.lead(known) == 0.0
    assert first(One(), known, objective="throughput") is known


def test_a_known_recipe_stands_until_a_generated_one_is_ahead_by_more_than_predictions_err() -> None:
    known = One(generated=False)
    assert first(known, One(split=FEWER, per_gpu=124), objective="throughput") is known
    faster = One(split=FEWER, per_gpu=133)
    assert first(known, faster, objective="throughput") is faster


def test_of_several_known_recipes_the_best_one_leads_not_the_smallest() -> None:
    small = One(split=Parallelism(tp=2), devices=2, speed=88, generated=False)
    large = One(speed=97, generated=False)
    assert first(One(split=FEWER), small, large, objective="latency") is large


def test_a_known_recipe_that_costs_more_is_not_cheapest() -> None:
    known = One(generated=False, usd_h=12.0)
    cheap = One(split=FEWER, devices=4, usd_h=10.0)
    assert first(known, cheap, objective="cost") is cheap


def test_a_known_recipe_that_lets_users_wait_does_not_pass_one_that_does_not() -> None:
    known, free = One(generated=False, waits=True), One(split=FEWER)
    assert first(known, free, objective="throughput") is free
