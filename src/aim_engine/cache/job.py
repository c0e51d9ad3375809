"""A file under way: which of its pieces wait, which travel and how far, and the checksum that follows behind them.

A worker with nothing left to take helps another one: it takes over the far end of the piece that would be done last, or all of
it when that piece hardly moves. A piece is claimed once all who carry it are done.
"""

from __future__ import annotations

import hashlib
import threading
import time
import zlib
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from aim_engine.cache import pieces, xet
from aim_engine.cache.nearby import Nearby

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from aim_engine.cache.transport import Answer, Client
    from aim_engine.errors import AimError

_HASH_BYTES = 1 << 20
_PROGRESS_BYTES = 1 << 20
"""A connection that brought this much was of use."""
_LEAST_HELP_BYTES = 256 * 1024
"""A smaller rest is not worth another request."""
_LEAST_HELP_S = 0.5
"""Nor is one that will be here sooner than this."""
_SETTLED_S = 1.0
"""A flight's rate is believed after so long."""


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """A file to fetch, and what it must be."""

    path: str
    size_bytes: int
    addresses: tuple[str, ...]
    """The same file at several places, in order of preference."""
    sha256: str | None = None
    git_oid: str | None = None
    etag: str | None = None
    """What its source calls this version of it, where it tells no checksum."""

    @property
    def key(self) -> str:
        """Names the content, so that attempts of any process for any model find each other's pieces."""
        if self.sha256 is not None:
            return self.sha256
        if self.git_oid is not None:
            return f"git-{self.git_oid}"
        return "url-" + hashlib.sha256(f"{self.addresses[0]} {self.etag} {self.size_bytes}".encode()).hexdigest()


class Proof:
    """The checksums of a file as far as it was read: sha256, and git's where that is what the source promised."""

    def __init__(self, remote: Remote) -> None:
        self.sha256 = hashlib.sha256()
        git_header = b"blob %d\0" % remote.size_bytes
        self.git = hashlib.sha1(git_header, usedforsecurity=False) if remote.git_oid is not None else None

    def update(self, content: bytes | memoryview) -> None:
        """Read on."""
        self.sha256.update(content)
        if self.git is not None:
            self.git.update(content)

    def copy(self) -> Proof:
        """The same, to read on apart."""
        other = Proof.__new__(Proof)
        other.sha256, other.git = self.sha256.copy(), self.git.copy() if self.git is not None else None
        return other


class Flight:
    """A piece, or a part of one, on its way over one connection."""

    def __init__(self, piece: int, start: int, end: int, proof: Proof | None = None) -> None:
        self.piece, self.start, self.offset, self.end, self.crc = piece, start, start, end, 0
        self.proof = proof
        """The file's checksum with this piece, when all before it is in: bytes need not be read back then."""
        self.shared = False
        """Somebody else carries a part of the same piece."""
        self.answer: Answer | None = None
        self.began_s = time.monotonic()
        self.window_s, self.window_offset = self.began_s, start
        self._failures = 0
        self._failed_at = start

    @property
    def left_bytes(self) -> int:
        """What is still to come."""
        return self.end - self.offset

    def rate_bytes_s(self, now_s: float) -> float | None:
        """Since it began; None while that says nothing."""
        passed = now_s - self.began_s
        return (self.offset - self.start) / passed if passed >= _SETTLED_S else None

    def failed(self) -> int:
        """Count a failure; how many there were in a row without much progress."""
        if self.offset - self._failed_at >= _PROGRESS_BYTES:
            self._failures = 0
        self._failures += 1
        self._failed_at = self.offset
        return self._failures

    def crawls(self, now_s: float, stall_s: float, floor_bytes_s: float) -> int | None:
        """Bytes of the last window when it was slower than the floor; None when it was not, or has not passed."""
        passed = now_s - self.window_s
        if passed <= stall_s:
            return None
        came = self.offset - self.window_offset
        self.window_s, self.window_offset = now_s, self.offset
        return came if came < floor_bytes_s * passed else None

    def cut(self) -> None:
        """Wake the worker that waits for this flight's bytes."""
        answer = self.answer
        if answer is not None:
            answer.shutdown()


class Job:
    """One file under way."""

    def __init__(self, remote: Remote, part: pieces.Part, lock: BaseFileLock | None) -> None:
        self.remote = remote
        self.part = part
        self.lock = lock
        self.guard = threading.Lock()
        self.waiting: deque[int] = deque(piece for piece in range(part.count) if piece not in part.done)
        self.flights: list[Flight] = []
        self.place = 0
        """Which of its addresses is tried."""
        self.lacking: set[str] = set()
        """Addresses that do not have it."""
        self.direct: str | None = None
        """Where the first redirect led."""
        self.no_ranges = False
        """The server cannot send parts of it."""
        self.refused: AimError | None = None
        """Why the last plain address did not give it."""
        self.in_xet = False
        """Its hub says that it keeps it in Xet storage."""
        self.nearby = Nearby([each for each in remote.addresses if each.endswith(f"/content/{remote.sha256}")])
        self.stream: Answer | None = None
        """It comes in one go, from here."""
        self.etag: str | None = None
        self.repaired = False
        self.finished = False
        self._restart_hash()

    def _restart_hash(self) -> None:
        self.proof = Proof(self.remote)
        self.front = 0
        """All pieces before this one are in the proof."""
        self.hashing = threading.Lock()

    @property
    def whole(self) -> bool:
        """Does it come in one go, over one connection?"""
        return self.no_ranges or xet.is_address(self.remote.addresses[self.place])

    @property
    def first_missing(self) -> int:
        """Where the first piece begins that is not here."""
        piece = next((piece for piece in range(self.part.count) if piece not in self.part.done), self.part.count)
        return piece * self.part.piece_bytes

    def lacks(self, url: str, *, redirected: bool) -> bool:
        """Note that an address does not give the file. Where it led to may be a signed address that expired; that says little,
        unless it was signed just now and the file may be had from Xet storage.
        """
        if url not in self.remote.addresses:
            return False
        if redirected and not any(xet.is_address(each) for each in set(self.remote.addresses) - self.lacking):
            return False
        self.lacking.add(url)
        return True

    def next_place(self) -> None:
        """Try another address, one that is not known to lack the file if there is any; Xet storage when the others lack it."""
        addresses = self.remote.addresses
        order = [(self.place + step) % len(addresses) for step in range(1, len(addresses) + 1)]
        order.sort(key=lambda place: (addresses[place] in self.lacking, xet.is_address(addresses[place])))
        self.place, self.direct = order[0], None

    def take(self) -> Flight | None:
        """The next piece that waits; None when none does, or the server sends the file in one go and somebody takes it."""
        with self.guard:
            if self.waiting and self.waiting[0] in self.part.done:  # they came over one connection
                self.waiting = deque(piece for piece in self.waiting if piece not in self.part.done)
            if not self.waiting or (self.whole and self.flights):
                return None
            piece = self._next_piece()
            flight = Flight(piece, *self.part.span(piece), self.proof.copy() if piece == self.front else None)
            self.flights.append(flight)
            return flight

    def ask_neighbours(self, client: Client) -> None:
        """Learn what neighbours have by now, once none is known to have it all."""
        if not self.whole and self.remote.addresses[self.place] not in self.nearby.addresses:
            self.nearby.refresh(client, time.monotonic())

    def _next_piece(self) -> int:
        """In order, so that the checksum follows; with neighbours that fetch it too, what they have, or what they may want."""
        if not self.nearby or self.whole or self.repaired:
            return self.waiting.popleft()
        number = self.nearby.choose([self.part.span(piece) for piece in self.waiting])
        piece = self.waiting[number]
        del self.waiting[number]
        return piece

    def slowest(self, now_s: float) -> tuple[float, Flight] | None:
        """The flight that will be done last, and in how many seconds; None when none is worth help."""
        found: list[tuple[float, Flight]] = []
        with self.guard:
            for flight in self.flights if not self.whole else ():
                rate = flight.rate_bytes_s(now_s)
                if rate is not None and flight.left_bytes >= _LEAST_HELP_BYTES:
                    found.append((flight.left_bytes / max(rate, 1.0), flight))
        late = max(found, key=lambda each: each[0], default=None)
        return late if late is not None and late[0] >= _LEAST_HELP_S else None

    def help(self, late: Flight, rate_bytes_s: float, now_s: float) -> Flight | None:
        """Take over a part of a flight, so that both are done at once if the helper is as fast as `rate_bytes_s`.

        None when there is nothing left to take.
        """
        with self.guard:
            if late not in self.flights or late.left_bytes < _LEAST_HELP_BYTES:
                return None
            own = late.rate_bytes_s(now_s) or 0.0
            if own == 0.0 and late.shared:  # it was taken over already and the next one waits as well
                return None
            kept = int(late.left_bytes * own / max(own + rate_bytes_s, 1.0))
            middle = late.offset + (kept if kept >= _LEAST_HELP_BYTES // 4 else 0)
            flight = Flight(late.piece, middle, late.end)
            late.end, late.shared, flight.shared = middle, True, True
            for other in self.flights:
                other.shared = other.shared or other.piece == late.piece
            self.flights.append(flight)
        if late.left_bytes == 0:
            late.cut()
        return flight

    def landed(self, flight: Flight) -> None:
        """Claim a flight's piece, unless others still carry parts of it. Raises: OSError."""
        with self.guard:
            if flight in self.flights:
                self.flights.remove(flight)
            if any(other.piece == flight.piece for other in self.flights) or flight.piece in self.part.done:
                return
            if flight.shared:
                self.part.claim(flight.piece, self.part.checksum(flight.piece))
                return
            if flight.proof is None or not self.hashing.acquire(blocking=False):
                self.part.claim(flight.piece, flight.crc)
                return
            try:
                self.part.claim(flight.piece, flight.crc)
                self.proof, self.front = flight.proof, flight.piece + 1
            finally:
                self.hashing.release()

    def put_back(self, flight: Flight) -> None:
        """Let another worker fetch a flight's piece."""
        with self.guard:
            if flight in self.flights:
                self.flights.remove(flight)
            if flight.piece not in self.part.done and flight.piece not in self.waiting:
                self.waiting.append(flight.piece)

    def forward(self, flight: Flight, content: bytes) -> tuple[bytes | memoryview, int]:
        """Count bytes that came, without those that another flight brings; what to write, and where."""
        with self.guard:
            wanted = content if len(content) <= flight.left_bytes else memoryview(content)[: flight.left_bytes]
            at = flight.offset
            flight.offset += len(wanted)
        if not flight.shared:
            flight.crc = zlib.crc32(wanted, flight.crc)
            if flight.proof is not None:
                flight.proof.update(wanted)
        return wanted, at

    @property
    def flying_bytes(self) -> int:
        """What unfinished pieces have so far."""
        return sum(flight.offset - flight.start for flight in tuple(self.flights))

    def follow(self, *, wait: bool = False) -> None:
        """Take finished pieces at the front into the checksum, unless another worker is at it; with `wait`, after that one."""
        while self.hashing.acquire(blocking=wait):
            try:
                buffer = memoryview(bytearray(min(_HASH_BYTES, self.part.size_bytes)))
                while self.front in self.part.done:
                    start, end = self.part.span(self.front)
                    while start < end:
                        count = self.part.read_into(buffer[: end - start], start)
                        if count == 0:
                            raise OSError(5, "the part file lost bytes")
                        self.proof.update(buffer[:count])
                        start += count
                    self.front += 1
            finally:
                self.hashing.release()
            if self.front not in self.part.done:  # a piece may have arrived while this worker let go
                return

    def is_right(self) -> bool:
        """Has the content the checksum it must have? Without any, it is what the source sent."""
        if self.remote.sha256 is not None:
            return self.proof.sha256.hexdigest() == self.remote.sha256
        return self.proof.git is None or self.proof.git.hexdigest() == self.remote.git_oid

    def start_over(self) -> None:
        """Fetch every piece once more."""
        self.part.disclaim()
        self.waiting = deque(range(self.part.count))
        self._restart_hash()
