"""The public Python interface: every name is there, does real work, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import aim_engine
import machines
from aim_engine.errors import InvalidInput
from aim_engine.settings import Settings, load

OFFLINE = {"offline": True}


def selector(**changes: object) -> aim_engine.RecipeSelector:
    return aim_engine.RecipeSelector(load({**OFFLINE, **changes}))


def test_every_exported_name_is_there() -> None:
    for name in aim_engine.__all__:
        assert getattr(aim_engine, name) is not None


def test_importing_the_package_imports_no_room() -> None:
    program = "import sys, aim_engine; assert not [m for m in sys.modules if m.startswith('aim_engine.') and m != 'aim_engine._version']"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = aim_engine.nothing


def test_the_optimal_recipe_for_named_cards() -> None:
    recipe = selector().select_optimal_recipe("Qwen/Qwen3-32B", "8xMI300X")
    assert recipe is not None
    assert recipe.gpu == "MI300X"
    assert recipe.gpu_count <= 8


def test_the_optimal_recipe_on_the_cards_of_a_machine(tmp_path: Path) -> None:
    root = machines.mi300x(tmp_path, count=4)
    recipe = selector(sysfs_root=str(root)).select_optimal_recipe("Qwen/Qwen3-8B", 2)
    assert recipe is not None
    assert (recipe.gpu, recipe.gpu_count) == ("MI300X", 2)


def test_a_count_without_any_card_asks_which(tmp_path: Path) -> None:
    root = machines.cpu_only(tmp_path)
    with pytest.raises(InvalidInput, match="of which kind"):
        selector(sysfs_root=str(root)).select_optimal_recipe("Qwen/Qwen3-8B", 2)


def test_a_precision_is_kept() -> None:
    recipe = selector().select_optimal_recipe("Qwen/Qwen3-32B", "8xMI300X", "fp8")
    assert recipe is not None
    assert (recipe.precision, recipe.online_quantization) == ("fp8", "fp8")


def test_a_model_of_unknown_shapes_takes_the_recipe_that_somebody_ran() -> None:
    recipe = selector().select_fallback_recipe("amd/MiniMax-M3.1-Flash-Quark-MXFP4", "8xMI355X")
    assert recipe is not None
    assert recipe.parallelism.tp == 4
    assert "memory is not proven" in recipe.provenance_note
    assert "before that" in recipe.provenance_note


def test_the_fallback_says_what_it_is() -> None:
    recipe = selector().select_fallback_recipe("Qwen/Qwen3-32B", "2xR9700")
    assert recipe is not None
    assert recipe.provenance == "fallback"
    assert recipe.provenance_note.startswith("chosen in fp8, made on load, which changes answers")
    assert "before that, 2 x R9700: no configuration; 1 x R9700: no configuration; bf16" in recipe.provenance_note


def test_a_model_known_by_name_alone_gets_the_size_table() -> None:
    recipe = selector().select_fallback_recipe("acme/Secret-70B-Chat", "8xMI300X")
    assert recipe is not None
    assert recipe.gpu_count == 8
    assert "the size in the name alone (70B)" in recipe.provenance_note
    assert "only the name is known" in recipe.provenance_note


def test_a_name_without_a_size_stays_an_error() -> None:
    with pytest.raises(InvalidInput, match="acme/Secret"):
        selector().select_fallback_recipe("acme/Secret", "8xMI300X")


def test_where_counts_and_precisions_give_nothing_the_default_recipe_is_what_somebody_ran() -> None:
    recipe = selector().select_fallback_recipe("amd/Llama-3.1-405B-Instruct-FP8-KV", "1xMI300X")
    assert recipe is not None
    assert (recipe.gpu, recipe.parallelism.tp, recipe.precision) == ("MI300X", 8, "fp8")
    assert recipe.provenance_note.startswith("the default recipe: as run on MI300X (amd-enterprise-ai/aim-build")
    assert "it takes 8 x MI300X, and 1 x MI300X are there; before that, 1 x MI300X: no conf" in recipe.provenance_note
    assert "fp8: no configuration" in recipe.provenance_note


def test_a_default_recipe_whose_split_nobody_named_is_planned_on_a_card_it_was_run_on() -> None:
    recipe = selector().select_optimal_recipe("deepseek-ai/DeepSeek-R1", "1xRX9070XT")
    assert recipe is not None
    assert (recipe.gpu, recipe.gpu_count) == ("MI300X", 4)
    assert "the default recipe: planned for 4 x MI300X, one of the cards it was run on" in recipe.provenance_note
    assert "1 x RX9070XT are there" in recipe.provenance_note


def test_without_a_default_recipe_the_size_table_answers_with_the_gpus_it_takes() -> None:
    recipe = selector().select_fallback_recipe("Qwen/Qwen2.5-14B-Instruct", "1xRX9070XT")
    assert recipe is not None
    assert (recipe.gpu, recipe.gpu_count) == ("RX9070XT", 4)
    assert "from the size table: 4 GPUs for 15B; it takes 4 x RX9070XT" in recipe.provenance_note
    assert "nobody is known to have run this model" in recipe.provenance_note


def test_what_not_even_the_size_table_fits_is_none_not_an_exception() -> None:
    assert selector().select_optimal_recipe("google/gemma-3-27b-it", "1xRX9070XT") is None


def test_a_validator_finds_what_a_recipe_lacks() -> None:
    from aim_engine import backend
    from aim_engine.hardware import catalog
    from aim_engine.model import catalog as models

    recipe = selector().select_optimal_recipe("Qwen/Qwen3-32B", "8xMI300X")
    spec = models.load("Qwen/Qwen3-32B")
    assert recipe is not None
    assert spec is not None
    validator = aim_engine.ConfigurationValidator(spec, catalog.load("MI300X"), backend.get("vllm"))
    assert not [f for f in validator.validate_recipe(recipe) if f.severity == "error"]
    (short,) = validator.validate_resources(recipe, {"gpu_count": 4})
    assert "8 needed, 4 available" in short.message
    small = aim_engine.ConfigurationValidator(spec, catalog.load("RX9070XT"), backend.get("vllm"))
    assert any(f.id == "MEM001" for f in small.validate_recipe(recipe))


def test_settings_are_a_value() -> None:
    assert isinstance(load(OFFLINE), Settings)
