"""Target `hpa`: a HorizontalPodAutoscaler on the queue, for clusters that have prometheus-adapter and not KEDA."""

from __future__ import annotations

from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.planner.plan import Plan
from aim_engine.render import pod, serving, signals, text
from aim_engine.render.artifact import Artifact, Options

_SERIES = ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc")


class Hpa:
    """The autoscaler, and the adapter's rules that bring it the engine's series."""

    name = "hpa"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that scale `plan`; see `Target`."""
        kind = "StatefulSet" if options.cache_per_replica else "Deployment"
        targets = (
            str(signals.queue_per_replica(plan)),
            str(signals.running_per_replica(plan)),
            f"{round(1000 * signals.kv_target_fraction(plan))}m",
        )
        document = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": pod.metadata(plan, options),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": options.name},
                "minReplicas": serving.chosen(plan).recipe.replicas,
                "maxReplicas": signals.most_replicas(plan),
                "metrics": [
                    {
                        "type": "Pods",
                        "pods": {
                            "metric": {"name": _metric(series)},
                            "target": {"type": "AverageValue", "averageValue": target},
                        },
                    }
                    for series, target in zip(_SERIES, targets, strict=True)
                ],
                "behavior": signals.behavior(plan),
            },
        }
        notes = [
            "The metrics come through prometheus-adapter: adapter/values.yaml holds its rules, as values of its chart.",
            *signals.scaling_notes(plan, options, "hpa.spec.maxReplicas"),
        ]
        rules = {"rules": {"custom": [_rule(series, options) for series in _SERIES]}}
        use = ("Values of the chart prometheus-adapter; add the rules to those it has.",)
        return (
            Artifact(path="hpa.yaml", content=serving.header(plan, self.name, *notes) + text.yaml_document(document)),
            Artifact(
                path="adapter/values.yaml", content=serving.header(plan, self.name, *use) + text.yaml_document(rules)
            ),
        )


def _metric(series: str) -> str:
    """Names in paths of the metrics API have no colon."""
    return series.replace(":", "_")


def _rule(series: str, options: Options) -> dict[str, Any]:
    return {
        "seriesQuery": f"{series}{{{signals.selector(options)}}}",
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"as": _metric(series)},
        "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
    }
