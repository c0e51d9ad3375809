"""Target `helm`: a chart whose templates are the same for every plan, and values that are the plan.

Nothing of a plan stands in a template, so that no text of it can be taken for one.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

from aim_engine._version import __version__
from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import manifests, serving, text
from aim_engine.render.artifact import Artifact, Options

TEMPLATES = (
    "_helpers.tpl",
    "cache.yaml",
    "files.yaml",
    "networkpolicy.yaml",
    "poddisruptionbudget.yaml",
    "resourceclaimtemplate.yaml",
    "service.yaml",
    "serviceaccount.yaml",
    "workload.yaml",
)
_OF_VALUES = ("name", "image", "imagePullPolicy", "command", "args", "env", "resources")
"""Fields of the container that have a value of their own; the others are together in `container`."""
_LOST_BY_HELM = re.compile("[\x7f-\x9f\ufffe\uffff]")


class Helm:
    """Chart.yaml, values.yaml with its schema, and the templates."""

    name = "helm"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        if options.create_namespace:
            raise InvalidInput("a chart does not hold its own namespace", hint="helm install --create-namespace")
        recipe = serving.chosen(plan).recipe
        chart = {
            "apiVersion": "v2",
            "name": text.dns_label(options.name),
            "description": text.comment([f"{plan.inputs.model.model_id}: {recipe.key}"]).strip("# \n"),
            "type": "application",
            "version": __version__,
            "appVersion": recipe.engine_version,
            "kubeVersion": ">=1.27.0-0",
        }
        known = manifests.notes(plan, options)
        notes = (
            f"helm upgrade --install {options.name} FOLDER --namespace {options.namespace} --wait",
            "Names inside pod.volumes and env are made of fullname: change them together.",
            *known["deployment"],
            *known["cache"],
            *known["networkpolicy"],
        )
        head = serving.header(plan, self.name)
        chosen = _values(plan, options, backend)
        _passes_on(chosen, "values")
        values = serving.header(plan, self.name, *notes) + text.yaml_document(chosen)
        return (
            Artifact(path="Chart.yaml", content=head + text.yaml_document(chart)),
            Artifact(path="values.yaml", content=values),
            Artifact(path="values.schema.json", content=_file("values.schema.json")),
            *(Artifact(path=f"templates/{name}", content=_file(f"templates/{name}")) for name in TEMPLATES),
        )


def _file(name: str) -> str:
    return (resources.files("aim_engine") / "data" / "chart" / name).read_text(encoding="utf-8")


def _passes_on(value: object, where: str) -> None:
    """Refuses text that Helm loses or changes. What it writes goes by way of JSON, which leaves DEL and the C1 controls as they
    are, into a YAML reader that refuses them or takes one for the end of a line. Raises: InvalidInput.
    """
    if isinstance(value, dict):
        for key, entry in value.items():
            _passes_on(key, where)
            _passes_on(entry, f"{where}.{key}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _passes_on(entry, f"{where}[{index}]")
    elif isinstance(value, str) and (lost := _LOST_BY_HELM.search(value)):
        raise InvalidInput(
            f"{where} holds the character U+{ord(lost[0]):04X}, which Helm cannot pass on to Kubernetes",
            hint="take it out, or use target kubernetes or kustomize, which keep it",
        )


def _values(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    objects = manifests.objects(plan, options, backend)
    workload = objects["statefulset" if options.cache_per_replica else "deployment"]
    spec = dict(workload["spec"])
    pod = dict(spec.pop("template")["spec"])
    (container,) = pod.pop("containers")
    templates = spec.pop("volumeClaimTemplates", None)
    replicas = spec.pop("replicas")
    policy = objects["networkpolicy"]["spec"]
    claim, files = objects.get("resourceclaimtemplate"), objects.get("files")
    for field in ("selector", "serviceName"):
        spec.pop(field, None)
    return {
        "fullname": options.name,
        "engine": container["name"],
        "image": container["image"],
        "imagePullPolicy": container["imagePullPolicy"],
        "replicas": replicas,
        "autoscaled": False,
        **({"command": container["command"]} if "command" in container else {}),
        "args": container["args"],
        "extraArgs": [],
        "env": container["env"],
        "extraEnv": [],
        "resources": container["resources"],
        "service": {"type": "ClusterIP", "port": options.port},
        "cache": {
            "claim": objects["cache"]["spec"] if "cache" in objects else None,
            "claimPerReplica": templates[0]["spec"] if templates else None,
        },
        "networkPolicy": {"enabled": True, "ingress": policy["ingress"], "egress": policy["egress"]},
        "deviceClaim": claim["spec"]["spec"] if claim is not None else None,
        "files": {"suffix": files["metadata"]["name"].removeprefix(options.name), "data": files["data"]}
        if files
        else None,
        "labels": text.labels(options.labels),
        "annotations": text.annotation_values(options.annotations),
        "about": {
            key: value for key, value in workload["metadata"]["annotations"].items() if key.startswith("aim-engine/")
        },
        "workload": spec,
        "pod": pod,
        "container": {key: value for key, value in container.items() if key not in _OF_VALUES},
    }
