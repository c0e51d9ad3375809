"""Collecting from endpoints that do anything: each ends in time with a reason, and none keeps the others waiting."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from pathlib import Path

import pytest

import machines
import metric_pages
from aim_engine.kpi import measures
from aim_engine.monitor import devices, scrape, totals, views
from aim_engine.monitor.collect import Collector, Watched
from aim_engine.monitor.fetch import Fetcher
from aim_engine.monitor.history import History, Target


def watched(address: str, name: str = "demo", *, exporter: bool = False) -> Watched:
    kind = "exporter" if exporter else "engine"
    return Watched(
        target=Target(deployment="demo", kind=kind, name=name, endpoint=address),
        url=f"{address}/metrics",
        exporter=exporter,
    )


HOSTILE = {
    "fifty megabytes": (metric_pages.text(b"# padding\n" * 5_000_000), "sends more than"),
    "a key is asked for": (metric_pages.text("no", status=401), "answered 401: Unauthorized; set VLLM_API_KEY"),
    "another page": (metric_pages.text("<html><body>Welcome</body></html>"), "is not a metrics page"),
    "nothing": (metric_pages.text(""), "is not a metrics page"),
    "half a page": (metric_pages.text("vllm:generation_tokens_total 5\n", length=5000), "ends before the length"),
    "a byte now and then": (metric_pages.dripping(20.0), "too slow"),
    "an error of its own": (metric_pages.text("oops", status=500), "answered 500"),
    "a redirection": (metric_pages.text("", status=302), "answered 302"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_page_is_recorded_with_its_reason_and_ends_in_time(case: str, tmp_path: Path) -> None:
    reply, reason = HOSTILE[case]
    history = History(tmp_path / "history.db")
    engine = metric_pages.Engine()
    pages = {"/metrics": metric_pages.text(engine.page())}
    with metric_pages.serving(pages) as address:
        collector = Collector([watched(address)], history, timeout_s=1.0)
        collector.once()
        engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
        pages["/metrics"] = reply
        began = time.monotonic()
        (bad,) = collector.once()
        assert time.monotonic() - began < 4.0
        assert bad.span.failed == 1
        assert reason in bad.events[0].text
        pages["/metrics"] = metric_pages.text(engine.page())
        (good,) = collector.once()
        collector.close()
    assert good.span.counters["output_tokens"] == 5
    assert [event.kind for event in good.events] == ["recovered"]
    (kept,) = history.targets()
    document = views.of_history(history, "demo", time.time() - 60, time.time() + 1)
    assert (document.figures.scrapes, document.figures.failed_scrapes) == (2, 1)
    assert [event.kind for event in document.events] == ["unreachable", "recovered"]
    assert history.window(kept, 0, time.time() + 1).counters["output_tokens"] == 5
    history.close()


def test_a_connection_that_the_server_gave_up_is_no_failed_look() -> None:
    """Engines close connections after some idle seconds, which may be just when the next look is on its way."""
    asked: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for connection in range(2):
                client, _ = server.accept()
                with client:
                    for _ in range(2):
                        client.recv(65536)
                        asked.append(connection)
                        if len(asked) == 2:
                            break  # the second question on the first connection is left without an answer
                        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nup 1\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with Fetcher() as fetcher:
            url = f"http://127.0.0.1:{server.getsockname()[1]}/metrics"
            assert [fetcher.get(url, 2.0) for _ in range(2)] == ["up 1\n"] * 2
        thread.join(5)
    assert asked[:3] == [0, 0, 1]


def test_a_busy_engine_is_waited_for_and_looked_at_as_often(tmp_path: Path) -> None:
    """Looks that are left out while it is busy would make every mean level that of its idle hours."""
    history, stop = History(tmp_path / "history.db"), threading.Event()
    page = metric_pages.Engine().page()
    busy = metric_pages.text(page)

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(0.3)  # longer than the interval
        busy(handler)

    with metric_pages.serving({"/metrics": slow}) as address:
        collector = Collector([watched(address)], history, interval_s=0.1)
        thread = threading.Thread(target=collector.run, args=(stop,), daemon=True)
        thread.start()
        time.sleep(4)
        stop.set()
        thread.join()
        collector.close()
    (kept,) = history.targets()
    whole = history.window(kept, 0, time.time() + 1)
    assert whole.failed == 0
    assert whole.scrapes >= 5
    history.close()


def test_nobody_listening_is_recorded_too() -> None:
    collector = Collector([watched("http://127.0.0.1:9")], None, timeout_s=1.0)
    (look,) = collector.once()
    collector.close()
    assert "connection refused" in look.events[0].text


def test_endpoints_that_hang_do_not_keep_the_others_waiting(tmp_path: Path) -> None:
    history = History(tmp_path / "history.db")
    engine = metric_pages.Engine()
    pages = {"/metrics": metric_pages.text(engine.page())}
    with metric_pages.serving(pages) as good, metric_pages.serving({"/metrics": metric_pages.dripping(30.0)}) as slow:
        every = [
            watched(good, "good"),
            *[Watched(target=Target(deployment="demo", name=f"slow{n}"), url=f"{slow}/metrics") for n in range(12)],
        ]
        collector = Collector(every, history, interval_s=0.5, timeout_s=0.5, workers=4)
        stop = threading.Event()
        timer = threading.Timer(6.0, stop.set)
        timer.start()
        collector.run(stop)
        timer.cancel()
        collector.close()
    found = {kept.target.name: history.window(kept, 0, time.time() + 1) for kept in history.targets()}
    assert found["good"].scrapes >= 6
    assert all(span.failed >= 1 for name, span in found.items() if name != "good")
    history.close()


def test_a_monitor_that_is_started_again_counts_what_happened_meanwhile(tmp_path: Path) -> None:
    engine = metric_pages.Engine()
    pages = {"/metrics": metric_pages.text(engine.page())}
    with metric_pages.serving(pages) as address:
        for _ in range(3):
            history = History(tmp_path / "history.db")
            collector = Collector([watched(address)], history)
            pages["/metrics"] = metric_pages.text(engine.page())
            collector.once()
            collector.close()
            history.close()
            engine.serve(ttft_s=0.1, gaps=9, gap_s=0.02)
    history = History(tmp_path / "history.db")
    (kept,) = history.targets()
    assert history.window(kept, 0, time.time() + 1).counters["output_tokens"] == 20
    history.close()


EXPORTER = """# TYPE gpu_gfx_activity gauge
amd_gpu_gfx_activity{gpu_id="0",gpu_partition_id="0",gpu_uuid="a"} 90
amd_gpu_gfx_activity{gpu_id="1",gpu_partition_id="0",gpu_uuid="b"} 10
gpu_edge_temperature{gpu_id="0",gpu_partition_id="0",gpu_uuid="a"} 0
gpu_junction_temperature{gpu_id="0",gpu_partition_id="0",gpu_uuid="a"} 71
gpu_package_power{gpu_id="0",gpu_partition_id="0",gpu_uuid="a"} 700
gpu_package_power{gpu_id="1",gpu_partition_id="0",gpu_uuid="b"} 150
gpu_used_vram{gpu_id="0",gpu_partition_id="0",gpu_uuid="a"} 98304
gpu_total_vram{gpu_id="0",gpu_partition_id="0",gpu_uuid="a"} 196608
gpu_used_vram{gpu_id="1",gpu_partition_id="0",gpu_uuid="b"} 0
gpu_total_vram{gpu_id="1",gpu_partition_id="0",gpu_uuid="b"} 196608
gpu_ecc_uncorrect_total{gpu_id="1",gpu_partition_id="0",gpu_uuid="b"} %d
gpu_violation_current_accumulated_counter{gpu_id="0",gpu_partition_id="0",gpu_uuid="a"} %d
gpu_violation_ppt_residency_accumulated{gpu_id="0",gpu_partition_id="0",gpu_uuid="a"} %d
"""


def test_the_page_of_an_exporter_is_one_target_per_card(tmp_path: Path) -> None:
    history = History(tmp_path / "history.db")
    pages = {"/metrics": metric_pages.text(EXPORTER % (0, 1000, 100))}
    with metric_pages.serving(pages) as address:
        collector = Collector([watched(address, exporter=True)], history)
        collector.once()
        pages["/metrics"] = metric_pages.text(EXPORTER % (2, 2000, 500))
        collector.once()
        collector.close()
    document = views.of_history(history, "demo", time.time() - 60, time.time() + 1)
    history.close()
    assert [card.name for card in document.cards] == ["a", "b"]
    first, second = (card.figures for card in document.cards)
    assert first["gpu_busy_fraction"] == pytest.approx(0.9)
    assert first["junction_c"] == 71
    assert first["gpu_memory_fraction"] == pytest.approx(0.5)
    assert first["power_throttled_fraction"] == 0.4
    assert second["ecc_uncorrectable"] == 2
    assert document.figures.value("power_w") == pytest.approx(850)
    assert document.figures.value("gpu_busy_fraction") == pytest.approx(0.5)
    assert document.figures.value("junction_c") == 71


def test_cards_of_other_pods_are_left_out() -> None:
    page = 'gpu_package_power{gpu_id="0",pod="qwen-1"} 700\ngpu_package_power{gpu_id="1",pod="other"} 150\n'
    assert list(totals.by_card(scrape.parse(page), "qwen-.*")) == ["0"]
    assert list(totals.by_card(scrape.parse(page))) == ["0", "1"]


def test_zero_of_a_sensor_that_is_not_there_is_unknown() -> None:
    page = 'gpu_edge_temperature{gpu_id="0"} 0\ngpu_package_power{gpu_id="0"} 0\n'
    (card,) = totals.by_card(scrape.parse(page)).values()
    assert totals.read(card, measures.DEVICE).gauges == {}


def test_the_machines_own_cards_are_read_from_the_drivers_files(tmp_path: Path) -> None:
    root = machines.well_kept(machines.mi300x(tmp_path, count=2))
    found = devices.read(root, 5.0)
    assert len(found) == 2
    for card in found.values():
        assert card.gauges["gpu_memory_total"] > 190_000
        assert card.time_s == 5.0
    assert set().union(*(card.gauges for card in found.values())) <= set(measures.BY_NAME)
    assert set().union(*(card.counters for card in found.values())) <= set(measures.BY_NAME)


@pytest.mark.parametrize("intervals", [(0.4, 0.4), (0.9, 0.25)], ids=["in step", "one faster"])
def test_two_monitors_of_one_endpoint_count_what_happens_once(
    intervals: tuple[float, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, lock = metric_pages.Engine(), threading.Lock()

    def page(handler: http.server.BaseHTTPRequestHandler) -> None:
        with lock:
            text = engine.page()
        metric_pages.text(text)(handler)

    with metric_pages.serving({"/metrics": page}) as address:
        stop, threads = threading.Event(), []
        collectors = [
            Collector([watched(address)], History(tmp_path / "history.db"), interval_s=interval)
            for interval in intervals
        ]
        collectors[0].once()
        for collector in collectors:
            threads.append(threading.Thread(target=collector.run, args=(stop,), daemon=True))
            threads[-1].start()
        for _ in range(100):
            with lock:
                engine.serve(ttft_s=0.1, gaps=9, gap_s=0.02)
            time.sleep(0.05)
        time.sleep(2.0)
        stop.set()
        for thread in threads:
            thread.join()
        for collector in collectors:
            collector.close()
    history = History(tmp_path / "history.db")
    (kept,) = history.targets()
    whole = history.window(kept, 0, time.time() + 1)
    assert whole.counters["output_tokens"] == 1000
    assert whole.histograms["ttft"].count == 100
    assert whole.seconds < 9
    assert not [event for event in history.events(kept, 0, time.time() + 1) if event.kind != "recovered"]
    history.close()
    assert len([record for record in caplog.records if "another monitor" in record.message]) <= 2
