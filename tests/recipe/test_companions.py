"""The other models that an engine's arguments name."""

from __future__ import annotations

import json

import pytest

from aim_engine.recipe import companions

EAGLE = '{"method": "eagle3", "model": "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "num_speculative_tokens": 3}'


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (("--speculative-config", EAGLE), ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B",)),
        ((f"--speculative-config={EAGLE}",), ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B",)),
        (("--speculative-config.model", "o/draft"), ("o/draft",)),
        (("--speculative-draft-model-path=o/draft", "--tp", "2"), ("o/draft",)),
        (("--lora-modules", "a=o/first", "b=o/second", "--max-loras", "2"), ("o/first", "o/second")),
        (("--lora-modules", '{"name": "a", "path": "o/first", "base_model_name": "m"}'), ("o/first",)),
        (("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}'), ()),
        (("--speculative-config", "no json"), ()),
        (("--speculative-config", '{"model": "/models/draft"}', "--lora-modules", "a=/x/y"), ()),
        (("--speculative-config", '{"model": "own/model"}'), ()),
        (("--max-num-seqs", "64", "--kv-cache-dtype", "fp8/x"), ()),
    ],
)
def test_models_are_found_where_engines_are_told_of_them(args: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert companions.of(args, "own/model") == found


def test_what_was_fetched_takes_the_place_of_the_name() -> None:
    args = (
        "--speculative-config",
        EAGLE,
        "--lora-modules",
        "a=o/first",
        "b=o/second",
        "--speculative-draft-model=o/first",
    )
    told = companions.placed(args, {"yuhuili/EAGLE3-LLaMA3.1-Instruct-8B": "/draft", "o/first": "/lora"})
    assert json.loads(told[1]) == {"method": "eagle3", "model": "/draft", "num_speculative_tokens": 3}
    assert told[2:] == ("--lora-modules", "a=/lora", "b=o/second", "--speculative-draft-model=/lora")
    assert companions.placed(args, {}) == args


def test_several_names_in_one_word_are_all_replaced() -> None:
    word = '[{"name": "a", "path": "o/a"}, {"name": "b", "path": "o/b"}]'
    told = companions.placed(("--lora-modules", word), {"o/a": "/a", "o/b": "/b"})
    assert [each["path"] for each in json.loads(told[1])] == ["/a", "/b"]
