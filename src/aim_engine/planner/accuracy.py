"""How far predictions are from a table of measurements: by metric and group, in ranking, and in what the best choice loses."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from aim_engine.planner.batch import Answer
from aim_engine.planner.table import Case, Unreadable

METRICS = ("tpot_ms", "ttft_ms", "e2e_ms", "output_tok_s", "total_tok_s")
STATISTICS = ("mean", "median")
_GROUPED_BY = ("gpu", "engine", "family")
_ALIKE = (
    "model",
    "gpu",
    "engine",
    "precision",
    "input_len",
    "output_len",
    "load",
    "metric_kind",
    "spec_decoding",
    "disagg",
    "dp_attention",
    "whole experts",
)
"""What two rows share that differ in the number of devices alone."""
_CONFIGURATION = (
    "model", "precision", "kv_dtype", "gpu_count", "tp", "pp", "dp", "ep", "dp_attention", "spec_decoding", "disagg",
)  # fmt: skip
"""What makes two rows of a set the same alternative, measured twice."""
_SET = ("model_base", "gpu", "engine", "input_len", "output_len", "load", "metric_kind")
"""What alternatives of one decision share."""
_TIE = 0.01
"""Measurements this close are not ordered: the same configuration differs by as much from night to night."""
Row = Mapping[str, str]
Speeds = list[tuple[Row, float, float]]
"""Rows with their measured and predicted tokens per second and device."""


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Relative errors |predicted / measured - 1| of one metric over some rows."""

    count: int
    mean: float
    median: float
    p90: float
    bias: float
    """Median of predicted / measured - 1: above 0, predictions are too high."""
    covered_fraction: float
    """Share of measurements inside the predicted range."""


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether predictions order tokens per second and device as measurements do."""

    pairs: int
    right_fraction: float


class Regret(msgspec.Struct, frozen=True, kw_only=True):
    """What the predicted best of each set of alternatives loses against the measured best, in tokens per second and device."""

    sets: int
    mean: float
    p95: float
    best_chosen_fraction: float


class Accuracy(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/accuracy/v1"):
    """Predictions against a table."""

    rows: int
    answered: int
    """Rows with at least one predicted and measured figure."""
    unanswered: dict[str, int]
    """Reason -> rows."""
    metrics: dict[str, Errors]
    groups: dict[str, dict[str, Errors]]
    """`gpu`, `engine` or `family` -> its value -> errors of the time per output token."""
    ranking: dict[str, Ranking]
    """By number of devices, and all alternatives of a set."""
    regret: Regret | None


def score(rows: Sequence[Row], cases: Sequence[Case | Unreadable], answers: Sequence[Answer]) -> Accuracy:
    """Everything about `answers` to `rows`."""
    ratios: dict[str, list[tuple[float, bool]]] = {}
    grouped: dict[str, dict[str, list[tuple[float, bool]]]] = {name: {} for name in _GROUPED_BY}
    unanswered: dict[str, int] = {}
    answered = 0
    for row, case, answer in zip(rows, cases, answers, strict=True):
        pairs = list(_pairs(row, answer))
        answered += bool(pairs)
        if not pairs:
            reason = str(answer.get("reason") or "the row holds no figure that is predicted")
            unanswered[reason] = unanswered.get(reason, 0) + 1
        for name, ratio, covered in pairs:
            ratios.setdefault(name, []).append((ratio, covered))
            if name == "tpot_ms" and isinstance(case, Case):
                family = row.get("model_base") or case.spec.model_id
                for group, value in zip(_GROUPED_BY, (case.gpu.name, case.engine, family), strict=True):
                    grouped[group].setdefault(value, []).append((ratio, covered))
    speeds = [
        (row, theirs, ours)
        for row, answer in zip(rows, answers, strict=True)
        if (theirs := per_device(row, row)) is not None and (ours := per_device(answer, row)) is not None
    ]
    ranking, regret = choices(speeds)
    return Accuracy(
        rows=len(rows),
        answered=answered,
        unanswered=dict(sorted(unanswered.items(), key=lambda item: (-item[1], item[0]))),
        metrics={name: _errors(found) for name in METRICS if (found := ratios.get(name))},
        groups={
            group: {value: _errors(found) for value, found in sorted(by_value.items(), key=lambda item: -len(item[1]))}
            for group, by_value in grouped.items()
        },
        ranking=ranking,
        regret=regret,
    )


def choices(speeds: Speeds) -> tuple[dict[str, Ranking], Regret | None]:
    """Order and regret of (row, measured, predicted) tokens per second and device."""
    sets = [alternatives for alternatives in _sets(speeds, _SET) if len(alternatives) > 1]
    ranking = {
        "number of devices": _ranking(_sets(speeds, _ALIKE), differing=True),
        "alternatives of a set": _ranking(sets, differing=False),
    }
    return ranking, _regret(sets)


def _pairs(row: Row, answer: Answer) -> Iterable[tuple[str, float, bool]]:
    """(metric, predicted / measured, whether the range holds it) of every figure both have."""
    for metric in METRICS:
        names = [f"{metric}_{statistic}" for statistic in STATISTICS] if metric.endswith("_ms") else []
        for name in (*names, metric):
            measured = _number(row.get(name))
            stem = name if name in answer else f"{name}_mean"
            predicted = _number(answer.get(stem))
            if measured is None or predicted is None:
                continue
            low, high = (_number(answer.get(f"{stem}_{end}")) or predicted for end in ("low", "high"))
            yield metric, predicted / measured, low <= measured <= high
            break


def _errors(found: Sequence[tuple[float, bool]]) -> Errors:
    wrong = sorted(abs(ratio - 1) for ratio, _ in found)
    return Errors(
        count=len(found),
        mean=round(statistics.fmean(wrong), 4),
        median=round(statistics.median(wrong), 4),
        p90=round(_quantile(wrong, 0.9), 4),
        bias=round(statistics.median(ratio - 1 for ratio, _ in found), 4),
        covered_fraction=round(sum(covered for _, covered in found) / len(found), 4),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def per_device(figures: Mapping[str, object], row: Row) -> float | None:
    """Tokens per second and device of a row or of the answer to it."""
    devices = _number(row.get("gpu_count")) or _number(row.get("tp")) or 1.0
    for name in ("total_tok_s", "output_tok_s"):
        if _number(row.get(name)) is not None and (value := _number(figures.get(name))) is not None:
            return value / devices
    return None


def _load(row: Row) -> str:
    return row.get("concurrency_or_batch") or row.get("concurrency") or ""


def _cell(row: Row, name: str) -> str:
    """A cell by which rows are grouped; of dp_attention and ep counts only whether they are on."""
    if name == "load":
        return _load(row)
    if name == "dp_attention":
        return str(row.get(name) == "1")
    if name == "whole experts":
        return str((_number(row.get("ep")) or 1) > 1)
    return row.get(name) or ""


def _sets(speeds: Speeds, shared: Sequence[str]) -> list[Speeds]:
    """Rows that share these columns, or the set that the table itself names. Of one configuration the newest measurement counts:
    older ones show other releases, between which nobody chooses.
    """
    found: dict[tuple[str, ...], dict[tuple[str, ...], tuple[Row, float, float]]] = {}
    for entry in speeds:
        row = entry[0]
        named = row.get("decision_set")
        key = tuple(_cell(row, name) for name in shared)
        if named and shared is _SET:
            key = (named,)
        elif not _load(row):
            continue
        alternatives = found.setdefault(key, {})
        own = tuple(_cell(row, name) for name in _CONFIGURATION)
        if own not in alternatives or (row.get("source_date") or "") >= (alternatives[own][0].get("source_date") or ""):
            alternatives[own] = entry
    return [list(alternatives.values()) for alternatives in found.values()]


def _ranking(sets: Iterable[Speeds], *, differing: bool) -> Ranking:
    """`differing`: only pairs with different numbers of devices count."""
    pairs = right = 0
    for alternatives in sets:
        for (one, first, ours_first), (other, second, ours_second) in itertools.combinations(alternatives, 2):
            if differing and one.get("gpu_count") == other.get("gpu_count"):
                continue
            if abs(first / second - 1) <= _TIE:
                continue
            pairs += 1
            right += (first > second) == (ours_first > ours_second)
    return Ranking(pairs=pairs, right_fraction=round(right / pairs, 4) if pairs else 1.0)


def _regret(sets: Sequence[Speeds]) -> Regret | None:
    if not sets:
        return None
    lost = []
    for alternatives in sets:
        best = max(measured for _, measured, _ in alternatives)
        chosen = max(alternatives, key=lambda entry: entry[2])[1]
        lost.append(1 - chosen / best)
    lost.sort()
    return Regret(
        sets=len(lost),
        mean=round(statistics.fmean(lost), 4),
        p95=round(_quantile(lost, 0.95), 4),
        best_chosen_fraction=round(sum(value <= _TIE for value in lost) / len(lost), 4),
    )


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, str | int | float) and value != "" else None
    except ValueError:
        return None
    return number if number is not None and 0 < number < float("inf") else None
