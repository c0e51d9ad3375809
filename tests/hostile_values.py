"""Ten thousand hostile values as arguments, variables and annotations of a plan, and how to find them in what was written."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec

import hostile as short
import plans
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import replace
from aim_engine.render.artifact import Options

COUNT = 10_000
BATCH = 500
PIECES = (
    *short.NASTY,
    "{{ .Values }}",
    "{{`",
    "}}",
    "%{x}",
    "$(LWS_LEADER_ADDRESS)",
    "#SBATCH --x",
    "---",
    "...",
    "? ",
    "|",
    ">",
)
ALPHABET = "'\"\\$`{}[]()<>|&;#!*?~%@:,=-+ \t\n\rabcZ019é😀\u2028\u2029\x85\ufeff\x7f\x1b\xa0"


def values() -> list[str]:
    """The same each time: known tricks, chains of them, random text, and a few of a megabyte."""
    chance = random.Random(7)
    found = list(PIECES)
    while len(found) < COUNT - 3:
        if chance.random() < 0.5:
            found.append("".join(chance.choices(PIECES, k=chance.randint(1, 4))))
        else:
            found.append("".join(chance.choices(ALPHABET, k=chance.randint(1, 40))))
    return [*found, "x" * 1_000_000, "'\n" * 500_000, "$(id)" * 200_000]


VALUES = values()


def batches(most: int = 100_000) -> Iterator[list[str]]:
    """The values in lists, without those that the kernel takes for no argument when `most` is its limit."""
    fit = [value for value in VALUES if len(value.encode()) < most]
    for start in range(0, len(fit), BATCH):
        yield fit[start : start + BATCH]


def plan(words: list[str]) -> Plan:
    """Every value as a variable and as an argument."""
    made = short.hostile("m", "v", "a")
    assert made.chosen is not None
    recipe = replace(
        made.chosen.recipe,
        env={"VLLM_TARGET_DEVICE": "cpu", **{f"N{index}": value for index, value in enumerate(words)}},
        extra_args=("--chat-template", *words),
    )
    return msgspec.structs.replace(made, chosen=msgspec.structs.replace(made.chosen, recipe=recipe))


def on_gpus(words: list[str]) -> Plan:
    """Every value as a variable of an engine on a GPU."""
    made = plans.dense_on_all()
    assert made.chosen is not None
    recipe = replace(made.chosen.recipe, env={f"N{index}": value for index, value in enumerate(words)})
    return msgspec.structs.replace(made, chosen=msgspec.structs.replace(made.chosen, recipe=recipe))


def options(words: list[str], target: str) -> Options:
    takes = target not in ("env", "shell", "slurm", "systemd", "docker", "compose", "podman")
    notes = {f"note{index}": value for index, value in enumerate(words)} if takes else {}
    return Options(name="demo", image="local/cpu:v1", annotations=notes)


def contains(found: Any, words: list[str], undo: Any) -> bool:
    """Some list of `found` ends in, or holds in a row, exactly `words`."""
    if isinstance(found, dict):
        return any(contains(entry, words, undo) for entry in found.values())
    if isinstance(found, list):
        texts = [undo(entry) if isinstance(entry, str) else None for entry in found]
        rows = [row for row in range(len(texts) - len(words) + 1) if texts[row] == words[0]]
        return any(texts[row : row + len(words)] == words for row in rows) or any(
            contains(entry, words, undo) for entry in found if isinstance(entry, (dict, list))
        )
    return False


LONE = re.compile(r"(?<!\$)(?:\$\$)*\$(?!\$)")


def undoubled(value: str) -> str:
    """What Compose and the kubelet make of `value`: `$$` is `$`; a lone `$` would be looked up."""
    assert not LONE.search(value) or value.startswith("$(LWS_") or len(value) < 30, value[:100]
    return value.replace("$$", "$")


def variables(found: Any) -> Iterator[tuple[str, str]]:
    """Each variable of every container and service."""
    if isinstance(found, dict):
        for name, value in found.get("environment", {}).items() if isinstance(found.get("environment"), dict) else ():
            if str(name)[1:].isdecimal():
                yield name, value
        for entry in found.get("env", []) if isinstance(found.get("env"), list) else ():
            if entry["name"][1:].isdecimal():
                yield entry["name"], entry.get("value", "")
        for entry in found.values():
            yield from variables(entry)
    elif isinstance(found, list):
        for entry in found:
            yield from variables(entry)
