"""What happens without the optional packages: a note with what to install, and our own rules go on."""

from __future__ import annotations

import sys

import pytest
import yaml

import plans
from aim_engine import backend
from aim_engine.render import check_compose, check_kubernetes
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
