"""Predictions for the rows of a measurement table, under the table's own column names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from aim_engine.errors import AimError
from aim_engine.perf import memory, predict
from aim_engine.perf.calibration import Calibration, pick
from aim_engine.perf.estimate import MemoryBreakdown, Range
from aim_engine.perf.roofline import Model
from aim_engine.planner import observed
from aim_engine.planner.table import Case, Unreadable
from aim_engine.units import GIB
from aim_engine.workload import Slo

MEANS = ("mean", "median")
"""Statistics of a table's latency columns that a steady-state prediction answers alike."""
Answer = dict[str, Any]


def answer(cases: Iterable[Case | Unreadable], calibrations: tuple[Calibration, ...]) -> list[Answer]:
    """One object for each row, in order: what would be measured, or `reason` why it cannot be said."""
    found: list[Answer] = []
    known: dict[bytes, Answer] = {}
    for case in cases:
        if isinstance(case, Unreadable):
            found.append({"row_id": case.row_id, "reason": case.reason})
            continue
        # Tables repeat a configuration from day to day.
        alike = msgspec.msgpack.encode(msgspec.structs.replace(case, row_id=""))
        if alike not in known:
            known[alike] = _row(case, calibrations)
        found.append({**known[alike], "row_id": case.row_id})
    return found


def _row(case: Case, calibrations: tuple[Calibration, ...]) -> Answer:
    found: Answer = {"row_id": case.row_id, "model": case.spec.model_id, "known_as": case.known_as}
    try:
        breakdown = memory.breakdown(case.spec, case.gpu, case.recipe, case.workload)
        found |= _memory(breakdown)
        found |= _speed(case, breakdown, calibrations)
    except AimError as err:
        found["reason"] = str(err)
    return found


def _memory(breakdown: MemoryBreakdown) -> Answer:
    return {
        "fits": breakdown.fits,
        "kv_cache_tokens": breakdown.kv_cache_tokens,
        "weights_gib_per_gpu": round(breakdown.weights_bytes / GIB, 4),
        "kv_gib_per_gpu": round(max(0, breakdown.kv_cache_bytes) / GIB, 4),
    }


def _speed(case: Case, breakdown: MemoryBreakdown, calibrations: tuple[Calibration, ...]) -> Answer:
    workload = case.workload
    calibration = pick(calibrations, case.gpu)
    model = observed.model(case, calibration)
    if case.kind == "llama_bench_prefill":
        return _prefill_alone(case, model, calibration)
    slots = observed.slots(case)
    load, _ = predict.settle(model, slots, case.recipe.replicas, workload, Slo(), "throughput")
    if case.kind in observed.STATIC or case.kind == "llama_bench_decode":
        offered = 1.0 if case.kind == "llama_bench_decode" else load.requests + load.waiting
        load = predict.Load(model, min(offered, float(slots)), offered, together=True)
    got = predict.estimate(case.spec, case.recipe, workload, Slo(), calibration, breakdown, model, load)
    total = 1 + workload.input_tokens / workload.output_tokens
    found: Answer = {"basis": got.tpot_ms.basis, "source": got.tpot_ms.source}
    for name, figure, scale in (
        ("output_tok_s", got.output_tok_s, 1.0),
        ("total_tok_s", got.output_tok_s, total),
        ("req_s", got.requests_s, 1.0),
        *((f"{kind}_ms_{mean}", figure, 1.0) for kind, figure in _times(got) for mean in MEANS),
    ):
        found |= _ranged(name, figure, scale)
    found |= _ranged("ttft_ms_median", got.ttft_ms, load.ttft_median_s / load.ttft_s)
    return found


def _prefill_alone(case: Case, model: Model, calibration: Calibration) -> Answer:
    """What a benchmark of prompt processing prints: prompt tokens of one request over the time they take."""
    rate = case.workload.input_tokens / model.prompt_s()
    band = calibration.band(model.situation, "throughput")
    figure = Range(value=rate, low=rate * band.low, high=rate * band.high, basis="modelled", source=calibration.name)
    return {"basis": figure.basis, "source": figure.source, **_ranged("total_tok_s", figure, 1.0)}


def _times(got: Any) -> tuple[tuple[str, Range], ...]:
    return (("ttft", got.ttft_ms), ("tpot", got.tpot_ms), ("itl", got.tpot_ms), ("e2e", got.e2e_ms))


def _ranged(name: str, figure: Range, scale: float) -> Mapping[str, float]:
    return {
        name: round(figure.value * scale, 4),
        f"{name}_low": round(figure.low * scale, 4),
        f"{name}_high": round(figure.high * scale, 4),
    }
