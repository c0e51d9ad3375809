"""What is odd about a page that was read: another program's, lines that could not be read, figures that are no longer on it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aim_engine.monitor.totals import Totals
from aim_engine.monitor.track import Event

_NAME = re.compile(r"^[a-zA-Z_:][\w:]*", re.MULTILINE)
_SHOWN = 3


class Oddities:
    """What was odd at the last look, so that it is told once."""

    def __init__(self) -> None:
        self._families: dict[str, str] = {}
        self._told: set[str] = set()

    def seen(self, page: str, found: Totals, *, time_s: float, engine: bool = True) -> tuple[Event, ...]:
        """What is odd now and was not at the look before. `engine` where the page should be that of a serving engine."""
        odd: dict[str, Event] = {}
        if engine and found.engine is None:
            odd["other page"] = Event(time_s=time_s, kind="other page", text=no_engine(page))
        if found.skipped:
            text = f"{found.skipped} lines of the page cannot be read"
            odd["lines"] = Event(time_s=time_s, kind="lines", text=text)
        for text in _changed(self._families, found.families):
            odd[text] = Event(time_s=time_s, kind="renamed", text=text)
        news = tuple(event for name, event in odd.items() if name not in self._told)
        self._told = set(odd)
        self._families = {**self._families, **found.families}
        return news


def no_engine(page: str) -> str:
    """A page without any metric of an engine, in words."""
    names = list(dict.fromkeys(name for name in _NAME.findall(page)))[:_SHOWN]
    other = f", only such as {', '.join(names)}" if names else ""
    return (
        f"the page has no metric of vLLM, SGLang or ATOM{other}: it is another program's, or the engine does not tell its statistics "
        "(vLLM: without --disable-log-stats; SGLang: with --enable-metrics)"
    )


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    gone = sorted({family for name, family in before.items() if name not in now})
    found = [
        f"no longer on the page: {', '.join(gone[:_SHOWN])}{f' and {len(gone) - _SHOWN} more' if len(gone) > _SHOWN else ''}"
    ]
    renamed = sorted({(before[name], family) for name, family in now.items() if before.get(name, family) != family})
    return (found if gone else []) + [f"{new} is read instead of {old}" for old, new in renamed[:_SHOWN]]
