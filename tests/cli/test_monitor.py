"""The commands of the monitor, as a user runs them against small servers and real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import metric_pages
from aim_engine.cli.main import run
from aim_engine.cli.top import sparkline


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path / "state"


class Served:
    """An engine behind a server."""

    def __init__(self, address: str, engine: metric_pages.Engine, pages: dict[str, metric_pages.Reply]) -> None:
        self.address, self.engine, self.pages = address, engine, pages

    def show(self) -> None:
        """Its page as it is now."""
        self.pages["/metrics"] = metric_pages.text(self.engine.page())

    def work(self, requests: int, *, ttft_s: float = 0.2) -> None:
        for _ in range(requests):
            self.engine.serve(ttft_s=ttft_s, gaps=10, gap_s=0.02)
        self.show()


@pytest.fixture
def served(state: Path) -> Iterator[Served]:
    engine = metric_pages.Engine(started_s=time.time() - 100)
    pages: dict[str, metric_pages.Reply] = {}
    with metric_pages.serving(pages) as address:
        found = Served(address, engine, pages)
        found.show()
        yield found


def document(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert run([*words]) == code
    return json.loads(capsys.readouterr().out)


def test_one_look_gives_one_document_with_what_happened_since_the_last(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    served.work(5)
    first = document(capsys, "monitor", served.address, "--once", "--json")
    assert first["schema"] == "aim-engine/monitor/v1"
    assert first["deployments"][0]["kpis"]["basis"] == "since start"
    served.work(30)
    second = document(capsys, "monitor", served.address, "--once", "--json")["deployments"][0]
    assert second["error"] is None
    assert second["kpis"]["readings"]["requests_s"]["count"] == 30
    assert second["kpis"]["readings"]["ttft_ms"]["value"] == pytest.approx(200.0)


def test_an_endpoint_that_is_down_is_said_so_and_no_error_of_ours(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "monitor", "127.0.0.1:9", "--once", "--json", code=3)["deployments"][0]
    assert "connection refused" in found["error"]
    assert found["kpis"] is None
    assert {alert["rule"]: alert["state"] for alert in found["alerts"]} == {
        "EngineDown": "pending",
        "ReplicaDown": "pending",
    }


def test_addresses_with_commas_between_them_are_replicas_of_one_deployment(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    both = f"{served.address},{served.address}/other"
    served.pages["/other/metrics"] = served.pages["/metrics"]
    assert document(capsys, "monitor", both, "--once", "--json", "--no-cards")["deployments"][0]["error"] is None
    served.work(10)
    served.pages["/other/metrics"] = served.pages["/metrics"]
    document(capsys, "monitor", both, "--once", "--json", "--no-cards")
    found = document(capsys, "report", both, "--since", "5m", "--json")
    assert found["figures"]["readings"]["requests_s"]["count"] == 20
    assert found["deployment"] == both.replace("http://", "")


def test_reports_in_every_form(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = served.address.partition("://")[2]
    run(["monitor", served.address, "--once"])
    served.work(40)
    run(["monitor", served.address, "--once"])
    found = document(capsys, "report", served.address, "--since", "1h", "--json")
    assert (found["schema"], found["deployment"]) == ("aim-engine/report/v1", name)
    assert found["figures"]["readings"]["requests_s"]["count"] == 40
    assert run(["report", served.address, "--compare", "previous"]) == 0
    assert "time to first token" in capsys.readouterr().out
    for suffix, begin in ((".html", "<!doctype html>"), (".md", "# "), (".json", "{")):
        path = tmp_path / f"report{suffix}"
        assert run(["report", served.address, "-o", str(path)]) == 0
        assert path.read_text().startswith(begin)
    assert run(["report", served.address, "--since", "soon"]) == 2
    assert run(["report", served.address, "-o", str(tmp_path / "no" / "such" / "folder.html")]) == 3


def test_suggestions_have_evidence_and_a_change(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    run(["monitor", served.address, "--once"])
    served.engine.counters["preemptions"] = 9.0
    served.engine.gauges["kv_usage"] = 0.99
    served.work(40)
    run(["monitor", served.address, "--once"])
    found = document(capsys, "suggest", served.address, "--no-doctor", "--json")
    assert [each["id"] for each in found["found"]] == ["K1"]
    assert "99%" in found["found"][0]["evidence"]
    assert run(["suggest", served.address, "--no-doctor"]) == 0
    assert "K1  the KV cache is full" in capsys.readouterr().out
    assert run(["suggest", served.address, "--no-doctor", "--apply", "K1", "--yes"]) == 2
    assert "error:" in capsys.readouterr().err


def test_a_log_of_an_engine_that_others_started_is_diagnosed(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "engine.log"
    log.write_text("[aiter] finish build [module_x], cost 116.0s\nValueError: Inconsistent GPU visibility env vars\n")
    found = document(capsys, "suggest", served.address, "--no-doctor", "--log", str(log), "--json")
    assert [each["id"] for each in found["found"]] == ["U12", "U6"]


def test_ratings_are_kept_and_shown(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["feedback", served.address, "good"]) == 0
    assert run(["feedback", served.address, "bad", "--comment", "wrong language"]) == 0
    assert run(["feedback", served.address, "--score", "gsm8k=0.71", "--items", "100"]) == 0
    found = document(capsys, "feedback", served.address, "--json")
    assert (found["good"], found["rated"], found["scores"][0]["value"]) == (1, 2, 0.71)
    assert run(["feedback", served.address, "--score", "gsm8k=71"]) == 2


def test_alerts_are_listed_silenced_and_exported(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["alerts"]) == 0
    assert "no alert fires" in capsys.readouterr().out
    assert run(["alerts", "silence", "KvSaturated", "--for", "2h"]) == 0
    assert "silence 1" in capsys.readouterr().out
    assert run(["alerts", "silence", "KvSaturatd"]) == 2
    assert "KvSaturated" in capsys.readouterr().err
    assert document(capsys, "alerts", "--json")["silences"][0]["rule"] == "KvSaturated"
    assert run(["alerts", "unsilence", "1"]) == 0
    assert run(["alerts", "unsilence", "1"]) == 2
    assert len(document(capsys, "alerts", "rules", "--json")["rules"]) >= 16
    assert run(["alerts", "export", served.address, "--selector", 'job="x"', "--ttft", "p99:500ms"]) == 0
    out = capsys.readouterr()
    rules = yaml.safe_load(out.out)["groups"][0]["rules"]
    assert any(rule["alert"] == "AimEngineTtftBudgetBurnFast" and "> 500" in rule["expr"] for rule in rules)
    assert "left out: QualityDrop" in out.err
    assert run(["alerts", "export", served.address, "--kubernetes", "models", "--label", "release=prometheus"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["metadata"]["labels"] == {"release": "prometheus"}


def test_a_test_message_goes_to_every_receiver(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "receivers"
    served.pages["/hook"] = metric_pages.text("")
    path.write_text(f"{served.address}/hook\nhttp://127.0.0.1:9/secret\n")
    path.chmod(0o600)
    assert run(["alerts", "try", "--receivers", str(path)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("delivered")
    assert "does not answer" in lines[1]
    assert "secret" not in "".join(lines)
    assert run(["alerts", "try"]) == 2


def test_top_shows_figures_and_their_course(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.engine.gauges["running"] = 3.0
    served.work(3)
    assert run(["top", served.address, "--rounds", "2", "--interval", "200ms"]) == 0
    shown = capsys.readouterr().out
    assert "requests running" in shown
    assert "█" in shown
    assert sparkline([0.0, None, 5.0, 10.0]) == "▁ ▅█"
    assert sparkline([]) == ""


def test_nothing_deployed_and_conflicting_wishes_are_refused(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["monitor", "--once"]) == 2
    assert "nothing is deployed" in capsys.readouterr().err
    assert run(["report"]) == 2
    assert run(["monitor", "127.0.0.1:9", "--json"]) == 2
    assert run(["monitor", "demo", "--once"]) == 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_monitor_stays_until_it_is_told_to_end_and_tells_a_webhook(
    served: Served, state: Path, tmp_path: Path
) -> None:
    receivers, port = tmp_path / "receivers", free_port()
    receivers.write_text(f"{served.address}/hook\n")
    receivers.chmod(0o600)
    command = [sys.executable, "-m", "aim_engine", "monitor", served.address, "--interval", "500ms"]
    with subprocess.Popen(
        [*command, "--receivers", str(receivers), "--listen", f"127.0.0.1:{port}"],
        env={**os.environ, "AIM_ENGINE_STATE_DIR": str(state)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 30
            served.work(10)
            while time.monotonic() < deadline:
                time.sleep(0.5)
                served.work(1)
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0 and (state / "history.db").exists():
                        break
            time.sleep(3.0)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert "watching" in said
    assert "Traceback" not in said
