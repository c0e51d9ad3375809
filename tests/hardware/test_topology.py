"""Topology files of RCCL and hwloc: devices, NUMA nodes, hives and links; nothing believed that the tool cannot know."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.errors import Corrupt
from aim_engine.hardware import detect, links, topology
from recordings import HWLOC, rccl


def test_a_mesh_is_one_hive_with_a_link_between_any_two() -> None:
    node = detect.from_recorded(rccl(), name="dump.xml").nodes[0]
    assert [device.gpu for device in node.devices] == ["MI300X"] * 8
    assert {device.hive for device in node.devices} == {"0"}
    assert [device.numa_node for device in node.devices] == [0] * 4 + [1] * 4
    assert len(node.link_weights) == 28
    assert set(node.link_weights.values()) == {links.ONE_STEP}
    assert node.devices[0].sources["bdf"] == "rccl"
    assert node.devices[0].memory_used_bytes is None


def test_an_old_number_of_an_architecture_is_understood() -> None:
    node = topology.parse(rccl(2, device="0x740c", gcn="910", units=104))
    assert {device.arch for device in node.devices} == {"gfx90a"}


def test_hwloc_gives_memory_hive_and_numa_node_and_keeps_the_tools_order() -> None:
    first, second = topology.parse(HWLOC).devices
    assert (first.bdf, first.numa_node, first.memory_total_bytes, first.hive) == (
        "0000:c1:00.0",
        3,
        67092480 * 1024,
        "dc41",
    )
    assert (second.bdf, second.numa_node, second.memory_total_bytes) == ("0000:d1:00.0", 0, None)


def test_a_compressed_file_is_unpacked_and_a_bomb_is_not() -> None:
    assert topology.unpacked(gzip.compress(HWLOC.encode()), "x") == HWLOC
    with pytest.raises(Corrupt, match="larger than any such file"):
        topology.unpacked(gzip.compress(b" " * (topology.MAX_BYTES + 1000)), "x")
    with pytest.raises(Corrupt, match="cannot be unpacked"):
        topology.unpacked(b"\x1f\x8bnot gzip at all", "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<system version="1"><cpu>', "not readable as XML"),
        ('<topology version="2"', "not readable as XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><system version="1"/>', "defines entities"),
        ("<html/>", "not a topology file"),
        (
            '<topology version="2">' + '<object type="Group">' * 500 + "</object>" * 500 + "</topology>",
            "nested more than",
        ),
    ],
)
def test_a_damaged_file_is_told(text: str, said: str) -> None:
    with pytest.raises(Corrupt, match=said):
        topology.parse(text)


def test_a_machine_without_gpu_says_so() -> None:
    node = topology.parse('<system version="1"><cpu numaid="0"/></system>')
    assert node.devices == ()
    assert "shows no AMD GPU" in node.findings[0].message


@given(st.data())
def test_a_mutated_file_never_trips(data: st.DataObject) -> None:
    content = data.draw(st.sampled_from([rccl(4), HWLOC]))
    start, end = sorted((data.draw(st.integers(0, len(content))), data.draw(st.integers(0, len(content)))))
    mixed = content[:start] + data.draw(st.text(max_size=12)) + content[end:]
    try:
        node = topology.parse(mixed)
    except Corrupt:
        return
    assert len(node.devices) <= 8
