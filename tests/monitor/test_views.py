"""Reports: targets beside what was measured, an earlier window, curves, and the same in every form."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

import metric_pages
from aim_engine import PerformanceMonitor, workflow
from aim_engine import settings as all_settings
from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.kpi.figure import Target as Wanted
from aim_engine.monitor import page, report, scrape, views
from aim_engine.monitor.history import History, Look, Target
from aim_engine.monitor.ledger import Ledger, Rating, Score
from aim_engine.monitor.listen import Listener
from aim_engine.monitor.prometheus import Prometheus
from aim_engine.monitor.span import Gauge, Histogram, Span
from aim_engine.planner.plan import Plan
from aim_engine.workflow import Request
from aim_engine.workload import Slo, Workload

BEGIN = 1_800_000_000.0


def engine_span(tokens: float, ttft_s: float = 0.2) -> Span:
    edges = (0.1, 0.25, 0.5, 1.0, 2.5)
    counts = tuple(
        10.0 if low < ttft_s <= high else 0.0 for low, high in zip((0.0, *edges), (*edges, 1e9), strict=True)
    )
    return Span(
        60.0,
        {"output_tokens": tokens, "requests": 10.0, "finished_error": 0.0, "finished_stop": 10.0},
        {"running": Gauge(4.0, 2.0, 6.0, 48.0, 12), "kv_usage": Gauge(0.3, 0.1, 0.5, 3.6, 12)},
        {"ttft": Histogram(edges, counts, 10 * ttft_s)},
        12,
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    request = Request(
        model="Qwen/Qwen3-32B",
        gpus="8xMI300X",
        workload=Workload(concurrency=64),
        slo=Slo(ttft_ms=5000.0, tpot_ms=100.0),
    )
    return workflow.choose(request, all_settings.load({"offline": True}))


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """Two hours: the first at 600 tokens a minute, the second at 900 and slower first tokens."""
    history = History(tmp_path / "history.db")
    looks = []
    for minute in range(120):
        span = engine_span(600.0) if minute < 60 else engine_span(900.0, 0.4)
        looks += [
            Look(target=Target(deployment="demo", name=name), time_s=BEGIN + 60 * minute + 30, span=span, cursor=None)
            for name in ("demo", "demo-1")
        ]
        card = Span(
            60.0,
            {"gpu_energy": 60_000.0},
            {"gpu_power": Gauge(700.0, 650.0, 750.0, 8400.0, 12), "gpu_busy": Gauge(80, 70, 90, 960, 12)},
            {},
            12,
        )
        looks.append(
            Look(
                target=Target(deployment="demo", kind="card", name="0000:c1:00.0"),
                time_s=BEGIN + 60 * minute + 30,
                span=card,
                cursor=None,
            )
        )
    history.add(looks)
    history.roll_up(BEGIN + 7200)
    yield history
    history.close()


def of(history: History, plan: Plan | None, **options: object) -> views.Document:
    return views.of_history(history, "demo", BEGIN + 3600, BEGIN + 7200, plan=plan, **options)  # type: ignore[arg-type]


def test_figures_of_all_replicas_and_cards_together(history: History, plan: Plan) -> None:
    found = of(history, plan).figures
    assert found.value("output_tok_s") == pytest.approx(2 * 900 / 60)
    assert found.value("batch") == pytest.approx(8.0)
    assert found.value("kv_usage_peak_fraction") == 0.5
    assert found.value("power_w") == pytest.approx(700.0)
    assert found.value("tokens_per_joule") == pytest.approx(2 * 900 / 60_000)
    assert found.value("ttft_ms") == pytest.approx(400.0)
    assert found.value("goodput_requests_s") is None, "tpot was not told, so nobody knows whether its limit was met"
    assert found.value("usd_per_million_tokens") == pytest.approx(12.0 / 3600 / 30 * 1e6)
    assert found.finished == {"error": 0.0, "stop": 1200.0}


def test_goodput_is_what_surely_met_the_limits(history: History) -> None:
    loose = Request(model="Qwen/Qwen3-32B", gpus="8xMI300X", slo=Slo(ttft_ms=500.0))
    planned = workflow.choose(loose, all_settings.load({"offline": True}))
    assert of(history, planned).figures.value("goodput_requests_s") == pytest.approx(20 / 60)
    tight = msgspec.structs.replace(planned, inputs=msgspec.structs.replace(planned.inputs, slo=Slo(ttft_ms=250.0)))
    assert of(history, tight).figures.value("goodput_requests_s") == 0.0


def test_a_line_holds_the_plan_its_limit_and_the_hour_before(history: History, plan: Plan) -> None:
    document = of(history, plan, before=(BEGIN, BEGIN + 3600, "before"))
    lines = {line.kpi: line for line in document.lines}
    first = lines["ttft_ms"]
    assert plan.chosen is not None
    assert (first.limit, first.planned, first.verdict) == (5000.0, plan.chosen.estimate.ttft_ms.value, "met")
    assert first.before == pytest.approx(200.0)
    assert first.trend == "worse"
    assert first.change_fraction == pytest.approx(1.0)
    assert lines["output_tok_s"].trend == "better"
    assert lines["output_tok_s"].change_fraction == pytest.approx(0.5)
    assert lines["batch"].trend == ""


def test_predictions_are_for_the_load_that_came(history: History, plan: Plan) -> None:
    """Steps say how many requests were answered at once while there was work; idle time would make it few."""
    settings = all_settings.load({"offline": True})
    lengths = {
        "prompt_length": Histogram((4096.0,), (10.0, 0.0), 5000.0),
        "output_length": Histogram((4096.0,), (10.0, 0.0), 900.0),
        "step_tokens": Histogram((4096.0,), (75.0, 0.0), 5900.0),
    }
    found = engine_span(900.0)
    found = msgspec.structs.replace(found, histograms={**found.histograms, **lengths})
    history.add([Look(target=Target(deployment="lengths", name="one"), time_s=BEGIN + 60, span=found, cursor=None)])
    document = views.of_history(
        history,
        "lengths",
        BEGIN,
        BEGIN + 61,
        plan=plan,
        predict=lambda made, load: workflow.expect(made, load, settings),
    )
    load = document.traffic
    assert load is not None
    assert (load.input_tokens, load.output_tokens, load.concurrency) == (500, 90, 12), "not the mean of 4 running"
    expected = workflow.expect(plan, load, settings)
    assert expected is not None
    (line,) = [line for line in document.lines if line.kpi == "ttft_ms"]
    assert (line.predicted, line.low, line.high) == (
        expected.ttft_ms.value,
        expected.ttft_ms.low,
        expected.ttft_ms.high,
    )
    assert plan.chosen is not None
    assert line.planned == plan.chosen.estimate.ttft_ms.value
    assert "12 requests at once of 500 tokens, answers of 90" in page.markdown(document)
    assert "| predicted |" in page.markdown(document)
    assert of(history, plan).traffic is None, "where lengths are not told, what was planned stays"


def test_a_missed_limit_is_said(history: History, plan: Plan) -> None:
    strict = msgspec.structs.replace(plan, inputs=msgspec.structs.replace(plan.inputs, slo=Slo(ttft_ms=300.0)))
    (line,) = [line for line in of(history, strict).lines if line.kpi == "ttft_ms"]
    assert line.verdict == "missed"
    assert page.verdict(line) == "LIMIT MISSED"


class Balanced(HTMLParser):
    """Counts open elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.scripts += tag == "script"
        if tag not in ("meta", "polyline", "polygon", "circle", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_html_page_is_whole_and_needs_nothing_else(history: History, plan: Plan) -> None:
    document = of(history, plan, before=(BEGIN, BEGIN + 3600, "before"))
    content = page.page(document, [("K1", "<b>more</b> memory", "full")])
    reader = Balanced()
    reader.feed(content)
    assert reader.open == []
    assert (reader.links, reader.scripts) == ([], 0)
    assert content.count("<svg") == len([points for points in document.curves.values() if len(points) > 1]) >= 6
    assert "&lt;b&gt;more" in content


def test_markdown_has_one_row_per_figure(history: History, plan: Plan) -> None:
    document = of(history, plan, before=(BEGIN, BEGIN + 3600, "before"))
    rows = [
        line for line in page.markdown(document).splitlines() if line.startswith("| ") and "time to first token" in line
    ]
    assert len(rows) == 1
    assert "+100.0%" in rows[0]
    assert "5.00 s" in rows[0]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (metric_pages.text("<html>"), "is not the API of a Prometheus server"),
        (
            metric_pages.text('{"status": "error", "error": "parse error at char 3"}', status=400),
            "parse error at char 3",
        ),
        (metric_pages.text('{"status": "success", "data": {}}'), "is not the API of a Prometheus server"),
    ],
)
def test_what_is_no_prometheus_or_refuses_is_said_so(reply: metric_pages.Reply, reason: str) -> None:
    with metric_pages.serving({"/api/v1/query": reply}) as address, pytest.raises(Unreachable) as caught:
        Prometheus(address).window(BEGIN, BEGIN + 60)
    assert reason in str(caught.value)


def test_a_prometheus_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        Prometheus("http://127.0.0.1:9").window(BEGIN, BEGIN + 60)


def test_a_document_survives_json(history: History, plan: Plan) -> None:
    document = of(history, plan)
    assert msgspec.json.decode(msgspec.json.encode(document), type=views.Document) == document


def test_what_was_never_watched_says_so(history: History) -> None:
    document = views.of_history(history, "other", BEGIN, BEGIN + 60)
    assert document.notes == ("nothing of this deployment was kept yet",)
    assert page.page(document).startswith("<!doctype html>")


def test_scores_and_ratings_are_figures(history: History, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.store_score(Score(deployment="demo", time_s=BEGIN, task="gsm8k", value=0.71, items=100))
    ledger.rate(Rating(deployment="demo", time_s=BEGIN + 4000, good=True))
    ledger.rate(Rating(deployment="demo", time_s=BEGIN + 4001, good=False))
    figures = of(history, None, ledger=ledger).figures
    ledger.close()
    assert (figures.value("accuracy_score"), figures.value("response_quality_score")) == (0.71, 0.5)


def histogram(name: str, buckets: dict[str, float], total: float) -> str:
    lines = [f'{name}_bucket{{le="{edge}"}} {count}' for edge, count in buckets.items()]
    return "\n".join([*lines, f"{name}_sum {total}", f"{name}_count {list(buckets.values())[-1]}"])


def test_targets_bound_the_worse_side() -> None:
    first = "vllm:time_to_first_token_seconds"
    found = report.summarise(
        scrape.parse(histogram(first, {"+Inf": 0}, 0.0), time_s=1.0),
        scrape.parse(histogram(first, {"+Inf": 10}, 2.0), time_s=2.0),
    )
    monitor = PerformanceMonitor("127.0.0.1:1", {"ttft_ms": 150.0, "output_tok_s": 5})
    (missed,) = monitor.check_targets(found)
    assert (missed.kpi, missed.side) == ("ttft_ms", "above")
    assert missed.value == pytest.approx(200.0)
    assert "above its target of 150 ms" in missed.message
    assert monitor.targets["output_tok_s"] == Wanted(low=5)


def test_the_targets_of_a_plan_are_its_limits(plan: Plan) -> None:
    monitor = PerformanceMonitor("127.0.0.1:1", plan=plan)
    assert {name: target.high for name, target in monitor.targets.items()} == {"ttft_ms": 5000.0, "tpot_ms": 100.0}


def test_a_figure_that_does_not_exist_gets_the_close_ones() -> None:
    with pytest.raises(InvalidInput, match="there is no figure") as caught:
        PerformanceMonitor("127.0.0.1:1", {"tttf_ms": 1.0})
    assert "ttft_ms" in str(caught.value.hint)


def test_a_monitor_collects_reports_and_suggests() -> None:
    engine = metric_pages.Engine()
    pages = {"/metrics": metric_pages.text(engine.page())}
    with metric_pages.serving(pages) as address:
        monitor = PerformanceMonitor(address)
        monitor.collect()
        for _ in range(30):
            engine.serve(ttft_s=0.2, gaps=10, gap_s=0.02)
        engine.counters["preemptions"] += 7
        engine.gauges["kv_usage"] = 0.99
        pages["/metrics"] = metric_pages.text(engine.page())
        found = monitor.collect()
        assert monitor.report() is found
    assert found.readings["requests_s"].count == 30
    advice = monitor.suggest(found)
    assert [each.id for each in advice] == ["K1"]
    assert "99%" in advice[0].evidence


def test_ratings_come_in_and_figures_go_out_by_http(tmp_path: Path, history: History) -> None:
    history.close()
    listener = Listener("127.0.0.1:0", tmp_path, {"demo": None})

    def posted(body: bytes, kind: str = "application/json") -> urllib.request.Request:
        return urllib.request.Request(f"{listener.address}/feedback", body, {"Content-Type": kind})

    try:
        body = json.dumps({"deployment": "demo", "good": True, "comment": "short and right"}).encode()
        with urllib.request.urlopen(posted(body), timeout=10) as answer:
            assert json.load(answer) == {"kept": True}
        for bad, status in (
            (b"{", 400),
            (b'{"deployment": "x", "good": true}', 404),
            (b'{"deployment": "demo", "good": 1, "x": 2}', 400),
        ):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(posted(bad), timeout=10)
            assert caught.value.code == status
            caught.value.close()
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(posted(body, "text/plain"), timeout=10)
        assert caught.value.code == 415
        caught.value.close()
        with urllib.request.urlopen(f"{listener.address}/metrics", timeout=10) as answer:
            found = scrape.parse(answer.read().decode())
        assert found.skipped == 0
        assert found.samples["aim_engine_response_quality_score"][0].value == 1.0
    finally:
        listener.close()
    for where in ("nowhere", "0.0.0.0:9470", "example.com:80"):
        with pytest.raises(InvalidInput):
            Listener(where, tmp_path, {})
    with pytest.raises(Unreachable):
        Listener("127.0.0.1:99999", tmp_path, {})


def test_of_a_replica_that_went_away_nothing_runs_now_and_its_tokens_count(tmp_path: Path) -> None:
    history = History(tmp_path / "h.db")

    def at(second: float, name: str) -> Look:
        found = Span(
            5.0,
            {"output_tokens": 100.0},
            {"running": Gauge(8.0, 8.0, 8.0, 8.0, 1, 40.0, 5.0)},
            {},
            1,
        )
        target = Target(deployment="demo", name=name, endpoint=name)
        return Look(target=target, time_s=BEGIN + second, span=found, cursor=None)

    history.add([at(n, "demo-1-0") for n in range(0, 300, 5)] + [at(n, "demo-2-0") for n in range(300, 600, 5)])
    whole = views.span(history, "demo", BEGIN - 1, BEGIN + 600)
    assert whole.counters["output_tokens"] == 12000
    assert whole.seconds == pytest.approx(600, abs=5), "not the 300 s of each"
    assert whole.gauges["running"].last == 8.0
    assert whole.gauges["running"].mean == pytest.approx(8.0, rel=0.01), "not 16"
    assert views.span(history, "demo", BEGIN - 1, BEGIN + 299).gauges["running"].last == 8.0
    history.close()
