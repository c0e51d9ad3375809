"""Loads of a real engine: made by its own benchmark, kept as recordings, and played again through the simulated scheduler.

What a recording holds for each request is when it came, its tokens, and the two times a user feels.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec

from aim_engine.hardware.gpu import Gpu
from aim_engine.model import catalog
from aim_engine.perf import calibration
from aim_engine.perf.estimate import Spread
from aim_engine.perf.play import Steps
from aim_engine.perf.roofline import Model
from aim_engine.perf.simulate import Engine, Outcome, StepTime, Traffic, simulate
from aim_engine.recipe.recipe import Recipe
from aim_engine.workload import Workload

ROUNDS = 25
BLOCK_TOKENS = 128
"""Of the CPU backend's cache."""


class Seen(msgspec.Struct, frozen=True):
    """One request."""

    came_s: float
    prompt: int
    output: int
    ttft_ms: float
    tpot_ms: float


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of `vllm bench serve` sent and saw."""

    command: str
    engine: str
    machine: str
    date: str
    gpu: Gpu
    """The device as the planner described it."""
    recipe: Recipe
    cache_tokens: int
    concurrency: int | None = None
    """None: requests came at random."""
    requests: tuple[Seen, ...]

    @property
    def finished_s(self) -> float:
        """Requests that ended per second."""
        ends = [one.came_s + one.ttft_ms / 1e3 + one.tpot_ms / 1e3 * (one.output - 1) for one in self.requests]
        return len(ends) / (max(ends) - min(one.came_s for one in self.requests))

    def spread(self, name: str) -> dict[int, float]:
        """Percentiles (nearest rank) of a time over requests."""
        values = sorted(getattr(one, f"{name}_ms") for one in self.requests)
        return {percent: values[-(-len(values) * percent // 100) - 1] for percent in (50, 90)}

    def play(self, steps: StepTime, fixed_s: float) -> Outcome:
        """The same requests through the simulated scheduler."""
        prompt, output = max(one.prompt for one in self.requests), max(one.output for one in self.requests)
        came = [one.came_s for one in self.requests]
        gaps = [0.0, *(after - before for before, after in itertools.pairwise(came))]
        traffic = Traffic(
            input_tokens=prompt,
            output_tokens=output,
            requests=len(self.requests),
            rate_requests_s=None if self.concurrency is not None else self.finished_s,
            concurrency=self.concurrency,
            trace=tuple((gap, one.prompt, one.output) for gap, one in zip(gaps, self.requests, strict=True)),
        )
        engine = Engine(
            max_num_seqs=self.recipe.max_num_seqs,
            max_num_batched_tokens=self.recipe.max_num_batched_tokens,
            cache_tokens=self.cache_tokens,
            block_tokens=BLOCK_TOKENS,
            fixed_s=fixed_s,
        )
        return simulate(engine, traffic, steps)

    def steps(self) -> Steps:
        """Step times as the model has them for this device, before any measurement."""
        spec = catalog.load(self.recipe.model_id)
        assert spec is not None
        mean = Workload(
            input_tokens=round(sum(one.prompt for one in self.requests) / len(self.requests)),
            output_tokens=round(sum(one.output for one in self.requests) / len(self.requests)),
        )
        return Steps(Model(spec, self.gpu, self.recipe, mean, calibration.pick(calibration.load(), self.gpu)))


class Calibrated:
    """Step times whose decode and prompt parts were stretched until one load came out as it was measured."""

    def __init__(self, load: Load, fixed_s: float = 0.01) -> None:
        self.decode, self.prompt = 1.0, 1.0
        self.fixed_s = fixed_s
        self._steps = load.steps()
        for _ in range(ROUNDS):
            got = load.play(self, fixed_s)
            self.decode *= (load.spread("tpot")[50] / got.tpot_ms.p50) ** 0.7
            self.prompt *= (load.spread("ttft")[50] / got.ttft_ms.p50) ** 0.7

    def __call__(self, rows: int, context: float, tokens: int, prompt_context: float, /) -> float:
        """Seconds of a step."""
        plain = self._steps(rows, context, 0, 0.0)
        return plain * self.decode + (self._steps(rows, context, tokens, prompt_context) - plain) * self.prompt


def errors(load: Load, calibrated: Calibrated) -> dict[str, float]:
    """Relative error of each percentile of a load that is predicted from another."""
    got = load.play(calibrated, calibrated.fixed_s)
    spreads: dict[str, Spread] = {"ttft": got.ttft_ms, "tpot": got.tpot_ms}
    return {
        f"{name} p{percent}": spread.at(percent) / load.spread(name)[percent] - 1
        for name, spread in spreads.items()
        for percent in (50, 90)
    }


def command(
    python: Path, *, port: int, model: str, folder: Path, requests: int, seed: int, traffic: tuple[str, ...]
) -> list[str]:
    """A run of the engine's own benchmark: random prompts of 64 to 192 tokens, answers of 24 to 72."""
    return [
        str(python.parent / "vllm"),
        *("bench", "serve", "--backend", "openai", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", model, "--tokenizer", str(folder), "--dataset-name", "random", "--random-input-len", "128"),
        *("--random-output-len", "48", "--random-range-ratio", "0.5", "--ignore-eos", "--num-warmups", "4"),
        *("--num-prompts", str(requests), "--seed", str(seed), *traffic),
    ]


def record(words: list[str], into: Path, build: Callable[[str, tuple[Seen, ...]], Load]) -> Load:
    """Run a benchmark and keep what it saw. `into` is a folder for its result."""
    saving = ["--save-result", "--save-detailed", "--result-dir", str(into), "--result-filename", "result.json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    subprocess.run([*words, *saving], check=True, capture_output=True, timeout=900, env=environment)
    return build(" ".join(words), seen(into / "result.json"))


def seen(result: Path) -> tuple[Seen, ...]:
    """The requests of a detailed result of `vllm bench serve`, in the order in which they came."""
    told = json.loads(result.read_text(encoding="utf-8"))
    columns = zip(
        told["start_times"], told["input_lens"], told["output_lens"], told["ttfts"], told["itls"], strict=True
    )
    first = min(told["start_times"])
    found = [
        Seen(
            round(came - first, 4),
            prompt,
            output,
            round(ttft * 1e3, 2),
            round(sum(gaps) / max(1, output - 1) * 1e3, 3),
        )
        for came, prompt, output, ttft, gaps in columns
        if output
    ]
    return tuple(sorted(found, key=lambda one: one.came_s))


def write(load: Load, path: Path) -> None:
    """A recording as a file."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(load), indent=1) + b"\n")


def read(path: Path) -> Load:
    """A recording."""
    return msgspec.json.decode(path.read_bytes(), type=Load)
