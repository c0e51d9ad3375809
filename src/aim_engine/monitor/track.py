"""From one look at an endpoint to the next: what happened in between, and what was odd about it.

A tracker can be put down and taken up again by another process, so that no event between two looks is lost or counted twice.
Counters that fall mean a restart when the engine says that it started anew, or says nothing about its start; otherwise the page is
not believed until it has said the same three times.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from aim_engine.monitor.span import Gauge, Histogram, Span
from aim_engine.monitor.totals import Buckets, Totals

EventKind = Literal[
    "restart", "unreachable", "recovered", "cut page", "other page", "renamed", "clock", "fell", "lines"
]
_DOUBTS = 3
"""Times that a page must repeat a count that fell before it is believed."""
_CLOCK_JUMP_S = 2.0
LEVEL_HOLDS_S = 300.0
"""A look stands for no longer than this: what lies further away from it is not known."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something worth telling about an endpoint."""

    time_s: float
    kind: EventKind
    text: str


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tracker stands: what the next look is held against."""

    time_s: float
    start_s: float | None
    counters: dict[str, float]
    histograms: dict[str, Buckets]
    families: dict[str, str] = {}
    """Metric that each was read from."""

    def same(self, name: str, now: Totals) -> bool:
        """Is a measure still read from the same metric? A page that is cut off may offer only an older name."""
        known = self.families.get(name)
        return known is None or known == now.families.get(name)


class Tracker:
    """Follows one endpoint or card."""

    def __init__(self, cursor: Cursor | None = None) -> None:
        self.cursor = cursor
        self._ticked: float | None = None
        self._doubts = 0
        self._unreachable = ""
        self._ended = False
        self._levels: dict[str, float] = {}

    def taken_up(self, cursor: Cursor | None) -> None:
        """Go on from where another monitor of the same endpoint stands."""
        self.cursor, self._ticked, self._levels = cursor, None, {}

    def damaged(self, ended: bool, *, time_s: float) -> Event | None:
        """An event when a page that usually ends with a line feed does not."""
        self._ended = self._ended or ended
        if self._ended and not ended:
            return Event(time_s=time_s, kind="cut page", text="the page ends in the middle of a line; it is left out")
        return None

    def missed(self, why: str, *, time_s: float) -> tuple[Span, tuple[Event, ...]]:
        """A look that failed. The next one that does not covers its time too."""
        events = () if why == self._unreachable else (Event(time_s=time_s, kind="unreachable", text=why),)
        self._unreachable = why
        return Span(0.0, failed=1), events

    def seen(self, now: Totals, *, tick_s: float) -> tuple[Span, tuple[Event, ...]]:
        """A look: what happened since the last one. The first only says how things stand.

        `tick_s` is a clock that never jumps; it measures the time in between where both looks were by this tracker.
        """
        events: list[Event] = []
        wall = now.time_s if now.time_s is not None else 0.0
        before = self.cursor
        if self._unreachable:
            events.append(Event(time_s=wall, kind="recovered", text="it answers again"))
            self._unreachable = ""
        gauges = {name: Gauge(v, v, v, v, 1) for name, v in now.gauges.items()}
        levels, self._levels = self._levels, now.gauges
        if before is None:
            self._keep(now, wall, tick_s)
            return Span(0.0, gauges=gauges, scrapes=1), tuple(events)
        seconds = wall - before.time_s
        if self._ticked is not None:
            ticked = tick_s - self._ticked
            if abs(seconds - ticked) > _CLOCK_JUMP_S:
                how = "forward" if seconds > ticked else "back"
                events.append(
                    Event(time_s=wall, kind="clock", text=f"the clock went {how} by {abs(seconds - ticked):.0f} s")
                )
            seconds = ticked
        again = _restarted(before, now)
        if again is None:
            self._doubts += 1
            if self._doubts == 1:
                events.append(
                    Event(time_s=wall, kind="fell", text="a count fell although the engine did not start anew")
                )
            if self._doubts < _DOUBTS:
                return Span(0.0, gauges=gauges, scrapes=1), tuple(events)
            self._keep(now, wall, tick_s)
            return Span(0.0, gauges=gauges, scrapes=1), tuple(events)
        if again:
            events.append(Event(time_s=wall, kind="restart", text="the engine started anew"))
            levels = {}
        seconds = max(0.0, seconds)
        span = Span(
            seconds,
            increases(None if again else before, now),
            {name: _held(value, levels.get(name, value), seconds) for name, value in now.gauges.items()},
            # The first requests after a start pay for compilation: their times are left out, their tokens are not.
            {} if again else grown(before, now),
            scrapes=1,
            restarts=int(again),
        )
        self._keep(now, wall, tick_s)
        return span, tuple(events)

    def _keep(self, now: Totals, wall: float, tick_s: float) -> None:
        old = self.cursor
        same = old is not None and not _restarted(old, now)
        self.cursor = Cursor(
            time_s=wall,
            start_s=now.start_s,
            counters={**old.counters, **now.counters} if old is not None and same else now.counters,
            histograms={**old.histograms, **now.histograms} if old is not None and same else now.histograms,
            families={**old.families, **now.families} if old is not None and same else now.families,
        )
        self._ticked, self._doubts = tick_s, 0


def between(before: Totals | None, now: Totals) -> tuple[Span, bool]:
    """What happened between two pages, and whether the engine restarted: then, and without `before`, since its start."""
    cursor = None
    if before is not None:
        cursor = Cursor(
            time_s=before.time_s or 0.0,
            start_s=before.start_s,
            counters=before.counters,
            histograms=before.histograms,
            families=before.families,
        )
    again = cursor is not None and _restarted(cursor, now) is not False
    since = None if again else cursor
    started = before.time_s if before is not None and not again else now.start_s
    seconds = 0.0 if now.time_s is None or started is None else max(0.0, now.time_s - started)
    return Span(
        seconds,
        increases(since, now),
        {name: Gauge(v, v, v, v, 1) for name, v in now.gauges.items()},
        grown(since, now),
        scrapes=1,
        restarts=int(again),
    ), again


def _held(value: float, earlier: float, seconds: float) -> Gauge:
    """A level at a look, for the time since the one before: a straight line from there."""
    held_s = min(seconds, LEVEL_HOLDS_S)
    return Gauge(value, value, value, value, 1, (earlier + value) / 2 * held_s, held_s)


def increases(before: Cursor | None, now: Totals) -> dict[str, float]:
    """By how much each counter grew; one that appears was at zero before."""
    if before is None:
        return dict(now.counters)
    return {
        name: max(0.0, value - before.counters.get(name, 0.0))
        for name, value in now.counters.items()
        if before.same(name, now)
    }


def grown(before: Cursor | None, now: Totals) -> dict[str, Histogram]:
    """What each histogram observed. One whose buckets changed is new."""
    found = {}
    for name, buckets in now.histograms.items():
        if before is not None and not before.same(name, now):
            continue
        was = None if before is None else before.histograms.get(name)
        if was is None or was.edges != buckets.edges:
            found[name] = Histogram(buckets.edges, buckets.counts, buckets.total)
        else:
            counts = tuple(max(0.0, a - b) for a, b in zip(buckets.counts, was.counts, strict=True))
            found[name] = Histogram(buckets.edges, counts, max(0.0, buckets.total - was.total))
    return found


def _restarted(before: Cursor, now: Totals) -> bool | None:
    """Did the process start anew? None when a count fell and nothing explains it."""
    if before.start_s is not None and now.start_s is not None and now.start_s > before.start_s + 0.5:
        return True
    fell = any(
        value < before.counters.get(name, 0.0) for name, value in now.counters.items() if before.same(name, now)
    ) or any(
        math.fsum(buckets.counts) < math.fsum(before.histograms[name].counts) - 0.5
        for name, buckets in now.histograms.items()
        if name in before.histograms and before.same(name, now)
    )
    if not fell:
        return False
    return None if before.start_s is not None and now.start_s is not None else True
