"""What an hour of a device costs: offers with their date, the user's own before the bundled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from aim_engine import facts
from aim_engine.errors import InvalidInput, MissingFigure

FILE = "prices/cloud.yaml"
Terms = Literal["on-demand", "reserved", "spot", "owned", "approximate"]
_FIRM: tuple[Terms, ...] = ("on-demand", "reserved", "owned")
"""Terms one can plan on: a spot device may be taken away, an approximate price is nobody's offer."""


class Offer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device for one hour, as published."""

    gpu: str
    """Name in the GPU catalogue."""
    usd_h: float
    """US dollars for one device and hour; for hardware of one's own its hourly cost, power included."""
    terms: Terms
    provider: str
    date: str
    """ISO date of the price."""
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.usd_h < 1e6:
            raise InvalidInput(f"{self.usd_h} USD an hour is not a price for {self.gpu}")

    def describe(self) -> str:
        """`1.99 USD per GPU-hour (DigitalOcean, on-demand, 2026-05-29)`."""
        return f"{self.usd_h:g} USD per GPU-hour ({self.provider}, {self.terms}, {self.date})"


class PriceList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All offers we know of."""

    currency: Literal["USD"]
    offers: tuple[Offer, ...]

    def cheapest(self, gpu: str) -> Offer | None:
        """The lowest firm offer for a card; None without one."""
        firm = [offer for offer in self.offers if offer.gpu == gpu and offer.terms in _FIRM]
        return min(firm, key=lambda offer: (offer.usd_h, offer.provider, offer.date), default=None)

    def price(self, gpu: str) -> Offer:
        """The lowest firm offer for a card. Raises: MissingFigure."""
        offer = self.cheapest(gpu)
        if offer is None:
            raise MissingFigure(
                f"price of {gpu}", file=f"{FILE} of your catalogue folder, or a file given with --prices"
            )
        return offer


def load(overlay: Path | None = None, path: Path | None = None) -> PriceList:
    """The offers of `path`, else of the overlay, else the bundled ones. Raises: InvalidInput, Corrupt."""
    if path is None:
        return facts.load(FILE, PriceList, overlay)
    try:
        return facts.read(path, PriceList)
    except OSError as err:
        raise InvalidInput(f"the price file {path} cannot be read", why=err.strerror) from err
