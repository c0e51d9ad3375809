from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import machines
from aim_engine.errors import AimError
from aim_engine.hardware import detect, drm, gpu_metrics, kfd, sensors


@pytest.mark.parametrize(
    ("version", "arch"),
    [
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (90500, "gfx950"),
        (100303, "gfx1033"),
        (110003, "gfx1103"),
        (110501, "gfx1151"),
        (120001, "gfx1201"),
        (120500, "gfx1250"),
        (0, None),
        (None, None),
        (-3, None),
    ],
)
def test_target_versions_are_decimal_with_hexadecimal_ends(version: int | None, arch: str | None) -> None:
    assert kfd.arch_of(version) == arch


def test_a_location_is_a_pci_address_whose_function_is_the_partition() -> None:
    assert kfd.address_of(0, 0x0501) == "0000:05:00.1"
    assert kfd.address_of(3, 0x0018) == "0003:00:03.0"
    assert kfd.address_of(0, 0x0500 | 3 << 28) == "0000:05:00.3"
    assert kfd.package_of("0000:05:00.3") == "0000:05:00.0"


def test_a_whole_node_shows_every_device_with_its_place(tmp_path: Path) -> None:
    shown = kfd.read(machines.mi300x(tmp_path))
    assert [device.bdf for device in shown.devices[:2]] == ["0000:05:00.0", "0000:15:00.0"]
    assert {device.arch for device in shown.devices} == {"gfx942"}
    assert {device.compute_units for device in shown.devices} == {304}
    assert {device.partition for device in shown.devices} == {"SPX"}
    assert {device.memory_partition for device in shown.devices} == {"NPS1"}
    assert {device.memory_total_bytes for device in shown.devices} == {machines.MI300X_VRAM}
    assert [device.numa_node for device in shown.devices] == [0] * 4 + [1] * 4
    assert [device.render_minor for device in shown.devices] == list(range(128, 136))
    assert {device.hive for device in shown.devices} == {str(0xD2C9A1)}
    assert {device.power_cap_w for device in shown.devices} == {750}
    assert set(shown.link_weights.values()) == {15}
    assert len(shown.link_weights) == 28
    assert shown.cpu_nodes == 2
    assert shown.cpu_cores_per_node == 192
    assert shown.findings == ()


@pytest.mark.parametrize("with_drm", [True, False])
@pytest.mark.parametrize(("mode", "parts"), [("DPX", 2), ("QPX", 4), ("CPX", 8)])
def test_partitions_are_devices_of_their_package(tmp_path: Path, mode: str, parts: int, with_drm: bool) -> None:
    shown = kfd.read(machines.mi300x(tmp_path, count=2, partition=mode, with_drm=with_drm))
    assert len(shown.devices) == 2 * parts
    assert {device.partition for device in shown.devices} == {mode}
    assert {device.compute_units for device in shown.devices} == {304 // parts}
    assert len({device.bdf for device in shown.devices}) == 2 * parts
    assert len({kfd.package_of(device.bdf or "") for device in shown.devices}) == 2
    assert {device.memory_used_bytes for device in shown.devices} == {None}
    expected = machines.MI300X_VRAM // parts if with_drm else None
    assert {device.memory_total_bytes for device in shown.devices} == {expected}
    assert sum(device.readings is not None for device in shown.devices) == (2 if with_drm else 0)


def test_a_packages_memory_is_divided_where_its_partitions_do_not_show_theirs(tmp_path: Path) -> None:
    machines.mi300x(tmp_path, count=1, partition="CPX")
    for bank in tmp_path.glob("sys/class/kfd/kfd/topology/nodes/*/mem_banks/0/properties"):
        if "heap_type 1" in bank.read_text():
            bank.unlink()
    shown = kfd.read(tmp_path)
    assert {device.memory_total_bytes for device in shown.devices} == {machines.MI300X_VRAM // 8}
    assert shown.devices[0].sources["memory_total_bytes"] == "drm / 8 partitions"


def test_a_partition_that_does_not_show_is_reported_and_not_assumed(tmp_path: Path) -> None:
    shown = kfd.read(machines.mi300x(tmp_path, count=2, partition="CPX", with_drm=False, missing=[17]))
    assert len(shown.devices) == 15
    assert any(finding.id == "HW002" and "7 of 8" in finding.message for finding in shown.findings)


def test_two_bridges_are_two_hives_and_devices_keep_the_drivers_order(tmp_path: Path) -> None:
    shown = kfd.read(machines.mi210_two_hives(tmp_path))
    assert [device.bdf for device in shown.devices][:4] == [f"0000:{bus}:00.0" for bus in ("63", "43", "03", "26")]
    assert len({device.hive for device in shown.devices}) == 2
    assert shown.link_weights["0-1"] == 15
    assert shown.link_weights["0-4"] == 72
    assert {device.partition for device in shown.devices} == {None}
    assert {device.memory_total_bytes for device in shown.devices} == {None}
    assert any(finding.id == "HW003" and "memory" in finding.message for finding in shown.findings)


def test_old_kernels_without_target_domain_and_dies_are_read_by_device_id(tmp_path: Path) -> None:
    machines.cpu_node(tmp_path, 0, threads=20)
    machines.gpu_node(
        tmp_path, 1, location=0x1900, device_id=0x6860, target=None, units=64, dies=None, vram_bytes=17163091968
    )
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties"
    kept = [line for line in node.read_text().splitlines() if line.split()[0] not in ("domain", "hive_id")]
    node.write_text("\n".join(kept))
    (device,) = kfd.read(tmp_path).devices
    assert (device.arch, device.sources["arch"]) == ("gfx900", "pci id")
    assert device.bdf == "0000:19:00.0"
    assert device.memory_total_bytes == 17163091968
    assert device.hive is None


def test_an_apu_uses_what_it_may_map_of_system_memory(tmp_path: Path) -> None:
    (device,) = kfd.read(machines.strix_halo(tmp_path)).devices
    assert device.shared_memory
    assert device.memory_total_bytes == (128 * machines.GIB - 512 * machines.MIB) // 2
    assert device.arch == "gfx1151"


def test_an_apu_with_a_large_carve_out_uses_that(tmp_path: Path) -> None:
    (device,) = kfd.read(machines.strix_halo(tmp_path, carve_out_bytes=96 * machines.GIB)).devices
    assert not device.shared_memory
    assert device.memory_total_bytes == 96 * machines.GIB


def test_cards_of_the_old_driver_are_named_and_left_out(tmp_path: Path) -> None:
    shown = kfd.read(machines.radeon_under_old_driver(tmp_path))
    assert shown.devices == ()
    (finding,) = shown.findings
    assert finding.id == "HW004"
    assert "radeon" in finding.message
    assert "HD 7870" in finding.message


def test_a_generation_without_compute_is_named_and_left_out_also_under_the_new_driver(tmp_path: Path) -> None:
    machines.card(
        tmp_path, 0, address="0000:01:00.0", device_id="679a", files={"mem_info_vram_total": 3 * machines.GIB}
    )
    shown = kfd.read(tmp_path)
    assert shown.devices == ()
    assert "no compute support" in shown.findings[0].message


def test_a_card_that_the_compute_topology_does_not_list_is_named(tmp_path: Path) -> None:
    machines.radeon(tmp_path)
    machines.card(tmp_path, 5, address="0000:43:00.0", device_id="73bf", files={})
    shown = kfd.read(tmp_path)
    assert [device.bdf for device in shown.devices] == ["0000:03:00.0"]
    assert shown.findings[0].evidence == "0000:43:00.0"


def test_nodes_of_other_containers_are_passed_over(tmp_path: Path) -> None:
    machines.mi300x(tmp_path, count=3)
    (tmp_path / "sys/class/kfd/kfd/topology/nodes/3/properties").write_text("")
    shown = kfd.read(tmp_path)
    assert [device.bdf for device in shown.devices] == ["0000:05:00.0", "0000:25:00.0"]
    assert [device.index for device in shown.devices] == [0, 1]
    assert "HW001" in {finding.id for finding in shown.findings}


def test_padding_with_zero_bytes_is_not_content(tmp_path: Path) -> None:
    machines.radeon(tmp_path)
    for path in sorted((tmp_path / "sys/devices").rglob("*")):
        if path.is_file() and not path.is_symlink():
            path.write_bytes(path.read_bytes().ljust(4096, b"\0"))
    (card,) = drm.cards(tmp_path)
    assert (card.driver, card.pci_id, card.revision) == ("amdgpu", "744c", "c8")
    assert card.vram_total_bytes == 25753026560
    assert sensors.read(card.folder).performance_level == "auto"


def test_cards_are_found_through_the_kernels_links(tmp_path: Path) -> None:
    (card,) = drm.cards(machines.radeon(tmp_path))
    assert card.address == "0000:03:00.0"
    assert card.render_minor == 128
    assert card.numa_node == -1
    (device,) = kfd.read(tmp_path).devices
    assert device.numa_node == 0


def test_the_id_comes_from_uevent_where_a_recording_lacks_the_files(tmp_path: Path) -> None:
    machines.radeon(tmp_path)
    folder = tmp_path / "sys/devices/pci0000:00/0000:03:00.0"
    (folder / "device").unlink()
    (folder / "vendor").unlink()
    (card,) = drm.cards(tmp_path)
    assert card.pci_id == "744c"


def test_the_machines_own_list_of_names_is_used(tmp_path: Path) -> None:
    machines.radeon(tmp_path)
    names = tmp_path / "usr/share/libdrm/amdgpu.ids"
    names.parent.mkdir(parents=True)
    names.write_text("# List\n1.0.0\n744C,\tC8,\tAMD Radeon RX 7900 XTX of this machine\n")
    (card,) = drm.cards(tmp_path)
    assert card.product == "AMD Radeon RX 7900 XTX of this machine"


def test_sensors_are_found_by_label_and_scaled(tmp_path: Path) -> None:
    (card,) = drm.cards(machines.radeon(tmp_path))
    readings = sensors.read(card.folder)
    assert readings.temperature_c == {"edge": 53.0, "junction": 61.0}
    assert readings.temperature_critical_c == {"edge": 100.0}
    assert (readings.power_w, readings.power_cap_w, readings.power_cap_max_w) == (68.0, 303.0, 333.0)
    assert readings.sclk_levels_mhz == (500, 31, 2219)
    assert readings.sclk_mhz == 31
    assert readings.link == "16.0 GT/s x16"
    assert readings.gpu_busy_percent == 3
    assert readings.power_caps_w == {}


def test_several_rails_are_told_apart(tmp_path: Path) -> None:
    hwmon = {"power1_label": "slowPPT", "power1_cap": 15_000_000, "power2_label": "fastPPT", "power2_cap": 20_000_000}
    device = machines.card(tmp_path, 0, address="0000:04:00.0", device_id="163f", files={}, hwmon=hwmon)
    readings = sensors.read(device)
    assert readings.power_caps_w == {"slowPPT": 15.0, "fastPPT": 20.0}
    assert readings.power_cap_w == 15.0


def test_the_size_of_the_metrics_table_is_in_its_header(tmp_path: Path) -> None:
    device = machines.card(tmp_path, 0, address="0000:04:00.0", device_id="73bf", files={})
    (device / "gpu_metrics").write_bytes(bytes([120, 0, 1, 3]) + bytes(4092))
    header = sensors.read(device).metrics
    assert header == gpu_metrics.Header(structure_size=120, format_revision=1, content_revision=3)


def test_nothing_at_all_is_no_device(tmp_path: Path) -> None:
    shown = kfd.read(tmp_path)
    assert shown.devices == ()
    assert shown.findings == ()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_damaged_trees_never_raise_but_our_own_errors(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("damaged")
    builders: list[Callable[[Path], Path]] = [machines.radeon, machines.strix_halo, machines.mi210_two_hives]
    builders[data.draw(st.integers(0, 2))](root)
    rng = random.Random(seed)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    for path in rng.sample(files, k=min(len(files), 12)):
        content = path.read_bytes()
        match rng.randrange(5):
            case 0:
                path.write_bytes(content[: rng.randrange(len(content) + 1)])
            case 1:
                path.write_bytes(bytes(rng.randrange(256) for _ in range(40)))
            case 2:
                path.write_bytes(content.replace(b"1", b"-99999999999999999999999"))
            case 3:
                path.unlink()
            case _:
                path.write_bytes(content.replace(b" ", b"\n", 1) + b"\xff\x00")
    try:
        cluster = detect.detect(root, run_tools=False, readings=True)
    except AimError:
        return
    for device in cluster.devices:
        assert device.memory_total_bytes is None or device.memory_total_bytes > 0
