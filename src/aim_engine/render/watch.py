"""What a deployment is warned of and shown by: alerting rules and a Grafana dashboard, for every place that runs them."""

from __future__ import annotations

from typing import Any

from aim_engine.planner.plan import Plan
from aim_engine.render import serving, signals
from aim_engine.render.artifact import Options

_LIMITED = {
    "ttft": ("TimeToFirstToken", "vllm:time_to_first_token_seconds"),
    "tpot": ("TimePerOutputToken", "vllm:request_time_per_output_token_seconds"),
    "e2e": ("RequestTime", "vllm:e2e_request_latency_seconds"),
}
"""A limit of the plan -> what its rule is called, and the series it is on, all of them over requests."""


def rules(plan: Plan, options: Options) -> dict[str, Any]:
    """Alerting rules, as a Prometheus rule file has them."""
    own, recipe, slo = signals.selector(options), serving.chosen(plan).recipe, plan.inputs.slo
    patience = f"{serving.startup_s(plan, options)}s"
    queue = signals.queue_per_replica(plan) * recipe.replicas
    finished = f"vllm:request_success_total{{{own}}}"
    failed = f'vllm:request_success_total{{{own},finished_reason="error"}}'
    found = [
        _rule(
            "AimEngineReplicaMissing",
            f"(sum(up{{{own}}}) or vector(0)) < {recipe.replicas}",
            patience,
            "critical",
            f"{options.name} has {{{{ $value }}}} of {recipe.replicas} replicas, for longer than a start takes",
        ),
        _rule(
            "AimEngineQueueGrows",
            f"sum(vllm:num_requests_waiting{{{own}}}) > {queue}",
            "10m",
            "warning",
            f"{{{{ $value }}}} requests wait at {options.name}; with more than {queue} new ones answer too late",
        ),
        _rule(
            "AimEngineKvCacheFull",
            f"max(vllm:kv_cache_usage_perc{{{own}}}) > {signals.KV_FULL_FRACTION}"
            f" and on() sum(rate(vllm:num_preemptions_total{{{own}}}[5m])) > 0",
            "10m",
            "warning",
            f"the KV cache of {options.name} is full and requests are computed again: fewer at once, or more replicas",
        ),
        _rule(
            "AimEngineRequestsFail",
            f"sum(rate({failed}[5m])) / sum(rate({finished}[5m])) > 0.01",
            "5m",
            "critical",
            f"more than one request in a hundred ends in an error at {options.name}",
        ),
    ]
    for limit in slo.limits:
        name, series = _LIMITED[limit.name]
        limit_s = f"{limit.ms / 1000:g}"
        figure = signals.mean_s(series, options)
        told = "the mean"
        if limit.percentile is not None:
            figure = f"histogram_quantile({limit.percentile / 100:g}, sum by (le) (rate({series}_bucket{{{own}}}[5m])))"
            told = f"p{limit.percentile}"
        found.append(
            _rule(
                f"AimEngine{name}Missed",
                f"{figure} > {limit_s}",
                "10m",
                "warning",
                f"{told} of {options.name} is {{{{ $value }}}} s, the limit it was planned for is {limit_s} s",
            )
        )
    if signals.has_card_series(plan):
        found.append(
            _rule(
                "AimEngineGpuMemoryErrors",
                f'increase(gpu_ecc_uncorrect_total{{namespace="{options.namespace}",pod=~"{options.name}-.*"}}[1h]) > 0',
                "0s",
                "critical",
                "GPU {{ $labels.gpu_id }} of {{ $labels.hostname }} had uncorrectable memory errors: drain the node",
            )
        )
    return {"groups": [{"name": f"aim-engine.{options.namespace}.{options.name}", "rules": found}]}


def _rule(name: str, expression: str, patience: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": patience,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def panels(plan: Plan, options: Options) -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """(title, Grafana unit, (legend, PromQL) ...) of each panel."""
    own = signals.selector(options)

    def rate(series: str) -> str:
        return f"sum(rate({series}{{{own}}}[5m]))"

    def quantiles(series: str) -> tuple[tuple[str, str], ...]:
        shares = (("p50", "0.5"), ("p95", "0.95"), ("p99", "0.99"))
        return tuple(
            (name, f"histogram_quantile({share}, sum by (le) (rate({series}_bucket{{{own}}}[5m])))")
            for name, share in shares
        )

    found: list[tuple[str, str, tuple[tuple[str, str], ...]]] = [
        ("Time to first token", "s", quantiles("vllm:time_to_first_token_seconds")),
        ("Time per output token", "s", quantiles("vllm:inter_token_latency_seconds")),
        ("Whole request", "s", quantiles("vllm:e2e_request_latency_seconds")),
        (
            "Tokens per second",
            "short",
            (("in", rate("vllm:prompt_tokens_total")), ("out", rate("vllm:generation_tokens_total"))),
        ),
        (
            "Requests",
            "short",
            (
                ("running", f"sum(vllm:num_requests_running{{{own}}})"),
                ("waiting", f"sum(vllm:num_requests_waiting{{{own}}})"),
            ),
        ),
        ("KV cache in use", "percentunit", (("{{pod}}", f"vllm:kv_cache_usage_perc{{{own}}}"),)),
        ("Preemptions per second", "short", (("all", rate("vllm:num_preemptions_total")),)),
        ("Replicas up", "short", (("up", f"sum(up{{{own}}})"),)),
    ]
    if signals.has_card_series(plan):
        gpu = f'namespace="{options.namespace}",pod=~"{options.name}-.*"'
        name = "{{hostname}} {{gpu_id}}"
        found += [
            ("GPU activity", "percent", ((name, f"gpu_gfx_activity{{{gpu}}}"),)),
            ("GPU memory in use", "mbytes", ((name, f"gpu_used_vram{{{gpu}}}"),)),
            ("GPU power", "watt", ((name, f"gpu_package_power{{{gpu}}} or gpu_average_package_power{{{gpu}}}"),)),
            (
                "GPU temperature",
                "celsius",
                ((name, f"gpu_junction_temperature{{{gpu}}} or gpu_edge_temperature{{{gpu}}}"),),
            ),
        ]
    return found


def dashboard(plan: Plan, options: Options) -> dict[str, Any]:
    """A Grafana dashboard: what clients feel, what the engine does, what the cards do."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    shown = [
        {
            "id": index + 1,
            "type": "timeseries",
            "title": title,
            "datasource": source,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(65 + place), "datasource": source, "expr": expression, "legendFormat": legend}
                for place, (legend, expression) in enumerate(queries)
            ],
        }
        for index, (title, unit, queries) in enumerate(panels(plan, options))
    ]
    return {
        "uid": f"aim-{options.name}"[:40],
        "title": f"{options.name}: {plan.inputs.model.model_id}",
        "tags": ["aim-engine"],
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": shown,
    }
