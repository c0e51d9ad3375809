"""Compare first choices with what experts published for AMD cards, and write the table of the docs.

    AIM_ENGINE_CORPUS=FOLDER python tools/agreement.py [--write] [--rows]

Reads every InferenceX search space and AIM profile set under the corpus. Plans without the recipe database, so that the choice is
our own; how many are equal with it is said beside that. A row is one (model, card, request lengths, requests in flight) or one published profile; models whose shapes are not in
the catalogue are counted apart.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agreement_kernels
import msgspec

from aim_engine import backend, facts, workflow
from aim_engine.errors import AimError
from aim_engine.hardware import catalog
from aim_engine.hardware.cluster import asked
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import calibration
from aim_engine.planner.plan import Inputs, Plan
from aim_engine.planner.select import select
from aim_engine.recipe.database import RecipeDatabase
from aim_engine.recipe.recipe import Parallelism, Recipe
from aim_engine.settings import Settings
from aim_engine.workload import Objective, Slo, Workload

ENGINES = {name: backend.get(name) for name in backend.NAMES}
SETS = calibration.load()
CARDS = {"mi300x": "MI300X", "mi325x": "MI325X", "mi350x": "MI350X", "mi355x": "MI355X", "mi250x": "MI250X"}
PRECISIONS = {
    "fp4": ("mxfp4",),
    "fp8": ("fp8", "mxfp8"),
    "int4": ("int4",),
    "bf16": ("bf16",),
    "fp16": ("bf16", "fp16"),
}
SPLIT = re.compile(r"(?:\d+x )?((?:(?:tp|pp|dp)\d+ )+(?:ep )?)")
"""The split of a recipe's key or of a family that was refused."""
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "agreement.md"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One published choice and the question it answers."""

    source: str
    model: str
    card: str
    precision: str
    gpus: int
    objective: Objective
    workload: Workload
    engine: str
    """The one it was published for, as far as we know it; else vllm."""
    splits: frozenset[Parallelism]
    """What the experts serve this with."""
    switches: dict[str, str] = {}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How a row came out."""

    row: Row
    verdict: str
    """equal, explained, different or unknown."""
    ours: str = ""
    note: str = ""


def main() -> int:
    """Judge every row, print or write the summary; 1 when agreement is below the goal."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", action="store_true", help="write docs/reference/agreement.md")
    options.add_argument("--rows", action="store_true", help="print every row that is not equal")
    asked_for = options.parse_args()
    root = Path(os.environ.get("AIM_ENGINE_CORPUS", "")) / "rocm"
    asked = [
        row for path in sorted(root.glob("*.yaml")) for row in rows(facts.parse_yaml(path.read_bytes(), path.name))
    ]
    found = [judge(row) for row in asked]
    informed = [judge(row, RecipeDatabase()) for row in asked]
    if asked_for.rows:
        for each in found:
            if each.verdict in ("explained", "different"):
                sys.stdout.write(f"{each.verdict}: {describe(each.row)}: {each.ours}; {each.note}\n")
    families = facts.parse_yaml((root / "model_families.yaml").read_bytes(), "model_families.yaml")
    text = page(found, informed) + "\n".join(agreement_kernels.section(families))
    sys.stdout.write(text)
    if asked_for.write:
        PAGE.write_text("<!-- Written by tools/agreement.py --write. -->\n\n" + text, encoding="utf-8")
    known = [each for each in found if each.verdict != "unknown"]
    agreed = sum(each.verdict in ("equal", "explained") for each in known)
    return 0 if known and agreed >= 0.85 * len(known) else 1


def rows(document: Any) -> Iterator[Row]:
    """The published choices of a corpus file, whichever kind it is."""
    schema = str(document.get("schema", "")) if isinstance(document, dict) else ""
    if schema.startswith("aim-inferencex/"):
        yield from _searched(document)
    elif schema.startswith("aim-amd-profiles/"):
        yield from _profiles(document)


def judge(row: Row, database: RecipeDatabase | None = None) -> Verdict:
    """What we would choose, beside what was published."""
    try:
        spec = workflow.describe(row.model, Settings(offline=True))
    except AimError:
        return Verdict(row=row, verdict="unknown", note="the model is not in the catalogue")
    try:
        plan = choose(row, spec, database)
    except AimError as err:
        return Verdict(row=row, verdict="unknown", note=err.what)
    if plan.chosen is None:
        return Verdict(row=row, verdict="different", ours="no plan", note=plan.hint)
    recipe = plan.chosen.recipe
    ours = f"{recipe.replicas} x {recipe.parallelism.describe()}"
    wrong = [f"{name}={value}" for name, value in row.switches.items() if not holds(recipe, name, value)]
    if recipe.online_quantization is not None and recipe.precision not in PRECISIONS.get(row.precision, ()):
        return Verdict(row=row, verdict="different", ours=ours, note=f"{recipe.precision}, not {row.precision}")
    if wrong:
        return Verdict(row=row, verdict="different", ours=ours, note=f"without {', '.join(wrong)}")
    if recipe.parallelism in row.splits:
        return Verdict(row=row, verdict="equal", ours=ours)
    return against(row, plan, ours)


def holds(recipe: Recipe, name: str, value: str) -> bool:
    """Whether a published variable of AITER has its effect in our choice.

    AITER's parts are on wherever AITER is, unless said otherwise. Its FA attention is off when another backend is named.
    """
    if name == "VLLM_ROCM_USE_AITER_MHA" and value == "0":
        return recipe.attention_backend not in (None, "ROCM_AITER_FA") or recipe.env.get(name) == "0"
    return recipe.env.get(name, "0" if name == "VLLM_ROCM_USE_AITER" else "1") == value


def against(row: Row, plan: Plan, ours: str) -> Verdict:
    """What the plan itself says of the published split: by how much it is behind, or why it was refused."""
    wanted = {split.describe() for split in row.splits}
    for near in plan.neighbours:
        found = SPLIT.match(near.recipe)
        if found is not None and found[1].strip() in wanted and not near.change.startswith(("replicas", "max_num")):
            return Verdict(row=row, verdict="explained", ours=ours, note=f"{found[1].strip()}: {near.reason}")
    for rejection in plan.rejected:
        found = SPLIT.match(rejection.recipe)
        if found is not None and found[1].strip() in wanted:
            return Verdict(row=row, verdict="explained", ours=ours, note=f"{found[1].strip()}: {rejection.reason}")
    return Verdict(row=row, verdict="different", ours=ours, note="the plan does not speak of the published split")


def choose(row: Row, spec: ModelSpec, database: RecipeDatabase | None) -> Plan:
    """Our plan for the row's question."""
    known = database.load_recipes(row.model, row.engine) if database is not None else ()
    gpu = catalog.load(row.card)
    longest = spec.max_position_embeddings
    inputs = Inputs(
        model=spec,
        cluster=asked(row.gpus, gpu),
        gpu=gpu,
        workload=row.workload,
        slo=Slo(),
        objective=row.objective,
        engine=row.engine,
        engine_version=ENGINES[row.engine].newest(gpu),
        max_model_len=min(32768, longest),
    )
    return select(inputs, backend=ENGINES[row.engine], calibration=calibration.pick(SETS, gpu), known=known)


def page(found: list[Verdict], informed: list[Verdict]) -> str:
    """The summary as Markdown."""
    known = [each for each in found if each.verdict != "unknown"]
    lines = [
        "# Agreement with published choices",
        "",
        "What AMD engineers and benchmark authors published for AMD cards, beside the first choice of `aim-engine plan` without its",
        "recipe database. *Equal*: same checkpoint as it is, same tensor and expert parallelism, same AITER switches. *Explained*: another",
        "split was chosen, and the plan's own list of neighbours (`--explain`) says by how much the published one is behind, or why it was",
        "refused. The lowest load of a benchmark is asked for latency, its others for the best product of speed per user and per GPU. The",
        "figures behind that are modelled; where both splits were [measured beside each other](../concepts/selection.md), that decides and",
        "is quoted. Models without a catalogue entry are left out.",
        "",
        "| source | model | card | rows | equal | explained | different |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str, str], Counter[str]] = {}
    for each in known:
        groups.setdefault((each.row.source, each.row.model, each.row.card), Counter())[each.verdict] += 1
    for (source, model, card), counts in sorted(groups.items()):
        figures = " | ".join(str(counts[name]) for name in ("equal", "explained", "different"))
        lines.append(f"| {source} | {model} | {card} | {counts.total()} | {figures} |")
    total = Counter(each.verdict for each in found)
    share = {name: total[name] / max(1, len(known)) for name in ("equal", "explained", "different")}
    told = [each for each in informed if each.verdict != "unknown"]
    equal = sum(each.verdict == "equal" for each in told) / max(1, len(told))
    agreed = sum(each.verdict in ("equal", "explained") for each in told) / max(1, len(told))
    lines += [
        "",
        (
            f"{len(known)} rows: {share['equal']:.0%} equal, {share['explained']:.0%} explained, {share['different']:.0%} different; "
            f"{total['unknown']} more are of models without a catalogue entry."
        ),
        "",
        f"With the recipe database, as `plan` uses it, {equal:.0%} are equal and {agreed:.0%} equal or explained.",
        "",
    ]
    return "\n".join(lines)


def describe(row: Row) -> str:
    """A row in words."""
    splits = ", ".join(split.describe() for split in sorted(row.splits))
    return f"{row.source} {row.model} {row.gpus} x {row.card} {row.objective} at {row.workload.concurrency}: {splits}"


def _searched(document: Any) -> Iterator[Row]:
    for entry in document.get("configs", ()):
        card = CARDS.get(str(entry["gpu"]).removeprefix("cluster:").partition("-")[0])
        for name, scenarios in entry.get("scenarios", {}).items():
            if name != "fixed-seq-len" or card is None:
                continue
            for scenario in scenarios:
                space = scenario["search-space"]
                loads = {load for each in space for load in _loads(each)}
                for load in sorted(loads):
                    splits = frozenset(_split(each) for each in space if min(_loads(each)) <= load <= max(_loads(each)))
                    if splits:
                        yield Row(
                            source="InferenceX",
                            model=entry["model"],
                            card=card,
                            precision=entry["precision"],
                            engine=entry["engine"] if entry["engine"] in ENGINES else "vllm",
                            gpus=8,
                            objective="latency" if load == min(loads) < max(loads) else "balanced",
                            workload=Workload(
                                input_tokens=scenario["isl"], output_tokens=scenario["osl"], concurrency=load
                            ),
                            splits=splits,
                        )


def _split(space: dict[str, Any]) -> Parallelism:
    """An entry's split in our terms: attention on every rank for itself is data-parallel over as many."""
    if space.get("dp-attn"):
        return Parallelism(dp=space["tp"], ep=True)
    return Parallelism(tp=space["tp"], ep=space.get("ep", 1) > 1)


def _loads(space: dict[str, Any]) -> list[int]:
    return list(space["conc-list"]) if "conc-list" in space else [space["conc-start"], space["conc-end"]]


def _profiles(document: Any) -> Iterator[Row]:
    for entry in document.get("profiles", ()):
        card = CARDS.get(str(entry["gpu"]).lower())
        if card is None or entry["model"] == "general":
            continue
        ep = "enable-expert-parallel" in entry["engine_args"]
        switches = {k: str(v) for k, v in entry["env"].items() if k.startswith("VLLM_ROCM_USE_AITER")}
        for profile in entry["profiles"]:
            split, metric, kind = profile.split("/")[:3]
            if kind != "optimized":
                continue
            tp = int(split.removeprefix("tp"))
            yield Row(
                source="AMD AIM",
                model=entry["model"],
                card=card,
                precision=entry["precision"],
                engine="vllm",
                gpus=tp,
                objective="latency" if metric == "latency" else "throughput",
                workload=Workload(),
                splits=frozenset({Parallelism(tp=tp, ep=ep)}),
                switches=switches,
            )


if __name__ == "__main__":
    raise SystemExit(main())
