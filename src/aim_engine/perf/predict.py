"""From step times to what a deployment delivers at a load, with ranges and margins."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory, play
from aim_engine.perf.calibration import Calibration, Level, Metric
from aim_engine.perf.estimate import Basis, Estimate, MemoryBreakdown, Range, Spread
from aim_engine.perf.roofline import Model
from aim_engine.perf.simulate import Outcome
from aim_engine.perf.situation import Situation
from aim_engine.recipe.recipe import Recipe
from aim_engine.workload import Limit, Objective, Slo, Workload

WORTHWHILE_FRACTION = 0.10
"""Without a load, requests are added as long as twice as many give at least so much more output: beyond, they mostly wait."""
LOADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
"""Requests of one replica at which each spread over the devices is looked at."""
_RATE_STEPS = 32
_BUSIEST = 0.95
_FULLEST = 0.999
_SPREAD = {None: 0.0, 50: 0.0, 90: 1.2816, 95: 1.6449, 99: 2.3263}
"""Standard deviations of a normal variable at its percentiles."""
_SEEN: dict[Level, str] = {
    "configuration": "this configuration was measured at other loads",
    "family": "this model family was measured with this engine",
    "unseen family": "no model of this family was measured with this engine",
    "unseen card": "no card of this generation was measured",
}


class Load:
    """One replica at one number of running requests, in closed forms."""

    __slots__ = (
        "_model", "_prompts", "alone_s", "e2e_s", "open", "requests", "tpot_s", "ttft_median_s", "ttft_s", "waiting",
    )  # fmt: skip

    def __init__(self, model: Model, requests: float, offered: float, *, together: bool = False) -> None:
        """`offered` requests are in flight, of which `requests` run and the rest wait for a slot (closed loop).

        `together`: they come all at once and nothing arrives later, so the prefill mixed into the steps is all there is.
        """
        self._model = model
        self.open = False
        self._prompts = (0.0, 0.0)
        self.requests = requests
        self.tpot_s = model.tpot_s(requests)
        self.ttft_s = model.ttft_s(requests)
        self.ttft_median_s = model.ttft_median_s(requests)
        self.alone_s = self.ttft_median_s
        output = model.workload.output_tokens
        self.e2e_s = output * self.tpot_s if together else self.ttft_s + (output - 1) * self.tpot_s
        self.waiting = offered - requests
        if self.waiting > 0:
            wait_s = self.waiting * self.e2e_s / requests
            self.ttft_s += wait_s
            self.ttft_median_s += wait_s
            self.e2e_s += wait_s

    @classmethod
    def arriving(
        cls,
        model: Model,
        requests: float,
        waiting: float,
        times_s: tuple[float, float, float, float],
        prompts: tuple[float, float],
    ) -> Load:
        """Requests that arrive at random; `times_s`: first token alone and with others, token, whole request; `prompts`: the share of
        time in which one is computed, and the seconds it takes.
        """
        found: Load = object.__new__(cls)
        found._model, found.open, found._prompts = model, True, prompts
        found.requests, found.waiting = requests, waiting
        found.alone_s, found.ttft_s, found.tpot_s, found.e2e_s = times_s
        found.ttft_median_s = found.alone_s + (found.ttft_s - found.alone_s) * math.log(2)
        return found

    @property
    def requests_s(self) -> float:
        """Finished requests per second, by Little's law over everything in flight."""
        return (self.requests + self.waiting) / self.e2e_s

    def later(self, seconds: float) -> Load:
        """The same with a first token that comes so much later."""
        other: Load = object.__new__(Load)
        for name in Load.__slots__:
            setattr(other, name, getattr(self, name))
        for name in ("alone_s", "e2e_s", "ttft_median_s", "ttft_s"):
            setattr(other, name, getattr(self, name) + seconds)
        return other

    def seconds(self, name: str, percentile: int | None) -> float:
        """A time, as its mean or a percentile over requests; percentiles are rough here and exact only when simulated.

        Waits have an exponential tail, the service has none; how many run beside a request varies like a Poisson count where
        arrivals are random. A whole request is taken to be late in both.
        """
        if percentile is None:
            return float(getattr(self, f"{name}_s"))
        if name == "ttft":
            if percentile == 50 and not self.open:
                return self.ttft_median_s
            more_s, late = max(0.0, self.ttft_s - self.alone_s), 1 - percentile / 100
            busy, prompt_s = self._prompts
            # Where few meet another's prompt, those who do wait for up to a whole one.
            met_s = prompt_s * (1 - late / busy) + more_s if busy > late else 0.0
            return self.alone_s + max(more_s * -math.log(late), met_s)
        tpot_s = self.tpot_s
        if self.open and percentile > 50:
            tpot_s = self._model.tpot_s(self.requests + _SPREAD[percentile] * math.sqrt(self.requests))
        if name == "tpot":
            return tpot_s
        return self.seconds("ttft", percentile) + (self._model.workload.output_tokens - 1) * tpot_s


class Speed:
    """What one spread of a model over devices does at any load; each load is worked out once."""

    def __init__(self, model: Model, default_tokens: int | None = None) -> None:
        """`default_tokens`: the engine's own max_num_batched_tokens on this card, with which measurements were made."""
        self.model = model
        self._default_tokens = default_tokens
        self._closed: dict[tuple[float, float], Load] = {}
        self._arriving: dict[float, tuple[float, float, float, float]] = {}
        self._within: dict[Slo, tuple[int, int]] = {}

    def closed(self, requests: float, offered: float) -> Load:
        """A closed loop of `offered`, of which `requests` run at once."""
        found = self._closed.get((requests, offered))
        if found is None:
            found = self._closed[requests, offered] = Load(self.model, requests, offered)
        return found

    def chunked(self, load: Load, max_tokens: int | None) -> Load:
        """`load` where a step takes at most `max_tokens`: a prompt in more pieces waits for more steps."""
        if self._default_tokens is None or max_tokens is None or max_tokens >= self._default_tokens:
            return load
        rows = load.requests / self.model.features.dp
        more = self._chunks(max_tokens, rows) - self._chunks(self._default_tokens, rows)
        return load.later(more * load.tpot_s * self.model.features.yielded) if more > 0 else load

    def _chunks(self, max_tokens: int, rows: float) -> int:
        return math.ceil(self.model.features.prompt_tokens / max(1.0, max_tokens - rows))

    def arriving(self, rate_requests_s: float, slots: int) -> tuple[Load, str | None]:
        """The load at which as many finish as arrive at random, and why there is none.

        Its first token takes what one request alone waits for, half a step under way, the decode rows in its own step, the prompts
        before it (M/D/1: rho x service / (2 (1 - rho))), and a slot where nearly all are taken (Sakasegawa's form of the queue at
        `slots` servers, halved since service times vary little).
        """
        found = self._arriving.get(rate_requests_s)
        if found is None:
            found = self._arriving[rate_requests_s] = self._solve(rate_requests_s)
        requests, ttft_s, tpot_s, e2e_s = found
        if requests > slots:
            full = self.closed(float(max(1, slots)), float(max(1, slots)))
            most_s = max(1, slots) / self._times(float(max(1, slots)), rate_requests_s)[2]
            return full, f"one replica finishes {most_s:.2f} requests/s, {rate_requests_s:.2f} arrive"
        each = max(1, slots // self.model.features.dp)
        share = min(_FULLEST, requests / self.model.features.dp / each)
        slot_s = 0.5 * e2e_s * share ** (math.sqrt(2 * (each + 1)) - 1) / (each * (1 - share))
        return Load.arriving(
            self.model,
            requests,
            rate_requests_s * slot_s,
            (self.model.ttft_median_s(1.0), ttft_s + slot_s, tpot_s, e2e_s + slot_s),
            (self._busy(rate_requests_s), self.model.prompt_s()),
        ), None

    def _times(self, requests: float, rate_requests_s: float) -> tuple[float, float, float]:
        """First token, token and whole request where so many run and so many arrive, without a wait for a slot."""
        model = self.model
        alone_s, first_step_s = model.ttft_median_s(1.0), model.tpot_s(1.0) * model.features.yielded
        busy = self._busy(rate_requests_s)
        before_s = busy * model.prompt_s() / (2 * (1 - busy))
        requests = max(1.0, requests)
        tpot_s = model.tpot_s(requests)
        for _ in range(2):  # a first token that comes sooner than in a closed loop leaves more requests decoding
            step_s = tpot_s * model.features.yielded
            ttft_s = alone_s + step_s / 2 + max(0.0, step_s - first_step_s) + before_s
            tpot_s = max(tpot_s, model.tpot_waiting_s(requests, ttft_s))
        return ttft_s, tpot_s, ttft_s + (model.workload.output_tokens - 1) * tpot_s

    def _busy(self, rate_requests_s: float) -> float:
        """Share of time in which a rank computes prompts."""
        return min(_BUSIEST, rate_requests_s / self.model.features.dp * self.model.prompt_s())

    def _solve(self, rate_requests_s: float) -> tuple[float, float, float, float]:
        """Requests in flight at which as many finish as arrive, and their times; infinitely many where that is never so."""
        low, high = -10.0, math.log2(LOADS[-1])
        if 2**high / self._times(2**high, rate_requests_s)[2] < rate_requests_s:
            return math.inf, 0.0, 0.0, 0.0
        for _ in range(_RATE_STEPS):
            middle = (low + high) / 2
            if 2**middle / self._times(2**middle, rate_requests_s)[2] < rate_requests_s:
                low = middle
            else:
                high = middle
        return (2**high, *self._times(2**high, rate_requests_s))

    def most_within(self, slots: int, slo: Slo) -> float:
        """The largest whole number of running requests that keeps the limits; 1 when none does. All times grow with it."""
        if not slo.limits:
            return float(max(1, slots))
        limit, up_to = self._within.get(slo, (0, 0))
        if up_to < slots:
            limit = self._search(slots, slo)
            self._within[slo] = limit, slots
        return float(max(1, min(slots, limit)))

    def _bound(self, requests: int, slo: Slo) -> bool:
        return bool(missed(self.closed(float(requests), float(requests)), slo))

    def _search(self, slots: int, slo: Slo) -> int:
        low, high = 1, slots
        if not self._bound(high, slo):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._bound(middle, slo) else (middle, high)
        return low

    def worthwhile(self, slots: int) -> int:
        """The most requests up to which each doubling gives at least `WORTHWHILE_FRACTION` more output."""
        fewer = 1
        while fewer < slots:
            more = min(2 * fewer, slots)
            one, other = (self.closed(float(count), float(count)).requests_s for count in (fewer, more))
            if other < one * (1 + WORTHWHILE_FRACTION * math.log2(more / fewer)):
                break
            fewer = more
        return fewer

    def settle(
        self, slots: int, replicas: int, workload: Workload, slo: Slo, objective: Objective
    ) -> tuple[Load, str | None]:
        """The load one replica runs at, and why it cannot be had (None when it can).

        With a concurrency: its share. With a rate: the number in flight at which as many finish as arrive. With neither: the most
        that keeps the limits and is worth its wait (throughput, cost, energy), one (latency), or the best product of speed per
        user and per device (balanced).
        """
        if workload.concurrency is not None:
            offered = max(1.0, workload.concurrency / replicas)
            return self.closed(min(offered, float(slots)), offered), None
        if workload.rate_requests_s is not None:
            return self.arriving(workload.rate_requests_s / replicas, slots)
        if objective == "latency":
            return self.closed(1.0, 1.0), None
        if objective == "balanced":
            options = sorted({min(slots, 2**power) for power in range(11)})
            loads = [self.closed(float(count), float(count)) for count in options]
            keeping = [load for load in loads if not missed(load, slo)] or loads[:1]
            return max(keeping, key=lambda load: load.requests_s / load.tpot_s), None
        most = self.most_within(min(slots, self.worthwhile(slots)), slo)
        return self.closed(most, most), None


def settle(
    model: Model, slots: int, replicas: int, workload: Workload, slo: Slo, objective: Objective
) -> tuple[Load, str | None]:
    """`Speed.settle` for a single question."""
    return Speed(model).settle(slots, replicas, workload, slo, objective)


def capacity(recipe: Recipe, breakdown: MemoryBreakdown) -> int:
    """Requests one replica can run at once: the scheduler's limit or the cache's."""
    return min(recipe.max_num_seqs * recipe.parallelism.dp, breakdown.max_sequences)


def missed(load: Load, slo: Slo) -> list[str]:
    """The limits this load does not keep."""
    return [limit.name for limit in slo.limits if load.seconds(limit.name, limit.percentile) * 1e3 > limit.ms]


class Ranges:
    """Puts the band of a situation around values."""

    def __init__(self, model: Model) -> None:
        self._calibration: Calibration = model.calibration
        self._situation = model.situation
        level = self._calibration.level(self._situation)
        source = f"{self._calibration.name}; {_SEEN[level]}"
        if self._calibration.local is not None:
            source += f"; corrected by {len(self._calibration.local.points)} measurements of your own"
        self._source = source
        self._basis: Basis = "calibrated" if level in ("configuration", "family") else "modelled"

    def of(self, value: float, metric: Metric) -> Range:
        """A value with its band."""
        band = self._calibration.band(self._situation, metric)
        return Range(value=value, low=value * band.low, high=value * band.high, basis=self._basis, source=self._source)

    def ms(self, name: str, value_s: float, first_s: float) -> Range:
        """A time of a request; a whole request is as sure as the larger of its parts, of which the first token is one."""
        metric: Metric = "ttft" if name == "ttft" or (name == "e2e" and first_s > value_s / 2) else "tpot"
        return self.of(value_s * 1e3, metric)


def estimate(
    spec: ModelSpec,
    recipe: Recipe,
    workload: Workload,
    slo: Slo,
    calibration: Calibration,
    breakdown: MemoryBreakdown,
    model: Model,
    load: Load,
) -> Estimate:
    """The full prediction for `recipe` at `load` per replica."""
    ranges = Ranges(model)
    requests_s = load.requests_s * recipe.replicas
    output_tok_s = requests_s * workload.output_tokens
    limited = {
        limit.name: ranges.ms(limit.name, load.seconds(limit.name, limit.percentile), load.ttft_s)
        for limit in slo.limits
    }
    return Estimate(
        memory=breakdown,
        concurrency=max(1, round((load.requests + load.waiting) * recipe.replicas)),
        ttft_ms=ranges.ms("ttft", load.ttft_s, load.ttft_s),
        tpot_ms=ranges.ms("tpot", load.tpot_s, load.ttft_s),
        e2e_ms=ranges.ms("e2e", load.e2e_s, load.ttft_s),
        output_tok_s=ranges.of(output_tok_s, "throughput"),
        requests_s=ranges.of(requests_s, "throughput"),
        output_tok_s_per_gpu=output_tok_s / max(1, recipe.gpu_count),
        output_tok_s_per_user=1.0 / load.tpot_s,
        step_ms={
            name: value * 1e3
            for name, value in model.step_s(max(1.0, load.requests) if load.open else load.requests).items()
        },
        load_s=(spec.weight_bytes or memory.checkpoint_bytes(spec)) / calibration.load_bytes_s + calibration.start_s,
        **held(limited, slo.limits),
    )


def held(limited: dict[str, Range], limits: tuple[Limit, ...]) -> dict[str, Any]:
    """Fields of an estimate that say how the limits are kept."""
    margins = {limit.name: (limit.ms - limited[limit.name].value) / limit.ms for limit in limits}
    return {"limited_ms": limited, "slo_margin": margins, "meets_slo": min(margins.values(), default=0.0) >= 0}


def played(estimate: Estimate, model: Model, slo: Slo, outcome: Outcome) -> Estimate:
    """An estimate with what single requests saw in the simulation.

    With random arrivals the simulation's times stand for the closed forms'. In a closed loop, which measurements were made in, the fit
    keeps the means and the simulation says how the times spread around them.
    """
    ranges = Ranges(model)
    told = play.told(outcome)
    spreads: dict[str, Spread] = {name: getattr(told, f"{name}_ms") for name in ("ttft", "tpot", "e2e")}
    if not spreads["tpot"].mean:  # answers of one token have no time per token after it
        spreads["tpot"] = _scaled(spreads["tpot"], 0.0, plus=estimate.tpot_ms.value)
    if model.workload.rate_requests_s is None:
        for name, spread in spreads.items():
            spreads[name] = _scaled(spread, getattr(estimate, f"{name}_ms").value / spread.mean)
        told = msgspec.structs.replace(told, **{f"{name}_ms": spread for name, spread in spreads.items()})
    first_s = spreads["ttft"].mean / 1e3

    def figure(name: str, percentile: int | None) -> Range:
        return ranges.ms(name, spreads[name].at(percentile) / 1e3, first_s)

    changes: dict[str, Any] = {"simulated": told}
    if model.workload.rate_requests_s is not None:
        changes |= {f"{name}_ms": figure(name, None) for name in spreads}
        ours, before = changes["tpot_ms"].value, estimate.tpot_ms.value
        changes["step_ms"] = {name: ms * ours / before for name, ms in estimate.step_ms.items()}
        changes["output_tok_s_per_user"] = 1e3 / spreads["tpot"].mean
    limited = {limit.name: figure(limit.name, limit.percentile) for limit in slo.limits}
    return msgspec.structs.replace(estimate, **changes, **held(limited, slo.limits))


def _scaled(spread: Spread, factor: float, *, plus: float = 0.0) -> Spread:
    return Spread(**{mark: getattr(spread, mark) * factor + plus for mark in spread.__struct_fields__})


def at_load(
    spec: ModelSpec,
    gpu: Gpu,
    recipe: Recipe,
    workload: Workload,
    slo: Slo,
    objective: Objective,
    calibration: Calibration,
    breakdown: MemoryBreakdown,
    situation: Situation | None = None,
) -> Estimate:
    """The full prediction for `recipe` at the load of `workload`, which is the most it carries when that is not enough."""
    model = Model(spec, gpu, recipe, workload, calibration, situation)
    load, _ = settle(model, max(1, capacity(recipe, breakdown)), recipe.replicas, workload, slo, objective)
    return estimate(spec, recipe, workload, slo, calibration, breakdown, model, load)
