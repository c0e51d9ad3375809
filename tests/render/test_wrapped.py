"""Kustomize and Helm, asked for real: what they make of our files is what target `kubernetes` writes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import hostile_values
import plans
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

pytestmark = pytest.mark.consumers

HELM = """
import json, sys
from helm_python import Chart, HelmError, lint
done = []
for folder in sys.argv[1:]:
    try:
        report = lint(folder, strict=True, namespace="default")
        done.append({"rendered": Chart.load(folder).render(name="demo", namespace="default"), "lint": report})
    except HelmError as err:
        done.append({"error": str(err)})
print(json.dumps(done))
"""
PLANS = {name: make for name, make in {**plans.ALL, **plans.FURTHER}.items() if name != "large-16xmi300x"}
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "restricted": {"render_gid": 109, "dra": True, "priority_class": "serving", "api_key_secret": True},
    "stateful": {"cache_per_replica": True, "labels": {"team": "nlp"}, "annotations": {"note": "a: b\n{{ .Values }}"}},
    "files": {"files": {"/templates/chat.jinja": "{{ bos }}\n  {%- for m in messages -%}\u2028' $x\n", "/b": " \n\n"}},
    "folder": {"model_path": "/srv/{{ .Release.Name }} $x", "env": {"A": "{{ fail `x` }}", "B": "\u2028'\"\\"}},
}


def write(folder: Path, target: str, plan: Plan, options: Options) -> Path:
    for file in render(plan, target, options):
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_text(file.content, encoding="utf-8", newline="")
    return folder


def plain(plan: Plan, options: Options) -> dict[tuple[str, str], Any]:
    return by_name(yaml.safe_load(file.content) for file in render(plan, "kubernetes", options))


def by_name(documents: Any) -> dict[tuple[str, str], Any]:
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in documents if entry}


def options(change: str) -> Options:
    return Options(name="demo", image="registry.local/vllm:v1", **CHANGES[change])


def kustomized(folder: Path) -> dict[tuple[str, str], Any]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return by_name(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("case", ["mixture-2x2xmi355x", "small-cpu", "small-4xcpx"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_base_is_the_plain_manifests_and_every_overlay_builds(case: str, change: str, tmp_path: Path) -> None:
    plan = PLANS[case]()
    folder = write(tmp_path, "kustomize", plan, options(change))
    wanted = plain(plan, options(change))
    assert kustomized(folder / "base") == wanted
    for overlay in sorted((folder / "overlays").iterdir()):
        built = kustomized(overlay)
        gone = {("PodDisruptionBudget", "demo")} if overlay.name == "trial" else set()
        assert set(built) == set(wanted) - gone
        assert built != wanted


def helmed(folders: list[Path]) -> list[Any]:
    python = os.environ.get("AIM_ENGINE_HELM_PYTHON", sys.executable)
    done = subprocess.run([python, "-c", HELM, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_the_chart_renders_to_the_plain_manifests(tmp_path: Path) -> None:
    cases = [(case, change) for case in PLANS for change in CHANGES]
    folders = [write(tmp_path / f"{case}-{change}", "helm", PLANS[case](), options(change)) for case, change in cases]
    for (case, change), result in zip(cases, helmed(folders), strict=True):
        assert "error" not in result, result
        documents = [entry for content in result["rendered"].values() for entry in yaml.safe_load_all(content)]
        found, wanted = by_name(documents), plain(PLANS[case](), options(change))
        for document in found.values():
            helm_owns(document)
        for document in wanted.values():
            helm_owns(document)
        assert found == wanted, f"{case} {change}"


def read_by_go(documents: list[str], folder: Path) -> list[Any]:
    """What Go's own YAML reader, which Kubernetes has too, makes of each: a chart reads them and writes JSON."""
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: reader\nversion: 1.0.0\n")
    for n, content in enumerate(documents):
        (folder / f"{n}.yaml").write_text(content, encoding="utf-8", newline="")
        (folder / "templates" / f"{n}.json").write_text(f'{{{{ .Files.Get "{n}.yaml" | fromYaml | toJson | b64enc }}}}')
    (result,) = helmed([folder])
    assert "error" not in result, result
    return [json.loads(base64.b64decode(content)) for content in result["rendered"].values()]


def test_helm_passes_ten_thousand_hostile_values_on_unchanged(tmp_path: Path) -> None:
    lists = [[word for word in words if not {"\x7f", "\x85"} & set(word)] for words in hostile_values.batches()]
    made = [hostile_values.plan(words) for words in lists]
    folders = [write(tmp_path / str(n), "helm", plan, options("plain")) for n, plan in enumerate(made)]
    assert sum(map(len, lists)) > 5_000
    for n, (words, result) in enumerate(zip(lists, helmed(folders), strict=True)):
        assert "error" not in result, result
        documents = read_by_go(list(result["rendered"].values()), tmp_path / f"reader{n}")
        assert hostile_values.contains(documents, words, hostile_values.undoubled)
        env = {name: hostile_values.undoubled(value) for name, value in hostile_values.variables(documents)}
        assert env == {f"N{index}": word for index, word in enumerate(words)}


@pytest.mark.parametrize("lost", ["\x7f", "a\x9b", "\x85"])
def test_text_that_helm_would_lose_is_refused(lost: str) -> None:
    with pytest.raises(InvalidInput, match=rf"values.args\[\d+\] holds the character U\+00{ord(lost[-1]):02X}"):
        render(hostile_values.plan(["a", lost]), "helm", options("plain"))


def helm_owns(document: Any) -> None:
    """Takes out what a chart says otherwise on purpose: who manages it, and that downloads outlive the release."""
    template = document.get("spec", {}).get("template", {})
    for metadata in (document["metadata"], template.get("metadata", {}) if isinstance(template, dict) else {}):
        metadata.get("labels", {}).pop("app.kubernetes.io/managed-by", None)
        metadata.get("annotations", {}).pop("helm.sh/resource-policy", None)
        if metadata.get("annotations") == {}:
            del metadata["annotations"]
    document.get("spec", {}).pop("automountServiceAccountToken", None)


def test_helm_finds_nothing_wrong_with_the_chart_and_its_schema_refuses_what_cannot_be(tmp_path: Path) -> None:
    folder = write(tmp_path / "good", "helm", plans.replicas(), options("plain"))
    (good,) = helmed([folder])
    assert [entry["error"] for entry in good["lint"]["messages"]] == ["icon is recommended"]
    for index, (key, value) in enumerate((("replicas", "two"), ("fullname", "A_b"), ("nonsense", 1), ("args", [1]))):
        bad = write(tmp_path / f"bad-{index}", "helm", plans.replicas(), options("plain"))
        values = yaml.safe_load((bad / "values.yaml").read_text())
        (bad / "values.yaml").write_text(yaml.safe_dump({**values, key: value}))
        (result,) = helmed([bad])
        assert key in result.get("error", ""), result
