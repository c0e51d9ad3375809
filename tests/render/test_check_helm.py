"""Values of our chart as somebody changes them: judged as the objects that Helm would make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import plans
from aim_engine import backend
from aim_engine.cli import main
from aim_engine.planner import plan as plan_module
from aim_engine.render import check_helm
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

ENGINE = backend.get("vllm")
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "restricted": {"render_gid": 109, "dra": True, "priority_class": "serving", "api_key_secret": True},
    "stateful": {"cache_per_replica": True, "labels": {"team": "nlp"}},
    "files": {"files": {"/templates/chat.jinja": "x"}},
    "folder": {"model_path": "/srv/m", "env": {"A": "$x"}},
}


def values(case: str = "mixture-2x2xmi355x", change: str = "plain") -> dict[str, Any]:
    options = Options(name="demo", image="registry.local/vllm:v0.32.0", **CHANGES[change])
    files = {file.path: file.content for file in render(plans.ALL[case](), "helm", options)}
    found: dict[str, Any] = yaml.safe_load(files["values.yaml"])
    return found


@pytest.mark.parametrize("case", plans.ALL)
@pytest.mark.parametrize("change", CHANGES)
def test_the_objects_are_those_of_target_kubernetes_as_helm_makes_them_too(case: str, change: str) -> None:
    """That Helm's own are the same is what the tests of the wrapped targets show."""
    options = Options(name="demo", image="registry.local/vllm:v0.32.0", **CHANGES[change])
    plain = {
        entry["kind"]: entry
        for file in render(plans.ALL[case](), "kubernetes", options)
        if (entry := yaml.safe_load(file.content))["metadata"]["name"] in ("demo", "demo-cache")
    }
    workload, service, *claims = check_helm.objects(values(case, change))
    wanted = plain[workload["kind"]]["spec"]
    assert workload["spec"]["template"]["spec"] == wanted["template"]["spec"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert labels.items() <= wanted["template"]["metadata"]["labels"].items()
    for field in set(wanted) - {"template"}:
        assert workload["spec"][field] == wanted[field]
    assert service["spec"]["selector"] == plain["Service"]["spec"]["selector"]
    assert [claim["spec"] for claim in claims] == [
        plain[kind]["spec"] for kind in ("PersistentVolumeClaim",) if kind in plain
    ]
    assert check_helm.check(values(case, change), ENGINE) == ()


MISTAKES: dict[str, tuple[list[Any], Any, str]] = {
    "replicas in words": (["replicas"], "two", "MAN003"),
    "a key that is none": (["replica"], 2, "MAN003"),
    "a name that is none": (["fullname"], "A_b", "MAN003"),
    "an argument that is a number": (["extraArgs"], [1], "MAN003"),
    "a field that is none": (["container", "livenesProbe"], {}, "MAN003"),
    "part of a GPU": (["resources", "limits", "amd.com/gpu"], "0.5", "K8S001"),
    "a unit that is none": (["resources", "limits", "memory"], "64GB", "MAN011"),
    "more GPUs than the pod has": (["extraArgs"], ["-tp", "8"], "PAR006"),
    "an argument that is gone": (["extraArgs"], ["--swap-space", "4"], "VER002"),
    "a token in the clear": (["extraEnv"], [{"name": "HF_TOKEN", "value": "hf_x"}], "K8S021"),
    "a volume that is none": (["container", "volumeMounts"], [{"name": "x", "mountPath": "/x"}], "MAN007"),
    "a probe of a port that is none": (["container", "readinessProbe"], {"httpGet": {"port": "web"}}, "MAN009"),
    "a label of its own instead": (["labels"], {"app.kubernetes.io/instance": "x"}, "MAN006"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_values_is_found(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, value, rule = MISTAKES[mistake]
    changed = values()
    holder = changed
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(changed))
    main.run(["validate", "--json", str(file)])
    (found,) = json.loads(capsys.readouterr().out)["files"]
    assert found["kind"] == "values of a chart"
    assert rule in {finding["id"] for finding in found["findings"]}


def test_a_chart_as_a_folder_is_its_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(plan_module.encode(plans.replicas()))
    words = ["render", str(plan), "-t", "helm", "-o", str(tmp_path / "chart")]
    assert main.run([*words, "--set", "values.resources.limits.memory=64GB"]) == 1
    assert "MAN011" in capsys.readouterr().err
    assert not (tmp_path / "chart").exists()
    assert main.run([*words, "--set", "values.replicas=3"]) == 0
    capsys.readouterr()
    assert main.run(["validate", "--json", str(tmp_path / "chart")]) == 0
    (found,) = json.loads(capsys.readouterr().out)["files"]
    assert (Path(found["file"]).name, found["findings"]) == ("values.yaml", [])
