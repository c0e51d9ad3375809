"""From step times to what a deployment delivers at a load, with ranges and margins."""

from __future__ import annotations

from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory
from aim_engine.perf.calibration import Calibration, Level, Metric
from aim_engine.perf.estimate import Basis, Estimate, MemoryBreakdown, Range
from aim_engine.perf.roofline import Model
from aim_engine.perf.situation import Situation
from aim_engine.recipe.recipe import Recipe
from aim_engine.workload import Objective, Slo, Workload

_RATE_STEPS = 40
_SEEN: dict[Level, str] = {
    "configuration": "this configuration was measured at other loads",
    "family": "this model family was measured with this engine",
    "unseen family": "no model of this family was measured with this engine",
    "unseen card": "no card of this generation was measured",
}


class Load:
    """One replica at one number of running requests."""

    __slots__ = ("e2e_s", "requests", "tpot_s", "ttft_median_s", "ttft_s", "waiting")

    def __init__(self, model: Model, requests: float, offered: float, *, together: bool = False) -> None:
        """`offered` requests are in flight, of which `requests` run and the rest wait for a slot (closed loop).

        `together`: they come all at once and nothing arrives later, so the prefill mixed into the steps is all there is.
        """
        self.requests = requests
        self.tpot_s = model.tpot_s(requests)
        self.ttft_s = model.ttft_s(requests, self.tpot_s)
        self.ttft_median_s = model.ttft_median_s(requests)
        output = model.workload.output_tokens
        self.e2e_s = output * self.tpot_s if together else self.ttft_s + (output - 1) * self.tpot_s
        self.waiting = offered - requests
        if self.waiting > 0:
            wait_s = self.waiting * self.e2e_s / requests
            self.ttft_s += wait_s
            self.ttft_median_s += wait_s
            self.e2e_s += wait_s

    @property
    def requests_s(self) -> float:
        """Finished requests per second, by Little's law over everything in flight."""
        return (self.requests + self.waiting) / self.e2e_s


def capacity(recipe: Recipe, breakdown: MemoryBreakdown) -> int:
    """Requests one replica can run at once: the scheduler's limit or the cache's."""
    return min(recipe.max_num_seqs * recipe.parallelism.dp, breakdown.max_sequences)


def settle(
    model: Model, slots: int, replicas: int, workload: Workload, slo: Slo, objective: Objective
) -> tuple[Load, str | None]:
    """The load one replica runs at, and why it cannot be had (None when it can).

    With a concurrency: its share. With a rate: the number in flight at which as many finish as arrive. With neither: the most
    that keeps the limits (throughput, cost), one (latency), or the best product of speed per user and per device (balanced).
    """
    if workload.concurrency is not None:
        offered = max(1.0, workload.concurrency / replicas)
        return Load(model, min(offered, float(slots)), offered), None
    if workload.rate_requests_s is not None:
        return _load_for_rate(model, slots, workload.rate_requests_s / replicas)
    if objective == "latency":
        return Load(model, 1.0, 1.0), None
    if objective == "balanced":
        options = sorted({min(slots, 2**power) for power in range(11)})
        loads = [Load(model, float(count), float(count)) for count in options]
        keeping = [load for load in loads if not missed(load, slo)] or loads[:1]
        return max(keeping, key=lambda load: load.requests_s / load.tpot_s), None
    return Load(model, *[most_within(model, slots, slo)] * 2), None


def missed(load: Load, slo: Slo) -> list[str]:
    """The limits this load does not keep."""
    pairs = (("ttft", slo.ttft_ms, load.ttft_s), ("tpot", slo.tpot_ms, load.tpot_s), ("e2e", slo.e2e_ms, load.e2e_s))
    return [name for name, limit_ms, value_s in pairs if limit_ms is not None and value_s * 1e3 > limit_ms]


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
    level = calibration.level(model.situation)
    source = f"{calibration.name}; {_SEEN[level]}"
    if calibration.local is not None:
        source += f"; corrected by {len(calibration.local.points)} measurements of your own"
    basis: Basis = "calibrated" if level in ("configuration", "family") else "modelled"

    def seconds(value_s: float, metric: Metric) -> Range:
        ms, band = value_s * 1e3, calibration.band(model.situation, metric)
        return Range(value=ms, low=ms * band.low, high=ms * band.high, basis=basis, source=source)

    def rate(value: float) -> Range:
        band = calibration.band(model.situation, "throughput")
        return Range(value=value, low=value * band.low, high=value * band.high, basis=basis, source=source)

    requests_s = load.requests_s * recipe.replicas
    output_tok_s = requests_s * workload.output_tokens
    limits = (("ttft", slo.ttft_ms, load.ttft_s), ("tpot", slo.tpot_ms, load.tpot_s), ("e2e", slo.e2e_ms, load.e2e_s))
    return Estimate(
        memory=breakdown,
        concurrency=round((load.requests + load.waiting) * recipe.replicas),
        ttft_ms=seconds(load.ttft_s, "ttft"),
        tpot_ms=seconds(load.tpot_s, "tpot"),
        e2e_ms=seconds(load.e2e_s, "ttft" if load.ttft_s > load.e2e_s / 2 else "tpot"),
        output_tok_s=rate(output_tok_s),
        requests_s=rate(requests_s),
        output_tok_s_per_gpu=output_tok_s / max(1, recipe.gpu_count),
        output_tok_s_per_user=1.0 / load.tpot_s,
        step_ms={name: value * 1e3 for name, value in model.step_s(load.requests).items()},
        load_s=(spec.weight_bytes or memory.checkpoint_bytes(spec)) / calibration.load_bytes_s + calibration.start_s,
        meets_slo=not missed(load, slo),
        slo_margin={name: (ms - value_s * 1e3) / ms for name, ms, value_s in limits if ms is not None},
    )


def most_within(model: Model, slots: int, slo: Slo) -> float:
    """The largest whole number of running requests that keeps the limits; 1 when none does. All times grow with it."""
    low, high = 1, max(1, slots)
    if not missed(Load(model, high, high), slo):
        return float(high)
    while high - low > 1:
        middle = (low + high) // 2
        if missed(Load(model, middle, middle), slo):
            high = middle
        else:
            low = middle
    return float(low)


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


def _load_for_rate(model: Model, slots: int, rate_requests_s: float) -> tuple[Load, str | None]:
    low, high = 1e-3, float(max(1, slots))
    full = Load(model, high, high)
    if full.requests_s < rate_requests_s:
        return full, f"one replica finishes {full.requests_s:.2f} requests/s, {rate_requests_s:.2f} arrive"
    for _ in range(_RATE_STEPS):
        middle = (low + high) / 2
        if Load(model, middle, middle).requests_s < rate_requests_s:
            low = middle
        else:
            high = middle
    return Load(model, high, high), None
