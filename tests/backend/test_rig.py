"""The real engine, made to believe in each card, accepts what the planner chose for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aim_engine import backend, workflow
from aim_engine import settings as all_settings
from aim_engine.hardware import catalog
from aim_engine.workflow import Request
from aim_engine.workload import Objective
from rig.checkpoint import checkpoint
from rig.fixture import Judge, judging

pytestmark = pytest.mark.rig
RELEASE = "0.32.0"
"""The release whose CPU build is installed and judges."""
PLANS = (
    ("Qwen/Qwen3-32B", "8xMI300X", "throughput"),
    ("Qwen/Qwen3-32B", "8xMI300X", "latency"),
    ("Qwen/Qwen3-8B", "4xMI210", "throughput"),
    ("Qwen/Qwen3-32B", "8xMI250X", "latency"),
    ("Qwen/Qwen3-235B-A22B-FP8", "8xMI300X", "throughput"),
    ("Qwen/Qwen3-30B-A3B", "2xMI325X", "latency"),
    ("meta-llama/Llama-3.3-70B-Instruct", "8xMI325X", "latency"),
    ("meta-llama/Llama-3.1-8B-Instruct", "1xR9700", "throughput"),
    ("meta-llama/Llama-3.1-8B-Instruct", "1xW7900", "throughput"),
    ("amd/Llama-3.3-70B-Instruct-FP8-KV", "1xMI300X", "cost"),
    ("deepseek-ai/DeepSeek-R1", "8xMI300X", "latency"),
    ("deepseek-ai/DeepSeek-R1", "8xMI355X", "throughput"),
    ("moonshotai/Kimi-K2-Instruct", "8xMI355X", "throughput"),
    ("openai/gpt-oss-20b", "1xMI355X", "throughput"),
    ("openai/gpt-oss-120b", "8xMI300X", "latency"),
    ("google/gemma-2-2b", "1xRX7900XTX", "latency"),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "1xMI300X", "throughput"),
    ("MiniMaxAI/MiniMax-M2.5", "4xMI325X", "throughput"),
    ("Qwen/Qwen2.5-7B-Instruct", "2xW7900", "latency"),
    ("zai-org/GLM-5.1-FP8", "8xMI355X", "latency"),
    ("microsoft/Phi-3-mini-128k-instruct", "1xMI210", "throughput"),
    ("HuggingFaceTB/SmolLM-1.7B", "1xRX9070XT", "throughput"),
)


NAMES = {"ROCM_AITER_FA": "FLASH_ATTN"}
"""Backends whose class says another name than the one they are asked for by."""


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with judging(tmp_path_factory.mktemp("judge") / "judge.log") as asked:
        yield asked


@pytest.mark.parametrize(("model", "gpus", "objective"), PLANS)
def test_the_planned_command_is_accepted(
    model: str, gpus: str, objective: Objective, judge: Judge, tmp_path: Path
) -> None:
    request = Request(model=model, gpus=gpus, objective=objective, engine_version=RELEASE)
    plan = workflow.choose(request, all_settings.load({"offline": True}))
    assert plan.chosen is not None, plan.hint
    recipe = plan.chosen.recipe
    checkpoint(tmp_path, model)
    count, gpu = catalog.parse_request(gpus)
    command = backend.get("vllm").command(recipe, model_ref=str(tmp_path), host="127.0.0.1", port=8000)
    verdict = judge.ask(command.args, command.env, gpu, count)
    assert verdict["parse"] == "ok", verdict.get("parse_error")
    assert verdict["config"] == "ok", verdict.get("config_error")
    values = verdict["values"]
    assert values["platform"] == "RocmPlatform"
    assert values["tensor_parallel_size"] == recipe.parallelism.tp
    assert values["data_parallel_size"] == recipe.parallelism.dp
    assert values["max_num_seqs"] == recipe.max_num_seqs
    assert values["max_num_batched_tokens"] == recipe.max_num_batched_tokens
    assert values["max_model_len"] == recipe.max_model_len
    if recipe.attention_backend is not None:
        named = NAMES.get(recipe.attention_backend, recipe.attention_backend)
        assert verdict.get("attention_backend") == named, verdict.get("attention_error")


def test_the_judge_refuses_what_the_engine_would(judge: Judge, tmp_path: Path) -> None:
    checkpoint(tmp_path, "Qwen/Qwen3-8B")
    gpu = catalog.load("MI300X")
    unknown = judge.ask((str(tmp_path), "--swap-space", "4"), {}, gpu, 8)
    assert unknown["parse"] == "error"
    uneven = judge.ask((str(tmp_path), "--tensor-parallel-size", "3"), {}, gpu, 8)
    assert uneven["config"] == "error"


@pytest.mark.parametrize("card", ["MI210", "MI300X", "MI300A", "RX7900XTX"])
def test_the_engines_defaults_are_those_in_the_release_file(card: str, judge: Judge, tmp_path: Path) -> None:
    checkpoint(tmp_path, "Qwen/Qwen3-8B")
    gpu = catalog.load(card)
    values = judge.ask((str(tmp_path),), {}, gpu, 1)["values"]
    defaults = backend.get("vllm").defaults(RELEASE, gpu)
    assert values["max_num_seqs"] == defaults.max_num_seqs
    assert values["max_num_batched_tokens"] == defaults.max_num_batched_tokens
    assert values["gpu_memory_utilization"] == defaults.gpu_memory_utilization
