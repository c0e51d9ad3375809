"""What the planner chooses over 500 combinations of model, hardware and wish, kept as a file: a change shows which choices move.

Each line is a question and its answer: the configuration with its limits, output tokens per second, first token and time per token in
milliseconds, or why there is none. Figures have three digits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aim_engine import settings, workflow
from aim_engine.planner.plan import Plan
from aim_engine.workflow import Request
from aim_engine.workload import Slo, Workload

FOLDER = Path(__file__).parents[1] / "golden" / "choices"
MODELS = {
    "small": (
        "Qwen/Qwen3-4B",
        "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-8B",
        "meta-llama/Llama-3.1-8B-Instruct",
        "google/gemma-3-27b-it",
    ),
    "dense": (
        "Qwen/Qwen3-32B",
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Llama-3.1-405B-Instruct",
        "mistralai/Mistral-7B-Instruct-v0.3",
        "Qwen/Qwen2.5-72B-Instruct",
    ),
    "experts": (
        "Qwen/Qwen3-30B-A3B",
        "Qwen/Qwen3-235B-A22B",
        "openai/gpt-oss-20b",
        "openai/gpt-oss-120b",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    ),
    "large": (
        "deepseek-ai/DeepSeek-R1",
        "deepseek-ai/DeepSeek-V3",
        "moonshotai/Kimi-K2-Instruct",
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        "Qwen/Qwen3-235B-A22B-FP8",
    ),
}
HARDWARE = ("1xMI300X", "8xMI300X", "8xMI325X", "8xMI355X", "4xMI210")
WISHES = {
    "throughput": Request(model=""),
    "64 at once, tpot 50 ms": Request(model="", workload=Workload(concurrency=64), slo=Slo(tpot_ms=50.0)),
    "latency of one": Request(model="", objective="latency", workload=Workload(concurrency=1)),
    "balanced, 32 of 8k in 1k out": Request(
        model="", objective="balanced", workload=Workload(input_tokens=8192, output_tokens=1024, concurrency=32)
    ),
    "cost of 4 a second, ttft 2 s": Request(
        model="", objective="cost", workload=Workload(rate_requests_s=4.0), slo=Slo(ttft_ms=2000.0)
    ),
}


def answer(plan: Plan) -> str:
    if plan.chosen is None:
        return f"none: {next((step.summary for step in plan.steps if step.name == 'fallback'), 'nothing fits')}"
    recipe, speed = plan.chosen.recipe, plan.chosen.estimate
    return (
        f"{recipe.key} len={recipe.max_model_len} at {speed.concurrency}: {speed.output_tok_s.value:.3g} tok/s "
        f"{speed.ttft_ms.value:.3g} {speed.tpot_ms.value:.3g}"
    )


def lines(models: tuple[str, ...]) -> Iterator[str]:
    chosen = settings.load({"offline": True})
    for model in models:
        for gpus in HARDWARE:
            for name, wish in WISHES.items():
                plan = workflow.choose(msgspec.structs.replace(wish, model=model, gpus=gpus), chosen)
                yield f"{model} | {gpus} | {name} | {answer(plan)}"


@pytest.mark.parametrize("family", MODELS)
def test_no_choice_moves_unseen(family: str, request: pytest.FixtureRequest) -> None:
    produced = list(lines(MODELS[family]))
    path = FOLDER / f"{family}.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(produced) + "\n", encoding="utf-8")
    kept = path.read_text(encoding="utf-8").splitlines()
    moved = "\n".join(difflib.unified_diff(kept, produced, "kept", "now", n=0, lineterm=""))
    assert not moved, f"choices moved; review, then pytest tests/planner --update-golden\n{moved}"


def test_the_grid_is_500_questions() -> None:
    assert sum(len(models) for models in MODELS.values()) * len(HARDWARE) * len(WISHES) == 500


def test_the_same_question_gets_the_same_bytes() -> None:
    chosen = settings.load({"offline": True})
    for wish in WISHES.values():
        request = msgspec.structs.replace(wish, model="Qwen/Qwen3-30B-A3B", gpus="8xMI300X")
        first, second = (msgspec.json.encode(workflow.choose(request, chosen)) for _ in range(2))
        assert first == second
