"""The installed tools: asked in processes of their own, with a limit, the next one where one fails."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aim_engine.hardware import tools

LIBRARY = """
class AmdSmiMemoryType:
    VRAM = 0

def amdsmi_init(): pass
def amdsmi_get_processor_handles(): return ["a", "b"]
def amdsmi_get_gpu_asic_info(handle):
    return {"market_name": "AMD Instinct MI300X", "device_id": 0x74a1, "rev_id": 0, "num_compute_units": 304,
            "target_graphics_version": "gfx942"}
def amdsmi_get_gpu_device_bdf(handle): return {"a": "0000:0c:00.0", "b": "0000:22:00.0"}[handle]
def amdsmi_get_gpu_memory_total(handle, kind): return 206141652992
def amdsmi_get_gpu_memory_usage(handle, kind):
    if handle == "b":
        raise RuntimeError("AMDSMI_STATUS_NOT_SUPPORTED")
    return 297791488
def amdsmi_get_gpu_compute_partition(handle): return "SPX"
def amdsmi_topo_get_numa_node_number(handle): return 1
def amdsmi_get_gpu_driver_info(handle): return {"driver_name": "amdgpu", "driver_version": "6.14.14"}
"""

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts programs first on the path: python3 is this one, so that a library beside it is found."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "python3").symlink_to(sys.executable)

    def write(name: str, script: str) -> None:
        program = tmp_path / name
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return write


def test_the_tool_is_believed_and_a_missing_part_does_no_harm(install: Install) -> None:
    install(
        "amd-smi", 'echo "WARNING"; [ "$1" = static ] && echo \'[{"gpu": 0, "asic": {"market_name": "X1"}}]\'; exit 0'
    )
    (node,), silent = tools.ask()
    assert (node.name, node.devices[0].product, silent) == ("amd-smi", "X1", ())


def test_where_the_tool_fails_its_library_answers(install: Install, tmp_path: Path) -> None:
    install("amd-smi", "echo no libdrm >&2; exit 5")
    (tmp_path / "amdsmi.py").write_text(LIBRARY)
    (node,), (finding,) = tools.ask()
    first, second = node.devices
    assert (first.bdf, first.pci_id, first.arch, first.compute_units) == ("0000:0c:00.0", "74a1", "gfx942", 304)
    assert (first.memory_total_bytes, first.memory_used_bytes) == (206141652992, 297791488)
    assert second.memory_used_bytes is None
    assert (first.numa_node, first.partition, first.sources["bdf"]) == (1, "SPX", "amdsmi")
    assert "no libdrm" in finding.message


def test_the_older_tool_is_asked_last(install: Install) -> None:
    install("amd-smi", "echo broken >&2; exit 5")
    install("rocm-smi", 'echo \'{"card0": {"Device ID": "0x740f", "VRAM Total Memory (B)": "68702699520"}}\'')
    (node,), (finding,) = tools.ask()
    assert (node.name, node.devices[0].memory_total_bytes) == ("rocm-smi", 68702699520)
    assert (finding.id, "ended with 5: broken" in finding.message) == ("HW033", True)


def test_a_tool_that_hangs_with_what_it_started_costs_its_limit(install: Install) -> None:
    install("amd-smi", "sleep 60 & wait")
    begun_s = time.monotonic()
    none, (finding, *_) = tools.ask(limit_s=0.5)
    assert not none
    assert "did not answer" in finding.message
    assert time.monotonic() - begun_s < 10


def test_a_program_that_cannot_be_started_says_so(install: Install) -> None:
    install("amd-smi", "")
    output, trouble = tools.run(["/does/not/exist"], 1)
    assert output is None
    assert "No such file" in trouble
    none, (finding,) = tools.ask()
    assert not none
    assert "describes no GPU" in finding.message
