"""The page of promises names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_is_held_by_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "reference" / "cache.md").read_text()
    rows = [
        line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| fault"))
    ]
    assert len(rows) == 24 + 20
    there = {
        name
        for path in (ROOT / "tests" / "cache").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    for row in rows:
        held_by = re.findall(r"`(test_\w+|bench/\w+\.py)`", row)
        assert held_by, row
        assert [name for name in held_by if name not in there and not (ROOT / name).is_file()] == []
