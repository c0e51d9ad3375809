"""status, logs and down on a real process that stands in for an engine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

import metric_pages
import plans
from aim_engine.cli import main
from aim_engine.deploy import chat, local, process
from aim_engine.deploy.local import LocalRunner
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment

ENGINE = Path(__file__).parent.parent / "fake_engine.py"
Output = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    store = Store(tmp_path / "state")
    yield store
    for name in store.names():
        if (store.folder(name) / "deployment.json").stat().st_size > 2:
            LocalRunner(store).stop(store.load(name))


def start(store: Store, name: str = "demo", group: str = "") -> Deployment:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    wanted = Deployment(
        name=name,
        target="local",
        model_id="org/fake",
        served_as="fake",
        group=group,
        engine="vllm",
        engine_version="0.32.0",
        state="starting",
        created_at=local.now(),
        host="127.0.0.1",
        port=port,
        endpoint=f"http://127.0.0.1:{port}",
        command=(sys.executable, str(ENGINE), "serve", "fake", "--port", str(port)),
        folder=str(store.folder(name)),
    )
    return LocalRunner(store).launch([(wanted, {})], timeout_s=20)[0]


def test_nothing_deployed_is_said_so(store: Store, capsys: Output) -> None:
    assert main.run(["status"]) == 0
    assert capsys.readouterr().out == "nothing is deployed\n"
    assert main.run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": "aim-engine/status/v1", "deployments": []}
    assert main.run(["down", "--all"]) == 0


def test_a_running_deployment_is_shown_with_its_figures(store: Store, capsys: Output) -> None:
    started = start(store)
    assert main.run(["status"]) == 0
    table = capsys.readouterr().out
    assert "demo" in table
    assert "ready" in table
    assert main.run(["status", "demo"]) == 0
    shown = capsys.readouterr()
    assert "time to first token" in shown.out
    assert "- (the engine does not export it)" in shown.out
    assert "since start" in shown.err
    assert main.run(["status", "demo", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)["deployments"]
    assert document["status"]["state"] == "ready"
    assert document["deployment"]["endpoint"] == started.endpoint
    assert document["kpis"]["readings"]["output_tok_s"]["value"] == 0


def test_a_dead_deployment_is_explained_and_is_a_no(store: Store, capsys: Output) -> None:
    started = start(store)
    assert started.supervisor is not None
    engine = next(pid for pid in process.session_members(started.supervisor.pid) if pid != started.supervisor.pid)
    os.kill(engine, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process.session_members(started.supervisor.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert main.run(["status", "demo"]) == 1
    shown = capsys.readouterr().out
    assert "died" in shown
    assert "likely cause: the process was killed by signal 9" in shown
    assert "remedy: look at `dmesg`" in shown
    assert main.run(["status"]) == 0


def test_an_unreadable_record_does_not_hide_the_others(store: Store, capsys: Output) -> None:
    start(store)
    broken = store.root / "broken" / "deployment.json"
    broken.parent.mkdir()
    broken.write_text("{}")
    assert main.run(["status"]) == 0
    table = capsys.readouterr().out
    assert "unreadable" in table
    assert "ready" in table
    assert main.run(["status", "broken"]) == 3


def test_the_log_is_shown_from_its_end(store: Store, capsys: Output) -> None:
    start(store)
    assert main.run(["logs", "demo", "-n", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main.run(["logs", "demo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "aim-engine/log/v1"
    assert any("startup complete" in line for line in document["lines"])
    assert main.run(["logs", "demo", "--json", "--follow"]) == 2


def test_what_a_deployment_measured_is_kept_as_a_recipe(store: Store, capsys: Output) -> None:
    made = start(store)
    store.save(made, plans.dense_on_all())
    chat.ask(made.endpoint, made.served_as, "hello")
    assert main.run(["recipes", "keep", "demo"]) == 0
    assert "ttft_ms 50" in capsys.readouterr().err
    assert main.run(["recipes", "show", "Qwen/Qwen3-32B"]) == 0
    assert "measured with vllm 0.32.0: " in capsys.readouterr().out


def test_down_stops_and_forgets(store: Store, capsys: Output) -> None:
    started = start(store)
    assert main.run(["down", "demo"]) == 0
    assert capsys.readouterr().out == "demo is down\n"
    assert started.supervisor is not None
    assert process.session_members(started.supervisor.pid) == []
    assert store.names() == ()
    assert main.run(["down", "demo"]) == 2


def test_all_replicas_go_by_their_common_name(store: Store, capsys: Output) -> None:
    for index in range(2):
        start(store, f"demo-{index}", group="demo")
    assert main.run(["logs", "demo"]) == 2
    assert "name one of demo-0, demo-1" in capsys.readouterr().err
    assert main.run(["status", "demo", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["deployments"]) == 2
    assert main.run(["down", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stopped"] == ["demo-0", "demo-1"]


def test_down_all_takes_yes_and_skips_what_it_cannot_read(store: Store, capsys: Output) -> None:
    start(store)
    broken = store.root / "broken" / "deployment.json"
    broken.parent.mkdir()
    broken.write_text("{}")
    assert main.run(["down", "--all", "--yes", "--json"]) == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"schema": "aim-engine/down/v1", "stopped": ["demo"], "failed": ["broken"]}
    assert "broken" in shown.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["status", "demo"], "there is no deployment 'demo'"),
        (["logs", "demo"], "there is no deployment 'demo'"),
        (["down"], "say which deployment to stop"),
        (["down", "demo", "--all"], "say which deployment to stop"),
        (["down", "A B"], "is not a usable deployment name"),
    ],
)
def test_what_cannot_be_done_is_wrong_input(store: Store, capsys: Output, argv: list[str], words: str) -> None:
    assert main.run(argv) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.out == ""


OVERLAY = """
- {name: Answers, severity: info, summary: it answers, basis: test, all_of: [{kpi: up_fraction, over: 1m, above: 0.5}]}
"""


def test_what_fires_when_a_deployment_is_taken_down_is_over_whether_a_monitor_runs_or_not(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    (tmp_path / "data" / "alerts").mkdir(parents=True)
    (tmp_path / "data" / "alerts" / "own.yaml").write_text(OVERLAY)
    monkeypatch.setenv("AIM_ENGINE_CATALOG_DIR", str(tmp_path / "data"))
    pages: dict[str, metric_pages.Reply] = {}
    told: list[tuple[str, str, str]] = []

    def hook(handler: BaseHTTPRequestHandler) -> None:
        said = json.loads(handler.body)  # type: ignore[attr-defined]
        told.append((said["deployment"], said["alert"], said["status"]))
        metric_pages.text("")(handler)

    pages["/hook"] = hook
    receivers = tmp_path / "receivers"
    start(store, "one")
    with metric_pages.serving(pages) as address, running_monitor(f"{address}/hook", receivers) as watched:
        watched.until(lambda: ("one", "Answers", "firing") in told, "it is watched")
        start(store, "two")
        assert main.run(["down", "one"]) == 0
        watched.until(lambda: ("one", "Answers", "resolved") in told, "its end is told by the monitor that runs")
        watched.until(lambda: ("two", "Answers", "firing") in told, "a deployment that came later is watched, too")
        watched.stop()
        monkeypatch.setenv("AIM_ENGINE_NOTIFY_FILE", str(receivers))
        assert main.run(["down", "two"]) == 0
    assert "two: Answers is over" in capsys.readouterr().err
    assert main.run(["alerts", "--json"]) == 0, "no alert fires"
    left = json.loads(capsys.readouterr().out)["alerts"]
    assert {(alert["deployment"], alert["state"]) for alert in left} == {("one", "resolved"), ("two", "resolved")}
    for name in ("one", "two"):
        assert [each[1:] for each in told if each[0] == name] == [("Answers", "firing"), ("Answers", "resolved")]


class Monitored:
    """A monitor that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def until(self, claim: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 40
        while not claim():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, what
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=20) == 0, self.process.communicate()[1]


@contextmanager
def running_monitor(hook: str, receivers: Path) -> Iterator[Monitored]:
    """A monitor of all that is deployed, which tells `hook`."""
    receivers.write_text(f"{hook}\n")
    receivers.chmod(0o600)
    command = [sys.executable, "-m", "aim_engine", "monitor", "--interval", "500ms", "--no-cards"]
    with subprocess.Popen([*command, "--receivers", str(receivers)], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Monitored(process)
        finally:
            if process.poll() is None:
                process.kill()
