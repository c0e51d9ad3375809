"""Each rule of the knowledge fires on its own evidence and not without it; causes come before what they explain."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import specs
from aim_engine import backend
from aim_engine.advise import diagnose, knowledge, subject
from aim_engine.advise.diagnose import Change
from aim_engine.advise.knowledge import Rule
from aim_engine.advise.subject import Subject
from aim_engine.backend import lint, release
from aim_engine.monitor import report, scrape, totals, track
from aim_engine.recipe.recipe import Recipe

RULES = knowledge.load()


def fired(names: dict[str, Any], finished: float = 2000.0) -> list[str]:
    found = diagnose.diagnose(Subject(names={"lossy_allowed": False, **names}, finished=finished))
    return [each.id for each in found.found]


def test_there_are_the_75_rules_of_the_field_and_one_of_our_own() -> None:
    assert len(RULES) == 76
    assert {rule.id[0] for rule in RULES} == set(knowledge.CLASSES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_fires_in_its_case(rule: Rule) -> None:
    assert diagnose.holds(rule, rule.fires) is True
    assert rule.id in fired(rule.fires)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_is_silent_where_it_must_not_fire(rule: Rule) -> None:
    assert diagnose.holds(rule, rule.silent) is False
    assert rule.id not in fired(rule.silent)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_is_not_judged_without_evidence(rule: Rule) -> None:
    assert diagnose.holds(rule, {}) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_tells_its_evidence_and_something_to_do(rule: Rule) -> None:
    (told,) = [
        each for each in diagnose.diagnose(Subject(names=dict(rule.fires), finished=2000.0)).found if each.id == rule.id
    ]
    assert told.evidence
    assert "{" not in told.evidence
    assert told.change is not None, "the first case must have a possible remedy"
    assert told.verify.kpi
    assert told.source


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.text(max_size=6), max_size=2)
)


@given(st.sampled_from(RULES), st.data())
def test_no_value_makes_a_rule_fail(rule: Rule, data: st.DataObject) -> None:
    names = {name: data.draw(VALUES, name) for name in rule.fires}
    assert diagnose.holds(rule, names) in (True, False, None)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_remedy_uses_arguments_and_fields_that_exist(rule: Rule) -> None:
    table = release.flags("vllm", backend.get("vllm").versions()[0])
    known = set(lint.by_flag(table))
    fields = {field.name for field in msgspec.structs.fields(Recipe)} | {"tp", "pp", "dp", "ep"}
    for remedy in rule.remedies:
        flags = {word for word in (*remedy.args, *remedy.drop) if word.startswith("--")}
        assert {flag.replace("--no-", "--", 1) for flag in flags} <= known, flags - known
        assert set(remedy.change) <= fields
        for name in {*remedy.env, *remedy.unset}:
            assert not name.startswith("VLLM_") or name in table.env, name


def test_rules_name_only_rules_that_exist() -> None:
    known = {rule.id for rule in RULES}
    for rule in RULES:
        assert set(rule.explains) <= known, rule.id
        assert set(rule.conflicts) <= known, rule.id
        assert rule.id not in rule.explains


def test_in_every_case_only_the_rule_itself_or_its_kin_fire() -> None:
    """Precision over the synthetic cases: nothing unrelated is told."""
    strangers = {}
    for rule in RULES:
        others = set(fired(rule.fires)) - {rule.id}
        if others:
            strangers[rule.id] = others
    assert strangers == {}


def test_a_cause_silences_what_it_explains() -> None:
    by_id = {rule.id: rule for rule in RULES}
    both = {**by_id["P1"].fires, **by_id["K1"].fires}
    found = fired(both)
    assert "K1" in found
    assert "P1" not in found
    assert "P1" in fired(by_id["P1"].fires)


def test_what_undoes_an_earlier_remedy_is_held_back() -> None:
    by_id = {rule.id: rule for rule in RULES}
    names = {**by_id["P2"].fires, **by_id["D2"].fires, "prompt_p95": 20000, "max_num_batched_tokens": 8192}
    found = {each.id: each for each in diagnose.diagnose(Subject(names=names, finished=500.0)).found}
    assert found["P2"].held_back_by == ""
    assert found["D2"].held_back_by == "P2"


def test_few_requests_hold_advice_on_load_back_but_not_that_on_the_start() -> None:
    by_id = {rule.id: rule for rule in RULES}
    assert fired(by_id["K1"].fires, finished=3) == []
    assert fired(by_id["U1"].fires, finished=0) == ["U1"]


def test_a_change_makes_another_recipe() -> None:
    recipe = specs.recipe(specs.dense(), extra_args=("--enforce-eager", "--foo", "1"), env={"A": "1"})
    change = Change(
        say="x",
        recipe={"tp": 2, "max_num_seqs": 64},
        env={"B": "2"},
        unset=("A",),
        drop=("--enforce-eager",),
        args=("--bar", "3"),
    )
    changed = diagnose.apply(recipe, change)
    assert (changed.parallelism.tp, changed.max_num_seqs, changed.gpu_count) == (2, 64, 2)
    assert changed.extra_args == ("--foo", "1", "--bar", "3")
    assert changed.env == {"B": "2"}
    assert recipe.parallelism.tp == 1


def _corpus(*parts: str) -> Path:
    root = os.environ.get("AIM_ENGINE_CORPUS")
    path = Path(root or "/nowhere").joinpath(*parts)
    if not path.exists():
        pytest.skip("no recordings: AIM_ENGINE_CORPUS is not set")
    return path


@pytest.mark.corpus
def test_the_outlier_of_a_recorded_run_is_named_and_the_host_is_not() -> None:
    folder = _corpus("hardware", "engine_metrics", "mi300x_vllm_0.18_v1")
    before, after = (scrape.parse((folder / f"quick_1u_32k_{end}.prom").read_text()) for end in ("start", "end"))
    span, _ = track.between(totals.read(before), totals.read(after))
    found = diagnose.diagnose(
        subject.of(report.summarise(before, after), span=span, log=(folder / "startup.log").read_text(), findings=())
    )
    ids = [each.id for each in found.found]
    assert "P4" in ids
    assert "U6" in ids
    assert not {name for name in ids if name[0] in "GH"}
    (outlier,) = [each for each in found.found if each.id == "P4"]
    assert "1 of 7 requests" in outlier.evidence
    (builds,) = [each for each in found.found if each.id == "U6"]
    assert "13.4 s" in builds.evidence


@pytest.mark.corpus
@pytest.mark.parametrize("scenario", ["quick_1u_1k", "quick_2u_1k", "quick_2u_32k"])
def test_recorded_runs_without_an_outlier_have_none(scenario: str) -> None:
    folder = _corpus("hardware", "engine_metrics", "mi300x_vllm_0.18_v1")
    before, after = (scrape.parse((folder / f"{scenario}_{end}.prom").read_text()) for end in ("start", "end"))
    span, _ = track.between(totals.read(before), totals.read(after))
    found = diagnose.diagnose(subject.of(report.summarise(before, after), span=span))
    assert "P4" not in [each.id for each in found.found]


@pytest.mark.corpus
def test_expected_findings_of_the_recordings_are_still_listed() -> None:
    folder = _corpus("hardware", "engine_metrics", "mi300x_vllm_0.18_v1")
    assert any(
        "JIT outlier" in each for each in json.loads((folder / "expected.json").read_text())["findings_expected"]
    )


def test_logs_of_long_builds_and_untuned_shapes_are_read() -> None:
    log = "\n".join(
        [
            "[aiter] finish build [module_a], cost 41.7s",
            "[aiter] finish build [module_b], cost 30.2s",
            "[aiter] finish build [module_c], cost 116.0s",
            "torch.compile takes 87.9 s in total",
            *[
                f"[aiter] shape is M:{m}, N:2, K:4, not found tuned config in a8w8_blockscale_tuned_gemm.csv, will use default"
                for m in (1, 2, 4, 8, 16, 32, 64, 128)
            ],
        ]
    )
    found = diagnose.diagnose(subject.of(None, log=log))
    told = {each.id: each for each in found.found}
    assert "the longest 116.0 s" in told["U6"].evidence
    assert told["A3"].evidence.startswith("8 shapes")


def test_seconds_of_the_start_are_those_of_the_total() -> None:
    log = "\n".join(
        [
            "INFO Compiling a graph for compile range (1, 2048) takes 31.25 s",
            "INFO torch.compile takes 36.11 s in total",
            "INFO Loading weights took 1.66 seconds",
            "INFO Model loading took 0.5 GiB memory and 2.05 seconds",
            "INFO GPU KV cache size: 46,592 tokens",
            "INFO Maximum concurrency for 2,048 tokens per request: 22.75x",
        ]
    )
    found = subject.of(None, log=log).names
    assert (found["compile_s"], found["load_s"]) == (36.11, 2.05)
    assert (found["logged_kv_tokens"], found["max_concurrency"]) == (46592, 22.75)


def test_a_document_of_diagnoses_survives_json() -> None:
    found = diagnose.diagnose(subject.of(None, log="ValueError: No available memory for the cache blocks."))
    assert msgspec.json.decode(msgspec.json.encode(found), type=diagnose.Diagnosed) == found


@pytest.mark.parametrize(
    ("names", "fires"),
    [
        # AMD's exporter tells how often the limit held the clock down, and no cap
        ({"power_throttled_fraction": 0.4, "clock_fraction": 0.6}, True),
        # a guest of a real MI300X: 749 of 750 W, 1259 of 2100 MHz, and no counter of why
        ({"power_of_cap_fraction": 749 / 750, "clock_fraction": 1259 / 2100}, True),
        ({"power_of_cap_fraction": 749 / 750, "clock_fraction": 0.98, "power_cap_fraction": 1.0}, None),
        ({"power_throttled_fraction": 0.1, "power_of_cap_fraction": 0.6, "clock_fraction": 0.6}, None),
    ],
)
def test_a_power_limit_is_seen_by_whatever_tells_of_it(names: dict[str, float], fires: bool | None) -> None:
    rule = next(each for each in knowledge.load() if each.id == "G1")
    assert (diagnose.holds(rule, names) or None) is fires
