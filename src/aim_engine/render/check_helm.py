"""Values of a chart that target `helm` wrote, changed by somebody: their schema, and the objects they would become."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_kubernetes
from aim_engine.render.document import get, mapping, schema_path
from aim_engine.render.findings import error, info

_OWN = {"fullname", "engine", "image", "pod", "container", "workload"}
MAX_ERRORS = 20


def is_values(document: object) -> bool:
    """`document` holds the values of such a chart."""
    return isinstance(document, dict) and set(document) >= _OWN


def check(values: dict[str, Any], backend: Backend, version: str | None = None) -> tuple[Finding, ...]:
    """Everything wrong or risky about the values. `version` overrides the image's release.

    What their schema refuses is not looked at further, as Helm would not either.
    """
    found = _schema(values)
    if any(finding.severity == "error" for finding in found):
        return found
    return (*found, *check_kubernetes.check([*objects(values), *_budget(values)], backend, version))


def _schema(values: dict[str, Any]) -> tuple[Finding, ...]:
    try:
        import jsonschema
    except ImportError:
        message = "the schema of the values was not checked: the package jsonschema is not installed"
        return (info("MAN000", message, "pip install 'aim-engine[kubernetes]'", "values"),)
    schema = json.loads((resources.files("aim_engine") / "data/chart/values.schema.json").read_text(encoding="utf-8"))
    wrong = sorted(jsonschema.Draft7Validator(schema).iter_errors(values), key=lambda each: list(map(str, each.path)))
    return tuple(
        error("MAN003", each.message[:240], "", f"values: {schema_path(list(each.absolute_path)) or 'the file'}")
        for each in wrong[:MAX_ERRORS]
    )


def _budget(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The budget of disruptions that the chart writes for several replicas."""
    name = str(values["fullname"])
    labels = {"app.kubernetes.io/name": "aim-engine", "app.kubernetes.io/instance": name}
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name},
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": labels},
        },
    }
    return [budget] if values["replicas"] > 1 else []


def objects(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The workload, its volume claim and its Service, as the chart's templates put them together."""
    name = str(values["fullname"])
    labels = {"app.kubernetes.io/name": "aim-engine", "app.kubernetes.io/instance": name}
    container = {
        "name": values["engine"],
        **{key: values[key] for key in ("image", "imagePullPolicy", "command", "resources") if key in values},
        "args": [*values["args"], *values.get("extraArgs", ())],
        "env": [*values.get("env", ()), *values.get("extraEnv", ())],
        **values["container"],
    }
    per_replica = get(values, "cache", "claimPerReplica")
    template = {
        "metadata": {"labels": {**labels, **mapping(values.get("labels"))}},
        "spec": {**values["pod"], "containers": [container]},
    }
    workload: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet" if per_replica else "Deployment",
        "metadata": {"name": name},
        "spec": {
            **({} if values.get("autoscaled") else {"replicas": values["replicas"]}),
            "selector": {"matchLabels": labels},
            **mapping(values["workload"]),
            "template": template,
        },
    }
    if per_replica:
        claims = [{"metadata": {"name": "cache"}, "spec": per_replica}]
        workload["spec"] |= {"serviceName": f"{name}-pods", "volumeClaimTemplates": claims}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "type": values["service"].get("type", "ClusterIP"),
            "selector": labels,
            "ports": [{"name": "http", "port": values["service"].get("port"), "targetPort": "http"}],
        },
    }
    claim = get(values, "cache", "claim")
    made = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": f"{name}-cache"}, "spec": claim}
    return [workload, service, *([made] if claim else [])]
