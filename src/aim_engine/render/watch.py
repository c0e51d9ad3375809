"""What a deployment is warned of and shown by: alerting rules and a Grafana dashboard, for every place that runs them."""

from __future__ import annotations

from typing import Any

from aim_engine.planner.plan import Plan
from aim_engine.render import alert_rules, rulefile, serving, signals
from aim_engine.render.artifact import Options

_KNOWS_REPLICAS = ("EngineDown", "ReplicaDown")
"""Rules that `AimEngineReplicaMissing` is there for: it knows how many replicas there should be and how long a start takes."""


def rules(plan: Plan, options: Options) -> dict[str, Any]:
    """Alerting rules, as a Prometheus rule file has them: the catalogue's, and those that only this deployment's plan can give."""
    own, cards = signals.selector(options), signals.has_card_series(plan)
    recipe = serving.chosen(plan).recipe
    given = alert_rules.of_limits(plan.inputs.slo) | {
        "gpus": float(recipe.gpu_count),
        "replicas": float(recipe.replicas),
        "max_num_seqs": float(recipe.max_num_seqs),
        "max_num_batched_tokens": float(recipe.max_num_batched_tokens),
    }
    exported = rulefile.export(
        [
            rule
            for rule in (alert_rules.load() if options.rules is None else options.rules)
            if rule.name not in _KNOWS_REPLICAS and (cards or rule.scope != "card")
        ],
        deployment=options.name,
        selector=own,
        devices=signals.card_selector(options),
        parameters=given,
    )
    missing = _rule(
        "AimEngineReplicaMissing",
        f"(sum(up{{{own}}}) or vector(0)) < {recipe.replicas}",
        f"{serving.startup_s(plan, options)}s",
        "critical",
        options,
        f"{{{{ $value }}}} of {recipe.replicas} replicas, for longer than a start takes",
    )
    (group,) = exported.groups
    name = f"aim-engine.{options.namespace}.{options.name}"
    return {"groups": [{"name": name, "rules": [missing, *group["rules"]]}]}


def _rule(name: str, expression: str, patience: str, severity: str, options: Options, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": patience,
        "labels": {"severity": severity, "deployment": options.name},
        "annotations": {"summary": f"{options.name}: {summary}"},
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
        gpu = signals.card_selector(options)
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
