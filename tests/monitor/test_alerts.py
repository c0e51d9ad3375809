"""Alert rules: each fires in its case and is silent in the other; states, hysteresis, inhibition, silences, and news told once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aim_engine.kpi import names
from aim_engine.kpi.formula import measures_of
from aim_engine.monitor import alerts, views
from aim_engine.monitor import watch as watching
from aim_engine.monitor.history import History, Look, Target
from aim_engine.monitor.ledger import Alert, Ledger, Rating, Silence
from aim_engine.monitor.span import Gauge, Histogram, Span
from aim_engine.monitor.watch import Watch
from aim_engine.render import alert_rules
from aim_engine.render.alert_rules import Rule
from aim_engine.workload import Slo

RULES = alert_rules.load()
NOW = 1_800_000_000.0
LIMITS = Slo(ttft_ms=1, ttft_percentile=99, tpot_ms=1, tpot_percentile=99, e2e_ms=1, e2e_percentile=99)


def case(values: Mapping[str, Any]) -> tuple[Span, Span, dict[str, float]]:
    """A span that has these figures, the one before it with less, and what else is given."""
    gauges: dict[str, Gauge] = {}
    counters: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}
    given: dict[str, float] = {}
    scrapes, failed = 10, 0

    def gauge(value: float) -> Gauge:
        return Gauge(value, value, value, value, 1)

    for name, value in values.items():
        match name:
            case "facts":
                continue
            case "up_fraction":
                scrapes, failed = (10, 0) if value else (0, 10)
            case "ttft_ms" | "tpot_ms" | "e2e_ms":
                histograms[name.removesuffix("_ms")] = Histogram(
                    (value / 1000 * 0.999, value / 1000 * 1.001), (0.0, 100.0, 0.0), value / 10
                )
            case "kv_usage_peak_fraction":
                gauges["kv_usage"] = gauge(value)
            case "waiting_mean":
                gauges["waiting"] = gauge(value)
            case "batch":
                gauges["running"] = gauge(value)
            case "requests_s":
                counters["requests"] = value * 60.0
            case "output_tok_s":
                counters["output_tokens"] = value * 60.0
            case "preemptions" | "rejections":
                counters[name] = value
            case "error_fraction":
                counters |= {"finished_error": value * 1000, "requests": 1000.0}
            case "thermal_throttled_fraction":
                counters |= {"throttle_socket": value * 1000, "throttle_samples": 1000.0}
            case "junction_margin_c":
                gauges |= {"gpu_junction": gauge(110.0 - value), "gpu_junction_crit": gauge(110.0)}
            case "power_cap_fraction":
                gauges |= {"gpu_power_cap": gauge(750.0 * value), "gpu_power_cap_default": gauge(750.0)}
            case "power_w":
                gauges["gpu_power"] = gauge(value)
            case "gpu_busy_fraction":
                gauges["gpu_busy"] = gauge(value * 100)
            case "ecc_uncorrectable":
                counters["gpu_ecc_uncorrectable"] = value
            case "xgmi_errors":
                counters["xgmi_errors"] = value
            case "bad_pages":
                gauges["gpu_bad_pages"] = Gauge(value, 0.0, value, value, 2)
            case _:
                given[name] = float(value)
    span = Span(60.0, counters, gauges, histograms, scrapes, failed)
    less = Span(
        60.0,
        counters,
        {n: Gauge(g.last / 2, g.low / 2, g.high / 2, g.total / 2, g.count) for n, g in gauges.items()},
        histograms,
        scrapes,
        failed,
    )
    return span, less, given


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("kind", ["fires", "silent"])
def test_a_rule_judges_its_cases(rule: Rule, kind: str) -> None:
    values = rule.fires if kind == "fires" else rule.silent
    now, before, given = case(values)
    assert alert_rules.applies(rule, given)
    if rule.facts:
        assert bool(set(rule.facts) & set(values["facts"])) == (kind == "fires")
        return
    held, _ = alerts.judge(rule, lambda _: (now, before), given, firing=False)
    assert held is (kind == "fires")


@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.facts], ids=lambda rule: rule.name)
def test_a_rule_whose_figures_nobody_tells_is_not_judged(rule: Rule) -> None:
    empty = Span(60.0)
    held, _ = alerts.judge(rule, lambda _: (empty, empty), {**alert_rules.of_limits(LIMITS), "gpus": 8.0}, firing=False)
    assert held is (True if rule.name == "TelemetryBlind" else None)


def test_a_few_slow_requests_are_no_burnt_budget() -> None:
    for one in RULES:
        if "BudgetBurn" in one.name:
            now, before, given = case({**one.fires, "requests_s": 0.0003})
            assert alerts.judge(one, lambda _, now=now, before=before: (now, before), given, firing=False)[0] is False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("percentile", "share", "fires"),
    [(99, 0.05, ""), (99, 0.07, "slow"), (99, 0.15, "fast"), (90, 0.55, ""), (90, 0.61, "slow"), (90, 0.91, "fast"),
     (50, 0.74, ""), (50, 0.76, "slow"), (None, 0.28, ""), (None, 0.3, "mean")],
)  # fmt: skip
def test_a_limit_is_judged_on_the_level_that_it_was_asked_on(percentile: int | None, share: float, fires: str) -> None:
    span = Span(
        60.0,
        {"requests": 1000.0},
        histograms={
            "ttft": Histogram((0.4, 0.5, 1.0), (1000 * (1 - share), 0.0, 1000 * share, 0.0), 300 + 700 * share)
        },
    )
    given = alert_rules.of_limits(Slo(ttft_ms=500, ttft_percentile=percentile))
    found = {
        one.name: alerts.judge(one, lambda _: (span, span), given, firing=False)[0]
        for one in RULES
        if one.needs and "slo_ttft" in one.needs and alert_rules.applies(one, given)
    }
    if percentile is None:
        assert found == {"TimeToFirstTokenMissed": fires == "mean"}
    else:
        assert found == {"TtftBudgetBurnFast": fires == "fast", "TtftBudgetBurnSlow": fires in ("fast", "slow")}


def test_what_is_said_of_a_burnt_budget_names_the_level_and_the_share() -> None:
    one = next(rule for rule in RULES if rule.name == "TtftBudgetBurnSlow")
    given = alert_rules.of_limits(Slo(ttft_ms=500, ttft_percentile=90))
    alert = alerts.step(one, True, 812.0, None, deployment="demo", now_s=NOW, parameters=given)
    assert alert is not None
    assert alert.summary == (
        "more than 60.0% of the requests wait longer than 500 ms for their first token, a limit on p90 (812 ms at that share)"
    )


def test_the_rules_of_the_reference_are_there_and_name_what_exists() -> None:
    assert len(RULES) >= 16
    by_name = {rule.name for rule in RULES}
    for rule in RULES:
        assert set(rule.inhibits) <= by_name | {"*"}
        for group in rule.groups:
            for condition in group:
                kpi = names.BY_NAME[condition.kpi]
                assert condition.quantile is None or kpi.measure is not None
                assert kpi.formula is None or set(measures_of(kpi.formula)) is not None
        assert alert_rules.seconds(rule.for_) >= 0
        assert rule.basis


def rule(**changes: Any) -> Rule:
    values: dict[str, Any] = {
        "name": "Full",
        "severity": "warning",
        "summary": "cache {percent}",
        "basis": "test",
        "all_of": (alert_rules.Condition(kpi="kv_usage_fraction", over="1m", above=0.9, until=0.7),),
        "for_": "60s",
        "keep_for": "30s",
    }
    return Rule(**{**values, **changes})


def walk(one: Rule, values: list[tuple[float, float | None]]) -> list[str]:
    """The states of an alert at (time, cache usage)."""
    alert: Alert | None = None
    states: list[str] = []
    for now_s, usage in values:
        span = Span(60.0, {}, {} if usage is None else {"kv_usage": Gauge(usage, usage, usage, usage, 1)})
        firing = alert is not None and alert.state == "firing"
        held, value = alerts.judge(one, lambda _, span=span: (span, span), {}, firing=firing)  # type: ignore[misc]
        alert = alerts.step(one, held, value, alert, deployment="demo", now_s=now_s, parameters={})
        states.append("-" if alert is None else alert.state)
    return states


def test_a_condition_must_hold_for_its_time_and_be_gone_for_its_time() -> None:
    assert walk(
        rule(), [(0, 0.95), (30, 0.95), (60, 0.95), (90, 0.8), (120, 0.6), (140, 0.6), (150, 0.6), (160, 0.6)]
    ) == ["pending", "pending", "firing", "firing", "firing", "firing", "resolved", "-"]


def test_a_short_peak_is_nothing() -> None:
    assert walk(rule(), [(0, 0.95), (30, 0.5), (60, 0.95), (90, 0.5)]) == ["pending", "-", "pending", "-"]


def test_between_the_limits_an_alert_stays_what_it_is() -> None:
    assert walk(rule(for_="0s"), [(0, 0.8), (10, 0.95), (20, 0.8), (60, 0.75)]) == ["-", "firing", "firing", "firing"]


def test_unknown_neither_raises_nor_ends_an_alert() -> None:
    assert walk(rule(for_="0s"), [(0, None), (10, 0.95), (20, None), (600, None)]) == [
        "-",
        "firing",
        "firing",
        "firing",
    ]


def alert(name: str, **changes: Any) -> Alert:
    values: dict[str, Any] = {
        "deployment": "demo",
        "rule": name,
        "severity": "warning",
        "state": "firing",
        "since_s": NOW,
    }
    return Alert(**{**values, **changes})


def test_what_a_firing_alert_explains_is_not_told_and_silences_hold_for_their_time() -> None:
    found = alerts.muted(
        [alert("EngineDown"), alert("KvSaturated"), alert("KvSaturated", deployment="other")], RULES, [], NOW
    )
    assert [each.inhibited_by for each in found] == ["", "EngineDown", ""]
    quiet = [Silence(rule="KvSaturated", deployment="other", until_s=NOW + 10)]
    assert [a.silenced for a in alerts.muted([alert("KvSaturated", deployment="other")], RULES, quiet, NOW)] == [True]
    assert [a.silenced for a in alerts.muted([alert("KvSaturated", deployment="other")], RULES, quiet, NOW + 11)] == [
        False
    ]


def test_news_is_told_once_and_again_after_hours() -> None:
    one = alert("KvSaturated")
    assert alerts.to_tell(one, NOW)
    told = alerts.told(one, NOW)
    assert not alerts.to_tell(told, NOW + 60)
    assert alerts.to_tell(told, NOW + alerts.REPEAT_S)
    assert not alerts.to_tell(alert("X", state="pending"), NOW)
    over = alert("KvSaturated", state="resolved", told=("firing",))
    assert alerts.to_tell(over, NOW)
    assert not alerts.to_tell(alert("KvSaturated", state="resolved"), NOW), "nobody heard that it fired"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[History, Ledger]]:
    history, ledger = History(tmp_path / "history.db"), Ledger(tmp_path / "ledger.db")
    yield history, ledger
    history.close()
    ledger.close()


def add(history: History, time_s: float, span: Span) -> None:
    history.add([Look(target=Target(deployment="demo", name="demo"), time_s=time_s, span=span, cursor=None)])


def test_an_alert_survives_a_restart_of_the_monitor_and_is_told_once(
    files: tuple[History, Ledger], tmp_path: Path
) -> None:
    history, ledger = files
    told: list[str] = []
    for n in range(40):
        now_s = NOW + 10 * n
        down = 3 <= n < 25
        add(history, now_s, Span(0.0 if down else 10.0, scrapes=0 if down else 1, failed=int(down)))
        watch = Watch(
            history, Ledger(tmp_path / "ledger.db"), RULES, {"demo": None}, receivers=("http://127.0.0.1:9/hook",)
        )
        told += [f"{each.rule} {each.state}" for each in watch.judge(now_s) if each.told_s == now_s]
    assert told == ["EngineDown firing", "EngineDown resolved"], "that a replica is down says nothing more"
    assert [(m.alert.rule, m.alert.state) for m in ledger.waiting()] == [
        ("EngineDown", "firing"),
        ("EngineDown", "resolved"),
    ]


def test_one_long_answer_of_an_engine_that_counts_it_at_its_end_is_not_stuck() -> None:
    """sglang TokenizerManager.collect_metrics and ROCm/ATOM metrics_guide: tokens count when a request is finished, gaps as they come."""
    stuck = next(rule for rule in RULES if rule.name == "GpuStuck")
    running = {"running": Gauge(1.0, 1.0, 1.0, 1.0, 1)}
    for gaps, held in ((3000.0, False), (0.0, True)):
        span = Span(180.0, {"output_tokens": 0.0}, running, {"itl": Histogram((0.1,), (gaps, 0.0), gaps * 0.06)}, 1)
        assert alerts.judge(stuck, lambda _, span=span: (span, span), {}, firing=False)[0] is held  # type: ignore[misc]


HOOK = "http://127.0.0.1:9/hook"


def down_since(history: History, ledger: Ledger, receivers: tuple[str, ...] = (HOOK,)) -> Watch:
    """A monitor in whose eyes `demo` is down and that has told so, at NOW + 200."""
    watch = Watch(history, ledger, RULES, {"demo": None}, receivers=receivers)
    for n in range(20):
        add(history, NOW + 10 * n, Span(0.0, failed=1))
        watch.judge(NOW + 10 * n)
    assert [(a.rule, a.state) for a in ledger.alerts() if a.state == "firing"] == [("EngineDown", "firing")]
    return watch


def test_the_alerts_of_a_deployment_that_is_taken_down_are_over_and_that_is_told_once(
    files: tuple[History, Ledger],
) -> None:
    history, ledger = files
    watch = down_since(history, ledger)
    watch.follow({"other": None})
    (ended,) = watch.judge(NOW + 210)
    assert (ended.rule, ended.state) == ("EngineDown", "resolved")
    assert ended.summary.startswith("the deployment was taken down or is being started anew; it was: no answer")
    for n in range(22, 400):
        watch.judge(NOW + 10 * n)
    assert [(m.alert.rule, m.alert.state) for m in ledger.waiting()] == [
        ("EngineDown", "firing"),
        ("EngineDown", "resolved"),
    ]
    assert ledger.alerts() == (), "what was over for an hour is forgotten, and what only might have been at once"


def test_the_end_of_alerts_is_told_by_the_next_monitor_where_none_runs(
    files: tuple[History, Ledger], tmp_path: Path
) -> None:
    history, ledger = files
    down_since(history, ledger)
    (ended,) = watching.taken_down(ledger, ["demo"], (), NOW + 220)
    assert (ended.state, ended.told) == ("resolved", ("firing",))
    again = Ledger(tmp_path / "ledger.db")
    watch = Watch(history, again, RULES, {}, receivers=(HOOK,))
    watch.judge(NOW + 230)
    watch.judge(NOW + 240)
    assert [m.alert.state for m in again.waiting()] == ["firing", "resolved"]
    again.close()


def test_a_monitor_ends_no_alert_that_another_one_judges_and_ends_what_nobody_does(
    files: tuple[History, Ledger],
) -> None:
    history, ledger = files
    theirs = down_since(history, ledger)
    ours = Watch(history, ledger, RULES, {"other": None}, receivers=(HOOK,))
    for n in range(20, 60):
        add(history, NOW + 10 * n, Span(0.0, failed=1))
        theirs.judge(NOW + 10 * n)
        assert ours.judge(NOW + 10 * n) == ()
    last_s = NOW + 590
    assert ours.judge(last_s + 3000) == ()
    ended = {alert.rule: alert for alert in ours.judge(last_s + 3700)}
    assert {name: alert.state for name, alert in ended.items()} == {"EngineDown": "resolved", "ReplicaDown": "resolved"}
    assert ended["EngineDown"].summary.startswith("no monitor watches the deployment any more; it was: ")
    assert [m.alert.state for m in ledger.waiting()] == ["firing", "resolved"]


def test_an_alert_that_was_never_told_ends_without_a_message(files: tuple[History, Ledger]) -> None:
    history, ledger = files
    ledger.silence(Silence(until_s=NOW + 9000, why="test"))
    watch = down_since(history, ledger)
    watch.follow({})
    assert [alert.state for alert in watch.judge(NOW + 210)] == ["resolved"]
    assert ledger.waiting() == ()


def test_a_quality_drop_is_an_alert(files: tuple[History, Ledger]) -> None:
    history, ledger = files
    add(history, NOW, Span(10.0, scrapes=1))
    for n in range(10):
        ledger.rate(Rating(deployment="demo", time_s=NOW - n, good=n > 4))
    watch = Watch(history, ledger, RULES, {"demo": None})
    assert [(a.rule, a.state, a.value) for a in watch.judge(NOW + 1)] == [("QualityDrop", "firing", 0.5)]
    assert views.quality(ledger, "demo", NOW - 100, NOW) == {"response_quality_score": 0.5}


def test_a_healthy_engine_raises_nothing(files: tuple[History, Ledger]) -> None:
    history, ledger = files
    healthy = Span(
        10.0,
        {"output_tokens": 900.0, "requests": 10.0, "finished_error": 0.0, "preemptions": 0.0, "rejections": 0.0},
        {name: Gauge(4.0, 4.0, 4.0, 4.0, 1) for name in ("running",)}
        | {"waiting": Gauge(0, 0, 0, 0, 1), "kv_usage": Gauge(0.4, 0.4, 0.4, 0.4, 1)},
        {"ttft": Histogram((0.1, 1.0), (10.0, 0.0, 0.0), 0.5)},
        1,
    )
    watch = Watch(history, ledger, RULES, {"demo": None})
    for n in range(100):
        add(history, NOW + 10 * n, healthy)
        assert watch.judge(NOW + 10 * n) == ()


def test_judging_takes_little_time(files: tuple[History, Ledger]) -> None:
    history, ledger = files
    for n in range(1000):
        add(history, NOW + 5 * n, Span(5.0, {"output_tokens": 9.0}, scrapes=1))
    history.roll_up(NOW + 5000)
    watch = Watch(history, ledger, RULES, {"demo": None})
    began = time.process_time()
    watch.judge(NOW + 5000)
    assert time.process_time() - began < 1.0
