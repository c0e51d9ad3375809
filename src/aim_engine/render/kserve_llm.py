"""Target `kserve-llm`: an LLMInferenceService, KServe's own kind for language models, routed by what each replica has cached."""

from __future__ import annotations

from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import manifests, pod, serving, text
from aim_engine.render.artifact import Artifact, Options


class KserveLlm:
    """The LLMInferenceService with the account, cache volume and network policy of its pods."""

    name = "kserve-llm"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        serving.on_one_host(plan)
        if options.cache_per_replica:
            raise InvalidInput("KServe makes Deployments, not StatefulSets", hint="drop --cache-per-replica")
        found = manifests.before(plan, options)
        found["llminferenceservice"] = _service(plan, options, backend)
        found["networkpolicy"] = manifests.network_policy(plan, options)
        known = manifests.notes(plan, options)
        own = (
            "Needs KServe 0.17 or newer with its gateway; the route and the endpoint picker are KServe's.",
            "Pods answer in plain HTTP: presets of the cluster that ask for TLS inside it must be told so.",
            "The gateway's namespace sends the requests, so it is the one to label.",
        )
        notes = {**known, "llminferenceservice": (*own, *known["deployment"])}
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
    container = template["spec"]["containers"][0]
    # The cluster's presets have a container of this name, with a command and probes of their own to be replaced.
    container["name"] = "main"
    if "command" not in container:
        entrypoint = serving.image(plan, options, backend).entrypoint
        container["command"] = [text.no_expansion(word) for word in entrypoint]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        container[probe]["httpGet"]["scheme"] = "HTTP"
    shown = {"annotations": template["metadata"]["annotations"]} if "annotations" in template["metadata"] else {}
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": manifests.workload_metadata(plan, options),
        "spec": {
            "model": {"uri": f"hf://{recipe.model_id}", "name": recipe.model_id},
            # The engine fetches into the cache volume once; an initialiser would fetch for every pod and every start.
            "storageInitializer": {"enabled": False},
            "replicas": recipe.replicas,
            "labels": template["metadata"]["labels"],
            **shown,
            "parallelism": {"tensor": recipe.parallelism.tp},
            "router": {"gateway": {}, "route": {}, "scheduler": {}},
            "template": template["spec"],
        },
    }
