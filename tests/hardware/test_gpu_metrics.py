"""The driver's binary table: each version at its own places, all ones for unknown, never beyond where it is cut off."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import machines
from aim_engine.hardware import gpu_metrics, sensors

SIZES = {
    (1, 0): 80,
    (1, 1): 96,
    (1, 2): 104,
    (1, 3): 120,
    (1, 4): 288,
    (1, 5): 328,
    (1, 6): 1664,
    (1, 7): 2208,
    (1, 8): 3360,
    (2, 0): 120,
    (2, 1): 120,
    (2, 2): 128,
    (2, 3): 152,
    (2, 4): 168,
    (3, 0): 264,
}


def table(version: tuple[int, int], fields: dict[int, tuple[str, int]] | None = None, fill: int = 0xFF) -> bytes:
    """A table whose fields are all unknown but the given ones: offset -> (struct's letter, value)."""
    content = bytearray(bytes([fill]) * SIZES[version])
    struct.pack_into("<HBB", content, 0, SIZES[version], *version)
    for offset, (code, value) in (fields or {}).items():
        struct.pack_into(f"<{code}", content, offset, value)
    return bytes(content)


@pytest.mark.parametrize("version", SIZES)
def test_all_ones_mean_unknown_in_every_version(version: tuple[int, int]) -> None:
    said = gpu_metrics.parse(table(version))
    assert said is not None
    assert (said.header.format_revision, said.header.content_revision) == version
    unknown = gpu_metrics.Metrics(header=said.header, throttle_reasons=said.throttle_reasons)
    assert said == unknown
    assert said.throttle_reasons == ()


def test_a_card_of_1_3_says_heat_load_power_clocks_and_what_holds_it_down() -> None:
    said = gpu_metrics.parse(
        table(
            (1, 3),
            {
                4: ("H", 56),
                6: ("H", 59),
                8: ("H", 54),
                16: ("H", 3),
                18: ("H", 1),
                22: ("H", 36),
                54: ("H", 500),
                58: ("H", 1000),
                112: ("Q", 1 << 33),
            },
        )
    )
    assert said is not None
    assert said.temperature_c == {"edge": 56, "junction": 59, "mem": 54}
    assert (said.power_w, said.gfx_busy_percent, said.memory_busy_percent) == (36, 3, 1)
    assert (said.sclk_mhz, said.mclk_mhz, said.throttle_reasons) == (500, 1000, ("temperature",))


def test_an_accelerator_of_1_6_counts_what_held_it_down() -> None:
    counts = {32 + 4 * place: ("I", 10 * place) for place in range(6)}
    said = gpu_metrics.parse(table((1, 6), {4: ("H", 71), 10: ("H", 688), 12: ("H", 99), 264: ("H", 2100), **counts}))
    assert said is not None
    assert (said.temperature_c, said.power_w, said.sclk_mhz) == ({"junction": 71}, 688, 2100)
    assert said.throttle_counts["samples"] == 0
    assert said.throttle_counts["memory"] == 50


def test_processors_scale_their_numbers() -> None:
    said = gpu_metrics.parse(table((2, 1), {4: ("H", 2530), 40: ("H", 3401), 76: ("H", 800), 80: ("H", 400)}))
    assert said is not None
    assert (said.temperature_c, said.power_w, said.sclk_mhz, said.mclk_mhz) == ({"edge": 25.3}, 3.401, 800, 400)


def test_a_version_that_is_not_known_gives_its_header_alone() -> None:
    said = gpu_metrics.parse(struct.pack("<HBB", 500, 1, 9) + bytes(496))
    assert said == gpu_metrics.Metrics(
        header=gpu_metrics.Header(structure_size=500, format_revision=1, content_revision=9)
    )


def test_an_early_table_of_another_size_is_read_only_where_versions_agree() -> None:
    content = bytearray(table((1, 6), {4: ("H", 71), 264: ("H", 2100)}))
    struct.pack_into("<H", content, 0, 1600)
    said = gpu_metrics.parse(bytes(content))
    assert said is not None
    assert (said.temperature_c, said.sclk_mhz) == ({"junction": 71}, None)


@given(content=st.binary(max_size=400), version=st.sampled_from(sorted(SIZES)), cut=st.integers(0, 400))
def test_no_bytes_make_an_impossible_reading(content: bytes, version: tuple[int, int], cut: int) -> None:
    whole = struct.pack("<HBB", SIZES[version], *version) + content
    for each in (content, whole, whole[:cut]):
        said = gpu_metrics.parse(each)
        if said is None:
            continue
        assert all(0 < heat < 200 for heat in said.temperature_c.values())
        assert said.gfx_busy_percent is None or 0 <= said.gfx_busy_percent <= 100
        assert said.power_w is None or 0 <= said.power_w < 5000


def test_sensors_take_from_the_table_what_hwmon_does_not_show(tmp_path: Path) -> None:
    device = machines.card(tmp_path, 0, address="0000:04:00.0", device_id="74a1", files={})
    (device / "gpu_metrics").write_bytes(table((1, 6), {4: ("H", 71), 10: ("H", 688), 12: ("H", 99)}) + bytes(2432))
    said = sensors.read(device)
    assert (said.temperature_c, said.power_w, said.gpu_busy_percent) == ({"junction": 71}, 688, 99)
