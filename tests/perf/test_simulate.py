"""The scheduler, played in leaps, against the same rules played token by token; and what must hold of any queue."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_engine.errors import InvalidInput
from aim_engine.perf.simulate import Engine, Outcome, Traffic, simulate


def step_s(rows: int, context: float, prompt: int, prompt_context: float) -> float:
    """A step that is linear in everything, as the real ones nearly are."""
    return 0.008 + rows * 3e-5 + context * 2e-8 + prompt * 5e-6 * (1 + prompt_context / 50_000)


def play(engine: Engine | None = None, **traffic: object) -> Outcome:
    values: dict[str, object] = {"input_tokens": 512, "output_tokens": 128, "requests": 200, **traffic}
    return simulate(
        engine or Engine(max_num_seqs=256, max_num_batched_tokens=8192, cache_tokens=1_000_000),
        Traffic(**values),  # type: ignore[arg-type]
        step_s,
    )


def token_by_token(engine: Engine, arrivals: list[tuple[float, int, int]]) -> list[tuple[float, float]]:
    """(first token, end) of each request: one step at a time, every token counted, with an endless cache."""
    now, waiting = 0.0, list(enumerate(arrivals))
    running: list[dict[str, int]] = []
    first: dict[int, float] = {}
    end: dict[int, float] = {}
    while len(end) < len(arrivals):
        if not running and waiting[0][1][0] > now:
            now = waiting[0][1][0]
        decodes = [r for r in running if r["computed"] >= r["prompt"]]
        budget = engine.max_num_batched_tokens - len(decodes)
        chunks = []
        for request in running:
            if request["computed"] < request["prompt"] and budget > 0:
                chunks.append((request, min(budget, request["prompt"] - request["computed"])))
                budget -= chunks[-1][1]
        while waiting and waiting[0][1][0] <= now and budget > 0 and len(running) < engine.max_num_seqs:
            number, (_, prompt, output) = waiting.pop(0)
            request = {"number": number, "prompt": prompt, "output": output, "computed": 0, "made": 0}
            running.append(request)
            chunks.append((request, min(budget, prompt)))
            budget -= chunks[-1][1]
        tokens = sum(count for _, count in chunks)
        attended = sum(count * (r["computed"] + count / 2) for r, count in chunks) / tokens if tokens else 0.0
        context = sum(r["computed"] + r["made"] - 1 for r in decodes)
        now += step_s(len(decodes), context, tokens, attended)
        for request in decodes:
            request["made"] += 1
        for request, count in chunks:
            request["computed"] += count
            if request["computed"] == request["prompt"]:
                request["made"] = 1
                first[request["number"]] = now
        for request in [r for r in running if r["made"] >= r["output"]]:
            running.remove(request)
            end[request["number"]] = now
    return [(first[number], end[number]) for number in range(len(arrivals))]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rate=st.floats(0.5, 40),
    slots=st.integers(1, 40),
    budget=st.sampled_from([64, 512, 8192]),
    prompt=st.integers(1, 900),
    output=st.integers(1, 60),
)
def test_leaps_give_what_single_steps_give(
    seed: int, rate: float, slots: int, budget: int, prompt: int, output: int
) -> None:
    engine = Engine(max_num_seqs=slots, max_num_batched_tokens=max(budget, slots + 1), cache_tokens=10**9)
    source = np.random.default_rng(seed)
    source.uniform(size=50)  # the lengths, which come first
    arrivals = [(float(at), prompt, output) for at in np.cumsum(source.exponential(1 / rate, 25))]
    times = token_by_token(engine, arrivals)
    got = play(engine, input_tokens=prompt, output_tokens=output, requests=25, rate_requests_s=rate, seed=seed)
    wanted = sum(first - arrival for (first, _), (arrival, _, _) in zip(times, arrivals, strict=True)) / 25
    whole = sum(end - arrival for (_, end), (arrival, _, _) in zip(times, arrivals, strict=True)) / 25
    # A leap ends with the step in which the next request arrives; the time of a step inside it is taken as linear.
    assert got.ttft_ms.mean == pytest.approx(wanted * 1e3, rel=0.02, abs=1.0)
    assert got.e2e_ms.mean == pytest.approx(whole * 1e3, rel=0.02, abs=1.0)


def test_one_request_alone_sees_its_prefill_and_its_steps() -> None:
    got = play(concurrency=1, requests=1)
    assert got.ttft_ms.mean == pytest.approx(step_s(0, 0, 512, 256) * 1e3)
    assert got.tpot_ms.mean == pytest.approx(step_s(1, 512 + 63, 0, 0) * 1e3, rel=1e-3)
    assert got.preemptions == 0


def test_the_same_seed_gives_the_same_outcome_and_another_does_not() -> None:
    one, same, other = (play(rate_requests_s=5.0, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_tails_grow_with_load_and_percentiles_are_ordered() -> None:
    slow = None
    for rate in (1.0, 10.0, 60.0):
        got = play(rate_requests_s=rate, requests=400)
        for spread in (got.ttft_ms, got.tpot_ms, got.itl_ms, got.e2e_ms):
            assert spread.p50 <= spread.p90 <= spread.p99
        if slow is not None:
            assert got.ttft_ms.p99 >= slow.ttft_ms.p99
            assert got.running > slow.running
        slow = got


def test_little_s_law_holds() -> None:
    got = play(rate_requests_s=10.0, requests=2000)
    assert got.running == pytest.approx(got.requests_s * got.e2e_ms.mean / 1e3, rel=0.03)


def test_a_short_cache_preempts_and_is_slower_but_loses_nobody() -> None:
    tight = Engine(max_num_seqs=64, max_num_batched_tokens=2048, cache_tokens=6000)
    ample = Engine(max_num_seqs=64, max_num_batched_tokens=2048, cache_tokens=10**6)
    short, enough = (play(e, input_tokens=200, output_tokens=400, concurrency=32) for e in (tight, ample))
    assert short.preemptions > 0
    assert enough.preemptions == 0
    assert short.requests == enough.requests == 200
    assert short.output_tok_s < enough.output_tok_s


def test_a_prefix_hit_shortens_the_first_token_and_drafts_the_rest() -> None:
    plain = play(concurrency=8)
    hit = play(concurrency=8, prefix_hit_fraction=0.9)
    drafted = play(
        Engine(max_num_seqs=256, max_num_batched_tokens=8192, cache_tokens=1_000_000, tokens_per_step=2.0),
        concurrency=8,
    )
    assert hit.ttft_ms.mean < plain.ttft_ms.mean
    assert drafted.tpot_ms.mean == pytest.approx(plain.tpot_ms.mean / 2, rel=0.15)


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    engine = Engine(max_num_seqs=8, max_num_batched_tokens=2048, cache_tokens=100_000)
    traffic = Traffic(input_tokens=512, output_tokens=128, requests=64, concurrency=32)
    loose = simulate(engine, traffic, step_s, ttft_limit_ms=1e9)
    strict = simulate(engine, traffic, step_s, ttft_limit_ms=50)
    assert loose.goodput_fraction == 1.0
    assert 0 < strict.goodput_fraction < 1.0


def test_a_request_larger_than_the_cache_is_refused() -> None:
    with pytest.raises(InvalidInput, match="does not fit the cache"):
        play(Engine(max_num_seqs=4, max_num_batched_tokens=2048, cache_tokens=500), concurrency=1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 200),
    st.integers(1, 64),
    st.integers(600, 20_000),
    st.floats(0.2, 1.0),
    st.sampled_from([1.0, 1.7]),
)
def test_every_request_ends_whatever_the_cache(
    prompt: int, output: int, concurrency: int, cache: int, ratio: float, drafted: float
) -> None:
    engine = Engine(max_num_seqs=32, max_num_batched_tokens=256, cache_tokens=cache, tokens_per_step=drafted)
    got = play(
        engine,
        input_tokens=prompt,
        output_tokens=output,
        concurrency=concurrency,
        requests=80,
        length_ratio_min=ratio,
    )
    assert got.requests == 80
    assert got.running <= 32 + 1e-6
    assert math.isfinite(got.e2e_ms.p99)
