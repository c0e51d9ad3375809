"""What a row of measurements says about a step or a first token, in the terms of the speed model."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from aim_engine.perf import memory
from aim_engine.perf import situation as situations
from aim_engine.perf.calibration import Calibration
from aim_engine.perf.predict import capacity
from aim_engine.perf.roofline import Loop, Model
from aim_engine.perf.situation import Situation
from aim_engine.planner.table import Case

STATIC = ("offline_throughput", "latency")
"""Kinds in which nothing arrives while others run: prompts and answers share the time between them."""
_MOST_ROUNDS = 50.0
"""Of a closed loop; more do not move its mean."""
_COMPILED = 20.0
"""Times its median: a mean beyond it is that of one request which waited for kernels to be compiled, and says nothing of the others."""
_USUAL_DRAFTS = 3
"""Drafts of multi-token prediction where a table says only `mtp`: what the published recipes use."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """Measured times of one row; None where it does not say."""

    running: float
    """Requests running on one replica."""
    offered: float
    """Requests in flight for one replica."""
    decoding: float | None = None
    """Of those running, how many were past their first token, by Little's law over what was measured."""
    token_s: float | None = None
    """Time per output token of one request, the prefill of others included."""
    cycle_s: float | None = None
    """Time of a whole request divided by its output tokens, where tokens are not timed themselves."""
    first_token_s: float | None = None
    """Mean over requests."""
    first_token_median_s: float | None = None
    prompt_s: float | None = None
    """Prefill of one prompt alone."""


def situation(case: Case) -> Situation:
    """The situation of a row."""
    return situations.of(
        case.spec,
        case.gpu,
        case.recipe,
        case.workload,
        engine=case.engine,
        checkpoint=case.checkpoint,
        drafts=drafts(case.speculation),
        separate_prefill=case.disaggregated,
        profile=case.profile,
        kind=case.kind if case.kind != "serving" or case.workload.concurrency is not None else situations.OPEN_LOOP,
    )


def drafts(method: str) -> int:
    """Tokens speculated in each step by a method such as mtp3, `mtp n=2`, eagle3-1; 0 without speculation."""
    if not method:
        return 0
    found = re.search(r"(?:^mtp|n=|-)\s*(\d+)$", method)
    return int(found[1]) if found else _USUAL_DRAFTS


def model(case: Case, calibration: Calibration) -> Model:
    """The speed model of a row. Raises: MissingFigure."""
    return Model(case.spec, case.gpu, case.recipe, case.workload, calibration, situation(case), loop(case))


def loop(case: Case) -> Loop:
    """How a row's closed loop was measured, as far as it says: lengths drawn evenly from a share of the longest up to it."""
    usual, low = Loop(), case.length_ratio_min
    rounds = case.prompts / case.workload.concurrency if case.prompts and case.workload.concurrency else usual.rounds
    return Loop(min(_MOST_ROUNDS, max(1.0, rounds)), 2 * (1 - low) / (1 + low) if low < 1 else usual.spread)


def slots(case: Case) -> int:
    """Requests one replica runs at once, on average. Of those running, one is as likely at the start of its answer as at the end,
    so each holds half of it.
    """
    held = replace(case.workload, output_tokens=max(1, case.workload.output_tokens // 2))
    return max(1, capacity(case.recipe, memory.breakdown(case.spec, case.gpu, case.recipe, held)))


def observe(case: Case, row: Mapping[str, str]) -> Observation:
    """What the row measured."""
    replicas = case.recipe.replicas
    room = slots(case)
    if case.kind.startswith("llama_bench"):
        offered = running = 1.0
    else:
        offered = (case.workload.concurrency or room * replicas) / replicas
        running = min(offered, float(room))
    rate, total = _value(row, "output_tok_s"), _value(row, "total_tok_s")
    if case.kind == "llama_bench_prefill":
        return Observation(running=1.0, offered=1.0, prompt_s=case.workload.input_tokens / total if total else None)
    if case.kind == "llama_bench_decode":
        return Observation(running=1.0, offered=1.0, token_s=1.0 / rate if rate else None)
    token_ms = _value(row, "tpot_ms_mean") or _value(row, "tpot_ms_median")
    first_ms, first_median_ms = _value(row, "ttft_ms_mean"), _value(row, "ttft_ms_median")
    if first_ms and first_median_ms and first_ms > _COMPILED * first_median_ms:
        first_ms = None
    whole_ms = _value(row, "e2e_ms_mean") or _value(row, "e2e_ms_median")
    decoding = None
    if case.kind == "serving" and rate and token_ms:
        decoding = max(1.0, rate * token_ms * 1e-3 / replicas)
        if case.workload.concurrency is None:
            offered = running = min(float(room), decoding)
        decoding = min(decoding, offered)
    cycle_s = None
    if case.kind in STATIC and whole_ms:
        cycle_s = whole_ms * 1e-3 / case.workload.output_tokens
    elif rate and (case.workload.concurrency is not None or case.kind in STATIC):
        cycle_s = (offered if case.kind not in STATIC else running) * replicas / rate
    return Observation(
        running=max(1.0, running),
        offered=max(1.0, offered),
        decoding=decoding,
        token_s=token_ms * 1e-3 if token_ms and case.kind == "serving" else None,
        cycle_s=cycle_s,
        first_token_s=first_ms * 1e-3 if first_ms and case.kind == "serving" else None,
        first_token_median_s=first_median_ms * 1e-3 if first_median_ms and case.kind == "serving" else None,
    )


def _value(row: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(row.get(name) or "nan")
    except ValueError:
        return None
    return value if value > 0 and value != float("inf") else None
