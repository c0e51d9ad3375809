"""Rows of measurement tables: what they mean, and that one bad row spoils no other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.errors import InvalidInput
from aim_engine.planner import observed, table
from aim_engine.planner.table import Case, Unreadable

SETTINGS = all_settings.load({"offline": True})
READER = workflow.table_reader(None, SETTINGS)
HEAD = "row_id,model,gpu,gpu_count,tp,dp,ep,dp_attention,input_len,output_len,length_ratio_min,concurrency_or_batch,precision"


def read(*rows: str) -> list[Case | Unreadable]:
    return READER.read(table.parse("\n".join((HEAD, *rows)), "test"))


def case(row: str) -> Case:
    (found,) = read(row)
    assert isinstance(found, Case), found
    return found


def test_a_row_becomes_a_model_a_card_a_recipe_and_a_load() -> None:
    got = case("r1,amd/Llama-3.1-70B-Instruct-FP8-KV,8x AMD Instinct MI300X,8,2,,,,1000,500,,64,fp8")
    assert (got.row_id, got.spec.format, got.gpu.name) == ("r1", "fp8", "MI300X")
    assert (got.recipe.parallelism.tp, got.recipe.replicas, got.gpu_count) == (2, 4, 8)
    assert (got.workload.input_tokens, got.workload.output_tokens, got.workload.concurrency) == (1000, 500, 64)


def test_lengths_drawn_from_a_range_count_with_their_mean() -> None:
    got = case("r1,Qwen/Qwen3-32B,MI300X,1,1,,,,1000,500,0.8,4,")
    assert (got.workload.input_tokens, got.workload.output_tokens) == (900, 450)


@pytest.mark.parametrize(
    ("engine", "share"),
    [
        ("vLLM 0.6.6 ROCm 6.3.1", 0.9),
        ("ATOM 1 docker rocm/atom-dev:vllm-v0.19.0-nightly", 0.9),
        ("vllm-v0.25.1", 0.92),
        ("", 0.92),
        ("vllm 9.0", 0.92),
    ],
)
def test_limits_a_row_does_not_state_are_those_of_its_release(engine: str, share: float) -> None:
    (got,) = READER.read(table.parse(f"row_id,model,gpu,engine_version\na,Qwen/Qwen3-32B,MI300X,{engine}\n", "test"))
    assert isinstance(got, Case), got
    assert got.recipe.gpu_memory_utilization == share


@pytest.mark.parametrize(("engine", "each"), [("sglang", 6), ("sglang+atom", 6), ("vllm", 24)])
def test_sglang_counts_the_requests_of_all_ranks_and_vllm_those_of_each(engine: str, each: int) -> None:
    head = "row_id,model,gpu,gpu_count,tp,dp_attention,engine,max_num_seqs,concurrency"
    (got,) = READER.read(table.parse(f"{head}\na,deepseek-ai/DeepSeek-R1,MI355X,4,4,1,{engine},24,16\n", "test"))
    assert isinstance(got, Case), got
    assert (got.recipe.parallelism.dp, got.recipe.max_num_seqs) == (4, each)


def test_attention_over_ranks_is_data_parallel_with_whole_experts() -> None:
    got = case("r1,deepseek-ai/DeepSeek-R1,MI355X,8,8,8,8,1,1000,1000,,256,fp8")
    split = got.recipe.parallelism
    assert (split.tp, split.dp, split.ep, split.world_size) == (1, 8, True, 8)


def test_one_bad_row_spoils_no_other_and_the_order_stays() -> None:
    got = read(
        "a,Qwen/Qwen3-32B,MI300X,1,1,,,,100,100,,1,",
        "b,nobody/unheard-of,MI300X,1,1,,,,100,100,,1,",
        "c,Qwen/Qwen3-32B,H100,1,1,,,,100,100,,1,",
        "d,Qwen/Qwen3-32B,MI300X,1,x,,,,100,100,,1,",
        "e,Qwen/Qwen3-32B,MI300X,1,1,,,,100,100,,1,",
    )
    assert [each.row_id for each in got] == ["a", "b", "c", "d", "e"]
    assert [isinstance(each, Case) for each in got] == [True, False, False, False, True]
    reasons = [each.reason for each in got if isinstance(each, Unreadable)]
    assert "not known" in reasons[0]
    assert "H100" in reasons[1]
    assert "tp 'x' is not a number" in reasons[2]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "model\nx\n"])
def test_what_is_no_table_says_which_columns_it_lacks(content: str) -> None:
    with pytest.raises(InvalidInput, match="it has no column"):
        table.parse(content, "test")


def test_other_delimiters_and_a_byte_order_mark_are_read() -> None:
    rows = table.parse("﻿model;gpu;tp\nQwen/Qwen3-32B;MI300X;2\n", "test")
    assert rows == [{"model": "Qwen/Qwen3-32B", "gpu": "MI300X", "tp": "2"}]


@given(st.lists(st.text(alphabet=st.characters(blacklist_characters="\r\n"), max_size=12), min_size=13, max_size=13))
@settings(deadline=None)
def test_no_row_makes_trouble(cells: list[str]) -> None:
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    assert len(read(quoted)) <= 1


@pytest.mark.parametrize(
    ("ratio", "tokens", "spread"), [("0", 512, 2.0), ("0.8", 922, 0.2222), ("1", 1024, 0.2), ("", 1024, 0.2)]
)
def test_lengths_drawn_from_a_share_of_the_nominal_ones_have_their_mean(ratio: str, tokens: int, spread: float) -> None:
    found = case(f"r,Qwen/Qwen3-32B,MI300X,1,1,,,,1024,1024,{ratio},8,")
    assert found.workload.input_tokens == tokens
    assert found.profile == "1024/1024"
    assert observed.loop(found).spread == pytest.approx(spread, abs=1e-3)


def test_rounds_of_a_closed_loop_follow_from_the_requests_sent() -> None:
    parsed = table.parse(f"{HEAD},num_prompts\nr,Qwen/Qwen3-32B,MI300X,1,1,,,,1024,1024,,8,,24", "test")
    (found,) = READER.read(parsed)
    assert isinstance(found, Case)
    assert observed.loop(found).rounds == 3
    assert observed.loop(case("r,Qwen/Qwen3-32B,MI300X,1,1,,,,1024,1024,,8,")).rounds == 10


@pytest.mark.parametrize(("mean", "kept"), [("180", 0.18), ("4152", None)])
def test_a_mean_that_one_compiling_request_makes_says_nothing_of_the_others(mean: str, kept: float | None) -> None:
    found = case("r,Qwen/Qwen3-32B,MI300X,1,1,,,,1000,1000,,1,")
    seen = observed.observe(found, {"ttft_ms_mean": mean, "ttft_ms_median": "37"})
    assert seen.first_token_s == (None if kept is None else pytest.approx(kept))
    assert seen.first_token_median_s == pytest.approx(0.037)
