"""Saved plans hold what they name, and the other models that an engine loads come along."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
import yaml

import hub_server
import plans
from aim_engine import backend, rollout
from aim_engine.cache import holds, weights
from aim_engine.cache.faults import NoSpace
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cli import main
from aim_engine.cli import plan as plan_command
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import targets
from aim_engine.render.artifact import Options
from aim_engine.rollout import Place
from aim_engine.settings import Settings
from caches import MODEL, WEIGHTS, Make

DRAFT = "org/draft"
HEAD = hub_server.safetensors(20_000, 3)


@pytest.fixture
def settings(server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    server.add(DRAFT, config__json=b"{}", model__safetensors=HEAD)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AIM_ENGINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("AIM_ENGINE_DATA_DIR", str(tmp_path / "data"))
    return Settings(
        cache_dir=str(tmp_path / "cache"), state_dir=str(tmp_path / "state"), data_dir=str(tmp_path / "data")
    )


def planned(*args: str, model_id: str = MODEL) -> Plan:
    """A plan for the test's model whose engine is told `args` as well."""
    found = plans.dense_on_all()
    assert found.chosen is not None
    recipe = msgspec.structs.replace(found.chosen.recipe, model_id=model_id, extra_args=args)
    inputs = msgspec.structs.replace(found.inputs, model=msgspec.structs.replace(found.inputs.model, model_id=model_id))
    return msgspec.structs.replace(found, inputs=inputs, chosen=msgspec.structs.replace(found.chosen, recipe=recipe))


def speculating() -> Plan:
    return planned(
        "--speculative-config", json.dumps({"method": "eagle3", "model": DRAFT, "num_speculative_tokens": 3})
    )


def reasons(manager: ModelCacheManager, model_id: str) -> tuple[str, ...]:
    (found,) = [each for each in manager.candidates() if each.model_id == model_id]
    return found.held


def test_what_a_saved_plan_names_stays_while_its_file_is_there(
    manager: ModelCacheManager, settings: Settings, tmp_path: Path
) -> None:
    manager.download_model(MODEL)
    manager.download_model(DRAFT)
    path = tmp_path / "plan.json"
    plan_command.write(speculating(), path)
    weights.hold_for_plan(speculating(), path, settings)
    for model_id in (MODEL, DRAFT):
        assert [f"named by the plan {path} on " in each for each in reasons(manager, model_id)] == [True]
    assert manager.plan_prune(target_bytes=1 << 40).revisions == ()
    assert str(path) in manager.why(hashlib.sha256(HEAD).hexdigest())[0]
    with pytest.raises(InvalidInput, match="must stay") as caught:
        manager.remove_model(DRAFT)
    assert caught.value.hint == "delete that plan"
    path.unlink()
    assert reasons(manager, MODEL) == reasons(manager, DRAFT) == ()
    assert not list(manager.store.path("pins", "plans").iterdir())
    manager.remove_model(DRAFT)


def test_a_download_finds_no_room_where_plans_hold_the_rest(make: Make, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan_command.write(planned(), path)
    manager = make(limit_bytes=len(WEIGHTS) + 10_000)
    manager.download_model(MODEL)
    weights.hold_for_plan(planned(), path, settings)
    with pytest.raises(NoSpace):
        manager.download_model(DRAFT)
    assert manager.is_cached(MODEL)
    path.unlink()
    manager.download_model(DRAFT)
    assert not manager.is_cached(MODEL)


def test_a_file_that_became_another_plan_holds_what_it_names_now(
    manager: ModelCacheManager, settings: Settings, tmp_path: Path
) -> None:
    manager.download_model(MODEL)
    path = tmp_path / "plan.json"
    plan_command.write(planned(), path)
    weights.hold_for_plan(planned(), path, settings)
    assert reasons(manager, MODEL)
    plan_command.write(planned(model_id="other/model"), path)
    assert reasons(manager, MODEL) == ()


def test_a_plan_on_another_node_holds_until_that_node_drops_it(
    manager: ModelCacheManager, settings: Settings, tmp_path: Path
) -> None:
    manager.download_model(MODEL)
    holds.hold_for_plan(manager.store, tmp_path / "elsewhere.json", ((MODEL, "main"),))
    (note,) = manager.store.path("pins", "plans").iterdir()
    told = json.loads(note.read_bytes())
    note.write_text(json.dumps({**told, "node": "node-7"}))
    assert "on node-7" in reasons(manager, MODEL)[0]


def test_saving_a_plan_holds_what_a_cache_has_and_makes_none(
    make: Make, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["plan", "Qwen/Qwen3-32B", "--gpus", "8xMI300X", "-o", str(tmp_path / "plan.json"), "--json"]
    monkeypatch.setenv("AIM_ENGINE_OFFLINE", "1")
    assert main.run(command) == 0
    assert not (tmp_path / "cache").exists(), "a plan alone makes no cache"
    manager = make()
    manager.store.ensure()
    assert main.run(command) == 0
    (hold,) = holds.plan_holds(manager.store)
    assert (hold.plan, hold.models) == (str(tmp_path / "plan.json"), (("Qwen/Qwen3-32B", "main"),))


def test_pull_fetches_and_holds_all_that_a_plan_names(
    make: Make, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    plan_command.write(speculating(), path)
    assert main.run(["cache", "pull", "--plan", str(path), "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [each["model_id"] for each in shown["plans"]] == [MODEL, DRAFT]
    assert main.run(["cache", "pull", "--plan", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["model_id"] for each in told["models"]] == [MODEL, DRAFT]
    assert (Path(told["models"][1]["path"]) / "model.safetensors").read_bytes() == HEAD
    assert reasons(make(), DRAFT)
    assert main.run(["cache", "pull"]) == 2


@pytest.mark.parametrize("target", ["local", "docker"])
def test_up_fetches_the_draft_model_and_tells_the_engine_where_it_lies(
    target: str, make: Make, settings: Settings, tmp_path: Path
) -> None:
    said: list[str] = []
    plan, volumes = rollout._with_companions(
        speculating(), Place(target=target), "demo", settings, tmp_path / "records", said.append
    )
    assert plan.chosen is not None
    told = json.loads(plan.chosen.recipe.extra_args[1])
    folder = make().get_model_path(DRAFT)
    assert folder is not None
    if target == "local":
        assert (told["model"], volumes) == (str(folder), ())
    else:
        assert (told["model"], volumes) == ("/companion-1", (f"{folder}:/companion-1:ro",))
    assert (folder / "model.safetensors").read_bytes() == HEAD
    assert "leased by demo" in reasons(make(), DRAFT)[0]


def test_the_prefetch_job_fetches_the_draft_model_too() -> None:
    def commands(fetch_image: str | None = None) -> list[list[str]]:
        plan = speculating()
        files = targets.render(plan, "job", Options(name="demo", fetch_image=fetch_image), backend.get("vllm"))
        documents = {file.path: yaml.safe_load(file.content) for file in files}
        return [each["command"] for each in documents["job.yaml"]["spec"]["template"]["spec"]["containers"]]

    assert [words[:3] for words in commands()] == [["hf", "download", MODEL], ["hf", "download", DRAFT]]
    assert commands(fetch_image="registry.example/aim:1") == [["aim-engine", "cache", "pull", MODEL, DRAFT]]
