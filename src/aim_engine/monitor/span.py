"""What happened at one endpoint, or one card, over one stretch of time: the unit that is kept, merged and asked for figures.

Counters and histograms are increases, so spans that follow each other add up, and any percentile over any number of them is exact to
the width of the engine's own buckets. Spans of the same time, of several replicas or cards, lie side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from aim_engine.kpi import measures
from aim_engine.kpi.formula import Pick, Source, Unknown

T = TypeVar("T")


class Gauge(msgspec.Struct, frozen=True, array_like=True):
    """Values of a gauge at the looks of a span."""

    last: float
    low: float
    high: float
    total: float
    count: int
    area: float = 0.0
    """Its integral over the time that the looks stand for; straight lines from look to look."""
    seconds: float = 0.0
    """That time; 0 where only single looks are known, and in what was kept before it was counted."""

    @property
    def mean(self) -> float:
        """Mean over time, so that a busy time with few looks counts in full; over looks where no time is known."""
        return self.area / self.seconds if self.seconds > 0 else self.total / self.count

    def over(self, seconds: float) -> Gauge:
        """The same levels standing for a stretch of time."""
        return Gauge(self.last, self.low, self.high, self.total, self.count, self.mean * seconds, seconds)


class Histogram(msgspec.Struct, frozen=True, array_like=True):
    """Observations by bucket; the last count is of those above every edge."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    total: float
    """Sum of the observations themselves."""

    @property
    def count(self) -> float:
        """Number of observations."""
        return math.fsum(self.counts)

    def plus(self, other: Histogram) -> Histogram:
        """Both together, on the edges that both have."""
        if self.edges == other.edges:
            counts = tuple(one + two for one, two in zip(self.counts, other.counts, strict=True))
            return Histogram(self.edges, counts, self.total + other.total)
        shared = tuple(sorted(set(self.edges) & set(other.edges)))
        one, two = self.on(shared), other.on(shared)
        return Histogram(shared, tuple(a + b for a, b in zip(one, two, strict=True)), self.total + other.total)

    def on(self, edges: Sequence[float]) -> list[float]:
        """Counts on coarser edges, each of which must be one of ours."""
        counts = [0.0] * (len(edges) + 1)
        place = 0
        for edge, count in zip((*self.edges, math.inf), self.counts, strict=True):
            while place < len(edges) and edge > edges[place]:
                place += 1
            counts[place] += count
        return counts

    def cumulative(self) -> list[tuple[float, float]]:
        """(upper edge, observations up to it), ascending, the last edge open."""
        found, below = [], 0.0
        for edge, count in zip((*self.edges, math.inf), self.counts, strict=True):
            below += count
            found.append((edge, below))
        return found

    def within(self, limit: float) -> float:
        """Share of the observations up to `limit`, linear inside a bucket; the open bucket lies above it."""
        low, below, all_of = 0.0, 0.0, self.count
        for edge, count in zip((*self.edges, math.inf), self.counts, strict=True):
            if limit < edge:
                inside = 0.0 if math.isinf(edge) else count * (limit - low) / (edge - low)
                return (below + max(0.0, inside)) / all_of
            below += count
            low = edge
        return 1.0


class Quantile(msgspec.Struct, frozen=True, kw_only=True):
    """A quantile read from histogram buckets; the truth lies between the bucket's edges."""

    value: float
    low: float
    high: float | None
    """None when it fell into the last, open bucket."""


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One endpoint or card over one stretch of time."""

    seconds: float
    """Time that counters and histograms cover; 0 when only a level was seen."""
    counters: dict[str, float] = {}
    gauges: dict[str, Gauge] = {}
    histograms: dict[str, Histogram] = {}
    scrapes: int = 0
    failed: int = 0
    restarts: int = 0
    side: str = ""
    """`prefill` or `decode` of a server that does only that; `both` of several of which some do only that."""

    def source(self, parameters: Mapping[str, float]) -> Source:
        """Answers of this span to the questions of figures."""

        def seconds() -> float:
            if self.seconds <= 0:
                raise Unknown("the snapshots carry no time")
            return self.seconds

        def increase(name: str) -> float:
            return _known(self.counters, name)

        def mean(name: str) -> float:
            found = _known(self.histograms, name)
            if found.count <= 0:
                raise Unknown("no request came that far in the window")
            return found.total / found.count

        def count(name: str) -> float:
            return _known(self.histograms, name).count

        def level(name: str, pick: Pick) -> float:
            found = _known(self.gauges, name)
            return {"last": found.last, "mean": found.mean, "peak": found.high, "least": found.low}[pick]

        def within(name: str, limit: float) -> float:
            found = _known(self.histograms, name)
            if found.count <= 0:
                raise Unknown("no request came that far in the window")
            return found.within(limit)

        def up() -> float:
            if not self.scrapes + self.failed:
                raise Unknown("nobody looked in the window")
            return self.scrapes / (self.scrapes + self.failed)

        return Source(
            up=up,
            seconds=seconds,
            increase=increase,
            mean=mean,
            count=count,
            level=level,
            within=within,
            parameters=parameters,
        )


def in_a_row(spans: Iterable[Span]) -> Span:
    """Spans of one endpoint, oldest first, as one."""
    found = list(spans)
    if len(found) == 1:
        return found[0]
    counters: dict[str, float] = {}
    gauges: dict[str, list[Gauge]] = {}
    histograms: dict[str, list[Histogram]] = {}
    for span in found:
        for name, value in span.counters.items():
            counters[name] = counters.get(name, 0.0) + value
        for name, gauge in span.gauges.items():
            gauges.setdefault(name, []).append(gauge)
        for name, histogram in span.histograms.items():
            histograms.setdefault(name, []).append(histogram)
    return Span(
        sum(span.seconds for span in found),
        counters,
        {
            name: Gauge(
                group[-1].last,
                min(gauge.low for gauge in group),
                max(gauge.high for gauge in group),
                sum(gauge.total for gauge in group),
                sum(gauge.count for gauge in group),
                sum(gauge.area for gauge in group),
                sum(gauge.seconds for gauge in group),
            )
            for name, group in gauges.items()
        },
        {name: _together(group) for name, group in histograms.items()},
        sum(span.scrapes for span in found),
        sum(span.failed for span in found),
        sum(span.restarts for span in found),
        next((span.side for span in reversed(found) if span.side), ""),
    )


def _together(group: Sequence[Histogram]) -> Histogram:
    """Histograms as one, on the edges that all have."""
    edges = group[0].edges
    if any(histogram.edges != edges for histogram in group):
        whole = group[0]
        for histogram in group[1:]:
            whole = whole.plus(histogram)
        return whole
    counts = tuple(map(sum, zip(*(histogram.counts for histogram in group), strict=True)))
    return Histogram(edges, counts, sum(histogram.total for histogram in group))


def side_by_side(spans: Sequence[Span]) -> Span:
    """Spans of the same time, of replicas and cards of one deployment, as one.

    Where some servers only prefill and others only decode, each request is counted once; see `Measure.side`.
    """
    if len(spans) == 1:
        return spans[0]
    spans, split = _each_once(spans)
    counters: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}
    beside: dict[str, list[Gauge]] = {}
    for span in spans:
        counters = _added(counters, span.counters)
        histograms = _merged(histograms, span.histograms, Histogram.plus)
        for name, gauge in span.gauges.items():
            beside.setdefault(name, []).append(gauge)
    return Span(
        max((span.seconds for span in spans), default=0.0),
        counters,
        {name: _across(measures.BY_NAME[name].across, found) for name, found in beside.items()},
        histograms,
        sum(span.scrapes for span in spans),
        sum(span.failed for span in spans),
        sum(span.restarts for span in spans),
        "both" if split else "",
    )


def _each_once(spans: Sequence[Span]) -> tuple[Sequence[Span], bool]:
    """Spans without what another server counts of the same requests, and whether there is such."""
    told = {span.side for span in spans} >= {"prefill", "decode"}
    sides = [span.side for span in spans] if told else [_side_by_work(span) for span in spans]
    if not {"prefill", "decode"} <= set(sides):
        return spans, False
    first = "decode" if told else "prefill"
    found = []
    for span, side in zip(spans, sides, strict=True):
        if side not in ("prefill", "decode"):
            found.append(span)
            continue

        def counts(name: str, side: str = side) -> bool:
            own = measures.BY_NAME[name].side
            return own == "both" or (first if own == "first" else own) == side

        found.append(
            msgspec.structs.replace(
                span,
                counters={name: value for name, value in span.counters.items() if counts(name)},
                gauges={name: gauge for name, gauge in span.gauges.items() if counts(name)},
                histograms={name: histogram for name, histogram in span.histograms.items() if counts(name)},
            )
        )
    return found, True


def _side_by_work(span: Span) -> str:
    """What a server of vLLM does, which does not say so: one that decodes got its prompts' cache from others, one that prefills ends each
    request after one token, for its length.

    Some caches outside of the engine count as others, too; the other kind of server must be there for either to matter.
    """
    counters = span.counters
    requests, tokens = counters.get("requests", 0.0), counters.get("output_tokens", 0.0)
    if counters.get("transferred_tokens", 0.0) > 0:
        return "decode"
    if (
        requests
        and abs(tokens - requests) <= max(2.0, 0.02 * requests)
        and counters.get("finished_length", 0.0) >= 0.9 * requests
    ):
        return "prefill"
    return ""


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> Quantile | None:
    """The quantile `share` of cumulative histogram buckets, linear inside a bucket; None when nothing was observed.

    In the open last bucket the value is its lower edge, as Prometheus' histogram_quantile has it.
    """
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return None
    rank = share * total
    low, below = 0.0, 0.0
    for edge, count in buckets:
        if count >= rank and count > below:
            if math.isinf(edge):
                return Quantile(value=low, low=low, high=None)
            return Quantile(value=low + (edge - low) * max(0.0, rank - below) / (count - below), low=low, high=edge)
        low, below = edge, max(below, count)
    return Quantile(value=low, low=low, high=None)


def _across(how: measures.Across, gauges: Sequence[Gauge]) -> Gauge:
    """Gauges of the same time. The extremes of a sum are those that all reached, at one moment or not.

    Of a sum, one that was there for a part of the time counts for that part.
    """
    seconds, looks = max(gauge.seconds for gauge in gauges), max(gauge.count for gauge in gauges)
    parts = len(gauges) if how == "mean" else 1
    if how == "max":
        mean = max(gauge.mean for gauge in gauges)
    elif how == "sum" and seconds:
        mean = sum(gauge.area if gauge.seconds else gauge.mean * seconds for gauge in gauges) / seconds
    else:
        mean = sum(gauge.mean for gauge in gauges) / parts
    if how == "max":
        last, low, high = (max(getattr(g, part) for g in gauges) for part in ("last", "low", "high"))
    else:
        last, low, high = (sum(getattr(g, part) for g in gauges) / parts for part in ("last", "low", "high"))
    return Gauge(last, low, high, mean * looks, looks, mean * seconds, seconds)


def _added(one: dict[str, float], two: dict[str, float]) -> dict[str, float]:
    found = dict(one)
    for name, value in two.items():
        found[name] = found.get(name, 0.0) + value
    return found


def _merged(one: dict[str, T], two: dict[str, T], merge: Callable[[T, T], T]) -> dict[str, T]:
    found = dict(one)
    for name, value in two.items():
        found[name] = merge(found[name], value) if name in found else value
    return found


def _known(kept: Mapping[str, T], name: str) -> T:
    if name not in kept:
        measure = measures.BY_NAME[name]
        if measure.device:
            raise Unknown("no card tells it")
        raise Unknown(
            f"exported only with {measure.only_with}" if measure.only_with else "the engine does not export it"
        )
    return kept[name]
