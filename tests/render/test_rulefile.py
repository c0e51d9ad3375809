"""The rules as PromQL: what is left out says why, and promtool finds that each fires and is silent in its own cases."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aim_engine.kpi import formula, measures, names
from aim_engine.render import alert_rules, rulefile
from aim_engine.render.alert_rules import Rule
from aim_engine.render.text import yaml_document
from aim_engine.workload import Slo
from monitor.test_alerts import case

RULES = alert_rules.load()
LIMITS = Slo(ttft_ms=500, ttft_percentile=99, tpot_ms=30, tpot_percentile=99, e2e_ms=5000, e2e_percentile=99)
MEANS = Slo(ttft_ms=500, tpot_ms=30, e2e_ms=5000)
GIVEN = {**alert_rules.of_limits(LIMITS), "gpus": 8.0}
ON_MEANS = {"TimeToFirstTokenMissed", "TimePerOutputTokenMissed", "RequestTimeMissed"}
MINUTES = 450
ENGINE, CARDS = 'job="engine"', 'job="cards"'


def exported(given: dict[str, float] | None = None, engine: str = "vllm") -> rulefile.Exported:
    return rulefile.export(
        RULES,
        deployment="demo",
        selector=ENGINE,
        devices=CARDS,
        parameters=GIVEN if given is None else given,
        engine=engine,
    )


def test_rules_without_a_series_or_a_limit_are_left_out_with_the_reason() -> None:
    ours = {"GpuPowerBelowDefaultCap", "GpuHot", "GpuVeryHot", "GpuBadPages"}
    assert set(exported().left_out) == {"HostMisconfig", "QualityDrop"} | ours | ON_MEANS
    assert "reads it from the driver" in exported().left_out["GpuHot"]
    without = exported({}).left_out
    assert {"TtftBudgetBurnFast", "ItlBudgetBurnSlow", "GpuIdleCost"} | ON_MEANS <= set(without)
    assert "slo_ttft_percentile" in without["TtftBudgetBurnFast"]
    means = exported(alert_rules.of_limits(MEANS))
    assert {rule.name for rule in RULES if "BudgetBurn" in rule.name} <= set(means.left_out)
    assert not ON_MEANS & set(means.left_out)


def test_every_figure_that_is_a_metric_has_promql_with_all_the_names_of_an_engine() -> None:
    for kpi in names.ALL:
        if kpi.formula is None:
            continue
        text = formula.promql(
            kpi.formula,
            selector=ENGINE,
            window="5m",
            parameters={"usd_h": 12.0, "slo_ttft_ms": 500.0},
            edges={"ttft": ("0.25", "0.5", "+Inf")},
        )
        assert text.count("(") == text.count(")")
        for name in formula.measures_of(kpi.formula):
            if kpi.name != "goodput_requests_s":
                assert formula.prometheus_names(measures.BY_NAME[name], "vllm")[0] in text
    usage = names.BY_NAME["kv_usage_fraction"].formula
    assert usage is not None
    assert formula.promql(usage, selector=ENGINE, window="5m") == (
        '(max(vllm:kv_cache_usage_perc{job="engine"}) or max(vllm:gpu_cache_usage_perc{job="engine"}))'
    )
    assert "sglang:token_usage" in formula.promql(usage, selector="", window="5m", engine="sglang")


def test_an_alert_on_events_of_a_card_names_the_card() -> None:
    told = {document["alert"]: document for document in exported().groups[0]["rules"]}
    found = told["AimEngineGpuEccUncorrectable"]
    assert found["expr"] == 'sum by (hostname, gpu_id) (increase(gpu_ecc_uncorrect_total{job="cards"}[1h])) > 0'
    assert found["annotations"]["summary"].startswith("demo, GPU {{ $labels.gpu_id }} of {{ $labels.hostname }}: ")
    assert "$labels" not in told["AimEngineGpuThrottledByHeat"]["annotations"]["summary"]


def test_a_prometheus_rule_holds_the_same_groups() -> None:
    found = exported()
    document = rulefile.prometheus_rule(found, name="demo", namespace="models", labels={"release": "prometheus"})
    assert document["spec"]["groups"] == found.groups
    assert document["metadata"]["namespace"] == "models"


def series(rule: Rule, kind: str) -> list[dict[str, str]]:
    """Input series that have the figures of a rule's case, and nothing else."""
    values = rule.fires if kind == "fires" else rule.silent
    span, _, _ = case(values)
    minutes = alert_rules.seconds(rule.groups[0][0].over) / 60
    rising = kind == "fires" and any(condition.rising for group in rule.groups for condition in group)
    found = []

    def add(metric: str, labels: str, start: float, step: float) -> None:
        found.append({"series": f"{metric}{{{labels}}}", "values": f"{start:.12g}+{step:.12g}x{MINUTES}"})

    for name, gauge in span.gauges.items():
        measure = measures.BY_NAME[name]
        labels = ",".join((CARDS if measure.device else ENGINE, *(f'{k}="{v}"' for k, v in measure.where)))
        metric = formula.prometheus_names(measure, "vllm")[0]
        if rising and name == "waiting":
            add(metric, labels, 0.0, gauge.last / 100)
        elif gauge.low != gauge.high:
            found.append({"series": f"{metric}{{{labels}}}", "values": f"{gauge.low}x{MINUTES - 30} {gauge.last}x30"})
        else:
            add(metric, labels, gauge.last / measure.scale, 0.0)
    for name, value in span.counters.items():
        measure = measures.BY_NAME[name]
        labels = ",".join((CARDS if measure.device else ENGINE, *(f'{k}="{v}"' for k, v in measure.where)))
        add(formula.prometheus_names(measure, "vllm")[0], labels, 0.0, 1.05 * value / minutes / measure.scale)
    for name, histogram in span.histograms.items():
        metric = formula.prometheus_names(measures.BY_NAME[name], "vllm", "")[0]
        for edge, count in histogram.cumulative():
            add(f"{metric}_bucket", f'{ENGINE},le="{"+Inf" if math.isinf(edge) else edge}"', 0.0, count)
        add(f"{metric}_sum", ENGINE, 0.0, histogram.total)
        add(f"{metric}_count", ENGINE, 0.0, histogram.count)
    if "up_fraction" in values:
        add("up", ENGINE, float(values["up_fraction"]), 0.0)
    return found


@pytest.mark.consumers
def test_promtool_reads_the_rules_of_both_engines(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    for engine in ("vllm", "sglang", "atom"):
        path = tmp_path / f"{engine}.yaml"
        path.write_text(yaml_document({"groups": exported(engine=engine).groups}))
        done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"SUCCESS: {len(exported().groups[0]['rules'])} rules found" in done.stdout


@pytest.mark.consumers
def test_promtool_finds_that_each_rule_fires_and_is_silent_in_its_cases(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    given = (GIVEN, alert_rules.of_limits(MEANS))
    told = {document["alert"]: document for each in given for document in exported(each).groups[0]["rules"]}
    files = []
    for rule in RULES:
        if f"AimEngine{rule.name}" not in told:
            continue
        # One file for each rule: promtool evaluates every rule of a file at every step.
        groups = [{"name": "g", "rules": [told[f"AimEngine{rule.name}"]]}]
        (tmp_path / f"{rule.name}.rules.yaml").write_text(yaml_document({"groups": groups}))
        tests: list[dict[str, Any]] = []
        for kind in ("fires", "silent"):
            expected = [{"labels": "{}", "value": 1}] if kind == "fires" else []
            query = f'count(ALERTS{{alertname="AimEngine{rule.name}",alertstate="firing"}})'
            asked = {"expr": query, "eval_time": f"{MINUTES - 20}m", "exp_samples": expected}
            tests.append({"interval": "1m", "input_series": series(rule, kind), "promql_expr_test": [asked]})
        files.append(tmp_path / f"{rule.name}.test.yaml")
        files[-1].write_text(
            json.dumps({"rule_files": [f"{rule.name}.rules.yaml"], "evaluation_interval": "1m", "tests": tests})
        )
    done = subprocess.run(["promtool", "test", "rules", *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(files) >= 22


def burning(percentile: int | None, share: float) -> dict[str, Any]:
    """A test of promtool: of a thousand requests a minute `share` wait for a second where the limit is half of one."""
    found = exported(alert_rules.of_limits(Slo(ttft_ms=500, ttft_percentile=percentile)))
    rules = [
        rule for rule in found.groups[0]["rules"] if rule["alert"].startswith(("AimEngineTtft", "AimEngineTimeTo"))
    ]
    name = "vllm:time_to_first_token_seconds"
    minutes, fast, slow = 420, 1000 * (1 - share), 1000 * share
    rising = {
        f'{name}_bucket{{{ENGINE},le="0.4"}}': fast,
        f'{name}_bucket{{{ENGINE},le="0.5"}}': fast,
        f'{name}_bucket{{{ENGINE},le="1.0"}}': 1000.0,
        f'{name}_bucket{{{ENGINE},le="+Inf"}}': 1000.0,
        f"{name}_sum{{{ENGINE}}}": fast * 0.3 + slow * 1.0,
        f"{name}_count{{{ENGINE}}}": 1000.0,
        f'vllm:request_success_total{{{ENGINE},finished_reason="stop"}}': 1000.0,
    }
    return {
        "rules": {"groups": [{"name": "g", "rules": rules}]},
        "series": [{"series": key, "values": f"0+{step:.12g}x{minutes}"} for key, step in rising.items()],
        "minutes": minutes,
    }


@pytest.mark.consumers
def test_promtool_finds_that_a_limit_on_each_level_has_the_budget_of_that_level(tmp_path: Path) -> None:
    """Of p99 one in a hundred may be late, of p90 ten, of p50 fifty; of a mean it does not matter how many."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    cases: list[tuple[int | None, float, set[str]]] = [
        (99, 0.05, set()),
        (99, 0.07, {"TtftBudgetBurnSlow"}),
        (99, 0.15, {"TtftBudgetBurnSlow", "TtftBudgetBurnFast"}),
        (95, 0.15, set()),
        (95, 0.31, {"TtftBudgetBurnSlow"}),
        (95, 0.73, {"TtftBudgetBurnSlow", "TtftBudgetBurnFast"}),
        (90, 0.55, set()),
        (90, 0.61, {"TtftBudgetBurnSlow"}),
        (90, 0.91, {"TtftBudgetBurnSlow", "TtftBudgetBurnFast"}),
        (50, 0.74, set()),
        (50, 0.76, {"TtftBudgetBurnSlow"}),
        (50, 0.91, {"TtftBudgetBurnSlow", "TtftBudgetBurnFast"}),
        (None, 0.28, set()),
        (None, 0.3, {"TimeToFirstTokenMissed"}),
    ]
    files = []
    for number, (percentile, share, expected) in enumerate(cases):
        case = burning(percentile, share)
        (tmp_path / f"{number}.rules.yaml").write_text(yaml_document(case["rules"]))
        samples = [{"labels": f'{{alertname="AimEngine{name}"}}', "value": 1} for name in sorted(expected)]
        asked = {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{case['minutes'] - 10}m",
            "exp_samples": samples,
        }
        test = {"interval": "1m", "input_series": case["series"], "promql_expr_test": [asked]}
        files.append(tmp_path / f"{number}.test.yaml")
        files[-1].write_text(
            json.dumps({"rule_files": [f"{number}.rules.yaml"], "evaluation_interval": "1m", "tests": [test]})
        )
    done = subprocess.run(["promtool", "test", "rules", *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
