"""Splits of a model that somebody measured beside each other: where both were, the measurement decides between them, not the model.

The curves of `data/measured/splits.json` come from public benchmarks; each setup is one source, engine, card, format and pair of request
lengths. What a split does at a load is read off its curve; two splits are compared within one setup only, so that engine and release
cancel out.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from aim_engine import facts
from aim_engine.errors import InvalidInput
from aim_engine.perf import situation
from aim_engine.planner.plan import Inputs
from aim_engine.planner.rank import ERROR_BAND_FRACTION, NOISE_FRACTION, Rated
from aim_engine.recipe.recipe import Parallelism
from aim_engine.workload import Objective

FILE = "measured/splits.json"
BELOW = 4.0
"""A load may be so many times smaller than the least that was measured: a step then takes as long as at the least."""


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One load of one server."""

    requests: int
    tpot_ms: float
    tok_s_per_gpu: float
    """Output tokens."""


class Curve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One split, by load."""

    split: str
    """As `Parallelism.describe`."""
    points: tuple[Point, ...]


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one source measured of one model in several splits."""

    family: str
    """As `situation.family`: models of the same shapes."""
    model: str
    gpu: str
    precision: str
    engine: str
    input_tokens: int
    output_tokens: int
    curves: tuple[Curve, ...]
    source: str

    def curve(self, split: Parallelism) -> Curve | None:
        """That of a split; None when it was not measured."""
        return next((each for each in self.curves if each.split == split.describe()), None)


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """Two splits in one setup, each at the load it would carry."""

    setup: Setup
    ours: Point
    theirs: Point

    def gain(self, objective: Objective) -> float:
        """How many times better the other split was for a goal. Throughput and energy count per device."""
        quicker = self.ours.tpot_ms / self.theirs.tpot_ms
        fuller = self.theirs.tok_s_per_gpu / self.ours.tok_s_per_gpu
        if objective == "latency":
            return quicker
        return quicker * fuller if objective == "balanced" else fuller


One = TypeVar("One", bound=Rated)


@functools.cache
def load(overlay: Path | None = None) -> tuple[Setup, ...]:
    """All setups. Raises: InvalidInput when the file is not of that type."""
    path = facts.find(FILE, overlay)
    if path is None:
        return ()
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Setup, ...])
    except msgspec.MsgspecError as err:
        raise InvalidInput(f"{path} is not a usable catalogue file", why=str(err)) from err


class Evidence:
    """The setups that speak of one question."""

    def __init__(self, inputs: Inputs, setups: Sequence[Setup] | None = None) -> None:
        family = situation.family(inputs.model)
        self._inputs = inputs
        self._setups = [
            setup
            for setup in (load() if setups is None else setups)
            if setup.family == family and setup.gpu == inputs.gpu.name
        ]

    def compare(self, ours: Rated, theirs: Rated) -> Beside | None:
        """What was measured of two configurations' splits by the engine nearest to the planned one that has a curve of `ours`."""
        if ours.split == theirs.split or (ours.precision, ours.kv_cache_dtype) != (
            theirs.precision,
            theirs.kv_cache_dtype,
        ):
            return None
        speaking = [
            one for one in self._setups if one.precision == ours.precision and one.curve(ours.split) is not None
        ]
        if not speaking:
            return None
        engine = min(speaking, key=self._strangeness).engine
        for setup in sorted(speaking, key=self._strangeness):
            if setup.engine != engine:
                continue
            first, second = (_at(setup, one.split, max(1.0, one.requests / one.replicas)) for one in (ours, theirs))
            if first is not None and second is not None:
                return Beside(setup=setup, ours=first, theirs=second)
        return None

    def gain(self, ours: Rated, theirs: Rated) -> float:
        """How many times better `theirs` was measured to be for the goal; 1 where nobody says."""
        beside, objective = self.compare(ours, theirs), self._inputs.objective
        if beside is None or objective == "cost":
            return 1.0
        more = max(1, theirs.devices) / max(1, ours.devices) if objective == "throughput" else 1.0
        return beside.gain(objective) * more

    def best(self, ranked: Sequence[One]) -> One | None:
        """The configuration that measurements put before the first of `ranked`; None when they put none there.

        By more than the same configuration differs from night to night; where another engine was measured, or somebody runs the first one
        as it is, by more than predictions err.
        """
        if not ranked or not self._setups:
            return None
        first, found, most = ranked[0], None, 1.0
        for other in ranked[1:]:
            if other.missed_fraction > max(0.0, first.missed_fraction) or other.waits > first.waits:
                continue
            gain = self.gain(first, other)
            if gain > most and gain > self._needed(first, other):
                found, most = other, gain
        return found

    def decides(self, ours: Rated, theirs: Rated) -> str:
        """What was measured, where it puts `ours` first; empty else."""
        return self.told(ours, theirs) if 1 / self.gain(ours, theirs) > self._needed(ours, theirs) else ""

    def told(self, ours: Rated, theirs: Rated) -> str:
        """What was measured of two splits, in words; empty when nothing was."""
        found = self.compare(ours, theirs)
        if found is None:
            return ""
        lengths = f"{found.setup.input_tokens}/{found.setup.output_tokens} tokens"
        figures = " to ".join(
            self._figures(found.setup, *pair) for pair in ((ours.split, found.ours), (theirs.split, found.theirs))
        )
        return f"measured beside each other: {figures} ({found.setup.engine}, {lengths}; {found.setup.source})"

    def _figures(self, setup: Setup, split: Parallelism, point: Point) -> str:
        """`tp8 9.1 ms per token and 52 tok/s/GPU at 4`; a load below all that were measured is told as the least of them."""
        curve = setup.curve(split)
        least = point.requests if curve is None else curve.points[0].requests
        text = f"{split.describe()} {point.tpot_ms:g} ms per token"
        if point.requests < least:
            return f"{text} at {least}, the least measured"
        if self._inputs.objective != "latency":
            text += f" and {point.tok_s_per_gpu:,.0f} tok/s/GPU"
        return f"{text} at {point.requests}"

    def _needed(self, ours: Rated, theirs: Rated) -> float:
        """How many times better a measurement must be to decide."""
        found = self.compare(ours, theirs)
        own = found is not None and found.setup.engine == self._inputs.engine and ours.generated
        return 1 + (NOISE_FRACTION if own else ERROR_BAND_FRACTION)

    def _strangeness(self, setup: Setup) -> tuple[int, float, str, str]:
        """How far a setup is from the question: another engine, or one that shares a part with it; request lengths in doublings."""
        engine, workload = self._inputs.engine, self._inputs.workload
        other = 0 if setup.engine == engine else 1 if engine in setup.engine.split("+") else 2
        distance = abs(math.log2(setup.input_tokens / workload.input_tokens))
        distance += abs(math.log2(setup.output_tokens / workload.output_tokens))
        return other, distance, setup.engine, setup.source


def _at(setup: Setup, split: Parallelism, requests: float) -> Point | None:
    """A split's curve at a load, between its points; None outside of what was measured."""
    curve = setup.curve(split)
    if curve is None:
        return None
    points = curve.points
    if requests > points[-1].requests or requests * BELOW < points[0].requests:
        return None
    if requests <= points[0].requests:
        first = points[0]
        share = requests / first.requests
        return Point(requests=round(requests), tpot_ms=first.tpot_ms, tok_s_per_gpu=first.tok_s_per_gpu * share)
    low, high = next(pair for pair in itertools.pairwise(points) if requests <= pair[1].requests)
    share = math.log(requests / low.requests) / math.log(high.requests / low.requests)
    return Point(
        requests=round(requests),
        tpot_ms=round(_between(low.tpot_ms, high.tpot_ms, share), 2),
        tok_s_per_gpu=round(_between(low.tok_s_per_gpu, high.tok_s_per_gpu, share), 1),
    )


def _between(low: float, high: float, share: float) -> float:
    return math.exp(math.log(low) * (1 - share) + math.log(high) * share)
