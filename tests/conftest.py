"""Options and fixtures that all tests share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

GOLDEN = Path(__file__).parent / "golden"

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Rewrite tests/golden from what is produced now.")
    parser.addoption(
        "--no-skips", action="store_true", help="Fail when a test was skipped: everything it needs must be there."
    )


def pytest_configure() -> None:
    """A run in the background ignores Ctrl-C, and so would every program the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With --no-skips, a skipped test is a gap and a run without tests proves nothing."""
    if not session.config.getoption("--no-skips"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter is not None else 0
    if skipped and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, dict[str, str]], None]:
    """Compares produced files with those in a folder below tests/golden; `--update-golden` writes them instead."""
    update = request.config.getoption("--update-golden")

    def check(folder: str, produced: dict[str, str]) -> None:
        root = GOLDEN / folder
        if update:
            root.mkdir(parents=True, exist_ok=True)
            for stale in [path for path in root.rglob("*") if path.is_file()]:
                if stale.relative_to(root).as_posix() not in produced:
                    stale.unlink()
            for name, content in produced.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(content, encoding="utf-8")
            return
        expected = {
            path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
            for path in root.rglob("*")
            if path.is_file()
        }
        assert produced == expected, f"tests/golden/{folder} differs; review, then pytest --update-golden"

    return check
