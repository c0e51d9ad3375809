"""Neighbours that fetch the same file themselves at this moment, and which parts of it they have so far.

Nodes that begin together would each fetch everything from afar. So a piece that a neighbour has comes from there, and the others are taken in
random order, which gives each node other pieces to pass on. Nothing is believed: the file's checksum decides, and a file that it
refuses comes from elsewhere as a whole.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from aim_engine.cache.transport import TryAgain

if TYPE_CHECKING:
    from aim_engine.cache.transport import Client

ASK = "/pieces"
"""After the address of content: which parts of it are there."""
_EVERY_S = 1.0
_LATER_S = 5.0
"""A neighbour that does not fetch it may begin to."""
_MOST_BYTES = 1 << 20
_MOST_RANGES = 10_000


class Nearby:
    """What the neighbours of one node have of one file. Threads share it."""

    def __init__(self, addresses: Collection[str]) -> None:
        """`addresses` are where neighbours would have the file."""
        self.addresses = frozenset(addresses)
        self._guard = threading.Lock()
        self._asked_at_s = dict.fromkeys(addresses, 0.0)
        self._held: dict[str, tuple[tuple[int, int], ...]] = {}
        self._asking = threading.Lock()

    def __bool__(self) -> bool:
        """Does any neighbour fetch it, or have it?"""
        return bool(self._held)

    def drop(self, address: str) -> None:
        """Ask this neighbour no more."""
        with self._guard:
            self._held.pop(address, None)
            self._asked_at_s.pop(address, None)

    def having(self, start: int, end: int) -> str | None:
        """A neighbour that has these bytes; None when none has."""
        with self._guard:
            found = [each for each, held in self._held.items() if any(a <= start and end <= b for a, b in held)]
        return random.choice(found) if found else None  # noqa: S311 - no secret

    def choose(self, spans: Sequence[tuple[int, int]]) -> int:
        """Which of these to take next: one that a neighbour has, or else any. There must be one."""
        with self._guard:
            held = [each for ranges in self._held.values() for each in ranges]
        near = [number for number, (start, end) in enumerate(spans) if any(a <= start and end <= b for a, b in held)]
        return random.choice(near or range(len(spans)))  # noqa: S311 - no secret

    def refresh(self, client: Client, now_s: float) -> None:
        """Ask the neighbours what they have, by one thread at a time; one that cannot be asked is dropped."""
        if not self._asked_at_s or not self._asking.acquire(blocking=False):
            return
        try:
            for address, asked_s in tuple(self._asked_at_s.items()):
                if asked_s and now_s - asked_s < (_EVERY_S if address in self._held else _LATER_S):
                    continue
                held = self._ask(client, address)
                with self._guard:
                    if address in self._asked_at_s:
                        self._asked_at_s[address] = now_s
                        if held is None:
                            self._held.pop(address, None)
                        else:
                            self._held[address] = held
        finally:
            self._asking.release()

    def _ask(self, client: Client, address: str) -> tuple[tuple[int, int], ...] | None:
        try:
            with client.open(address + ASK) as answer:
                if answer.status != 200:
                    return None
                told = json.loads(answer.response.read(_MOST_BYTES))["held"][:_MOST_RANGES]
            return tuple((int(start), int(end)) for start, end in told)
        except (TryAgain, ValueError, TypeError, KeyError, RecursionError):
            self.drop(address)
            return None
