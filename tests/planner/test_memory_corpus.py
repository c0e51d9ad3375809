"""Predicted cache sizes against what engines logged, over every table of them that is there."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.planner import table

pytestmark = pytest.mark.corpus
CORPUS = Path(os.environ.get("AIM_ENGINE_CORPUS", "/nonexistent"))
TABLES = sorted(CORPUS.glob("measured/memory*.csv"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_logged_cache_sizes_are_met(path: Path) -> None:
    content = path.read_text()
    answers = workflow.answer_table(content, str(path), None, all_settings.load({"offline": True}))
    errors = [
        answer["kv_cache_tokens"] / float(row["kv_cache_tokens"]) - 1
        for row, answer in zip(table.parse(content, str(path)), answers, strict=True)
        if row["kv_cache_tokens"] and "kv_cache_tokens" in answer
    ]
    assert len(errors) >= 0.9 * len(answers)
    assert statistics.median(map(abs, errors)) <= 0.02
    assert max(map(abs, errors)) <= 0.10


@pytest.mark.parametrize("path", sorted(CORPUS.glob("measured/*.csv")), ids=lambda path: path.stem)
def test_every_row_gets_an_answer_or_a_reason_in_order(path: Path) -> None:
    content = path.read_text()
    rows = table.parse(content, str(path))
    answers = workflow.answer_table(content, str(path), None, all_settings.load({"offline": True}))
    assert [answer["row_id"] for answer in answers] == [row.get("row_id") or str(n) for n, row in enumerate(rows, 1)]
    assert all("reason" in answer or "fits" in answer for answer in answers)
    assert sum("fits" in answer for answer in answers) > 0.9 * len(answers)
