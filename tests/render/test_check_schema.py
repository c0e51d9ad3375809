"""What happens without the optional packages: a note with what to install, and our own rules go on."""

from __future__ import annotations

import sys

import pytest
import yaml

import plans
from aim_engine import backend
from aim_engine.render import check_compose, check_kubernetes, check_schema
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

ENGINE = backend.get("vllm")


def test_without_the_kubernetes_schemas_the_extra_is_named_and_types_are_checked_by_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes_validate", None)
    files = render(plans.dense_on_all(), "kubernetes", Options(name="demo"))
    manifests = [yaml.safe_load(file.content) for file in files]
    (note,) = check_kubernetes.check(manifests, ENGINE)
    assert (note.severity, note.remedy) == ("info", "pip install 'aim-engine[kubernetes]'")
    deployment = next(entry for entry in manifests if entry["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["args"].append(1)
    assert {finding.id for finding in check_kubernetes.check(manifests, ENGINE)} == {"MAN000", "MAN003"}


def test_without_the_compose_reader_the_extra_is_named_and_values_are_checked_by_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "compose_spec", None)
    document = yaml.safe_load(render(plans.dense_on_all(), "compose", Options(name="demo"))[0].content)
    (note,) = check_compose.check(document, ENGINE)
    assert (note.severity, note.remedy) == ("info", "pip install 'aim-engine[compose]'")
    document["services"]["demo"]["shm_size"] = "16gx"
    assert "CMP003" in {finding.id for finding in check_compose.check(document, ENGINE)}


@pytest.mark.parametrize(
    ("api", "kind", "since", "instead"),
    [
        ("resource.k8s.io/v1alpha3", "ResourceClaimTemplate", "1.3", "apiVersion: resource.k8s.io/v1"),
        ("autoscaling/v2beta2", "HorizontalPodAutoscaler", "1.26", "apiVersion: autoscaling/v2"),
        ("flowcontrol.apiserver.k8s.io/v1beta3", "FlowSchema", "1.32", "apiVersion: flowcontrol.apiserver.k8s.io/v1"),
    ],
)
def test_a_version_that_only_older_clusters_have_is_said_to_be_gone(
    api: str, kind: str, since: str, instead: str
) -> None:
    manifest = {"apiVersion": api, "kind": kind, "metadata": {"name": "x"}}
    (found,) = check_schema.check([manifest])
    assert (found.id, found.severity, found.remedy) == ("MAN004", "error", instead)
    assert f"is gone since Kubernetes {since}" in found.message


@pytest.mark.parametrize("api", ["example.com/v1", "resource.k8s.io/v9", "keda.sh/v1alpha1"])
def test_a_kind_that_no_version_had_is_not_judged(api: str) -> None:
    (found,) = check_schema.check([{"apiVersion": api, "kind": "ResourceClaimTemplate", "metadata": {"name": "x"}}])
    assert (found.id, found.severity) == ("MAN003", "info")
