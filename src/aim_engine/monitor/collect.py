"""Looks at many endpoints in turn, and hands what it saw to the history.

Endpoints are spread over the interval. One that failed is looked at from a lane of its own, so that those which hang do not keep the
others waiting, and less often while it stays away.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from aim_engine.deploy.pods import Pods
from aim_engine.errors import AimError, MissingExtra, Unreachable
from aim_engine.kpi import measures
from aim_engine.monitor import exporters, scrape, totals
from aim_engine.monitor.fetch import Fetcher
from aim_engine.monitor.history import About, History, Look, Target
from aim_engine.monitor.oddities import Oddities
from aim_engine.monitor.totals import Totals
from aim_engine.monitor.track import Tracker

logger = logging.getLogger(__name__)
WANTED = measures.wanted()
_OF_CARDS = WANTED | exporters.NAMES
_LONGEST_WAIT_S = 60.0
"""Between two looks at an endpoint that stays away."""
_PATIENCE = 3
"""Looks in a row that may fail before an endpoint is looked at less often: a busy engine misses one now and then."""
_WRITE_S = 1.0
_CLEAN_S = 60.0


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """One page to look at."""

    target: Target
    url: str
    """Address of the page."""
    exporter: bool = False
    """Is it the page of a device exporter, with one target for each card?"""
    pods: str = ""
    """Regular expression; only cards that a pod of such a name holds."""
    namespace: str = ""
    """Where the target's name is that of a Deployment in a cluster: each of its pods has a page of its own, and the API server leads
    there."""


class _Page:
    """A page and the trackers of what it tells."""

    def __init__(self, watched: Watched, history: History | None) -> None:
        self.watched = watched
        self._history = history
        self._trackers: dict[Target, Tracker] = {}
        self._about: dict[Target, About] = {}
        self._odd: dict[Target, Oddities] = {}
        self._cluster: Pods | None = None
        self.misses = 0
        self.busy = False
        """Is somebody looking at it just now?"""
        self.dropped = False
        """Is it no longer to be looked at?"""

    def tracker(self, target: Target) -> Tracker:
        if target not in self._trackers:
            self._trackers[target] = Tracker(self._history.cursor(target) if self._history is not None else None)
        return self._trackers[target]

    def missed(self, why: str, interval_s: float) -> list[Look]:
        now = time.time()
        span, events = self.tracker(self.watched.target).missed(why, time_s=now)
        # One look at an endpoint that stays away stands for those that were left out.
        span = msgspec.structs.replace(span, failed=round(self.wait_s(interval_s) / interval_s))
        self.misses += 1
        return [Look(target=self.watched.target, time_s=now, span=span, cursor=None, events=events)]

    def wait_s(self, interval_s: float) -> float:
        """Until the next look: longer for one that stays away."""
        return interval_s * min(2.0 ** max(0, self.misses - _PATIENCE), max(1.0, _LONGEST_WAIT_S / interval_s))

    def seen(self, target: Target, found: Totals, tick_s: float, page: str | None = None) -> Look:
        tracker = self.tracker(target)
        since_s = tracker.cursor.time_s if tracker.cursor is not None else None
        span, events = tracker.seen(found, tick_s=tick_s)
        span = msgspec.structs.replace(span, side=found.side) if found.side else span
        if page is not None:
            if any(event.kind == "restart" for event in events):
                self._odd.pop(target, None)  # SGLang tells some figures only after the first request
            odd = self._odd.setdefault(target, Oddities())
            events += odd.seen(page, found, time_s=found.time_s or 0.0, engine=target.kind == "engine")
        about = About(engine=found.engine, models=found.models, families=found.families, facts=found.facts)
        changed = self._about.get(target) != about
        self._about[target] = about
        return Look(
            target=target,
            time_s=found.time_s or 0.0,
            span=span,
            cursor=tracker.cursor,
            since_s=since_s,
            about=about if changed else None,
            events=events,
        )

    def pods(self, timeout_s: float) -> list[Look]:
        """A look at each pod of a Deployment. Raises: Unreachable, MissingExtra."""
        mine = self.watched.target
        if self._cluster is None:
            self._cluster = Pods(self.watched.namespace, mine.name, timeout_s=timeout_s)
        pages = self._cluster.pages()
        if not pages:
            raise Unreachable(f"no pod of {mine.name} is ready")
        now, tick_s, looks = time.time(), time.monotonic(), []
        for pod, page in pages.items():
            target = Target(deployment=mine.deployment, name=pod, endpoint=f"{self.watched.namespace}/{pod}")
            try:
                if isinstance(page, Unreachable):
                    raise page
                snapshot = scrape.read(page, f"pod {pod}", now, WANTED)
            except Unreachable as err:
                span, events = self.tracker(target).missed(_said(err), time_s=now)
                looks.append(Look(target=target, time_s=now, span=span, cursor=None, events=events))
            else:
                looks.append(self.seen(target, totals.read(snapshot), tick_s, page))
        if all(look.span.failed for look in looks):
            self.misses += 1
        else:
            self.misses = 0
            self._trackers.pop(mine, None)  # of the times that the cluster itself did not answer
        return looks

    def take_up(self, target: Target) -> None:
        """Go on from what another monitor has counted up to."""
        if self._history is not None and target in self._trackers:
            self._trackers[target].taken_up(self._history.cursor(target))

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()

    def read(self, page: str, interval_s: float) -> list[Look]:
        now = time.time()
        if self.watched.exporter:
            page = scrape.unprefixed(page)
        snapshot = scrape.read(page, self.watched.url, now, _OF_CARDS if self.watched.exporter else WANTED)
        target = self.watched.target
        damage = self.tracker(target).damaged(snapshot.ended, time_s=now)
        if damage is not None:
            self.misses += 1
            return [
                Look(
                    target=target,
                    time_s=now,
                    span=self.tracker(target).missed("cut page", time_s=now)[0],
                    cursor=None,
                    events=(damage,),
                )
            ]
        self.misses = 0
        tick_s = time.monotonic()
        if not self.watched.exporter:
            return [self.seen(target, totals.read(snapshot), tick_s, page)]
        snapshot = exporters.usual(snapshot)
        cards = totals.by_card(snapshot, self.watched.pods)
        if not cards:
            why = (
                "of the cards on it, none is held by these pods" if totals.by_card(snapshot) else "it has no card on it"
            )
            return self.missed(f"{self.watched.url} tells nothing of the cards: {why}", interval_s)
        return [
            self.seen(
                Target(deployment=target.deployment, kind="card", name=card, endpoint=target.endpoint),
                totals.read(part, measures.DEVICE),
                tick_s,
            )
            for card, part in cards.items()
        ]


def _place(url: str) -> float:
    """Where in the interval the looks at a page lie, from 0 to 1: the same in each run, and spread over all pages."""
    return int.from_bytes(hashlib.blake2b(url.encode(), digest_size=4).digest()) / 2**32


def _said(err: AimError) -> str:
    """An error in one line, with the way out where a person has to give something: a key, a right."""
    said = f"{err.what}: {err.why}" if err.why else err.what
    return f"{said}; {err.hint}" if (err.hint or "").startswith(("set ", "kubectl auth")) else said


class Collector:
    """Looks at pages, and at the cards of this machine, every `interval_s`."""

    def __init__(
        self,
        watched: Sequence[Watched],
        history: History | None,
        *,
        interval_s: float = 5.0,
        timeout_s: float = 5.0,
        workers: int = 8,
        key: str | None = None,
        cards: Callable[[float], dict[str, Totals]] | None = None,
        deployment: str = "",
    ) -> None:
        """`cards` reads this machine's own cards, kept under `deployment`; `key` is sent to every endpoint as a bearer token.

        `timeout_s` may be longer than the interval: an engine is slow to answer when it is busiest, and that is when it is worth a look.
        """
        self._pages = [_Page(each, history) for each in watched]
        self._history = history
        self.interval_s = interval_s
        self._timeout_s = timeout_s
        self._workers = workers
        self._fetcher = Fetcher(hosts=len(watched) + 4, key=key)
        self._cards = cards
        self._cards_page = _Page(self._of_cards(deployment), history)
        self._arrived: list[_Page] = []
        self._looks: queue.SimpleQueue[Look] = queue.SimpleQueue()
        self._unwritten: list[Look] = []
        self._cleaned = 0.0
        self._told_of_others = False

    def follow(self, watched: Sequence[Watched]) -> None:
        """Look at these pages from now on: new ones are added, those that are not among them are let go.

        This machine's cards stay with their deployment; when that is gone, they go to the first that is there.
        """
        known = {page.watched: page for page in self._pages}
        for each, page in known.items():
            page.dropped = each not in watched
        added = [_Page(each, self._history) for each in watched if each not in known]
        self._arrived += added
        self._pages = [page for page in self._pages if not page.dropped] + added
        deployments = [page.watched.target.deployment for page in self._pages]
        if deployments and self._cards_page.watched.target.deployment not in deployments:
            self._cards_page = _Page(self._of_cards(deployments[0]), self._history)

    @staticmethod
    def _of_cards(deployment: str) -> Watched:
        return Watched(target=Target(deployment=deployment, kind="card", name=""), url="")

    def close(self) -> None:
        """Close all connections."""
        self._fetcher.close()
        for page in self._pages:
            page.close()

    def once(self) -> list[Look]:
        """Look at everything once, now, and keep it."""
        with ThreadPoolExecutor(max_workers=self._workers) as pool:
            looks = [look for found in pool.map(self._look, self._pages) for look in found]
        looks += self._own_cards()
        self._keep(looks)
        return looks

    def run(self, stop: threading.Event, seen: Callable[[list[Look]], None] = lambda _: None) -> None:
        """Look until `stop`; `seen` gets each batch after it was kept, about once a second."""
        due: list[tuple[float, int, _Page]] = []
        order = itertools.count()
        begin = time.monotonic()
        self._arrived = list(self._pages)
        next_write, next_cards = begin + _WRITE_S, begin

        def work(page: _Page) -> None:
            try:
                for look in self._look(page):
                    if not page.dropped:
                        self._looks.put(look)
            finally:
                page.busy = False

        with (
            ThreadPoolExecutor(max_workers=self._workers) as pool,
            ThreadPoolExecutor(max_workers=self._workers) as slow_lane,
        ):
            while not stop.is_set():
                now = time.monotonic()
                for page in self._arrived:
                    heapq.heappush(due, (now + _place(page.watched.url) * self.interval_s, next(order), page))
                self._arrived = []
                while due and due[0][0] <= now:
                    at, _, page = heapq.heappop(due)
                    if page.dropped and not page.busy:
                        page.close()
                        continue
                    heapq.heappush(due, (max(at + page.wait_s(self.interval_s), now), next(order), page))
                    if not page.busy:
                        page.busy = True
                        (slow_lane if page.misses else pool).submit(work, page)
                if self._cards is not None and now >= next_cards:
                    next_cards = now + self.interval_s
                    for look in self._own_cards():
                        self._looks.put(look)
                if now >= next_write:
                    next_write = now + _WRITE_S
                    batch = self._drained()
                    self._keep(batch)
                    seen(batch)
                stop.wait(max(0.01, min(next_write, due[0][0] if due else next_write) - time.monotonic()))
        self._keep(self._drained())

    def _look(self, page: _Page) -> list[Look]:
        try:
            if page.watched.namespace:
                return page.pods(self._timeout_s)
            return page.read(self._fetcher.get(page.watched.url, self._timeout_s), self.interval_s)
        except (Unreachable, MissingExtra) as err:
            return page.missed(_said(err), self.interval_s)

    def _own_cards(self) -> list[Look]:
        if self._cards is None or not self._pages:
            return []
        deployment, tick_s = self._cards_page.watched.target.deployment, time.monotonic()
        return [
            self._cards_page.seen(Target(deployment=deployment, kind="card", name=name), found, tick_s)
            for name, found in self._cards(time.time()).items()
        ]

    def _drained(self) -> list[Look]:
        found = []
        while not self._looks.empty():
            found.append(self._looks.get())
        return found

    def _keep(self, looks: list[Look]) -> None:
        """Write looks; without room they wait, the oldest go when they are too many, and the monitor goes on."""
        if self._history is None:
            return
        self._unwritten += looks
        if not self._unwritten:
            return
        try:
            others = self._history.add(self._unwritten)
            self._unwritten = []
            for target in others:
                for page in (*self._pages, self._cards_page):
                    page.take_up(target)
            if others and not self._told_of_others:
                self._told_of_others = True
                logger.warning(
                    "another monitor watches %s too: what happens is counted once, by either",
                    ", ".join(sorted({target.deployment for target in others})),
                )
            if time.monotonic() - self._cleaned > _CLEAN_S:
                self._cleaned = time.monotonic()
                self._history.roll_up(time.time())
                self._history.prune(time.time())
        except Unreachable as err:
            most = 20 * len(self._pages) + 100
            if len(self._unwritten) > most:
                self._unwritten = self._unwritten[-most:]
            logger.warning("%s: %s; the monitor goes on without it. %s", err.what, err.why, err.hint)
