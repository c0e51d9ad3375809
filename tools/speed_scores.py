"""Held-out predictions beside what was measured, and what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from speed_law import Array, rounded


@dataclass(frozen=True)
class Scored:
    """One held-out prediction."""

    protocol: str
    metric: str
    level: str
    """How much of its situation the fit knew."""
    family: str
    number: int
    """Of the table's rows."""
    predicted: float
    measured: float


def errors(scored: Iterable[Scored]) -> Array:
    """Relative errors."""
    return np.array([abs(one.predicted / one.measured - 1) for one in scored])


def summary(scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Errors by protocol and metric."""
    found = {}
    for protocol in dict.fromkeys(one.protocol for one in scored):
        for metric in ("tpot", "ttft", "ttft median", "throughput"):
            error = errors(one for one in scored if one.protocol == protocol and one.metric == metric)
            if len(error):
                found[f"{protocol}, {metric}"] = {
                    "n": len(error), "mean": rounded(error.mean()), "median": rounded(np.median(error)),
                    "p90": rounded(np.quantile(error, 0.9)),
                }  # fmt: skip
    return found


def bands(scored: Sequence[Scored]) -> dict[str, dict[str, dict[str, float]]]:
    """Between these multiples of a prediction lay 90 % of what was measured, by how much of the situation was seen.

    For what was not seen, a family counts as the square root of its rows, so that the largest does not speak for all.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for level in ("configuration", "family", "unseen family", "unseen card"):
        for metric in ("tpot", "ttft", "throughput"):
            chosen = [one for one in scored if (one.level, one.metric) == (level, metric)]
            names = [one.family for one in chosen]
            sizes = Counter(names)
            if len(chosen) < 20:
                before = found.get("unseen family", {}).get(metric, {"low": 0.4, "high": 2.5})
                found.setdefault(level, {})[metric] = before | {"count": len(chosen)}
                continue
            ratios = np.array([one.measured / one.predicted for one in chosen])
            weights = np.array([sizes[name] ** (-0.5 if level.startswith("unseen") else 0.0) for name in names])
            order = np.argsort(ratios)
            share = np.cumsum(weights[order]) / weights.sum()
            low, high = (ratios[order][min(len(order) - 1, int(np.searchsorted(share, end)))] for end in (0.05, 0.95))
            found.setdefault(level, {})[metric] = {
                "low": rounded(min(low, 0.98)), "high": rounded(max(high, 1.02)), "count": len(ratios),
            }  # fmt: skip
    return found
