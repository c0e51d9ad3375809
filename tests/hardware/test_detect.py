from __future__ import annotations

import tarfile
from pathlib import Path

import msgspec
import pytest

import machines
from aim_engine.errors import Corrupt, InvalidInput
from aim_engine.hardware import detect, joining, kfd, recording
from aim_engine.hardware.cluster import Cluster, Device, Finding


def findings(cluster: Cluster) -> dict[str, Finding]:
    return {finding.id: finding for node in cluster.nodes for finding in node.findings}


def test_a_node_is_its_cards_its_cpu_and_what_said_so(tmp_path: Path) -> None:
    cluster = detect.detect(machines.mi300x(tmp_path), run_tools=False)
    assert cluster.describe() == "8 x MI300X"
    device = cluster.devices[0]
    assert device.product == "AMD Instinct MI300X"
    assert device.sources["product"] == "catalogue"
    assert device.sources["memory_total_bytes"] == "drm"
    assert device.readings is None
    cpu = cluster.nodes[0].cpu
    assert cpu is not None
    assert (cpu.sockets, cpu.cores, cpu.numa_nodes) == (2, 192, 2)
    assert findings(cluster) == {}


def test_partitions_are_planned_as_what_they_are(tmp_path: Path) -> None:
    cluster = detect.detect(machines.mi300x(tmp_path, count=1, partition="CPX"), run_tools=False)
    assert cluster.describe() == "8 x MI300X-CPX"


def test_unknown_memory_is_the_catalogues_and_says_so(tmp_path: Path) -> None:
    cluster = detect.detect(machines.mi210_two_hives(tmp_path), run_tools=False)
    assert cluster.devices[0].memory_total_bytes == 64 * machines.GIB
    assert cluster.devices[0].sources["memory_total_bytes"] == "catalogue"
    found = findings(cluster)
    assert "4 GPUs of one group" in found["HW011"].remedy


def test_a_partitions_unknown_memory_is_its_share(tmp_path: Path) -> None:
    cluster = detect.detect(machines.mi300x(tmp_path, count=1, partition="CPX", with_drm=False), run_tools=False)
    assert {device.memory_total_bytes for device in cluster.devices} == {24 * machines.GIB}


@pytest.mark.parametrize(
    ("revision", "vram_bytes", "name"),
    [("0xc8", 25753026560, "RX7900XTX"), ("0xcc", 21458059264, "RX7900XT"), ("0xff", 21458059264, None)],
)
def test_products_of_one_id_are_told_apart(tmp_path: Path, revision: str, vram_bytes: int, name: str | None) -> None:
    cluster = detect.detect(machines.radeon(tmp_path, revision=revision, vram_bytes=vram_bytes), run_tools=False)
    assert cluster.devices[0].gpu == name


def test_a_card_outside_the_catalogue_keeps_its_family_name(tmp_path: Path) -> None:
    machines.radeon(tmp_path, device_id="731f", revision="0xc1", target=100100, units=40, vram_bytes=8 * machines.GIB)
    cluster = detect.detect(tmp_path, run_tools=False)
    assert cluster.devices[0].gpu is None
    assert cluster.devices[0].product == "AMD Radeon RX 5700 XT"
    assert "plans leave it out" in findings(cluster)["HW009"].message


def test_a_lowered_power_cap_is_reported(tmp_path: Path) -> None:
    cluster = detect.detect(machines.radeon(tmp_path, power_cap_w=120), run_tools=False)
    assert "120 W, 40% of its default 303 W" in findings(cluster)["HW005"].message


def test_the_processors_own_graphics_beside_a_card_are_reported(tmp_path: Path) -> None:
    cluster = detect.detect(machines.radeon(tmp_path, with_igpu=True), run_tools=False)
    assert len(cluster.devices) == 2
    assert "HIP_VISIBLE_DEVICES" in findings(cluster)["HW007"].remedy
    assert "HW009" not in findings(cluster)


def test_shared_memory_is_limited_to_what_is_free_now(tmp_path: Path) -> None:
    cluster = detect.detect(machines.strix_halo(tmp_path, available_bytes=40 * machines.GIB), run_tools=False)
    (device,) = cluster.devices
    assert device.memory_total_bytes is not None
    assert device.memory_used_bytes is not None
    free = device.memory_total_bytes - device.memory_used_bytes
    assert 26 * machines.GIB < free < 28 * machines.GIB
    assert device.gpu == "STRIX-HALO"
    assert "HW008" in findings(cluster)


def test_cards_on_the_bus_without_compute_are_reported(tmp_path: Path) -> None:
    machines.radeon(tmp_path)
    (tmp_path / "sys/class/kfd").rename(tmp_path / "sys/class/gone")
    for link in (tmp_path / "sys/class/drm").iterdir():
        link.unlink()
    cluster = detect.detect(tmp_path, run_tools=False)
    assert cluster.devices == ()
    assert findings(cluster)["HST004"].evidence == "0000:03:00.0"


def test_a_machine_without_gpu_has_its_cpu_and_no_complaint(tmp_path: Path) -> None:
    cluster = detect.detect(machines.cpu_only(tmp_path), run_tools=False)
    assert cluster.describe() == "no GPU (CPU only)"
    assert cluster.nodes[0].cpu is not None
    assert findings(cluster) == {}


@pytest.mark.parametrize(
    ("environment", "left"),
    [
        ({}, [0, 1, 2, 3]),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, [2, 0]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "3,2,1", "HIP_VISIBLE_DEVICES": "0,2"}, [3, 1]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"HIP_VISIBLE_DEVICES": ""}, [0, 1, 2, 3]),
        ({"HIP_VISIBLE_DEVICES": "1,-1,2"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "9"}, []),
        ({"ROCR_VISIBLE_DEVICES": "GPU-000000000000e3a2"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": "nonsense"}, []),
    ],
)
def test_visibility_variables_choose_and_renumber(tmp_path: Path, environment: dict[str, str], left: list[int]) -> None:
    machines.mi300x(tmp_path, count=4)
    everything = detect.detect(tmp_path, run_tools=False).devices
    cluster = detect.detect(tmp_path, run_tools=False, environment=environment)
    assert [device.bdf for device in cluster.devices] == [everything[index].bdf for index in left]
    assert [device.index for device in cluster.devices] == list(range(len(left)))
    assert ("ENV004" in findings(cluster)) == (len(left) != 4)
    pairs = len(left) * (len(left) - 1) // 2
    assert len(cluster.nodes[0].link_weights) == pairs


def test_contradicting_visibility_is_an_error_the_engine_would_raise(tmp_path: Path) -> None:
    environment = {"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1", "HSA_OVERRIDE_GFX_VERSION": "11.0.0"}
    cluster = detect.detect(machines.mi300x(tmp_path, count=2), run_tools=False, environment=environment)
    assert findings(cluster)["ENV003"].severity == "error"
    assert "11.0.0" in findings(cluster)["ENV005"].message


def test_the_tool_fills_gaps_and_disagreements_are_reported() -> None:
    kernel = Device(index=0, gpu=None, product="AMD GPU", arch="gfx942", bdf="0000:05:00.0", compute_units=304)
    tool = Device(
        index=7,
        gpu=None,
        product="AMD Instinct MI300X",
        arch="gfx942",
        bdf="0000:05:00.0",
        compute_units=38,
        memory_total_bytes=machines.MI300X_VRAM,
    )
    (device,), found = joining.join((kernel,), (tool,))
    assert device.index == 0
    assert device.memory_total_bytes == machines.MI300X_VRAM
    assert device.sources["memory_total_bytes"] == "amd-smi"
    assert device.compute_units == 304
    assert [finding.id for finding in found] == ["HW010"]


def test_partitions_that_a_tool_lists_under_one_address_are_matched_in_order() -> None:
    kernel = tuple(Device(index=i, gpu=None, product="AMD GPU", arch="gfx942", bdf=f"0000:05:00.{i}") for i in range(3))
    tool = tuple(
        Device(index=i, gpu=None, product="AMD GPU", arch="gfx942", bdf="0000:05:00.0", uuid=f"u{i}") for i in range(3)
    )
    joined, _ = joining.join(kernel, tool)
    assert [device.uuid for device in joined] == ["u0", "u1", "u2"]


def test_a_cluster_survives_the_way_through_json(tmp_path: Path) -> None:
    cluster = detect.detect(machines.mi300x(tmp_path, count=2), run_tools=False, readings=True)
    assert msgspec.json.decode(msgspec.json.encode(cluster), type=Cluster) == cluster


def test_the_first_specifications_detector_does_the_work(tmp_path: Path) -> None:
    detector = detect.GPUDetector(machines.mi300x(tmp_path / "machine", count=2))
    assert len(detector.detect_available_gpus()) == 2
    info = detector.get_gpu_info()
    assert info["gpu_count"] == 2
    assert info["gpus"] == "2 x MI300X"
    assert info["memory_per_gpu"] == pytest.approx(192, rel=0.01)
    assert info["devices"][0]["readings"]["power_cap_w"] == 750


def test_this_machine_can_be_read() -> None:
    cluster = detect.detect(run_tools=False)
    assert cluster.nodes[0].cpu is not None


def test_an_archive_is_read_like_a_folder_and_removed(tmp_path: Path) -> None:
    machines.mi300x(tmp_path / "m", count=1)
    archive = tmp_path / "m.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "m", arcname=".")
    with recording.opened(archive) as folder:
        assert len(kfd.read(folder).devices) == 1
        assert kfd.read(folder).devices[0].power_cap_w == 750
    assert not folder.exists()


def test_names_and_links_that_leave_an_archive_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar"
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (tmp_path / "vendor").write_text("0x1002\n")
    with tarfile.open(archive, "w") as tar:
        for name in ("../escaped", "/absolute-escaped", "sys/class/drm/card0/device/vendor"):
            tar.add(tmp_path / "vendor", arcname=name)
        for target in (str(outside), "../../../../outside"):
            link = tarfile.TarInfo("sys/class/drm/card1")
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    with recording.opened(archive) as folder:
        names = [path for path in folder.rglob("*") if path.is_file()]
        assert all(path.resolve().is_relative_to(folder.resolve()) for path in names)
        assert not (folder / "sys/class/drm/card1").exists()
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not an archive", b"\x1f\x8b\x08\x00broken", b"BZh9broken", b"\xfd7zXZ\x00broken"]
)
def test_a_damaged_archive_is_said_to_be_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.tar.gz").write_bytes(content)
    with pytest.raises(Corrupt), recording.opened(tmp_path / "broken.tar.gz"):
        pass


def test_a_truncated_archive_is_said_to_be_one(tmp_path: Path) -> None:
    machines.mi300x(tmp_path / "m", count=4)
    archive = tmp_path / "m.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "m", arcname=".")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(Corrupt), recording.opened(archive):
        pass


def test_a_recording_that_is_not_there_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput), recording.opened(tmp_path / "none.tar"):
        pass
