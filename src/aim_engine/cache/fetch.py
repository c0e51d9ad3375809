"""Moves the bytes: files in pieces over several connections, kept across failures and restarts, proved before they count.

Workers take pieces from all files, so that a large one does not wait for a small one, and help each other at the end. The checksum of a file follows behind its
pieces, so it is known soon after the last byte. A piece that arrives is claimed beside its part; whoever comes next goes on there.
"""

from __future__ import annotations

import math
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aim_engine.cache import locks, pieces, xet
from aim_engine.cache.faults import Damaged, Unavailable
from aim_engine.cache.job import Flight, Job, Remote
from aim_engine.cache.layout import Store, refused
from aim_engine.cache.pace import UNPACED, Pace
from aim_engine.cache.progress import Progress, Tally
from aim_engine.cache.transport import Answer, Client, TryAgain
from aim_engine.errors import AimError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_READ_BYTES = 512 * 1024
"""The most at once from a connection: fewer and longer calls keep threads from waiting for each other's turn in the interpreter."""
_FIRST_READ_BYTES = 64 * 1024
_READ_S = 0.1
"""A read is sized to take no longer, so that what a slow connection brings is seen, counted and kept soon."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_TICK_S = 0.05
_JOIN_S = 2.0
"""A worker whose piece others brought may still wait for a silent server; it writes nothing any more."""
_WAIT_S = 2.0
"""Waiting for another process is worth a word after so long."""
_FIRST_CONNECTIONS = 4
MOST_CONNECTIONS = 16


class Fetcher:
    """Fetches a set of files into a store. `fetch` may be called once."""

    def __init__(
        self,
        store: Store,
        client: Client,
        *,
        stored: Callable[[Remote, str], None],
        refusal: Callable[[int, Mapping[str, str], str], AimError],
        inspect: Callable[[Remote, Path], None] = lambda _remote, _path: None,
        progress: Callable[[Progress], None] = lambda _: None,
        tell: Callable[[str], None] = lambda _: None,
        connections: int = MOST_CONNECTIONS,
        piece_bytes: int = pieces.PIECE_BYTES,
        pace: Pace = UNPACED,
    ) -> None:
        """`stored` hears of each file as it is published, with its sha256. `refusal` names a source's refusal of a path.

        `inspect` may refuse a proven file before it is published, by raising.
        """
        self.tally = Tally()
        self._store = store
        self._client = client
        self._stored = stored
        self._refusal = refusal
        self._inspect = inspect
        self._progress = progress
        self._tell = tell
        self._most = max(1, connections)
        self._allowed = min(_FIRST_CONNECTIONS, self._most)
        self._piece_bytes = piece_bytes
        self._pace = pace
        self._guard = threading.Lock()
        self._beginning = threading.Lock()
        self._jobs: list[Job] = []
        self._later: list[Remote] = []
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._settled_bytes = 0

    def fetch(self, files: tuple[Remote, ...]) -> None:
        """Have every file in the store. Raises: AimError; what arrived until then is kept for the next attempt."""
        unique = {remote.key: remote for remote in files}
        total = sum(remote.size_bytes for remote in unique.values())
        self._later = sorted(unique.values(), key=lambda remote: (remote.size_bytes, remote.path))
        began = time.monotonic()
        workers: list[threading.Thread] = []
        rates: deque[tuple[float, int]] = deque([(began, 0)], maxlen=100)
        best_rate, grown_at, shown_at, idle_at = 0.0, began, 0.0, began
        self._begin_more()
        try:
            while not self._stop.is_set() and (self._jobs or self._later):
                for _ in range(min(self._allowed, self._work()) - len(workers)):
                    worker = threading.Thread(target=self._labour, daemon=True)
                    workers.append(worker)
                    worker.start()
                self._stop.wait(_TICK_S)
                workers = [worker for worker in workers if worker.is_alive()]
                now = time.monotonic()
                if not self._jobs:
                    self._begin_more()
                    idle_at = self._tell_of_waiting(now, idle_at)
                else:
                    idle_at = now
                self._pace.active()
                self._break_off_crawling(now)
                rates.append((now, self.tally.received_bytes))
                rate = (rates[-1][1] - rates[0][1]) / max(1e-6, rates[-1][0] - rates[0][0])
                if now - grown_at > 2.0 and self._allowed < self._most:
                    grown_at = now
                    if rate > 1.1 * best_rate:
                        best_rate, self._allowed = rate, min(self._most, self._allowed + 2)
                if now - shown_at > 0.2:
                    shown_at = now
                    self._progress(
                        Progress(done_bytes=min(total, self._done_bytes()), total_bytes=total, rate_bytes_s=rate)
                    )
        finally:
            self._stop.set()
            for job in self._jobs:
                for flight in tuple(job.flights):
                    flight.cut()
                if job.stream is not None:
                    job.stream.shutdown()
            for worker in workers:
                worker.join(_JOIN_S)
            for job in self._jobs:
                job.part.close()
                if job.lock is not None:
                    job.lock.release()
            self.tally.seconds = time.monotonic() - began
        if self._error is not None:
            raise self._error
        self._progress(
            Progress(done_bytes=total, total_bytes=total, rate_bytes_s=total / max(1e-6, self.tally.seconds))
        )

    def _tell_of_waiting(self, now_s: float, idle_at_s: float) -> float:
        """Say once that another process fetches what is left; gives since when nothing was to be done here."""
        if self._jobs or not self._later or now_s - idle_at_s < _WAIT_S:
            return idle_at_s
        self._tell(f"another process fetches {self._later[0].path}; waiting for it")
        return math.inf

    def _done_bytes(self) -> int:
        with self._guard:
            return self._settled_bytes + sum(job.part.done_bytes + job.flying_bytes for job in self._jobs)

    def _work(self) -> int:
        with self._guard:
            waiting = len(self._later) + sum(len(job.waiting) for job in self._jobs)
            flying = sum(len(job.flights) for job in self._jobs)
        return max(1, waiting + flying + (1 if waiting == 0 and self._latest() is not None else 0))

    def _latest(self) -> tuple[float, Job, Flight] | None:
        """The flight of all files that will be done last, and in how many seconds."""
        if self._pace.limited:  # more connections would not be faster
            return None
        now = time.monotonic()
        with self._guard:
            found = [(late[0], job, late[1]) for job in self._jobs if (late := job.slowest(now)) is not None]
        return max(found, key=lambda each: each[0], default=None)

    def _break_off_crawling(self, now_s: float) -> None:
        """Wake the workers whose connections bring next to nothing; they go on over others."""
        patience = self._client.patience
        for job in tuple(self._jobs):
            for flight in tuple(job.flights):
                came = flight.crawls(now_s, patience.stall_s, patience.floor_bytes_s)
                if came is not None and flight.answer is not None:
                    flight.cut()

    def _begin_more(self) -> None:
        """Open the next files: those that nobody else fetches now, while there are few pieces to take, or fewer files than workers.

        A worker that has a file to itself takes its pieces in order, and the checksum needs no reading back.
        """
        if not self._beginning.acquire(blocking=False):
            return  # another worker is at it
        try:
            self._begin_some()
        finally:
            self._beginning.release()

    def _begin_some(self) -> None:
        for remote in tuple(self._later):
            with self._guard:
                busy = sum(len(job.waiting) + len(job.flights) for job in self._jobs)
            if busy >= 2 * self._most and len(self._jobs) >= self._allowed:
                return
            if remote.sha256 is not None and self._store.blob(remote.sha256).exists():  # another process was first
                self._settle(remote, remote.sha256)
                continue
            lock = locks.attempt(self._store, f"content-{remote.key}")
            if lock is None:
                if self._is_abandoned(remote):
                    self._begin(remote, None)
                continue
            if remote.sha256 is not None and self._store.blob(remote.sha256).exists():
                lock.release()
                self._settle(remote, remote.sha256)
                continue
            self._begin(remote, lock)

    def _is_abandoned(self, remote: Remote) -> bool:
        """Has the other holder made no progress for long? Then fetching twice is better than waiting for a dead node."""
        newest = 0.0
        for path in self._store.path("parts").glob(f"{remote.key}.*"):
            try:
                newest = max(newest, path.stat().st_mtime)
            except OSError:
                continue
        return newest > 0 and self._store.now_s() - newest > 2 * self._client.patience.stall_s

    def _begin(self, remote: Remote, lock: BaseFileLock | None) -> None:
        try:
            part = pieces.open_part(self._store, remote.key, remote.size_bytes, self._piece_bytes)
        except BaseException as err:
            if lock is not None:
                lock.release()
            if isinstance(err, OSError):
                raise refused(self._store.path("parts"), err) from err
            raise
        job = Job(remote, part, lock)
        with self._guard:
            self._later.remove(remote)
            self._jobs.append(job)
            self.tally.resumed_bytes += part.done_bytes
        if not job.waiting:
            self._conclude(job)

    def _labour(self) -> None:
        try:
            while not self._stop.is_set():
                taken = self._take()
                if taken is None:
                    return
                job, flight = taken
                job.ask_neighbours(self._client)
                self._carry(job, flight)
                if not self._stop.is_set():
                    job.follow()
                    with job.guard:
                        complete = len(job.part.done) == job.part.count and not job.flights
                    if complete:
                        self._conclude(job)
                    self._begin_more()
        except BaseException as err:  # noqa: BLE001 - handed to the caller of fetch
            with self._guard:
                if self._error is None:
                    self._error = refused(self._store.path("parts"), err) if isinstance(err, OSError) else err
            self._stop.set()

    def _take(self) -> tuple[Job, Flight] | None:
        """A piece that waits, or else a part of the one that would be done last."""
        with self._guard:
            for job in sorted(
                self._jobs, key=lambda job: len(job.flights)
            ):  # one after the other needs no reading back
                flight = job.take()
                if flight is not None:
                    return job, flight
        late = self._latest()
        if late is None:
            return None
        now = time.monotonic()
        _, job, slow = late
        with self._guard:
            rates = [rate for each in self._jobs for flight in each.flights if (rate := flight.rate_bytes_s(now))]
        helper = job.help(slow, max(rates, default=0.0), now)
        if helper is None:
            return None
        with self._guard:
            self.tally.helped_pieces += 1
        return job, helper

    def _carry(self, job: Job, flight: Flight) -> None:
        """Have one flight's bytes here, however often it takes. Raises: AimError, OSError."""
        while not self._stop.is_set():
            if flight.left_bytes == 0 or flight.piece in job.part.done:
                job.landed(flight)
                return
            near = None if job.whole or job.repaired else job.nearby.having(flight.offset, flight.end)
            url = near or job.direct or job.remote.addresses[job.place]
            try:
                if job.whole:
                    if flight.shared or len(job.flights) > 1:
                        break  # one worker takes it all
                    self._stream(job, flight, url)
                    if not self._stop.is_set():
                        return
                elif not self._receive(job, flight, url):
                    break  # stopped, or the server sends files as a whole only
            except TryAgain as err:
                if near is not None:
                    job.nearby.drop(near)
                elif flight.left_bytes:  # else another worker took over what was left
                    self._stumble(job, flight, url, err)
        job.put_back(flight)

    def _receive(self, job: Job, flight: Flight, url: str) -> bool:
        """Go on with a flight; False when it should not be gone on with. Raises: TryAgain, AimError, OSError."""
        begun, end = flight.offset, flight.end
        entire = begun == 0 and end == job.part.size_bytes
        asked = {} if entire else {"Range": f"bytes={begun}-{end - 1}"}
        with self._client.open(url, asked) as answer:
            self._require_usable(job, answer, url)
            if not entire and answer.status == 200:
                job.no_ranges = True
                return False
            self._require_length(job, answer, begun if not entire else None)
            flight.answer = answer
            try:
                size, asked_s = _FIRST_READ_BYTES, time.monotonic()
                while flight.left_bytes:
                    most = min(self._pace.most_bytes(size), flight.left_bytes)
                    content = answer.response.read(most) if most else b""
                    asked_s, before_s = time.monotonic(), asked_s
                    size = min(2 * size, _READ_BYTES) if asked_s - before_s < _READ_S / 2 else _FIRST_READ_BYTES
                    if self._stop.is_set():
                        return False
                    if not content and flight.left_bytes:
                        raise TryAgain("the connection was cut")
                    flight.window_s += self._pace.take(len(content))
                    self._count(len(content))
                    wanted, at = job.forward(flight, content)
                    job.part.write(wanted, at)
            finally:
                flight.answer = None
        return True

    def _count(self, received_bytes: int) -> None:
        with self._guard:
            self.tally.received_bytes += received_bytes

    def _stream(self, job: Job, flight: Flight, url: str) -> None:
        """Take a file in one go, keeping pieces that are here. Raises: TryAgain, AimError, OSError."""
        offset, crc = job.first_missing if xet.is_address(url) else 0, 0
        with self._client.open(url, {"Range": f"bytes={offset}-"} if offset else None) as answer:
            self._require_usable(job, answer, url)
            self._require_length(job, answer, offset or None)
            job.stream = answer
            if self._stop.is_set():
                return
            for received in self._chunks(answer, job.part.size_bytes):
                content = memoryview(received)
                while content:
                    piece = offset // job.part.piece_bytes
                    end = job.part.span(piece)[1]
                    now = content[: end - offset]
                    if piece not in job.part.done:
                        job.part.write(now, offset)
                        crc = zlib.crc32(now, crc)
                    content, offset = content[len(now) :], offset + len(now)
                    if offset == end:
                        if piece not in job.part.done:
                            job.part.claim(piece, crc)
                        job.follow()
                        crc = 0
                if self._stop.is_set():
                    return
        if offset < job.part.size_bytes:
            raise TryAgain("the connection was cut")
        with job.guard:
            job.waiting.clear()
            job.flights.remove(flight)

    def _chunks(self, answer: Answer, most: int) -> Iterator[bytes]:
        """A body as it arrives, at most so many bytes. Raises: TryAgain when it crawls."""
        patience = self._client.patience
        window_at, window_bytes = time.monotonic(), 0
        while most > 0:
            content = answer.response.read1(min(self._pace.most_bytes(_FIRST_READ_BYTES), most))
            if not content:
                return
            content = content[:most]
            most -= len(content)
            window_at += self._pace.take(len(content))
            self._count(len(content))
            yield content
            window_bytes += len(content)
            passed = time.monotonic() - window_at
            if passed > patience.stall_s:
                if window_bytes < patience.floor_bytes_s * passed:
                    raise TryAgain(f"only {window_bytes:,} bytes came in {passed:.0f} s")
                window_at, window_bytes = time.monotonic(), 0

    def _require_usable(self, job: Job, answer: Answer, url: str) -> None:
        if answer.status in (200, 206):
            if answer.url != url:
                job.direct = answer.url
            etag = answer.header("ETag")
            if job.remote.sha256 is None and job.remote.git_oid is None and etag is not None:
                if job.etag not in (None, etag):
                    job.part.disclaim()
                    raise Unavailable(
                        f"{job.remote.path} changed while it was fetched",
                        why="its source gave it another ETag",
                        hint="try again: only this file starts over",
                    )
                job.etag = etag
            return
        job.in_xet = job.in_xet or "x-xet-hash" in answer.first
        headers = {key.lower(): value for key, value in answer.response.headers.items()}
        with job.guard:
            if answer.status == 416 or not job.lacks(url, redirected=answer.url != url):
                raise TryAgain(f"status {answer.status}")  # a signed address expired
            if not xet.is_address(url):
                job.refused = self._refusal(answer.status, headers, job.remote.path)
            if job.lacking < set(job.remote.addresses):
                raise TryAgain(f"status {answer.status}", elsewhere=True)  # a mirror or peer lacks the file
        raise job.refused or self._refusal(answer.status, headers, job.remote.path)

    @staticmethod
    def _require_length(job: Job, answer: Answer, offset: int | None) -> None:
        """Hold what the server says of the length against what the listing said. Raises: TryAgain."""
        if offset is None:
            promised = answer.header("Content-Length")
            total = int(promised) if promised is not None and promised.isdigit() else None
        else:
            match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range") or "")
            if match is None or int(match[1]) != offset:
                raise TryAgain("the server sent another range than it was asked for")
            total = None if match[3] == "*" else int(match[3])
        if total is not None and total != job.part.size_bytes:
            raise TryAgain(f"the server has {total:,} bytes where the listing says {job.part.size_bytes:,}")

    def _stumble(self, job: Job, flight: Flight, url: str, err: TryAgain) -> None:
        """Prepare another try of a piece. Raises: Unavailable or RateLimited after too many without progress."""
        failures = flight.failed()
        with job.guard:
            if url == job.direct:
                job.direct = None
            elif url == job.remote.addresses[job.place] and len(job.remote.addresses) > 1:
                job.next_place()
                self._tell(f"{job.remote.path}: {err.why}; trying {job.remote.addresses[job.place].split('/')[2]}")
        if err.elsewhere:
            return
        try:
            self._client.after_failure(url, err, failures, self._stop)
        except Unavailable as gone:
            raise xet.remedy(gone) if job.in_xet and err.why.startswith("status 4") else gone from gone.__cause__

    def _conclude(self, job: Job) -> None:
        """Prove a file of which all pieces are here, and publish it. Raises: Damaged, AimError."""
        with self._guard:
            if job.finished:
                return
            job.finished = True
        job.follow(wait=True)
        if not job.is_right():
            self._repair(job)
            return
        digest = job.proof.sha256.hexdigest()
        self._inspect(job.remote, job.part.path)
        job.part.close()
        self._store.publish(job.part.path, digest)
        job.part.discard_claims()
        if job.repaired:
            self.tally.repaired_files += 1
        with self._guard:
            self._jobs.remove(job)
        self._settle(job.remote, digest)
        if job.lock is not None:
            job.lock.release()

    def _repair(self, job: Job) -> None:
        """Fetch a wrong file once more, from the next place; set it aside when it is wrong again. Raises: Damaged."""
        if not job.repaired:
            self._tell(f"{job.remote.path} arrived with a wrong checksum; fetching it once more")
            with self._guard:
                job.repaired, job.finished, job.direct = True, False, None
                job.next_place()
                job.start_over()
            return
        aside = self._store.path("quarantine", job.part.path.name)
        job.part.path.rename(aside)
        job.part.discard_claims()
        raise Damaged(
            f"{job.remote.path} arrives with a wrong checksum",
            why=f"its sha256 is {job.proof.sha256.hexdigest()[:16]}..., its source promises "
            f"{(job.remote.sha256 or job.remote.git_oid or '')[:16]}..., twice; it was set aside as {aside}",
            hint="a proxy or mirror may alter it: set HF_ENDPOINT to another place",
        )

    def _settle(self, remote: Remote, digest: str) -> None:
        with self._guard:
            if remote in self._later:
                self._later.remove(remote)
            self._settled_bytes += remote.size_bytes
        self._stored(remote, digest)
