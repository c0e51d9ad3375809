"""Measurements of one's own: which can be used, and how much better predictions are with them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from aim_engine.errors import AimError
from aim_engine.perf import local
from aim_engine.perf.calibration import Calibration, pick
from aim_engine.perf.local import Local, Point
from aim_engine.planner import observed
from aim_engine.planner.table import Case, Unreadable

FARTHEST = 4.0
"""A measurement this many times off its prediction is one of something else."""
STRAY = 2.0
"""... or this many times off what the other measurements of its family deviate by."""
_FEW = 3
"""Measurements of a family from which its middle can be told."""
Row = Mapping[str, str]


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A row that is not used, and why."""

    row_id: str
    reason: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Median relative error of the measurements, by the shipped fit and with all other measurements known."""

    count: int
    before: float
    after: float


class Calibrated(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/calibrated/v1"):
    """What a table of measurements changes."""

    used: int
    dropped: tuple[Dropped, ...]
    tpot: Change | None
    ttft: Change | None
    local: Local
    """What is kept."""


def calibrate(
    rows: Sequence[Row], cases: Sequence[Case | Unreadable], sets: tuple[Calibration, ...], *, arch: str = "gfx942"
) -> Calibrated:
    """The correction that these rows call for, on top of the shipped set that serves `arch`: all cards have one, processors another."""
    points: list[Point] = []
    dropped: list[Dropped] = []
    base = next((one.name for one in sets if arch in one.archs), sets[0].name)
    for row, case in zip(rows, cases, strict=True):
        if isinstance(case, Unreadable):
            dropped.append(Dropped(row_id=case.row_id, reason=case.reason))
            continue
        try:
            calibration = pick(sets, case.gpu)
            if calibration.name != base:
                dropped.append(
                    Dropped(
                        row_id=case.row_id, reason=f"{case.gpu.name} is predicted by another set, {calibration.name}"
                    )
                )
                continue
            found = _point(row, case, calibration)
        except AimError as err:
            dropped.append(Dropped(row_id=case.row_id, reason=str(err)))
            continue
        if isinstance(found, Dropped):
            dropped.append(found)
        else:
            points.append(found)
    points, strays = _without_strays(points)
    dropped += strays
    steps, firsts = [one.step for one in points], [one.first for one in points]
    return Calibrated(
        used=len(points),
        dropped=tuple(dropped),
        tpot=_change(steps, local.left_out(points, steps)),
        ttft=_change(firsts, local.left_out(points, firsts)),
        local=local.solve(points, base),
    )


def _point(row: Row, case: Case, calibration: Calibration) -> Point | Dropped:
    seen = observed.observe(case, row)
    model = observed.model(case, calibration)
    tpot_s = model.tpot_s(seen.running)
    first_s = model.ttft_s(seen.running)
    step = first = None
    if seen.token_s is not None:
        step = math.log(seen.token_s / tpot_s)
    elif seen.cycle_s is not None:
        outputs = case.workload.output_tokens
        ours = tpot_s if case.kind in observed.STATIC else (first_s + (outputs - 1) * tpot_s) / outputs
        step = math.log(seen.cycle_s * seen.running / seen.offered / ours)
    if seen.first_token_s is not None and seen.offered <= seen.running:
        first = math.log(seen.first_token_s / first_s)
    if step is None and first is None:
        return Dropped(
            row_id=case.row_id, reason="it holds neither tpot, ttft, a throughput at a known load, nor e2e of a batch"
        )
    if seen.token_s and seen.cycle_s and case.kind == "serving" and seen.cycle_s < seen.token_s / STRAY:
        return Dropped(
            row_id=case.row_id,
            reason=f"its throughput needs {seen.cycle_s * 1e3:.1f} ms per token of a request, its tpot says {seen.token_s * 1e3:.1f} ms",
        )
    if step is not None and abs(step) > math.log(FARTHEST):
        return Dropped(
            row_id=case.row_id,
            reason=f"its time per token is {math.exp(step):.2g} times the predicted {tpot_s * 1e3:.1f} ms",
        )
    if first is not None and abs(first) > 2 * math.log(FARTHEST):
        first = None
    return local.point(case.row_id, model.situation, seen.running, step, first)


def _without_strays(points: Sequence[Point]) -> tuple[list[Point], list[Dropped]]:
    families: dict[tuple[str, str, str], list[float]] = {}
    for one in points:
        if one.step is not None:
            families.setdefault((one.family, one.engine, one.split), []).append(one.step)
    kept, dropped = [], []
    for one in points:
        among = families.get((one.family, one.engine, one.split), [])
        middle = statistics.median(among) if len(among) > _FEW else None
        if one.step is not None and middle is not None and abs(one.step - middle) > math.log(STRAY):
            factor = math.exp(one.step - middle)
            dropped.append(
                Dropped(row_id=one.row_id, reason=f"it is {factor:.2g} times off the other measurements of its model")
            )
        else:
            kept.append(one)
    return kept, dropped


def _change(before: Sequence[float | None], after: Sequence[float | None]) -> Change | None:
    def error(values: Sequence[float | None]) -> list[float]:
        return [abs(math.exp(-value) - 1) for value in values if value is not None]

    wrong = error(before)
    if not wrong:
        return None
    return Change(
        count=len(wrong), before=round(statistics.median(wrong), 4), after=round(statistics.median(error(after)), 4)
    )
