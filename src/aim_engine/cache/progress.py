"""How far a download is, and what it cost."""

from __future__ import annotations

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a download is."""

    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    """Over the last seconds."""

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this rate; None while there is none."""
        return (self.total_bytes - self.done_bytes) / self.rate_bytes_s if self.rate_bytes_s > 0 else None


class Tally(msgspec.Struct, kw_only=True):
    """What a download cost."""

    received_bytes: int = 0
    resumed_bytes: int = 0
    repaired_files: int = 0
    helped_pieces: int = 0
    """How often a worker took over a part of another one's piece."""
    seconds: float = 0.0
