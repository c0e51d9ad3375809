"""Target `keda`: replicas follow the queue and the requests in flight, never GPU utilisation, which is high when all is well."""

from __future__ import annotations

from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import pod, serving, signals, text
from aim_engine.render.artifact import Artifact, Options

POLL_S = 15


class Keda:
    """A ScaledObject for the Deployment that target `kubernetes` writes."""

    name = "keda"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The file that scales `plan`; see `Target`."""
        kind = "StatefulSet" if options.cache_per_replica else "Deployment"
        if not options.prometheus_url.startswith(("http://", "https://")):
            raise InvalidInput(f"'{options.prometheus_url}' is not the address of a Prometheus")
        document = {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": pod.metadata(plan, options),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": options.name},
                "minReplicaCount": serving.chosen(plan).recipe.replicas,
                "maxReplicaCount": signals.most_replicas(plan),
                "pollingInterval": POLL_S,
                "cooldownPeriod": signals.cooldown_s(plan),
                "advanced": {"horizontalPodAutoscalerConfig": {"behavior": signals.behavior(plan)}},
                "triggers": _triggers(plan, options),
            },
        }
        notes = signals.scaling_notes(plan, options, "spec.maxReplicaCount")
        content = serving.header(plan, self.name, *notes) + text.yaml_document(document)
        return (Artifact(path="scaledobject.yaml", content=content),)


def _triggers(plan: Plan, options: Options) -> list[dict[str, Any]]:
    own = signals.selector(options)

    def trigger(name: str, query: str, threshold: str, metric: str) -> dict[str, Any]:
        metadata = {"serverAddress": options.prometheus_url, "query": query, "threshold": threshold}
        return {"type": "prometheus", "name": name, "metricType": metric, "metadata": metadata}

    queue, running = signals.queue_per_replica(plan), signals.running_per_replica(plan)
    kv = f"avg(vllm:kv_cache_usage_perc{{{own}}})"
    return [
        trigger("queue", f"sum(vllm:num_requests_waiting{{{own}}})", str(queue), "AverageValue"),
        trigger("running", f"sum(vllm:num_requests_running{{{own}}})", str(running), "AverageValue"),
        trigger("kv-cache", kv, str(signals.kv_target_fraction(plan)), "Value"),
    ]
