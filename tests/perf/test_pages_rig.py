"""Our cache layout against the engine's own code: the same blocks and the same tokens, to the last one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aim_engine.hardware import catalog
from aim_engine.model import catalog as models
from aim_engine.perf import pages
from aim_engine.units import GIB
from rig.checkpoint import checkpoint
from rig.fixture import Judge, judging

pytestmark = pytest.mark.rig
RELEASE = "0.32.0"
CACHE_BYTES = 100 * GIB
LONGEST = 32768
MODELS = (
    "HuggingFaceTB/SmolLM-1.7B",
    "Qwen/Qwen2-VL-7B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "Qwen/Qwen3.5-35B-A3B",
    "Qwen/Qwen3.5-397B-A17B",
    "deepseek-ai/DeepSeek-R1",
    "google/gemma-2-2b",
    "google/gemma-3-27b-it",
    "google/gemma-4-26B-A4B",
    "google/gemma-4-31B-it",
    "google/gemma-7b",
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "mistralai/Mixtral-8x7B-v0.1",
    "moonshotai/Kimi-K2-Instruct",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8",
    "openai/gpt-oss-20b",
    "stabilityai/stablelm-3b-4e1t",
    "zai-org/GLM-4.7-Flash",
    "zai-org/GLM-5.1",
)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with judging(tmp_path_factory.mktemp("judge") / "judge.log") as asked:
        yield asked


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("model", MODELS)
def test_blocks_and_tokens_are_the_engines_own(model: str, kv_dtype: str, judge: Judge, tmp_path: Path) -> None:
    spec = models.load(model)
    assert spec is not None
    length = min(LONGEST, spec.max_position_embeddings)
    checkpoint(tmp_path, model, plain=True)
    args: tuple[str, ...] = (
        str(tmp_path),
        "--dtype",
        "bfloat16",
        "--max-model-len",
        str(length),
        "--max-num-batched-tokens",
        "8192",
    )
    args += ("--kv-cache-dtype", kv_dtype, "--max-num-seqs", "256", "--enforce-eager", "--trust-remote-code")
    verdict = judge.ask(args, {}, catalog.load("MI210"), 1, CACHE_BYTES)
    assert verdict["config"] == "ok", verdict.get("config_error")
    theirs = verdict.get("cache")
    assert theirs, verdict.get("cache_error")
    ours = pages.layout(
        spec,
        tp=1,
        pp=1,
        value_bytes=2.0 if kv_dtype == "auto" else 1.0,
        state_value_bytes=2.0,
        block_tokens=pages.BLOCK_TOKENS,
    )
    assert theirs["in_flight"] == 8192 * pages.BATCHES_IN_FLIGHT
    assert ours.pool(CACHE_BYTES) == theirs["blocks"]
    assert ours.logged_tokens(CACHE_BYTES, length, theirs["in_flight"], RELEASE) == theirs["tokens"]
