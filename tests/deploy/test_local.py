"""Real processes under the local runner: they start, outlive us, are found again, and end without remains."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aim_engine.deploy import chat, local, ports, process
from aim_engine.deploy.local import LocalRunner
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment, ProcessRef
from aim_engine.errors import EngineFailed, InvalidInput

ENGINE = Path(__file__).parent.parent / "fake_engine.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deployment(
    store: Store, *, name: str = "demo", port: int | None = None, behave: tuple[str, ...] = ()
) -> Deployment:
    port = port or free_port()
    extra = ("--behave", *behave) if behave else ()
    return Deployment(
        name=name,
        target="local",
        model_id="org/fake",
        served_as="fake",
        engine="vllm",
        engine_version="0.32.0",
        state="starting",
        created_at=local.now(),
        host="127.0.0.1",
        port=port,
        endpoint=f"http://127.0.0.1:{port}",
        command=(sys.executable, str(ENGINE), "serve", "fake", "--port", str(port), *extra),
        folder=str(store.folder(name)),
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state")
    yield store
    runner = LocalRunner(store)
    for name in store.names():
        runner.stop(store.load(name))


@pytest.fixture
def runner(store: Store) -> LocalRunner:
    return LocalRunner(store)


def launch(runner: LocalRunner, wanted: Deployment, env: dict[str, str], **options: Any) -> Deployment:
    (started,) = runner.launch([(wanted, env)], **options)
    return started


def session(started: Deployment) -> list[int]:
    assert started.supervisor is not None
    return process.session_members(started.supervisor.pid)


def wait_for(claim: Callable[[], bool], patience_s: float = 10.0) -> None:
    deadline = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_an_engine_starts_answers_and_stops_without_remains(store: Store, runner: LocalRunner) -> None:
    said: list[str] = []
    started = launch(runner, deployment(store), {"FAKE": "yes"}, timeout_s=20, progress=said.append)
    assert started.state == "ready"
    assert started.ready_s is not None
    assert "loading weights" in said
    assert said[-1].startswith("ready after")
    assert runner.status(started).state == "ready"
    answer = chat.ask(started.endpoint, started.served_as, "What is the capital of France?")
    assert answer.text == "The capital of France is Paris."
    assert (answer.tokens, answer.prompt_tokens, answer.finish_reason) == (4, 7, "stop")
    assert 0 < answer.ttft_ms <= answer.total_ms
    stopped = runner.stop(started)
    assert stopped.state == "stopped"
    assert session(started) == []
    assert runner.status(store.load("demo")).state == "stopped"


def test_an_engine_gets_its_variables_but_not_our_python(
    store: Store, runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ENGINE.parent.parent / "src"))
    started = launch(runner, deployment(store), {"FAKE": "yes"}, timeout_s=20)
    wait_for(lambda: any("environment" in line for line in runner.logs(started)))
    line = next(line for line in runner.logs(started) if line.startswith("environment"))
    assert line == f"environment: yes - cwd {store.folder('demo')}"


def test_an_engine_outlives_the_process_that_started_it(store: Store, runner: LocalRunner) -> None:
    wanted = deployment(store)
    program = f"""
import msgspec
from aim_engine.deploy.local import LocalRunner
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment
wanted = msgspec.json.decode({msgspec.json.encode(wanted)!r}, type=Deployment)
LocalRunner(Store({str(store.root.parent)!r})).launch([(wanted, {{}})], timeout_s=20)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    found = store.load("demo")
    assert found.state == "ready"
    assert runner.status(found).state == "ready"
    runner.stop(found)
    assert session(found) == []


def test_workers_that_ignore_sigterm_are_ended_too(store: Store, runner: LocalRunner) -> None:
    started = launch(runner, deployment(store, behave=("workers",)), {}, timeout_s=20)
    assert len(session(started)) == 4  # supervisor, engine, two workers
    runner.stop(started)
    assert session(started) == []


def test_workers_end_when_the_engine_is_killed(store: Store, runner: LocalRunner) -> None:
    started = launch(runner, deployment(store, behave=("workers",)), {}, timeout_s=20)
    assert started.supervisor is not None
    engine = next(
        pid for pid in session(started) if "serve fake" in process.command_line(pid) and pid != started.supervisor.pid
    )
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: not session(started))
    status = runner.status(started)
    assert status.state == "died"
    assert status.exit is not None
    assert status.exit.returncode == -signal.SIGKILL
    assert status.diagnosis is not None
    assert status.diagnosis.id == "host-oom"
    assert "signal 9" in status.detail


def test_a_stubborn_engine_is_killed_after_its_grace(
    store: Store, runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "STOP_GRACE_S", 0.5)
    started = launch(runner, deployment(store, behave=("stubborn",)), {}, timeout_s=20)
    before = time.monotonic()
    runner.stop(started)
    assert session(started) == []
    assert time.monotonic() - before < 10


def test_an_engine_that_dies_while_starting_is_explained(store: Store, runner: LocalRunner) -> None:
    with pytest.raises(EngineFailed) as caught:
        launch(runner, deployment(store, behave=("die",)), {}, timeout_s=20)
    assert "died while it started" in caught.value.what
    assert caught.value.why == "the KV cache cannot hold one sequence of 8192 tokens"
    assert caught.value.hint is not None
    assert "--max-model-len" in caught.value.hint
    assert any("max seq len" in line for line in caught.value.log_tail)
    left = store.load("demo")
    assert left.state == "failed"
    assert session(left) == []
    assert runner.status(left).state == "failed"


def test_an_engine_that_never_gets_ready_is_stopped(store: Store, runner: LocalRunner) -> None:
    with pytest.raises(EngineFailed, match="was not ready after"):
        launch(runner, deployment(store, behave=("hang",)), {}, timeout_s=1.5)
    assert session(store.load("demo")) == []


def test_a_program_that_does_not_exist_is_named(store: Store, runner: LocalRunner) -> None:
    wanted = msgspec.structs.replace(deployment(store), command=("/nowhere/vllm", "serve"))
    with pytest.raises(EngineFailed) as caught:
        launch(runner, wanted, {}, timeout_s=20)
    assert "/nowhere/vllm" in str(caught.value.why)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_start_leaves_nothing_running(store: Store, number: signal.Signals) -> None:
    wanted = deployment(store, behave=("hang", "workers"))
    program = f"""
import msgspec, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from aim_engine.deploy.local import LocalRunner
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment
wanted = msgspec.json.decode({msgspec.json.encode(wanted)!r}, type=Deployment)
try:
    LocalRunner(Store({str(store.root.parent)!r})).launch([(wanted, {{}})], timeout_s=60)
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    starter = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for(lambda: "demo" in store.names() and len(_session_or_none(store)) == 4)
        members = _session_or_none(store)
        starter.send_signal(number)
        assert starter.wait(timeout=30) == 130
    finally:
        starter.kill()
        starter.wait()
    assert [pid for pid in members if process.start_ticks(pid) is not None] == []
    assert store.load("demo").state == "stopped"


def _session_or_none(store: Store) -> list[int]:
    found = store.load("demo")
    return session(found) if found.supervisor is not None else []


def test_an_interruption_just_after_the_start_leaves_nothing_running(
    store: Store, runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, begun = local._supervise, []

    def interrupted(*arguments: Any) -> ProcessRef:
        begun.append(start(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "_supervise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch(runner, deployment(store, behave=("workers",)), {}, timeout_s=20)
    assert process.session_members(begun[0].pid) == []


def test_a_taken_port_is_refused_with_its_owner(store: Store, runner: LocalRunner) -> None:
    first = launch(runner, deployment(store), {}, timeout_s=20)
    with pytest.raises(InvalidInput) as caught:
        launch(runner, deployment(store, name="second", port=first.port), {}, timeout_s=20)
    assert f"port {first.port} on 127.0.0.1 is in use" in caught.value.what
    assert "fake_engine.py" in str(caught.value.why)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("--port ")
    assert runner.status(first).state == "ready"


def test_a_running_name_is_refused(store: Store, runner: LocalRunner) -> None:
    launch(runner, deployment(store), {}, timeout_s=20)
    with pytest.raises(InvalidInput, match="already deployed"):
        launch(runner, deployment(store), {}, timeout_s=20)


def test_a_name_that_died_may_be_used_again(store: Store, runner: LocalRunner) -> None:
    with pytest.raises(EngineFailed):
        launch(runner, deployment(store, behave=("die",)), {}, timeout_s=20)
    again = launch(runner, deployment(store), {}, timeout_s=20)
    assert runner.status(again).state == "ready"
    assert not any("max seq len" in line for line in runner.logs(again))


def test_a_record_whose_process_number_was_reused_counts_as_dead(store: Store, runner: LocalRunner) -> None:
    mine = process.start_ticks(os.getpid())
    assert mine is not None
    other = ProcessRef(pid=os.getpid(), start_ticks=mine - 1, boot_id=process.boot_id())
    stale = msgspec.structs.replace(deployment(store), supervisor=other, state="ready", ready_s=1.0)
    store.save(stale)
    assert runner.status(stale).state == "died"
    assert runner.stop(stale).state == "stopped"  # and does not touch the process that has the number now


def test_a_record_of_an_earlier_boot_counts_as_dead(store: Store, runner: LocalRunner) -> None:
    ticks = process.start_ticks(os.getpid())
    assert ticks is not None
    stale = msgspec.structs.replace(
        deployment(store),
        supervisor=ProcessRef(pid=os.getpid(), start_ticks=ticks, boot_id="another"),
        state="ready",
        ready_s=1.0,
    )
    status = runner.status(stale)
    assert status.state == "died"
    assert "nobody saw it end" in status.detail


def test_replicas_start_together_and_end_together(store: Store, runner: LocalRunner) -> None:
    wanted: list[tuple[Deployment, dict[str, str]]] = [
        (msgspec.structs.replace(deployment(store, name=f"demo-{n}", behave=("slow",)), group="demo"), {})
        for n in range(2)
    ]
    before = time.monotonic()
    started = runner.launch(wanted, timeout_s=20)
    assert time.monotonic() - before < 8
    assert store.members("demo") == ("demo-0", "demo-1")
    assert store.members("demo-1") == ("demo-1",)
    assert [runner.status(each).state for each in started] == ["ready", "ready"]


def test_one_failing_replica_takes_the_others_along(store: Store, runner: LocalRunner) -> None:
    good, bad = deployment(store, name="demo-0"), deployment(store, name="demo-1", behave=("die",))
    with pytest.raises(EngineFailed, match="demo-1"):
        runner.launch([(good, {}), (bad, {})], timeout_s=20)
    assert [session(store.load(name)) for name in ("demo-0", "demo-1")] == [[], []]


def test_following_a_log_ends_with_the_engine(store: Store, runner: LocalRunner) -> None:
    started = launch(runner, deployment(store), {}, timeout_s=20)
    lines = runner.logs(started, lines=1, follow=True)
    assert next(lines)
    runner.stop(started)
    assert isinstance(list(lines), list)


def test_a_port_below_1024_or_a_foreign_address_is_explained() -> None:
    with pytest.raises(InvalidInput, match="not an address of this machine"):
        ports.require_free("192.0.2.77", 8000)
    with pytest.raises(InvalidInput, match="is not an address"):
        ports.require_free("no such host.invalid", 8000)
