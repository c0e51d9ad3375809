"""Prices: dated offers, the firm ones first, never a made-up one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aim_engine.errors import AimError, InvalidInput, MissingFigure
from aim_engine.hardware import catalog, prices


def test_every_bundled_offer_is_for_a_known_card_and_dated() -> None:
    for offer in prices.load().offers:
        assert catalog.load(offer.gpu).name == offer.gpu
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", offer.date)
        assert offer.source


def test_the_cheapest_firm_offer_counts_not_spot_or_hearsay() -> None:
    listed = prices.load()
    firm = [o.usd_h for o in listed.offers if o.gpu == "MI300X" and o.terms == "on-demand"]
    assert listed.price("MI300X").usd_h == min(firm)
    assert listed.price("MI300X").usd_h > min(o.usd_h for o in listed.offers)


def test_a_card_without_an_offer_has_no_price() -> None:
    with pytest.raises(MissingFigure, match="price of W7900"):
        prices.load().price("W7900")


def test_a_users_list_replaces_the_bundled_one(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "currency: USD\noffers:\n"
        "- {gpu: W7900, usd_h: 0.35, terms: owned, provider: us, date: 2026-11-01, source: our own books}\n"
    )
    assert prices.load(path=mine).price("W7900").usd_h == 0.35
    (tmp_path / "prices").mkdir()
    mine.rename(tmp_path / "prices/cloud.yaml")
    assert prices.load(overlay=tmp_path).cheapest("MI300X") is None


@pytest.mark.parametrize("text", ["currency: EUR\noffers: []", "offers: 3", "currency: USD\noffers: [{gpu: X}]", "- ["])
def test_a_bad_price_file_says_what_is_wrong(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(AimError, match=re.escape(str(path))) as caught:
        prices.load(path=path)
    assert caught.value.exit_code in (2, 3)
    with pytest.raises(InvalidInput, match="cannot be read"):
        prices.load(path=tmp_path / "absent.yaml")
