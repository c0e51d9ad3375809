"""What rules may know of a host is read from the machine, and what it does not show is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

import machines
from aim_engine.backend import around
from aim_engine.doctor import host as hosts
from aim_engine.errors import Corrupt


def test_a_node_of_eight_is_described(tmp_path: Path) -> None:
    root = machines.mi300x(tmp_path, count=8)
    machines.write(root, {"sys/module/amdgpu/version": "6.16.13"})
    found = around.of_host(hosts.read(root))
    assert found["host_gpus"] == 8
    assert found["host_card"] == "MI300X"
    assert found["host_partition"] == "SPX"
    assert found["driver"] == (6, 16, 13)
    assert 190 < found["host_free_gib"] < 192
    assert found["host_used_percent"] < 5
    assert found["host_memory_gib"] == 1536


def test_what_a_host_does_not_show_is_left_out(tmp_path: Path) -> None:
    found = around.of_host(hosts.read(machines.cpu_only(tmp_path)))
    assert found["host_gpus"] == 0
    assert not {"host_card", "host_free_gib", "host_mec", "driver", "host_partition"} & set(found)


def test_cdi_files_are_counted_and_other_kinds_passed_over(tmp_path: Path) -> None:
    machines.write(
        tmp_path,
        {
            "etc/cdi/amd.yaml": "kind: amd.com/gpu\ndevices: [{name: '0'}, {name: '1'}, {name: all}]\n",
            "etc/cdi/other.json": '{"kind": "nvidia.com/gpu", "devices": [{"name": "0"}]}',
        },
    )
    assert around.of_cdi(tmp_path) == {"host_cdi": 2}
    assert around.of_cdi(tmp_path / "etc") == {}
    (tmp_path / "etc/cdi/broken.yaml").write_text("{")
    with pytest.raises(Corrupt, match=r"broken\.yaml"):
        around.of_cdi(tmp_path)
