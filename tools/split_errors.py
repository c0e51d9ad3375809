"""Say how far the predicted ratio of two splits' speeds is from the measured one: what the bands of `planner/rank.py` rest on.

    python tools/split_errors.py TABLE --models FOLDER

TABLE has the columns that `aim-engine accuracy` reads. Pairs are of one model, card, format, engine, request lengths and load; each is
predicted as plain vLLM, which is how the planner is asked about models that were measured with other engines.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from measured_splits import comparable, number

from aim_engine import workflow
from aim_engine.perf import calibration
from aim_engine.planner import batch, table
from aim_engine.planner.table import Case, Unreadable
from aim_engine.recipe.recipe import Parallelism
from aim_engine.settings import Settings

LOW_LOAD, NEAR = 8, 0.10
Row = dict[str, str]
_ALIKE = ("model_base", "gpu", "engine", "precision", "input_len", "output_len", "concurrency_or_batch")


class Pair(NamedTuple):
    """Two splits: second over first."""

    kind: str
    requests: float
    time_measured: float
    time_predicted: float
    rate_measured: float
    """Tokens per second and device."""
    rate_predicted: float


def main() -> None:
    """Read, predict, compare, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("table", type=Path)
    options.add_argument("--models", type=Path, help="configs of models that the catalogue lacks")
    asked = options.parse_args()
    rows = [row for row in table.parse(asked.table.read_text(encoding="utf-8"), asked.table.name) if comparable(row)]
    plain = [{**row, "engine": "vllm", "engine_version": ""} for row in rows]
    cases = workflow.table_reader(asked.models, Settings(offline=True), asked.table).read(plain)
    found = pairs(rows, cases, batch.answer(cases, calibration.load()))
    for kind in sorted({pair.kind for pair in found}):
        some = [pair for pair in found if pair.kind == kind]
        times = [math.log(pair.time_predicted / pair.time_measured) for pair in some]
        rates = [math.log(pair.rate_predicted / pair.rate_measured) for pair in some]
        sys.stdout.write(f"{kind}: {len(some)} pairs\n")
        sys.stdout.write(f"  time per token    {spread(times)}\n  tokens/s and GPU  {spread(rates)}\n")
    near = [
        pair
        for pair in found
        if pair.kind == "devices" and pair.requests <= LOW_LOAD and 1 - NEAR <= pair.time_predicted <= 1
    ]
    faster = sum(pair.time_measured < 1 for pair in near)
    sys.stdout.write(
        f"up to {LOW_LOAD} requests, more devices predicted up to {NEAR:.0%} quicker: {len(near)} pairs, {faster} were\n"
    )


def pairs(rows: list[Row], cases: list[Case | Unreadable], answers: list[batch.Answer]) -> list[Pair]:
    """Every two splits of one setup once, by the medians of what was measured of each."""
    groups: dict[tuple[str, ...], dict[Parallelism, list[tuple[Row, batch.Answer]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row, case, answer in zip(rows, cases, answers, strict=True):
        if isinstance(case, Case) and case.recipe.replicas == 1 and "output_tok_s" in answer:
            groups[tuple(row[name] for name in _ALIKE)][case.recipe.parallelism].append((row, answer))
    found = []
    for key, by_split in sorted(groups.items()):
        for first, second in itertools.combinations(sorted(by_split), 2):
            low, high = sorted((first, second), key=lambda split: (split.world_size, split.dp > 1, split.ep))
            kind = _kind(low, high)
            if kind is None:
                continue
            one, other = figures(by_split[low]), figures(by_split[high])
            found.append(Pair(kind, float(key[-1]), *(b / a for a, b in zip(one, other, strict=True))))
    return found


def figures(members: list[tuple[Row, batch.Answer]]) -> tuple[float, float, float, float]:
    """Time per token and tokens per second and device, each as measured and predicted."""
    column = "total_tok_s" if number(members[0][0], "total_tok_s") else "output_tok_s"
    columns = zip(
        *(
            (
                number(row, "tpot_ms_mean", "tpot_ms_median"),
                answer["tpot_ms_mean"],
                number(row, column) / number(row, "gpu_count"),
                answer[column] / number(row, "gpu_count"),
            )
            for row, answer in members
            if number(row, column)
        ),
        strict=True,
    )
    time_measured, time_predicted, rate_measured, rate_predicted = (statistics.median(each) for each in columns)
    return time_measured, time_predicted, rate_measured, rate_predicted


def spread(errors: list[float]) -> str:
    """Median with its sign, and how many errors are smaller."""
    ordered = sorted(abs(error) for error in errors)
    shares = ", ".join(
        f"{share:.0%} below {ordered[int(share * (len(ordered) - 1))]:.3f}" for share in (0.5, 0.67, 0.75, 0.9)
    )
    return f"log error {statistics.median(errors):+.3f}; {shares}"


def _kind(low: Parallelism, high: Parallelism) -> str | None:
    if low.world_size != high.world_size:
        return "devices" if (low.ep, low.dp > 1) == (high.ep, high.dp > 1) else None
    if low.ep or low.dp > 1:
        return None
    return "attention over data-parallel ranks" if high.dp > 1 else "whole experts" if high.ep else None


if __name__ == "__main__":
    main()
