"""Target `kubernetes`: plain manifests, for `kubectl apply` or whatever keeps a cluster at what a repository says."""

from __future__ import annotations

from aim_engine.backend.base import Backend
from aim_engine.planner.plan import Plan
from aim_engine.render import manifests, serving, text
from aim_engine.render.artifact import Artifact, Options


class Kubernetes:
    """The workload with its account, cache volume, Service, network policy and, with replicas, disruption budget."""

    name = "kubernetes"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        notes = manifests.notes(plan, options)
        return tuple(
            Artifact(
                path=f"{file}.yaml",
                content=serving.header(plan, self.name, *notes.get(file, ())) + text.yaml_document(document),
            )
            for file, document in manifests.objects(plan, options, backend).items()
        )
