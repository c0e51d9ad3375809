"""Telling people: webhooks, Apprise services and a real Alertmanager; kept until delivered, told once, ended."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

import metric_pages
from aim_engine.errors import InvalidInput
from aim_engine.monitor import notify
from aim_engine.monitor.history import History, Look, Target
from aim_engine.monitor.ledger import Alert, Ledger
from aim_engine.monitor.span import Span
from aim_engine.monitor.watch import Watch
from aim_engine.render import alert_rules, rulefile

ALERT = Alert(
    deployment="demo",
    rule="KvSaturated",
    severity="warning",
    state="firing",
    since_s=1_800_000_000.0,
    summary="the KV cache is 99.0% full",
    value=0.99,
    told_s=1_800_000_000.0,
)


@contextmanager
def receiver(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]], dict[str, metric_pages.Reply]]]:
    """A webhook; gives its address, what it got, and its pages, which may be exchanged."""
    got: list[dict[str, Any]] = []

    def keep(handler: BaseHTTPRequestHandler) -> None:
        got.append(json.loads(handler.body))  # type: ignore[attr-defined]
        metric_pages.text("", status=status)(handler)

    pages: dict[str, metric_pages.Reply] = {"/hook": keep}
    with metric_pages.serving(pages) as address:
        yield f"{address}/hook", got, pages


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def test_a_webhook_gets_the_alert_as_json(ledger: Ledger) -> None:
    with receiver() as (address, got, _):
        ledger.put_alerts([ALERT], notify.messages(ALERT, [address]), 5.0)
        assert notify.deliver(ledger, 5.0) == (1, ())
        assert notify.deliver(ledger, 500.0) == (0, ())
    (document,) = got
    assert (document["schema"], document["status"], document["alert"]) == (
        "aim-engine/alert/v1",
        "firing",
        "KvSaturated",
    )
    assert document["since"] == "2027-01-15T08:00:00Z"


def test_the_same_news_is_kept_once(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.put_alerts([ALERT], notify.messages(ALERT, ["http://127.0.0.1:9/"]), 5.0)
    assert len(ledger.waiting()) == 1


def test_what_is_not_delivered_is_tried_again_with_growing_pauses_and_survives(ledger: Ledger, tmp_path: Path) -> None:
    with receiver() as (address, got, pages):
        kept = pages.pop("/hook")
        ledger.put_alerts([ALERT], notify.messages(ALERT, [address]), 0.0)
        times = []
        now_s = 0.0
        for _ in range(200):
            sent, errors = notify.deliver(ledger, now_s)
            assert sent == 0
            if errors:
                assert "answered 404" in errors[0]
                times.append(now_s)
            now_s += 5.0
        assert times == [0.0, 10.0, 30.0, 70.0, 150.0, 310.0, 630.0]
        pages["/hook"] = kept
        again = Ledger(tmp_path / "ledger.db")
        assert notify.deliver(again, 5000.0)[0] == 1
        again.close()
    assert len(got) == 1


def test_a_receiver_that_never_takes_a_message_is_given_up(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    ledger.put_alerts([ALERT], notify.messages(ALERT, ["http://127.0.0.1:9/secret-token"]), 0.0)
    with caplog.at_level(logging.WARNING):
        for n in range(60):
            notify.deliver(ledger, 1000.0 * n)
    assert ledger.waiting() == ()
    assert "given up after 40 attempts" in caplog.text
    assert "secret-token" not in caplog.text


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
def test_apprise_delivers_to_its_services(ledger: Ledger) -> None:
    with receiver() as (address, got, _):
        notify.send(address.replace("http://", "json://"), ALERT, 0.0)
    (document,) = got
    assert "demo: KvSaturated" in document["title"]
    assert "99.0% full" in document["message"]


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
def test_an_address_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not one that Apprise knows"):
        notify.send("carrier-pigeon://loft", ALERT, 0.0)


def test_the_file_of_receivers_has_comments_and_should_be_ones_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "receivers"
    path.write_text("# on call\nhttps://hooks.example/abc\n\nmailto://u:p@example.com\n")
    path.chmod(0o644)
    assert notify.receivers(path) == ("https://hooks.example/abc", "mailto://u:p@example.com")
    assert "chmod 600" in caplog.text
    assert notify.shown("mailto://u:p@example.com") == "mailto://example.com"
    with pytest.raises(InvalidInput, match="cannot be read"):
        notify.receivers(tmp_path / "none")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.consumers
def test_a_real_alertmanager_delivers_an_alert_and_its_end(ledger: Ledger, tmp_path: Path) -> None:
    program = shutil.which("prometheus-alertmanager")
    if program is None:
        pytest.skip("Alertmanager is not installed: apt-get install prometheus-alertmanager")
    history, port = History(tmp_path / "history.db"), free_port()
    with receiver() as (address, got, _):
        config = tmp_path / "alertmanager.yml"
        config.write_text(
            "route: {receiver: hook, group_wait: 0s, group_interval: 1s, repeat_interval: 1h}\n"
            f"receivers: [{{name: hook, webhook_configs: [{{url: '{address}', send_resolved: true}}]}}]\n"
        )
        listening = (f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=")
        with subprocess.Popen(
            [program, f"--config.file={config}", f"--storage.path={tmp_path / 'data'}", *listening],
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                _until(lambda: _ready(port))
                watch = Watch(
                    history,
                    ledger,
                    alert_rules.load(),
                    {"demo": None},
                    receivers=(f"alertmanager+http://127.0.0.1:{port}",),
                )
                now_s = time.time()
                down_for(history, watch, now_s - 90)
                _until(lambda: any(each["status"] == "firing" for each in got))
                up_again(history, watch, now_s)
                _until(lambda: any(each["status"] == "resolved" for each in got))
            finally:
                process.terminate()
    history.close()
    first, *_, last = got
    assert first["alerts"][0]["labels"] == {
        "alertname": "AimEngineEngineDown",
        "deployment": "demo",
        "severity": "critical",
    }
    assert (first["status"], last["status"]) == ("firing", "resolved")
    assert [each["status"] for each in got].count("firing") == 1


@pytest.mark.consumers
def test_a_real_prometheus_with_the_exported_rules_tells_of_an_engine_that_is_down_and_up_again(tmp_path: Path) -> None:
    programs = [shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")]
    if not all(programs):
        pytest.skip("Prometheus and Alertmanager are not installed: apt-get install prometheus prometheus-alertmanager")
    # The rule as it is exported, only over seconds instead of minutes.
    (rule,) = [rule for rule in alert_rules.load() if rule.name == "EngineDown"]
    quick = msgspec.structs.replace(rule, for_="0s", all_of=(msgspec.structs.replace(rule.all_of[0], over="4s"),))
    exported = rulefile.export([quick], deployment="demo", selector='job="engine"', devices="", parameters={})
    engine, ports = metric_pages.Engine(), (free_port(), free_port())
    pages = {"/metrics": metric_pages.text(engine.page())}
    with receiver() as (address, got, _), metric_pages.serving(pages) as served:
        (tmp_path / "rules.yml").write_text(json.dumps({"groups": exported.groups}))
        (tmp_path / "alertmanager.yml").write_text(
            "route: {receiver: hook, group_wait: 0s, group_interval: 1s, repeat_interval: 1h}\n"
            f"receivers: [{{name: hook, webhook_configs: [{{url: '{address}', send_resolved: true}}]}}]\n"
        )
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            "rule_files: [rules.yml]\n"
            f"scrape_configs: [{{job_name: engine, static_configs: [{{targets: ['{served.removeprefix('http://')}']}}]}}]\n"
            f"alerting: {{alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{ports[1]}']}}]}}]}}\n"
        )
        commands = (
            [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"],
            [
                f"--config.file={tmp_path / 'alertmanager.yml'}",
                f"--storage.path={tmp_path / 'am'}",
                "--cluster.listen-address=",
            ],
        )
        with contextlib.ExitStack() as started:
            for program, words, port in zip(programs, commands, ports, strict=True):
                listening = f"--web.listen-address=127.0.0.1:{port}"
                process = subprocess.Popen([str(program), *words, listening], stderr=subprocess.DEVNULL)
                started.enter_context(process)
                started.callback(process.terminate)
                _until(lambda port=port: _ready(port))
            time.sleep(3)
            pages["/metrics"] = metric_pages.text("broken", status=500)
            _until(lambda: any(each["status"] == "firing" for each in got), 60)
            pages["/metrics"] = metric_pages.text(engine.page())
            _until(lambda: any(each["status"] == "resolved" for each in got), 60)
    assert got[0]["alerts"][0]["labels"]["alertname"] == "AimEngineEngineDown"
    assert got[0]["alerts"][0]["annotations"]["summary"] == "demo: no answer from the metrics page"


def down_for(history: History, watch: Watch, end_s: float) -> None:
    """Looks that failed for more than three minutes, judged at the end and two minutes before."""
    target = Target(deployment="demo", name="demo")
    for n in range(40):
        history.add([Look(target=target, time_s=end_s - 200 + 5 * n, span=Span(0.0, failed=1), cursor=None)])
    watch.judge(end_s - 130)
    (fired,) = [each for each in watch.judge(end_s) if each.state == "firing"]
    assert fired.rule == "EngineDown"
    assert watch.deliver(end_s) == (1, ())


def up_again(history: History, watch: Watch, end_s: float) -> None:
    """A minute of looks that were answered."""
    target = Target(deployment="demo", name="demo")
    history.add(
        [Look(target=target, time_s=end_s - 60 + 5 * n, span=Span(5.0, scrapes=1), cursor=None) for n in range(13)]
    )
    watch.judge(end_s)
    assert watch.deliver(end_s)[1] == ()


def _ready(port: int) -> bool:
    from aim_engine.deploy import endpoint

    return endpoint.answers(f"http://127.0.0.1:{port}/-/ready")


def _until(claim: Any, patience_s: float = 30.0) -> None:
    ends = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.1)
