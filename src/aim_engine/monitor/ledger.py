"""What the monitor decided and was told: alerts and since when, silences, messages not yet delivered, ratings, scores, measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from aim_engine.hardware.gpu import Gpu
from aim_engine.state.database import Database

_MIGRATIONS = (
    """
    CREATE TABLE alert (deployment TEXT NOT NULL, rule TEXT NOT NULL, document BLOB NOT NULL, PRIMARY KEY (deployment, rule));
    CREATE TABLE silence (id INTEGER PRIMARY KEY, until INTEGER NOT NULL, document BLOB NOT NULL);
    CREATE TABLE message (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, due REAL NOT NULL, document BLOB NOT NULL);
    CREATE TABLE rating (id INTEGER PRIMARY KEY, deployment TEXT NOT NULL, time REAL NOT NULL, document BLOB NOT NULL);
    CREATE INDEX rating_time ON rating (deployment, time);
    CREATE TABLE score (id INTEGER PRIMARY KEY, deployment TEXT NOT NULL, time REAL NOT NULL, document BLOB NOT NULL);
    CREATE INDEX score_time ON score (deployment, time);
    CREATE TABLE measurement (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, time REAL NOT NULL, document BLOB NOT NULL)
    """,
)
T = TypeVar("T")


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that is about to fire, fires, or fired."""

    deployment: str
    rule: str
    severity: Literal["critical", "warning", "info"]
    state: Literal["pending", "firing", "resolved"]
    since_s: float
    """When it came into this state."""
    clear_since_s: float | None = None
    """Since when the condition of a firing alert no longer holds."""
    summary: str = ""
    value: float | None = None
    inhibited_by: str = ""
    silenced: bool = False
    told: tuple[str, ...] = ()
    """States that were handed to the receivers."""
    told_s: float = 0.0
    judged_s: float = 0.0
    """When a monitor last asked whether it is so."""


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """No messages about these for a while."""

    rule: str = "*"
    deployment: str = "*"
    until_s: float
    why: str = ""
    id: int = 0


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Something to deliver."""

    receiver: str
    alert: Alert
    attempts: int = 0
    error: str = ""
    id: int = 0


class Rating(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody, or a check, found of one answer."""

    deployment: str
    time_s: float
    good: bool
    source: Literal["user", "check"] = "user"
    flaws: tuple[str, ...] = ()
    comment: str = ""
    request_id: str = ""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A result of an evaluation."""

    deployment: str
    time_s: float
    task: str
    value: float
    items: int = 0
    source: str = ""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """A window under steady load, as a row of a table of measurements."""

    identity: str
    time_s: float
    row: dict[str, str]
    device: Gpu | None = None
    """What it ran on, where no catalogue has it: this machine's processor as it was planned with."""


class Ledger:
    """One file beside the history. A damaged history takes nothing of this with it."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file. Raises: Corrupt, Unreachable."""
        self.database = Database(path, _MIGRATIONS)

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def alerts(self) -> tuple[Alert, ...]:
        """All alerts that are remembered, by deployment and rule."""
        return self._all("SELECT document FROM alert ORDER BY deployment, rule", (), Alert)

    def put_alerts(self, alerts: Sequence[Alert], messages: Sequence[Message], now_s: float) -> None:
        """Keep alerts and what is to be said of them, together."""
        with self.database.writing() as connection:
            for alert in alerts:
                connection.execute(
                    "INSERT OR REPLACE INTO alert VALUES (?, ?, ?)",
                    (alert.deployment, alert.rule, msgspec.msgpack.encode(alert)),
                )
            for message in messages:
                about = message.alert
                identity = (
                    f"{message.receiver} {about.deployment} {about.rule} {about.state} {about.since_s} {about.told_s}"
                )
                connection.execute(
                    "INSERT OR IGNORE INTO message (identity, due, document) VALUES (?, ?, ?)",
                    (identity, now_s, msgspec.msgpack.encode(message)),
                )

    def forget_alert(self, alert: Alert) -> None:
        """Let go of an alert that is over."""
        with self.database.writing() as connection:
            connection.execute("DELETE FROM alert WHERE deployment = ? AND rule = ?", (alert.deployment, alert.rule))

    def due(self, now_s: float) -> tuple[Message, ...]:
        """Messages to try now, oldest first."""
        rows = self.database.rows("SELECT id, document FROM message WHERE due <= ? ORDER BY id", (now_s,))
        return tuple(msgspec.structs.replace(_read(content, Message), id=int(str(key))) for key, content in rows)

    def waiting(self) -> tuple[Message, ...]:
        """Messages not delivered yet."""
        return self._all("SELECT document FROM message ORDER BY id", (), Message)

    def delivered(self, message: Message) -> None:
        """Strike a message off."""
        with self.database.writing() as connection:
            connection.execute("DELETE FROM message WHERE id = ?", (message.id,))

    def postpone(self, message: Message, due_s: float) -> None:
        """Try a message again later."""
        with self.database.writing() as connection:
            connection.execute(
                "UPDATE message SET due = ?, document = ? WHERE id = ?",
                (due_s, msgspec.msgpack.encode(message), message.id),
            )

    def silences(self, now_s: float) -> tuple[Silence, ...]:
        """Silences in force."""
        rows = self.database.rows("SELECT id, document FROM silence WHERE until > ? ORDER BY id", (int(now_s),))
        return tuple(msgspec.structs.replace(_read(content, Silence), id=int(str(key))) for key, content in rows)

    def silence(self, silence: Silence) -> int:
        """Begin a silence; gives its number."""
        with self.database.writing() as connection:
            cursor = connection.execute(
                "INSERT INTO silence (until, document) VALUES (?, ?)",
                (int(silence.until_s), msgspec.msgpack.encode(silence)),
            )
        return int(cursor.lastrowid or 0)

    def end_silence(self, number: int) -> bool:
        """End a silence; False when there is none of this number."""
        with self.database.writing() as connection:
            return connection.execute("DELETE FROM silence WHERE id = ?", (number,)).rowcount > 0

    def rate(self, rating: Rating) -> None:
        """Keep a rating."""
        with self.database.writing() as connection:
            connection.execute(
                "INSERT INTO rating (deployment, time, document) VALUES (?, ?, ?)",
                (rating.deployment, rating.time_s, msgspec.msgpack.encode(rating)),
            )

    def ratings(self, deployment: str, begin_s: float, end_s: float) -> tuple[Rating, ...]:
        """Ratings of a deployment between two times."""
        return self._all(
            "SELECT document FROM rating WHERE deployment = ? AND time > ? AND time <= ? ORDER BY time",
            (deployment, begin_s, end_s),
            Rating,
        )

    def store_score(self, score: Score) -> None:
        """Keep the result of an evaluation."""
        with self.database.writing() as connection:
            connection.execute(
                "INSERT INTO score (deployment, time, document) VALUES (?, ?, ?)",
                (score.deployment, score.time_s, msgspec.msgpack.encode(score)),
            )

    def scores(self, deployment: str) -> tuple[Score, ...]:
        """Results of evaluations of a deployment, oldest first."""
        return self._all("SELECT document FROM score WHERE deployment = ? ORDER BY time", (deployment,), Score)

    def measured(self, measurement: Measurement) -> None:
        """Keep a measurement; one of the same identity replaces it."""
        with self.database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO measurement (identity, time, document) VALUES (?, ?, ?)",
                (measurement.identity, measurement.time_s, msgspec.msgpack.encode(measurement)),
            )

    def measurements(self) -> tuple[Measurement, ...]:
        """All measurements, oldest first."""
        return self._all("SELECT document FROM measurement ORDER BY time, id", (), Measurement)

    def _all(self, query: str, values: Sequence[object], kind: type[T]) -> tuple[T, ...]:
        return tuple(_read(content, kind) for (content,) in self.database.rows(query, values))


def _read(content: object, kind: type[T]) -> T:
    if not isinstance(content, bytes):
        raise TypeError(f"the column holds {type(content).__name__}")
    return msgspec.msgpack.decode(content, type=kind)
