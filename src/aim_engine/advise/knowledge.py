"""What is known of symptoms and their remedies: each file `advice/*.yaml` holds rules, with two cases that show when each fires.

The order of files and rules is the order of causes: a sick card explains a slow engine, not the other way round.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import msgspec

from aim_engine import facts

CLASSES = {
    "G": "cards",
    "H": "host",
    "U": "start",
    "C": "collectives",
    "A": "kernels",
    "K": "KV cache",
    "S": "scheduling",
    "P": "first token",
    "D": "tokens",
    "X": "prefix cache",
    "Q": "quality",
    "E": "energy",
}
"""First letter of a rule's id -> what it is about."""


class Remedy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to change; of several the first that is possible is taken."""

    say: str
    when: str | None = msgspec.field(name="if", default=None)
    """Possible only where this holds."""
    change: dict[str, str | int] = {}
    """Fields of the recipe and expressions of their new values."""
    env: dict[str, str] = {}
    """Variables to set."""
    unset: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    """Engine arguments to add."""
    drop: tuple[str, ...] = ()
    """Engine arguments to leave out."""
    do: tuple[str, ...] = ()
    """Commands for a person; one that begins with # is advice where no command does it."""


class Verify(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to see that it helped."""

    kpi: str
    want: Literal["falls", "rises", "stays"]
    by: str = ""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One symptom, what shows it, and what to do."""

    id: str
    title: str
    severity: Literal["critical", "warning", "info"] = "warning"
    requests: int = 20
    """Requests that must have finished in the window before it is judged."""
    when: str
    evidence: str
    remedies: tuple[Remedy, ...]
    effect: str
    risk: str = ""
    verify: Verify
    explains: tuple[str, ...] = ()
    """Rules that are not told while this one fires: their symptom is its effect."""
    conflicts: tuple[str, ...] = ()
    """Rules whose remedies undo those of this one."""
    confidence: Literal["high", "medium", "low"]
    source: str
    fires: dict[str, Any]
    """Values of a subject for which it must fire."""
    silent: dict[str, Any]
    """Values of a subject for which it must not."""


@functools.cache
def load(overlay: Path | None = None) -> tuple[Rule, ...]:
    """Every rule in the order of causes, the user's own in place of bundled ones of the same id. Raises: InvalidInput."""
    found: dict[str, Rule] = {}
    for root in (facts.BUNDLED, overlay):
        for path in sorted((root / "advice").glob("*.yaml")) if root is not None else ():
            for rule in facts.read(path, tuple[Rule, ...]):
                found[rule.id] = rule
    return tuple(found.values())
