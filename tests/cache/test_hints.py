"""How an engine is told to read weights, by where they lie."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import plans
from aim_engine import rollout
from aim_engine import settings as all_settings
from aim_engine.backend import release
from aim_engine.cache import hints, locks

NEW = frozenset({"--safetensors-load-strategy", "--load-format"})
PREFETCH = ("--safetensors-load-strategy", "prefetch")


@pytest.mark.parametrize(
    ("file_system", "storage", "args"),
    [
        ("ext4", "local", ()), ("xfs", "local", ()), ("btrfs", "local", ()), ("tmpfs", "local", ()), ("zfs", "local", ()),
        ("nfs4", "network", PREFETCH), ("nfs", "network", PREFETCH), ("lustre", "network", PREFETCH), ("ceph", "network", PREFETCH),
        ("fuse.juicefs", "network", PREFETCH), ("gpfs", "network", PREFETCH), ("cifs", "network", PREFETCH), ("wekafs", "network", PREFETCH),
        ("whatfs", "unknown", ()), ("", "unknown", ()),
    ],
)  # fmt: skip
def test_each_kind_of_storage_has_its_way_of_reading(file_system: str, storage: str, args: tuple[str, ...]) -> None:
    hint = hints.for_folder(Path("/weights"), NEW, file_system)
    assert (hint.storage, hint.args) == (storage, args)
    assert hint.why


def test_a_release_without_the_flag_is_not_told_of_it() -> None:
    assert hints.for_folder(Path("/weights"), frozenset(), "nfs4").args == ()
    assert hints.for_address("s3://models/x", frozenset()).args == ()


def test_a_bucket_is_streamed() -> None:
    assert hints.for_address("s3://models/x", NEW).args == ("--load-format", "runai_streamer")
    assert hints.for_address("/mnt/models", NEW).storage == "unknown"


@pytest.mark.parametrize("said", [("--safetensors-load-strategy", "eager"), ("--safetensors-load-strategy=lazy",)])
def test_what_somebody_said_stays(said: tuple[str, ...]) -> None:
    assert hints.merged(said, hints.for_folder(Path("/weights"), NEW, "nfs4")) == said


def test_up_hands_the_hint_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plans.dense_on_all()
    settings = msgspec.structs.replace(all_settings.load(), cache_dir=str(tmp_path))
    said: list[str] = []
    assert plan.chosen is not None
    assert rollout._with_load_hint(plan, settings, said.append) == plan
    monkeypatch.setattr(locks, "file_system", lambda *_: "nfs4")
    hinted = rollout._with_load_hint(plan, settings, said.append)
    assert hinted.chosen is not None
    table = release.flags(hinted.chosen.recipe.engine, plan.inputs.engine_version)
    (flag,) = [each for each in table.flags if "--safetensors-load-strategy" in each.flags]
    assert flag.choices is None or "prefetch" in flag.choices
    assert hinted.chosen.recipe.extra_args == (*plan.chosen.recipe.extra_args, *PREFETCH)
    assert any("weights are on a network" in line for line in said)
