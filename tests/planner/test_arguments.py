"""Command lines of measured servers fill the cells that a table leaves empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aim_engine import settings, workflow
from aim_engine.errors import Corrupt
from aim_engine.planner import arguments, table
from aim_engine.planner.table import Case


def test_vllm_arguments_become_columns() -> None:
    said = arguments.columns(
        "--tensor-parallel-size 4 --kv-cache-dtype fp8_e4m3 --max-num-batched-tokens 16384 --gpu-memory-utilization=0.8 "
        """--speculative-config '{"num_speculative_tokens": 3, "method": "mtp"}' ENV X=1"""
    )
    assert said == {
        "kv_dtype": "fp8",
        "max_num_batched_tokens": "16384",
        "gpu_memory_utilization": "0.8",
        "spec_decoding": "mtp3",
    }


def test_underscores_and_sglang_names_are_understood() -> None:
    assert arguments.columns("--kv_cache_dtype fp8 --num-speculative-tokens 2") == {
        "kv_dtype": "fp8",
        "spec_decoding": "mtp2",
    }
    assert arguments.columns("--speculative-num-steps 1 --max-running-requests 24") == {
        "spec_decoding": "mtp1",
        "max_num_seqs": "24",
    }


@pytest.mark.parametrize("engine", ["atom", "vllm+atom", "SGLang+ATOM"])
def test_atom_is_measured_with_an_fp8_cache_unless_its_arguments_say_otherwise(engine: str) -> None:
    row = {"engine": engine, "server_args_id": "a", "kv_dtype": ""}
    assert arguments.filled(row, {"a": "--tensor-parallel-size 8"})["kv_dtype"] == "fp8"
    assert arguments.filled(row, {"a": "--kv-cache-dtype auto"})["kv_dtype"] == "auto"
    assert arguments.filled(row | {"kv_dtype": "bf16"}, {})["kv_dtype"] == "bf16"
    assert not arguments.filled(row | {"engine": "vllm"}, {}).get("kv_dtype")


@pytest.mark.parametrize(
    ("row", "ratio"),
    [
        ({"source": "ROCm/ATOM:benchmark-dashboard/data.js"}, "0.8"),
        ({"source_family": "InferenceX fixtures"}, "0.8"),
        ({"source": "ROCm/ATOM:benchmark-dashboard/data.js", "length_ratio_min": ""}, ""),
        ({"source": "our own run"}, ""),
        ({}, ""),
    ],
)
def test_benchmarks_known_to_draw_lengths_do_where_a_table_has_no_such_column(row: dict[str, str], ratio: str) -> None:
    assert arguments.filled(row, {}).get("length_ratio_min", "") == ratio


def test_a_dashboards_name_tells_of_drafts() -> None:
    assert arguments.columns("", "dashboard name 'Qwen3-Next-80B-mtp-tp4'; args from x")["spec_decoding"] == "mtp"
    assert arguments.columns("", "dashboard name 'DeepSeek-R1-mtp3'; no entry")["spec_decoding"] == "mtp3"
    assert arguments.columns("", "dashboard name 'DeepSeek-R1-MTP-MoEFP4'; no entry") == {}


@pytest.mark.parametrize(
    "text", ["", "--kv-cache-dtype", "'unbalanced --max-num-seqs 4", "--speculative-config {broken"]
)
def test_broken_lines_say_what_they_still_say(text: str) -> None:
    said = arguments.columns(text)
    assert set(said) <= {"kv_dtype", "max_num_seqs", "spec_decoding"}


def test_a_cell_that_is_filled_stays() -> None:
    row = {"server_args_id": "a1", "kv_dtype": "auto", "spec_decoding": ""}
    got = arguments.filled(row, {"a1": "--kv-cache-dtype fp8 --num-speculative-tokens 1"})
    assert (got["kv_dtype"], got["spec_decoding"]) == ("auto", "mtp1")


def test_the_file_beside_a_table_is_read(tmp_path: Path) -> None:
    rows = "row_id,model,gpu,tp,input_len,output_len,concurrency,server_args_id\nr1,Qwen/Qwen3-32B,MI300X,1,1024,1024,8,a1\n"
    place = tmp_path / "measured.csv"
    place.write_text(rows)
    (tmp_path / workflow.ARGUMENTS_FILE).write_text(json.dumps({"a1": "--max-num-seqs 4 --kv-cache-dtype fp8"}))
    reader = workflow.table_reader(None, settings.load({"offline": True}), place)
    (case,) = reader.read(table.parse(rows, str(place)))
    assert isinstance(case, Case)
    assert (case.recipe.max_num_seqs, case.recipe.kv_cache_dtype) == (4, "fp8")


def test_a_broken_file_of_arguments_is_named(tmp_path: Path) -> None:
    place = tmp_path / "measured.csv"
    place.write_text("model,gpu\n")
    (tmp_path / workflow.ARGUMENTS_FILE).write_text("[1")
    with pytest.raises(Corrupt, match=r"server_args\.json"):
        workflow.table_reader(None, settings.load({"offline": True}), place)
