"""Waits of closed loops in closed form, against the queue itself, request by request."""

from __future__ import annotations

import heapq
import random

import pytest

from aim_engine.perf.roofline import Loop, closed_wait_s, started_together_s

ANSWER_S = 10.0


def played(places: int, service_s: float, *, rounds: int, spread: float, together: bool) -> float:
    """Mean wait for one server that takes prompts in turn, over all requests of `places` that each send `rounds`."""
    source, free_s, waits = random.Random(0), 0.0, []
    arrivals = [(0.0 if together else source.random() * ANSWER_S, place, 1) for place in range(places)]
    heapq.heapify(arrivals)
    while arrivals:
        time_s, place, sent = heapq.heappop(arrivals)
        begin_s = max(time_s, free_s)
        waits.append(begin_s - time_s)
        free_s = begin_s + service_s
        if sent < rounds:
            answer_s = ANSWER_S * source.uniform(1 - spread / 2, 1 + spread / 2)
            heapq.heappush(arrivals, (free_s + answer_s, place, sent + 1))
    return sum(waits) / len(waits)


@pytest.mark.parametrize("places", [8, 32, 128, 512])
@pytest.mark.parametrize("busy", [0.05, 0.2, 0.5, 2.0])
def test_the_wait_of_a_benchmark_is_that_of_the_queue_itself(places: int, busy: float) -> None:
    service_s = busy * ANSWER_S / places
    steady_s = closed_wait_s(places, service_s, ANSWER_S)
    ours_s = steady_s + started_together_s(places * service_s, ANSWER_S, steady_s, Loop(10, 0.2))
    assert ours_s == pytest.approx(played(places, service_s, rounds=10, spread=0.2, together=True), rel=0.2)


@pytest.mark.parametrize("places", [8, 32, 128, 512])
@pytest.mark.parametrize(("busy", "within"), [(0.05, 0.3), (0.5, 0.5), (1.0, 0.65), (2.0, 0.1)])
def test_the_steady_wait_is_that_of_the_queue_itself(places: int, busy: float, within: float) -> None:
    service_s = busy * ANSWER_S / places
    theirs_s = played(places, service_s, rounds=60, spread=1.0, together=False)
    assert closed_wait_s(places, service_s, ANSWER_S) == pytest.approx(theirs_s, rel=within, abs=0.002)


def test_alone_nobody_waits_and_more_requests_never_wait_less() -> None:
    assert closed_wait_s(1, 0.5, ANSWER_S) == 0.0
    waits = [closed_wait_s(places, 0.1, ANSWER_S) for places in range(1, 400)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(399 * 0.1 - ANSWER_S, rel=0.05)


def test_a_longer_benchmark_shows_less_of_its_start() -> None:
    def added_s(rounds: float) -> float:
        return started_together_s(3.0, ANSWER_S, 0.01, Loop(rounds, 0.2))

    assert added_s(1) > added_s(2) > added_s(10) > added_s(50) > 0
    assert added_s(1) == pytest.approx(1.5, rel=0.01)
