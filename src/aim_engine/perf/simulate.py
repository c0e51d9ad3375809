"""What single requests see: the engine's scheduler, played step by step.

Closed forms give means in steady state. Tails, bursts, queues and preemptions come from the order in which the engine
serves requests, so this module plays that order: first come first served, decode tokens before prompt tokens, prompts in
chunks of what the token budget leaves, a limit on running requests, a pool of cache blocks, and when the pool runs dry the
newest request gives its blocks back and starts over. Time of one step is asked of the performance model.

Steps in which nothing but decoding happens are taken together up to the next arrival, finish or shortage, so that the cost
is in the number of requests, not of tokens.

Source of the order: vllm-project/vllm v0.32.0 vllm/v1/core/sched/scheduler.py schedule().
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.perf.estimate import Spread
from aim_engine.workload import PERCENTILES

_MOST_STEPS = 2_000_000
"""Scheduler events after which a simulation is stopped as not ending."""


class StepTime(Protocol):
    """Seconds of one engine step."""

    def __call__(self, decode_rows: int, decode_context: float, prompt_tokens: int, prompt_context: float, /) -> float:
        """`decode_rows` requests that each compute one token over `decode_context` tokens all together, beside
        `prompt_tokens` tokens of prompts at a mean context of `prompt_context`.
        """


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's limits of one rank."""

    max_num_seqs: int
    max_num_batched_tokens: int
    cache_tokens: int
    """Tokens the cache holds for requests of this traffic."""
    block_tokens: int = 16
    fixed_s: float = 0.0
    """Before the first step and after the last: server, tokenizer, transport."""
    tokens_per_step: float = 1.0
    """Tokens a request gains in a step; above 1 with speculative decoding."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What arrives at one rank. Lengths are drawn evenly from `length_ratio_min` x the length up to the length."""

    input_tokens: int
    output_tokens: int
    requests: int
    """How many are measured."""
    around: int = 0
    """As many more before them and after them, which see the load build up and end and are not measured."""
    rate_requests_s: float | None = None
    """Open loop, at random (Poisson). None: closed loop."""
    concurrency: int | None = None
    """Closed loop: so many start at once, and each that ends is followed by the next."""
    length_ratio_min: float = 1.0
    prefix_hit_fraction: float = 0.0
    seed: int = 0
    trace: tuple[tuple[float, int, int], ...] = ()
    """Recorded requests instead of drawn ones: seconds since the one before, prompt tokens, answer tokens. A closed loop
    takes only the lengths."""

    def __post_init__(self) -> None:
        if (self.rate_requests_s is None) == (self.concurrency is None):
            raise InvalidInput("a simulation needs a rate or a concurrency, and not both")
        if self.requests < 1 or self.around < 0 or not 0.0 < self.length_ratio_min <= 1.0:
            raise InvalidInput("a simulation needs requests, and lengths above 0")
        if self.trace and len(self.trace) != self.made:
            raise InvalidInput(f"a trace of {len(self.trace)} requests cannot give {self.made}")

    @property
    def made(self) -> int:
        """Requests that are made in all."""
        return self.requests + 2 * self.around

    def measures(self, number: int) -> bool:
        """Whether the request made as this one counts."""
        return self.around <= number < self.around + self.requests


class _Drawn(msgspec.Struct, frozen=True):
    """Lengths of all requests, and the seconds between the arrivals that do not wait for another's end."""

    prompts: list[int]
    outputs: list[int]
    gaps_s: list[float]


def _draw(traffic: Traffic) -> _Drawn:
    if traffic.trace:
        gaps_s, prompts, outputs = (list(column) for column in zip(*traffic.trace, strict=True))
        if traffic.rate_requests_s is None:
            gaps_s = [0.0] * min(traffic.concurrency or 1, traffic.made)
        return _Drawn(prompts, outputs, gaps_s)
    import numpy as np

    source = np.random.default_rng(traffic.seed)
    count, low = traffic.made, traffic.length_ratio_min
    prompts, outputs = (
        np.maximum(1, np.rint(source.uniform(low * length, length, count))).astype(int).tolist()
        for length in (traffic.input_tokens, traffic.output_tokens)
    )
    if traffic.rate_requests_s is None:
        gaps_s = [0.0] * min(traffic.concurrency or 1, count)
    else:
        gaps_s = source.exponential(1 / traffic.rate_requests_s, count).tolist()
    return _Drawn(prompts, outputs, gaps_s)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the measured requests saw."""

    requests: int
    duration_s: float
    ttft_ms: Spread
    tpot_ms: Spread
    itl_ms: Spread
    e2e_ms: Spread
    output_tok_s: float
    requests_s: float
    running: float
    """Mean number of running requests."""
    preemptions: int
    goodput_fraction: float
    """Share of requests that kept every limit asked for."""


class _Request:
    __slots__ = (
        "arrival_s",
        "began_step",
        "computed",
        "done_s",
        "finish_step",
        "first_s",
        "generated",
        "number",
        "output",
        "prompt",
    )

    def __init__(self, number: int, arrival_s: float, prompt: int, output: int) -> None:
        self.number = number
        self.arrival_s = arrival_s
        self.prompt = prompt
        self.output = output
        self.computed = 0
        """Prompt tokens (after a preemption: and generated ones) that the cache holds."""
        self.generated = 0
        self.first_s = -1.0
        """When its first token came; negative before."""
        self.done_s = 0.0
        self.began_step = 0
        """Step at which it began to decode, last time."""
        self.finish_step = 0

    @property
    def to_compute(self) -> int:
        """What prefill has to compute: the prompt, and after a preemption what was generated too."""
        return self.prompt + self.generated


def simulate(
    engine: Engine,
    traffic: Traffic,
    step_s: StepTime,
    *,
    ttft_limit_ms: float | None = None,
    tpot_limit_ms: float | None = None,
    e2e_limit_ms: float | None = None,
) -> Outcome:
    """Play `traffic` through `engine`. The same arguments always give the same outcome.

    Raises: InvalidInput when a single request is larger than the cache, or the load never drains.
    """
    if traffic.input_tokens + traffic.output_tokens > engine.cache_tokens:
        raise InvalidInput(
            f"a request of {traffic.input_tokens + traffic.output_tokens:,} tokens does not fit the cache",
            why=f"it holds {engine.cache_tokens:,} tokens",
        )
    return _Run(engine, traffic, step_s).outcome((ttft_limit_ms, tpot_limit_ms, e2e_limit_ms))


class _Run:
    """State of one simulation."""

    def __init__(self, engine: Engine, traffic: Traffic, step_s: StepTime) -> None:
        self.engine, self.traffic, self.step_s = engine, traffic, step_s
        self.now_s = 0.0
        self.step = 0
        self.waiting: deque[_Request] = deque()
        self.prefilling: deque[_Request] = deque()
        self.decoding: dict[int, _Request] = {}
        self.finishing: list[tuple[int, int]] = []
        """Heap of (step at which it ends, number); entries of preempted requests are stale and skipped."""
        self.context = 0.0
        """Tokens the decoding requests hold together."""
        self.finished: list[_Request] = []
        """Those that are measured."""
        self.left = traffic.requests
        """Measured requests that have not ended."""
        self.began_s = 0.0
        """When the first measured request came; what is counted over time is counted from here."""
        self.ended = 0
        self.tokens = 0
        """Of all requests that ended, measured or not."""
        self.gaps: list[tuple[float, int]] = []
        """(seconds between two tokens, how many tokens waited so long)."""
        self.preemptions = 0
        self.busy = 0.0
        self.drawn = _draw(traffic)
        self.number = 0
        """Of the next request to be made."""
        self.arrivals = self._arrivals()
        self.upcoming = next(self.arrivals, None)

    def outcome(self, limits: tuple[float | None, float | None, float | None]) -> Outcome:
        events = 0
        while self.left:
            events += 1
            if events > _MOST_STEPS:
                raise InvalidInput("the simulated load never drains", hint="lower the rate or the number of requests")
            self._take_arrivals()
            if self.waiting or self.prefilling or self.decoding:
                self._one_event()
            elif self.upcoming is not None:
                self.now_s = self.upcoming.arrival_s
        return self._summary(limits)

    def _arrivals(self) -> Iterator[_Request]:
        """Open loop: all of them, in time. Closed loop: the first ones; later ones are made when one ends."""
        at_s = 0.0
        for gap_s in self.drawn.gaps_s:
            at_s += gap_s
            yield self._new(at_s)

    def _new(self, arrival_s: float) -> _Request:
        number, self.number = self.number, self.number + 1
        return _Request(number, arrival_s, self.drawn.prompts[number], self.drawn.outputs[number])

    def _take_arrivals(self) -> None:
        while self.upcoming is not None and self.upcoming.arrival_s <= self.now_s:
            self._enter(self.upcoming)
            self.upcoming = next(self.arrivals, None)

    def _one_event(self) -> None:
        """One step with prompts in it, or as many as can be taken together without."""
        rows = len(self.decoding)
        if self._blocks_short(rows):
            self._preempt()
            return
        budget = self.engine.max_num_batched_tokens - rows
        chunks: list[tuple[_Request, int]] = []
        for request in self.prefilling:
            budget = self._chunk(request, budget, chunks)
        while self.waiting and budget > 0 and rows + len(self.prefilling) < self.engine.max_num_seqs:
            request = self.waiting[0]
            if request.computed == 0 and not self._admits(request):
                break
            self.waiting.popleft()
            if request.computed == 0:
                request.computed = self._cached(request)
            self.prefilling.append(request)
            budget = self._chunk(request, budget, chunks)
        if chunks:
            self._mixed_step(rows, chunks)
        elif rows:
            self._decode_run(rows)
        else:
            raise InvalidInput("the cache cannot hold one waiting request", why=f"{self.engine.cache_tokens:,} tokens")

    def _cached(self, request: _Request) -> int:
        """Prompt tokens found in the prefix cache, whole blocks; at least one token is always computed."""
        hit = int(request.prompt * self.traffic.prefix_hit_fraction)
        return min(hit // self.engine.block_tokens * self.engine.block_tokens, request.to_compute - 1)

    @staticmethod
    def _chunk(request: _Request, budget: int, chunks: list[tuple[_Request, int]]) -> int:
        taken = min(budget, request.to_compute - request.computed)
        if taken > 0:
            chunks.append((request, taken))
        return budget - max(0, taken)

    def _mixed_step(self, rows: int, chunks: Sequence[tuple[_Request, int]]) -> None:
        tokens = sum(count for _, count in chunks)
        attended = sum(count * (request.computed + count / 2) for request, count in chunks) / tokens
        seconds = self.step_s(rows, self.context, tokens, attended)
        self._pass(seconds, 1, rows)
        for request, count in chunks:
            request.computed += count
            if request.computed >= request.to_compute:
                self.prefilling.remove(request)
                self._start_decoding(request)
        self._retire()

    def _decode_run(self, rows: int) -> None:
        """Steps up to the next finish, arrival or shortage of blocks; time per step is taken linear in between."""
        until_finish = max(1, self._next_finish() - self.step)
        steps = min(until_finish, self._steps_until_short(rows))
        first_s = self._decode_step_s(rows, 0)
        if steps > 1:
            last_s = self._decode_step_s(rows, steps - 1)
            if self.upcoming is not None:
                left_s = self.upcoming.arrival_s - self.now_s
                mean_s = (first_s + last_s) / 2
                if left_s < mean_s * steps:
                    steps = max(1, min(steps, math.ceil(left_s / mean_s)))
                    last_s = self._decode_step_s(rows, steps - 1)
            seconds = (first_s + last_s) / 2 * steps
        else:
            seconds = first_s
        self._pass(seconds, steps, rows)
        self._retire()

    def _decode_step_s(self, rows: int, ahead: int) -> float:
        """Seconds of the decode step that comes `ahead` steps from now."""
        return self.step_s(rows, self.context + rows * ahead * self.engine.tokens_per_step, 0, 0.0)

    def _pass(self, seconds: float, steps: int, rows: int) -> None:
        """Let time go by: every decoding request gains its tokens."""
        self.now_s += seconds
        self.step += steps
        self.context += rows * steps * self.engine.tokens_per_step
        self.busy += seconds * (rows + len(self.prefilling))
        if rows:
            self.gaps.append((seconds / steps, rows * steps))

    def _start_decoding(self, request: _Request) -> None:
        """The step that ends the prefill also gives the next token."""
        if request.first_s < 0:
            request.first_s = self.now_s
        request.generated += 1
        left = (request.output - request.generated) / self.engine.tokens_per_step
        request.began_step = self.step
        request.finish_step = self.step + math.ceil(left)
        self.decoding[request.number] = request
        self.context += request.computed
        heapq.heappush(self.finishing, (request.finish_step, request.number))

    def _next_finish(self) -> int:
        while True:
            step, number = self.finishing[0]
            request = self.decoding.get(number)
            if request is not None and request.finish_step == step:
                return step
            heapq.heappop(self.finishing)

    def _retire(self) -> None:
        while self.decoding and self._next_finish() <= self.step:
            _, number = heapq.heappop(self.finishing)
            request = self.decoding.pop(number)
            request.done_s = self.now_s
            self.context -= self._decode_held(request)
            self.ended += 1
            self.tokens += request.output
            if self.traffic.measures(request.number):
                self.finished.append(request)
                self.left -= 1
            if self.traffic.concurrency is not None and self.number < self.traffic.made:
                self._enter(self._new(self.now_s))

    def _enter(self, request: _Request) -> None:
        """Queue a request; with the first measured one, what is counted over time starts anew."""
        self.waiting.append(request)
        if request.number == self.traffic.around:
            self.began_s, self.busy, self.preemptions, self.ended, self.tokens = request.arrival_s, 0.0, 0, 0, 0
            self.gaps.clear()

    def _decode_held(self, request: _Request) -> float:
        """Tokens a decoding request holds now: its prefill and what it gained in each step since."""
        return request.computed + (self.step - request.began_step) * self.engine.tokens_per_step

    def _used_blocks(self, rows: int) -> float:
        """Blocks in use; each request's last one is half full on average."""
        block = self.engine.block_tokens
        held = self.context + sum(request.computed for request in self.prefilling)
        return held / block + 0.5 * (rows + len(self.prefilling))

    def _blocks_short(self, rows: int) -> bool:
        return (
            rows + len(self.prefilling) > 1
            and self._used_blocks(rows) > self.engine.cache_tokens / self.engine.block_tokens
        )

    def _steps_until_short(self, rows: int) -> int:
        free = self.engine.cache_tokens / self.engine.block_tokens - self._used_blocks(rows)
        return max(1, math.ceil(free * self.engine.block_tokens / (rows * self.engine.tokens_per_step)))

    def _admits(self, request: _Request) -> bool:
        """The whole prompt must find room beside what runs (scheduler_reserve_full_isl)."""
        rows = len(self.decoding)
        pending = sum(each.to_compute - each.computed for each in self.prefilling)
        needed = (request.to_compute + pending) / self.engine.block_tokens + 0.5
        return (
            self._used_blocks(rows) + needed <= self.engine.cache_tokens / self.engine.block_tokens
            or rows + len(self.prefilling) == 0
        )

    def _preempt(self) -> None:
        """The newest request gives back its blocks and waits, first in the queue, to be computed again."""
        self.preemptions += 1
        if self.prefilling:
            request = self.prefilling.pop()
        else:
            request = self.decoding.pop(max(self.decoding))
            held = self._decode_held(request)
            self.context -= held
            request.generated = min(request.output - 1, request.generated + round(held - request.computed))
        request.computed = 0
        self.waiting.appendleft(request)

    def _summary(self, limits: tuple[float | None, float | None, float | None]) -> Outcome:
        fixed_ms = self.engine.fixed_s * 1e3
        ttft, tpot, e2e, good = [], [], [], 0
        for request in self.finished:
            first_ms = (request.first_s - request.arrival_s) * 1e3 + fixed_ms
            whole_ms = (request.done_s - request.arrival_s) * 1e3 + fixed_ms
            each_ms = (whole_ms - first_ms) / (request.output - 1) if request.output > 1 else 0.0
            ttft.append(first_ms)
            e2e.append(whole_ms)
            if request.output > 1:
                tpot.append(each_ms)
            good += all(
                limit is None or value <= limit
                for value, limit in zip((first_ms, each_ms, whole_ms), limits, strict=True)
            )
        duration_s = max(self.now_s - self.began_s, 1e-9)
        return Outcome(
            requests=len(self.finished),
            duration_s=duration_s,
            ttft_ms=_spread([(value, 1) for value in ttft]),
            tpot_ms=_spread([(value, 1) for value in tpot]),
            itl_ms=_spread([(seconds * 1e3, count) for seconds, count in self.gaps]),
            e2e_ms=_spread([(value, 1) for value in e2e]),
            output_tok_s=self.tokens / duration_s,
            requests_s=self.ended / duration_s,
            running=self.busy / duration_s,
            preemptions=self.preemptions,
            goodput_fraction=good / len(self.finished),
        )


def _spread(weighted: list[tuple[float, int]]) -> Spread:
    """Mean and percentiles (nearest rank) of values with counts; all 0 without values."""
    total = sum(count for _, count in weighted)
    if not total:
        return Spread(mean=0.0, p50=0.0, p90=0.0, p95=0.0, p99=0.0)
    ordered = sorted(weighted)
    marks = [total * percent / 100 for percent in PERCENTILES]
    found: list[float] = []
    seen = 0
    for value, count in ordered:
        seen += count
        while len(found) < len(marks) and seen >= marks[len(found)] - 1e-9:
            found.append(value)
    mean = sum(value * count for value, count in weighted) / total
    return Spread(mean=mean, p50=found[0], p90=found[1], p95=found[2], p99=found[3])
