"""What measurements of one's own say beyond the shipped fit: a correction that is strong where they are and fades with distance.

A Gaussian process over the logarithm of measured / predicted. Two situations are alike as far as they share engine, card, model family,
split, format and configuration, and as their loads and lengths are close. Few points move what is like them, and little else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from aim_engine.perf.situation import MIDDLE_LOG2, MOST_LOG2, Situation

SITE = 0.08
"""Spread (standard deviation of logarithms) that everything measured at one place shares."""
PLATFORM = 0.12
"""... the same engine on the same card."""
FAMILY = 0.20
FAMILY_LOAD = 0.10
"""... of a family's slope over the doublings of the load."""
FAMILY_LENGTHS = 0.12
FAMILY_SPLIT = 0.12
FAMILY_ENGINE = 0.10
FAMILY_FORM = 0.10
FAMILY_DRAFTS = 0.18
CONFIGURATION = 0.15
NOISE = 0.05
"""Runs of the same configuration differ by as much."""
_NEAR_LOADS = 2.0
"""Doublings of the load over which a configuration's own deviation carries."""
_NEAR_LENGTHS = 0.7


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement, as what it deviates by."""

    row_id: str
    engine: str
    gpu: str
    family: str
    split: str
    form: str
    drafting: bool
    configuration: str
    load: float
    """Doublings of the load above the middle."""
    lengths: float
    step: float | None = None
    """Logarithm of measured / predicted time per token."""
    first: float | None = None
    """Logarithm of measured / predicted time to first token."""


class Local(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/calibration/v1"):
    """Measurements of one place, with the weights that predict from them."""

    base: str
    """The fit they correct; another one makes them void."""
    points: tuple[Point, ...]
    step_weights: tuple[float, ...]
    first_weights: tuple[float, ...]

    def near(self, situation: Situation) -> Callable[[float], tuple[float, float]]:
        """Requests of one replica -> logarithms to add to the time per token and to the time to first token."""
        here = point("", situation, 1.0)
        shared = [(_shared(here, other), _slope(here, other), _own(here, other), other.load) for other in self.points]

        def at(requests: float) -> tuple[float, float]:
            load = load_of(requests)
            step = first = 0.0
            for (level, slope, own, theirs), on_step, on_first in zip(
                shared, self.step_weights, self.first_weights, strict=True
            ):
                alike = level + slope * load * theirs + own * _close(load, theirs)
                step += alike * on_step
                first += alike * on_first
            return step, first

        return at


def load_of(requests: float) -> float:
    """Doublings above the middle load."""
    return min(MOST_LOG2, math.log2(max(1.0, requests))) - MIDDLE_LOG2


def point(
    row_id: str, situation: Situation, requests: float, step: float | None = None, first: float | None = None
) -> Point:
    """A measurement of a situation."""
    return Point(
        row_id=row_id,
        engine=situation.engine,
        gpu=situation.gpu,
        family=situation.family,
        split=situation.split,
        form=situation.form,
        drafting=situation.drafts > 0,
        configuration=situation.configuration,
        load=load_of(requests),
        lengths=situation.lengths,
        step=step,
        first=first,
    )


def solve(points: Sequence[Point], base: str) -> Local:
    """The correction that these points call for."""
    return Local(
        base=base,
        points=tuple(points),
        step_weights=_weights(points, [one.step for one in points])[0],
        first_weights=_weights(points, [one.first for one in points])[0],
    )


def left_out(points: Sequence[Point], values: Sequence[float | None]) -> list[float | None]:
    """What is left of each value when all other points predict it."""
    return _weights(points, values)[1]


def alike(one: Point, other: Point) -> float:
    """Covariance of the deviations at two points."""
    return (
        _shared(one, other)
        + _slope(one, other) * one.load * other.load
        + _own(one, other) * _close(one.load, other.load)
    )


def _shared(one: Point, other: Point) -> float:
    total = SITE**2
    same_engine = one.engine == other.engine
    if same_engine and one.gpu == other.gpu:
        total += PLATFORM**2
    if one.family != other.family:
        return total
    total += FAMILY**2 + FAMILY_LENGTHS**2 * one.lengths * other.lengths
    total += FAMILY_SPLIT**2 * (one.split == other.split)
    total += FAMILY_ENGINE**2 * same_engine
    total += FAMILY_FORM**2 * (one.form == other.form)
    return total + FAMILY_DRAFTS**2 * (one.drafting == other.drafting)


def _slope(one: Point, other: Point) -> float:
    return FAMILY_LOAD**2 if one.family == other.family else 0.0


def _own(one: Point, other: Point) -> float:
    if one.configuration != other.configuration:
        return 0.0
    return CONFIGURATION**2 * math.exp(-(((one.lengths - other.lengths) / _NEAR_LENGTHS) ** 2) / 2)


def _close(load: float, other: float) -> float:
    return math.exp(-(((load - other) / _NEAR_LOADS) ** 2) / 2)


def _weights(points: Sequence[Point], values: Sequence[float | None]) -> tuple[tuple[float, ...], list[float | None]]:
    """Weights of the points, 0 where there is no value, and what each value differs from what the others say."""
    import numpy as np

    known = [number for number, value in enumerate(values) if value is not None]
    weights, rest = [0.0] * len(points), [None] * len(points)
    if known:
        covariance = np.array([[alike(points[a], points[b]) for b in known] for a in known])
        inverse = np.linalg.inv(covariance + NOISE**2 * np.eye(len(known)))
        solved = inverse @ np.array([values[number] for number in known], dtype=float)
        for place, number in enumerate(known):
            weights[number] = float(solved[place])
            rest[number] = float(solved[place] / inverse[place, place])  # type: ignore[call-overload]
    return tuple(weights), rest  # type: ignore[return-value]
