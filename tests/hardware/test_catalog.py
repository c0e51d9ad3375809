from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine import facts
from aim_engine.errors import AimError, InvalidInput, MissingFigure
from aim_engine.hardware import catalog
from aim_engine.hardware.gpu import Gpu

FILES = sorted((facts.BUNDLED / "gpus").glob("*.yaml"))
IDENTITY = {"name", "product", "arch", "kind", "aliases", "provenance", "shared_memory"}
CARDS = [catalog.load(path.stem) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_figure_of_every_card_has_an_origin(path: Path) -> None:
    written = facts.parse_yaml(path.read_bytes(), path.name)
    assert isinstance(written, dict)
    gpu = facts.read(path, Gpu)
    assert path.stem == gpu.name == gpu.name.upper()
    for figure in set(written) - IDENTITY:
        assert figure in gpu.provenance, f"{figure} of {gpu.name} has no origin"
    for figure, origin in gpu.provenance.items():
        assert figure.split(".")[0] in written, f"an origin for a figure that is not there: {figure}"
        assert len(origin.source) > 3
        assert origin.checked.count("-") == 2


@pytest.mark.parametrize("gpu", CARDS, ids=lambda gpu: gpu.name)
def test_figures_of_every_card_are_of_a_possible_size(gpu: Gpu) -> None:
    assert 2**32 <= gpu.memory_bytes <= 2**40
    assert gpu.arch.startswith("gfx")
    assert gpu.bandwidth_bytes_s is None or 10**11 <= gpu.bandwidth_bytes_s <= 10**14
    for dtype, flop_s in gpu.compute_flop_s.items():
        assert dtype in ("bf16", "fp16", "fp8", "int8", "fp6", "fp4")
        assert 10**13 <= flop_s <= 10**17
    if "fp8" in gpu.compute_flop_s:
        assert gpu.fp8_format == ("fnuz" if gpu.arch in ("gfx940", "gfx941", "gfx942") else "ocp")
        assert gpu.compute_flop_s["fp8"] >= gpu.compute_flop_s["bf16"]
    if gpu.compute_dies is not None and gpu.compute_units is not None:
        assert gpu.compute_units % gpu.compute_dies == 0
    for pci_id in gpu.pci_ids:
        assert pci_id == pci_id.lower()
        int(pci_id.partition(":")[0], 16)


def test_no_two_cards_answer_to_one_name() -> None:
    seen: dict[str, str] = {}
    for gpu in CARDS:
        for name in (gpu.name, gpu.product, *gpu.aliases):
            assert catalog.load(name).name == gpu.name, f"{name} is {catalog.load(name).name} and {gpu.name}"
            assert seen.setdefault(name.lower(), gpu.name) == gpu.name


def test_figures_are_per_device_where_a_card_holds_two() -> None:
    card = catalog.load("MI250X")
    assert card.devices_per_card == 2
    assert card.memory_bytes == 64 * 2**30
    assert card.compute("bf16") == 191_500_000_000_000
    assert card.bandwidth() == 1_640_000_000_000


@pytest.mark.parametrize("name", ["mi300x", "MI300X", "AMD Instinct MI300X", " Mi300x-oam", "amd_instinct_mi300x_oam"])
def test_a_card_answers_to_its_names_whatever_the_case(name: str) -> None:
    assert catalog.load(name).name == "MI300X"


def test_a_wrong_name_gets_close_ones() -> None:
    with pytest.raises(InvalidInput) as caught:
        catalog.load("MI335X")
    assert caught.value.hint is not None
    assert "MI355X" in caught.value.hint


def test_a_figure_that_nobody_recorded_is_refused_with_the_file_to_fill() -> None:
    card = catalog.load("V620")
    with pytest.raises(MissingFigure) as caught:
        card.bandwidth()
    assert "data/gpus/V620.yaml" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xMI300X", 8, "MI300X"),
        ("MI300X", 1, "MI300X"),
        ("8 x mi300x", 8, "MI300X"),
        ("MI300X:8", 8, "MI300X"),
        ("2*mi210", 2, "MI210"),
        ("7900xtx", 1, "RX7900XTX"),
        ("4x7900xtx", 4, "RX7900XTX"),
        ("2 x RX 7900 XT", 2, "RX7900XT"),
        ("64xMI300X-CPX", 64, "MI300X-CPX"),
    ],
)
def test_a_request_names_a_count_and_a_card(text: str, count: int, name: str) -> None:
    found, gpu = catalog.parse_request(text)
    assert (found, gpu.name) == (count, name)


@pytest.mark.parametrize(
    "text", ["0xMI300X", "-1xMI300X", "9999xMI300X", "9" * 5000 + "xMI300X", "8x", "x", "", "8xMI300X:8"]
)
def test_an_impossible_request_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        catalog.parse_request(text)


@given(st.text(max_size=40))
def test_any_text_is_a_request_or_refused(text: str) -> None:
    try:
        count, gpu = catalog.parse_request(text)
    except AimError:
        return
    assert 1 <= count <= gpu.devices_per_node


def test_cards_that_share_an_id_are_told_apart_by_revision_or_memory() -> None:
    assert catalog.by_pci_id("0x744C") is None
    for revision, memory_bytes in (("0xc8", None), (None, 25753026560)):
        found = catalog.by_pci_id("744c", revision, memory_bytes)
        assert found is not None
        assert found.name == "RX7900XTX"
    found = catalog.by_pci_id("744c", None, 21458059264)
    assert found is not None
    assert found.name == "RX7900XT"
    mi250x = catalog.by_pci_id("740c", compute_units=110)
    assert mi250x is not None
    assert mi250x.name == "MI250X"


def test_virtual_functions_are_the_card_they_come_from() -> None:
    found = catalog.by_pci_id("74b5", memory_bytes=205822885888)
    assert found is not None
    assert found.name == "MI300X"


def test_an_unknown_id_is_no_card() -> None:
    assert catalog.by_pci_id("ffff") is None
    assert catalog.by_pci_id(None) is None
    assert catalog.by_pci_id("") is None


def test_cards_are_found_by_target() -> None:
    assert {gpu.name for gpu in catalog.by_arch("gfx942")} == {"MI300A", "MI300X", "MI308X", "MI325X"}


@pytest.mark.parametrize("gpu", [gpu for gpu in CARDS if gpu.partitions], ids=lambda gpu: gpu.name)
def test_partitions_of_a_device_sum_to_the_device(gpu: Gpu) -> None:
    for mode in gpu.partitions:
        part = catalog.partition(gpu, mode)
        count = part.devices_per_node // gpu.devices_per_node
        assert part.memory_bytes * count == pytest.approx(gpu.memory_bytes, rel=1e-6)
        assert part.bandwidth() * count == pytest.approx(gpu.bandwidth(), rel=1e-6)
        assert part.compute("bf16") * count == pytest.approx(gpu.compute("bf16"), rel=1e-6)
        assert catalog.load(part.name) == part


def test_a_card_without_partitions_has_no_partition() -> None:
    with pytest.raises(InvalidInput):
        catalog.load("MI210-CPX")


def test_a_users_card_is_found_and_wins(tmp_path: Path) -> None:
    folder = tmp_path / "gpus"
    folder.mkdir()
    card = msgspec.structs.replace(
        catalog.load("MI300X"), name="MI999X", product="AMD Instinct MI999X", pci_ids=("ff99",)
    )
    (folder / "MI999X.yaml").write_bytes(msgspec.json.encode(msgspec.structs.replace(card, aliases=())))
    assert catalog.load("mi999x", tmp_path).name == "MI999X"
    assert "MI999X" in catalog.names(tmp_path)
    found = catalog.by_pci_id("ff99", overlay=tmp_path)
    assert found is not None
    assert found.name == "MI999X"
    changed = msgspec.structs.replace(catalog.load("MI210"), memory_bytes=2**35)
    (folder / "MI210.yaml").write_bytes(msgspec.json.encode(changed))
    assert catalog.load("MI210", tmp_path).memory_bytes == 2**35
    assert catalog.load("MI210").memory_bytes == 64 * 2**30


def test_an_unknown_key_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "gpus").mkdir()
    (tmp_path / "gpus/MI1.yaml").write_text(
        "name: MI1\nproduct: x\narch: gfx900\nkind: instinct\nmemory_bytes: 1\ncolour: red\n"
    )
    with pytest.raises(InvalidInput, match="colour"):
        catalog.load("MI1", tmp_path)


def test_one_card_loads_in_ten_milliseconds() -> None:
    import yaml  # noqa: F401 - the parser's own import is not what is measured

    best_s = min(_load_s(path) for path in FILES[:5])
    assert best_s < 0.010


def _load_s(path: Path) -> float:
    started = time.perf_counter()
    facts.read(path, Gpu)
    return time.perf_counter() - started
