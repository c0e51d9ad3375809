"""Target `keda`: replicas follow the queue and the requests in flight, never GPU utilisation, which is high when all is well."""

from __future__ import annotations

import math
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import pod, serving, signals, text
from aim_engine.render.artifact import Artifact, Options

POLL_S = 15
MIN_COOLDOWN_S = 360
"""Source: vllm-project/production-stack, KEDA example."""
KV_TARGET_FRACTION = 0.8
"""A replica more is started while the others still have blocks for what arrives before it is ready."""


class Keda:
    """A ScaledObject for the Deployment that target `kubernetes` writes."""

    name = "keda"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The file that scales `plan`; see `Target`."""
        kind = "StatefulSet" if options.cache_per_replica else "Deployment"
        recipe = serving.chosen(plan).recipe
        most = _most(plan)
        if not options.prometheus_url.startswith(("http://", "https://")):
            raise InvalidInput(f"'{options.prometheus_url}' is not the address of a Prometheus")
        document = {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": pod.metadata(plan, options),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": options.name},
                "minReplicaCount": recipe.replicas,
                "maxReplicaCount": most,
                "pollingInterval": POLL_S,
                "cooldownPeriod": cooldown_s(plan),
                "advanced": {
                    "horizontalPodAutoscalerConfig": {
                        "behavior": {
                            "scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
                            "scaleDown": {
                                "stabilizationWindowSeconds": min(3600, cooldown_s(plan)),
                                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}],
                            },
                        }
                    }
                },
                "triggers": _triggers(plan, options),
            },
        }
        notes = [
            "Series come from the PodMonitor of target monitoring.",
            f"From {recipe.replicas} to {most} replicas; change it with --set spec.maxReplicaCount=N.",
            "The Deployment's own replicas field must then be left out, or each apply resets the number.",
        ]
        if recipe.replicas == 1 and kind == "Deployment" and not options.model_path:
            notes.append("The cache claim must be ReadWriteMany: plan with replicas, or set its access mode.")
        content = serving.header(plan, self.name, *notes) + text.yaml_document(document)
        return (Artifact(path="scaledobject.yaml", content=content),)


def cooldown_s(plan: Plan) -> int:
    """A replica is kept at least twice as long as it takes to load: stopping it is cheap, missing it is not."""
    return max(MIN_COOLDOWN_S, math.ceil(2 * serving.chosen(plan).estimate.load_s / 60) * 60)


def _most(plan: Plan) -> int:
    """Replicas the planned cluster has devices for, at least one more than planned."""
    recipe = serving.chosen(plan).recipe
    devices = sum(device.gpu == recipe.gpu for device in plan.inputs.cluster.devices)
    return max(recipe.replicas + 1, devices // recipe.parallelism.world_size)


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
        trigger("kv-cache", kv, str(KV_TARGET_FRACTION), "Value"),
    ]
