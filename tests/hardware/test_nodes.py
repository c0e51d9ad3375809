from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import kube_nodes
from aim_engine.errors import Corrupt, InvalidInput
from aim_engine.hardware import nodes, nodes_labels
from aim_engine.hardware.cluster import Cluster, Node, Scheduling

GIB = 2**30


def only(text: str) -> Node:
    (node,) = nodes.read(text).nodes
    return node


def state(node: Node) -> Scheduling:
    assert node.scheduling is not None
    return node.scheduling


def ids(node: Node) -> set[str]:
    return {finding.id for finding in node.findings}


def test_a_node_of_kubectl_is_its_allocatable_devices() -> None:
    node = only(json.dumps(kube_nodes.node()))
    assert [device.gpu for device in node.devices] == ["MI300X"] * 8
    first = node.devices[0]
    assert (first.arch, first.compute_units, first.memory_total_bytes) == ("gfx942", 304, 192 * GIB)
    assert first.sources["memory_total_bytes"] == "label"
    assert first.resource == "amd.com/gpu"
    assert (first.partition, first.memory_partition) == ("SPX", "NPS1")
    assert node.driver_version == "6.12.12"
    assert node.findings == ()
    (resource,) = state(node).resources
    assert (resource.capacity, resource.allocatable, resource.requested, resource.free) == (8, 8, None, None)


@pytest.mark.parametrize(
    "text",
    [
        kube_nodes.listed(kube_nodes.node()),
        json.dumps({"kind": "NodeList", "items": [{k: v for k, v in kube_nodes.node().items() if k != "kind"}]}),
        json.dumps([kube_nodes.node()]),
        yaml.safe_dump(kube_nodes.node()),
        "---\n" + yaml.safe_dump(json.loads(kube_nodes.listed(kube_nodes.node()))) + "---\n",
        "\ufeff" + json.dumps(kube_nodes.node()) + "\n",
    ],
    ids=["list", "nodelist", "array", "yaml", "yaml list", "byte order mark"],
)
def test_all_forms_of_a_recording_give_the_same_node(text: str) -> None:
    assert only(text) == only(json.dumps(kube_nodes.node()))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(kube_nodes.MI300X),
        "\n".join(f"{key}={value}" for key, value in kube_nodes.MI300X.items()),
        ",".join(f"{key}={value}" for key, value in kube_nodes.MI300X.items()),
        json.dumps({"labels": kube_nodes.MI300X}),
        json.dumps({"metadata": {"labels": kube_nodes.MI300X}}),
        json.dumps({"gpu-1": kube_nodes.MI300X}),
        yaml.safe_dump(kube_nodes.MI300X),
        "NAME STATUS ROLES AGE VERSION LABELS\n"
        "gpu-1 Ready <none> 3d v1.33.1 " + ",".join(f"{key}={value}" for key, value in kube_nodes.MI300X.items()),
    ],
    ids=["map", "lines", "commas", "labels", "metadata", "named", "yaml", "show-labels"],
)
def test_labels_alone_name_the_card_and_leave_the_number_open(text: str) -> None:
    node = only(text)
    assert [device.gpu for device in node.devices] == ["MI300X"]
    assert state(node).resources == ()
    assert ids(node) == {"K8S112"}


def test_a_described_node_tells_labels_capacity_and_requests() -> None:
    labels = "\n".join(f"                    {key}={value}" for key, value in kube_nodes.MI300X.items())
    text = (
        f"Name:               gpu-1\nRoles:              worker\nLabels:             beta.kubernetes.io/os=linux\n{labels}\n"
        "Taints:             amd-dcm=up:NoExecute\nUnschedulable:      false\n"
        "Capacity:\n  amd.com/gpu:  8\n  cpu:          192\nAllocatable:\n  amd.com/gpu:  7\n  cpu:          192\n"
        "Allocated resources:\n  Resource           Requests    Limits\n  cpu                1 (0%)      0 (0%)\n  amd.com/gpu        2           2\n"
    )
    node = only(text)
    (resource,) = state(node).resources
    assert (resource.capacity, resource.allocatable, resource.requested, resource.free) == (8, 7, 2, 5)
    assert len(node.devices) == 7
    assert ids(node) == {"K8S106", "K8S023"}


def test_pods_say_what_is_free() -> None:
    cluster = nodes.read(
        kube_nodes.listed(
            kube_nodes.node("a"),
            kube_nodes.node("b"),
            kube_nodes.node("c", cordoned=True),
            kube_nodes.node("d", ready=False),
            kube_nodes.pod("one", "a", 2),
            kube_nodes.pod("two", "a", 1, before=4),
            kube_nodes.pod("done", "a", 8, phase="Succeeded"),
            kube_nodes.pod("waiting", None, 8, phase="Pending"),
        )
    )
    assert {node.name: state(node).resources[0].free for node in cluster.nodes} == {"a": 2, "b": 8, "c": 8, "d": 8}
    left = nodes.free(cluster)
    assert {node.name: len(node.devices) for node in left.nodes} == {"a": 2, "b": 8, "c": 0, "d": 0}
    assert any(
        finding.message == "c: the node is cordoned: no new pod lands here" for finding in cluster.nodes[2].findings
    )
    assert any(finding.severity == "error" for finding in cluster.nodes[3].findings)


def test_without_pods_nothing_is_taken_for_free_or_held() -> None:
    node = only(json.dumps(kube_nodes.node()))
    assert state(node).resources[0].free is None
    assert len(nodes.free(Cluster(origin="detected", nodes=(node,))).devices) == 8


def test_partitions_under_their_own_names_are_partitions() -> None:
    labels = {**kube_nodes.MI300X, "amd.com/gpu.compute-memory-partition": "cpx_nps4", "amd.com/gpu.vram": "24G"}
    node = only(json.dumps(kube_nodes.node(labels=labels, gpus=64, resource="amd.com/cpx_nps4")))
    assert {device.gpu for device in node.devices} == {"MI300X-CPX"}
    assert {device.memory_total_bytes for device in node.devices} == {24 * GIB}
    assert node.devices[0].memory_partition == "NPS4"


def test_the_memory_label_of_a_partition_under_nps1_is_explained() -> None:
    labels = {
        "amd.com/gpu.device-id": "75a3",
        "amd.com/gpu.compute-memory-partition": "dpx_nps1",
        "amd.com/gpu.vram": "144G",
    }
    node = only(json.dumps(kube_nodes.node(labels=labels, gpus=16)))
    assert {device.gpu for device in node.devices} == {"MI355X-DPX"}
    assert node.devices[0].memory_total_bytes == 144 * GIB
    (remark,) = (finding for finding in node.findings if finding.id == "K8S117")
    assert "288.0 GiB" in remark.message


def test_the_device_id_is_trusted_over_the_name_and_current_over_beta() -> None:
    stale = {
        "amd.com/gpu.device-id": "740f",
        "amd.com/gpu.product-name": "Instinct_MI300X",
        "amd.com/gpu.vram": "64G",
        "beta.amd.com/gpu.vram.192G": "8",
        "beta.amd.com/gpu.device-id.74a1": "8",
    }
    node = only(json.dumps(kube_nodes.node(labels=stale, gpus=2)))
    assert [device.gpu for device in node.devices] == ["MI210", "MI210"]
    assert node.devices[0].memory_total_bytes == 64 * GIB
    assert ids(node) == {"K8S101", "K8S102"}


def test_a_virtual_function_is_known_by_its_id() -> None:
    labels = {
        "amd.com/gpu.device-id": "74b5",
        "amd.com/gpu.cu-count": "304",
        "feature.node.kubernetes.io/amd-vgpu": "true",
    }
    node = only(json.dumps(kube_nodes.node(labels=labels)))
    assert {device.gpu for device in node.devices} == {"MI300X"}
    assert state(node).labelled[0].virtual_function is True
    assert ids(node) == {"K8S103"}


def test_values_in_keys_describe_several_kinds_of_cards() -> None:
    labels = {
        "amd.com/gpu.device-id.74a1": "4",
        "amd.com/gpu.device-id.740f": "2",
        "amd.com/gpu.vram.192G": "4",
        "amd.com/gpu.vram.64G": "2",
        "amd.com/gpu.cu-count.304": "4",
        "amd.com/gpu.cu-count.104": "2",
        "amd.com/gpu.family.AI": "6",
    }
    node = only(json.dumps(kube_nodes.node(labels=labels, gpus=6)))
    assert sorted((d.gpu or "", d.memory_total_bytes or 0) for d in node.devices) == [
        ("MI210", 64 * GIB)
    ] * 2 + [("MI300X", 192 * GIB)] * 4  # fmt: skip
    assert "K8S116" in ids(node)
    fewer = only(json.dumps(kube_nodes.node(labels=labels, gpus=5)))
    assert [device.gpu for device in fewer.devices] == [None] * 5
    assert "K8S113" in ids(fewer)


def test_labels_without_capacity_and_capacity_without_labels_are_both_said() -> None:
    for gpus in (None, 0):
        labelled = only(json.dumps(kube_nodes.node(gpus=gpus)))
        assert labelled.devices == ()
        assert ids(labelled) == {"K8S104"}
    seen = only(
        json.dumps(kube_nodes.node(labels={"feature.node.kubernetes.io/pci-1200_1002.present": "true"}, gpus=None))
    )
    assert ids(seen) == {"K8S104"}
    bare = only(json.dumps(kube_nodes.node(labels={})))
    assert [device.gpu for device in bare.devices] == [None] * 8
    assert ids(bare) == {"K8S105"}
    assert ids(only(json.dumps(kube_nodes.node(labels={}, gpus=None)))) == set()


def test_lost_devices_and_taints_are_said() -> None:
    taints = [
        {"key": "dedicated", "value": "llm", "effect": "NoSchedule"},
        {"key": "soft", "effect": "PreferNoSchedule"},
    ]
    node = only(
        kube_nodes.listed(kube_nodes.node(gpus=6, capacity=8, taints=taints), kube_nodes.pod("one", "gpu-1", 7))
    )
    assert ids(node) == {"K8S106", "K8S107", "K8S114"}
    assert state(node).taints == ("dedicated=llm:NoSchedule",)
    assert state(node).resources[0].free == 0


@pytest.mark.parametrize("version", ["v1", "v1beta2", "v1beta1"])
def test_published_devices_are_the_nodes_devices(version: str) -> None:
    devices = [kube_nodes.device(number) for number in range(4)]
    devices[3]["taints"] = [{"key": "unhealthy", "effect": "NoExecute"}]
    text = kube_nodes.listed(
        kube_nodes.node(gpus=None),
        kube_nodes.resource_slice("gpu-1", [kube_nodes.device(9)], version=version, generation=1),
        kube_nodes.resource_slice("gpu-1", devices, version=version, generation=2),
        kube_nodes.resource_slice("gpu-1", [{"name": "x"}], driver="gpu.nvidia.com"),
        kube_nodes.claim("gpu-1", "gpu-0-128"),
    )
    cluster = nodes.read(text)
    (node,) = cluster.nodes
    assert [device.gpu for device in node.devices] == ["MI300X"] * 3
    assert ids(node) == {"K8S106", "K8S121"}
    first = node.devices[0]
    assert (first.bdf, first.numa_node, first.memory_total_bytes) == ("0000:05:00.0", 0, 206141652992)
    (resource,) = state(node).resources
    assert (resource.name, resource.capacity, resource.allocatable, resource.requested) == ("gpu.amd.com", 4, 3, 1)
    assert len(nodes.free(cluster).devices) == 2


def test_offered_partition_modes_of_one_card_count_once() -> None:
    modes = []
    for profile in ("spx-nps1", "dpx-nps2", "cpx-nps4"):
        compute, memory = profile.split("-")
        device = kube_nodes.device(0, profile="none")
        device["name"] = f"gpu-0-{profile}"
        device["attributes"] |= {"computePartition": {"string": compute}, "memoryPartition": {"string": memory}}
        modes.append(device)
    node = only(kube_nodes.listed(kube_nodes.resource_slice("gpu-1", modes)))
    (device_found,) = node.devices
    assert (device_found.gpu, device_found.partition) == ("MI300X", "SPX")


def test_disagreement_and_doubling_of_plugin_and_driver_are_said() -> None:
    labels = {**kube_nodes.MI300X, "amd.com/gpu.vram": "96G"}
    node = only(
        kube_nodes.listed(
            kube_nodes.node(labels=labels, gpus=1),
            kube_nodes.resource_slice("gpu-1", [kube_nodes.device(0, memory="0"), kube_nodes.device(1)], count=2),
        )
    )
    assert ids(node) == {"K8S002", "K8S115", "K8S118"}
    assert node.devices[0].sources["memory_total_bytes"] == "catalogue"


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", InvalidInput, "is empty"),
        (json.dumps(kube_nodes.node())[:300], Corrupt, "cut off"),
        (kube_nodes.listed(), InvalidInput, "holds no Kubernetes nodes"),
        (kube_nodes.listed(kube_nodes.pod("a", "b", 1)), InvalidInput, "it holds Pod"),
        ("hello world", InvalidInput, "holds no Kubernetes nodes"),
        ("a: [", InvalidInput, "neither JSON, YAML"),
        ('{"a": "b"}', InvalidInput, "holds no Kubernetes nodes"),
        ("[" * 100_000, Corrupt, "cut off"),
    ],
)
def test_what_holds_no_nodes_is_said(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        nodes.read(text, name="nodes.json")
    assert says in str(caught.value)


def test_a_node_without_status_is_a_partial_answer() -> None:
    bare = kube_nodes.node()
    del bare["status"]
    node = only(json.dumps(bare))
    assert state(node).ready is None
    assert ids(node) == {"K8S112"}


@pytest.mark.parametrize("amount", ["eight", -1, "99999999999", "1500m", None, [8]])
def test_an_amount_that_cannot_be_is_unknown_and_not_zero(amount: object) -> None:
    odd = kube_nodes.node()
    odd["status"]["allocatable"]["amd.com/gpu"] = amount
    node = only(json.dumps(odd))
    assert state(node).resources[0].allocatable is None
    assert ids(node) == {"K8S120"}
    silent = only('{"kind": "Node", "metadata": {"name": "x"}}')
    assert ids(silent) == {"K8S112"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("192G", 192 * GIB),
        ("196592", 196592 * 2**20),
        ("64", 64 * GIB),
        ("0G", None),
        ("N/A", None),
        ("65520MiB", 65520 * 2**20),
    ],
)
def test_memory_labels_are_read_with_and_without_unit(text: str, size: int | None) -> None:
    assert nodes_labels.gibibytes(text) == size


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["-1", "N/A", "1e99", "8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.data())
def test_damaged_objects_raise_only_what_is_promised(data: st.DataObject) -> None:
    cluster = json.loads(
        kube_nodes.listed(
            kube_nodes.node(),
            kube_nodes.pod("one", "gpu-1", 2),
            kube_nodes.resource_slice(
                "gpu-1", [kube_nodes.device(0)], version=data.draw(st.sampled_from(["v1", "v1beta1"]))
            ),
            kube_nodes.claim("gpu-1", "gpu-0-128"),
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        place = cluster
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 3)):
                place = place[key]
                continue
            place[key] = data.draw(JUNK)
            break
    text = json.dumps(cluster)
    text = text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text
    try:
        found = nodes.read(text)
    except (InvalidInput, Corrupt):
        return
    assert all(device.memory_total_bytes != 0 for device in found.devices)
    nodes.free(found)


@settings(max_examples=100)
@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_answered(text: str) -> None:
    with contextlib.suppress(InvalidInput, Corrupt):
        nodes.read(text)


def test_every_remark_is_in_the_guide() -> None:
    root = Path(__file__).parents[2]
    sources = [*root.glob("src/aim_engine/hardware/nodes*.py"), root / "src/aim_engine/deploy/inventory.py"]
    said = {found for path in sources for found in re.findall(r'"(K8S\d{3})"', path.read_text())}
    assert said == set(re.findall(r"K8S\d{3}", (root / "docs/guides/cluster.md").read_text()))


def test_a_recording_is_recognised_from_its_beginning() -> None:
    assert nodes.is_one(json.dumps(kube_nodes.node()))
    assert nodes.is_one("amd.com/gpu.device-id=74a1")
    assert not nodes.is_one('[{"gpu": 0, "asic": {"market_name": "X"}}]')
