"""SQLite files that survive a killed process, a full disk and a newer program: WAL, whole transactions, numbered migrations."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from aim_engine.errors import Corrupt, Unreachable

WAIT_S = 10.0
"""How long a writer waits for another one."""


class DiskFull(Unreachable):
    """The disk, or the limit that the user set, has no room for what should be kept."""


class Database:
    """One file and its connection; each thread that writes needs its own."""

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        """Open `path`, made when it is not there, and bring it to the newest of `migrations`. Raises: Corrupt, Unreachable."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise Unreachable(
                f"{path.parent} cannot be made", why=err.strerror, hint="set AIM_ENGINE_STATE_DIR to another folder"
            ) from err
        with self.explained():
            self.connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=NORMAL")
            self.connection.execute("PRAGMA foreign_keys=ON")
            self._migrate(migrations)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing. Raises: DiskFull, Corrupt, Unreachable."""
        with self.explained():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                        self.connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """The rows of a query. Raises: Corrupt, Unreachable."""
        with self.explained():
            return self.connection.execute(query, values).fetchall()

    def size_bytes(self) -> int:
        """Bytes in use, without pages that can be used again."""
        with self.explained():
            (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
            (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
            (size,) = self.connection.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of SQLite as ours."""
        try:
            yield
        except sqlite3.DatabaseError as err:
            code = getattr(err, "sqlite_errorcode", None)
            primary = None if code is None else code & 0xFF
            if primary == sqlite3.SQLITE_FULL or code == _IO_WRITE:
                raise DiskFull(
                    f"there is no room to write {self.path}",
                    why=str(err),
                    hint="free some disk space, or lower history_limit in the settings",
                ) from err
            if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise Corrupt(
                    f"{self.path} is damaged", why=str(err), hint=f"move it away: mv {self.path} {self.path}.damaged"
                ) from err
            if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Unreachable(
                    f"{self.path} is in use by another process", why=str(err), hint="try again in a moment"
                ) from err
            if isinstance(err, sqlite3.OperationalError):
                raise Unreachable(
                    f"{self.path} cannot be used", why=str(err), hint="set AIM_ENGINE_STATE_DIR to another folder"
                ) from err
            raise

    def _migrate(self, migrations: Sequence[str]) -> None:
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        if version > len(migrations):
            raise Corrupt(
                f"{self.path} was written by a newer version of aim-engine",
                why=f"it has format {version}, this version knows {len(migrations)}",
                hint="use the version that wrote it",
            )
        for number in range(version, len(migrations)):
            with self.writing():
                (now,) = self.connection.execute("PRAGMA user_version").fetchone()
                if now > number:  # another process was faster
                    continue
                for statement in migrations[number].split(";"):
                    if statement.strip():
                        self.connection.execute(statement)
                self.connection.execute(f"PRAGMA user_version={number + 1}")


_IO_WRITE = sqlite3.SQLITE_IOERR_WRITE
"""What writing over a limit of file sizes gives."""
