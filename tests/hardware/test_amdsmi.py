from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_engine.errors import AimError, Corrupt
from aim_engine.hardware import amdsmi, detect
from recordings import AMD_SMI_BOX, AMD_SMI_ENTRY

MIB = 1024**2

TEXT = """
GPU: 0
    ASIC:
        MARKET_NAME: AMD Instinct MI300X
        DEVICE_ID: 0x74a1
        REV_ID: 0x00
        NUM_COMPUTE_UNITS: 304
        TARGET_GRAPHICS_VERSION: gfx942
    BUS:
        BDF: 0000:0c:00.0
        MAX_PCIE_SPEED: 32 GT/s
    LIMIT:
        MAX_POWER: 750 W
        SOCKET_POWER: 700 W
        SLOWDOWN_HOTSPOT_TEMPERATURE: 100 \u00b0C
        SLOWDOWN_EDGE_TEMPERATURE: N/A
    NUMA:
        NODE: 1
        AFFINITY: -1
    PARTITION:
        COMPUTE_PARTITION: SPX
        MEMORY_PARTITION: NPS1
    VRAM:
        TYPE: HBM
        SIZE: 196592 MB

GPU: 1
    ASIC:
        MARKET_NAME: AMD Instinct MI300X
"""


@pytest.mark.parametrize(
    "output",
    [
        json.dumps([AMD_SMI_ENTRY]),
        json.dumps({"gpu_data": [AMD_SMI_ENTRY]}),
        json.dumps({"gpu_0": {key: value for key, value in AMD_SMI_ENTRY.items() if key != "gpu"}}),
        json.dumps([AMD_SMI_ENTRY]).upper().replace("X74A1", "x74a1"),
        "WARNING: user is not in the render group\n[warn] x\n"
        + json.dumps([AMD_SMI_ENTRY], indent=4)
        + "\ntrailing text }",
        "\0\0" + json.dumps([AMD_SMI_ENTRY]) + "\0" * 100,
        TEXT,
        TEXT.replace("\n", "\r\n"),
    ],
    ids=["list", "gpu_data", "gpu_N", "upper case", "text around", "padding", "text", "text with CR"],
)
def test_every_envelope_says_the_same(output: str) -> None:
    device = amdsmi.parse(output)[0]
    assert device.product.lower() == "amd instinct mi300x"
    assert device.arch == "gfx942"
    assert (device.pci_id, device.revision) == ("74a1", "00")
    assert device.bdf == "0000:0c:00.0"
    assert device.compute_units == 304
    assert device.memory_total_bytes == 196592 * MIB
    assert device.power_cap_w == 700
    assert device.numa_node == 1
    assert (device.partition, (device.memory_partition or "").upper()) == ("SPX", "NPS1")


def test_bare_numbers_of_the_first_release_are_read() -> None:
    entry = {"gpu": 3, "asic": {"num_compute_units": 304}, "vram": {"size": 196592}, "limit": {"socket_power": 700}}
    (device,) = amdsmi.parse(json.dumps([entry]))
    assert device.index == 3
    assert device.memory_total_bytes == 196592 * MIB
    assert device.power_cap_w == 700


def test_limits_of_the_nested_form_are_read() -> None:
    rail = {"socket_power_limit": {"value": 100, "unit": "W"}, "max_power_limit": {"value": 203, "unit": "W"}}
    entry = {"gpu": 0, "limit": {"ppt0": rail, "ppt1": "N/A"}}
    (device,) = amdsmi.parse(json.dumps({"gpu_data": [entry]}))
    assert device.power_cap_w == 100
    assert device.readings is not None
    assert device.readings.power_cap_max_w == 203


@pytest.mark.parametrize(
    "unknown", ["N/A", None, 65535, 0xFFFFFFFF, "", {"value": "N/A", "unit": "MB"}, [], float("nan")]
)
def test_what_the_tool_does_not_know_stays_unknown(unknown: object) -> None:
    entry = {"gpu": 0, "asic": {"num_compute_units": unknown}, "vram": {"size": unknown}, "numa": {"node": unknown}}
    (device,) = amdsmi.parse(json.dumps([entry]))
    assert device.compute_units is None
    assert device.memory_total_bytes is None
    assert device.numa_node is None


def test_outputs_of_several_commands_are_joined_by_gpu() -> None:
    metric = {
        "gpu": 0,
        "mem_usage": {"total_vram": {"value": 196592, "unit": "MB"}, "used_vram": {"value": 0, "unit": "MB"}},
        "power": {"socket_power": {"value": 124, "unit": "W"}},
        "temperature": {"edge": "N/A", "hotspot": {"value": 41, "unit": "C"}},
        "usage": {"gfx_activity": {"value": 7, "unit": "%"}},
    }
    listed = {"gpu": 0, "bdf": "0000:0c:00.0", "uuid": "c0ff74a1-0000-1000-80b1-06985c515c91"}
    (device,) = amdsmi.parse(json.dumps([AMD_SMI_ENTRY]), json.dumps([metric]), json.dumps([listed]))
    assert device.memory_used_bytes == 0
    assert device.uuid == "c0ff74a1-0000-1000-80b1-06985c515c91"
    assert device.power_cap_w == 700
    assert device.readings is not None
    assert device.readings.power_w == 124
    assert device.readings.temperature_c == {"junction": 41.0}
    assert device.readings.gpu_busy_percent == 7


def test_a_comma_separated_list_has_a_device_in_each_row() -> None:
    devices = amdsmi.parse("gpu,gpu_bdf,gpu_uuid\r\n0,0000:0c:00.0,c0ff\r\n1,0000:22:00.0,bbff\r\n")
    assert [(device.bdf, device.uuid) for device in devices] == [("0000:0c:00.0", "c0ff"), ("0000:22:00.0", "bbff")]


def test_comma_separated_metrics_have_quoted_lists_and_only_the_first_sample_counts() -> None:
    text = (
        "timestamp,gpu,gfx_activity,vcn_activity,socket_power,edge,hotspot,mem,total_vram,used_vram\n"
        "1,0,95,\"['N/A', 'N/A']\",350,N/A,72,65,196592,1024\n2,0,10,\"['N/A', 'N/A']\",99,N/A,50,40,196592,5\n"
    )
    (device,) = amdsmi.parse(text)
    assert device.memory_used_bytes == 1024 * MIB
    assert device.power_cap_w is None
    assert device.readings is not None
    assert device.readings.power_w == 350
    assert device.readings.temperature_c == {"junction": 72.0, "mem": 65.0}


def test_a_comma_separated_socket_power_beside_limits_is_a_limit() -> None:
    (device,) = amdsmi.parse(
        "gpu,market_name,max_power,min_power,socket_power,size\n0,AMD Instinct MI210,300,0,290,65520\n"
    )
    assert device.power_cap_w == 290
    assert device.product == "AMD Instinct MI210"
    assert device.memory_total_bytes == 65520 * MIB


def test_the_monitor_table_is_read_by_its_columns() -> None:
    text = (
        "GPU  POWER  GPU_TEMP  MEM_TEMP  VRAM_USED  VRAM_TOTAL\n"
        "  0  248 W     55 \u00b0C     48 \u00b0C     283 MB   196300 MB\n"
        "  1  247 W     N/A       48 \u00b0C     283 MB   196300 MB\n"
    )
    first, second = amdsmi.parse(text)
    assert first.memory_total_bytes == 196300 * MIB
    assert first.readings is not None
    assert first.readings.temperature_c == {"junction": 55.0, "mem": 48.0}
    assert second.readings is not None
    assert second.readings.temperature_c == {"mem": 48.0}


def test_the_default_box_is_read() -> None:
    first, second = amdsmi.parse(AMD_SMI_BOX)
    assert (first.product, first.bdf) == ("AMD Instinct MI300X", "0000:05:00.0")
    assert (first.partition, first.memory_partition) == ("CPX", "NPS4")
    assert first.memory_total_bytes == 24574 * MIB
    assert first.power_cap_w == 750
    assert first.readings is not None
    assert first.readings.temperature_c == {"junction": 41.0}
    assert second.memory_used_bytes == 90 * MIB
    assert second.readings is None


def test_both_shapes_of_the_topology_are_the_same_links() -> None:
    old = [
        {"gpu": 0, "link_type": {"gpu_0": "SELF", "gpu_1": "XGMI"}, "weight": {"gpu_0": 0, "gpu_1": 15}},
        {"gpu": 1, "link_type": {"gpu_0": "XGMI", "gpu_1": "SELF"}, "weight": {"gpu_0": 15, "gpu_1": 0}},
    ]
    new = [
        {
            "gpu": one,
            "bdf": f"0000:0{one}:00.0",
            "links": [
                {"gpu": two, "link_type": "SELF" if one == two else "XGMI", "weight": 0 if one == two else 15}
                for two in (0, 1)
            ],
        }
        for one in (0, 1)
    ]
    assert set(amdsmi.parse_topology(json.dumps(old))) == set(amdsmi.parse_topology(json.dumps(new)))
    assert len(amdsmi.parse_topology(json.dumps(new))) == 4


def test_a_recorded_output_becomes_a_cluster_with_its_cards() -> None:
    cluster = detect.from_recorded(json.dumps([AMD_SMI_ENTRY]), readings=True)
    assert cluster.describe() == "1 x MI300X"
    assert cluster.devices[0].readings is not None


def test_a_name_that_the_tool_cut_does_not_hide_the_card() -> None:
    entry = {
        "gpu": 0,
        "asic": {"market_name": "Navi 23 [Radeon RX 6600/6600 XT", "device_id": "0x73ff", "rev_id": "0xc7"},
    }
    assert detect.from_recorded(json.dumps([entry])).devices[0].gpu == "RX6600"


@pytest.mark.parametrize(
    "output", ["", "{}", "[]", "no GPUs here", "[" * 10_000, '{"gpu_data": 5}', '[{"gpu": "x"}]', "\0"]
)
def test_output_without_a_gpu_is_refused(output: str) -> None:
    with pytest.raises(Corrupt):
        amdsmi.parse(output)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_any_value_in_any_place_is_read_or_refused(data: st.DataObject) -> None:
    entry = json.loads(json.dumps(AMD_SMI_ENTRY))
    for _ in range(data.draw(st.integers(1, 4))):
        section = data.draw(st.sampled_from(sorted(entry)))
        if isinstance(entry[section], dict) and data.draw(st.booleans()):
            entry[section][data.draw(st.sampled_from(sorted(entry[section]) or ["x"]))] = data.draw(JSON)
        else:
            entry[section] = data.draw(JSON)
    text = json.dumps(data.draw(st.sampled_from([[entry], {"gpu_data": [entry]}])))
    text = text[: data.draw(st.integers(len(text) // 2, len(text)))]
    try:
        devices = amdsmi.parse(text)
    except AimError:
        return
    for device in devices:
        assert device.memory_total_bytes is None or device.memory_total_bytes > 0


@settings(deadline=None, max_examples=80)
@given(st.sampled_from([TEXT, AMD_SMI_BOX, "gpu,market_name,size\n0,X,1\n1,Y,2\n"]), st.data())
def test_cut_or_changed_text_is_read_or_refused(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    changed = text[:start] + data.draw(st.text(max_size=20)) + text[start + data.draw(st.integers(0, 30)) :]
    try:
        amdsmi.parse(changed)
    except AimError:
        return
