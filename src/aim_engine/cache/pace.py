"""How fast a store may be filled: one bucket of bytes for every process of this node that fetches into it.

The bucket is a file beside the index that holds the moment until which the line is taken; whoever wants bytes moves that moment and
waits for it. What is fetched ahead of need waits as well while anybody fetches what is needed now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
from pathlib import Path

_MOMENT = struct.Struct("<d")
_BURST_S = 0.1
"""What may come at once after a pause, in seconds of the allowed rate."""
_RECENT_S = 2.0
"""For so long after its last sign a download counts as going on."""
_LEAST_READ_BYTES = 4096


class Pace:
    """A limit of bytes per second that all processes of a node share. Threads share it too."""

    def __init__(
        self, place: Path | None = None, rate_bytes_s: float | None = None, *, background: bool = False
    ) -> None:
        """`place` is the bucket's file, on this node's own disk. `background` gives way to all who are not."""
        self._place = place
        self._rate = rate_bytes_s
        self._background = background
        self._guard = threading.Lock()
        self._bucket = -1
        self._shown_s = 0.0
        self.waited_s = 0.0
        """What all threads waited together."""

    @property
    def limited(self) -> bool:
        """Is there a limit?"""
        return self._rate is not None

    def most_bytes(self, wanted: int) -> int:
        """How much to read at once, so that a slow pace stays even."""
        if self._rate is None:
            return wanted
        return max(_LEAST_READ_BYTES, min(wanted, int(self._rate * _BURST_S / 2)))

    def take(self, count: int) -> float:
        """Wait until so many bytes may pass and say how long that took. Raises: OSError."""
        began = time.monotonic()
        while self._background and self._others_fetch():
            time.sleep(_RECENT_S / 8)
        if self._rate is not None and self._place is not None:
            due = self._due(self._place, count / self._rate)
            remaining = due - time.monotonic()
            if remaining > 0:
                time.sleep(remaining)
        waited = time.monotonic() - began
        self.waited_s += waited
        return waited

    def active(self) -> None:
        """Show that a download which somebody waits for is going on."""
        now = time.monotonic()
        if self._background or self._place is None or now - self._shown_s < _RECENT_S / 4:
            return
        self._shown_s = now
        with contextlib.suppress(OSError):  # an unwritable state folder must not stop a download
            sign = self._sign(self._place)
            sign.parent.mkdir(parents=True, exist_ok=True)
            sign.touch()

    def _others_fetch(self) -> bool:
        if self._place is None:
            return False
        try:
            return time.time() - self._sign(self._place).stat().st_mtime < _RECENT_S
        except OSError:
            return False

    @staticmethod
    def _sign(place: Path) -> Path:
        return place.with_suffix(".active")

    def _due(self, place: Path, takes_s: float) -> float:
        """Join the line: the moment, by this node's monotonic clock, at which the bytes may pass."""
        with self._guard:
            if self._bucket < 0:
                place.parent.mkdir(parents=True, exist_ok=True)
                self._bucket = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.lockf(self._bucket, fcntl.LOCK_EX)
            try:
                now = time.monotonic()
                content = os.pread(self._bucket, _MOMENT.size, 0)
                line = _MOMENT.unpack(content)[0] if len(content) == _MOMENT.size else 0.0
                if line > now + 3600:  # of an earlier boot
                    line = 0.0
                line = max(line, now - _BURST_S) + takes_s
                os.pwrite(self._bucket, _MOMENT.pack(line), 0)
            finally:
                fcntl.lockf(self._bucket, fcntl.LOCK_UN)
        return line


UNPACED = Pace()
"""No limit."""
