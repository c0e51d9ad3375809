"""Recordings of real machines by others, found by glob under AIM_ENGINE_CORPUS and compared with the expected.json beside each.

Every key of an expected.json that is in the vocabulary below is compared, whatever the recording; null means that the recording
does not say, and then we must not say either. Keys outside the vocabulary are remarks or belong to other sources.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from aim_engine.errors import AimError, Corrupt
from aim_engine.hardware import amdsmi, catalog, detect, drm, identity, kfd, nodes, recording, sensors, topology
from aim_engine.hardware.cluster import Device, Node
from aim_engine.hardware.readings import Readings

pytestmark = pytest.mark.corpus
CORPUS = os.environ.get("AIM_ENGINE_CORPUS", "")
Compare = Callable[[Any, Any], None]


def recordings(kind: str) -> list[Any]:
    found = sorted(Path(CORPUS).glob(f"hardware/{kind}/*/expected.json")) if CORPUS else []
    if not found:
        reason = f"no recordings at AIM_ENGINE_CORPUS={CORPUS}" if CORPUS else "AIM_ENGINE_CORPUS is not set"
        return [pytest.param(Path(), marks=pytest.mark.skip(reason=reason), id="none")]
    return [pytest.param(path.parent, id=path.parent.name) for path in found]


def compare(expected: Mapping[str, Any], vocabulary: Mapping[str, Callable[[Any], Any]]) -> None:
    """Each known key against what we found; all differences at once."""
    wrong = []
    for key, find in vocabulary.items():
        if key in expected:
            found = find(expected[key])
            if found != expected[key]:
                wrong.append(f"{key}: expected {expected[key]!r}, found {found!r}")
    assert not wrong, "\n".join(wrong)


def one(values: Sequence[Any]) -> Any:
    """The value all devices share; the list of them where they differ."""
    return values[0] if len(set(map(str, values))) == 1 else list(values)


def says_same_product(expected: str, found: str) -> bool:
    """Model numbers in common, or else words: recorders and the maker spell names differently."""
    numbers = set(re.findall(r"\d{2,}", expected)) & set(re.findall(r"\d{2,}", found))
    words = {word.lower() for word in re.findall(r"[A-Za-z]{3,}", expected)} - {
        "amd",
        "radeon",
        "series",
        "graphics",
        "apu",
    }
    return bool(numbers or words & {word.lower() for word in re.findall(r"[A-Za-z]{3,}", found)})


@pytest.mark.parametrize("folder", recordings("kfd_trees"))
def test_compute_topologies_are_read_as_expected(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    with recording.opened(folder / "sys.tar.gz") as root:
        shown = kfd.read(root)
        named = detect.detect(root, run_tools=False).devices
    devices = shown.devices
    packages = Counter(kfd.package_of(device.bdf or "") for device in devices)
    of_kernel = [device.arch if device.sources.get("arch") == "kfd" else None for device in devices]
    between = {
        kind: {
            link.weight
            for link in shown.links
            if (one_end := by_node(devices, link.source))
            and (other := by_node(devices, link.target))
            and kind == relation(one_end, other, link.kind)
        }
        for kind in ("same package", "other package", "xgmi")
    }
    to_cpu = {link.weight for link in shown.links if link.kind == "pcie" and by_node(devices, link.target) is None}
    xgmi_rates = {link.bandwidth_bytes_s for link in shown.links if link.kind == "xgmi" and link.bandwidth_bytes_s}

    def physical(wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for entry in wanted:
            members = [device for device in devices if kfd.package_of(device.bdf or "") == kfd.package_of(entry["bdf"])]
            first = members[0] if members else None
            facts = {
                "bdf": kfd.package_of(first.bdf or "") if first else None,
                "partitions": len(members),
                "numa_cpu_node": first.numa_node if first else None,
                "kfd_node": first.kfd_node if first else None,
                "render_minor": first.render_minor if first else None,
                "hive": next(
                    (name for name, value in expected.get("hives", {}).items() if first and value == first.hive), None
                ),
            }
            found.append({key: facts.get(key, value) for key, value in entry.items()})
        return found

    hives = {device.hive for device in devices if device.hive is not None}
    compare(
        expected,
        {
            "cpu_nodes": lambda _: shown.cpu_nodes,
            "cpu_cores_per_node": lambda _: shown.cpu_cores_per_node,
            "gpu_nodes_logical": lambda _: len(devices),
            "gpu_physical": lambda wanted: len(packages) if wanted is not None else None,
            "gpu_physical_by_bdf": lambda _: len(packages),
            "gpu_physical_by_unique_id": lambda _: len({device.uuid for device in devices}),
            "physical": physical,
            "product": lambda wanted: (
                wanted if all(says_same_product(wanted, d.product) for d in named) else named[0].product
            ),
            "pci_device_id": lambda _: f"0x{one([device.pci_id for device in devices])}",
            "gfx": lambda _: one(of_kernel),
            "gfx_by_device_id": lambda _: one([device.arch for device in devices]),
            "cu_per_logical": lambda _: one([device.compute_units for device in devices]),
            "cu_per_physical_if_whole": lambda _: one(
                [gpu.compute_units for gpu in catalog.sharing(devices[0].pci_id)]
            ),
            "compute_partition": lambda _: one([device.partition for device in devices]),
            "memory_partition": lambda _: one([device.memory_partition for device in devices]),
            "vram_bytes_per_logical": lambda wanted: (
                [device.memory_total_bytes for device in devices]
                if isinstance(wanted, list)
                else one([device.memory_total_bytes for device in devices])
            ),
            "system_memory_bytes": lambda _: shown.system_memory_bytes,
            "xgmi_hives": lambda _: len(hives),
            "hives": lambda wanted: wanted if set(wanted.values()) == hives else sorted(hives),
            "link_weight_same_package": lambda _: (
                one(sorted(map(str, between["same package"]))) and only(between["same package"])
            ),
            "link_weight_other_package": lambda _: only(between["other package"]),
            "xgmi_weight": lambda _: only(between["xgmi"]),
            "xgmi_max_bandwidth_mbps": lambda _: only({rate // 10**6 for rate in xgmi_rates}),
            "cpu_link_weight": lambda _: only(to_cpu),
            "render_minors": lambda wanted: (
                [min(minors(devices)), max(minors(devices))] if len(wanted) == 2 else minors(devices)
            ),
        },
    )


def by_node(devices: Sequence[Device], node: int) -> Device | None:
    return next((device for device in devices if device.kfd_node == node), None)


def relation(first: Device, second: Device, kind: str) -> str:
    if kind != "xgmi" or first is second:
        return "none"
    if first.partition in (None, "SPX"):
        return "xgmi"
    return "same package" if kfd.package_of(first.bdf or "") == kfd.package_of(second.bdf or "") else "other package"


def only(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else sorted(values, key=str)


def minors(devices: Sequence[Device]) -> list[int]:
    return [device.render_minor for device in devices if device.render_minor is not None]


@pytest.mark.parametrize("folder", recordings("sysfs_cards"))
def test_cards_are_read_as_expected(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    with recording.opened(folder / "sys.tar.gz") as root:
        card = next(card for card in drm.cards(root) if card.address == expected.get("bdf", card.address))
        readings = sensors.read(card.folder)
        shown = kfd.read(root)
        cluster = detect.detect(root, run_tools=False)
        kfd_present = (root / kfd.TOPOLOGY).is_dir()
    known = identity.of(card.pci_id, card.revision)
    device = next((device for device in shown.devices if device.bdf == card.address), None)
    named = next((device for device in cluster.devices if device.bdf == card.address), None)
    product = named.product if named is not None else (known.product if known else "")

    def header(_: object) -> dict[str, int] | None:
        if readings.metrics is None:
            return None
        return {name: getattr(readings.metrics, name) for name in readings.metrics.__struct_fields__}

    def places(found: Mapping[str, float]) -> Callable[[Mapping[str, float]], dict[str, float | None]]:
        return lambda wanted: (
            {place: found.get(place.split()[0]) for place in wanted} if len(wanted) == len(found) else dict(found)
        )

    compare(
        expected,
        {
            "driver": lambda _: card.driver,
            "pci_id": lambda wanted: f"1002:{card.pci_id.upper()}" if card.pci_id else None,
            "bdf": lambda _: card.address,
            "product": lambda wanted: wanted if says_same_product(wanted, product) else product,
            "rocm_capable": lambda _: named is not None,
            "apu": lambda _: bool(known and known.apu),
            "gfx": lambda _: device.arch if device else None,
            "gfx_by_device_id": lambda _: device.arch if device else None,
            "cu": lambda _: device.compute_units if device else None,
            "vram_total_bytes": lambda _: card.vram_total_bytes,
            "vram_used_bytes": lambda _: card.vram_used_bytes,
            "vis_vram_total_bytes": lambda _: card.vis_vram_total_bytes,
            "gtt_total_bytes": lambda _: card.gtt_total_bytes,
            "kfd_mem_bank_bytes": lambda _: device.memory_total_bytes if device else None,
            "usable_for_rocm_bytes": lambda _: device.memory_total_bytes if device else None,
            "system_memory_bytes": lambda _: shown.system_memory_bytes,
            "kfd_present": lambda _: kfd_present,
            "unique_id": lambda _: card.unique_id,
            "numa_node": lambda _: card.numa_node,
            "temp_c": places(readings.temperature_c),
            "temp_crit_c": places(readings.temperature_critical_c),
            "temp_emergency_c": places(readings.temperature_emergency_c),
            "power_w": lambda _: readings.power_w,
            "power_cap_w": lambda _: readings.power_cap_w,
            "power_cap_min_w": lambda _: readings.power_cap_min_w,
            "power_cap_max_w": lambda _: readings.power_cap_max_w,
            "power_cap_default_w": lambda _: readings.power_cap_default_w,
            "power_caps": lambda _: readings.power_caps_w,
            "gpu_busy_percent": lambda _: readings.gpu_busy_percent,
            "mem_busy_percent": lambda _: readings.mem_busy_percent,
            "sclk_levels_mhz": lambda _: list(readings.sclk_levels_mhz),
            "sclk_current_mhz": lambda _: readings.sclk_mhz,
            "link": lambda _: readings.link,
            "gpu_metrics_header": header,
            "power_dpm_force_performance_level": lambda _: readings.performance_level,
            "pcie_replay_count": lambda _: readings.pcie_replay_count,
            "vram_vendor": lambda _: readings.vram_vendor,
        },
    )


@pytest.mark.parametrize("folder", recordings("amd_smi"))
def test_outputs_of_amd_smi_are_read_as_expected(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    texts = {
        path.name: path.read_text("utf-8", "replace")
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".txt", ".csv")
    }
    outputs: dict[str, list[str]] = {}
    for name, text in texts.items():
        if name == "expected.json" or name.startswith("rocm-smi"):
            continue
        try:
            amdsmi.parse(text)
        except Corrupt:
            continue
        outputs.setdefault(Path(name).suffix, []).append(text)
    assert outputs, f"nothing of {sorted(texts)} could be read"
    devices = amdsmi.parse(
        *outputs.get(".json", []), *outputs.get(".txt", []), *([] if ".json" in outputs else outputs.get(".csv", []))
    )
    first = devices[0]
    readings = first.readings or Readings()
    names = {"hotspot": "junction", "vram": "mem"}

    def places(found: Mapping[str, float]) -> Callable[[Any], Any]:
        def find(wanted: Any) -> Any:
            if not isinstance(wanted, dict):
                return next(iter(found.values()), None)
            return {place: found.get(str(names.get(place, place))) for place in wanted}

        return find

    def partition(_: object) -> str | None:
        return "/".join(part for part in (first.partition, first.memory_partition) if part) or None

    compare(
        expected,
        {
            "gpu_count": lambda _: len(devices),
            "gpu_count_json": lambda _: len(amdsmi.parse(*outputs[".json"])),
            "gpu_count_csv": lambda _: len(amdsmi.parse(*outputs[".csv"])),
            "gpu_count_in_pod": lambda _: len(devices),
            "name": lambda _: first.product,
            "device_id": lambda _: f"0x{first.pci_id}" if first.pci_id else None,
            "gfx": lambda _: first.arch,
            "gfx_from_amd_smi": lambda _: first.arch,
            "cu": lambda _: first.compute_units,
            "bdf": lambda _: first.bdf,
            "uuid": lambda _: first.uuid,
            "numa_node": lambda _: first.numa_node,
            "partition": partition,
            "vram_bytes": lambda _: first.memory_total_bytes,
            "vram_total_mib": lambda _: (first.memory_total_bytes or 0) // 2**20 or None,
            "vram_used_mib": lambda _: (
                first.memory_used_bytes // 2**20 if first.memory_used_bytes is not None else None
            ),
            "power_w": lambda _: readings.power_w,
            "power_cap_w": lambda _: readings.power_cap_w,
            "power_cap_min_w": lambda _: readings.power_cap_min_w,
            "power_cap_max_w": lambda _: readings.power_cap_max_w,
            "temp_c": places(readings.temperature_c),
            "temp_slowdown_c": places(readings.temperature_critical_c),
            "temp_shutdown_c": places(readings.temperature_emergency_c),
            "busy": lambda _: readings.gpu_busy_percent,
        },
    )


@pytest.mark.parametrize("folder", recordings("kubernetes"))
def test_kubernetes_nodes_are_read_as_expected(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    found: list[Node] = []
    for path in sorted(folder.iterdir()):
        if path.name != "expected.json" and path.suffix in (".json", ".yaml", ".yml", ".txt"):
            try:
                found.extend(nodes.read(path.read_text("utf-8", "replace"), name=path.name).nodes)
            except AimError as err:
                # Facts that somebody noted down are no recording of Kubernetes, and are refused with a reason.
                assert "nodes" in err.what or err.why  # noqa: PT017
    wanted = expected.get("nodes")
    parts = wanted.items() if isinstance(wanted, dict) else enumerate(wanted) if isinstance(wanted, list) else ()
    for key, each in parts:
        node = next((node for node in found if node.name == key), None)
        if isinstance(each, dict) and (node is not None or isinstance(key, int)):
            compare_node(each, node or found[key])
    if found:
        compare_node(expected, found[0])
    else:
        assert not {"device_id", "product", "cu", "vram_gib"} & set(expected)


def compare_node(expected: Mapping[str, Any], node: Node) -> None:
    state = node.scheduling
    assert state is not None
    card = state.labelled[0] if state.labelled else None
    first = node.devices[0] if node.devices else None
    memory = card.memory_bytes if card and card.memory_bytes else None
    offered = [resource.allocatable for resource in state.resources if resource.name == nodes.GPU_RESOURCE]

    def allocatable(wanted: int | None) -> int | None:
        if state.resources or "K8S104" in {finding.id for finding in node.findings}:
            return offered[0] if offered else 0
        # Labels alone do not say it; what must not be is a claim that pods get these GPUs.
        assert "K8S112" in {finding.id for finding in node.findings}
        return wanted

    counts = [each.count for each in state.labelled if each.count is not None]
    product = first.product if first is not None else ""
    compare(
        expected,
        {
            "device_id": lambda _: card.pci_id if card else None,
            "product": lambda wanted: wanted if says_same_product(wanted, product) else product,
            "cu": lambda _: card.compute_units if card else None,
            "vram_gib": lambda _: memory // 2**30 if memory else None,
            "vram_label_gib": lambda _: memory // 2**30 if memory else None,
            "driver": lambda _: node.driver_version,
            "family": lambda _: card.family if card else None,
            "product_name": lambda _: card.product.replace(" ", "_") if card and card.product else None,
            "product_name_label": lambda _: card.product.replace(" ", "_") if card and card.product else None,
            "virtual_function": lambda _: card.virtual_function if card else None,
            "gpu_count_by_labels": lambda _: sum(counts) if counts else None,
            "allocatable_amd_gpu": allocatable,
            "compute_partition": lambda _: first.partition if first else None,
            "memory_partition": lambda _: first.memory_partition if first else None,
        },
    )


@pytest.mark.parametrize("folder", recordings("rocm_smi"))
def test_rocm_smi_recordings_match(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    outputs = [path.read_text(errors="replace") for path in sorted(folder.glob("rocm-smi*"))]
    node = detect.from_recorded(*outputs, readings=True).nodes[0]
    assert len(node.devices) == expected["gpu_count"]
    entries = expected.get("gpus") or [{**expected, **expected.get("gpu0", {})}]
    for device, entry in zip(node.devices, entries, strict=False):
        readings = device.readings
        assert readings is not None
        total = entry.get("vram_total_bytes", entry.get("vram_total_bytes_each"))
        if total is not None:
            assert device.memory_total_bytes == total
        used = entry.get("vram_used_bytes", entry.get("vram_used"))
        if used is not None:
            assert device.memory_used_bytes == used
        if "bdf" in entry:
            assert device.bdf == entry["bdf"].lower()
        identity = entry.get("device_id", entry.get("device_id_from_card_model"))
        if identity:
            assert device.pci_id == identity.removeprefix("0x")
        arch = entry.get("gfx", entry.get("gfx_by_device_id"))
        if arch:
            assert device.arch == arch
        for key, value in (("power_w", readings.power_w), ("power_cap_w", readings.power_cap_w)):
            if key in entry:
                assert value == entry[key]
        for place, value in entry.get("temp_c", {}).items():
            assert readings.temperature_c["mem" if place == "memory" else place] == value
        if "busy" in entry:
            assert readings.gpu_busy_percent == round(entry["busy"])
        for key, partition in (
            ("compute_partition", device.partition),
            ("memory_partition", device.memory_partition),
            ("driver_version", node.driver_version),
        ):
            if key in entry:
                assert partition == entry[key]


@pytest.mark.parametrize("folder", recordings("topology_xml"))
def test_topology_files_match(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    source = next(path for path in sorted(folder.iterdir()) if ".xml" in path.name)
    node = detect.from_recorded(topology.unpacked(source.read_bytes(), source.name), name=source.name).nodes[0]
    by_numa: dict[str, list[str | None]] = {}
    for device in node.devices:
        by_numa.setdefault(str(device.numa_node), []).append(device.bdf)
    compare(
        expected,
        {
            "gpu_count": lambda _: len(node.devices),
            "gpu_count_logical": lambda _: len(node.devices),
            "pci_device_id": lambda _: "0x" + str(node.devices[0].pci_id),
            "gfx": lambda _: node.devices[0].arch,
            "cu_each": lambda _: node.devices[0].compute_units,
            "gpus_by_numa": lambda _: by_numa,
            "gpu_by_numa": lambda said: {
                numa: [f"rsmi{d.index} {d.bdf}" for d in node.devices if str(d.numa_node) == numa] for numa in said
            },
            "vram_bytes_each": lambda _: node.devices[0].memory_total_bytes,
            "hive": lambda _: node.devices[0].hive,
            "hives": lambda _: len({d.hive for d in node.devices}),
            "numa_nodes": lambda _: len(by_numa),
        },
    )


@pytest.mark.parametrize("folder", recordings("rocprof_sysinfo"))
def test_profiles_match(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    node = detect.from_recorded((folder / "sysinfo.csv").read_text("utf-8", "replace"), readings=True).nodes[0]
    (device,) = node.devices
    readings, memory = device.readings, device.memory
    compare(
        expected,
        {
            "model": lambda wanted: wanted if says_same_product(wanted, device.product) else device.product,
            "gfx": lambda _: device.arch,
            "cu": lambda _: device.compute_units,
            "num_xcd": lambda _: device.compute_dies,
            "compute_partition": lambda _: device.partition,
            "memory_partition": lambda _: device.memory_partition,
            "hbm_bw_gbps": lambda _: memory.bandwidth_bytes_s / 1e9 if memory and memory.bandwidth_bytes_s else None,
            "max_sclk_mhz": lambda _: readings.sclk_max_mhz if readings else None,
            "max_mclk_mhz": lambda _: readings.mclk_max_mhz if readings else None,
            "vbios": lambda _: device.vbios,
            "rocm": lambda _: node.rocm_version,
        },
    )
