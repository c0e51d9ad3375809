"""Reading logs that grow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.deploy import logfile

LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=30), max_size=40)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "engine.log"


@given(LINES, st.integers(0, 50), st.sampled_from([1, 7, 65536]))
def test_the_tail_is_the_end_of_the_file(path: Path, lines: list[str], count: int, block: int) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logfile, "_BLOCK_BYTES", block)
        assert logfile.tail(path, count) == (lines[-count:] if count else [])


@given(LINES, st.integers(1, 9))
def test_every_line_comes_once_however_it_is_written(path: Path, lines: list[str], step: int) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(b"")
    growing, seen = logfile.Growing(path), []
    for start in range(0, len(content), step):
        with path.open("ab") as handle:
            handle.write(content[start : start + step])
        seen += growing.new_lines()
    assert seen == lines


def test_a_progress_bar_shows_its_last_state(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"shards:   0%\rshards:  50%\rshards: 100%\nnext\r\n")
    assert logfile.tail(tmp_path / "log", 9) == ["shards: 100%", "next"]


def test_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert logfile.tail(tmp_path / "none", 5) == []
    assert logfile.Growing(tmp_path / "none").new_lines() == []
    assert list(logfile.follow(tmp_path / "none", 5, lambda: False)) == []
