"""Reports from a Prometheus server: the same figures as from our own history, for every engine's names."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import metric_pages
from aim_engine.cli.main import run
from aim_engine.deploy import endpoint
from aim_engine.monitor import views
from aim_engine.monitor.collect import Collector, Watched
from aim_engine.monitor.history import History, Target
from aim_engine.monitor.prometheus import Prometheus

pytestmark = pytest.mark.consumers
SECONDS = 25


@contextmanager
def scraping(address: str, folder: Path) -> Iterator[str]:
    """A Prometheus that looks at an address each second; gives its own."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: engine, static_configs: [{{targets: ['{address.removeprefix('http://')}']}}]}}]\n"
    )
    command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL) as process:
        try:
            ends = time.monotonic() + 30
            while not endpoint.answers(f"http://127.0.0.1:{port}/-/ready"):
                assert time.monotonic() < ends
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_a_prometheus_gives_the_same_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    engine = metric_pages.Engine(name, started_s=time.time())
    for _ in range(200):  # Prometheus does not extend what begins near zero
        engine.serve(ttft_s=0.2, gaps=10, gap_s=0.02)
    pages = {"/metrics": metric_pages.text(engine.page())}
    history = History(tmp_path / "history.db")
    with metric_pages.serving(pages) as address, scraping(address, tmp_path) as server:
        watched = Watched(target=Target(deployment="demo", name="demo", endpoint=address), url=f"{address}/metrics")
        collector = Collector([watched], history)
        ends = time.monotonic() + 30
        while not Prometheus(server).query('up{job="engine"} == 1', time.time()):
            assert time.monotonic() < ends
            time.sleep(0.2)
        begin_s = time.time()
        for second in range(SECONDS):
            for n in range(4):
                engine.serve(ttft_s=0.05 + 0.1 * (n % 3), gaps=10, gap_s=0.02)
            # Busy for ten seconds, in which only the first and the last look are answered.
            engine.gauges |= {"running": 20.0 if 8 <= second < 18 else 2.0, "kv_usage": 0.3}
            failing = 9 <= second < 17
            pages["/metrics"] = metric_pages.text("busy", status=503) if failing else metric_pages.text(engine.page())
            collector.once()
            time.sleep(max(0.0, begin_s + second + 1 - time.time()))
        end_s = time.time()
        own = views.of_history(history, "demo", begin_s, end_s, points=0).figures
        theirs = views.of_prometheus(Prometheus(server, selector='job="engine"'), "demo", begin_s, end_s).figures
        words = [
            "report",
            address,
            "--prometheus",
            server,
            "--selector",
            'job="engine"',
            "--since",
            f"{SECONDS}s",
            "--json",
        ]
        capsys.readouterr()
        assert run(words) == 0
        document = json.loads(capsys.readouterr().out)
        collector.close()
    history.close()
    for kpi in ("ttft_ms", "itl_ms", "e2e_ms", "output_tok_s_per_user"):
        assert theirs.value(kpi) == pytest.approx(own.value(kpi), rel=0.01), kpi
    for kpi in ("output_tok_s", "requests_s", "input_tok_s"):
        assert theirs.value(kpi) == pytest.approx(own.value(kpi), rel=0.2), kpi  # looks come at other moments, of 25
    looks = (2 * 20.0 + 15 * 2.0) / 17
    for figures in (own, theirs):
        batch = figures.value("batch")
        assert batch == pytest.approx((10 * 20.0 + 15 * 2.0) / 25, rel=0.12)
        assert batch is not None
        assert batch > 1.8 * looks, "a mean over looks would miss most of the busy time"
    assert theirs.value("kv_usage_peak_fraction") == own.value("kv_usage_peak_fraction") == 0.3
    assert theirs.readings["ttft_ms"].quantiles["p90"].high == own.readings["ttft_ms"].quantiles["p90"].high
    assert theirs.value("junction_c") is None
    assert document["schema"] == "aim-engine/report/v1"
    assert document["figures"]["readings"]["ttft_ms"]["value"] == pytest.approx(own.value("ttft_ms"), rel=0.02)
