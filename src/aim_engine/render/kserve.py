"""Target `kserve`: an InferenceService whose predictor is the engine's own pod, without Knative."""

from __future__ import annotations

from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import manifests, pod, serving, text
from aim_engine.render.artifact import Artifact, Options

MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
"""Source: kserve/kserve pkg/constants/constants.go."""


class Kserve:
    """The InferenceService with the account, cache volume and network policy of its pods."""

    name = "kserve"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        serving.on_one_host(plan)
        if options.cache_per_replica:
            raise InvalidInput("KServe makes Deployments, not StatefulSets", hint="drop --cache-per-replica")
        found = manifests.before(plan, options)
        found["inferenceservice"] = _service(plan, options, backend)
        found["networkpolicy"] = manifests.network_policy(plan, options)
        known = manifests.notes(plan, options)
        own = (
            f"KServe makes the Service {options.name}-predictor, which clients use on port 80.",
            "It never scales to zero: a start takes minutes. Scale with target keda on the series of target monitoring.",
        )
        notes = {**known, "inferenceservice": (*own, *known["deployment"])}
        return tuple(
            Artifact(
                path=f"{file}.yaml",
                content=serving.header(plan, self.name, *notes.get(file, ())) + text.yaml_document(document),
            )
            for file, document in found.items()
        )


def _service(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    recipe = serving.chosen(plan).recipe
    template = pod.template(plan, options, backend)
    template["spec"]["containers"][0]["name"] = "kserve-container"
    meta = manifests.workload_metadata(plan, options)
    meta["annotations"] = {MODE: "RawDeployment", AUTOSCALER: "none", **meta["annotations"]}
    shown = {"annotations": template["metadata"]["annotations"]} if "annotations" in template["metadata"] else {}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": meta,
        "spec": {
            "predictor": {
                "labels": template["metadata"]["labels"],
                **shown,
                "minReplicas": recipe.replicas,
                "maxReplicas": recipe.replicas,
                "deploymentStrategy": manifests.STRATEGY,
                **template["spec"],
            }
        },
    }
