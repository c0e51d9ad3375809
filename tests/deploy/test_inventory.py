"""What a live cluster offers, asked of an API server of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import kube_api
import kube_nodes
from aim_engine import rollout, workflow
from aim_engine import settings as all_settings
from aim_engine.cli.gpus import gpus
from aim_engine.cli.plan import plan
from aim_engine.deploy import inventory
from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.hardware import nodes


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kube_api.Cluster]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    cluster = kube_api.Cluster()
    cluster.inventory = {
        "nodes": [kube_nodes.node("gpu-1"), kube_nodes.node("gpu-2"), kube_nodes.node("cpu-1", {}, gpus=None)],
        "pods": [kube_nodes.pod("one", "gpu-1", 6)],
    }
    with kube_api.serving(cluster, tmp_path / "kubeconfig"):
        yield cluster


def test_nodes_and_pods_of_a_live_cluster_say_what_is_free(cluster: kube_api.Cluster) -> None:
    found = inventory.read()
    assert [node.name for node in found.nodes] == ["cpu-1", "gpu-1", "gpu-2"]
    left = {node.name: len(node.devices) for node in nodes.free(found).nodes}
    assert left == {"cpu-1": 0, "gpu-1": 2, "gpu-2": 8}
    assert found == nodes.read(
        kube_nodes.listed(*cluster.inventory["nodes"], *cluster.inventory["pods"]), name="the same, recorded"
    )


def test_a_cluster_without_pods_has_everything_free(cluster: kube_api.Cluster) -> None:
    cluster.inventory["pods"] = []
    scheduling = inventory.read().nodes[1].scheduling
    assert scheduling is not None
    assert scheduling.resources[0].free == 8


def test_without_the_right_to_list_pods_free_is_unknown_and_said(cluster: kube_api.Cluster) -> None:
    cluster.refuse["pods"] = (403, "pods is forbidden")
    found = inventory.read()
    assert found.nodes[0].findings[0].id == "K8S119"
    scheduling = found.nodes[1].scheduling
    assert scheduling is not None
    assert scheduling.resources[0].free is None


@pytest.mark.parametrize("served", ["v1", "v1beta2", "v1beta1"])
def test_published_devices_are_found_in_the_version_that_is_served(cluster: kube_api.Cluster, served: str) -> None:
    cluster.served = f"/{served}"
    cluster.inventory["nodes"] = [kube_nodes.node("gpu-1", gpus=None)]
    devices = [kube_nodes.device(number) for number in range(4)]
    cluster.inventory["resourceslices"] = [kube_nodes.resource_slice("gpu-1", devices, version=served)]
    cluster.inventory["resourceclaims"] = [kube_nodes.claim("gpu-1", "gpu-1-129")]
    (node,) = nodes.free(inventory.read()).nodes
    assert [device.bdf for device in node.devices] == ["0000:05:00.0", "0000:25:00.0", "0000:35:00.0"]
    cluster.refuse["resourceclaims"] = (403, "forbidden")
    assert len(nodes.free(inventory.read()).devices) == 4


def test_what_cannot_be_asked_is_said(cluster: kube_api.Cluster) -> None:
    cluster.refuse["nodes"] = (403, "nodes is forbidden")
    with pytest.raises(Unreachable, match="does not show its nodes"):
        inventory.read()
    del cluster.refuse["nodes"]
    cluster.inventory["nodes"] = []
    with pytest.raises(InvalidInput, match="no nodes"):
        inventory.read()


def test_the_cluster_is_shown_as_a_table_and_planned_on(cluster: kube_api.Cluster, tmp_path: Path) -> None:
    shown = CliRunner().invoke(gpus, ["--kubernetes"])
    assert shown.exit_code == 0, shown.output
    assert "16 x MI300X in 3 nodes" in shown.output
    (row,) = (line.split() for line in shown.output.splitlines() if line.strip().startswith("gpu-1"))
    assert row == ["gpu-1", "MI300X", "192.0", "GiB", "amd.com/gpu", "8", "8", "6", "2", "ready"]
    assert "1 node without AMD GPU" in shown.output
    planned = CliRunner().invoke(plan, ["Qwen/Qwen3-32B", "--kubernetes", "--max-gpus", "2"])
    assert planned.exit_code == 0, planned.output
    assert "fits on" in planned.output
    assert "gpu-2 (" in planned.output
    cluster.inventory["pods"] += [kube_nodes.pod("two", "gpu-2", 8), kube_nodes.pod("three", "gpu-1", 2)]
    full = CliRunner().invoke(plan, ["Qwen/Qwen3-32B", "--kubernetes"])
    assert isinstance(full.exception, InvalidInput)
    assert "none of the 16 GPUs of 3 nodes is free" in str(full.exception)


def test_a_recorded_cluster_is_planned_on_with_the_resource_its_pods_ask_for(tmp_path: Path) -> None:
    labels = {**kube_nodes.MI300X, "amd.com/gpu.compute-memory-partition": "cpx_nps4", "amd.com/gpu.vram": "24G"}
    recorded = tmp_path / "nodes.json"
    recorded.write_text(
        kube_nodes.listed(
            kube_nodes.node("gpu-1", labels, gpus=64, resource="amd.com/cpx_nps4"), kube_nodes.node("gpu-2")
        )
    )
    written = tmp_path / "plan.json"
    done = CliRunner().invoke(
        plan, ["Qwen/Qwen3-8B", "--from", str(recorded), "--max-gpus", "1", "-o", str(written), "--json"]
    )
    assert done.exit_code == 0, done.output
    document = json.loads(written.read_text())
    kinds = {document["chosen"]["recipe"]["gpu"], *(each["recipe"]["gpu"] for each in document["alternatives"])}
    assert kinds == {"MI300X", "MI300X-CPX"}
    small = tmp_path / "small.json"
    small.write_text(kube_nodes.listed(kube_nodes.node("gpu-1", labels, gpus=64, resource="amd.com/cpx_nps4")))
    done = CliRunner().invoke(plan, ["Qwen/Qwen3-8B", "--from", str(small), "--max-gpus", "1", "-o", str(written)])
    assert done.exit_code == 0, done.output
    from aim_engine.cli.render import render

    manifests = CliRunner().invoke(render, [str(written), "--target", "kubernetes"])
    assert manifests.exit_code == 0, manifests.output
    assert "amd.com/cpx_nps4: '1'" in manifests.output or 'amd.com/cpx_nps4: "1"' in manifests.output
    assert "compute-memory-partition: cpx_nps4" in manifests.output


def test_up_on_kubernetes_plans_on_the_clusters_free_gpus(cluster: kube_api.Cluster, tmp_path: Path) -> None:
    said: list[str] = []
    cluster.refuse["persistentvolumeclaims"] = (403, "forbidden")
    place = rollout.Place(target="kubernetes", output_dir=tmp_path / "files", question="")
    settings = msgspec.structs.replace(all_settings.load(), state_dir=str(tmp_path / "state"))
    request = workflow.Request(model="Qwen/Qwen3-32B", max_gpus=2)
    outcome = rollout.up(request, settings, place, said.append)
    assert "16 x MI300X in 3 nodes of the Kubernetes cluster" in said
    assert outcome.plan.inputs.gpu.name == "MI300X"
    assert [node.name for node in outcome.plan.inputs.cluster.nodes] == ["gpu-1", "gpu-2"]
    assert "forbidden" in outcome.stopped_at
    cluster.inventory = {"nodes": [kube_nodes.node("cpu-1", {}, gpus=None)], "pods": []}
    with pytest.raises(InvalidInput, match="no known image for a CPU"):
        rollout.up(msgspec.structs.replace(request, model="Qwen/Qwen3-0.6B"), settings, place, said.append)
    assert "the Kubernetes cluster has no AMD GPU: planning on the hardware of this machine" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpus", "8xMI300X", "--kubernetes"], "name different hardware"),
        (["--from", "/does/not/exist"], "cannot be read"),
    ],
)
def test_hardware_that_cannot_be_meant_is_refused(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(plan, ["Qwen/Qwen3-8B", *arguments])
    assert isinstance(done.exception, InvalidInput)
    assert says in str(done.exception)
