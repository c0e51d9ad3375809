"""When nothing fits or keeps the limits: the nearest thing that would, in the order of least sacrifice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.hardware.gpu import Gpu
from aim_engine.perf.calibration import Calibration
from aim_engine.planner import rank
from aim_engine.planner.plan import Candidate, Inputs
from aim_engine.planner.search import search, weights_options
from aim_engine.units import format_gib, format_ms

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
    ranked: list[Candidate],
    *,
    backend: Backend,
    calibration: Calibration,
    catalogue: Callable[[], Sequence[Gpu]],
) -> Advice:
    """The way out: a limit to relax, another GPU count, another precision, another card."""
    if ranked:
        return _relax(inputs, ranked)
    servable, unsupported = weights_options(inputs, backend)
    if not servable:
        return Advice(
            summary=unsupported[0].reason,
            hint="name another checkpoint of the model"
            + (f", or plan for another card than {inputs.gpu.name}" if inputs.gpu.kind != "cpu" else ""),
        )
    if inputs.workload.rate_requests_s is not None:
        spread = _enough_replicas(inputs, available, backend, calibration)
        if spread is not None:
            return spread
    counts = _more_devices(inputs, available, backend, calibration)
    formats = _other_precision(inputs, available, backend, calibration)
    details = [*filter(None, (counts, formats))]
    smallest = _smallest_card(inputs, backend, calibration, catalogue)
    if smallest:
        details.append(smallest)
    name = inputs.model.model_id
    if not details:
        return Advice(
            summary=f"no catalogued card in one node holds {name}",
            hint="use a quantised checkpoint of the model, or a shorter context",
        )
    return Advice(summary="does not fit as asked", hint=details[0], details=tuple(details))


def _relax(inputs: Inputs, ranked: list[Candidate]) -> Advice:
    """The closest candidates, and by how much which limit would have to give."""
    closest = rank.distinct(ranked, CLOSEST)
    if not inputs.slo.ttft_ms and not inputs.slo.tpot_ms and not inputs.slo.e2e_ms:
        return Advice(summary="no candidate passes validation", hint="see the rejections")
    details = []
    for candidate in closest:
        missed = {name: margin for name, margin in candidate.estimate.slo_margin.items() if margin < 0}
        figures = ", ".join(
            f"{name} {format_ms(getattr(candidate.estimate, name + '_ms').value)}" for name in sorted(missed)
        )
        details.append(f"{candidate.recipe.key}: {figures}")
    best = closest[0]
    worst = min(best.estimate.slo_margin, key=lambda name: best.estimate.slo_margin[name])
    reached_ms = getattr(best.estimate, f"{worst}_ms").value
    return Advice(
        summary=f"no configuration keeps the limits; the closest misses {worst}",
        hint=f"relax it: --{worst} {_rounded_up_ms(reached_ms)}ms",
        details=tuple(details),
    )


def _enough_replicas(inputs: Inputs, available: int, backend: Backend, calibration: Calibration) -> Advice | None:
    """How many devices an arrival rate takes; None when the model does not fit at any rate."""
    unloaded = msgspec.structs.replace(inputs.workload, rate_requests_s=None)
    changed = msgspec.structs.replace(inputs, workload=unloaded, objective="throughput")
    found = search(changed, available, backend, calibration, ()).candidates
    keeping = [candidate for candidate in found if candidate.estimate.meets_slo]
    if not keeping or inputs.workload.rate_requests_s is None:
        return None
    best = max(keeping, key=lambda c: c.estimate.requests_s.value / max(1, c.recipe.gpu_count))
    each = best.estimate.requests_s.value / best.recipe.replicas
    replicas = math.ceil(inputs.workload.rate_requests_s / each)
    devices = replicas * best.recipe.parallelism.world_size
    where = "replicas" if inputs.gpu.kind == "cpu" else f"replicas on {devices} {inputs.gpu.name}"
    return Advice(
        summary=f"{inputs.workload.rate_requests_s:g} requests/s are more than this hardware finishes",
        hint=f"{replicas} {where} would do: one of {best.recipe.parallelism.describe()} finishes {each:.2f} requests/s; "
        "lower --rate, or spread over more nodes",
    )


def _more_devices(inputs: Inputs, available: int, backend: Backend, calibration: Calibration) -> str | None:
    if inputs.gpu.kind == "cpu":
        return None
    count = max(1, available)
    while (count := _next_power(count)) <= inputs.gpu.devices_per_node:
        if search(inputs, count, backend, calibration, ()).candidates:
            return f"aim-engine plan {inputs.model.model_id} --gpus {count}x{inputs.gpu.name}"
    return None


def _other_precision(inputs: Inputs, available: int, backend: Backend, calibration: Calibration) -> str | None:
    for precision in PRECISIONS:
        if precision == inputs.precision or inputs.model.quantization is not None:
            continue
        changed = msgspec.structs.replace(inputs, precision=precision)
        if search(changed, available, backend, calibration, ()).candidates:
            gpus = "" if inputs.cluster.origin == "detected" else f" --gpus {available}x{inputs.gpu.name}"
            return f"aim-engine plan {inputs.model.model_id} --precision {precision}{gpus}"
    return None


def _smallest_card(
    inputs: Inputs, backend: Backend, calibration: Calibration, catalogue: Callable[[], Sequence[Gpu]]
) -> str | None:
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
        changed = msgspec.structs.replace(inputs, gpu=gpu)
        if search(changed, count, backend, calibration, ()).candidates:
            return (
                f"aim-engine plan {inputs.model.model_id} --gpus {count}x{name}"
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
