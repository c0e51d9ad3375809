"""The page of held-out errors and honest limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from speed_scores import Scored, bands, errors, summary

from aim_engine.planner import accuracy
from aim_engine.planner.table import Case


def page(
    rows: Sequence[Mapping[str, str]],
    cases: Sequence[Case],
    scored: Sequence[Scored],
    left: Counter[str],
    date: str,
) -> str:
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
        f"How far predictions are from {len(cases):,} public measurements on AMD devices, each predicted by a fit that had not seen it.",
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
            (rows[one.number], measured, measured * one.predicted / one.measured)
            for one in scored
            if one.protocol == protocol and one.metric == "throughput"
            and (measured := accuracy.per_device(rows[one.number], rows[one.number])) is not None
        ]  # fmt: skip
        ranking, regret = accuracy.choices(speeds)
        counts = ranking["number of devices"]
        if regret is not None:
            lines.append(
                f"| {protocol} | {counts.right_fraction:.1%} | {counts.pairs} | {regret.mean:.1%} | {regret.p95:.1%} | {regret.sets} |"
            )
    lines += ["", "## Ranges", "", "A range holds 90 % of held-out measurements of its kind.", ""]
    lines += ["| what is known | time per token | first token | throughput |", "|---|---|---|---|"]
    for level, by_metric in bands(scored).items():
        cells = [
            f"x{by_metric[metric]['low']:.2f} to x{by_metric[metric]['high']:.2f}"
            for metric in ("tpot", "ttft", "throughput")
        ]
        lines.append(f"| {level} | {' | '.join(cells)} |")
    lines += ["", "## Families, none of whose measurements were known", "", "Time per output token, worst first.", ""]
    lines += table_of(lambda one: rows[one.number].get("model_base") or cases[one.number].spec.model_id, unseen)
    lines += ["", "## Engines, family held out", ""]
    lines += table_of(lambda one: cases[one.number].engine, unseen)
    lines += ["", "## Cards, five folds", ""]
    lines += table_of(lambda one: cases[one.number].gpu.name, known)
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
