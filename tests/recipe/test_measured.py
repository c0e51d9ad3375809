"""A recipe that ran is kept with its figures, stands beside the catalogue's, and leads where it fits."""

from __future__ import annotations

from pathlib import Path

import pytest

import plans
from aim_engine import settings, workflow
from aim_engine.errors import InvalidInput
from aim_engine.recipe import measured
from aim_engine.recipe.database import RecipeDatabase
from aim_engine.recipe.recipe import Parallelism, Recipe, replace
from aim_engine.workflow import Request

FIGURES = {"tpot_ms": 21.456789, "output_tok_s": 2901.3}


def ran() -> Recipe:
    plan = plans.dense_on_all()
    assert plan.chosen is not None
    return plan.chosen.recipe


def test_a_run_is_kept_once_and_hides_nothing_of_the_catalogue(tmp_path: Path) -> None:
    bundled = RecipeDatabase().load_recipes("Qwen/Qwen3-32B")
    known = measured.of_run(ran(), "MI300X", FIGURES, image="a/b:v1", checked="2026-11-27")
    path = measured.keep(tmp_path, known)
    again = measured.of_run(ran(), "MI300X", {"tpot_ms": 20.0}, image="a/b:v1", checked="2026-11-28")
    assert measured.keep(tmp_path, again) == path == tmp_path / "recipes/Qwen/Qwen3-32B.yaml"
    found = RecipeDatabase(measured=tmp_path).load_recipes("Qwen/Qwen3-32B")
    assert found == (again, *bundled)
    other = measured.of_run(replace(ran(), max_num_seqs=128), "MI300X", FIGURES, image=None, checked="2026-11-28")
    measured.keep(tmp_path, other)
    assert len(RecipeDatabase(measured=tmp_path).load_recipes("Qwen/Qwen3-32B")) == len(bundled) + 2
    assert "Qwen/Qwen3-32B" in RecipeDatabase(measured=tmp_path).models()


def test_what_was_measured_comes_first_and_says_so(tmp_path: Path) -> None:
    measured.keep(tmp_path, measured.of_run(ran(), "MI300X", FIGURES, image=None, checked="2026-11-27"))
    asked = {"model_id": "Qwen/Qwen3-32B", "gpu": "MI300X", "gpu_count": 8, "engine": "vllm", "objective": "throughput"}
    first, *others = RecipeDatabase(measured=tmp_path).match(asked)
    assert first.known.provenance.kind == "measured"
    assert "measured here: output_tok_s 2901, tpot_ms 21.46" in first.reasons
    assert others
    assert not RecipeDatabase(measured=tmp_path).match({**asked, "engine": "sglang"})


def test_a_run_without_figures_is_not_kept() -> None:
    with pytest.raises(InvalidInput, match="nothing was measured"):
        measured.of_run(ran(), "MI300X", {}, image=None, checked="2026-11-27")


def test_a_plan_prefers_the_split_that_was_measured_here_within_the_error_band(tmp_path: Path) -> None:
    offline = settings.load({"offline": True, "state_dir": str(tmp_path)})
    request = Request(model="Qwen/Qwen3-32B", gpus="8xMI300X", precision="bf16")
    before = workflow.choose(request, offline)
    assert before.chosen is not None
    rival = next(
        other.recipe
        for other in before.alternatives
        if other.recipe.parallelism != before.chosen.recipe.parallelism and other.recipe.parallelism.pp == 1
    )
    measured.keep(tmp_path, measured.of_run(rival, "MI300X", FIGURES, image=None, checked="2026-11-27"))
    after = workflow.choose(request, offline)
    same = [
        c for c in (after.chosen, *after.alternatives) if c is not None and c.recipe.parallelism == rival.parallelism
    ]
    assert same
    assert {candidate.recipe.provenance for candidate in same} == {"measured"}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipes/Qwen/Qwen3-32B.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("recipes: 3\n")
    with pytest.raises(InvalidInput, match="not a usable catalogue file"):
        RecipeDatabase(measured=tmp_path).load_recipes("Qwen/Qwen3-32B")
    assert Parallelism().world_size == 1
