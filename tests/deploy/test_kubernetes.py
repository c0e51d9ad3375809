"""The Kubernetes runner against an API server of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kube_api
import plans
from aim_engine.deploy import kubernetes
from aim_engine.deploy.kubernetes import KubernetesRunner
from aim_engine.deploy.records import Store
from aim_engine.errors import EngineFailed, InvalidInput, Unreachable
from aim_engine.render.artifact import Options

OPTIONS = Options(name="qwen3-32b")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kubernetes, "_POLL_S", 0.01)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[kube_api.Cluster]:
    cluster = kube_api.Cluster()
    with kube_api.serving(cluster, tmp_path / "kubeconfig"):
        yield cluster


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


@pytest.fixture
def runner(store: Store) -> KubernetesRunner:
    return KubernetesRunner(store)


def test_without_a_kubeconfig_no_cluster_is_configured(runner: KubernetesRunner, store: Store) -> None:
    with pytest.raises(Unreachable, match="no Kubernetes cluster is configured") as caught:
        runner.start(plans.dense_on_all(), OPTIONS)
    assert "KUBECONFIG" in str(caught.value.hint)
    assert store.names() == ()


def test_a_cluster_that_does_not_answer_is_unreachable(tmp_path: Path, runner: KubernetesRunner, store: Store) -> None:
    with kube_api.serving(kube_api.Cluster(), tmp_path / "kubeconfig"):
        pass
    with pytest.raises(Unreachable, match="does not answer"):
        runner.start(plans.dense_on_all(), OPTIONS)
    assert store.names() == ()


def test_a_plan_is_applied_rolled_out_and_taken_down(
    cluster: kube_api.Cluster, runner: KubernetesRunner, store: Store
) -> None:
    said: list[str] = []
    applied = runner.start(plans.dense_on_all(), OPTIONS, said.append)
    assert applied.state == "applied"
    assert applied.endpoint == "http://qwen3-32b.default.svc:8000"
    assert cluster.names() == [
        "deployments/qwen3-32b",
        "networkpolicies/qwen3-32b",
        "persistentvolumeclaims/qwen3-32b-cache",
        "serviceaccounts/qwen3-32b",
        "services/qwen3-32b",
    ]
    assert all("['aim-engine'] ['true']" in write for write in cluster.writes)
    assert "made Deployment qwen3-32b" in said
    assert any("port-forward" in line for line in said)
    assert runner.status(applied).state == "ready"
    assert list(runner.logs(applied)) == ["line 1", "line 2", "line 3"]
    stopped = runner.stop(store.load("qwen3-32b"), said.append)
    assert stopped.state == "stopped"
    assert cluster.names() == ["persistentvolumeclaims/qwen3-32b-cache"]
    assert any(line.startswith("kept: kubectl") for line in said)
    assert runner.status(stopped).state == "stopped"
    assert runner.stop(stopped).state == "stopped"


def test_replicas_bring_a_disruption_budget_that_goes_with_them(
    cluster: kube_api.Cluster, runner: KubernetesRunner
) -> None:
    applied = runner.start(plans.replicas(), OPTIONS)
    assert "poddisruptionbudgets/qwen3-32b" in cluster.names()
    assert runner.status(applied).detail == "2 of 2 replicas available"
    runner.stop(applied)
    assert cluster.names() == ["persistentvolumeclaims/qwen3-32b-cache"]


def test_applying_again_updates(cluster: kube_api.Cluster, runner: KubernetesRunner) -> None:
    runner.start(plans.dense_on_all(), OPTIONS)
    said: list[str] = []
    runner.start(plans.dense_on_all(), OPTIONS, said.append)
    assert "updated Deployment qwen3-32b" in said
    assert len(cluster.objects) == 5


def test_a_rollout_is_not_over_while_a_pod_of_before_is_there(
    cluster: kube_api.Cluster, runner: KubernetesRunner
) -> None:
    """It counts as available, so that the new one seems to be."""
    cluster.polls_until_ready, cluster.leaving = 6, 4
    runner.start(plans.dense_on_all(), OPTIONS)
    assert cluster.leaving == 0
    assert cluster.polls_until_ready <= 0


def test_a_namespace_that_is_not_there_is_named(cluster: kube_api.Cluster, runner: KubernetesRunner) -> None:
    with pytest.raises(InvalidInput, match="no namespace 'models'"):
        runner.start(plans.dense_on_all(), Options(name="demo", namespace="models"))
    assert cluster.objects == {}


def test_a_refused_object_undoes_the_ones_before_it(
    cluster: kube_api.Cluster, runner: KubernetesRunner, store: Store
) -> None:
    cluster.refuse["deployments"] = (403, "deployments.apps is forbidden")
    with pytest.raises(Unreachable) as caught:
        runner.start(plans.dense_on_all(), OPTIONS)
    assert caught.value.what == "the cluster refused Deployment qwen3-32b"
    assert caught.value.why == "deployments.apps is forbidden (403)"
    assert cluster.names() == ["persistentvolumeclaims/qwen3-32b-cache"]
    assert store.load("qwen3-32b").state == "failed"


def test_a_crashing_engine_is_explained_and_removed(cluster: kube_api.Cluster, runner: KubernetesRunner) -> None:
    cluster.pod_status = kube_api.CRASH
    cluster.log = "loading\ntorch.OutOfMemoryError: HIP out of memory. Tried to allocate 2 GiB\n"
    with pytest.raises(EngineFailed) as caught:
        runner.start(plans.dense_on_all(), OPTIONS)
    assert "fails again and again (Error, exit code 1); the GPU ran out of memory" in str(caught.value.why)
    assert caught.value.log_tail[-1].startswith("torch.OutOfMemoryError")
    assert cluster.names() == ["persistentvolumeclaims/qwen3-32b-cache"]


def test_a_pod_without_a_node_says_what_the_scheduler_says(cluster: kube_api.Cluster, store: Store) -> None:
    cluster.pod_status = kube_api.UNSCHEDULABLE
    said: list[str] = []
    with pytest.raises(EngineFailed) as caught:
        KubernetesRunner(store, ready_timeout_s=0.3).start(plans.dense_on_all(), OPTIONS, said.append)
    assert any("Insufficient amd.com/gpu" in line for line in said)
    assert "not available in time" in str(caught.value.why)


def test_a_foreign_object_of_the_same_name_is_not_touched(cluster: kube_api.Cluster, runner: KubernetesRunner) -> None:
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "qwen3-32b", "labels": {"app": "other"}}}
    cluster.objects["services", "default", "qwen3-32b"] = foreign
    with pytest.raises(InvalidInput, match="aim-engine did not make"):
        runner.start(plans.dense_on_all(), OPTIONS)
    assert cluster.objects["services", "default", "qwen3-32b"] is foreign
    assert "deployments/qwen3-32b" not in cluster.names()


def test_an_interrupted_rollout_is_undone(cluster: kube_api.Cluster, runner: KubernetesRunner, store: Store) -> None:
    cluster.polls_until_ready = 10**6

    def interrupt(line: str) -> None:
        if "waiting for them" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.start(plans.dense_on_all(), OPTIONS, interrupt)
    assert cluster.names() == ["persistentvolumeclaims/qwen3-32b-cache"]
    assert store.load("qwen3-32b").state == "stopped"
