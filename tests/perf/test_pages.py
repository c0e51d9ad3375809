"""The cache's blocks: what engines logged, and what must hold for every shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.model import catalog
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import pages
from aim_engine.units import GIB

MODELS = (
    "Qwen/Qwen3-32B",
    "deepseek-ai/DeepSeek-R1",
    "google/gemma-3-27b-it",
    "google/gemma-4-31B-it",
    "openai/gpt-oss-20b",
    "Qwen/Qwen3.5-35B-A3B",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "zai-org/GLM-5.1",
)


def spec(name: str) -> ModelSpec:
    found = catalog.load(name)
    assert found is not None
    return found


def layout(name: str, *, tp: int = 1, value_bytes: float = 2.0) -> pages.Layout:
    return pages.layout(spec(name), tp=tp, pp=1, value_bytes=value_bytes, state_value_bytes=2.0, block_tokens=16)


def test_windows_and_full_layers_share_one_pool_of_equal_pages() -> None:
    # gemma-4-31B: 10 full layers of 8 KiB a token beside 50 windows of 16 KiB: blocks of 32 tokens beside blocks of 16.
    got = layout("google/gemma-4-31B-it")
    assert got.block_bytes == 10 * 16 * 16_384
    assert [(g.kind, g.tables, g.block_tokens) for g in got.groups] == [("full", 1, 32), ("sliding", 5, 16)]


def test_an_attention_block_is_raised_until_its_page_holds_a_state() -> None:
    got = layout("Qwen/Qwen3.5-35B-A3B")
    assert {g.block_tokens for g in got.groups} == {1056}
    assert got.block_bytes == 10 * 1056 * 2048


def test_older_releases_count_blocks_by_table_and_newer_ones_requests() -> None:
    got = layout("openai/gpt-oss-20b")
    old, new = (got.logged_tokens(10 * GIB, 131_072, 16_384, version) for version in ("0.11.2", "0.33.0"))
    assert old == got.pool(10 * GIB) // 2 * 16
    assert new > 1.5 * old
    assert got.logged_tokens(10 * GIB, 131_072, 16_384, "2.10.0a0+rocm7.11") == old


@given(
    name=st.sampled_from(MODELS),
    tp=st.sampled_from([1, 2, 4]),
    tokens=st.integers(1, 200_000),
    more=st.integers(1, 50_000),
)
def test_blocks_grow_with_tokens_and_bytes_fall_with_tp_and_precision(
    name: str, tp: int, tokens: int, more: int
) -> None:
    whole, split, narrow = layout(name), layout(name, tp=tp), layout(name, value_bytes=1.0)
    assert whole.blocks(tokens, 4096) <= whole.blocks(tokens + more, 4096)
    for other in (split, narrow):
        # A smaller page may need a larger block of tokens, so a short request may round up to one block more.
        slack = other.block_bytes * len(other.groups)
        assert other.blocks(tokens, 4096) * other.block_bytes <= whole.blocks(tokens, 4096) * whole.block_bytes + slack


def test_every_bundled_model_has_a_layout() -> None:
    for name in catalog.names():
        for tp in (1, 8):
            got = layout(name, tp=tp)
            assert got.block_bytes > 0
            assert got.blocks(4096, 16_384) > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_pool_holds_what_its_bytes_pay_for(name: str) -> None:
    got = layout(name)
    assert got.pool(7 * GIB) * got.block_bytes <= 7 * GIB < (got.pool(7 * GIB) + 1) * got.block_bytes
    assert got.pool(-5) == 0
