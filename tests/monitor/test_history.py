"""The history: rollups that add up, windows from any mix of rows, retention, a full disk, a killed writer."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.errors import Corrupt
from aim_engine.monitor.history import About, History, Kept, Look, Target
from aim_engine.monitor.span import Gauge, Histogram, Span
from aim_engine.monitor.track import Cursor, Event
from aim_engine.state.database import Database, DiskFull

TARGET = Target(deployment="demo", name="demo", endpoint="http://127.0.0.1:8000")
BEGIN = 1_800_000_000.0
"""A full hour."""


def span(tokens: float = 10.0, *, ttft: tuple[float, ...] = (1.0, 2.0, 0.0)) -> Span:
    return Span(
        5.0,
        {"output_tokens": tokens, "requests": sum(ttft)},
        {"running": Gauge(tokens, tokens, tokens, tokens, 1, 5 * tokens, 5.0)},
        {"ttft": Histogram((0.1, 1.0), ttft, 0.5)},
        1,
    )


def look(time_s: float, tokens: float = 10.0, **changes: object) -> Look:
    values: dict[str, object] = {"target": TARGET, "time_s": time_s, "span": span(tokens), "cursor": None}
    return Look(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path / "history.db")
    yield history
    history.close()


def only(history: History) -> Kept:
    (kept,) = history.targets()
    return kept


def test_what_is_kept_is_found(history: History) -> None:
    history.add([look(BEGIN, about=About(engine="vllm", models=("m",), families={"ttft": "vllm:x"}))])
    kept = only(history)
    assert (kept.target, kept.about.engine, kept.about.families) == (TARGET, "vllm", {"ttft": "vllm:x"})
    assert history.window(kept, BEGIN - 1, BEGIN + 1) == span()


def test_rows_of_a_release_that_did_not_weigh_levels_are_read(history: History) -> None:
    old = Span(5.0, {}, {"running": Gauge(8.0, 8.0, 8.0, 8.0, 1)}, scrapes=1)
    history.add([Look(target=TARGET, time_s=BEGIN, span=old, cursor=None), look(BEGIN + 5, 2.0)])
    # As such a release packed them: five numbers to a level.
    ((content,),) = history.database.rows("SELECT span FROM sample ORDER BY time LIMIT 1")
    assert isinstance(content, bytes)
    packed = msgspec.msgpack.decode(content)
    packed[2] = {name: gauge[:5] for name, gauge in packed[2].items()}
    with history.database.writing() as connection:
        connection.execute(
            "UPDATE sample SET span = ? WHERE time = ?", (msgspec.msgpack.encode(packed), int(BEGIN * 1000))
        )
    assert history.window(only(history), BEGIN - 1, BEGIN + 10).gauges["running"].mean == 5.0


def test_a_day_is_the_same_from_looks_minutes_and_hours(history: History) -> None:
    times = [BEGIN + 5 + 30 * n for n in range(2 * 24 * 120)]
    history.add([look(time_s, n % 7) for n, time_s in enumerate(times)])
    end = times[-1]
    windows = [
        (BEGIN, end),
        (BEGIN + 1234, BEGIN + 45_678),
        (end - 86_400, end),
        (end - 90, end),
        (BEGIN, BEGIN + 3600),
    ]
    before = [history.window(only(history), *window) for window in windows]
    history.roll_up(end + 1)
    assert [history.window(only(history), *window) for window in windows] == before
    counts = {
        table: history.database.rows(f"SELECT count(*) FROM {table}")[0][0] for table in ("sample", "minute", "hour")
    }
    assert counts == {"sample": 5760, "minute": 2879, "hour": 47}


@given(st.lists(st.tuples(st.integers(0, 3 * 3600), st.integers(0, 9)), min_size=1, max_size=60), st.data())
def test_rolling_up_at_any_time_changes_no_answer(looks: list[tuple[int, int]], data: st.DataObject) -> None:
    looks = sorted(looks)
    cuts = data.draw(st.lists(st.integers(0, len(looks)), max_size=3))
    history = History(Path(":memory:"))
    for number, (second, tokens) in enumerate(looks):
        if number in cuts:
            history.roll_up(BEGIN + second)
        history.add([look(BEGIN + second, tokens)])
    found = history.window(only(history), BEGIN - 1, BEGIN + 4 * 3600)
    assert found.counters["output_tokens"] == sum(tokens for _, tokens in looks)
    assert found.histograms["ttft"].count == 3 * len(looks)
    history.close()


def test_a_look_from_before_the_rollup_is_in_it_too(history: History) -> None:
    history.add([look(BEGIN + 10), look(BEGIN + 4000)])
    history.roll_up(BEGIN + 8000)
    history.add([look(BEGIN + 12, 5.0)])  # the clock went back
    assert history.window(only(history), BEGIN - 1, BEGIN + 7200).counters["output_tokens"] == 25
    assert history.window(only(history), BEGIN, BEGIN + 3600).counters["output_tokens"] == 15


def test_two_looks_at_the_same_moment_are_both_kept(history: History) -> None:
    history.add([look(BEGIN), look(BEGIN), look(BEGIN)])
    assert history.window(only(history), BEGIN - 1, BEGIN + 1).scrapes == 3


def test_old_looks_go_only_when_they_are_in_a_minute(tmp_path: Path) -> None:
    history = History(tmp_path / "h.db", keep_s={"sample": 60.0, "minute": 3600.0, "hour": 86400.0})
    history.add([look(BEGIN + 10 * n) for n in range(1000)])
    history.prune(BEGIN + 10_000)
    assert history.database.rows("SELECT count(*) FROM sample") == [(1000,)]
    history.roll_up(BEGIN + 10_000)
    history.prune(BEGIN + 10_000)
    assert history.database.rows("SELECT count(*) FROM sample") == [(6,)]
    assert history.window(only(history), BEGIN - 1, BEGIN + 7200).scrapes >= 720
    history.close()


def test_the_file_stays_within_its_limit_and_the_newest_stays(tmp_path: Path) -> None:
    history = History(tmp_path / "h.db", limit_bytes=300_000)
    for n in range(40):
        history.add([look(BEGIN + 100 * n + k) for k in range(100)])
        history.prune(BEGIN + 100 * n + 100)
    assert history.database.size_bytes() <= 300_000
    assert history.window(only(history), BEGIN + 3990, BEGIN + 4000).scrapes > 0
    history.close()


def test_a_full_disk_makes_room_of_the_oldest_looks(history: History) -> None:
    history.add([look(BEGIN + n) for n in range(2000)])
    history.database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = history.database.connection.execute("PRAGMA page_count").fetchone()
    history.database.connection.execute(f"PRAGMA max_page_count={pages}")
    for n in range(50):
        history.add([look(BEGIN + 2000 + 20 * n + k) for k in range(20)])
    assert history.window(only(history), BEGIN + 2998, BEGIN + 2999).scrapes == 1
    assert history.window(only(history), BEGIN - 1, BEGIN + 100).scrapes < 100


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    code = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from aim_engine.state.database import Database, DiskFull
database = Database(Path({str(tmp_path / "d.db")!r}), ("CREATE TABLE t (x BLOB)",))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for _ in range(100):
        with database.writing() as connection:
            connection.execute("INSERT INTO t VALUES (zeroblob(10000))")
except DiskFull as err:
    print("full:", err.what)
print(database.rows("SELECT count(*) > 3 FROM t"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "full: there is no room to write" in done.stdout, done.stdout + done.stderr
    assert "[(1,)]" in done.stdout


def test_nothing_of_a_batch_is_kept_when_it_does_not_fit(tmp_path: Path) -> None:
    database = Database(tmp_path / "d.db", ("CREATE TABLE t (x BLOB)",))
    database.connection.execute("PRAGMA max_page_count=10")
    with pytest.raises(DiskFull), database.writing() as connection:
        connection.executemany("INSERT INTO t VALUES (zeroblob(?))", [(3000,)] * 50)
    assert database.rows("SELECT count(*) FROM t") == [(0,)]
    database.close()


def test_what_is_no_database_and_what_is_of_a_newer_version_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"this is not a database, and long enough to be looked at" * 50)
    with pytest.raises(Corrupt, match="damaged"):
        History(tmp_path / "a.db")
    connection = sqlite3.connect(tmp_path / "b.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(Corrupt, match="newer version"):
        History(tmp_path / "b.db")


def test_events_and_the_place_of_the_tracker_are_kept_with_the_look(history: History) -> None:
    cursor = Cursor(time_s=BEGIN, start_s=1.0, counters={"output_tokens": 5.0}, histograms={})
    event = Event(time_s=BEGIN, kind="restart", text="the engine started anew")
    history.add([look(BEGIN, cursor=cursor, events=(event,))])
    assert history.cursor(TARGET) == cursor
    assert history.events(only(history), BEGIN - 1, BEGIN + 1) == (event,)


def test_curves_have_a_gap_where_nobody_looked(history: History) -> None:
    history.add([look(BEGIN + n) for n in (5, 10, 50)])
    steps = history.steps(only(history), BEGIN, BEGIN + 60, 6)
    assert [round(time_s - BEGIN) for time_s, _ in steps] == [10, 20, 60]


WRITER = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from aim_engine.monitor.history import History, Look, Target
from aim_engine.monitor.span import Span
from aim_engine.monitor.track import Cursor
target = Target(deployment="demo", name="demo", endpoint="")
history = History(Path({db!r}))
cursor = history.cursor(target)
total = cursor.counters["n"] if cursor else 0.0
print("ready", flush=True)
while True:
    total += 1
    now = time.time()
    place = Cursor(time_s=now, start_s=1.0, counters={{"n": total}}, histograms={{}})
    history.add([Look(target=target, time_s=now, span=Span(0.01, {{"n": 1.0}}, scrapes=1), cursor=place)])
    print(int(total), flush=True)
    history.roll_up(now)
"""


def killed_writers(folder: Path, kills: int) -> tuple[int, int, int]:
    """(looks that a writer said were kept, looks found, looks by the tracker's own count) after so many kills."""
    db = folder / "history.db"
    code = WRITER.format(path=sys.path, db=str(db))
    told = 0
    for n in range(kills):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready"
            time.sleep(0.002 + 0.037 * (n % 7) / 7)
            os.kill(process.pid, signal.SIGKILL)
            lines = [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        told = max(told, int(lines[-1]) if lines else told)
    history = History(db)
    kept = only(history)
    found = history.window(kept, 0.0, time.time() + 10).counters["n"]
    cursor = history.cursor(kept.target)
    assert cursor is not None
    assert history.database.rows("PRAGMA integrity_check") == [("ok",)]
    history.close()
    return told, int(found), int(cursor.counters["n"])


def test_a_killed_writer_loses_nothing_that_it_said_was_kept(tmp_path: Path) -> None:
    told, found, by_cursor = killed_writers(tmp_path, 12)
    assert found == by_cursor
    assert told <= found <= told + 1


@pytest.mark.kill
def test_two_hundred_kills_lose_at_most_the_last_look(tmp_path: Path) -> None:
    told, found, by_cursor = killed_writers(tmp_path, 200)
    assert found == by_cursor
    assert told <= found <= told + 1


def test_a_file_of_the_first_format_is_opened_and_written_on(tmp_path: Path) -> None:
    from aim_engine.monitor import history as module

    path = tmp_path / "history.db"
    old = Database(path, module._MIGRATIONS[:1])
    with old.writing() as connection:
        connection.execute(
            "INSERT INTO target (deployment, kind, name, endpoint, cursor) VALUES ('demo', 'engine', 'demo', 'http://x', ?)",
            (msgspec.msgpack.encode(Cursor(time_s=BEGIN, start_s=None, counters={"requests": 3.0}, histograms={})),),
        )
    old.close()
    history = History(path)
    cursor = Cursor(time_s=BEGIN + 5, start_s=None, counters={"requests": 6.0}, histograms={})
    assert history.add([look(BEGIN + 5, cursor=cursor, since_s=BEGIN)]) == frozenset()
    assert history.cursor(TARGET) == cursor
    late = msgspec.structs.replace(cursor, time_s=BEGIN + 7)
    assert history.add([look(BEGIN + 7, cursor=late, since_s=BEGIN)]) == {TARGET}, "it was held against what was before"
    assert history.window(only(history), BEGIN, BEGIN + 9).counters["output_tokens"] == 10.0
    history.close()
