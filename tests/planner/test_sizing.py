"""Given configurations, and the questions turned round."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.errors import InvalidInput
from aim_engine.perf import memory
from aim_engine.planner.sizing import Sized
from aim_engine.workflow import SizeRequest

SETTINGS = all_settings.load({"offline": True})


def size(model: str, **asked: object) -> Sized:
    return workflow.size(model, SizeRequest(**asked), SETTINGS)  # type: ignore[arg-type]


@given(
    model=st.sampled_from(["Qwen/Qwen3-32B", "openai/gpt-oss-120b", "google/gemma-3-27b-it", "Qwen/Qwen3.5-35B-A3B"]),
    gpus=st.sampled_from(["1xMI300X", "2xMI210", "4xR9700", "1xMI355X"]),
    sequences=st.sampled_from([1, 64, 512]),
)
@settings(deadline=None, max_examples=30)
def test_the_longest_context_fits_and_one_block_more_does_not(model: str, gpus: str, sequences: int) -> None:
    got = size(model, gpus=gpus, max_num_seqs=sequences)
    spec = workflow.describe(model, SETTINGS)
    if not got.longest_tokens:
        assert not got.fits
        return

    def fits(tokens: int) -> bool:
        changed = msgspec.structs.replace(got.recipe, max_model_len=tokens)
        return memory.breakdown(spec, got.gpu, changed, got.workload).fits

    assert fits(got.longest_tokens)
    if got.longest_tokens < max(spec.max_position_embeddings, got.recipe.max_model_len):
        assert not fits(got.longest_tokens + 16)


def test_every_way_fits_and_those_that_cost_least_come_first() -> None:
    got = size("meta-llama/Llama-3.1-70B-Instruct", gpus="1xMI210")
    assert not got.fits
    assert "are missing" in got.reason
    order = ["nothing", "headroom", "parallel requests", "context", "devices", "quality"]
    costs = [order.index(way.costs) for way in got.ways]
    assert costs == sorted(costs)
    assert all(way.kv_cache_tokens > 0 for way in got.ways)
    again = size("meta-llama/Llama-3.1-70B-Instruct", gpus=f"{got.fewest_gpus}xMI210")
    assert again.fits
    half = size("meta-llama/Llama-3.1-70B-Instruct", gpus=f"{(got.fewest_gpus or 2) // 2}xMI210")
    assert not half.fits


def test_the_cheapest_card_holds_the_model() -> None:
    got = size("deepseek-ai/DeepSeek-R1", gpus="8xMI300X", max_model_len=32768)
    assert got.cheapest is not None
    assert size("deepseek-ai/DeepSeek-R1", gpus=got.cheapest, max_model_len=32768).fits


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gpus": "2xMI300X", "tp": 4}, "takes 4 devices, 2 are there"),
        ({"gpus": "2xMI300X", "max_model_len": 1_000_000}, "cannot serve a context of 1,000,000 tokens"),
        ({"gpus": "4xMI300X", "tp": 3}, "cannot be split over tp=3"),
        ({"gpus": "4xMI210", "precision": "fp8"}, "MI210"),
        ({"gpus": "4xMI300X", "precision": "mxfp4"}, "is stored in bf16, not in mxfp4"),
    ],
)
def test_an_impossible_configuration_says_why(asked: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        size("Qwen/Qwen3-32B", **asked)
    assert said in str(caught.value)
