"""An index over the store, so that questions cost milliseconds: SQLite on this node's own disk, rebuilt whenever it is missing.

The store's files are the truth. The index adds what files cannot say: when content was last proved, how its file looked then,
and what was counted. Losing it loses no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from aim_engine.cache import layout, locks, manifest, views
from aim_engine.cache.content import Blob, Fingerprint, Known, fingerprint
from aim_engine.cache.faults import Damaged
from aim_engine.cache.layout import Store, typed
from aim_engine.cache.manifest import Revision, StoredFile

_VERSION = 1
_ADDED = (
    "CREATE TABLE IF NOT EXISTS used(model_id TEXT, at REAL)",
    "CREATE INDEX IF NOT EXISTS size_by_content ON file(sha256, size_bytes)",
)
"""Came later; earlier versions do not mind them."""
_MOST_USES = 20_000
"""Uses that are remembered: years of them on most nodes."""
_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE revision(
    id INTEGER PRIMARY KEY, model_id TEXT, commit_id TEXT, source TEXT, licence TEXT,
    manifest_sha256 TEXT, manifest_bytes INTEGER, manifest_mtime_ns INTEGER, added_at REAL, uses REAL DEFAULT 0,
    UNIQUE(model_id, commit_id));
CREATE TABLE file(
    revision_id INTEGER REFERENCES revision ON DELETE CASCADE, path TEXT, sha256 TEXT, size_bytes INTEGER,
    PRIMARY KEY(revision_id, path)) WITHOUT ROWID;
CREATE INDEX file_by_content ON file(sha256);
CREATE TABLE blob(
    sha256 TEXT PRIMARY KEY, size_bytes INTEGER, device INTEGER, inode INTEGER, mtime_ns INTEGER, verified_at REAL) WITHOUT ROWID;
CREATE TABLE oid(git_oid TEXT PRIMARY KEY, sha256 TEXT) WITHOUT ROWID;
CREATE INDEX oid_by_content ON oid(sha256);
CREATE TABLE counter(name TEXT PRIMARY KEY, value REAL) WITHOUT ROWID;
CREATE TABLE checked(model_id TEXT, ref TEXT, commit_id TEXT, at REAL, PRIMARY KEY(model_id, ref)) WITHOUT ROWID;
"""


class Index:
    """The index of one store."""

    def __init__(self, store: Store, folder: Path) -> None:
        """`folder` must be on a disk of this node; SQLite's journal is not safe on network file systems."""
        self._store = store
        self._folder = folder
        self._guard = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    @property
    def path(self) -> Path:
        """Its database file."""
        mark = self._store.mark
        return self._folder / f"{mark.uuid if mark is not None else 'none'}.sqlite"

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection inside one transaction; what it changed is there together or not at all."""
        with self._guard:
            connection = self._connect()
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def close(self) -> None:
        """Let go of the database."""
        with self._guard:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def refresh(self) -> None:
        """Take in what other processes and nodes changed, if they changed anything."""
        with self._guard:
            connection = self._connect()
            row = connection.execute("SELECT value FROM meta WHERE key = 'seen'").fetchone()
        if row is None or row[0] != self._signature():
            self.reconcile()

    def rebuild(self) -> None:
        """Forget everything and read the store again."""
        self.close()
        with self._guard:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.reconcile()

    def reconcile(self) -> tuple[str, ...]:
        """Make the index equal to the store's files and say which manifests could not be read."""
        signature = self._signature()
        unreadable: list[str] = []
        with self.transaction() as connection:
            known = {
                (_folder(row[0]), row[1]): (row[2], row[0])
                for row in connection.execute("SELECT model_id, commit_id, manifest_mtime_ns FROM revision")
            }
            present = set()
            for path in _manifest_files(self._store):
                about = path.stat()
                folder, commit = path.parent.name, path.stem
                if (folder, commit) in known and known[folder, commit][0] == about.st_mtime_ns:
                    present.add((folder, commit))
                    continue
                try:
                    content = path.read_bytes()
                    revision = manifest.decode(content, str(path))
                    if (_folder(revision.model_id), revision.commit) != (folder, commit):
                        raise Damaged(f"{path} belongs to another model", why=f"{revision.model_id} {revision.commit}")
                except (OSError, Damaged) as err:
                    unreadable.append(f"{path}: {err}")
                    continue
                present.add((folder, commit))
                _insert(connection, revision, content, about)
            for gone in known.keys() - present:
                connection.execute(
                    "DELETE FROM revision WHERE model_id = ? AND commit_id = ?", (known[gone][1], gone[1])
                )
            self._reconcile_blobs(connection)
            _remember(connection, "seen", signature)
        return tuple(unreadable)

    def publish(self, revision: Revision) -> None:
        """Record a revision whose content is all stored: manifest first, which makes it official, then index.json and the index.

        Raises: Unreachable, NoSpace.
        """
        content = manifest.encode(revision)
        place = self._store.path("manifests", _folder(revision.model_id), f"{revision.commit}.json")
        with typed(place):
            self.write_documents(revision)
            place.parent.mkdir(exist_ok=True)
            if not place.exists() or place.read_bytes() != content:
                layout.write(place, content)
            self.touch(revision.model_id, revision.commit)
        self.write_list()

    def write_documents(self, revision: Revision) -> None:
        """Have what makes a revision an OCI image beside its files: manifest and configuration. Raises: Unreachable, NoSpace."""
        content = manifest.encode(revision)
        for data, sha256 in (
            (manifest.EMPTY, manifest.EMPTY_SHA256),
            (content, hashlib.sha256(content).hexdigest()),
        ):
            if not self._store.blob(sha256).exists():
                partial = self._store.path("parts", f"{sha256}.{os.getpid()}.{threading.get_ident()}.small")
                with typed(partial):
                    layout.write(partial, data)
                self._store.publish(partial, sha256)

    def withdraw(self, model_id: str, commit: str) -> None:
        """Make a revision unofficial; its content stays for the clean-up to judge. Raises: Unreachable."""
        place = self._store.path("manifests", _folder(model_id), f"{commit}.json")
        with typed(place):
            place.unlink(missing_ok=True)
            place.with_suffix(".used").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                place.parent.rmdir()
        self.write_list()

    def write_list(self) -> None:
        """Bring index.json and the index up to date with the manifests."""
        with locks.held(self._store, "index"), typed(self._store.path("index.json")):
            self.reconcile()
            with self.transaction() as connection:
                rows = connection.execute(
                    "SELECT model_id, commit_id, manifest_sha256, manifest_bytes FROM revision ORDER BY model_id, commit_id"
                ).fetchall()
            entries: list[dict[str, object]] = [
                {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": f"sha256:{row[2]}",
                    "size": row[3],
                    "annotations": {
                        "dev.aim-engine.model": row[0],
                        "dev.aim-engine.commit": row[1],
                        "org.opencontainers.image.ref.name": f"{row[0]}@{row[1]}",
                    },
                }
                for row in rows
            ]
            layout.write(self._store.path("index.json"), layout.index_document(tuple(entries)))
            with self.transaction() as connection:
                _remember(connection, "seen", self._signature())

    def revisions(self, model_id: str | None = None) -> tuple[Known, ...]:
        """The revisions in the store, by model and commit."""
        where, values = ("", ()) if model_id is None else ("WHERE model_id = ?", (model_id,))
        with self.transaction() as connection:
            rows = connection.execute(
                f"SELECT id, model_id, commit_id, source, licence, added_at, uses FROM revision {where} "  # noqa: S608 - fixed text
                "ORDER BY model_id, commit_id",
                values,
            ).fetchall()
            by_revision: dict[int, list[StoredFile]] = {}
            for row in connection.execute("SELECT revision_id, path, sha256, size_bytes FROM file ORDER BY path"):
                by_revision.setdefault(row[0], []).append(StoredFile(path=row[1], sha256=row[2], size_bytes=row[3]))
        refs: dict[str, dict[str, str]] = {}
        found = []
        for row in rows:
            named = refs.setdefault(row[1], views.refs(self._store, row[1]))
            found.append(
                Known(
                    revision=Revision(
                        model_id=row[1],
                        commit=row[2],
                        source=row[3],
                        licence=row[4],
                        files=tuple(by_revision.get(row[0], ())),
                    ),
                    refs=tuple(sorted(ref for ref, commit in named.items() if commit == row[2])),
                    added_at=row[5],
                    last_use=self._last_use(row[1], row[2], row[5]),
                    uses=row[6],
                )
            )
        return tuple(found)

    def revision(self, model_id: str, commit: str) -> Revision | None:
        """One revision; None when it is not in the store."""
        with self.transaction() as connection:
            row = connection.execute(
                "SELECT id, source, licence FROM revision WHERE model_id = ? AND commit_id = ?", (model_id, commit)
            ).fetchone()
            if row is None:
                return None
            files = connection.execute(
                "SELECT path, sha256, size_bytes FROM file WHERE revision_id = ? ORDER BY path", (row[0],)
            ).fetchall()
        return Revision(
            model_id=model_id,
            commit=commit,
            source=row[1],
            licence=row[2],
            files=tuple(StoredFile(path=each[0], sha256=each[1], size_bytes=each[2]) for each in files),
        )

    def blobs(self, digests: Iterable[str] | None = None) -> dict[str, Blob]:
        """What is known of stored content, by checksum; all of it when none is named."""
        with self.transaction() as connection:
            columns = "SELECT sha256, size_bytes, device, inode, mtime_ns, verified_at FROM blob"
            if digests is None:
                rows = connection.execute(columns).fetchall()
            else:
                rows = []
                for digest in set(digests):
                    rows.extend(connection.execute(f"{columns} WHERE sha256 = ?", (digest,)).fetchall())
        return {
            row[0]: Blob(
                sha256=row[0],
                size_bytes=row[1],
                fingerprint=Fingerprint(row[2], row[3], row[1], row[4]),
                verified_at=row[5],
            )
            for row in rows
        }

    def verified(self, sha256: str, now_s: float) -> None:
        """Note that this content was just proved right, and how its file looks."""
        about = fingerprint(self._store.blob(sha256).stat())
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?, ?)",
                (sha256, about.size_bytes, about.device, about.inode, about.mtime_ns, now_s),
            )

    def forget(self, sha256: str) -> None:
        """Note that content left the store."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM blob WHERE sha256 = ?", (sha256,))

    def users(self, sha256: str) -> tuple[tuple[str, str, str], ...]:
        """Model, commit and path of every file with this content."""
        with self.transaction() as connection:
            return tuple(
                connection.execute(
                    "SELECT model_id, commit_id, path FROM file JOIN revision ON id = revision_id WHERE sha256 = ? "
                    "ORDER BY 1, 2, 3",
                    (sha256,),
                ).fetchall()
            )

    def manifest_digest(self, model_id: str, commit: str) -> str | None:
        """The sha256 of a revision's manifest; None when the revision is not in the store."""
        with self.transaction() as connection:
            row = connection.execute(
                "SELECT manifest_sha256 FROM revision WHERE model_id = ? AND commit_id = ?", (model_id, commit)
            ).fetchone()
        return None if row is None else str(row[0])

    def used_digests(self) -> set[str]:
        """All content that some revision has, manifests included."""
        with self.transaction() as connection:
            used = {row[0] for row in connection.execute("SELECT DISTINCT sha256 FROM file")}
            used |= {row[0] for row in connection.execute("SELECT manifest_sha256 FROM revision")}
        return used | {manifest.EMPTY_SHA256}

    def totals(self) -> tuple[int, int, int, int]:
        """Models, revisions, their distinct files and the bytes of those."""
        with self.transaction() as connection:
            models, revisions = connection.execute("SELECT COUNT(DISTINCT model_id), COUNT(*) FROM revision").fetchone()
            blobs, total = connection.execute(
                "SELECT COUNT(*), COALESCE(SUM(size_bytes), 0) FROM (SELECT DISTINCT sha256, size_bytes FROM file)"
            ).fetchone()
        return models, revisions, blobs, total

    def count(self, **amounts: float) -> None:
        """Add to counters such as hits or fetched_bytes."""
        with self.transaction() as connection:
            for name, value in amounts.items():
                connection.execute(
                    "INSERT INTO counter VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = value + excluded.value",
                    (name, value),
                )

    def counters(self) -> dict[str, float]:
        """Everything counted on this node."""
        with self.transaction() as connection:
            return dict(connection.execute("SELECT name, value FROM counter ORDER BY name").fetchall())

    def touch(self, model_id: str, commit: str) -> None:
        """Note a use: in the store by its own clock, for all nodes; the count here."""
        used = self._store.path("manifests", _folder(model_id), f"{commit}.used")
        with contextlib.suppress(OSError):  # a read-only store cannot remember uses
            descriptor = os.open(used, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            os.utime(descriptor)
            os.close(descriptor)
        with self.transaction() as connection:
            connection.execute(
                "UPDATE revision SET uses = uses + 1 WHERE model_id = ? AND commit_id = ?", (model_id, commit)
            )
            connection.execute("INSERT INTO used VALUES (?, ?)", (model_id, self._store.now_s()))
            connection.execute("DELETE FROM used WHERE rowid <= (SELECT MAX(rowid) FROM used) - ?", (_MOST_USES,))

    def uses(self) -> dict[str, tuple[float, ...]]:
        """Model -> when it was used from this node, oldest first; models that are no longer here included."""
        found: dict[str, list[float]] = {}
        with self.transaction() as connection:
            for model_id, at in connection.execute("SELECT model_id, at FROM used ORDER BY at"):
                found.setdefault(model_id, []).append(at)
        return {model_id: tuple(times) for model_id, times in found.items()}

    def by_oid(self, git_oid: str) -> str | None:
        """The sha256 of the content that git calls so; None when no stored content is known to be it."""
        with self.transaction() as connection:
            row = connection.execute("SELECT sha256 FROM oid WHERE git_oid = ?", (git_oid,)).fetchone()
        return None if row is None else str(row[0])

    def remember_oid(self, git_oid: str, sha256: str) -> None:
        """Note git's name for content."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO oid VALUES (?, ?)", (git_oid, sha256))

    def without_oid(self, sizes: Iterable[int], at_most_bytes: int) -> tuple[str, ...]:
        """Stored content of one of these sizes whose git name is not known."""
        found: list[str] = []
        with self.transaction() as connection:
            for size in sizes:
                if size <= at_most_bytes:
                    found.extend(
                        row[0]
                        for row in connection.execute(
                            "SELECT sha256 FROM blob WHERE size_bytes = ? AND sha256 NOT IN (SELECT sha256 FROM oid)",
                            (size,),
                        )
                    )
        return tuple(found)

    def remember_check(self, model_id: str, ref: str, commit: str, now_s: float) -> None:
        """Note which commit a source gave for a branch."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO checked VALUES (?, ?, ?, ?)", (model_id, ref, commit, now_s))

    def last_check(self, model_id: str, ref: str) -> tuple[str, float] | None:
        """The commit a source last gave for a branch, and when."""
        with self.transaction() as connection:
            row = connection.execute(
                "SELECT commit_id, at FROM checked WHERE model_id = ? AND ref = ?", (model_id, ref)
            ).fetchone()
        return None if row is None else (row[0], row[1])

    def _last_use(self, model_id: str, commit: str, otherwise: float) -> float:
        try:
            return self._store.path("manifests", _folder(model_id), f"{commit}.used").stat().st_mtime
        except OSError:
            return otherwise

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = self._open(self.path)
            except sqlite3.Error:  # damaged or of another version: it holds nothing that the store does not
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
                self._connection = self._open(self.path)
        return self._connection

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
        except (OSError, sqlite3.OperationalError):  # no writable disk: an index for as long as this process lives
            connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            connection.close()
            raise sqlite3.DatabaseError(f"index version {version}")
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.commit()
        for statement in _ADDED:
            connection.execute(statement)
        return connection

    def _reconcile_blobs(self, connection: sqlite3.Connection) -> None:
        known = {row[0] for row in connection.execute("SELECT sha256 FROM blob")}
        present = {}
        try:
            with os.scandir(self._store.path("blobs", "sha256")) as entries:
                for entry in entries:
                    if len(entry.name) == 64 and entry.name not in known:
                        present[entry.name] = fingerprint(entry.stat(follow_symlinks=False))
                    known.discard(entry.name)
        except FileNotFoundError:
            pass
        connection.executemany("DELETE FROM blob WHERE sha256 = ?", [(digest,) for digest in known])
        connection.executemany(
            "INSERT INTO blob VALUES (?, ?, ?, ?, ?, NULL)",
            [(digest, each.size_bytes, each.device, each.inode, each.mtime_ns) for digest, each in present.items()],
        )

    def _signature(self) -> str:
        """Changes whenever any node publishes or withdraws a revision."""
        try:
            return json.dumps(msgspec.to_builtins(fingerprint(self._store.path("index.json").stat())))
        except OSError:
            return "none"


def _manifest_files(store: Store) -> list[Path]:
    return sorted(store.path("manifests").glob("models--*/*.json"))


def _insert(connection: sqlite3.Connection, revision: Revision, content: bytes, about: os.stat_result) -> None:
    digest = hashlib.sha256(content).hexdigest()
    row = connection.execute(
        "INSERT INTO revision(model_id, commit_id, source, licence, manifest_sha256, manifest_bytes, manifest_mtime_ns, added_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(model_id, commit_id) DO UPDATE SET source = excluded.source, "
        "licence = excluded.licence, manifest_sha256 = excluded.manifest_sha256, manifest_bytes = excluded.manifest_bytes, "
        "manifest_mtime_ns = excluded.manifest_mtime_ns RETURNING id",
        (
            revision.model_id, revision.commit, revision.source, revision.licence,
            digest, len(content), about.st_mtime_ns, about.st_mtime,
        ),
    ).fetchone()  # fmt: skip
    connection.execute("DELETE FROM file WHERE revision_id = ?", (row[0],))
    connection.executemany(
        "INSERT INTO file VALUES (?, ?, ?, ?)",
        [(row[0], file.path, file.sha256, file.size_bytes) for file in revision.files],
    )


def _remember(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _folder(model_id: str) -> str:
    return "models--" + model_id.replace("/", "--")
