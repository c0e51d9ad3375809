"""Each rule fires in its own case and not in the other, asks only for names that exist, and says what, why and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import specs
from aim_engine import backend, facts
from aim_engine.backend import engine, release, rules, sglang_subject, subject
from aim_engine.backend.line import Line
from aim_engine.backend.rules import Rule
from aim_engine.errors import Corrupt
from aim_engine.hardware import catalog
from aim_engine.recipe.database import RecipeDatabase

RULES = tuple({rule.id: rule for name in backend.NAMES for rule in rules.load(name)}.values())
ENGINE = backend.get("vllm")
TABLE = release.flags("vllm", "0.33.0")


def everything() -> dict[str, Any]:
    """A subject with every name that can be known of a command line, its host and its use."""
    known: dict[str, Any] = {
        "model": specs.mixture(),
        "family": RecipeDatabase().family("meta-llama/Llama-3.3-70B-Instruct"),
        "gpu": catalog.load("MI300X"),
        "env": {},
    }
    found = subject.of_command(
        Line(args=("m", "--port", "1"), version="0.33.0", table=TABLE, release=release.load("vllm", "0.33.0"), **known)
    )
    other = sglang_subject.of_command(
        Line(
            args=("--model-path", "m", "--mem-fraction-static", "0.8"),
            version="0.5.21",
            table=release.flags("sglang", "0.5.21"),
            release=release.load("sglang", "0.5.21"),
            **known,
        )
    )
    return {**other, **engine.UNPLANNED, **found, "mxfp4_sibling": None}


HOST = {
    "host_gpus",
    "host_card",
    "host_free_gib",
    "host_used_percent",
    "host_partition",
    "host_memory_gib",
    "host_mec",
    "host_cdi",
    "driver",
    "driver_text",
}
"""What tests/backend/test_around.py reads from a machine."""
CONTAINER = {"all_devices", "pinned", "by_cdi", "needs_gpu", "run_as", "has_groups", "image_tag"}
"""What render/check_host.py says of a container."""
CLUSTER = {
    *(
        "object_kind",
        "object_api",
        "asks_plugin",
        "asks_claim",
        "gpu_resource",
        "pod_nodes",
        "loose_labels",
        "product_name",
    ),
    *(
        "binds_memory",
        "seccomp",
        "serves_engine",
        "replicas",
        "has_budget",
        "has_alerts",
        "is_watched",
        "plugin_on",
        "dra_on",
    ),
    *(
        "cluster",
        "cluster_text",
        "naming",
        "dra",
        "dra_text",
        "group_restart",
        "own_image",
        "pool_problem",
        "gpu_profile",
    ),
    *("kept_free", "least_replicas", "start_s", "scaled_by"),
}
"""What render/check_cluster.py says of an object; tests/render/test_check_cluster.py has a manifest for each rule."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_fires_in_its_case_and_not_in_the_other(rule: Rule) -> None:
    assert rules.apply(rule, rule.triggers) is not None
    assert rules.apply(rule, rule.passes) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_says_what_why_and_how_in_the_users_values(rule: Rule) -> None:
    hit = rules.apply(rule, rule.triggers)
    assert hit is not None
    assert "?" not in hit.finding.message + hit.finding.remedy
    assert hit.finding.remedy
    assert rule.source
    assert rule.what
    assert rule.why


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_asks_only_for_names_that_can_be_known(rule: Rule) -> None:
    assert set(rule.triggers) | set(rule.passes) <= {*everything(), *HOST, *CONTAINER, *CLUSTER}, rule.id


def test_ids_are_unique_over_all_files() -> None:
    listed = [
        entry["id"]
        for path in sorted((facts.BUNDLED / "rules").glob("**/*.yaml"))
        for entry in facts.parse_yaml(path.read_bytes(), path.name)  # type: ignore[attr-defined]
    ]
    assert len(listed) == len(set(listed)) == len(RULES)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "tp.real",
        "[x for x in words]",
        "lambda: 1",
        "open('/etc/passwd')",
        "tp if ep else 1",
        "tp +",
    ],
)
def test_a_condition_can_reach_nothing_but_its_subject(expression: str) -> None:
    with pytest.raises(Corrupt):
        rules.compiled(expression)


def test_what_is_not_known_is_not_judged() -> None:
    rule = next(rule for rule in RULES if rule.id == "PAR008")
    assert rules.apply(rule, {"ep": True}) is None
    assert rules.apply(rule, {"ep": True, "is_moe": None, "model_id": "a/b"}) is not None


@given(
    st.dictionaries(
        st.sampled_from(sorted(everything())),
        st.one_of(st.none(), st.integers(-9, 9), st.text(max_size=5), st.booleans()),
    )
)
def test_no_subject_makes_a_rule_stumble(found: dict[str, Any]) -> None:
    values = {
        **everything(),
        **{name: value for name, value in found.items() if name not in ("args", "envs", "words", "version")},
    }
    for rule in RULES:
        rules.apply(rule, values)


def test_an_own_rule_replaces_the_bundled_one_of_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "own.yaml").write_text(
        "- {id: SEC002, severity: error, what: two nodes, why: ours, fix: one, source: us, when: 'nnodes > 2', "
        "triggers: {nnodes: 3}, passes: {nnodes: 2}}\n"
    )
    assert {rule.id: rule for rule in rules.load("vllm", tmp_path)}["SEC002"].severity == "error"
    assert len(rules.load("vllm", tmp_path)) == len(rules.load("vllm"))
