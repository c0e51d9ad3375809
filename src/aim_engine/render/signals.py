"""What a deployment's metrics are watched for: the series and their limits, as the plan has them.

Series names are those vLLM exports from release 0.9 on (docs/usage/metrics.md) and AMD's device metrics exporter
(docs/configuration/metricslist.md); limits come from the plan's own predictions and the limits it was asked to keep.
"""

from __future__ import annotations

import math
from typing import Any

from aim_engine.planner.plan import Plan
from aim_engine.render import serving, text
from aim_engine.render.artifact import Options

INSTANCE_LABEL = "app_kubernetes_io_instance"
"""The deployment's name on each series, put there by the monitor of target monitoring."""
KV_FULL_FRACTION = 0.95
"""Above it new requests wait for blocks of others. Source: vLLM docs/configuration/optimization.md, preemption."""
KV_TARGET_FRACTION = 0.8
"""A replica more is started while the others still have blocks for what arrives before it is ready."""
KV_SPARE = 1.1
"""Of what the load that was planned for fills, where that is more."""
MIN_COOLDOWN_S = 360
"""Source: vllm-project/production-stack, KEDA example."""
DEFAULT_QUEUE = 5
"""Waiting requests per replica without a time limit. Source: vllm-project/production-stack, KEDA example."""


EXPORTER_ARCHS = ("gfx90a", "gfx942", "gfx950")
"""MI200 and MI300 series and their successors, the cards that AMD's exporter has series of. Source: its list of metrics."""


def has_card_series(plan: Plan) -> bool:
    """AMD's exporter says how the planned cards are."""
    return plan.inputs.gpu.arch in EXPORTER_ARCHS


def selector(options: Options) -> str:
    """Label matchers of the deployment's series."""
    return f'namespace="{text.dns_label(options.namespace, "namespace")}",{INSTANCE_LABEL}="{text.dns_label(options.name)}"'


def card_selector(options: Options) -> str:
    """Label matchers of the series that AMD's exporter has of the deployment's cards."""
    return f'namespace="{text.dns_label(options.namespace, "namespace")}",pod=~"{text.dns_label(options.name)}-.*"'


def queue_per_replica(plan: Plan) -> int:
    """Requests that may wait at a replica while new ones still keep the time-to-first-token limit.

    What the limit leaves beyond the predicted time, times the rate at which a replica finishes requests; at least 1.
    """
    candidate, limit = serving.chosen(plan), plan.inputs.slo.ttft_ms
    if limit is None:
        return DEFAULT_QUEUE
    spare_s = max(0.0, limit - candidate.estimate.ttft_ms.value) / 1000
    return max(1, math.floor(spare_s * candidate.estimate.requests_s.value / candidate.recipe.replicas))


def running_per_replica(plan: Plan) -> int:
    """Requests in flight at a replica at the load that was planned for."""
    candidate = serving.chosen(plan)
    return max(1, candidate.estimate.concurrency // candidate.recipe.replicas)


def kv_target_fraction(plan: Plan) -> float:
    """Share of the KV cache in use above which a replica more is started: never at the load that was planned for.

    A request in flight holds its prompt and, on average, half of its answer.
    """
    candidate, workload = serving.chosen(plan), plan.inputs.workload
    held = running_per_replica(plan) * (workload.input_tokens + workload.output_tokens / 2)
    planned = held / max(1, candidate.estimate.memory.kv_cache_tokens)
    return round(min(KV_FULL_FRACTION, max(KV_TARGET_FRACTION, KV_SPARE * planned)), 2)


def cooldown_s(plan: Plan) -> int:
    """A replica is kept at least twice as long as it takes to load: stopping it is cheap, missing it is not."""
    return max(MIN_COOLDOWN_S, math.ceil(2 * serving.chosen(plan).estimate.load_s / 60) * 60)


def most_replicas(plan: Plan) -> int:
    """Replicas the planned cluster has devices for, at least one more than planned."""
    recipe = serving.chosen(plan).recipe
    devices = sum(device.gpu == recipe.gpu for device in plan.inputs.cluster.devices)
    return max(recipe.replicas + 1, devices // recipe.parallelism.world_size)


def behavior(plan: Plan) -> dict[str, Any]:
    """How fast an autoscaler may act: one replica at a time, down only when it was not needed for a while."""
    return {
        "scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
        "scaleDown": {
            "stabilizationWindowSeconds": min(3600, cooldown_s(plan)),
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}],
        },
    }


def scaling_notes(plan: Plan, options: Options, field: str) -> list[str]:
    """What to know of an autoscaler whose upper bound is at `field`."""
    recipe = serving.chosen(plan).recipe
    notes = [
        "Series come from the monitor of target monitoring.",
        f"From {recipe.replicas} to {most_replicas(plan)} replicas; change it with --set {field}=N.",
        "The Deployment's own replicas field must then be left out, or each apply resets the number.",
    ]
    if recipe.replicas == 1 and not options.cache_per_replica and not options.model_path:
        notes.append("The cache claim must be ReadWriteMany: plan with replicas, or set its access mode.")
    return notes
