"""The bundled models: found by any spelling, and with the other precisions they exist in."""

from __future__ import annotations

from pathlib import Path

import pytest

from aim_engine import facts
from aim_engine.errors import InvalidInput
from aim_engine.model import catalog


@pytest.mark.parametrize("name", catalog.names())
def test_every_bundled_model_is_described_without_doubt(name: str) -> None:
    entry, spec = catalog.entry(name), catalog.load(name)
    assert entry is not None
    assert spec is not None
    assert entry.model_id == spec.model_id == name
    assert not [warning for warning in spec.warnings if "not known" in warning]
    assert entry.provenance.source


def test_the_demos_model_has_its_published_shape() -> None:
    spec = catalog.load("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert spec is not None
    assert (spec.layers, spec.hidden_size, spec.heads, spec.kv_heads, spec.intermediate_size) == (30, 576, 9, 3, 1536)
    assert (spec.vocab_size, spec.tied_embeddings, spec.parameters.total) == (49152, True, 134_515_008)


def test_case_does_not_matter_and_the_bundled_spelling_is_kept() -> None:
    spec = catalog.load("qwen/qwen3-32b")
    assert spec is not None
    assert spec.model_id == "Qwen/Qwen3-32B"


@pytest.mark.parametrize("name", ["nobody/nothing", "no-slash", "../models/x", "a/../b", ""])
def test_what_is_not_there_is_none(name: str) -> None:
    assert catalog.load(name) is None


def test_close_names_are_offered_whatever_the_organisation() -> None:
    assert "Qwen/Qwen3-32B" in catalog.close_matches("Qwen/Qwen3-32")
    assert "Qwen/Qwen3-32B" in catalog.close_matches("someone/qwen3-32b")
    assert catalog.close_matches("zzzz/yyyyyyyyyyyy") == ()


def test_other_precisions_are_found_from_the_base_and_from_each_other() -> None:
    base = "Qwen/Qwen3-235B-A22B"
    from_base = catalog.variants(base)
    assert "Qwen/Qwen3-235B-A22B-FP8" in from_base
    assert base not in from_base
    from_variant = catalog.variants("qwen/qwen3-235b-a22b-fp8")
    assert base in from_variant
    assert set(from_variant) | {"Qwen/Qwen3-235B-A22B-FP8"} == set(from_base) | {base}
    assert catalog.variants("nobody/nothing") == ()


def test_a_users_folder_wins_and_a_wrong_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / catalog.FOLDER / "acme"
    folder.mkdir(parents=True)
    bundled = (facts.BUNDLED / catalog.FOLDER / "Qwen/Qwen3-0.6B.yaml").read_text()
    (folder / "Mine.yaml").write_text(bundled.replace("Qwen/Qwen3-0.6B", "acme/Mine"))
    (folder / "Wrong.yaml").write_text("model_id: acme/Wrong\nconfg: {}\n")
    spec = catalog.load("acme/mine", tmp_path)
    assert spec is not None
    assert spec.model_id == "acme/Mine"
    assert "acme/Mine" in catalog.names(tmp_path)
    with pytest.raises(InvalidInput, match=r"Wrong\.yaml"):
        catalog.load("acme/Wrong", tmp_path)
