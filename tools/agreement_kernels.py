"""Compare kernels and switches with what the recipes of vLLM's authors say for AMD cards: a part of `tools/agreement.py`.

Each model whose authors ran it on a card, and whose shapes are in the catalogue, is tuned for that card without the recipe database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from aim_engine import backend, workflow
from aim_engine.backend import lint, release
from aim_engine.errors import AimError
from aim_engine.hardware import catalog
from aim_engine.model.spec import ModelSpec
from aim_engine.planner.search import own_precision
from aim_engine.recipe.recipe import Parallelism, Recipe, Resources
from aim_engine.settings import Settings

CARDS = {"mi300x": "MI300X", "mi325x": "MI325X", "mi350x": "MI350X", "mi355x": "MI355X"}
FLAGS = ("--attention-backend", "--moe-backend", "--linear-backend", "--block-size")
LOSSY = "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION"
ENGINE = backend.get("vllm")
KINDS = ("equal", "left out, since it changes answers", "other, with its reason")


def section(document: Any) -> list[str]:
    """Lines of Markdown: how often what is published is what we would say."""
    counts: dict[str, Counter[str]] = {}
    others: dict[str, None] = {}
    for model, card, overrides in _published(document):
        for name, verdict, note in _judged(model, card, overrides):
            counts.setdefault(name, Counter())[verdict] += 1
            if note:
                others.setdefault(note)
    lines = [
        "",
        "## Kernels and switches",
        "",
        "What vLLM's recipes set for AMD cards that their authors ran a model on, beside [our joint choice](../concepts/kernels.md) without",
        "the recipe database.",
        "",
        f"| | {' | '.join(KINDS)} |",
        "|---|--:|--:|--:|",
        *(f"| {name} | {' | '.join(str(found[kind]) for kind in KINDS)} |" for name, found in sorted(counts.items())),
        "",
        *(f"- {note}" for note in others),
    ]
    total = sum((found for found in counts.values()), Counter[str]())
    share = total["equal"] / max(1, total.total())
    return [*lines, "", f"{total.total()} settings: {share:.0%} equal.", ""]


def _published(document: Any) -> Iterator[tuple[ModelSpec, str, dict[str, Any]]]:
    for entry in document["models"]:
        status = entry.get("amd_status")
        try:
            spec = workflow.describe(entry["model"], Settings(offline=True))
        except AimError:
            continue
        if not isinstance(status, dict) or spec.basis == "name":
            continue
        for key, overrides in (entry.get("amd_overrides") or {}).items():
            for short, card in CARDS.items():
                if status.get(short) == "verified" and key in ("amd", short):
                    yield spec, card, overrides


def _judged(spec: ModelSpec, card: str, overrides: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(setting, kind, remark) of every setting published."""
    table = lint.by_flag(release.flags("vllm", ENGINE.versions()[0]))
    words = tuple(str(word) for word in overrides.get("extra_args") or ())
    theirs = {given[0]: " ".join(given[1:]) for given, _ in lint.groups(words, table)}
    tp = int(theirs.get("--tensor-parallel-size") or 8)
    gpu = catalog.load(card)
    recipe = ENGINE.tune(spec, gpu, _plain(spec, card, tp))
    command = ENGINE.command(recipe, model_ref=spec.model_id, host="127.0.0.1", port=8000)
    ours = {given[0]: " ".join(given[1:]) for given, _ in lint.groups(command.args, table)}
    for flag in FLAGS:
        if flag not in theirs:
            continue
        said = ours.get(flag, "")
        equal = theirs[flag].lower() == said.lower()
        reasons = ENGINE.explain(spec, gpu, recipe)
        why = next((each.why for each in reasons if said and each.choice == said), "")
        note = f"{spec.model_id} on {card}: {flag} {theirs[flag]}; ours {said or 'none'}: {why}"
        yield f"`{flag}`", KINDS[0] if equal else KINDS[2], "" if equal else note
    for name, value in (overrides.get("extra_env") or {}).items():
        if not name.startswith("VLLM_ROCM"):
            continue
        said = command.env.get(name, "1" if name.startswith("VLLM_ROCM_USE_AITER_MHA") else "")
        equal = said == str(value)
        kind = KINDS[0] if equal else KINDS[1] if name == LOSSY else KINDS[2]
        note = f"{spec.model_id} on {card}: {name}={value}; ours {said or 'unset'}" if kind == KINDS[2] else ""
        yield "variables", kind, note


def _plain(spec: ModelSpec, card: str, tp: int) -> Recipe:
    return Recipe(
        model_id=spec.model_id,
        gpu=card,
        gpu_count=tp,
        engine="vllm",
        engine_version=ENGINE.versions()[0],
        parallelism=Parallelism(tp=tp),
        precision=own_precision(spec),
        max_model_len=8192,
        max_num_seqs=64,
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.9,
        resources=Resources(cpu_cores=8 * tp, memory_bytes=2**36, shm_bytes=2**34, gpus=tp),
    )
