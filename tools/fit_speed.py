"""Fit the speed model to measurements, and write it with its held-out error.

    python tools/fit_speed.py TABLE.csv [--models DIR]

How a law is fitted stands in `speed_law`. Every figure of the page is of rows that the fit behind it had not seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import speed_page
from speed_law import FIRST, FIRST_PRIOR, MEDIAN, STEP, Fit, Kind, Row
from speed_scores import Scored, bands, summary

from aim_engine import settings, workflow
from aim_engine.errors import AimError
from aim_engine.hardware.gpu import Provenance
from aim_engine.perf import local
from aim_engine.perf.calibration import SERVERS, Calibration, Law, Laws
from aim_engine.perf.roofline import Model
from aim_engine.perf.situation import OPEN_LOOP
from aim_engine.planner import observed, table
from aim_engine.planner.observed import STATIC, Observation
from aim_engine.planner.table import Case

PAGE = Path("docs/accuracy.md")
OUT = Path("src/aim_engine/data/calibration/fitted.json")


@dataclass
class Data:
    """What a table holds, ready to fit."""

    rows: list[dict[str, str]]
    cases: list[Case]
    seen: list[Observation]
    bare: list[Model]
    """Models without any fit, for their features."""
    folds: list[int]
    ages: list[float]
    """Months before the newest row."""


def _months(date: str) -> float | None:
    """`2026-05-18`, `2026-05` or `2025` as months since the year 0; None where nothing is said."""
    parts = [int(part) for part in date.split("-") if part.isdigit()]
    return (
        parts[0] * 12 + (parts[1] if len(parts) > 1 else 6) + (parts[2] / 31 if len(parts) > 2 else 0.5)
        if parts
        else None
    )


def read(path: Path, models: Path | None, folds: int = 5) -> tuple[Data, Counter[str], str]:
    """The rows of a table that may be fitted, why others are left out, and the hash of the table."""
    content = path.read_text(encoding="utf-8")
    rows = table.parse(content, str(path))
    kept = [row for row in rows if row.get("is_latest", "1") == "1" and row.get("quality", "") != "C-suspect"]
    reader = workflow.table_reader(models, settings.load({"offline": True}), path)
    plain = calibrated({SERVERS: Laws(step=Law(coefficients={}), first_token=_FIRST, first_token_median=_FIRST)})
    data, left = Data([], [], [], [], [], []), Counter[str]()
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
    months = [_months(row.get("source_date", "")) for row in data.rows]
    newest = max((value for value in months if value is not None), default=0.0)
    data.ages.extend(newest - (value if value is not None else newest) for value in months)
    return data, left, hashlib.sha256(content.encode()).hexdigest()


_FIRST = Law(coefficients=FIRST_PRIOR)
_PROVENANCE = Provenance(kind="derived", source="tools/fit_speed.py", checked="2026-11-27")


def calibrated(laws: dict[str, Laws]) -> Calibration:
    """A set of these laws, to predict with."""
    return Calibration(name="fit", archs=(), laws=laws, bands={}, load_bytes_s=1.0, start_s=0.0, provenance=_PROVENANCE)


def step_rows(data: Data, which: Iterable[int], first_s: Callable[[int], float] | None) -> list[Row]:
    """Observations of steps. `first_s` predicts time to first token, which a whole cycle contains."""
    found = []
    for number in which:
        case, seen, model = data.cases[number], data.seen[number], data.bare[number]
        if seen.prompt_s is not None:
            features, seconds = model.features.prompt(), seen.prompt_s
        else:
            token_s = seen.token_s
            if token_s is None and seen.cycle_s is not None:
                token_s = seen.cycle_s
                if case.kind not in STATIC and first_s is not None:
                    token_s = max(token_s / 2, token_s - first_s(number) / case.workload.output_tokens)
            if token_s is None:
                continue
            seconds = token_s
            features = [value / model.features.yielded for value in model.features.step(seen.decoding or seen.running)]
        found.append(Row(number, model.situation, np.array(features), seen.running, seconds, data.ages[number]))
    return found


def first_rows(data: Data, which: Iterable[int], step: Law, name: str) -> list[Row]:
    """Observations of times to first token, on top of the steps that `step` predicts."""
    found = []
    laws = Laws(step=step, first_token=_FIRST, first_token_median=_FIRST)
    using = calibrated({SERVERS: laws})
    for number in which:
        case, seen = data.cases[number], data.seen[number]
        seconds = getattr(seen, name)
        model = observed.model(case, using)
        if seconds is None or seen.offered > seen.running or model.situation.kind not in ("serving", OPEN_LOOP):
            continue
        token_s = seen.token_s or model.tpot_s(seen.running)
        features = np.array(model.first_token_features(seen.running, token_s))
        found.append(Row(number, model.situation, features, seen.running, seconds, data.ages[number]))
    return found


def fit(data: Data, which: Iterable[int], start: dict[str, Laws] | None = None) -> dict[str, Laws]:
    """The laws of some rows, for each family of kernels; `start`: those of nearly the same rows, from where it is not far."""
    by_kernels: dict[str, list[int]] = {SERVERS: []}
    for number in which:
        by_kernels.setdefault(data.bare[number].situation.kernels, []).append(number)
    return {name: _laws(data, members, None if start is None else start[name]) for name, members in by_kernels.items()}


def _laws(data: Data, which: Sequence[int], start: Laws | None) -> Laws:
    """A first fit of steps tells first tokens, which whole cycles contain."""
    near = start.step if start is not None else None
    timed = [number for number in which if data.seen[number].token_s or data.seen[number].prompt_s]
    step = Fit(STEP, step_rows(data, timed, None)).run(4 if start is None else 2, near)
    laws = Laws(step=step, first_token=_first(data, which, step, "first_token_s"), first_token_median=_FIRST)
    using = calibrated({SERVERS: laws})

    def first_s(number: int) -> float:
        return observed.model(data.cases[number], using).ttft_s(data.seen[number].running)

    step = Fit(STEP, step_rows(data, which, first_s)).run(10 if start is None else 6, near)
    mean = _first(data, which, step, "first_token_s")
    median = _first(data, which, step, "first_token_median_s", MEDIAN)
    return Laws(step=step, first_token=mean, first_token_median=median)


def _first(data: Data, which: Sequence[int], step: Law, name: str, kind: Kind = FIRST) -> Law:
    rows = first_rows(data, which, step, name)
    return Fit(kind, rows).run() if rows else _FIRST


def score(data: Data, which: Iterable[int], laws: dict[str, Laws], protocol: str) -> list[Scored]:
    """Predictions of rows beside what was measured."""
    found, using = [], calibrated(laws)
    for number in which:
        case, seen = data.cases[number], data.seen[number]
        model = observed.model(case, using)
        level = using.level(model.situation)
        pairs: list[tuple[str, float, float | None]] = []
        if seen.prompt_s is not None:
            pairs.append(("throughput", 1 / model.prompt_s(), 1 / seen.prompt_s))
        else:
            tpot_s = model.tpot_s(seen.running)
            first_s = model.ttft_s(seen.running)
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
            Scored(protocol, metric, level, model.situation.family, number, ours, theirs)
            for metric, ours, theirs in pairs
            if theirs is not None
        ]
    return found


def held_out(
    data: Data, group: Callable[[int], str], protocol: str, whole: dict[str, Laws], least: int = 1
) -> list[Scored]:
    """Predictions of every row by a fit that has not seen its group; `whole`, the laws of all rows, is where each fit starts."""
    groups: dict[str, list[int]] = {}
    for number in range(len(data.cases)):
        groups.setdefault(group(number), []).append(number)
    found = []
    for name, test in sorted(groups.items()):
        if len(test) < least:
            continue
        inside = set(test)
        train = [number for number in range(len(data.cases)) if number not in inside]
        found += score(data, test, fit(data, train, whole), protocol)
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
                            one.family,
                            one.number,
                            one.predicted * float(np.exp(moved)),
                            one.measured,
                        )
                    )
    return found


def main() -> None:
    """Fit, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--quick", action="store_true", help="five folds only, nothing written")
    parser.add_argument("--date", default="2026-11-27")
    parser.add_argument("--scores", type=Path, help="write every held-out prediction here as JSON lines")
    asked = parser.parse_args()
    data, left, digest = read(asked.table, asked.models)
    print(f"{len(data.cases)} rows understood, {sum(left.values())} left out", file=sys.stderr)
    for reason, count in left.most_common(12):
        print(f"  {count:4d} {reason[:110]}", file=sys.stderr)
    laws = fit(data, range(len(data.cases)))
    scored = held_out(data, lambda number: str(data.folds[number]), "five folds", laws)
    if not asked.quick:
        scored += held_out(data, family_groups(data), "family held out", laws)
        scored += held_out(
            data, lambda number: data.bare[number].situation.arch, "card generation held out", laws, least=20
        )
        scored += held_out(
            data,
            lambda number: str(
                int(hashlib.sha256(data.bare[number].situation.configuration.encode()).hexdigest(), 16) % 5
            ),
            "configuration held out",
            laws,
        )
    scored += few_shot(data, scored)
    for name, found in summary(scored).items():
        print(
            f"{name:40s} n={found['n']:5.0f} mean {found['mean']:.1%} median {found['median']:.1%} p90 {found['p90']:.1%}"
        )
    for level, by_metric in bands(scored).items():
        print(level, {metric: (band["low"], band["high"], band["count"]) for metric, band in by_metric.items()})
    if asked.scores:
        asked.scores.write_text(
            "".join(json.dumps(asdict(one) | {"row_id": data.cases[one.number].row_id}) + "\n" for one in scored)
        )
    if asked.quick:
        return
    PAGE.write_text(speed_page.page(data.rows, data.cases, scored, left, asked.date))
    document = {
        "name": "fit",
        "fitted": asked.date,
        "rows": len(data.cases),
        "families": len({model.situation.family for model in data.bare}),
        "inputs_sha256": digest,
        "laws": msgspec.to_builtins(laws),
        "bands": bands(scored),
        "error": summary(scored),
    }
    OUT.write_text(
        json.dumps(document, indent=None, separators=(",", ":")).replace('],"', '],\n"').replace('},"', '},\n"') + "\n"
    )
    print(
        f"{OUT}: {sum(len(each.step.effects) for each in laws.values())} effects on steps, {OUT.stat().st_size:,} bytes",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
