"""Weights that nobody uses take less room, and come back bit for bit."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hub_server
from aim_engine.cache import bundle, evict, pack
from aim_engine.cache.faults import Damaged
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.errors import MissingExtra
from caches import DTYPES, MODEL, Make, checkpoint


def bf16(count: int, seed: int = 0) -> bytes:
    """Numbers spread as trained weights are; how real ones shrink is measured by bench/compress.py."""
    numbers = np.random.default_rng(seed).normal(0, 0.02, count).astype(np.float32).view(np.uint32)
    return ((numbers + 0x8000) >> 16).astype("<u2").tobytes()


@pytest.fixture
def cold(server: hub_server.Hub, manager: ModelCacheManager) -> ModelCacheManager:
    """A cache with a model in bf16, and one that shares its weights."""
    server.models[MODEL]["model.safetensors"] = checkpoint({"w": ("BF16", bf16(1 << 20)), "i": ("I64", b"\1" * 80)})
    server.models["org/fork"] = {**server.models[MODEL], "config.json": b'{"fork": 1}'}
    manager.download_model(MODEL)
    return manager


def freeze(manager: ModelCacheManager, *models: str) -> pack.Packed:
    return pack.apply(pack.choose(manager.store, manager.index, models=models), manager.store, manager.index)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.integers(0, 400), st.integers(0, 9)), min_size=1, max_size=8)
)
def test_every_kind_of_number_comes_back(drawn: list[tuple[str, int, int]]) -> None:
    import tempfile

    tensors = {
        f"t{number}": (dtype, np.random.default_rng(seed).bytes(count * DTYPES[dtype]))
        for number, (dtype, count, seed) in enumerate(drawn)
    }
    content = checkpoint(tensors)
    digest = hashlib.sha256(content).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "plain", Path(folder) / "packed"
        plain.write_bytes(content)
        pack.encode(plain, digest, packed)
        back = bytearray()
        assert pack._unpack(packed, digest, back.extend) == digest
        assert bytes(back) == content


def test_bf16_weights_take_a_third_less_and_come_back_when_asked_for(cold: ModelCacheManager, make: Make) -> None:
    path = cold.get_model_path(MODEL)
    assert path is not None
    original = (path / "model.safetensors").read_bytes()
    used = evict.used_bytes(cold.store)
    gained = freeze(cold, MODEL)
    assert gained.files == 1
    assert gained.after_bytes <= 0.70 * gained.before_bytes
    assert used - evict.used_bytes(cold.store) == gained.before_bytes - gained.after_bytes
    assert not (path / "model.safetensors").exists()
    fresh = make()
    assert fresh.is_cached(MODEL)
    assert fresh.models()[0].complete
    assert fresh.verify() == ()
    assert not path.exists()  # none of these questions unpacked it
    again = make(endpoint="http://127.0.0.1:9").download_model(MODEL)
    assert again == path
    assert (again / "model.safetensors").read_bytes() == original
    assert pack.sizes(cold.store) == {}
    assert cold.index.counters()["saved_bytes"] > 600_000


def test_only_cold_content_is_packed(cold: ModelCacheManager) -> None:
    (young,) = pack.choose(cold.store, cold.index)
    assert not young.packs
    assert "used 0.0 days ago" in young.why
    path = cold.get_model_path(MODEL)
    assert path is not None
    cold.lease(path, "serving")
    (leased,) = pack.choose(cold.store, cold.index, models=(MODEL,))
    assert not leased.packs
    assert leased.why.startswith("leased by serving")
    forced = pack.Choice(sha256=leased.sha256, size_bytes=leased.size_bytes, models=(), packs=True, why="")
    assert pack.apply([forced], cold.store, cold.index).files == 0
    assert (path / "model.safetensors").exists()


def test_what_gains_too_little_stays_as_it_is(server: hub_server.Hub, manager: ModelCacheManager) -> None:
    noise = np.random.default_rng(0).bytes(2 << 20)
    server.models[MODEL]["model.safetensors"] = checkpoint({"w": ("U8", noise)})
    manager.download_model(MODEL)
    (choice,) = pack.choose(manager.store, manager.index, models=(MODEL,))
    assert not choice.packs
    assert "less than 15% gain" in choice.why


def test_what_is_fetched_faster_than_unpacked_stays(cold: ModelCacheManager) -> None:
    cold.index.count(fetched_bytes=1e15, download_seconds=100)
    assert freeze(cold, MODEL).files == 0


def test_another_model_finds_packed_content(cold: ModelCacheManager, make: Make, server: hub_server.Hub) -> None:
    freeze(cold, MODEL)
    asked = len(server.requests)
    path = make().download_model("org/fork")
    assert (path / "model.safetensors").read_bytes() == server.models[MODEL]["model.safetensors"]
    assert not any("model.safetensors" in each for each in server.requests[asked:])


def test_damage_in_packed_content_is_found_and_fetched_again(cold: ModelCacheManager, make: Make) -> None:
    freeze(cold, MODEL)
    (path,) = cold.store.path("packed").iterdir()
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    assert [each[2] for each in cold.verify()] == ["model.safetensors"]
    said: list[str] = []
    again = make(progress=said.append).download_model(MODEL)
    assert any("damaged" in line for line in said)
    assert make().verify() == ()
    assert again.is_dir()


@pytest.mark.parametrize("damage", [b"", b"x" * 15, b"x" * 40, b"\xff" * 8 + b"aimplan1"])
def test_a_footer_that_lies_is_refused_before_memory_is_taken(cold: ModelCacheManager, damage: bytes) -> None:
    freeze(cold, MODEL)
    (path,) = cold.store.path("packed").iterdir()
    path.write_bytes(damage)
    assert not pack.proves(cold.store, path.stem)
    with pytest.raises(Damaged):
        pack.restore(cold.store, cold.index, path.stem)


def test_packed_content_is_carried_by_a_bundle_and_goes_with_its_model(cold: ModelCacheManager, tmp_path: Path) -> None:
    freeze(cold, MODEL)
    bundle.write(cold.store, cold.index, [MODEL], tmp_path / "out.tar")
    assert (tmp_path / "out.tar").stat().st_size > 2 << 20
    freeze(cold, MODEL)
    (candidate,) = cold.candidates()
    assert sum(candidate.content.values()) == pytest.approx(sum(pack.sizes(cold.store).values()), abs=100)
    cold.remove_model(MODEL)
    assert pack.sizes(cold.store) == {}
    assert evict.orphans(cold.store, cold.index) == {}


def test_packing_without_its_library_names_the_extra(cold: ModelCacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra) as caught:
        freeze(cold, MODEL)
    assert "aim-engine[compress]" in str(caught.value.hint)
