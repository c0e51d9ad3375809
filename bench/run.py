"""Measures what AIM Engine promises about its own speed, as ratios to a bare interpreter in the same run.

    python bench/run.py [--json]

Whole processes are timed, the best of several runs, because other work on the machine only ever adds. Exits 1 when a promise
is broken. `bench/README.md` holds the table of promises with figures that were measured.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, TypedDict

import aim_engine

BEST_OF = 7
PYTHON = sys.executable
AIM = [PYTHON, "-m", "aim_engine"]
CLICK_PROGRAM = "import click\n@click.command()\ndef main(): pass\nmain(standalone_mode=False)"


class Row(TypedDict):
    """One line of the result."""

    name: str
    seconds: float
    ratio: float
    at_most: float | None


class Promise(NamedTuple):
    """A command, and how many times `python -c pass` it may cost."""

    name: str
    command: list[str]
    at_most: float | None
    """None: shown for comparison, not promised."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    compileall.compile_dir(Path(aim_engine.__file__).parent, quiet=1)  # as pip does when it installs a wheel
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        subprocess.run(
            [*AIM, "plan", "Qwen/Qwen3-32B", "--gpus", "8xMI300X", "-o", str(plan)], check=True, capture_output=True
        )
        promises = [
            Promise("python -c pass", [PYTHON, "-c", "pass"], None),
            Promise("a click program of one command", [PYTHON, "-c", CLICK_PROGRAM], None),
            Promise("aim-engine --version", [*AIM, "--version"], 3.0),
            Promise("aim-engine --help", [*AIM, "--help"], 8.0),
            Promise(
                "aim-engine plan Qwen/Qwen3-32B --gpus 8xMI300X",
                [*AIM, "plan", "Qwen/Qwen3-32B", "--gpus", "8xMI300X"],
                24.0,
            ),
            Promise("aim-engine model Qwen/Qwen3-32B", [*AIM, "model", "Qwen/Qwen3-32B"], 16.0),
            Promise("aim-engine gpus", [*AIM, "gpus"], 16.0),
            Promise(
                "aim-engine render PLAN --target kubernetes",
                [*AIM, "render", str(plan), "--target", "kubernetes"],
                24.0,
            ),
        ]
        seconds = best_of_rounds(promises)
    bare = seconds["python -c pass"]
    catalogue = whole_catalogue()
    rows: list[Row] = [
        {
            "name": promise.name,
            "seconds": round(seconds[promise.name], 3),
            "ratio": round(seconds[promise.name] / bare, 1),
            "at_most": promise.at_most,
        }
        for promise in promises
    ]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    if as_json:
        print(json.dumps({"machine": machine, "rows": rows, "catalogue": catalogue}, indent=2))
    else:
        print(f"machine: {machine}; best of {BEST_OF}")
        for row in rows:
            limit = f"at most {row['at_most']:.0f}x" if row["at_most"] else ""
            print(f"  {row['name']:<52} {row['seconds']:.3f} s  {row['ratio']:>5.1f}x  {limit}")
        print(
            f"  {'planning every bundled model on 8xMI300X, in process':<52} {catalogue['seconds']:.2f} s for {catalogue['models']} models"
        )
    broken = [row["name"] for row in rows if row["at_most"] and row["ratio"] > row["at_most"]]
    for name in broken:
        print(f"broken: {name}")
    return 1 if broken else 0


def best_of_rounds(promises: list[Promise]) -> dict[str, float]:
    """Seconds of the fastest run of each command; the commands take turns, so that each meets the same machine."""
    fastest = {promise.name: float("inf") for promise in promises}
    for _ in range(BEST_OF):
        for promise in promises:
            started = time.perf_counter()
            subprocess.run(promise.command, check=True, capture_output=True)
            fastest[promise.name] = min(fastest[promise.name], time.perf_counter() - started)
    return fastest


def whole_catalogue() -> dict[str, float]:
    """Seconds to plan every bundled model, one after the other in one process."""
    from aim_engine import settings, workflow
    from aim_engine.model import catalog
    from aim_engine.workflow import Request

    names = catalog.names()
    chosen = settings.load({"offline": True})
    started = time.perf_counter()
    for name in names:
        workflow.choose(Request(model=name, gpus="8xMI300X"), chosen)
    return {"models": len(names), "seconds": round(time.perf_counter() - started, 2)}


if __name__ == "__main__":
    sys.exit(main())
