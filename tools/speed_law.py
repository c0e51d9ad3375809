"""A law of the speed model fitted to rows: maximum a posteriori, robust, over logarithms of times.

Logarithms of coefficients are pulled towards physically plausible values, what engines and cards shift and the effects of situations
towards none, and residuals beyond a limit weigh less (Huber). Effects are those of `perf.situation.EFFECTS`, so each level of the
hierarchy explains only what the levels above it leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from aim_engine.perf.calibration import Law
from aim_engine.perf.features import CLASS_OF, CLASSES, NAMES, PAIRS
from aim_engine.perf.roofline import FIRST_TOKEN, OVERLAP
from aim_engine.perf.situation import EFFECTS, SHAPES, Situation

Array = NDArray[np.float64]
STEP_PRIOR = {
    "attention_weights": 1.6, "attention_flop": 2.0, "dense_weights": 1.6, "dense_flop": 2.0, "head_weights": 1.5,
    "head_flop": 2.0, "expert_weights": 1.4, "expert_flop": 2.5, "kv_read": 1.3, "kv_flop": 1.5, "full_context": 2e-9,
    "latent_context": 0.3e-9, "state_read": 4.0, "indexer_read": 1.5, "latent_rereads": 1.0, "mixed_attention_weights": 1.6,
    "mixed_attention_flop": 4.0, "mixed_dense_weights": 1.6, "mixed_dense_flop": 4.0, "mixed_expert_weights": 1.4,
    "mixed_expert_flop": 5.0, "prefill_attention_flop": 5.0, "prefill_sparse_flop": 6.0, "prefill_state_flop": 8.0,
    "prefill_layers": 20e-6, "prefill_activations": 5.0, "prefill_routed": 4.0, "prefill_allreduce": 1.5,
    "prefills": 2e-3, "allreduce_bytes": 1.8, "allreduces": 10e-6, "expert_exchange_bytes": 2.0,
    "expert_exchanges": 30e-6, "full_layers": 45e-6, "latent_layers": 50e-6, "state_layers": 50e-6,
    "expert_layers": 30e-6, "indexers": 60e-6, "step": 3e-4, "requests": 6e-6, "row_layers": 1.5e-7, "activations": 8.0,
    "routed": 4.0, "sampler": 2.0,
}  # fmt: skip
"""Plausible values: peak bandwidth and compute are reached to a half or two thirds in decoding and to a quarter in the mixed steps of
narrow formats, a kernel costs 10 to 30 us to launch, and what moves activations reads and writes them several times."""
FIRST_PRIOR = {"fixed": 0.04, "layers": 0.6e-3, "service": 1.4, "step": 1.5, "wait": 1.0, "burst": 1.0}
MEDIAN_PRIOR = {"fixed": 0.02, "layers": 0.3e-3, "service": 1.1, "step": 1.5, "wait": 0.7, "burst": 0.3}
"""A burst moves the mean of a benchmark more than its median."""
HALF_LIFE_MONTHS = 9.0
"""Engines change: the same configuration moved by up to a third within four months of releases."""


@dataclass(frozen=True)
class Row:
    """One observation of one time."""

    number: int
    """Of the table's rows."""
    situation: Situation
    features: Array
    running: float
    """Requests in flight on one replica."""
    seconds: float
    age_months: float = 0.0
    """Before the newest row of the table."""

    @property
    def family(self) -> str:
        """Shapes that models share."""
        return self.situation.family


@dataclass(frozen=True)
class Kind:
    """What is fitted: its features, where they should lie, and how far they may stray (standard deviations of logarithms)."""

    names: tuple[str, ...]
    prior: dict[str, float]
    classes: tuple[str, ...]
    class_of: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    spread: float
    shifts: dict[str, float]
    """Of all classes of an engine or a card; `wide` of one class of engines."""
    noise: float
    limit: float
    """Residuals beyond it weigh less."""
    wide: Mapping[str, float] = field(default_factory=dict)
    wider: float = 1.0
    """Times the spread of all effects."""
    without: frozenset[str] = frozenset()
    """Levels of effects that say nothing of this time."""
    others: float = 0.25
    """Weight of rows that are no closed loop of a server: batches, llama-bench, submissions tuned to one load."""


STEP = Kind(
    names=tuple(NAMES), prior=STEP_PRIOR, classes=CLASSES, class_of=CLASS_OF, pairs=PAIRS, spread=0.15,
    shifts={"engine": 0.2, "arch": 0.5}, wide={"latents": 1.5}, noise=0.08, limit=0.15, without=frozenset({"profile", "profile of engine"}),
)  # fmt: skip
FIRST = Kind(
    names=FIRST_TOKEN, prior=FIRST_PRIOR, classes=("all",), class_of=(0,) * len(FIRST_TOKEN), pairs=(), spread=0.25,
    shifts={"engine": 0.2, "arch": 0.4}, noise=0.25, limit=0.2, wider=2.0, others=0.1,
    without=frozenset({"kind", "kind of engine"}),
)  # fmt: skip


MEDIAN = replace(FIRST, prior=MEDIAN_PRIOR, spread=0.5)


class Fit:
    """The parameters of a law over some rows: coefficients, shifts, effects, in that order of columns."""

    def __init__(self, kind: Kind, rows: Sequence[Row]) -> None:
        self.kind, self.rows = kind, rows
        self.ideal = np.array([row.features for row in rows])
        self.target = np.log([row.seconds for row in rows])
        self.prior = np.log([kind.prior[name] for name in kind.names])
        self.member = np.array([[own == number for own in kind.class_of] for number in range(len(kind.classes))], float)
        self.shift_keys: dict[str, int] = {}
        self.effect_keys: dict[tuple[str, str], int] = {}
        spread: list[float] = []
        shifted: list[list[int]] = []
        placed: list[tuple[int, int, float]] = []
        for number, row in enumerate(rows):
            keys = (f"engine={row.situation.engine}", f"arch={row.situation.arch}")
            shifted.append([self.shift_keys.setdefault(key, len(self.shift_keys)) for key in keys])
            for key, level in row.situation.effects():
                if level in kind.without:
                    continue
                for shape, wide in zip(SHAPES, EFFECTS[level], strict=False):
                    column = self.effect_keys.setdefault((key, shape), len(self.effect_keys))
                    if column == len(spread):
                        spread.append(wide * kind.wider)
                    placed.append((number, column, row.situation.at(shape, row.running)))
        self.which = np.zeros((len(rows), len(self.shift_keys)))
        for number, keys_of_row in enumerate(shifted):
            self.which[number, keys_of_row] = 1
        self.effects = np.zeros((len(rows), len(self.effect_keys)))
        for number, column, value in placed:
            self.effects[number, column] += value
        self.shift_columns = len(self.shift_keys) * len(kind.classes)
        self.spread = np.concatenate([np.full(len(kind.names), kind.spread), self._shift_spread(), spread])
        sizes = Counter(row.family for row in rows)
        weight = np.array(
            [
                sizes[row.family] ** -0.5
                * (1.0 if row.situation.kind == "serving" else kind.others)
                * 0.5 ** (row.age_months / HALF_LIFE_MONTHS)
                for row in rows
            ]
        )
        self.weight = weight / weight.mean()

    def _shift_spread(self) -> Array:
        """Of each class of each shift."""
        levels = [key.split("=")[0] for key in self.shift_keys]
        wide = [self.kind.wide if level == "engine" else {} for level in levels]
        return np.array(
            [
                own.get(name, self.kind.shifts[level])
                for level, own in zip(levels, wide, strict=True)
                for name in self.kind.classes
            ]
        )

    def run(self, iterations: int = 10, start: Law | None = None) -> Law:
        """The law, by at most so many steps of Gauss and Newton, which are fewer from the law of nearly the same rows."""
        held = np.zeros(len(self.spread)) if start is None else self._held(start)
        for _ in range(iterations):
            predicted, slopes = self._predicted(held)
            residual = self.target - predicted
            robust = self.weight * np.minimum(1, self.kind.limit / np.maximum(np.abs(residual), 1e-9))
            robust /= self.kind.noise**2
            scaled = (slopes * np.sqrt(robust)[:, None]).astype(np.float32)
            curvature = (scaled.T @ scaled).astype(float) + np.diag(1 / self.spread**2)
            move = np.linalg.solve(curvature, slopes.T @ (robust * residual) - held / self.spread**2)
            held += np.clip(move, -0.7, 0.7)
            if np.abs(move).max() < 1e-2:
                break
        return self._law(held)

    def _held(self, law: Law) -> Array:
        """The parameters of a law in the order of columns; 0 for what it does not know."""
        coefficients = np.log([law.coefficients[name] for name in self.kind.names]) - self.prior
        shifts = [law.shifts.get(key, {}).get(name, 0.0) for key in self.shift_keys for name in self.kind.classes]
        effects = [
            dict(zip(SHAPES, law.effects.get(key, ()), strict=False)).get(shape, 0.0) for key, shape in self.effect_keys
        ]
        return np.concatenate([coefficients, shifts, effects])

    def _predicted(self, held: Array) -> tuple[Array, Array]:
        """Logarithms of times, and their derivatives by every parameter."""
        width, classes = len(self.kind.names), len(self.kind.classes)
        shift = held[width : width + self.shift_columns].reshape(-1, classes)
        logs = self.prior + held[:width] + self.which @ shift @ self.member
        total, shares = self._combined(np.exp(logs) * self.ideal)
        by_class = shares @ self.member.T
        shifts = [by_class * self.which[:, number : number + 1] for number in range(self.which.shape[1])]
        slopes = np.concatenate([shares, *shifts, self.effects], axis=1)
        return np.log(total) + self.effects @ held[width + self.shift_columns :], slopes

    def _combined(self, times: Array) -> tuple[Array, Array]:
        parts = times.copy()
        for one, other in self.kind.pairs:
            longest = np.maximum(times[:, one], times[:, other]) + 1e-30
            u, v = (times[:, one] / longest) ** OVERLAP, (times[:, other] / longest) ** OVERLAP
            together = longest * (u + v) ** (1 / OVERLAP) / np.maximum(u + v, 1e-300)
            parts[:, one], parts[:, other] = together * u, together * v
        total = parts.sum(1)
        return total, parts / total[:, None]

    def _law(self, held: Array) -> Law:
        width, classes = len(self.kind.names), self.kind.classes
        shift = held[width : width + self.shift_columns].reshape(-1, len(classes))
        found: dict[str, list[float]] = {}
        for (key, _), column in self.effect_keys.items():
            found.setdefault(key, []).append(rounded(held[width + self.shift_columns + column]))
        return Law(
            coefficients={
                name: rounded(np.exp(value))
                for name, value in zip(self.kind.names, self.prior + held[:width], strict=True)
            },
            shifts={
                key: {name: rounded(shift[number, place]) for place, name in enumerate(classes)}
                for key, number in self.shift_keys.items()
            },
            effects={key: tuple(values) for key, values in found.items()},
        )


def rounded(value: float) -> float:
    """Five digits: more than the fit knows."""
    return float(f"{value:.5g}")
