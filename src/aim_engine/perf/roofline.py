"""How long one engine step takes, and from that what users see.

A step computes decode tokens and some prefill tokens. Its time is a sum of features (`perf.features`), each an ideal time
multiplied by a coefficient, times the effects of the situation (`perf.situation`). The decode step's time divided by the tokens it
yields is the time per output token (TPOT excludes the first token, as serving benchmarks count it).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import situation as situations
from aim_engine.perf.calibration import Calibration, Law
from aim_engine.perf.features import CLASS_OF, CLASSES, NAMES, PAIRS, Features
from aim_engine.perf.situation import Situation
from aim_engine.recipe.recipe import Recipe
from aim_engine.workload import Workload

FIRST_TOKEN = ("fixed", "layers", "service", "step", "wait", "burst")
"""Features of the time to first token: 1 and the layers (counts), prefill of the prompt alone, a step under way, the wait for prompts of
others in steady state, and what the common start of a benchmark adds to it (seconds)."""
OVERLAP = 3.0
"""Reading and computing of one kernel combine as (a^3 + b^3)^(1/3): nearly the longer of the two."""
_STEPS = 3
"""Most steps towards the fixed point of how many decode; each leaves a few percent of the distance."""
_NEAR = 0.002
"""Share of its value within which it is reached."""
_LINES = tuple(line for _, line in NAMES.values())


class Loop(NamedTuple):
    """How a closed loop is measured, which its first tokens show."""

    rounds: float = 10.0
    """Requests that follow each other in each place, the first of which start together. Public benchmarks send ten for each
    (--num-prompts CONC * 10: ROCm/ATOM@ffdf3bb .github/workflows/atom-vllm-benchmark.yaml)."""
    spread: float = 0.2
    """How much answer lengths vary, as a share of their mean: it takes the places out of step. Public benchmarks draw them from 0.8 to
    1.0 of the longest (--random-range-ratio 0.8 in the same file)."""


class _Point(NamedTuple):
    """One number of requests in flight."""

    decoding: float
    token_s: float
    first_s: float
    median_s: float


class Model:
    """Step times of one recipe on one device, with everything that does not depend on the load computed once."""

    def __init__(
        self,
        spec: ModelSpec,
        gpu: Gpu,
        recipe: Recipe,
        workload: Workload,
        calibration: Calibration,
        situation: Situation | None = None,
        loop: Loop = Loop(),  # noqa: B008 - a tuple of constants
    ) -> None:
        """`situation`: that of the recipe, unless measurements say more; `loop`: how they were made. Raises: MissingFigure."""
        self.workload = workload
        self.loop = loop
        self.calibration = calibration
        self.situation = situation or situations.of(spec, gpu, recipe, workload)
        self.features = Features(
            spec,
            gpu,
            recipe,
            workload,
            drafts=self.situation.drafts,
            separate_prefill=self.situation.prefills_elsewhere,
        )
        laws = calibration.of(self.situation)
        step = laws.step
        factors = [step.factor(self.situation, shifted) for shifted in CLASSES]
        self.coefficients = [
            step.coefficients.get(name, 0.0) * factors[shifted] for name, shifted in zip(NAMES, CLASS_OF, strict=True)
        ]
        self._step_curve = step.curve(self.situation)
        self._grid: list[_Point] = []
        self._prompt_alone_s: float | None = None
        self._near = calibration.local.near(self.situation) if calibration.local is not None else None
        self._mean, self._median = (_First(law, self.situation) for law in (laws.first_token, laws.first_token_median))

    def step_s(self, requests: float) -> dict[str, float]:
        """Ledger of one token of a steady step of one replica with `requests` in flight; adds up to `tpot_s`."""
        parts = self._parts(self.decoding(requests))
        scale = self.tpot_s(requests) / sum(parts)
        ledger = dict.fromkeys(_LINES, 0.0)
        for line, part in zip(_LINES, parts, strict=True):
            ledger[line] += part * scale
        return {line: seconds for line, seconds in ledger.items() if seconds > 0}

    def tpot_s(self, requests: float) -> float:
        """Mean time per output token with `requests` in flight on one replica. Never falls as they grow."""
        return self._at(requests).token_s

    def decoding(self, requests: float) -> float:
        """How many of `requests` in flight are past their first token, as Little's law over both parts of a request has it."""
        return self._at(requests).decoding

    def ttft_s(self, requests: float) -> float:
        """Mean time to first token in a closed loop of `requests`. Never falls as they grow."""
        return self._at(requests).first_s

    def ttft_median_s(self, requests: float) -> float:
        """Median time to first token in a closed loop of `requests`."""
        return self._at(requests).median_s

    def tpot_waiting_s(self, requests: float, first_s: float) -> float:
        """Mean time per output token where first tokens take `first_s`, as they do with other arrivals than a closed loop's."""
        decoding = self._past_first(requests, first_s, self.tpot_s(requests))
        return self._decoded_s(decoding) * self.factor(requests) / self.features.yielded

    def prompt_s(self) -> float:
        """Prefill of one prompt alone, in as many steps as it needs."""
        if self._prompt_alone_s is None:
            alone = combined([c * x for c, x in zip(self.coefficients, self.features.prompt(), strict=True)])
            self._prompt_alone_s = sum(alone) * self.factor(1.0, own=False)
        return self._prompt_alone_s

    def first_token_features(self, requests: float, tpot_s: float) -> tuple[float, ...]:
        """The features in the order of `FIRST_TOKEN`. Where requests arrive one by one, nothing starts together."""
        service_s = self.prompt_s()
        each = max(1.0, requests / self.features.dp)
        answer_s = self.workload.output_tokens * tpot_s
        wait_s = closed_wait_s(each, service_s, answer_s)
        burst_s = 0.0
        if self.situation.kind != situations.OPEN_LOOP:
            burst_s = started_together_s(each * service_s, answer_s, wait_s, self.loop)
        return 1.0, float(self.features.layers), service_s, tpot_s, wait_s, burst_s

    def factor(self, requests: float, *, own: bool = True) -> float:
        """What the effects of the situation, and with `own` the user's own measurements, multiply a step's time with."""
        return math.exp(self._effects(self._step_curve, requests) + (self._own(requests)[0] if own else 0.0))

    def _at(self, requests: float) -> _Point:
        """The point at powers of two, kept from falling, and between them a straight line in logarithms.

        Effects are fitted slopes, which could outweigh a physical growth of next to nothing.
        """
        if requests < 1:
            return self._point(requests)
        position = math.log2(requests)
        lower, upper = math.floor(position), math.ceil(position)
        grid = self._grid
        while len(grid) <= upper:
            point = self._point(2.0 ** len(grid))
            grid.append(_Point(*map(max, point, grid[-1])) if grid else point)
        if lower == upper:
            return grid[lower]
        share = position - lower
        return _Point(*(one ** (1 - share) * other**share for one, other in zip(grid[lower], grid[upper], strict=True)))

    def _point(self, requests: float) -> _Point:
        """How many decode is a fixed point: fewer make faster steps, beside which the time to first token weighs more."""
        own, own_first = self._own(requests)
        factor = math.exp(self._effects(self._step_curve, requests) + own) / self.features.yielded
        first, median = (math.exp(self._effects(law.curve, requests) + own_first) for law in (self._mean, self._median))
        decoding, token_s = requests, self._decoded_s(requests) * factor
        for _ in range(_STEPS if self.situation.kind == "serving" else 0):  # other kinds say themselves who decodes
            first_s = self._mean.of(self.first_token_features(requests, token_s)) * first
            before, decoding = decoding, self._past_first(requests, first_s, token_s)
            if abs(decoding - before) <= _NEAR * before:
                break
            token_s = self._decoded_s(decoding) * factor
        features = self.first_token_features(requests, token_s)
        return _Point(decoding, token_s, self._mean.of(features) * first, self._median.of(features) * median)

    def _past_first(self, requests: float, first_s: float, token_s: float) -> float:
        """Requests past their first token, by Little's law: as the share of a request's time that its other tokens take."""
        decode_s = self.workload.output_tokens * token_s
        return max(min(1.0, requests), requests * decode_s / (first_s + decode_s))

    def _parts(self, decoding: float) -> list[float]:
        return combined([c * x for c, x in zip(self.coefficients, self.features.step(decoding), strict=True)])

    def _decoded_s(self, decoding: float) -> float:
        times = [c * x for c, x in zip(self.coefficients, self.features.step(decoding), strict=True)]
        total = sum(times)
        for one, other in PAIRS:
            a, b = times[one], times[other]
            if a and b:
                total += (a**OVERLAP + b**OVERLAP) ** (1 / OVERLAP) - a - b
        return total

    def _own(self, requests: float) -> tuple[float, float]:
        """Logarithms that the user's own measurements add to the time per token and to the first token."""
        return self._near(requests) if self._near is not None else (0.0, 0.0)

    def _effects(self, curve: dict[str, float], requests: float) -> float:
        return sum(value * self.situation.at(shape, requests) for shape, value in curve.items() if value)


class _First:
    """One law of the time to first token in one situation."""

    __slots__ = ("coefficients", "curve")

    def __init__(self, law: Law, situation: Situation) -> None:
        speed = law.factor(situation, "all")
        self.coefficients = [law.coefficients.get(name, 0.0) * speed for name in FIRST_TOKEN]
        self.curve = law.curve(situation)

    def of(self, features: tuple[float, ...]) -> float:
        """The time before effects."""
        return sum(c * x for c, x in zip(self.coefficients, features, strict=True))


def combined(times: list[float]) -> list[float]:
    """Each feature's part of the step: kernels that read and compute at once count only what binds."""
    for one, other in PAIRS:
        a, b = times[one], times[other]
        longest = max(a, b)
        if longest <= 0:
            continue
        u, v = (a / longest) ** OVERLAP, (b / longest) ** OVERLAP
        together = longest * (u + v) ** (1 / OVERLAP) / (u + v)
        times[one], times[other] = together * u, together * v
    return times


def closed_wait_s(requests: float, service_s: float, answer_s: float) -> float:
    """Mean wait for prompts of others in a closed loop of `requests`, whose prompts take `service_s` one after the other and whose
    answers take `answer_s`.

    Approximate mean value analysis of one queue and one delay: who arrives sees what the others make in steady state, (n - 1) / n of
    everybody, and half of a prompt under way (Schweitzer 1979, Reiser 1979). R^2 + R (Z - s n) - s Z + s^2 (n - 1) / 2 = 0. Where
    prompts are the bottleneck it grows to n s - Z.
    """
    lag_s = service_s * requests - answer_s
    inside = lag_s * lag_s + 4 * (service_s * answer_s - service_s * service_s * (requests - 1) / 2)
    return max(0.0, (lag_s + math.sqrt(max(0.0, inside))) / 2 - service_s)


def started_together_s(all_prompts_s: float, answer_s: float, wait_s: float, loop: Loop) -> float:
    """What a common start adds to the mean wait of a closed loop over its rounds.

    In each round requests arrive spread over a window, at first of no width, and wait for half of what `all_prompts_s` exceeds it.
    They leave spread over whichever is longer, and answers of different lengths spread them further: variances add.
    """
    window_s = added_s = 0.0
    varied_s = (loop.spread * answer_s) ** 2
    rounds = max(1, round(loop.rounds))
    for _ in range(rounds):
        more_s = (all_prompts_s - window_s) / 2 - wait_s
        if more_s <= 0:
            break
        added_s += more_s
        window_s = math.sqrt(max(window_s, all_prompts_s) ** 2 + varied_s)
    return added_s / rounds
