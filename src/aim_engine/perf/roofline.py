"""How long one engine step takes, and from that what users see.

A step computes decode tokens and some prefill tokens. Its time is a sum of features (`perf.features`), each an ideal time
multiplied by a coefficient, times the effects of the situation (`perf.situation`). The decode step's time divided by the tokens it
yields is the time per output token (TPOT excludes the first token, as serving benchmarks count it).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import situation as situations
from aim_engine.perf.calibration import Calibration, Law
from aim_engine.perf.features import CLASS_OF, CLASSES, NAMES, PAIRS, Features
from aim_engine.perf.situation import Situation
from aim_engine.recipe.recipe import Recipe
from aim_engine.workload import Workload

FIRST_TOKEN = ("fixed", "service", "step", "wait", "burst")
"""Features of the time to first token: 1, prefill of the prompt alone, a step under way, the queue of a server kept busy by the other
requests (M/D/1), and the prompts of all others that start together. Seconds, but for the first and the count x seconds of the last."""
OVERLAP = 3.0
"""Reading and computing of one kernel combine as (a^3 + b^3)^(1/3): nearly the longer of the two."""
_BUSIEST = 0.95
_PREFILL = tuple(CLASS_OF[number] == CLASSES.index("prefill") for number in range(len(NAMES)))
_LINES = tuple(line for _, line in NAMES.values())


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
    ) -> None:
        """`situation`: that of the recipe, unless measurements say more. Raises: MissingFigure."""
        self.workload = workload
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
        step = calibration.step
        factors = [step.factor(self.situation, shifted) for shifted in CLASSES]
        self.coefficients = [
            step.coefficients.get(name, 0.0) * factors[shifted] for name, shifted in zip(NAMES, CLASS_OF, strict=True)
        ]
        self._step_curve = step.curve(self.situation)
        self._grid: list[float] = []
        self._near = calibration.local.near(self.situation) if calibration.local is not None else None
        self._mean, self._median = (
            _First(law, self.situation) for law in (calibration.first_token, calibration.first_token_median)
        )

    def step_s(self, requests: float) -> dict[str, float]:
        """Ledger of one token of a steady step of one replica with `requests` running; adds up to `tpot_s`."""
        parts = combined([c * x for c, x in zip(self.coefficients, self.features.step(requests), strict=True)])
        scale = self.tpot_s(requests) / sum(parts)
        ledger = dict.fromkeys(_LINES, 0.0)
        for line, part in zip(_LINES, parts, strict=True):
            ledger[line] += part * scale
        return {line: seconds for line, seconds in ledger.items() if seconds > 0}

    def tpot_s(self, requests: float) -> float:
        """Mean time per output token with `requests` running on one replica. Never falls as they grow."""
        return _on_grid(self._grid, self._token_s, requests)

    def prompt_s(self) -> float:
        """Prefill of one prompt alone, in as many steps as it needs."""
        ideal = self.features.step(0.0, prefill=1.0)
        alone = sum(c * x for c, x, mine in zip(self.coefficients, ideal, _PREFILL, strict=True) if mine)
        return alone * math.exp(self._effects(self._step_curve, 1.0))

    def ttft_s(self, requests: float, tpot_s: float) -> float:
        """Mean time to first token in a closed loop of `requests`. Never falls as they grow."""
        return self._first(self._mean, requests)

    def ttft_median_s(self, requests: float) -> float:
        """Median time to first token in a closed loop of `requests`."""
        return self._first(self._median, requests)

    def _first(self, law: _First, requests: float) -> float:
        service = self.prompt_s()

        def exact(running: float) -> float:
            parts = self.first_token_features(running, self.tpot_s(running), service)
            total = sum(c * x for c, x in zip(law.coefficients, parts, strict=True))
            return total * math.exp(self._effects(law.curve, running) + self._own(running)[1])

        return _on_grid(law.grid, exact, requests)

    def first_token_features(self, requests: float, tpot_s: float, service_s: float) -> tuple[float, ...]:
        """The features in the order of `FIRST_TOKEN`."""
        others = max(0.0, requests / self.features.dp - 1)
        cycle_s = service_s + self.workload.output_tokens * tpot_s
        busy = min(_BUSIEST, others * service_s / cycle_s)
        wait_s = busy * service_s / (2 * (1 - busy))
        return 1.0, service_s, tpot_s, wait_s, others * service_s

    def _token_s(self, requests: float) -> float:
        parts = combined([c * x for c, x in zip(self.coefficients, self.features.step(requests), strict=True)])
        effects = self._effects(self._step_curve, requests) + self._own(requests)[0]
        return sum(parts) / self.features.yielded * math.exp(effects)

    def _own(self, requests: float) -> tuple[float, float]:
        """Logarithms that the user's own measurements add to the time per token and to the first token."""
        return self._near(requests) if self._near is not None else (0.0, 0.0)

    def _effects(self, curve: dict[str, float], requests: float) -> float:
        return sum(value * self.situation.at(shape, requests) for shape, value in curve.items() if value)


class _First:
    """One law of the time to first token in one situation."""

    __slots__ = ("coefficients", "curve", "grid")

    def __init__(self, law: Law, situation: Situation) -> None:
        speed = law.factor(situation, "all")
        self.coefficients = [law.coefficients.get(name, 0.0) * speed for name in FIRST_TOKEN]
        self.curve = law.curve(situation)
        self.grid: list[float] = []


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


def _on_grid(grid: list[float], exact: Callable[[float], float], requests: float) -> float:
    """`exact` at powers of two, kept from falling, and between them a straight line in logarithms. Extends `grid`.

    Effects are fitted slopes, which could outweigh a physical growth of next to nothing.
    """
    if requests <= 1:
        return exact(requests)
    position = math.log2(requests)
    lower, upper = math.floor(position), math.ceil(position)
    while len(grid) <= upper:
        value = exact(2.0 ** len(grid))
        grid.append(max(value, grid[-1]) if grid else value)
    if lower == upper:
        return grid[lower]
    share = position - lower
    return float(grid[lower] ** (1 - share) * grid[upper] ** share)
