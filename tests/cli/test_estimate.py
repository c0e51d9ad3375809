"""`aim-engine estimate` says what one configuration needs, and answers tables row by row."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

HEADER = "model,gpu,gpu_count,tp,max_model_len,gpu_memory_utilization,input_len,concurrency\n"
GOOD = "Qwen/Qwen3-32B,MI300X,2,2,40960,0.9,1024,8\n"


def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from aim_engine.cli.main import main; sys.exit(main())",
            "estimate",
            *arguments,
        ],
        input=given,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )


def ledger(shown: str) -> dict[str, float]:
    rows = re.findall(r"^ (\w[\w ]*?)\s{2,}(\d+\.\d) GiB\s*$", shown, re.MULTILINE)
    return {name: float(size) for name, size in rows}


def test_the_parts_of_a_device_add_up_to_its_memory() -> None:
    done = run("Qwen/Qwen3-32B", "--gpus", "2xMI300X")
    assert done.returncode == 0, done.stderr
    parts = ledger(done.stdout)
    assert set(parts) >= {"weights", "activations", "KV cache", "left to others"}
    assert sum(parts.values()) == pytest.approx(192.0, abs=0.3)


def test_what_is_missing_is_no_negative_cache() -> None:
    done = run("Qwen/Qwen3-32B", "--gpus", "1xRX7900XTX")
    assert done.returncode == 1
    assert not re.search(r"-\d+\.\d GiB", done.stdout)
    parts = ledger(done.stdout)
    assert "KV cache" not in parts
    assert sum(parts.values()) - 2 * parts["missing"] == pytest.approx(24.0, abs=0.3)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("Qwen/Qwen3-32B,MI300X,99999999999999999999999,2,,,,\n", "gpu_count"),
        ("Qwen/Qwen3-32B,MI300X,-5,2,,,,\n", "gpu_count"),
        ("Qwen/Qwen3-32B,MI300X,2,2,1e30,,,\n", "max_model_len"),
        ("Qwen/Qwen3-32B,MI300X,2,2,,98,,\n", "gpu_memory_utilization"),
        ("Qwen/Qwen3-32B,MI300X,2,2,,,-7,\n", "input_len"),
        ("Qwen/Qwen3-32B,MI300X,2,2,,,,1e12\n", "concurrency"),
        ("Qwen/Qwen3-32B,MI300X,two,2,,,,\n", "gpu_count"),
        ("Qwen/Qwen3-32B,H100,2,2,,,,\n", "H100"),
        ("Qwen/Qwen3-32B\n", "card"),
    ],
)
def test_a_bad_row_says_why_and_the_others_are_answered(row: str, reason: str) -> None:
    done = run("--batch", "-", given=HEADER + GOOD + row + GOOD)
    assert done.returncode == 0, done.stderr
    first, bad, last = (json.loads(line) for line in done.stdout.splitlines())
    assert reason in bad["reason"]
    assert "fits" not in bad
    assert first.pop("row_id") == "1"
    assert last.pop("row_id") == "3"
    assert first == last
    assert first["fits"] is True


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\x7fELF\x01\x02"])
def test_what_is_no_table_is_refused(content: str) -> None:
    done = run("--batch", "-", given=content)
    assert done.returncode == 2
    assert "model and gpu" in done.stderr
