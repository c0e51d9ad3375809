"""Plans the same question with AIM Engine and with the field's best open planner, and shows what each takes.

    python bench/planners.py [--json]

AIConfigurator is installed once into an environment of its own (`.planners`, some 850 MB). It knows no AMD card, so it is asked about an
NVIDIA node of eight; what is compared is time and memory, not the answers. Where it does not
install, that is said and the run succeeds with our own figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, TypedDict

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".planners"
UV = ROOT / ".tools" / "bin" / "uv"
OTHER = "aiconfigurator==0.12.0"
RUNS = 3
MODEL = "Qwen/Qwen3-32B"
TOKENS_IN, TOKENS_OUT, TTFT_MS, TPOT_MS = 1024, 512, 1000, 40


class Taken(NamedTuple):
    """The least that a command took in any of its runs."""

    clock_s: float
    processor_s: float
    peak_mib: float


class Row(TypedDict):
    """One line of the result."""

    planner: str
    question: str
    clock_s: float
    processor_s: float
    peak_mib: float


def main() -> int:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    limits = ["--ttft", f"{TTFT_MS}ms", "--tpot", f"{TPOT_MS}ms"]
    lengths = ["--input-tokens", str(TOKENS_IN), "--output-tokens", str(TOKENS_OUT)]
    ours = [sys.executable, "-m", "aim_engine", "plan", MODEL, "--gpus", "8xMI300X", *lengths, *limits]
    theirs = [
        *(str(PLACE / "bin" / "aiconfigurator"), "cli", "default", "--model-path", MODEL, "--total-gpus", "8"),
        *("--system", "h200_sxm", "--backend", "vllm", "--isl", str(TOKENS_IN), "--osl", str(TOKENS_OUT)),
        *("--ttft", str(TTFT_MS), "--tpot", str(TPOT_MS), "--no-color"),
    ]
    rows = [
        row("aim-engine", "8xMI300X", best(ours)),
        row("aim-engine", "8xMI300X, lossy formats too", best([*ours, "--allow-lossy"])),
        row("aim-engine", "8xMI300X at 8 requests/s, simulated", best([*ours, "--rate", "8"])),
    ]
    problem = install()
    if problem is None:
        try:
            rows.append(row(OTHER.replace("==", " "), "8 x H200", best(theirs)))
        except subprocess.CalledProcessError as err:
            problem = f"{OTHER} does not answer: {(err.stderr or '').strip().splitlines()[-1:]}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    if as_json:
        print(json.dumps({"machine": machine, "rows": rows, "not_compared": problem}, indent=2))
        return 0
    print(f"{machine}; best of {RUNS}; {MODEL}, {TOKENS_IN} tokens in, {TOKENS_OUT} out, {limits[1]} and {limits[3]}")
    print(f"  {'':<22} {'':<38}    clock  processor     memory")
    for each in rows:
        print(
            f"  {each['planner']:<22} {each['question']:<38} {each['clock_s']:>6.2f} s   {each['processor_s']:>6.2f} s"
            f"   {each['peak_mib']:>4.0f} MiB"
        )
    if problem is not None:
        print(f"not compared: {problem}")
    return 0


def install() -> str | None:
    """Why the other planner cannot be had; None when it is there."""
    if (PLACE / "bin" / "aiconfigurator").is_file():
        return None
    environment = {**os.environ, "VIRTUAL_ENV": str(PLACE)}
    for words in (
        [str(UV), "venv", "--quiet", "--python", sys.executable, str(PLACE)],
        [str(UV), "pip", "install", "--quiet", OTHER],
    ):
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            return f"{OTHER} does not install here: {done.stderr.strip().splitlines()[-1:]}"
    return None


def best(command: list[str]) -> Taken:
    """The best of several runs. Raises: CalledProcessError."""
    found = [run(command) for _ in range(RUNS)]
    return Taken(
        min(one.clock_s for one in found),
        min(one.processor_s for one in found),
        max(one.peak_mib for one in found),
    )


def run(command: list[str]) -> Taken:
    """What one run takes, its own children included. Raises: CalledProcessError."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=place)
        _, status, usage = os.wait4(process.pid, 0)
        clock_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said = out.read()
    if process.returncode not in (0, 1):
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)
    return Taken(clock_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def row(planner: str, question: str, taken: Taken) -> Row:
    """One line of the result."""
    return {
        "planner": planner,
        "question": question,
        "clock_s": round(taken.clock_s, 2),
        "processor_s": round(taken.processor_s, 2),
        "peak_mib": round(taken.peak_mib, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
