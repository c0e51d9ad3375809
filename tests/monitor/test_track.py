"""From look to look: differences, restarts, renamed metrics, damage, clocks, and a tracker that changes hands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import metric_pages
from aim_engine.monitor import scrape, totals
from aim_engine.monitor.span import Gauge, Histogram, Span, in_a_row, side_by_side
from aim_engine.monitor.track import LEVEL_HOLDS_S, Event, Tracker


def look(
    tracker: Tracker, engine: metric_pages.Engine, now_s: float, tick_s: float | None = None
) -> tuple[Span, tuple[Event, ...]]:
    return tracker.seen(
        totals.read(scrape.parse(engine.page(), time_s=now_s)), tick_s=now_s if tick_s is None else tick_s
    )


@pytest.mark.parametrize("oldest", [False, True], ids=["newest names", "oldest names"])
@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_what_happened_between_two_looks_is_counted_whatever_the_release_calls_it(name: str, oldest: bool) -> None:
    engine, tracker = metric_pages.Engine(name, oldest=oldest), Tracker()
    engine.serve(ttft_s=95.0, gaps=10, gap_s=0.02)
    assert look(tracker, engine, 2000.0)[0].counters == {}
    engine.serve(ttft_s=0.2, gaps=10, gap_s=0.02)
    engine.gauges |= {"running": 3.0, "kv_usage": 0.4}
    span, events = look(tracker, engine, 2005.0)
    assert span.seconds == 5.0
    assert span.counters["output_tokens"] == 11
    assert span.histograms["ttft"].count == 1
    assert span.histograms["ttft"].total == pytest.approx(0.2)
    assert span.gauges["running"] == Gauge(3.0, 3.0, 3.0, 3.0, 1, 7.5, 5.0)
    assert events == ()


def test_a_busy_time_with_few_looks_counts_for_its_length() -> None:
    """Ten looks at an idle engine, ten that failed while it was busy: the mean is that of the time, not of the looks."""
    engine, tracker = metric_pages.Engine(), Tracker()
    spans = [look(tracker, engine, 2000.0 + second)[0] for second in range(0, 55, 5)]
    engine.gauges["running"] = 40.0
    spans.append(look(tracker, engine, 2055.0)[0])
    spans += [tracker.missed("no answer in time", time_s=2055.0 + second)[0] for second in range(5, 50, 5)]
    spans.append(look(tracker, engine, 2105.0)[0])
    whole = in_a_row(spans)
    assert whole.gauges["running"].seconds == whole.seconds == 105.0
    assert whole.gauges["running"].mean == pytest.approx((5 * 20.0 + 50 * 40.0) / 105)


def test_a_look_does_not_stand_for_the_hours_before_it() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    look(tracker, engine, 2000.0)
    engine.gauges["running"] = 8.0
    span, _ = look(tracker, engine, 9200.0)
    assert (span.seconds, span.gauges["running"].seconds) == (7200.0, LEVEL_HOLDS_S)


def test_a_replica_that_came_later_counts_for_its_time() -> None:
    always = Span(100.0, {}, {"running": Gauge(4.0, 4.0, 4.0, 40.0, 10, 400.0, 100.0)}, scrapes=10)
    later = Span(20.0, {}, {"running": Gauge(6.0, 6.0, 6.0, 12.0, 2, 120.0, 20.0)}, scrapes=2)
    both = side_by_side([always, later]).gauges["running"]
    assert both.mean == pytest.approx(5.2)
    assert (both.last, both.high) == (10.0, 10.0)
    first = Span(0.0, {}, {"running": Gauge(6.0, 6.0, 6.0, 6.0, 1)}, scrapes=1)
    assert side_by_side([always, first]).gauges["running"].mean == pytest.approx(10.0), "a first look has no time yet"


def test_looks_that_were_missed_are_made_up_by_the_next() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    look(tracker, engine, 2000.0)
    engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    span, events = tracker.missed("connection refused", time_s=2005.0)
    assert (span.failed, [event.kind for event in events]) == (1, ["unreachable"])
    assert tracker.missed("connection refused", time_s=2010.0)[1] == ()
    engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    span, events = look(tracker, engine, 2015.0)
    assert (span.counters["output_tokens"], span.seconds) == (10, 15.0)
    assert [event.kind for event in events] == ["recovered"]


@pytest.mark.parametrize("tells_start", [True, False])
def test_a_restart_keeps_the_tokens_and_leaves_the_times_of_the_first_requests_out(tells_start: bool) -> None:
    engine, tracker = metric_pages.Engine(started_s=1000.0 if tells_start else None), Tracker()
    for _ in range(20):
        engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    look(tracker, engine, 2000.0)
    engine.restart(2003.0 if tells_start else 0.0)
    if not tells_start:
        engine.started_s = None
    engine.serve(ttft_s=90.0, gaps=4, gap_s=0.02)
    span, events = look(tracker, engine, 2005.0)
    assert (span.restarts, span.counters["output_tokens"]) == (1, 5)
    assert span.histograms == {}
    assert [event.kind for event in events] == ["restart"]
    engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    assert look(tracker, engine, 2010.0)[0].histograms["ttft"].count == 1


def test_a_restart_that_overtook_the_old_counts_is_seen_by_the_start_time() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    look(tracker, engine, 2000.0)
    engine.restart(2001.0)
    for _ in range(3):
        engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    assert look(tracker, engine, 2005.0)[0].counters["output_tokens"] == 15


def test_a_count_that_falls_without_a_restart_is_not_believed_at_once() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    for _ in range(20):
        engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    look(tracker, engine, 2000.0)
    kept = dict(engine.counters)
    engine.counters["output_tokens"] = 3.0
    span, events = look(tracker, engine, 2005.0)
    assert (span.counters, [event.kind for event in events]) == ({}, ["fell"])
    engine.counters = kept
    engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    assert look(tracker, engine, 2010.0)[0].counters["output_tokens"] == 5


def test_a_count_that_stays_low_is_believed_in_the_end() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    engine.serve(ttft_s=0.1, gaps=99, gap_s=0.02)
    look(tracker, engine, 2000.0)
    engine.counters["output_tokens"] = 3.0
    for n in range(3):
        assert look(tracker, engine, 2005.0 + 5 * n)[0].counters == {}
    engine.counters["output_tokens"] = 10.0
    assert look(tracker, engine, 2020.0)[0].counters["output_tokens"] == 7


def test_a_page_cut_off_in_its_last_line_is_left_out() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    whole = scrape.parse(engine.page())
    assert tracker.damaged(whole.ended, time_s=1.0) is None
    cut = scrape.parse(engine.page()[:-4])
    event = tracker.damaged(cut.ended, time_s=2.0)
    assert event is not None
    assert event.kind == "cut page"


def test_a_page_cut_off_between_lines_tells_only_what_is_whole_on_it() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    look(tracker, engine, 2000.0)
    engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    lines = engine.page().splitlines(keepends=True)
    for count in range(len(lines) + 1):
        part = totals.read(scrape.parse("".join(lines[:count]), time_s=2005.0))
        assert all(sum(buckets.counts) == 2 for name, buckets in part.histograms.items() if name not in ("itl", "tpot"))
    half = Tracker(tracker.cursor)
    half.seen(totals.read(scrape.parse("".join(lines[: len(lines) // 2]), time_s=2005.0)), tick_s=2005.0)
    span, _ = half.seen(totals.read(scrape.parse("".join(lines), time_s=2010.0)), tick_s=2010.0)
    assert span.restarts == 0
    assert span.histograms["e2e"].count == 1


def test_a_page_that_lacks_the_newest_name_of_a_measure_is_not_read_under_an_older_one() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    both = "vllm:request_time_per_output_token_seconds_{} {}\n"
    extra = both.format('bucket{le="+Inf"}', 5) + both.format("sum", 0.1) + both.format("count", 5)
    engine.serve(ttft_s=0.1, gaps=100, gap_s=0.02)
    tracker.seen(totals.read(scrape.parse(engine.page() + extra, time_s=2000.0)), tick_s=2000.0)
    span, _ = look(tracker, engine, 2005.0)
    assert "tpot" not in span.histograms
    assert span.restarts == 0


def test_no_number_is_not_a_number() -> None:
    page = "vllm:kv_cache_usage_perc NaN\nvllm:generation_tokens_total NaN\nvllm:num_requests_running +Inf\n"
    found = totals.read(scrape.parse(page, time_s=1.0))
    assert (found.gauges, found.counters) == ({}, {})


def test_a_clock_that_jumps_is_told_and_does_not_change_the_length_of_time() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    look(tracker, engine, 2000.0, tick_s=50.0)
    span, events = look(tracker, engine, 9000.0, tick_s=55.0)
    assert (span.seconds, [event.kind for event in events]) == (5.0, ["clock"])
    assert "forward by 6995 s" in events[0].text
    span, events = look(tracker, engine, 2010.0, tick_s=60.0)
    assert (span.seconds, [event.kind for event in events]) == (5.0, ["clock"])


def test_a_tracker_taken_up_by_another_process_counts_what_happened_in_between() -> None:
    engine, tracker = metric_pages.Engine(), Tracker()
    look(tracker, engine, 2000.0)
    engine.serve(ttft_s=0.1, gaps=4, gap_s=0.02)
    span, _ = look(Tracker(tracker.cursor), engine, 2060.0)
    assert (span.counters["output_tokens"], span.seconds) == (5, 60.0)


def test_buckets_that_change_with_a_release_are_merged_on_the_edges_both_have() -> None:
    one = Histogram((0.1, 0.2, 0.5), (1.0, 2.0, 3.0, 4.0), 3.0)
    two = Histogram((0.1, 0.5, 1.0), (5.0, 6.0, 7.0, 8.0), 9.0)
    both = one.plus(two)
    assert both.edges == (0.1, 0.5)
    assert both.counts == (6.0, 11.0, 19.0)
    assert both.total == 12.0


SPANS = st.builds(
    lambda seconds, tokens, counts: Span(
        seconds,
        {"output_tokens": tokens},
        {"running": Gauge(tokens, tokens, tokens, tokens, 1)},
        {"ttft": Histogram((0.1, 1.0), counts, 1.0)},
        1,
    ),
    st.integers(1, 60).map(float),
    st.integers(0, 500).map(float),
    st.tuples(*[st.integers(0, 9).map(float)] * 3),
)


@given(st.lists(SPANS, min_size=1, max_size=8), st.integers(0, 8))
def test_it_does_not_matter_where_a_row_of_spans_is_cut(spans: list[Span], place: int) -> None:
    whole = in_a_row(spans)
    assert in_a_row([in_a_row(spans[:place]), in_a_row(spans[place:])]).counters == whole.counters
    assert whole.histograms["ttft"].count == sum(span.histograms["ttft"].count for span in spans)
    assert whole.gauges["running"].mean == pytest.approx(sum(s.gauges["running"].last for s in spans) / len(spans))


def test_replicas_add_up_and_the_fullest_cache_counts() -> None:
    spans = [
        Span(
            5.0,
            {"output_tokens": 10.0 * n},
            {"running": Gauge(n, n, n, n, 1), "kv_usage": Gauge(n / 4, n / 4, n / 4, n / 4, 1)},
        )
        for n in (1.0, 2.0, 3.0)
    ]
    found = side_by_side(spans)
    assert found.seconds == 5.0
    assert found.counters["output_tokens"] == 60.0
    assert found.gauges["running"].last == 6.0
    assert found.gauges["kv_usage"].last == 0.75
