"""Recordings of other kinds, and several of one machine: profilers, listings of the bus, tables of links."""

from __future__ import annotations

import json

import pytest

from aim_engine.errors import Corrupt
from aim_engine.hardware import detect, links, lspci, rocprof, sources
from recordings import (
    AMD_SMI_BOX,
    AMD_SMI_ENTRY,
    HWLOC,
    LSPCI,
    LSPCI_MACHINE_READABLE,
    LSPCI_NUMBERS,
    ROCM_SMI_OLD,
    ROCM_SMI_TABLES,
    ROCM_SMI_TEXT,
    ROCPROF,
    ROCPROF_OLD,
    rccl,
)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (json.dumps([AMD_SMI_ENTRY]), "amd-smi"),
        (AMD_SMI_BOX, "amd-smi"),
        (ROCM_SMI_TEXT, "rocm-smi"),
        (ROCM_SMI_TABLES, "rocm-smi"),
        (ROCPROF, "rocprof"),
        (ROCPROF_OLD, "rocprof"),
        (LSPCI, "lspci"),
        (LSPCI_NUMBERS, "lspci"),
        (LSPCI_MACHINE_READABLE, "lspci"),
        (HWLOC, "topology"),
        (rccl(2), "topology"),
    ],
)
def test_each_format_is_recognised_as_itself(text: str, source: str) -> None:
    assert next(known.NAME for known in sources.KNOWN if known.is_one(text)) == source
    assert sources.read([text], "it").devices


def test_a_profile_describes_its_one_gpu() -> None:
    node = detect.from_recorded(ROCPROF, name="sysinfo.csv", readings=True).nodes[0]
    (device,) = node.devices
    assert (device.gpu, device.arch, device.partition, device.memory_partition) == ("MI300X", "gfx942", "SPX", "NPS1")
    assert (device.compute_units, device.compute_dies, node.rocm_version, node.name) == (304, 8, "6.2.0", "node-7")
    assert device.memory is not None
    assert device.memory.bandwidth_bytes_s == 5_324_800_000_000
    assert device.readings is not None
    assert (device.readings.sclk_max_mhz, device.readings.mclk_max_mhz) == (2100, 1300)
    assert device.sources["compute_units"] == "rocprof"
    assert "HW034" in {finding.id for finding in node.findings}


def test_an_old_profile_may_be_several_cards_and_none_is_chosen() -> None:
    node = detect.from_recorded(ROCPROF_OLD).nodes[0]
    assert (node.devices[0].gpu, node.devices[0].compute_units, node.rocm_version) == (None, 104, "4.5.2")
    assert any("MI210 or MI250" in finding.message for finding in node.findings)


def test_a_listing_tells_cards_without_a_driver_from_those_that_serve() -> None:
    node = detect.from_recorded(LSPCI).nodes[0]
    (device,) = node.devices
    assert (device.gpu, device.bdf, device.driver) == ("MI300X", "0000:05:00.0", "amdgpu")
    told = {finding.evidence: finding.message for finding in node.findings if finding.id == "HST004"}
    assert set(told) == {"0000:26:00.0", "0000:46:00.0"}
    assert "no driver runs it" in told["0000:26:00.0"]
    assert "vfio-pci" in told["0000:46:00.0"]


@pytest.mark.parametrize("text", [LSPCI_NUMBERS, LSPCI_MACHINE_READABLE])
def test_a_listing_without_drivers_says_that_it_cannot_know(text: str) -> None:
    node = detect.from_recorded(text).nodes[0]
    assert [(device.pci_id, device.revision) for device in node.devices] == [("744c", "c8")]
    assert "HW035" in {finding.id for finding in node.findings}


def test_tables_of_links_give_weights_and_groups() -> None:
    node = detect.from_recorded(ROCM_SMI_TABLES).nodes[0]
    assert node.link_weights == {"0-1": 15, "0-2": 40, "1-2": 40}
    assert [device.hive for device in node.devices] == ["0", "0", None]
    assert [row[1:] for row in links.matrix(node)] == [
        ("-", "xGMI", "PCIe"),
        ("xGMI", "-", "PCIe"),
        ("PCIe", "PCIe", "-"),
    ]


def test_links_of_rocm_smi_in_json_say_the_same() -> None:
    pair = "(Topology) {} between DRM devices 0 and 1"
    document = {
        "system": {pair.format("Weight"): "15", pair.format("Link type"): "XGMI", pair.format("Hops"): "1"},
        "card0": {"Device ID": "0x740f"},
        "card1": {"Device ID": "0x740f"},
    }
    node = detect.from_recorded(json.dumps(document)).nodes[0]
    assert node.link_weights == {"0-1": 15}
    assert [device.hive for device in node.devices] == ["0", "0"]


def test_recordings_of_one_machine_fill_each_other_and_their_differences_are_told() -> None:
    listing = LSPCI.replace("0000:05", "0000:0c")
    topology = rccl(2, units=228).replace("0000:10:00.0", "0000:0c:00.0")
    node = detect.from_recorded(json.dumps([AMD_SMI_ENTRY]), listing, topology, name="all").nodes[0]
    (device,) = node.devices
    assert (device.compute_units, device.numa_node) == (304, 1)
    assert (device.sources["compute_units"], device.sources["driver"]) == ("amd-smi", "lspci")
    ids = [finding.id for finding in node.findings]
    assert ids.count("HW010") == 2, "compute units and NUMA node differ"
    assert "HW032" in ids
    told = next(finding.message for finding in node.findings if "compute_units" in finding.message)
    assert "amd-smi says 304" in told
    assert "rccl says 228" in told


def test_what_is_no_recording_is_refused_with_what_is() -> None:
    with pytest.raises(Corrupt, match="no recording of GPUs") as caught:
        detect.from_recorded("hello", name="x.txt")
    assert "amd-smi static --json" in (caught.value.hint or "")
    with pytest.raises(Corrupt, match="recording 2"):
        detect.from_recorded(json.dumps([AMD_SMI_ENTRY]), "hello")
    with pytest.raises(Corrupt, match="no listing"):
        lspci.read(["x"], "x")
    with pytest.raises(Corrupt, match="describes no GPU"):
        rocprof.read(["a,b,c"], "x")


def test_what_cannot_be_matched_is_said_and_left_out() -> None:
    two = json.dumps([AMD_SMI_ENTRY, {**AMD_SMI_ENTRY, "gpu": 1, "bus": {"bdf": "0000:22:00.0"}}])
    node = detect.from_recorded(two, ROCPROF).nodes[0]
    assert [device.compute_dies for device in node.devices] == [8, 8], "by the catalogue, not by the profile"
    assert [device.sources["compute_dies"] for device in node.devices] == ["catalogue", "catalogue"]
    assert "HW031" in {finding.id for finding in node.findings}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (json.dumps([AMD_SMI_ENTRY, {**AMD_SMI_ENTRY, "gpu": 1}], indent=1), "amd-smi"),
        ("WARNING [low power]\n" + json.dumps({"gpu_data": [AMD_SMI_ENTRY, {**AMD_SMI_ENTRY, "gpu": 1}]}), "amd-smi"),
        (json.dumps({"card0": ROCM_SMI_OLD["card0"], "card1": ROCM_SMI_OLD["card0"]}), "rocm-smi"),
    ],
)
def test_what_is_cut_off_is_read_as_far_as_it_goes_and_said(text: str, name: str) -> None:
    whole = sources.read([text], "x")
    assert len(whole.devices) == 2
    seen = set()
    for end in range(len(text) // 4, len(text) - 2, 7):
        try:
            node = sources.read([text[:end]], "x")
        except Corrupt:
            continue
        seen.add(len(node.devices))
        (told,) = [finding for finding in node.findings if finding.id == "HW036"]
        assert name in told.message
        for device, complete in zip(node.devices, whole.devices, strict=False):
            assert device.compute_units in (None, complete.compute_units)
            assert device.memory_total_bytes in (None, complete.memory_total_bytes)
    assert seen == {1, 2}


@pytest.mark.parametrize("text", ["", "[", "{}", "[1, 2]", "]", '{"a": "b', "[" * 5000, '["\\"'])
def test_what_is_whole_or_nothing_is_not_closed(text: str) -> None:
    assert sources.closed_json(text) is None


def test_a_document_is_closed_after_its_last_whole_value() -> None:
    closed = sources.closed_json('note\n{"a": [1, 2], "b, c": {"d": "x,\\"}", "e": [3, 4')
    assert closed is not None
    assert json.loads(closed) == {"a": [1, 2], "b, c": {"d": 'x,"}', "e": [3]}}
