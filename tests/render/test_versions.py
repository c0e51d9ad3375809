"""Every object we write against the strict schemas of the three newest Kubernetes versions."""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any

import pytest
import yaml

import plans
from aim_engine.errors import InvalidInput
from aim_engine.render.artifact import Options
from aim_engine.render.targets import TARGETS, render

kubernetes_validate = pytest.importorskip("kubernetes_validate")
NEWEST = list(dict.fromkeys(kubernetes_validate.utils.all_versions()))[-3:]  # in order, each once
BUILT_IN = re.compile(r"v1|(apps|batch|policy|autoscaling)/v[0-9]|[a-z]+[.]k8s[.]io/v1")
"""The groups that a cluster has without any operator."""
NOT_OF_A_CLUSTER = {"env", "shell", "systemd", "slurm", "docker", "compose", "podman", "helm", "kustomize"}
"""Write no object, or those of target kubernetes."""
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"render_gid": 109, "dra": True, "priority_class": "high", "api_key_secret": True, "create_namespace": True},
    {"cache_per_replica": True, "labels": {"team": "nlp"}, "annotations": {"note": "x"}},
    {"files": {"/templates/chat.jinja": "x"}},
    {"model_path": "/srv/m", "volumes": ("claim/data:/data:ro", "/a:/b")},
)


@functools.cache
def objects() -> dict[str, dict[str, Any]]:
    """Every different built-in object of all targets, plans and changes, by its content."""
    found = {}
    for target in sorted(set(TARGETS) - NOT_OF_A_CLUSTER):
        for case, make in {**plans.ALL, **plans.FURTHER}.items():
            for change in CHANGES if case in ("mixture-2x2xmi355x", "small-4xcpx") else CHANGES[:1]:
                try:
                    files = render(make(), target, Options(name="demo", image="registry.local/vllm:v1", **change))
                except InvalidInput:
                    continue
                for file in files:
                    if not file.is_yaml:
                        continue
                    document = yaml.load(file.content, Loader=yaml.CSafeLoader)
                    if BUILT_IN.fullmatch(str(document.get("apiVersion"))) and "kind" in document:
                        found[json.dumps(document, sort_keys=True)] = document
    return found


@functools.cache
def validator(version: str, kind: str, api: str) -> Any:
    """The strict schema as the package would read it for each object anew, which takes a quarter of a second."""
    import jsonschema
    import referencing

    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    schema = json.loads((folder / f"{kind.lower()}-{group}.json").read_text())
    definitions = json.loads((folder / "_definitions.json").read_text())
    contents = [referencing.Resource.from_contents(entry) for entry in (schema, definitions)]
    registry: Any = referencing.Registry()
    for entry in contents:
        registry = entry @ registry
    return jsonschema.validators.Draft202012Validator(schema, registry=registry)


def problems(document: dict[str, Any], version: str) -> list[str]:
    found = validator(version, document["kind"], document["apiVersion"]).iter_errors(document)
    return [f"{document['kind']} {list(error.absolute_path)}: {error.message[:200]}" for error in found]


@pytest.mark.parametrize("version", NEWEST)
def test_every_object_passes_the_strict_schema(version: str) -> None:
    checked = objects()
    kinds = {document["kind"] for document in checked.values()}
    assert {"Deployment", "StatefulSet", "HorizontalPodAutoscaler", "ResourceClaimTemplate", "NetworkPolicy"} <= kinds
    for document in checked.values():
        assert problems(document, version) == []


@pytest.mark.parametrize("version", NEWEST)
def test_a_field_that_is_not_there_is_noticed_in_every_kind(version: str) -> None:
    for document in {entry["kind"]: entry for entry in objects().values()}.values():
        assert problems({**document, "unknownField": 1}, version)
