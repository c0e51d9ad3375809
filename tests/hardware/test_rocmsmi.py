"""rocm-smi through its releases: JSON with spoken keys, text lines, warnings in front, and names that are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.errors import Corrupt
from aim_engine.hardware import detect, rocmsmi
from recordings import ROCM_SMI_OLD, ROCM_SMI_TEXT


def test_an_old_release_is_read_and_its_empty_names_are_not_believed() -> None:
    (device,) = detect.from_recorded(json.dumps(ROCM_SMI_OLD), readings=True).nodes[0].devices
    assert (device.gpu, device.pci_id, device.bdf) == ("MI100", "738c", "0000:1e:00.0")
    assert (device.memory_total_bytes, device.memory_used_bytes) == (34342961152, 6782976)
    assert device.readings is not None
    assert (device.readings.power_w, device.readings.power_cap_w) == (39.0, 290.0)
    assert device.readings.temperature_c == {"edge": 31.0}
    assert device.sources["bdf"] == "rocm-smi"


def test_text_lines_say_the_same_as_json() -> None:
    node = detect.from_recorded(ROCM_SMI_TEXT, readings=True).nodes[0]
    (device,) = node.devices
    assert (device.gpu, device.partition, node.driver_version) == ("MI300X", "SPX", "6.16.13")
    assert device.readings is not None
    assert (device.readings.power_w, device.readings.sclk_mhz) == (749.0, 1259)


def test_a_warning_before_the_document_and_two_outputs_are_joined() -> None:
    one = {"card0": {"GPU ID": "0x73ff", "VRAM Total Memory (B)": "8573157376"}}
    other = {"card0": {"PCI Bus": "0000:03:00.0"}}
    (device,) = rocmsmi.parse("WARNING: low power {x}\n\n" + json.dumps(one), json.dumps(other))
    assert (device.memory_total_bytes, device.bdf) == (8573157376, "0000:03:00.0")


def test_what_is_unknown_is_none_and_never_zero() -> None:
    cards = {"card0": {"GPU ID": "N/A", "VRAM Total Memory (B)": "N/A", "GPU use (%)": "65535", "PCI Bus": "N/A"}}
    (device,) = rocmsmi.parse(json.dumps(cards))
    assert device.pci_id is None
    assert device.memory_total_bytes is None
    assert device.bdf is None
    assert device.readings is not None
    assert device.readings.gpu_busy_percent is None


@pytest.mark.parametrize("output", ["", "{}", '{"system": {}}', '{"card": 3}', "GPU[0]"])
def test_an_output_without_a_card_is_an_error(output: str) -> None:
    with pytest.raises(Corrupt, match="describes no GPU"):
        rocmsmi.parse(output)


@given(st.data())
def test_a_damaged_output_never_trips(data: st.DataObject) -> None:
    content = data.draw(st.sampled_from([json.dumps(ROCM_SMI_OLD), ROCM_SMI_TEXT]))
    start, end = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, len(content)))
    mixed = content[:start] + data.draw(st.text(max_size=10)) + content[end:]
    try:
        devices = rocmsmi.parse(mixed)
    except Corrupt:
        return
    assert devices
