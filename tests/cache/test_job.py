"""A file under way: its checksum is right in whatever order, and by whomever, its pieces come."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aim_engine.cache import pieces
from aim_engine.cache.job import Flight, Job, Remote
from aim_engine.cache.layout import Store

PIECE = 1024
CONTENT = random.Random(7).randbytes(300 * PIECE + 5)
REMOTE = Remote(
    path="w",
    size_bytes=len(CONTENT),
    addresses=("http://x/w",),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    git_oid=hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT, usedforsecurity=False).hexdigest(),
)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    store = Store(tmp_path / "cache")
    store.ensure()
    part = pieces.open_part(store, REMOTE.key, REMOTE.size_bytes, PIECE)
    yield Job(REMOTE, part, None)
    part.close()


def bring(job: Job, flight: Flight, content: bytes) -> None:
    wanted, at = job.forward(flight, content)
    job.part.write(wanted, at)


def carry(job: Job, flight: Flight) -> None:
    bring(job, flight, CONTENT[flight.offset : flight.end])
    job.landed(flight)


def test_pieces_that_come_in_order_are_proved_without_being_read_back(job: Job) -> None:
    while (flight := job.take()) is not None:
        carry(job, flight)
    assert job.front == job.part.count
    assert job.is_right()


def test_a_piece_that_came_wrong_and_was_put_back_leaves_nothing_in_the_checksum(job: Job) -> None:
    first = job.take()
    assert first is not None
    bring(job, first, b"wrong bytes")
    job.put_back(first)
    while (flight := job.take()) is not None:
        carry(job, flight)
    job.follow()
    assert job.is_right()


def test_a_piece_that_two_brought_is_read_back(job: Job) -> None:
    slow = job.take()
    assert slow is not None
    slow.end = PIECE  # as `help` leaves it, which wants a larger rest
    bring(job, slow, CONTENT[:100])
    helper = Flight(0, 512, PIECE)
    slow.end, slow.shared, helper.shared = 512, True, True
    job.flights.append(helper)
    carry(job, slow)
    assert 0 not in job.part.done
    carry(job, helper)
    assert (0 in job.part.done, job.front) == (True, 0)
    while (flight := job.take()) is not None:
        carry(job, flight)
    job.follow()
    assert job.is_right()


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_that_land_in_any_order_prove_the_same_file(job: Job, workers: int) -> None:
    def labour() -> None:
        while (flight := job.take()) is not None:
            carry(job, flight)
            job.follow()

    threads = [threading.Thread(target=labour) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job.follow(wait=True)
    assert job.front == job.part.count
    assert job.is_right()


def test_a_changed_byte_is_found_wherever_it_is(job: Job) -> None:
    while (flight := job.take()) is not None:
        content = bytearray(CONTENT[flight.offset : flight.end])
        content[0] ^= flight.piece == 150
        bring(job, flight, bytes(content))
        job.landed(flight)
    job.follow()
    assert not job.is_right()
