"""What amd-smi adds to the driver's files: every release's form, a limit of time, and no figure of a card twice."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import machines
from aim_engine.errors import Corrupt
from aim_engine.hardware import amdsmi
from aim_engine.kpi import measures
from aim_engine.monitor import devices, smi


def value(number: float | str, unit: str) -> dict[str, object]:
    return {"value": number, "unit": unit}


STATIC = {
    "gpu": 0,
    "asic": {"market_name": "AMD Instinct MI300X"},
    "bus": {"bdf": "0000:0C:00.0"},
    "limit": {"slowdown_hotspot_temperature": value(100, "C"), "socket_power": value(750, "W")},
    "vram": {"size": value(196592, "MB")},
}
METRIC: dict[str, Any] = {
    "gpu": 0,
    "usage": {"gfx_activity": value(87, "%"), "umc_activity": value(41, "%")},
    "power": {"socket_power": value(742, "W"), "gfx_voltage": "N/A"},
    "clock": {"gfx_0": {"clk": value(1259, "MHz"), "max_clk": value(2100, "MHz")}},
    "temperature": {"edge": "N/A", "hotspot": value(89, "C"), "mem": value(61, "C")},
    "pcie": {"width": 16, "speed": value(32, "GT/s"), "replay_count": 3},
    "ecc": {"total_correctable_count": 5, "total_uncorrectable_count": 0, "total_deferred_count": "N/A"},
    "ecc_blocks": {"UMC": {"uncorrectable_count": 0}, "XGMI_WAFL": {"uncorrectable_count": 2}},
    "energy": {"total_energy_consumption": value(1234567.5, "J")},
    "mem_usage": {"total_vram": value(196592, "MB"), "used_vram": value(98304, "MB")},
    "throttle": {
        "accumulation_counter": 1226415116,
        "prochot_accumulated": 0,
        "ppt_accumulated": 12,
        "socket_thermal_accumulated": 4,
        "vr_thermal_accumulated": 0,
        "hbm_thermal_accumulated": 1,
    },
}


def upper(found: Any) -> Any:
    if isinstance(found, dict):
        return {key.upper(): upper(inner) for key, inner in found.items()}
    return [upper(each) for each in found] if isinstance(found, list) else found


def bare(found: Any) -> Any:
    """Numbers without their unit, as before ROCm 6.1."""
    if isinstance(found, dict):
        return found["value"] if set(found) == {"value", "unit"} else {key: bare(each) for key, each in found.items()}
    return found


WITH_UNITS = {**METRIC, "throttle": {name: value(each, "") for name, each in METRIC["throttle"].items()}}
FORMS = {
    "a list, numbers with units (6.1 to 6.4)": json.dumps([METRIC]),
    "a list, bare numbers (6.0)": json.dumps([bare(METRIC)]),
    "gpu_data (7.0)": json.dumps({"gpu_data": [METRIC]}),
    "gpu_data, counters with units (7.1)": json.dumps({"gpu_data": [WITH_UNITS]}),
    "other case of keys": json.dumps({"gpu_data": upper([METRIC])}),
    "a mapping by number": json.dumps({"gpu_0": METRIC}),
    "text before and after": f"WARNING: not in render group\n{json.dumps([METRIC])}\n\ndone\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_output_is_read(form: str) -> None:
    (card,) = smi.read([FORMS[form], json.dumps([STATIC])], 7.0).values()
    assert card.gauges == {
        "gpu_busy": 87.0,
        "gpu_memory_busy": 41.0,
        "gpu_memory_used": 98304.0,
        "gpu_memory_total": 196592.0,
        "gpu_power": 742.0,
        "gpu_power_cap": 750.0,
        "gpu_junction": 89.0,
        "gpu_junction_crit": 100.0,
        "gpu_hbm_temperature": 61.0,
        "gpu_clock": 1259.0,
        "gpu_clock_max": 2100.0,
    }
    assert card.counters == {
        "gpu_ecc_correctable": 5.0,
        "gpu_ecc_uncorrectable": 0.0,
        "pcie_replays": 3.0,
        "xgmi_errors": 2.0,
        "gpu_energy": 1234567.5,
        "throttle_samples": 1226415116.0,
        "throttle_prochot": 0.0,
        "throttle_power": 12.0,
        "throttle_socket": 4.0,
        "throttle_vr": 0.0,
        "throttle_memory": 1.0,
    }
    assert set(card.gauges) | set(card.counters) <= set(measures.BY_NAME)
    assert set(smi.read([FORMS[form], json.dumps([STATIC])], 7.0)) == {"0000:0c:00.0"}


def test_what_a_guest_does_not_see_is_absent_not_zero() -> None:
    blind = {
        "gpu": 0,
        "usage": {"gfx_activity": value("N/A", "%")},
        "power": {"socket_power": "N/A"},
        "throttle": "N/A",
        "energy": {"total_energy_consumption": value(0.0, "J")},
        "ecc": {"total_correctable_count": "N/A"},
        "mem_usage": {"total_vram": value(196288, "MB"), "used_vram": value(0, "MB")},
    }
    (card,) = smi.read([json.dumps([blind])], 1.0).values()
    assert (card.gauges, card.counters) == ({"gpu_memory_used": 0.0, "gpu_memory_total": 196288.0}, {})


@pytest.mark.parametrize("output", ["", "no devices", "[]", '{"gpu_data": []}', "[1, 2", "null"])
def test_what_is_no_output_of_it_is_said_so(output: str) -> None:
    with pytest.raises(Corrupt):
        smi.read([output], 1.0)


def answering(**answers: str | None) -> smi.Ask:
    def ask(arguments: Sequence[str], _: float) -> str | None:
        return answers.get(arguments[0])

    return ask


def test_the_drivers_files_come_first_and_amd_smi_fills_the_rest(tmp_path: Path) -> None:
    root = machines.well_kept(machines.mi300x(tmp_path, count=2))
    own = devices.read(root, 1.0)
    first = min(own)
    static = {**STATIC, "bus": {"bdf": first}}
    partition = {**METRIC, "gpu": 1}
    cards = smi.Cards(
        root, ask=answering(metric=json.dumps([METRIC, partition]), static=json.dumps([static, {"gpu": 1}]))
    )
    cards.wait()
    found = cards(time.time())
    assert set(found) == set(own), "a partition is no card of its own"
    assert found[first].gauges["gpu_memory_total"] == own[first].gauges["gpu_memory_total"]
    assert "gpu_energy" not in own[first].counters
    assert found[first].counters["gpu_energy"] == 1234567.5
    assert found[first].families["gpu_energy"] == "amd-smi"
    assert found[first].families["gpu_memory_total"] == "driver"


def test_without_the_drivers_files_amd_smi_is_read_alone(tmp_path: Path) -> None:
    cards = smi.Cards(tmp_path, ask=answering(metric=json.dumps([METRIC]), static=json.dumps([STATIC])))
    cards.wait()
    assert cards(time.time())["0000:0c:00.0"].gauges["gpu_power"] == 742.0
    assert cards(time.time() + 3600) == {}, "what it said an hour ago no longer counts"


def test_silence_and_nonsense_are_told_once_and_do_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers: dict[str, str | None] = {"metric": "Segmentation fault"}
    cards = smi.Cards(tmp_path, ask=lambda arguments, _: answers.get(arguments[0]))
    for _ in range(3):
        cards.wait()
    answers["metric"] = None
    cards.wait()
    assert cards(time.time()) == {}
    assert len(caplog.records) == 1
    answers["metric"] = json.dumps([METRIC])
    cards.wait()
    assert list(cards(time.time())) == ["gpu 0"]


def test_nobody_waits_for_a_tool_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "amd-smi"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(smi, "LIMIT_S", 1.0)
    ask = smi.installed()
    assert ask is not None
    cards = smi.Cards(tmp_path, ask=ask)
    began = time.monotonic()
    for _ in range(5):
        assert cards(time.time()) == {}
    assert time.monotonic() - began < 0.5
    cards.close()
    assert ask(("metric",), 0.5) is None
    assert time.monotonic() - began < 5


def test_the_installed_tool_is_asked_only_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "amd-smi"
    program.write_text(f"#!/bin/sh\n[ $1 = metric ] && echo '{json.dumps([METRIC])}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    elsewhere = smi.Cards(tmp_path)
    elsewhere.wait()
    assert elsewhere(time.time()) == {}
    here = smi.Cards(smi.LIVE)
    here.wait()
    assert here(time.time())["gpu 0"].gauges["gpu_power"] == 742.0


@pytest.mark.corpus
@pytest.mark.parametrize(
    "path", sorted(Path(os.environ.get("AIM_ENGINE_CORPUS") or "/nowhere").glob("**/amd_smi/*/metric.json")) or [None]
)
def test_recorded_outputs_are_read(path: Path | None) -> None:
    if path is None:
        pytest.skip("no recordings of amd-smi")
    expected = json.loads((path.parent / "expected.json").read_text())
    outputs = [each.read_text() for each in (path, path.parent / "static.json") if each.exists()]
    found = smi.read(outputs, 1.0)
    assert len(found) == len(amdsmi.parse(*outputs)) == expected.get("gpu_count", len(found))
    for card in found.values():
        assert set(card.gauges) | set(card.counters) <= set(measures.BY_NAME)
        assert card.gauges["gpu_memory_total"] > 0
