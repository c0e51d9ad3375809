"""Fit the speed model to measurements, and write it with its held-out error.

    python tools/fit_speed.py TABLE.csv [--models DIR]

A robust maximum a posteriori fit: logarithms of coefficients pulled towards physically plausible values, what engines and cards shift
and the effects of situations pulled towards none, residuals weighted down beyond a limit (Huber). Each level of the hierarchy
(everything, card generation, engine, release, model family, checkpoint, configuration) explains only what the levels above leave.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aim_engine import settings, workflow
from aim_engine.errors import AimError
from aim_engine.perf import calibration, local
from aim_engine.perf.calibration import Calibration, Law
from aim_engine.perf.features import CLASS_OF, CLASSES, NAMES, PAIRS
from aim_engine.perf.roofline import FIRST_TOKEN, OVERLAP, Model
from aim_engine.perf.situation import SHAPES, Situation
from aim_engine.planner import accuracy, observed, table
from aim_engine.planner.observed import STATIC, Observation
from aim_engine.planner.table import Case

Array = NDArray[np.float64]
PAGE = Path("docs/accuracy.md")
OUT = Path("src/aim_engine/data/calibration/fitted.json")
STEP_PRIOR = {
    "attention_weights": 1.6, "attention_flop": 2.0, "dense_weights": 1.6, "dense_flop": 2.0, "head_weights": 1.5,
    "head_flop": 2.0, "expert_weights": 1.4, "expert_flop": 2.5, "kv_read": 1.6, "kv_flop": 1.5, "indexer_read": 1.5,
    "prefill_flop": 1.8, "prefill_expert_flop": 2.2, "prefill_attention_flop": 2.0, "prefill_weights": 1.5,
    "prefill_layers": 60e-6, "prefill_activations": 8.0, "prefill_allreduce": 1.8, "prefills": 5e-3,
    "allreduce_bytes": 1.8, "allreduces": 15e-6, "expert_exchange_bytes": 2.0, "expert_exchanges": 30e-6,
    "full_layers": 45e-6, "latent_layers": 60e-6, "state_layers": 60e-6, "expert_layers": 20e-6, "indexers": 60e-6,
    "step": 3e-4, "requests": 6e-6, "row_layers": 1.5e-7, "activations": 8.0, "sampler": 2.0,
}  # fmt: skip
"""Plausible values: peak bandwidth and compute are reached to a half or two thirds, a kernel costs 10 to 30 us to launch."""
STEP_SPREAD = dict.fromkeys(NAMES, 0.25) | dict.fromkeys(
    ("step", "requests", "row_layers", "expert_exchange_bytes", "expert_exchanges", "prefills"), 0.6
)
FIRST_PRIOR = {"fixed": 0.03, "service": 1.3, "step": 1.0, "wait": 1.0, "burst": 0.05}
FIRST_SPREAD = {"fixed": 0.8, "service": 0.5, "step": 0.8, "wait": 0.8, "burst": 1.0}
OTHER_KINDS = 0.1
"""Weight of rows that are no closed loop of a server: batches, llama-bench, submissions tuned to one load."""
KEPT = 0.2
"""Share of its spread that a coefficient keeps in the second pass."""
SHIFT_SPREAD = {"engine": 0.2, "arch": 0.25}
EFFECT_SPREAD: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("configuration", (0.15, 0.06, 0.07, 0.04, 0.05)),
    ("family|engine", (0.15, 0.05, 0.06)),
    ("family|split", (0.10, 0.04, 0.05)),
    ("family|checkpoint", (0.10, 0.03, 0.04)),
    ("family", (0.25, 0.06, 0.07)),
    ("form|part", (0.03,)),
    ("engine|release", (0.12,)),
    ("part", (0.15,)),
    ("arch", (0.15,)),
    ("form", (0.05,)),
    ("drafts|engine", (0.10,)),
    ("drafts", (0.15,)),
    ("separate", (0.20,)),
    ("kind", (0.40, 0.06, 0.06)),
)


@dataclass
class Row:
    """One observation of one time."""

    key: str
    case: Case
    situation: Situation
    features: Array
    running: float
    seconds: float
    family: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


class Fit:
    """One law fitted to rows."""

    def __init__(
        self,
        names: Sequence[str],
        prior: dict[str, float],
        spread: dict[str, float],
        classes: Sequence[str],
        class_of: Sequence[int],
        pairs: Sequence[tuple[int, int]],
        *,
        noise: float = 0.08,
        limit: float = 0.15,
        wider: float = 1.0,
    ) -> None:
        self.names, self.classes, self.pairs = names, classes, pairs
        self.member = np.array([[own == number for own in class_of] for number in range(len(classes))], float)
        self.prior = np.log([prior[name] for name in names])
        self.spread = np.array([spread[name] for name in names])
        self.noise, self.limit, self.wider = noise, limit, wider

    def run(self, rows: Sequence[Row], iterations: int = 8, base: Law | None = None) -> Law:
        """One law; `iterations` of Gauss-Newton at most.

        Without `base`, rows of other kinds than closed loops hardly weigh: they are few, of other engines and cards, and would bend what
        all share. With it, coefficients and shifts stay near those of `base`, and every row weighs fully in the effects.
        """
        shift_keys: dict[str, int] = {}
        effect_keys: dict[tuple[str, str], int] = {}
        effect_spread: list[float] = []
        shifted, placed = [], []
        for row in rows:
            keys = (f"engine={row.situation.engine}", f"arch={row.situation.arch}")
            shifted.append([shift_keys.setdefault(key, len(shift_keys)) for key in keys])
            own = []
            for key, shapes in row.situation.effects():
                spreads = _spread(key, row.situation)
                for shape, wide in zip(shapes, spreads, strict=False):
                    column = effect_keys.setdefault((key, shape), len(effect_keys))
                    if column == len(effect_spread):
                        effect_spread.append(wide * self.wider)
                    own.append((column, row.situation.at(shape, row.running)))
            placed.append(own)
        ideal = np.array([row.features for row in rows])
        count, width = ideal.shape
        which = np.zeros((count, len(shift_keys)))
        effects = np.zeros((count, len(effect_keys)))
        for number, (shifts, own) in enumerate(zip(shifted, placed, strict=True)):
            which[number, shifts] = 1
            for column, value in own:
                effects[number, column] += value
        classes, kinds = len(self.classes), len(shift_keys)
        shift_spread = np.repeat([SHIFT_SPREAD[key.split("=")[0]] for key in shift_keys], classes)
        spread = np.concatenate([self.spread, shift_spread, effect_spread])
        centre = np.zeros(len(spread))
        if base is not None:
            centre[:width] = np.log([base.coefficients[name] for name in self.names]) - self.prior
            spread[:width] *= KEPT
            for key, number in shift_keys.items():
                if key in base.shifts:
                    place = slice(width + number * classes, width + (number + 1) * classes)
                    centre[place] = [base.shifts[key][name] for name in self.classes]
                    spread[place] *= KEPT
        held = centre.copy()
        target = np.log([row.seconds for row in rows])
        sizes = Counter(row.family for row in rows)
        weight = np.array([sizes[row.family] ** -0.5 for row in rows])
        weight *= np.array([1.0 if base or row.situation.kind == "serving" else OTHER_KINDS for row in rows])
        weight /= weight.mean()
        for _ in range(iterations):
            shift = held[width : width + kinds * classes].reshape(kinds, classes)
            logs = self.prior + held[:width] + which @ shift @ self.member
            total, shares = self._combined(np.exp(logs) * ideal)
            residual = target - np.log(total) - effects @ held[width + kinds * classes :]
            by_class = shares @ self.member.T
            slopes = np.concatenate(
                [shares, *(by_class * which[:, number : number + 1] for number in range(kinds)), effects], axis=1
            )
            robust = weight * np.minimum(1, self.limit / np.maximum(np.abs(residual), 1e-9)) / self.noise**2
            scaled = (slopes * np.sqrt(robust)[:, None]).astype(np.float32)
            curvature = (scaled.T @ scaled).astype(float) + np.diag(1 / spread**2)
            move = np.linalg.solve(curvature, slopes.T @ (robust * residual) - (held - centre) / spread**2)
            held += np.clip(move, -0.7, 0.7)
            if np.abs(move).max() < 1e-2:
                break
        shift = held[width : width + kinds * classes].reshape(kinds, classes)
        found: dict[str, dict[str, float]] = {}
        for (key, shape), column in effect_keys.items():
            found.setdefault(key, {})[shape] = float(held[width + kinds * classes + column])
        return Law(
            coefficients={
                name: _round(np.exp(value)) for name, value in zip(self.names, self.prior + held[:width], strict=True)
            },
            shifts={
                key: {name: _round(shift[number, place]) for place, name in enumerate(self.classes)}
                for key, number in shift_keys.items()
            },
            effects={
                key: tuple(_round(by_shape.get(shape, 0.0)) for shape in SHAPES if shape in by_shape)
                for key, by_shape in found.items()
            },
        )

    def _combined(self, times: Array) -> tuple[Array, Array]:
        parts = times.copy()
        for one, other in self.pairs:
            longest = np.maximum(times[:, one], times[:, other]) + 1e-30
            u, v = (times[:, one] / longest) ** OVERLAP, (times[:, other] / longest) ** OVERLAP
            together = longest * (u + v) ** (1 / OVERLAP) / np.maximum(u + v, 1e-300)
            parts[:, one], parts[:, other] = together * u, together * v
        total = parts.sum(1)
        return total, parts / total[:, None]


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _spread(key: str, situation: Situation) -> tuple[float, ...]:
    names = [part.split("=")[0] for part in key.split("|")]
    if key == situation.configuration:
        kind = "configuration"
    elif names[0] == "family":
        kind = "|".join(names)
    elif names[0] in ("engine", "kernels", "scheduler"):
        kind = "engine|release" if names[-1] == "release" else "part" if len(names) == 1 else "form|part"
    elif names[0] == "drafts":
        kind = "drafts|engine" if "engine" in names else "drafts"
    elif names[0] == "separate prefill":
        kind = "separate"
    else:
        kind = names[0]
    return dict(EFFECT_SPREAD)[kind]


def step_fit() -> Fit:
    """How steps are fitted."""
    return Fit(tuple(NAMES), STEP_PRIOR, STEP_SPREAD, CLASSES, CLASS_OF, PAIRS)


def first_fit() -> Fit:
    """How times to first token are fitted."""
    return Fit(
        FIRST_TOKEN, FIRST_PRIOR, FIRST_SPREAD, ("all",), (0,) * len(FIRST_TOKEN), (), noise=0.2, limit=0.35, wider=1.6
    )


@dataclass
class Data:
    """What a table holds, ready to fit."""

    rows: list[dict[str, str]]
    cases: list[Case]
    seen: list[Observation]
    bare: list[Model]
    """Models without any fit, for their features."""
    folds: list[int]


def read(path: Path, models: Path | None, folds: int = 5) -> tuple[Data, Counter[str], str]:
    """The rows of a table that may be fitted, why others are left out, and the hash of the table."""
    content = path.read_text(encoding="utf-8")
    rows = table.parse(content, str(path))
    kept = [row for row in rows if row.get("is_latest", "1") == "1" and row.get("quality", "") != "C-suspect"]
    reader = workflow.table_reader(models, settings.load({"offline": True}))
    plain = Calibration(
        name="none", archs=(), step=Law(coefficients={}), first_token=Law(coefficients={}), first_token_median=Law(coefficients={}), bands={}, load_bytes_s=1.0,
        start_s=0.0, provenance=next(iter(calibration.load())).provenance,
    )  # fmt: skip
    data, left = Data([], [], [], [], []), Counter[str]()
    for row, case in zip(kept, reader.read(kept), strict=True):
        if not isinstance(case, Case):
            left[case.reason] += 1
            continue
        try:
            observation = observed.observe(case, row)
            model = observed.model(case, plain)
        except AimError as err:
            left[str(err)] += 1
            continue
        data.rows.append(row)
        data.cases.append(case)
        data.seen.append(observation)
        data.bare.append(model)
        name = row.get("config_id") or case.row_id
        data.folds.append(int(hashlib.sha256(name.encode()).hexdigest(), 16) % folds)
    return data, left, hashlib.sha256(content.encode()).hexdigest()


PREFILL = np.array([CLASS_OF[number] == CLASSES.index("prefill") for number in range(len(NAMES))])


def step_rows(data: Data, which: Iterable[int], first: Callable[[int], float] | None) -> list[Row]:
    """Observations of steps. `first` predicts time to first token, which a whole cycle contains."""
    found = []
    for number in which:
        case, seen, model = data.cases[number], data.seen[number], data.bare[number]
        if seen.prompt_s is not None:
            features = np.where(PREFILL, model.features.step(0.0, prefill=1.0), 0.0)
            seconds = seen.prompt_s
        else:
            token_s = seen.token_s
            if token_s is None and seen.cycle_s is not None:
                token_s = seen.cycle_s
                if case.kind not in STATIC and first is not None:
                    token_s = max(token_s / 2, token_s - first(number) / case.workload.output_tokens)
            if token_s is None:
                continue
            features = np.array(model.features.step(seen.running)) / model.features.yielded
            seconds = token_s
        found.append(
            Row(str(number), case, model.situation, features, seen.running, seconds, family=model.situation.family)
        )
    return found


Laws = tuple[Law, Law, Law]


def calibrated(step: Law, first: Law | None = None, median: Law | None = None) -> Calibration:
    """A set of these laws, to predict with."""
    found = calibration.load()[0]
    plain = Law(coefficients=FIRST_PRIOR)
    return Calibration(
        name="fit", archs=(), step=step, first_token=first or plain, first_token_median=median or plain, bands=found.bands,
        load_bytes_s=1.0, start_s=0.0, provenance=found.provenance,
    )  # fmt: skip


def first_rows(data: Data, which: Iterable[int], step: Law, name: str) -> list[Row]:
    """Observations of times to first token, on top of the steps that `step` predicts."""
    found, using = [], calibrated(step)
    for number in which:
        case, seen = data.cases[number], data.seen[number]
        seconds = getattr(seen, name)
        if seconds is None or seen.offered > seen.running:
            continue
        model = observed.model(case, using)
        features = model.first_token_features(seen.running, model.tpot_s(seen.running), model.prompt_s())
        family = model.situation.family
        found.append(Row(str(number), case, model.situation, np.array(features), seen.running, seconds, family=family))
    return found


def fit(data: Data, which: Sequence[int]) -> Laws:
    """The three laws of some rows. A first fit of steps tells first tokens, which whole cycles contain."""
    timed = [number for number in which if data.seen[number].token_s or data.seen[number].prompt_s]
    step = step_fit().run(step_rows(data, timed, None), 4)
    using = calibrated(step, first_fit().run(first_rows(data, which, step, "first_token_s")))

    def first_s(number: int) -> float:
        model = observed.model(data.cases[number], using)
        running = data.seen[number].running
        return model.ttft_s(running, model.tpot_s(running))

    observations = step_rows(data, which, first_s)
    step = step_fit().run(observations, 6, base=step_fit().run(observations))
    mean, median = (
        first_fit().run(first_rows(data, which, step, name)) for name in ("first_token_s", "first_token_median_s")
    )
    return step, mean, median


@dataclass
class Scored:
    """One held-out prediction."""

    protocol: str
    metric: str
    level: str
    number: int
    predicted: float
    measured: float


def score(data: Data, which: Iterable[int], laws: Laws, protocol: str) -> list[Scored]:
    """Predictions of rows beside what was measured."""
    found, using = [], calibrated(*laws)
    for number in which:
        case, seen = data.cases[number], data.seen[number]
        model = observed.model(case, using)
        level = using.level(model.situation)
        pairs: list[tuple[str, float, float | None]] = []
        if seen.prompt_s is not None:
            pairs.append(("throughput", 1 / model.prompt_s(), 1 / seen.prompt_s))
        else:
            tpot_s = model.tpot_s(seen.running)
            first_s = model.ttft_s(seen.running, tpot_s)
            pairs.append(("tpot", tpot_s, seen.token_s))
            if seen.offered <= seen.running:
                pairs.append(("ttft", first_s, seen.first_token_s))
                pairs.append(("ttft median", model.ttft_median_s(seen.running), seen.first_token_median_s))
            outputs = case.workload.output_tokens
            cycle_s = (
                tpot_s
                if case.kind in STATIC or case.kind.startswith("llama")
                else (first_s + (outputs - 1) * tpot_s) / outputs
            )
            if seen.offered > seen.running and case.kind not in STATIC:
                cycle_s *= seen.offered / seen.running
            pairs.append(("throughput", 1 / cycle_s, 1 / seen.cycle_s if seen.cycle_s else None))
        found += [
            Scored(protocol, metric, level, number, ours, theirs)
            for metric, ours, theirs in pairs
            if theirs is not None
        ]
    return found


def held_out(data: Data, group: Callable[[int], str], protocol: str, least: int = 1) -> list[Scored]:
    """Predictions of every row by a fit that has not seen its group."""
    groups: dict[str, list[int]] = {}
    for number in range(len(data.cases)):
        groups.setdefault(group(number), []).append(number)
    found = []
    for name, test in sorted(groups.items()):
        if len(test) < least:
            continue
        inside = set(test)
        train = [number for number in range(len(data.cases)) if number not in inside]
        found += score(data, test, fit(data, train), protocol)
        print(f"  {protocol} {name}: {len(test)} rows", file=sys.stderr, flush=True)
    return found


def family_groups(data: Data, least: int = 15) -> Callable[[int], str]:
    """Each family alone, as the table names families; small ones share a few groups, whole families each."""
    names = [row.get("model_base") or model.situation.family for row, model in zip(data.rows, data.bare, strict=True)]
    sizes = Counter(names)

    def group(number: int) -> str:
        family = names[number]
        if sizes[family] >= least:
            return family
        return f"small families {int(hashlib.sha256(family.encode()).hexdigest(), 16) % 4}"

    return group


def few_shot(data: Data, scored: Sequence[Scored], shots: int = 5, draws: int = 10) -> list[Scored]:
    """Families held out, but for a few of their measurements, which correct the rest as `aim-engine calibrate` does."""
    group, source = family_groups(data), np.random.default_rng(0)
    families: dict[str, list[Scored]] = {}
    for one in scored:
        if one.protocol == "family held out" and one.metric == "tpot" and not group(one.number).startswith("small"):
            families.setdefault(group(one.number), []).append(one)
    found = []
    for members in families.values():
        points = [
            local.point(
                "",
                data.bare[one.number].situation,
                data.seen[one.number].running,
                float(np.log(one.measured / one.predicted)),
            )
            for one in members
        ]
        for _ in range(draws):
            known = set(source.choice(len(members), min(shots, len(members) - 1), replace=False).tolist())
            held = local.solve([points[number] for number in known], "")
            for number in source.choice(len(members), min(30, len(members)), replace=False).tolist():
                if number not in known:
                    one = members[number]
                    moved = held.near(data.bare[one.number].situation)(data.seen[one.number].running)[0]
                    found.append(
                        Scored(
                            f"family held out but {shots} rows",
                            "tpot",
                            "few",
                            one.number,
                            one.predicted * float(np.exp(moved)),
                            one.measured,
                        )
                    )
    return found


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
                    "n": len(error), "mean": _round(error.mean()), "median": _round(np.median(error)),
                    "p90": _round(np.quantile(error, 0.9)),
                }  # fmt: skip
    return found


def bands(data: Data, scored: Sequence[Scored]) -> dict[str, dict[str, dict[str, float]]]:
    """Between these multiples of a prediction lay 90 % of what was measured, by how much of the situation was seen.

    For what was not seen, a family counts as the square root of its rows, so that the largest does not speak for all.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for level in ("configuration", "family", "unseen family", "unseen card"):
        for metric in ("tpot", "ttft", "throughput"):
            chosen = [one for one in scored if (one.level, one.metric) == (level, metric)]
            names = [data.bare[one.number].situation.family for one in chosen]
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
                "low": _round(min(low, 0.98)), "high": _round(max(high, 1.02)), "count": len(ratios),
            }  # fmt: skip
    return found


def page(data: Data, scored: Sequence[Scored], left: Counter[str], date: str) -> str:
    """The page of held-out errors and honest limits."""

    def table_of(group: Callable[[Scored], str], chosen: Sequence[Scored], least: int = 5) -> list[str]:
        groups: dict[str, list[Scored]] = {}
        for one in chosen:
            groups.setdefault(group(one), []).append(one)
        lines = ["| | rows | median | mean | bias |", "|---|---|---|---|---|"]
        for name, found in sorted(groups.items(), key=lambda item: -float(np.median(errors(item[1])))):
            if len(found) >= least:
                error, bias = errors(found), np.median([one.predicted / one.measured - 1 for one in found])
                lines.append(f"| {name} | {len(found)} | {np.median(error):.1%} | {error.mean():.1%} | {bias:+.0%} |")
        return lines

    unseen = [one for one in scored if one.protocol == "family held out" and one.metric == "tpot"]
    known = [one for one in scored if one.protocol == "five folds" and one.metric == "tpot"]
    lines = [
        "# Accuracy",
        "",
        f"How far predictions are from {len(data.cases):,} public measurements on AMD devices, each predicted by a fit that had not seen it.",
        f"`tools/fit_speed.py` fits the model and writes this page ({date}). `aim-engine accuracy TABLE` says the same of your own.",
        "",
        "| held out, figure | rows | median | mean | 90th percentile |",
        "|---|---|---|---|---|",
    ]
    for name, found in summary(scored).items():
        lines.append(
            f"| {name} | {found['n']:.0f} | {found['median']:.1%} | {found['mean']:.1%} | {found['p90']:.1%} |"
        )
    lines += [
        "",
        "Five folds: configurations at random, other loads of them may be known. Family held out: no model of these shapes known, with",
        "any engine; but 5 rows: with five of its measurements given to `aim-engine calibrate`. Configuration held out: no load of it",
        "known. Card generation held out: nothing known of the card. Means suffer from single rows that measured something else.",
        "",
        "## Choices",
        "",
        "| held out | GPU counts in right order | pairs | lost by our choice, mean | 95th percentile | sets |",
        "|---|---|---|---|---|---|",
    ]
    for protocol in dict.fromkeys(one.protocol for one in scored if one.metric == "throughput"):
        speeds: accuracy.Speeds = [
            (data.rows[one.number], measured, measured * one.predicted / one.measured)
            for one in scored
            if one.protocol == protocol and one.metric == "throughput"
            and (measured := accuracy.per_device(data.rows[one.number], data.rows[one.number])) is not None
        ]  # fmt: skip
        ranking, regret = accuracy.choices(speeds)
        counts = ranking["number of devices"]
        if regret is not None:
            lines.append(
                f"| {protocol} | {counts.right_fraction:.1%} | {counts.pairs} | {regret.mean:.1%} | {regret.p95:.1%} | {regret.sets} |"
            )
    lines += ["", "## Ranges", "", "A range holds 90 % of held-out measurements of its kind.", ""]
    lines += ["| what is known | time per token | first token | throughput |", "|---|---|---|---|"]
    for level, by_metric in bands(data, scored).items():
        cells = [
            f"x{by_metric[metric]['low']:.2f} to x{by_metric[metric]['high']:.2f}"
            for metric in ("tpot", "ttft", "throughput")
        ]
        lines.append(f"| {level} | {' | '.join(cells)} |")
    lines += ["", "## Families, none of whose measurements were known", "", "Time per output token, worst first.", ""]
    lines += table_of(
        lambda one: data.rows[one.number].get("model_base") or data.cases[one.number].spec.model_id, unseen
    )
    lines += ["", "## Engines, family held out", ""]
    lines += table_of(lambda one: data.cases[one.number].engine, unseen)
    lines += ["", "## Cards, five folds", ""]
    lines += table_of(lambda one: data.cases[one.number].gpu.name, known)
    lines += [
        "",
        "## Limits",
        "",
        "- Most measurements are of MI355X with ATOM, vLLM on ATOM and SGLang; plain vLLM, older cards and Radeon rest on few rows.",
        "- The time to first token depends on how a benchmark starts; the mean of a short closed loop holds its burst.",
        "- Acceptance of drafts depends on the text. Predictions hold the acceptance of random prompts as public benchmarks send them.",
        "- Queues beyond the mean (p99) are a matter of simulation, not of this fit.",
        f"- {sum(left.values())} rows could not be used, mostly because a model's shapes or a card's figures are not known here.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Fit, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--quick", action="store_true", help="five folds only, nothing written")
    parser.add_argument("--date", default="2026-11-23")
    parser.add_argument("--scores", type=Path, help="write every held-out prediction here as JSON lines")
    asked = parser.parse_args()
    data, left, digest = read(asked.table, asked.models)
    print(f"{len(data.cases)} rows understood, {sum(left.values())} left out", file=sys.stderr)
    for reason, count in left.most_common(12):
        print(f"  {count:4d} {reason[:110]}", file=sys.stderr)
    scored = held_out(data, lambda number: str(data.folds[number]), "five folds")
    if not asked.quick:
        scored += held_out(data, family_groups(data), "family held out")
        scored += held_out(data, lambda number: data.bare[number].situation.arch, "card generation held out", least=20)
        scored += held_out(
            data,
            lambda number: str(
                int(hashlib.sha256(data.bare[number].situation.configuration.encode()).hexdigest(), 16) % 5
            ),
            "configuration held out",
        )
    scored += few_shot(data, scored)
    for name, found in summary(scored).items():
        print(
            f"{name:40s} n={found['n']:5.0f} mean {found['mean']:.1%} median {found['median']:.1%} p90 {found['p90']:.1%}"
        )
    for level, by_metric in bands(data, scored).items():
        print(level, {metric: (band["low"], band["high"], band["count"]) for metric, band in by_metric.items()})
    if asked.scores:
        asked.scores.write_text(
            "".join(json.dumps(one.__dict__ | {"row_id": data.cases[one.number].row_id}) + "\n" for one in scored)
        )
    if asked.quick:
        return
    PAGE.write_text(page(data, scored, left, asked.date))
    everything = list(range(len(data.cases)))
    step, first, median = fit(data, everything)
    document = {
        "name": "fit",
        "fitted": asked.date,
        "rows": len(data.cases),
        "families": len({model.situation.family for model in data.bare}),
        "inputs_sha256": digest,
        "step": {"coefficients": step.coefficients, "shifts": step.shifts, "effects": step.effects},
        "first_token": {"coefficients": first.coefficients, "shifts": first.shifts, "effects": first.effects},
        "first_token_median": {"coefficients": median.coefficients, "shifts": median.shifts, "effects": median.effects},
        "bands": bands(data, scored),
        "error": summary(scored),
    }
    OUT.write_text(
        json.dumps(document, indent=None, separators=(",", ":")).replace('],"', '],\n"').replace('},"', '},\n"') + "\n"
    )
    print(f"{OUT}: {len(step.effects) + len(first.effects)} effects, {OUT.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
