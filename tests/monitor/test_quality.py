"""Checks of answers: each flaw is seen, and good answers have none."""

from __future__ import annotations

from typing import Any

import pytest

from aim_engine.monitor import quality

TOOL = {"function": {"name": "weather", "parameters": {"properties": {"city": {}}, "required": ["city"]}}}


@pytest.mark.parametrize(
    ("text", "options", "flaw"),
    [
        ("", {}, "empty"),
        ("  \n", {}, "empty"),
        ("The capital of", {"finish_reason": "length"}, "cut off"),
        ("I'm sorry, but I can't help with that.", {}, "refused"),
        ("I cannot assist with this request.", {}, "refused"),
        ("the cat " * 30, {}, "repeated"),
        ("!" * 60, {}, "repeated"),
        ("one two three four five six " * 6, {}, "repeated"),
        ("\ufffd\ufffd\ufffda", {}, "garbled"),
        ("Here you are: {", {"wants_json": True}, "not JSON"),
        ("", {"tool_call": {"function": {"name": "wether", "arguments": "{}"}}, "tools": [TOOL]}, "wrong tool call"),
        ("", {"tool_call": {"function": {"name": "weather", "arguments": "{}"}}, "tools": [TOOL]}, "wrong tool call"),
        (
            "",
            {"tool_call": {"function": {"name": "weather", "arguments": "{city"}}, "tools": [TOOL]},
            "wrong tool call",
        ),
        (
            "",
            {"tool_call": {"function": {"name": "weather", "arguments": '{"city": "A", "x": 1}'}}, "tools": [TOOL]},
            "wrong tool call",
        ),
    ],
)
def test_a_flaw_is_seen(text: str, options: dict[str, Any], flaw: str) -> None:
    assert flaw in quality.flaws(text, **options)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("The capital of France is Paris.", {}),
        ("No, no, no: that is not so.", {}),
        ("I am sorry to hear that your cat is ill; see a vet.".replace("I am sorry", "It is sad"), {}),
        ('{"city": "Paris"}', {"wants_json": True}),
        ('```json\n{"city": "Paris"}\n```', {"wants_json": True}),
        ("1. red\n2. green\n3. blue\n4. red\n5. green", {}),
        ("日本の首都は東京です。", {}),
        ("", {"tool_call": {"function": {"name": "weather", "arguments": '{"city": "Paris"}'}}, "tools": [TOOL]}),
    ],
)
def test_a_good_answer_has_none(text: str, options: dict[str, Any]) -> None:
    assert quality.flaws(text, **options) == ()


def test_a_wrong_fact_is_no_fault_of_serving() -> None:
    checked = [
        quality.Checked(question="q", answer="Rome", flaws=("wrong",)),
        quality.Checked(question="q", answer="", flaws=("empty",)),
    ]
    assert [rating.good for rating in quality.ratings("demo", checked, time_s=1.0)] == [True, False]


def test_every_bundled_question_can_be_checked() -> None:
    assert all(probe.contains or probe.json for probe in quality.probes())
