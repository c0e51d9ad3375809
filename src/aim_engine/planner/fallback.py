"""When nothing fits or keeps the limits: the nearest thing that would, in the order of least sacrifice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.hardware.gpu import Gpu
from aim_engine.perf.calibration import Calibration
from aim_engine.planner import bounds, rank
from aim_engine.planner.family import MOST_REPLICAS, Option, too_many
from aim_engine.planner.plan import Candidate, Inputs
from aim_engine.planner.search import Found, search, weights_options
from aim_engine.recipe.database import Known
from aim_engine.units import format_gib, format_ms
from aim_engine.workload import Limit

PRECISIONS = ("fp8", "bf16")
CLOSEST = 3


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What to say, and the command or change to try next."""

    summary: str
    hint: str
    details: tuple[str, ...] = ()


def advise(
    inputs: Inputs,
    available: int,
    closest: Sequence[Candidate],
    found: Found,
    *,
    backend: Backend,
    calibration: Calibration,
    catalogue: Callable[[], Sequence[Gpu]],
    known: Sequence[Known] = (),
) -> Advice:
    """The way out: a limit to relax, another load, another GPU count, another precision, what somebody ran elsewhere, another card."""
    look = _Look(inputs, available, backend, calibration)
    if closest:
        return _relax(look, closest, found)
    servable, unsupported = weights_options(inputs, backend)
    if not servable:
        return Advice(
            summary=unsupported[0].reason,
            hint="name another checkpoint of the model"
            + (f", or plan for another card than {inputs.gpu.name}" if inputs.gpu.kind != "cpu" else ""),
        )
    budget = _raise_budget(look)
    if budget is not None:
        return Advice(summary=budget[0], hint=budget[1])
    if inputs.workload.rate_requests_s is not None:
        spread = _enough_replicas(look)
        if spread is not None:
            return spread
    if look.too_much():
        load = inputs.workload.rate_requests_s or inputs.workload.concurrency or 0
        return Advice(
            summary=f"a load of {load:,.0f} takes more than {MOST_REPLICAS:,} replicas of {inputs.gpu.name}",
            hint="check the number; a fleet of that size is planned in parts",
        )
    details = [*filter(None, (_more_devices(look), _other_precision(look), _default(inputs, known)))]
    smallest = _smallest_card(look, catalogue)
    if smallest:
        details.append(smallest)
    if not details:
        return Advice(
            summary=f"no catalogued card in one node holds {inputs.model.model_id}",
            hint="use a quantised checkpoint of the model, or a shorter context",
        )
    return Advice(summary="does not fit as asked", hint=details[0], details=tuple(details))


class _Look(NamedTuple):
    """A question and what is needed to ask it again in other words."""

    inputs: Inputs
    available: int
    backend: Backend
    calibration: Calibration

    def again(self, available: int | None = None, **changes: object) -> tuple[Option, ...]:
        """What a search with other inputs finds."""
        inputs = msgspec.structs.replace(self.inputs, **changes)
        count = self.available if available is None else available
        return search(inputs, count, self.backend, self.calibration, ()).options

    def too_much(self) -> bool:
        """Whether the load is beyond any number of replicas, while the model would fit."""
        inputs = msgspec.structs.replace(self.inputs, open_count=True, max_gpus=None, max_usd_h=None)
        found = search(inputs, self.available, self.backend, self.calibration, ())
        beyond = too_many(MOST_REPLICAS + 1)
        return not found.options and any(rejection.reason == beyond for rejection in found.rejected)

    def best(self, available: int | None = None, **changes: object) -> Option | None:
        """The best that keeps the limits, by closed forms."""
        options = self.again(available, **changes)
        ranked = rank.order(options, self.inputs.objective, open_count=bool(changes.get("open_count")))
        return ranked[0] if ranked and ranked[0].meets_slo else None


def _raise_budget(look: _Look) -> tuple[str, str] | None:
    """What the limits on devices and money would have to be; None when they are not what stands in the way."""
    inputs = look.inputs
    if inputs.max_gpus is None and inputs.max_usd_h is None:
        return None
    free = look.again(max_gpus=None, max_usd_h=None, objective="cost")
    keeping = [option for option in free if option.meets_slo]
    if not keeping:
        return None
    least = min(keeping, key=lambda option: (option.devices, option.key))
    price = inputs.price.usd_h * least.devices if inputs.price is not None else None
    ways, told = [], f"{least.replicas} x {least.split.describe()} on {least.devices} {inputs.gpu.name}"
    if inputs.max_gpus is not None and least.devices > inputs.max_gpus:
        ways.append(f"--max-gpus {least.devices}")
    if inputs.max_usd_h is not None and price is not None and price > inputs.max_usd_h:
        ways.append(f"--max-usd-h {price:.2f}")
        told += f" for {price:.2f} USD an hour"
    return (f"more is needed than is allowed: {told}", f"relax it: {' '.join(ways)}") if ways else None


def _relax(look: _Look, closest: Sequence[Candidate], found: Found) -> Advice:
    """The closest candidates, by how much which limit would have to give, and what else would do."""
    slo = look.inputs.slo
    best = closest[0]
    if not best.misses:
        return Advice(summary="no candidate passes validation", hint="see the rejections")
    families = {id(option.family): option.family for option in found.options}.values()
    limits = {limit.name: limit for limit in slo.limits}
    floors = [bound for limit in slo.limits if (bound := bounds.below(limit, families)) is not None]
    details = [
        f"{candidate.key}: "
        + ", ".join(f"{limits[name].describe()} {format_ms(ms)}" for name, _, ms in candidate.misses)
        for candidate in closest[:CLOSEST]
    ]
    details.extend(_other_ways(look))
    relaxed = " ".join(_option(limits[name], ms) for name, _, ms in sorted(best.misses))
    first = limits[best.misses[0][0]]
    summary = f"no configuration keeps the limits; the closest misses {first.describe()}"
    if floors:
        summary = f"a limit is below what these devices can do at all: {floors[0].why}"
    return Advice(summary=summary, hint=f"relax it: {relaxed}", details=tuple(details))


def _option(limit: Limit, reached_ms: float) -> str:
    """The limit as an option that what was reached keeps."""
    percentile = "" if limit.percentile is None else f"p{limit.percentile}:"
    return f"--{limit.name} {percentile}{_rounded_up_ms(reached_ms)}ms"


def _other_ways(look: _Look) -> list[str]:
    """What else than a limit could give: the load, the number of devices, what is done to the weights."""
    inputs, gpu = look.inputs, look.inputs.gpu
    name, found = inputs.model.model_id, []
    if inputs.workload.concurrency is not None:
        unloaded = msgspec.structs.replace(inputs.workload, concurrency=None)
        fewer = look.best(workload=unloaded, objective="throughput", open_count=False)
        if fewer is not None:
            count = int(fewer.load.requests) * fewer.replicas
            if count < inputs.workload.concurrency:
                found.append(f"--concurrency {count} keeps the limits on these devices")
    budget = _raise_budget(look)
    if budget is not None:
        found.append(f"{budget[1].removeprefix('relax it: ')}: {budget[0]}")
    elif not inputs.open_count and gpu.kind != "cpu":
        more = look.best(open_count=True, max_gpus=None, max_usd_h=None)
        if more is not None and more.devices > look.available:
            found.append(
                f"{more.replicas} x {more.split.describe()} on {more.devices} {gpu.name}: --gpus anyx{gpu.name}"
            )
    if not inputs.allow_lossy and inputs.precision is None and look.best(allow_lossy=True) is not None:
        found.append(
            f"aim-engine plan {name} --allow-lossy, with fp8 weights or cache that the checkpoint was not made for"
        )
    return found


def _enough_replicas(look: _Look) -> Advice | None:
    """How many devices an arrival rate takes; None when the model does not fit at any rate."""
    inputs = look.inputs
    best = look.best(open_count=True, max_gpus=None, max_usd_h=None)
    rate = inputs.workload.rate_requests_s
    if best is None or rate is None:
        return None
    where = "replicas" if inputs.gpu.kind == "cpu" else f"replicas on {best.devices} {inputs.gpu.name}"
    return Advice(
        summary=f"{rate:g} requests/s are more than this hardware finishes",
        hint=f"{best.replicas} {where} would do, each {best.split.describe()} with {rate / best.replicas:.2f} requests/s; "
        "lower --rate, or spread over more nodes",
    )


def _more_devices(look: _Look) -> str | None:
    inputs = look.inputs
    if inputs.gpu.kind == "cpu":
        return None
    count = max(1, look.available)
    while (count := _next_power(count)) <= inputs.gpu.devices_per_node:
        if look.again(count):
            return f"aim-engine plan {inputs.model.model_id} --gpus {count}x{inputs.gpu.name}"
    return None


def _other_precision(look: _Look) -> str | None:
    inputs = look.inputs
    for precision in PRECISIONS:
        if precision == inputs.precision or inputs.model.quantization is not None:
            continue
        if look.again(precision=precision):
            gpus = "" if inputs.cluster.origin == "detected" else f" --gpus {look.available}x{inputs.gpu.name}"
            return f"aim-engine plan {inputs.model.model_id} --precision {precision}{gpus}"
    return None


def _default(inputs: Inputs, known: Sequence[Known]) -> str | None:
    """The default recipe, which takes other or more devices than there are: what somebody ran, in the split that takes least."""
    if not known:
        return None
    least = min(known, key=lambda one: (inputs.gpu.name not in one.gpus, one.parallelism is None, one.gpu_count))
    gpu = inputs.gpu.name if inputs.gpu.name in least.gpus else least.gpus[0]
    count = "any" if least.parallelism is None else str(least.gpu_count)
    split = "" if least.parallelism is None else f"{least.split} "
    return (
        f"aim-engine plan {inputs.model.model_id} --gpus {count}x{gpu}"
        f"  (the default recipe, {split}{least.precision}: {least.provenance.source})"
    )


def _smallest_card(look: _Look, catalogue: Callable[[], Sequence[Gpu]]) -> str | None:
    """The least memory that fits in one node of any catalogued card, as a plan command."""
    options = []
    for gpu in catalogue():
        count = 1
        while count <= gpu.devices_per_node:
            options.append((gpu.memory_bytes * count, count, gpu.name, gpu))
            count *= 2
    for _, count, name, gpu in sorted(options, key=lambda option: option[:3]):
        if gpu.bandwidth_bytes_s is None or "bf16" not in gpu.compute_flop_s:
            continue
        if look.again(count, gpu=gpu):
            return (
                f"aim-engine plan {look.inputs.model.model_id} --gpus {count}x{name}"
                f"  (smallest in the catalogue, {format_gib(gpu.memory_bytes * count)})"
            )
    return None


def _next_power(count: int) -> int:
    return 1 << count.bit_length()


def _rounded_up_ms(value_ms: float) -> str:
    for step in (1, 5, 10, 50, 100, 500, 1000):
        if value_ms <= step * 20:
            return str(int(-(-value_ms // step) * step))
    return str(int(-(-value_ms // 1000) * 1000))
