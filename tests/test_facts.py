"""Catalogue files: overlay first, C parser, dates as text, wrong keys by path."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from aim_engine import facts
from aim_engine.errors import Corrupt, InvalidInput


class Thing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    checked: str


def test_dates_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "thing.yaml"
    path.write_text("name: a\nchecked: 2026-11-23\n")
    assert facts.read(path, Thing) == Thing(name="a", checked="2026-11-23")


def test_the_overlay_wins_and_the_bundled_file_is_the_fallback(tmp_path: Path) -> None:
    relative = "calibration/sets.yaml"
    assert facts.find(relative, tmp_path) == facts.BUNDLED / relative
    (tmp_path / "calibration").mkdir()
    (tmp_path / relative).write_text("[]")
    assert facts.find(relative, tmp_path) == tmp_path / relative


def test_an_unknown_key_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "thing.yaml"
    path.write_text("name: a\nchecked: today\ncolour: red\n")
    with pytest.raises(InvalidInput, match="colour"):
        facts.read(path, Thing)


@pytest.mark.parametrize("content", [b"a: [b", b"\x00\x01", b"a: !!python/object:os.system x", b"\xff\xfe\xff"])
def test_what_is_not_plain_yaml_is_refused(content: bytes) -> None:
    with pytest.raises(Corrupt):
        facts.parse_yaml(content, "it")
