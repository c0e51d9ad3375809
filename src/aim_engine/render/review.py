"""Artifacts as the checks see them before anything reads them for real: schemas, manifest rules, the engine's own arguments."""

from __future__ import annotations

from collections.abc import Sequence

from aim_engine.backend.base import Backend
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_command, check_compose, check_helm, check_kubernetes, document
from aim_engine.render.artifact import Artifact


def is_about_files(artifact: Artifact, entry: object) -> bool:
    """Read by a tool that puts files together, and no object of a cluster: a chart's files, a kustomization, values of a chart."""
    api = entry.get("apiVersion") if isinstance(entry, dict) else None
    return artifact.path in ("Chart.yaml", "values.yaml", "adapter/values.yaml") or str(api).startswith(
        "kustomize.config.k8s.io/"
    )


def check(artifacts: Sequence[Artifact], backend: Backend, version: str | None = None) -> tuple[Finding, ...]:
    """What is wrong with the scripts, Compose files and manifests; manifests together, since they refer to each other.

    `version` overrides the engine release that images name. Raises: InvalidInput for YAML that cannot be read.
    """
    found: list[Finding] = []
    manifests = []
    for artifact in artifacts:
        if artifact.is_yaml:
            documents, repeated = document.read(artifact.content, artifact.path)
            found += repeated
            for entry in documents:
                if check_helm.is_values(entry):
                    found += check_helm.check(entry, backend, version)
                if is_about_files(artifact, entry):
                    continue
                if check_compose.is_compose(entry):
                    found += check_compose.check(entry, backend, version)
                elif isinstance(entry, dict) and "apiVersion" in entry:
                    manifests.append(entry)
        elif artifact.path.endswith(".sh"):
            found += check_command.check(artifact.content, backend, version)
    if manifests:
        found += check_kubernetes.check(manifests, backend, version)
    return tuple(dict.fromkeys(found))
