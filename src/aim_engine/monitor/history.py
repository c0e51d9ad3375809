"""What was measured, kept: every look for hours, minutes for weeks, hours for a year, all of them mergeable.

A window is answered from the coarsest rows that lie wholly inside it, and finer ones at its ends, so that a day is two dozen rows. A
look and the place of its tracker are written in one transaction: a process that is killed loses the looks it had not written, and the
next look covers their time too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from aim_engine.monitor.span import Gauge, Histogram, Span, in_a_row
from aim_engine.monitor.track import Cursor, Event
from aim_engine.state.database import Database, DiskFull

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
LEVELS = {"sample": 0, "minute": MINUTE_MS, "hour": HOUR_MS}
"""Table -> length of its rows; 0 for single looks."""
KEEP_S = {"sample": 6 * 3600.0, "minute": 14 * 86400.0, "hour": 400 * 86400.0}
"""Usual age at which rows go: what a dashboard, a comparison of weeks and one of years need."""
_MIGRATIONS = (
    """
    CREATE TABLE target (id INTEGER PRIMARY KEY, deployment TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
        endpoint TEXT NOT NULL, about BLOB, cursor BLOB, minutes_to INTEGER NOT NULL DEFAULT 0,
        hours_to INTEGER NOT NULL DEFAULT 0, UNIQUE (deployment, kind, name));
    CREATE TABLE edges (id INTEGER PRIMARY KEY, content BLOB NOT NULL UNIQUE);
    CREATE TABLE sample (target INTEGER NOT NULL, time INTEGER NOT NULL, span BLOB NOT NULL, PRIMARY KEY (target, time));
    CREATE TABLE minute (target INTEGER NOT NULL, time INTEGER NOT NULL, span BLOB NOT NULL, PRIMARY KEY (target, time));
    CREATE TABLE hour (target INTEGER NOT NULL, time INTEGER NOT NULL, span BLOB NOT NULL, PRIMARY KEY (target, time));
    CREATE TABLE event (id INTEGER PRIMARY KEY, target INTEGER NOT NULL, time INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
    CREATE INDEX event_time ON event (target, time)
    """,
    "ALTER TABLE target ADD COLUMN cursor_at REAL",
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint or card whose looks are kept."""

    deployment: str
    kind: str = "engine"
    """engine, or card."""
    name: str
    """The replica's name, or the card's identity."""
    endpoint: str = ""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a target said of itself when last seen."""

    engine: str | None = None
    models: tuple[str, ...] = ()
    families: dict[str, str] = {}
    facts: dict[str, str] = {}


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One look to keep."""

    target: Target
    time_s: float
    span: Span
    cursor: Cursor | None
    since_s: float | None = None
    """Time of the cursor that it was held against; None when there was none."""
    about: About | None = None
    events: tuple[Event, ...] = ()


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A target with its key."""

    id: int
    target: Target
    about: About


class _Packed(msgspec.Struct, array_like=True, frozen=True):
    seconds: float
    counters: dict[str, float]
    gauges: dict[str, Gauge]
    histograms: dict[str, tuple[int, float, dict[int, float]]]
    """Edges by number, sum, and the buckets that are not empty."""
    scrapes: int
    failed: int
    restarts: int
    side: str = ""


class History:
    """The history of one machine's deployments."""

    def __init__(self, path: Path, *, keep_s: Mapping[str, float] = KEEP_S, limit_bytes: int | None = None) -> None:
        """Opens or makes the file. Raises: Corrupt, Unreachable."""
        self.database = Database(path, _MIGRATIONS)
        self._keep_s = dict(keep_s)
        self._limit_bytes = limit_bytes
        self._edges: dict[tuple[float, ...], int] = {}
        self._by_id: dict[int, tuple[float, ...]] = {}
        self._ids: dict[Target, int] = {}
        self._pack = msgspec.msgpack.Encoder()
        self._unpack = msgspec.msgpack.Decoder(_Packed)

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def targets(self, deployment: str | None = None) -> tuple[Kept, ...]:
        """What is kept, of one deployment or of all, by name."""
        rows = self.database.rows(
            "SELECT id, deployment, kind, name, endpoint, about FROM target WHERE deployment = ? OR ? IS NULL "
            "ORDER BY deployment, kind DESC, name",
            (deployment, deployment),
        )
        return tuple(
            Kept(
                id=int(str(key)),
                target=Target(deployment=str(owner), kind=str(kind), name=str(name), endpoint=str(endpoint)),
                about=msgspec.msgpack.decode(about, type=About) if isinstance(about, bytes) else About(),
            )
            for key, owner, kind, name, endpoint, about in rows
        )

    def cursor(self, target: Target) -> Cursor | None:
        """Where the tracker of a target stood; None for one that is new."""
        rows = self.database.rows(
            "SELECT cursor FROM target WHERE deployment = ? AND kind = ? AND name = ?",
            (target.deployment, target.kind, target.name),
        )
        content = rows[0][0] if rows else None
        return msgspec.msgpack.decode(content, type=Cursor) if isinstance(content, bytes) else None

    def add(self, looks: Sequence[Look]) -> frozenset[Target]:
        """Keep looks, all of them or none. Gives the targets that another monitor counted on meanwhile: of those only levels are kept.

        Raises: DiskFull when there is no room even after old rows went.
        """
        try:
            return self._write(looks)
        except DiskFull:
            self._forget()
            if not self._drop_oldest():
                raise
            return self._write(looks)

    def roll_up(self, now_s: float) -> None:
        """Make minutes of looks and hours of minutes, as far as they are over."""
        with self.database.writing() as connection:
            for key, minutes_to, hours_to in connection.execute(
                "SELECT id, minutes_to, hours_to FROM target"
            ).fetchall():
                minutes_end = int(now_s * 1000) // MINUTE_MS * MINUTE_MS
                self._fold(key, "sample", "minute", minutes_to, minutes_end)
                hours_end = int(now_s * 1000) // HOUR_MS * HOUR_MS
                self._fold(key, "minute", "hour", hours_to, hours_end)
                connection.execute(
                    "UPDATE target SET minutes_to = max(minutes_to, ?), hours_to = max(hours_to, ?) WHERE id = ?",
                    (minutes_end, hours_end, key),
                )

    def prune(self, now_s: float) -> None:
        """Let rows go that are older than they are kept, then the oldest until the file is within its limit."""
        with self.database.writing() as connection:
            for table, kept_s in self._keep_s.items():
                # Only what is in a coarser row, or too old for the coarsest, goes.
                rolled = {"sample": "minutes_to", "minute": "hours_to"}.get(table)
                bound = f"min(?, (SELECT {rolled} FROM target WHERE id = {table}.target))" if rolled else "?"  # noqa: S608
                connection.execute(
                    f"DELETE FROM {table} WHERE time < {bound}",  # noqa: S608 - names of our own tables
                    (int((now_s - kept_s) * 1000),),
                )
            connection.execute("DELETE FROM event WHERE time < ?", (int((now_s - self._keep_s["hour"]) * 1000),))
        while self._limit_bytes is not None and self.database.size_bytes() > self._limit_bytes:
            if not self._drop_oldest():
                break

    def window(self, kept: Kept, begin_s: float, end_s: float) -> Span:
        """What happened at a target between two times, from the coarsest rows that fit."""
        return in_a_row(span for _, span in self._rows(kept.id, int(begin_s * 1000), int(end_s * 1000)))

    def steps(self, kept: Kept, begin_s: float, end_s: float, count: int) -> list[tuple[float, Span]]:
        """(end, span) of at most `count` stretches of equal length, for a chart; stretches without a row are left out."""
        step_s = (end_s - begin_s) / count
        table = "hour" if step_s >= 3600 else "minute" if step_s >= 60 else "sample"
        found: dict[int, list[Span]] = {}
        begin, end = int(begin_s * 1000), int(end_s * 1000)
        rows = self._table(kept.id, table, begin, end)
        if table != "sample":
            last = max((time + LEVELS[table] for time, _ in rows), default=begin)
            rows += self._table(kept.id, "sample" if table == "minute" else "minute", last, end)
        for time, span in rows:
            found.setdefault(min(count - 1, max(0, int((time - begin) / 1000 / step_s))), []).append(span)
        return [(begin_s + (place + 1) * step_s, in_a_row(spans)) for place, spans in sorted(found.items())]

    def events(self, kept: Kept, begin_s: float, end_s: float, *, most: int = 100) -> tuple[Event, ...]:
        """What was odd, newest last."""
        rows = self.database.rows(
            "SELECT time, kind, text FROM event WHERE target = ? AND time > ? AND time <= ? ORDER BY id DESC LIMIT ?",
            (kept.id, int(begin_s * 1000), int(end_s * 1000), most),
        )
        return tuple(
            msgspec.convert({"time_s": int(str(time)) / 1000, "kind": kind, "text": text}, Event)
            for time, kind, text in reversed(rows)
        )

    def last_s(self, kept: Kept, end_s: float) -> float | None:
        """When the last look that is still kept as such was before a time."""
        ((found,),) = self.database.rows(
            "SELECT max(time) FROM sample WHERE target = ? AND time <= ?", (kept.id, int(end_s * 1000))
        )
        return None if found is None else int(str(found)) / 1000

    def first_s(self, kept: Kept) -> float | None:
        """When the oldest kept row of a target begins."""
        found = [
            int(str(value))
            for table in LEVELS
            for (value,) in self.database.rows(f"SELECT min(time) FROM {table} WHERE target = ?", (kept.id,))  # noqa: S608
            if value is not None
        ]
        return min(found) / 1000 if found else None

    def _write(self, looks: Iterable[Look]) -> frozenset[Target]:
        with self.database.writing():
            try:
                return frozenset(look.target for look in looks if not self._write_one(look))
            except BaseException:
                self._ids.clear()  # keys given inside the transaction are gone with it
                self._edges.clear()
                self._by_id.clear()
                raise

    def _write_one(self, look: Look) -> bool:
        """Write a look; False when another monitor has counted what it counts."""
        connection, pack = self.database.connection, self._pack.encode
        key = self._key(look.target)
        time = int(look.time_s * 1000)
        (newest, minutes_to, hours_to, counted_to) = connection.execute(
            "SELECT (SELECT max(time) FROM sample WHERE target = id), minutes_to, hours_to, cursor_at FROM target WHERE id = ?",
            (key,),
        ).fetchone()
        span, ours = look.span, True
        if look.cursor is not None and None not in (counted_to, look.since_s) and counted_to != look.since_s:
            span, ours = msgspec.structs.replace(span, seconds=0.0, counters={}, histograms={}, restarts=0), False
        while (
            newest is not None
            and time <= newest
            and connection.execute("SELECT 1 FROM sample WHERE target = ? AND time = ?", (key, time)).fetchone()
        ):
            time += 1
        connection.execute("INSERT INTO sample VALUES (?, ?, ?)", (key, time, self._packed(span)))
        # A clock that went back writes into stretches that are rolled up already.
        if time < minutes_to:
            self._merge(key, "minute", time // MINUTE_MS * MINUTE_MS, span)
        if time < hours_to:
            self._merge(key, "hour", time // HOUR_MS * HOUR_MS, span)
        if look.cursor is not None and ours:
            connection.execute(
                "UPDATE target SET cursor = ?, cursor_at = ? WHERE id = ?",
                (pack(look.cursor), look.cursor.time_s, key),
            )
        if look.about is not None:
            connection.execute(
                "UPDATE target SET about = ?, endpoint = ? WHERE id = ?", (pack(look.about), look.target.endpoint, key)
            )
        connection.executemany(
            "INSERT INTO event (target, time, kind, text) VALUES (?, ?, ?, ?)",
            [(key, int(event.time_s * 1000), event.kind, event.text) for event in look.events],
        )
        return ours

    def _merge(self, key: int, table: str, time: int, span: Span) -> None:
        connection = self.database.connection
        row = connection.execute(f"SELECT span FROM {table} WHERE target = ? AND time = ?", (key, time)).fetchone()  # noqa: S608
        whole = span if row is None else in_a_row((self._unpacked(row[0]), span))
        connection.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", (key, time, self._packed(whole)))  # noqa: S608

    def _fold(self, key: int, fine: str, coarse: str, begin: int, end: int) -> None:
        if begin >= end:
            return
        groups: dict[int, list[Span]] = {}
        for time, span in self._table(key, fine, begin - 1, end - 1):
            groups.setdefault(time // LEVELS[coarse] * LEVELS[coarse], []).append(span)
        self.database.connection.executemany(
            f"INSERT OR REPLACE INTO {coarse} VALUES (?, ?, ?)",  # noqa: S608 - names of our own tables
            [(key, time, self._packed(in_a_row(spans))) for time, spans in groups.items()],
        )

    def _rows(self, key: int, begin: int, end: int) -> list[tuple[int, Span]]:
        """Rows that make up (begin, end], oldest first, coarse ones where they lie wholly inside and are made."""
        ((minutes_to, hours_to),) = self.database.rows("SELECT minutes_to, hours_to FROM target WHERE id = ?", (key,))
        first_hour, first_minute = -(-begin // HOUR_MS) * HOUR_MS, -(-begin // MINUTE_MS) * MINUTE_MS
        last_hour = min(end // HOUR_MS * HOUR_MS, int(str(hours_to)))
        last_minute = min(end // MINUTE_MS * MINUTE_MS, int(str(minutes_to)))
        if last_minute <= first_minute:
            return self._table(key, "sample", begin, end)
        found = self._table(key, "sample", begin, first_minute - 1)
        if last_hour > first_hour:
            found += self._table(key, "minute", first_minute - 1, first_hour - 1)
            found += self._table(key, "hour", first_hour - 1, last_hour - 1)
            found += self._table(key, "minute", last_hour - 1, last_minute - 1)
        else:
            found += self._table(key, "minute", first_minute - 1, last_minute - 1)
        return found + self._table(key, "sample", last_minute - 1, end)

    def _table(self, key: int, table: str, after: int, to: int) -> list[tuple[int, Span]]:
        rows = self.database.rows(
            f"SELECT time, span FROM {table} WHERE target = ? AND time > ? AND time <= ? ORDER BY time",  # noqa: S608
            (key, after, to),
        )
        return [(int(str(time)), self._unpacked(content)) for time, content in rows if isinstance(content, bytes)]

    def _drop_oldest(self) -> bool:
        """Let the oldest tenth of the finest table go that has rows to spare; False when there is none."""
        with contextlib.suppress(DiskFull):
            for table in LEVELS:
                with self.database.writing() as connection:
                    (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
                    if count < 10:
                        continue
                    bound = connection.execute(
                        f"SELECT time FROM {table} ORDER BY time LIMIT 1 OFFSET ?",  # noqa: S608
                        (count // 10,),
                    ).fetchone()[0]
                    connection.execute(f"DELETE FROM {table} WHERE time <= ?", (bound,))  # noqa: S608
                    return True
        return False

    def _forget(self) -> None:
        self._ids.clear()

    def _key(self, target: Target) -> int:
        known = self._ids.get(target)
        if known is None:
            connection = self.database.connection
            connection.execute(
                "INSERT OR IGNORE INTO target (deployment, kind, name, endpoint) VALUES (?, ?, ?, ?)",
                (target.deployment, target.kind, target.name, target.endpoint),
            )
            (known,) = connection.execute(
                "SELECT id FROM target WHERE deployment = ? AND kind = ? AND name = ?",
                (target.deployment, target.kind, target.name),
            ).fetchone()
            self._ids[target] = int(known)
        return int(known)

    def _packed(self, span: Span) -> bytes:
        return self._pack.encode(
            _Packed(
                span.seconds,
                {name: _short(value) for name, value in span.counters.items()},
                span.gauges,
                {
                    name: (self._edge_id(h.edges), h.total, {n: _short(c) for n, c in enumerate(h.counts) if c})
                    for name, h in span.histograms.items()
                },
                span.scrapes,
                span.failed,
                span.restarts,
                span.side,
            )
        )

    def _unpacked(self, content: bytes) -> Span:
        packed = self._unpack.decode(content)
        histograms = {}
        for name, (edge_id, total, sparse) in packed.histograms.items():
            edges = self._edges_of(edge_id)
            counts = [0.0] * (len(edges) + 1)
            for place, count in sparse.items():
                counts[place] = count
            histograms[name] = Histogram(edges, tuple(counts), total)
        gauges = packed.gauges
        if packed.seconds and any(not gauge.seconds for gauge in gauges.values()):
            # Rows of releases that did not count for how long a level stood.
            gauges = {name: gauge if gauge.seconds else gauge.over(packed.seconds) for name, gauge in gauges.items()}
        looks = (packed.scrapes, packed.failed, packed.restarts, packed.side)
        return Span(packed.seconds, packed.counters, gauges, histograms, *looks)

    def _edge_id(self, edges: tuple[float, ...]) -> int:
        known = self._edges.get(edges)
        if known is None:
            content = msgspec.msgpack.encode(edges)
            connection = self.database.connection
            connection.execute("INSERT OR IGNORE INTO edges (content) VALUES (?)", (content,))
            (known,) = connection.execute("SELECT id FROM edges WHERE content = ?", (content,)).fetchone()
            self._edges[edges], self._by_id[int(known)] = int(known), edges
        return int(known)

    def _edges_of(self, edge_id: int) -> tuple[float, ...]:
        if edge_id not in self._by_id:
            ((content,),) = self.database.rows("SELECT content FROM edges WHERE id = ?", (edge_id,))
            decoder = msgspec.msgpack.Decoder(tuple[float, ...])
            found = decoder.decode(content) if isinstance(content, bytes) else ()
            self._by_id[edge_id] = found
        return self._by_id[edge_id]


def _short(number: float) -> float:
    """Whole numbers as such, which take a third of the room."""
    return int(number) if number == int(number) else number
