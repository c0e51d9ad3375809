"""Known recipes are found by model and card, and every bundled file is sound."""

from __future__ import annotations

from pathlib import Path

import pytest

import specs
from aim_engine import backend
from aim_engine.backend import lint, release
from aim_engine.errors import InvalidInput
from aim_engine.hardware import catalog
from aim_engine.recipe.database import RecipeDatabase
from aim_engine.recipe.heuristics import calculate_optimal_gpu_count, select_optimal_precision


def test_every_bundled_recipe_names_its_card_and_source() -> None:
    entries = list(RecipeDatabase())
    assert entries
    for entry in entries:
        assert entry.gpus, entry.model_id
        assert entry.provenance.source, entry.model_id


def test_every_bundled_file_is_sound_and_fits_its_place() -> None:
    database = RecipeDatabase()
    cards = set(catalog.names())
    for model_id in database.models():
        entry = database.file(model_id)
        assert entry is not None
        assert entry.model_id == model_id
        assert {*entry.unsupported, *(gpu for known in database.load_recipes(model_id) for gpu in known.gpus)} <= cards
        if entry.base_model is not None:
            assert database.file(entry.base_model) is not None, model_id


@pytest.mark.parametrize("version", ["0.33.0", "0.32.0", "0.30.0", "0.26.0"])
def test_rendered_bundled_recipes_hold_nothing_their_release_lacks(version: str) -> None:
    engine = backend.get("vllm")
    for known in RecipeDatabase():
        recipe = engine.adopt(specs.recipe(specs.dense(), engine_version=version), known, allow_lossy=True)
        command = engine.command(recipe, model_ref=known.model_id, host="127.0.0.1", port=8000)
        table = release.flags("vllm", version)
        assert lint.check(command.args, command.env, table, lambda: release.removed("vllm")) == (), known
        shown = lint.by_flag(table)
        hidden = [
            words[0] for words, flag in lint.groups(command.args, shown) if flag is None and words[0].startswith("-")
        ]
        assert hidden == [], known


def test_another_format_of_a_model_shares_its_family() -> None:
    database = RecipeDatabase()
    family = database.family("amd/Kimi-K2.5-MXFP4")
    assert family is not None
    assert family == database.family("moonshotai/Kimi-K2.5")
    assert family.tool_parser == "kimi_k2"
    assert database.family("nobody/nothing") is None


def test_matches_are_ordered_by_what_was_asked() -> None:
    asked = {"model_id": "openai/gpt-oss-120b", "gpu": "MI300X", "gpu_count": 8, "objective": "throughput"}
    found = RecipeDatabase().match(asked)
    assert found[0].known.objective == "throughput"
    assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
    assert "run on MI300X" in found[0].reasons
    assert not RecipeDatabase().match({**asked, "precision": "fp8"})
    with pytest.raises(InvalidInput):
        RecipeDatabase().match({"gpu": "MI300X"})


def test_a_match_says_when_figures_are_of_another_release() -> None:
    found = RecipeDatabase().match({"model_id": "Qwen/Qwen3.5-122B-A10B", "gpu": "MI355X", "engine_version": "0.33.0"})
    assert any("do not count for 0.33.0" in reason for reason in found[0].reasons)


def test_a_match_fits_the_devices_and_prefers_the_objective() -> None:
    database = RecipeDatabase()
    two = database.find_matching_recipe(
        {"model_id": "openai/gpt-oss-120b", "gpu": "MI300X", "gpu_count": 2, "objective": "latency"}
    )
    assert two is not None
    assert two.gpu_count <= 2
    assert two.objective == "latency"
    assert database.find_matching_recipe({"model_id": "openai/gpt-oss-120b", "gpu": "MI210"}) is None


def test_an_overlay_file_wins_over_the_bundled_one(tmp_path: Path) -> None:
    folder = tmp_path / "recipes" / "Qwen"
    folder.mkdir(parents=True)
    (folder / "Qwen3-32B.yaml").write_text(
        "model_id: Qwen/Qwen3-32B\nrecipes:\n- gpus: [MI355X]\n  parallelism: {tp: 2}\n  precision: bf16\n"
        "  provenance: {kind: measured, source: own run, checked: 2026-11-23}\n"
    )
    (only,) = RecipeDatabase(tmp_path).load_recipes("Qwen/Qwen3-32B")
    assert only.gpus == ("MI355X",)


def test_an_unknown_key_in_a_recipe_is_named_with_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "recipes" / "acme"
    folder.mkdir(parents=True)
    (folder / "m.yaml").write_text("model_id: acme/m\nrecipes:\n- gpus: [MI300X]\n  paralelism: {tp: 1}\n")
    with pytest.raises(InvalidInput, match=r"m\.yaml") as raised:
        RecipeDatabase(tmp_path).load_recipes("acme/m")
    assert "paralelism" in str(raised.value)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "no/such-model"])
def test_a_model_without_a_file_has_no_recipes(name: str) -> None:
    assert RecipeDatabase().load_recipes(name) == ()


@pytest.mark.parametrize(
    ("size", "count"), [(7, 1), (8, 1), (13, 2), (14, 2), (32, 4), (70, 8), (72, 8), (100, 12), (405, 16)]
)
def test_the_size_table_gives_the_specified_counts(size: float, count: int) -> None:
    assert calculate_optimal_gpu_count({"size": size}) == count


def test_the_precision_rule_is_the_specified_one() -> None:
    assert select_optimal_precision({"size": 70}, {"memory_per_gpu": 192}) == "bf16"
    assert select_optimal_precision({"size": 7}, {"memory_per_gpu": 16}) == "bf16"
    assert select_optimal_precision({"size": 7}, {"memory_per_gpu": 192}) == "fp16"
    assert select_optimal_precision({"size": 20}, {"memory_per_gpu": 192}) == "bf16"


@pytest.mark.parametrize("size", [None, 0, -1, "7B", True])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(InvalidInput):
        calculate_optimal_gpu_count({"size": size})
