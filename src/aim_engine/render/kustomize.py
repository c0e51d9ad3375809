"""Target `kustomize`: the plain manifests as a base, and overlays for the ways they are commonly changed."""

from __future__ import annotations

from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.planner.plan import Plan
from aim_engine.render import manifests, serving, text
from aim_engine.render.artifact import Artifact, Options

API = "kustomize.config.k8s.io/v1beta1"


class Kustomize:
    """A base of the objects, an overlay for a trial, one for autoscaling and one for nodes without a way out."""

    name = "kustomize"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        notes = manifests.notes(plan, options)
        objects = manifests.objects(plan, options, backend)
        found = [
            Artifact(
                path=f"base/{file}.yaml",
                content=serving.header(plan, self.name, *notes.get(file, ())) + text.yaml_document(document),
            )
            for file, document in objects.items()
        ]
        found.insert(0, self._kustomization(plan, "base", "", {"resources": [f"{file}.yaml" for file in objects]}))
        for overlay, (why, patches) in _overlays(plan, options).items():
            content = {"resources": ["../../base"], "patches": patches}
            found.append(self._kustomization(plan, f"overlays/{overlay}", why, content))
        return tuple(found)

    def _kustomization(self, plan: Plan, folder: str, why: str, content: dict[str, Any]) -> Artifact:
        document = {"apiVersion": API, "kind": "Kustomization", **content}
        head = serving.header(plan, self.name, *([why] if why else []))
        return Artifact(path=f"{folder}/kustomization.yaml", content=head + text.yaml_document(document))


def _overlays(plan: Plan, options: Options) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Overlay -> what it is for, and its patches."""
    kind = "StatefulSet" if options.cache_per_replica else "Deployment"
    found = {
        "autoscaled": (
            "Leaves the number of replicas to an autoscaler: target keda or hpa writes one.",
            [_patch(kind, options.name, [{"op": "remove", "path": "/spec/replicas"}])],
        )
    }
    if serving.chosen(plan).recipe.replicas > 1:
        one = [{"op": "replace", "path": "/spec/replicas", "value": 1}]
        budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "$patch": "delete"}
        budget["metadata"] = {"name": options.name}  # type: ignore[assignment]
        found["trial"] = (
            "One replica, to try the recipe on part of the hardware; a budget for one would block every drain.",
            [_patch(kind, options.name, one), {"patch": text.yaml_document(budget)}],
        )
    if not options.offline and not options.model_path and not options.cache_per_replica:
        own = [
            {"op": "add", "path": "/spec/template/spec/containers/0/env/-", "value": {"name": name, "value": "1"}}
            for name in ("HF_HUB_OFFLINE", *(("VLLM_NO_USAGE_STATS",) if plan.inputs.engine == "vllm" else ()))
        ]
        closed = [{"op": "replace", "path": "/spec/egress", "value": []}]
        found["offline"] = (
            "For a cache volume that target job has filled: no way out of the pod.",
            [_patch(kind, options.name, own), _patch("NetworkPolicy", options.name, closed)],
        )
    return dict(sorted(found.items()))


def _patch(kind: str, name: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
    lines = text.yaml_document({"patch": operations}).splitlines(keepends=True)[1:]
    written = "".join(line[2:] for line in lines)
    return {"target": {"kind": kind, "name": name}, "patch": written}
