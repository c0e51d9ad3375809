"""Sixteen mistakes, in a file that somebody brings and in every pod that we write: schemas find five, our rules the others."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import plans
from aim_engine import backend
from aim_engine.cli import main
from aim_engine.errors import InvalidInput
from aim_engine.render import check_kubernetes, check_schema, document, workloads
from aim_engine.render.artifact import Options
from aim_engine.render.targets import TARGETS, render

ENGINE = backend.get("vllm")
BROUGHT = Path(__file__).parent / "brought"
FILE = (BROUGHT / "serving.yaml").read_text()
MISTAKES = {entry["mistake"]: entry for entry in yaml.safe_load((BROUGHT / "mistakes.yaml").read_text())}


def validated(content: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, set[str]]:
    """What `aim-engine validate` answers of a file with `content`, and the rules of its errors."""
    (folder / "serving.yaml").write_text(content)
    code = main.run(["validate", "--json", str(folder / "serving.yaml")])
    (file,) = json.loads(capsys.readouterr().out)["files"]
    return code, {finding["id"] for finding in file["findings"] if finding["severity"] == "error"}


def changed(mistake: str, how: str) -> str:
    entry = MISTAKES[mistake]
    assert FILE.count(entry["text"]) == 1, mistake
    return FILE.replace(entry["text"], entry[how])


def test_there_are_sixteen_and_the_file_itself_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(MISTAKES) == 16
    assert validated(FILE, tmp_path, capsys) == (0, set())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_of_others_is_an_error(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, errors = validated(changed(mistake, "wrong"), tmp_path, capsys)
    assert code == 1
    assert MISTAKES[mistake]["rule"] in errors


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_looks_like_the_mistake_and_is_right_is_no_error(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validated(changed(mistake, "right"), tmp_path, capsys) == (0, set())


def test_the_schemas_find_five_of_them_and_the_rules_the_other_eleven() -> None:
    by_schema, by_rules = set(), set()
    for mistake, entry in MISTAKES.items():
        documents, repeated = document.read(changed(mistake, "wrong"), "serving.yaml")
        if any(finding.severity == "error" for finding in check_schema.check(documents)):
            by_schema.add(mistake)
        elif entry["rule"] in {finding.id for finding in (*repeated, *check_kubernetes.rules(documents, ENGINE))}:
            by_rules.add(mistake)
    assert (len(by_schema), len(by_rules)) == (5, 11)
    assert by_schema == {mistake for mistake, entry in MISTAKES.items() if entry["by"] == "schema"}


@pytest.mark.parametrize(
    ("kind", "api", "spec", "place"),
    [
        ("RayJob", "ray.io/v1", {"rayClusterSpec": {"workerGroupSpecs": [{}, {"template": {"spec": "POD"}}]}}, "workerGroupSpecs[1]"),
        ("JobSet", "jobset.x-k8s.io/v1alpha2", {"replicatedJobs": [{"template": {"spec": {"template": {"spec": "POD"}}}}]}, "replicatedJobs[0]"),
        ("Rollout", "argoproj.io/v1alpha1", {"template": {"spec": "POD"}}, "spec.template.spec"),
        ("LLMInferenceService", "serving.kserve.io/v1alpha1", {"prefill": {"template": "POD"}}, "spec.prefill.template"),
        ("CronJob", "batch/v1", {"jobTemplate": {"spec": {"template": {"spec": "POD"}}}}, ""),
    ],
)  # fmt: skip
def test_pods_are_found_in_kinds_of_others(kind: str, api: str, spec: dict[str, Any], place: str) -> None:
    pod = {"containers": [{"name": "a", "image": "b:1", "resources": {"limits": {"amd.com/gpu": "0.5"}}}]}
    whole = json.loads(json.dumps(spec).replace('"POD"', json.dumps(pod)))
    manifest = {"apiVersion": api, "kind": kind, "metadata": {"name": "x"}, "spec": whole}
    (found,) = (finding for finding in check_kubernetes.rules([manifest], ENGINE) if finding.severity == "error")
    assert found.id == "K8S001"
    assert place in found.evidence
    another = {**manifest, "apiVersion": "example.com/v1"} if "." in api else None
    assert another is None or check_kubernetes.rules([another], ENGINE) == ()


def test_what_a_runtime_or_preset_completes_is_not_missed() -> None:
    for kind, spec in (
        ("InferenceService", {"predictor": {}}),
        ("LLMInferenceService", {"template": {"containers": [{"name": "main"}]}}),
    ):
        manifest = {"apiVersion": "serving.kserve.io/v1beta1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}
        assert [each for each in check_kubernetes.rules([manifest], ENGINE) if each.severity == "error"] == []


def test_variables_that_a_controller_sets_are_no_wrong_values() -> None:
    documents, _ = document.read(
        FILE.replace("--tensor-parallel-size=2]", "--tensor-parallel-size=2, --node-rank, $(RANK), --port=$(PORT)]"),
        "x",
    )
    assert [each for each in check_kubernetes.rules(documents, ENGINE) if each.severity == "error"] == []
    documents, _ = document.read(FILE.replace('"32768"', "$(HF_HUB_OFFLINE)x"), "x")
    assert {each.id for each in check_kubernetes.rules(documents, ENGINE) if each.severity == "error"} == {"VER022"}


def test_a_shells_own_substitutions_do_not_hide_what_is_wrong() -> None:
    line = "exec vllm serve Qwen/Qwen3-32B --swap-space 4 --max-num-seqs $(nproc)"
    wrong = FILE.replace("          args: [", f"          command: [/bin/sh, -c, '{line}']\n          args: [")
    documents, _ = document.read(wrong, "x")
    assert "VER002" in {each.id for each in check_kubernetes.rules(documents, ENGINE)}
    documents[1]["spec"]["template"]["spec"]["containers"][0] |= {"command": ["/bin/sh", "-c"], "args": [line]}
    assert "VER002" in {each.id for each in check_kubernetes.rules(documents, ENGINE)}


Container = dict[str, Any]
IN_PODS: dict[str, tuple[str, Callable[[Container], object]]] = {
    "unit that is none": ("MAN011", lambda c: c["resources"]["limits"].update(memory="256GB")),
    "pull policy that is none": ("MAN010", lambda c: c.update(imagePullPolicy="Sometimes")),
    "request of GPUs unlike the limit": ("K8S001", lambda c: c["resources"]["requests"].update({"amd.com/gpu": "9"})),
    "part of a GPU": ("K8S001", lambda c: c["resources"]["limits"].update({"amd.com/gpu": "0.5"})),
    "mount without a volume": ("MAN007", lambda c: c["volumeMounts"].append({"name": "x", "mountPath": "/x"})),
    "port out of range": ("MAN008", lambda c: c.update(ports=[{"name": "http", "containerPort": 80000}])),
    "probe of a port that is none": ("MAN009", lambda c: c.update(livenessProbe={"httpGet": {"port": "web"}})),
    "token in the clear": ("K8S021", lambda c: c["env"].append({"name": "HF_TOKEN", "value": "hf_x"})),
}
"""Mistakes that can be made in a container, wherever it stands."""


def with_pods(target: str, case: str, **options: Any) -> list[dict[str, Any]]:
    try:
        files = render({**plans.ALL, **plans.FURTHER}[case](), target, Options(name="demo", **options))
    except InvalidInput:
        return []
    documents = [yaml.safe_load(file.content) for file in files if file.is_yaml and "/" not in file.path]
    return [entry for entry in documents if any(workloads.pods(entry))]


WRITTEN = [
    (target, case, options)
    for target in sorted(set(TARGETS) - {"helm", "compose", "kustomize"})
    for case, options in (
        ("mixture-2x2xmi355x", {}),
        ("mixture-2x2xmi355x", {"cache_per_replica": True}),
        ("large-16xmi300x", {}),
    )
    if with_pods(target, case, **options)
]


def test_pods_are_found_in_every_kind_that_we_write() -> None:
    kinds = {entry["kind"] for target, case, options in WRITTEN for entry in with_pods(target, case, **options)}
    assert kinds == {
        "Deployment", "StatefulSet", "Job", "LeaderWorkerSet", "RayService", "InferenceService", "LLMInferenceService",
    }  # fmt: skip


@pytest.mark.parametrize(("target", "case", "options"), WRITTEN)
@pytest.mark.parametrize("mistake", IN_PODS)
def test_a_mistake_in_any_container_that_we_write_is_found_where_it_is(
    mistake: str, target: str, case: str, options: dict[str, Any]
) -> None:
    rule, change = IN_PODS[mistake]
    for manifest in with_pods(target, case, **options):
        before = [finding for finding in check_kubernetes.rules([manifest], ENGINE) if finding.severity != "info"]
        assert {finding.id for finding in before} <= {"SEC002"}  # ranks on several hosts trust their network
        for place, pod in enumerate(workloads.pods(manifest)):
            wrong = copy.deepcopy(manifest)
            spec = list(workloads.pods(wrong))[place].spec
            change(spec["containers"][0])
            found = [finding for finding in check_kubernetes.rules([wrong], ENGINE) if finding.id == rule]
            assert found
            assert all(pod.path in finding.evidence for finding in found if finding.id != "MAN010")
