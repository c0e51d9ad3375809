"""`aim-engine render` with changes of one's own: refused when they break the files, packed, and shown as a diff."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import kube_api
import plans
from aim_engine.cli import main
from aim_engine.deploy.kubernetes import KubernetesRunner
from aim_engine.deploy.records import Store
from aim_engine.planner import plan as plan_module
from aim_engine.render.artifact import Options


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.json"
    path.write_bytes(plan_module.encode(plans.dense_on_all()))
    return str(path)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kube_api.Cluster]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    cluster = kube_api.Cluster()
    with kube_api.serving(cluster, tmp_path / "kubeconfig"):
        yield cluster


def test_values_and_patches_reach_the_written_files(plan: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("kind: Service\nspec: {type: LoadBalancer}\n")
    out = tmp_path / "out"
    words = ["--set", "deployment.spec.revisionHistoryLimit=2", "--patch", str(mine), "--label", "team=search"]
    assert main.run(["render", plan, "-t", "kubernetes", *words, "-o", str(out)]) == 0
    deployment, service = (yaml.safe_load((out / f"{name}.yaml").read_text()) for name in ("deployment", "service"))
    assert deployment["spec"]["revisionHistoryLimit"] == 2
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["metadata"]["labels"]["team"] == "search"


@pytest.mark.parametrize(
    ("target", "word", "rule"),
    [
        ("kubernetes", ("--set", "deployment.spec.template.spec.containers[0].resources.limits.memory=64GB"), "MAN011"),
        ("kubernetes", ("--set", "deployment.spec.unknown=1"), "MAN003"),
        ("kubernetes", ("--arg=--swap-space=4",), "VER002"),
        ("docker", ("--arg=--swap-space=4",), "VER002"),
        ("shell", ("--arg=--swap-space=4",), "VER002"),
    ],
)
def test_a_change_that_breaks_the_files_writes_nothing(
    target: str, word: tuple[str, ...], rule: str, plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main.run(["render", plan, "-t", target, *word, "-o", str(out)]) == 1
    assert rule in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_an_archive_holds_the_files_with_their_modes_and_never_differs(name: str, plan: str, tmp_path: Path) -> None:
    first, again = tmp_path / name, tmp_path / "again" / name
    for path in (first, again):
        assert main.run(["render", plan, "-t", "docker", "--name", "demo", "-o", str(path)]) == 0
    assert first.read_bytes() == again.read_bytes()
    with tarfile.open(first) as archive:
        assert {entry.name: entry.mode for entry in archive} == {"demo.docker.sh": 0o755, "demo.secret.env": 0o600}


def test_the_diff_with_a_folder_says_no_when_something_would_change(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main.run(["render", plan, "-t", "kubernetes", "-o", out]) == 0
    assert main.run(["render", plan, "-t", "kubernetes", "--diff", out]) == 0
    capsys.readouterr()
    assert main.run(["render", plan, "-t", "kubernetes", "--port", "9000", "--diff", out]) == 1
    shown = capsys.readouterr().out
    assert "-    - name: http\n" not in shown
    assert "-      port: 8000\n+      port: 9000\n" in shown
    assert main.run(["render", plan, "-t", "kubernetes", "--diff", str(tmp_path / "none")]) == 2
    assert main.run(["render", plan, "-t", "kubernetes", "--diff", out, "-o", out]) == 2


def test_the_diff_with_a_cluster_names_fields_and_missing_objects(
    cluster: kube_api.Cluster, plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["render", plan, "-t", "kubernetes", "--name", "demo"]
    assert main.run([*words, "--diff", "cluster"]) == 1
    assert "Deployment/demo: would be made" in capsys.readouterr().out
    KubernetesRunner(Store(tmp_path / "state")).start(plans.dense_on_all(), Options(name="demo"))
    assert main.run([*words, "--diff", "cluster"]) == 0
    capsys.readouterr()
    assert main.run([*words, "--port", "9000", "--diff", "cluster"]) == 1
    assert capsys.readouterr().out == "Service/demo: spec.ports[0].port: 8000 -> 9000\n"


def test_a_file_of_ones_own_is_carried_along_or_refused(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}\n")
    words = ["--file", f"{template}:/templates/chat.jinja", "--arg=--chat-template", "--arg=/templates/chat.jinja"]
    assert main.run(["render", plan, "-t", "kubernetes", "--name", "demo", *words, "-o", str(tmp_path / "out")]) == 0
    config = yaml.safe_load((tmp_path / "out" / "files.yaml").read_text())
    assert config["data"] == {"file-0": "{{ messages }}\n"}
    assert main.run(["render", plan, "-t", "shell", *words]) == 2
    assert "files have no place in target shell" in capsys.readouterr().err
    assert main.run(["render", plan, "-t", "kubernetes", "--file", str(template)]) == 2
    assert "says no place" in capsys.readouterr().err
    assert main.run(["render", plan, "-t", "kubernetes", "--file", f"{tmp_path}/none:/x"]) == 2


@pytest.mark.parametrize(
    ("target", "kind", "changed", "shown"),
    [
        ("lws", "LeaderWorkerSet", ("spec", "replicas"), "spec.replicas: 7 -> 1"),
        ("keda", "ScaledObject", ("spec", "maxReplicaCount"), "spec.maxReplicaCount: 7 -> 2"),
        ("kserve", "InferenceService", ("spec", "predictor", "minReplicas"), "spec.predictor.minReplicas: 7 -> 1"),
        ("gateway", "HTTPRoute", ("spec", "rules"), "spec.rules: 7 -> "),
        ("monitoring", "PodMonitor", ("spec", "podTargetLabels"), "spec.podTargetLabels: 7 -> "),
        ("kuberay", "RayService", ("spec", "serveConfigV2"), "spec.serveConfigV2: 7 -> "),
    ],
)
def test_operators_kinds_are_compared_with_a_cluster_too(
    target: str,
    kind: str,
    changed: tuple[str, ...],
    shown: str,
    cluster: kube_api.Cluster,
    plan: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["render", plan, "-t", target, "--name", "demo"]
    assert main.run([*words, "--diff", "cluster"]) == 1
    assert f"{kind}/demo: would be made" in capsys.readouterr().out
    assert main.run([*words, "-o", str(tmp_path / "out")]) == 0
    written = [yaml.safe_load(file.read_text()) for file in (tmp_path / "out").iterdir() if file.suffix == ".yaml"]
    for document in written:
        if document["kind"] == kind:
            holder = document
            for step in changed[:-1]:
                holder = holder[step]
            holder[changed[-1]] = 7
        cluster.objects[
            f"{document['kind'].lower().removesuffix('y')}{'ies' if document['kind'].endswith('y') else 's'}",
            "default",
            document["metadata"]["name"],
        ] = document
    capsys.readouterr()
    assert main.run([*words, "--diff", "cluster"]) == 1
    assert f"{kind}/demo: {shown}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("spec.replicas=3", "--set deployment.spec.replicas=..."),
        ("spec.template.spec.containers[name=vllm].image=x", "--set deployment.spec.template.spec.containers"),
        ("nowhere=3", "begin with one of cache, deployment"),
        ("deployment.spec.template.spec.containers[name=vlm].image=x", "[name=...] is one of vllm"),
        ("deployment.spec.template.spec.containers[3].image=x", "there are 1, the first is [0]"),
        ("deployment.spec.template.spec[0].image=x", "there is none at this place"),
    ],
)
def test_a_path_that_leads_nowhere_is_answered_with_one_that_does(
    word: str, hint: str, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["render", plan, "-t", "kubernetes", "--set", word]) == 2
    assert hint in capsys.readouterr().err


def test_the_same_mistake_in_every_replica_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(plan_module.encode(plans.replicas()))
    assert main.run(["render", str(path), "-t", "docker", "--arg=--swap-space=4"]) == 1
    error = capsys.readouterr().err
    assert error.count("--swap-space is gone") == 1
    assert " and 1 more: " in error


def test_a_model_in_the_place_of_a_plan_is_answered_with_the_way_to_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["render", "Qwen/Qwen3-32B", "-t", "docker"]) == 2
    assert "aim-engine plan Qwen/Qwen3-32B -o plan.json" in capsys.readouterr().err
    assert main.run(["render", "plan.json", "-t", "docker"]) == 2
    assert "aim-engine plan MODEL -o plan.json" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_said_to_be_one(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["render", plan, "-t", "docker", "-o", plan]) == 2
    error = capsys.readouterr().err
    assert f"{plan} is a file, not a folder" in error
    assert "-o NAME.tar.gz" in error


def test_files_that_would_be_applied_with_ours_are_named(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the StatefulSet of an earlier choice beside the Deployment of this one."""
    out = tmp_path / "out"
    words = ["render", plan, "-t", "kubernetes", "-o", str(out)]
    assert main.run([*words, "--cache-per-replica"]) == 0
    assert "warning" not in capsys.readouterr().err
    (out / "notes.txt").write_text("")
    assert main.run([*words, "--force"]) == 0
    error = capsys.readouterr().err
    assert f"`kubectl apply -f {out}` applies too: service-pods.yaml, statefulset.yaml" in error
    (out / "mine.json").write_text("{}")
    assert main.run(["render", plan, "-t", "docker", "-o", str(out)]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_rate_that_is_none_names_its_option(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["render", plan, "-t", "kubernetes", "--read-speed", "fast"]) == 2
    error = capsys.readouterr().err
    assert "--read-speed 'fast' is no rate" in error
    assert "--read-speed 200MB/s" in error
