"""Units at the border: what people type and what they read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine import units
from aim_engine.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "expected"),
    [("16GiB", 16 * units.GIB), ("16g", 16 * units.GIB), ("1.5 GB", 1_500_000_000), ("1024", 1024), (".5k", 512)],
)
def test_sizes_are_read_with_their_unit(text: str, expected: int) -> None:
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize(("text", "ms"), [("500ms", 500.0), ("0.05s", 50.0), ("2min", 120_000.0), ("1 h", 3_600_000.0)])
def test_durations_are_read_in_milliseconds(text: str, ms: float) -> None:
    assert units.parse_ms(text) == pytest.approx(ms)


def test_a_duration_without_unit_is_refused_with_two_ways_out() -> None:
    with pytest.raises(InvalidInput) as raised:
        units.parse_ms("500")
    assert raised.value.hint == "write for example 500ms or 500s"


@pytest.mark.parametrize(("text", "count"), [("4096", 4096), ("4k", 4000), ("1.5M", 1_500_000)])
def test_counts_take_thousands_and_millions(text: str, count: int) -> None:
    assert units.parse_count(text) == count


@pytest.mark.parametrize("text", ["", "abc", "-5", "1e5x", "12 parsecs", "٣", "NaN", "inf"])
def test_nonsense_is_refused(text: str) -> None:
    for parse in (units.parse_bytes, units.parse_ms, units.parse_count):
        with pytest.raises(InvalidInput):
            parse(text)


@given(st.text(max_size=20))
def test_no_text_raises_anything_else(text: str) -> None:
    for parse in (units.parse_bytes, units.parse_ms, units.parse_count):
        try:
            parse(text)
        except InvalidInput as err:
            assert err.what  # noqa: PT017 - the refusal itself is what is looked at


@given(st.integers(0, 2**50))
def test_printed_sizes_read_back_within_their_rounding(count: int) -> None:
    assert units.parse_bytes(units.format_bytes(count).replace(" ", "")) == pytest.approx(count, rel=0.05, abs=1)


def test_printed_figures_are_readable() -> None:
    assert units.format_bytes(206_158_430_208) == "192.0 GiB"
    assert units.format_count(32_762_123_264) == "32.8 B"
    assert [units.format_ms(ms) for ms in (12.34, 250, 1250, 180_000)] == ["12.3 ms", "250 ms", "1.25 s", "3.0 min"]
