"""`aim-engine plan`: limits as they are typed, what the explanation shows, and pictures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import aim_engine.cli.front as fronts
from aim_engine import settings, workflow
from aim_engine.errors import InvalidInput
from aim_engine.workflow import Request
from aim_engine.workload import Slo, Workload

MODEL = ("Qwen/Qwen3-32B", "--gpus", "8xMI300X")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from aim_engine.cli.main import main; sys.exit(main())",
            "plan",
            *arguments,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"},
        check=False,
    )


def test_a_percentile_limit_is_kept_and_its_margin_and_tails_are_shown() -> None:
    done = run(*MODEL, "--rate", "4", "--ttft", "p99:900ms", "--tpot", "p90:60ms", "--explain")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"p50 / p90 / p99\s+first token \S+ m?s / \S+ m?s / \S+ m?s; per token .* \(simulated\)", done.stdout
    )
    assert re.search(
        r"^p99 ttft: .* below the limit of 900 ms \(margin -?\d+% to \d+% over the range\)", done.stdout, re.MULTILINE
    )
    assert re.search(r"^p90 tpot: .* below the limit of 60.0 ms", done.stdout, re.MULTILINE)
    assert "requests of one replica, simulated" in done.stdout
    assert re.search(r"^figures: \w+, fit of", done.stdout, re.MULTILINE)
    assert re.search(r"^price: \d+(\.\d+)? USD per GPU-hour \(.*, \d{4}-\d\d-\d\d\)", done.stdout, re.MULTILINE)
    assert "(up) against output tok/s per user (across)" in done.stdout
    assert "most worth measuring:" in done.stdout


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("500", "it has no unit"),
        ("p98:500ms", "use one of p50, p90, p95, p99"),
        ("mean:500ms", "--ttft p99:500ms for a percentile"),
        ("p99:", "is not a duration"),
        ("p99:0ms", "can never be met"),
        ("p100:1s", "--ttft p99:500ms for a percentile"),
    ],
)
def test_a_limit_that_cannot_be_read_says_how_to_write_it(limit: str, told: str) -> None:
    done = run(*MODEL, "--ttft", limit)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_what_nothing_keeps_gets_the_three_nearest_and_exit_code_one() -> None:
    done = run(*MODEL, "--concurrency", "16", "--tpot", "1ms")
    assert done.returncode == 1
    assert "below what these devices can do at all" in done.stdout
    assert re.search(r"hint: relax it: --tpot \d+ms", done.stderr)
    assert len(re.findall(r"or: \dx tp\d bf16 .*: tpot \d+\.\d ms", done.stderr)) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--concurrency", "8", "--rate", "2"), "give a concurrency or a rate, not both"),
        (("--input-tokens", "900M"), "cannot serve a request of"),
        (("--input-tokens", "0"), "is not a workload"),
        (("--rate", "0"), "is not possible"),
        (("--plot", "front.pdf"), "name it .svg or .png"),
    ],
)
def test_contradictions_and_absurd_figures_are_refused_in_words(arguments: tuple[str, ...], told: str) -> None:
    done = run(*MODEL, *arguments)
    assert done.returncode == 2, done.stdout
    assert told in done.stderr


def test_pictures_are_drawn_and_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("one.svg", "two.svg", "front.png")]
    for name in names:
        done = run(*MODEL, "--tpot", "40ms", "--plot", str(name))
        assert done.returncode == 0, done.stderr
    one, two, png = (name.read_bytes() for name in names)
    assert one == two
    assert png.startswith(b"\x89PNG\r\n")
    words = " ".join(ET.fromstring(one).itertext())
    for word in (
        "Qwen/Qwen3-32B",
        "tp1 bf16",
        "tp8 bf16",
        "output tok/s per user",
        "limit on TPOT: 40 ms",
        "chosen: 8 x tp1",
    ):
        assert word in words


def test_a_picture_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    done = run(*MODEL, "--plot", str(tmp_path / "missing" / "front.svg"))
    assert done.returncode == 3
    assert "the picture cannot be written to" in done.stderr


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidInput) as raised:
        fronts.check(tmp_path / "front.png")
    assert raised.value.hint == "pip install 'aim-engine[plot]'"


def test_the_terminal_plot_puts_the_fast_right_the_dense_up_and_marks_the_choice() -> None:
    request = Request(model="Qwen/Qwen3-32B", gpus="8xMI300X", workload=Workload(concurrency=64), slo=Slo(tpot_ms=60.0))
    document = workflow.choose(request, settings.load({"offline": True}))
    lines = list(fronts.text(document))
    grid = [line.partition("│")[2] or line.partition("┤")[2] for line in lines[1 : 1 + fronts.LINES]]
    marks = [(row, column) for row, line in enumerate(grid) for column, mark in enumerate(line) if mark != " "]
    front = [(row, column) for row, column in marks if grid[row][column] != "*"]
    assert [row for row, _ in sorted(front, key=lambda mark: (mark[1], mark[0]))] == sorted(row for row, _ in front)
    assert sum(line.count("*") for line in grid) == 1
    assert {line[0] for line in lines if " requests of a replica" in line} == {
        grid[row][column] for row, column in front
    }
    assert max(len(line) for line in lines) <= 100
