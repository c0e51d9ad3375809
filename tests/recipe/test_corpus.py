"""Profiles that AMD published: every set in the corpus imports, and what a new release lacks is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aim_engine import backend, facts
from aim_engine.recipe import exchange

pytestmark = pytest.mark.corpus
CORPUS = os.environ.get("AIM_ENGINE_CORPUS", "")
ENGINE = backend.get("vllm")


def profiles() -> list[Any]:
    """Each published profile in the shape of its own file, from sets that share their arguments."""
    found = []
    for path in sorted(Path(CORPUS).glob("rocm/*profiles*.yaml")) if CORPUS else []:
        document: Any = facts.parse_yaml(path.read_bytes(), path.name)
        for entry in document["profiles"]:
            for name in entry["profiles"]:
                split, metric, *kind = name.split("/")
                count = int(split.removeprefix("tp"))
                about = {"engine": "vllm", "gpu": entry["gpu"], "gpu_count": count, "metric": metric, "type": kind[0]}
                profile = {
                    "metadata": {**about, "precision": entry["precision"]},
                    "engine_args": {**entry["engine_args"], "tensor-parallel-size": count},
                    "env_vars": entry["env"],
                    **({} if entry["model"] == "general" else {"model_id": entry["model"]}),
                }
                stale = entry["stale_for_0_33"]
                found.append(pytest.param(profile, stale, id=f"{entry['model']}-{entry['gpu']}-{name}"))
    return found or [
        pytest.param({}, [], marks=pytest.mark.skip(reason="AIM_ENGINE_CORPUS has no profiles"), id="none")
    ]


@pytest.mark.parametrize(("profile", "stale"), profiles())
def test_a_published_profile_imports_and_its_stale_arguments_are_told(
    profile: dict[str, Any], stale: list[str]
) -> None:
    known = exchange.read(profile, source="corpus", checked="2026-11-23")
    said = ENGINE.translate(known.extra_args, {**known.env, **known.lossy_env}, "0.33.0")
    gone = {change.what.split()[0].partition("=")[0].lstrip("-") for change in said.changes}
    assert set(stale) <= gone
    assert not [f for f in ENGINE.check(said.args, said.env, "0.33.0") if f.id in ("VER001", "VER002", "VER003")]
