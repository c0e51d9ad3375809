"""Every rule that is code speaks in its own case and is silent in the other, through the command that users run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import machines
from aim_engine import backend, facts
from aim_engine.backend import rules
from aim_engine.cli import main
from aim_engine.doctor.examine import CHECKS

CASES = Path(__file__).parent.parent / "rule_cases"
SOURCES = Path(facts.__file__).parent
BASE: dict[str, Any] = {
    "schema": "aim-engine/recipe/v1",
    "model_id": "Qwen/Qwen3-32B",
    "gpu": "MI300X",
    "gpu_count": 1,
    "engine": "vllm",
    "engine_version": "0.33.0",
    "parallelism": {"tp": 1},
    "precision": "bf16",
    "max_model_len": 32768,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 8192,
    "gpu_memory_utilization": 0.92,
    "resources": {"cpu_cores": 8, "memory_bytes": 40_000_000_000, "shm_bytes": 4_000_000_000, "gpus": 1},
}


def cases(name: str) -> list[dict[str, Any]]:
    found = facts.parse_yaml((CASES / f"{name}.yaml").read_bytes(), name)
    assert isinstance(found, list)
    return found


def told(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> set[str]:
    """The ids that `aim-engine validate` finds in a file."""
    main.run(["validate", "--json", *options, str(path)])
    return {finding["id"] for entry in json.loads(capsys.readouterr().out)["files"] for finding in entry["findings"]}


@pytest.mark.parametrize("case", [*cases("commands"), *cases("clusters")], ids=lambda case: case["id"])
def test_a_rule_on_files_speaks_in_its_case_only(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, expected in (("fires", True), ("passes", False)):
        text = case[key] if isinstance(case[key], str) else json.dumps(case[key])
        path = tmp_path / case.get("name", "run.sh" if isinstance(case[key], str) else "manifests.yaml")
        path.write_text(text if isinstance(case[key], str) else "\n---\n".join(json.dumps(each) for each in case[key]))
        assert (case["id"] in told(capsys, path, *case.get("options", ()))) is expected, text


@pytest.mark.parametrize("case", cases("recipes"), ids=lambda case: case["id"])
def test_a_rule_on_recipes_speaks_in_its_case_only(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.json"
    for changes, expected in ((case["recipe"], True), (case["fine"], False)):
        path.write_text(json.dumps({**BASE, **changes}))
        assert (case["id"] in told(capsys, path)) is expected, changes


@pytest.mark.parametrize("case", cases("hosts"), ids=lambda case: case["id"])
def test_a_rule_on_hosts_speaks_in_its_case_only(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "run.sh"
    script.write_text(case["text"])
    for key, expected in (("fires", True), ("passes", False)):
        wanted = case[key]
        root = machines.mi300x(tmp_path / key, count=wanted.get("count", 8), partition=wanted.get("partition", "SPX"))
        machines.write(root, wanted.get("files", {}))
        assert (case["id"] in told(capsys, script, "--host", str(root))) is expected, wanted


def test_every_rule_that_is_code_has_its_cases() -> None:
    said = {
        identity
        for path in (*SOURCES.glob("render/check_*.py"), SOURCES / "backend/lint.py", SOURCES / "cli/validate.py")
        for identity in re.findall(r'"([A-Z][A-Z0-9]{2}\d{3})"', path.read_text(encoding="utf-8"))
    }
    general = {identity for identity in said if identity.startswith(("MAN", "CMP"))}
    """Those on manifests and Compose files in general; tests/render has theirs."""
    listed = {case["id"] for name in ("commands", "clusters", "recipes", "hosts") for case in cases(name)}
    assert said - general <= listed


def test_every_rule_on_clusters_and_hosts_is_fed_by_something_real() -> None:
    listed = {case["id"] for name in ("clusters", "hosts", "commands") for case in cases(name)}
    for name in ("kubernetes", "container"):
        entries = facts.parse_yaml((facts.BUNDLED / f"rules/{name}.yaml").read_bytes(), name)
        assert isinstance(entries, list)
        assert {rule["id"] for rule in entries} <= listed


@pytest.mark.corpus
def test_every_rule_of_the_list_is_judged_somewhere() -> None:
    found = facts.parse_yaml((Path(os.environ["AIM_ENGINE_CORPUS"]) / "rocm/validation_rules.yaml").read_bytes(), "")
    assert isinstance(found, dict)
    data = {rule.id for name in backend.NAMES for rule in rules.load(name)}
    coded = {case["id"] for name in ("commands", "clusters", "recipes", "hosts") for case in cases(name)}
    hosts = {check.id for check in CHECKS}
    about_the_memory_model = {"PAR005"}
    """Says how to plan, not how to serve: tests/perf/test_memory.py holds our own model to it."""
    assert {rule["id"] for rule in found["rules"]} - data - coded - hosts == about_the_memory_model
