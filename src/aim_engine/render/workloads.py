"""Where the pods of an object stand: in the kinds that Kubernetes has, and in those of the operators that serve models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from aim_engine.render.document import get

BUILT_IN = {
    "Pod": ("spec",),
    "Deployment": ("spec.template.spec",),
    "ReplicaSet": ("spec.template.spec",),
    "StatefulSet": ("spec.template.spec",),
    "DaemonSet": ("spec.template.spec",),
    "Job": ("spec.template.spec",),
    "CronJob": ("spec.jobTemplate.spec.template.spec",),
}
_RAY = ("headGroupSpec.template.spec", "workerGroupSpecs[].template.spec")
OPERATORS = {
    ("leaderworkerset.x-k8s.io", "LeaderWorkerSet"): (
        "spec.leaderWorkerTemplate.leaderTemplate.spec",
        "spec.leaderWorkerTemplate.workerTemplate.spec",
    ),
    ("ray.io", "RayCluster"): tuple(f"spec.{path}" for path in _RAY),
    ("ray.io", "RayService"): tuple(f"spec.rayClusterConfig.{path}" for path in _RAY),
    ("ray.io", "RayJob"): tuple(f"spec.rayClusterSpec.{path}" for path in _RAY),
    ("serving.kserve.io", "InferenceService"): ("spec.predictor", "spec.transformer"),
    ("serving.kserve.io", "LLMInferenceService"): (
        "spec.template",
        "spec.worker",
        "spec.prefill.template",
        "spec.prefill.worker",
    ),
    ("jobset.x-k8s.io", "JobSet"): ("spec.replicatedJobs[].template.spec.template.spec",),
    ("argoproj.io", "Rollout"): ("spec.template.spec",),
}
"""(API group, kind) -> paths to pod specs. Source: the projects' CustomResourceDefinitions."""
_COMPLETED = ("InferenceService", "LLMInferenceService")
"""Kinds whose pods get what they lack from a runtime or preset of the cluster."""


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """A pod that an object makes."""

    spec: Any
    """Whatever stands there, a mapping when it is right."""
    path: str
    """Where it stands, empty in the kinds that have one pod in one place."""
    complete: bool = True
    """All that it will have is written down."""
    starts: tuple[str, ...] | None = None
    """What the operator starts in a container without a command; None leaves that to the image."""


def pods(manifest: dict[str, Any]) -> Iterator[Pod]:
    """The pods that `manifest` is or makes."""
    kind, api = manifest.get("kind"), manifest.get("apiVersion")
    if not isinstance(kind, str):
        return
    for path in BUILT_IN.get(kind, ()):
        yield Pod(spec=get(manifest, *path.split(".")), path="")
    group = api.partition("/")[0] if isinstance(api, str) else ""
    for path in OPERATORS.get((group, kind), ()):
        for place, spec in _at(manifest, path):
            starts = ("ray", "start") if group == "ray.io" else None
            yield Pod(spec=spec, path=place, complete=kind not in _COMPLETED, starts=starts)


def _at(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings at `path`, each with its place; `name[]` stands for every entry of a list."""
    head, found, rest = path.partition("[].")
    holder = get(value, *head.split("."))
    if not found:
        if isinstance(holder, dict):
            yield head, holder
        return
    for index, entry in enumerate(holder if isinstance(holder, list) else []):
        for below, spec in _at(entry, rest):
            yield f"{head}[{index}].{below}", spec
