"""Why did the engine die? From its last lines and its exit code to a likely cause and a remedy.

The knowledge is data (`data/engines/<engine>/failures.yaml`), tried in order; this module only applies it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from aim_engine import facts
from aim_engine.deploy.runner import Diagnosis

TAIL_LINES = 400
"""How much of a log is judged; a traceback of a failing start is at most a few hundred lines."""
SHOWN_LINES = 12
_PREFIX = re.compile(
    r"^(?:\([^)]*\)\s*)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ )?(?:\[[^\]]*\]\s*)?"
)
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b(?::\s*(?P<message>.*))?$")


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to fail."""

    id: str
    pattern: str | None = None
    """Regular expression searched in the log's end."""
    returncodes: tuple[int, ...] = ()
    cause: str
    remedy: str
    source: str


class Milestone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A log line that marks progress."""

    pattern: str
    says: str


class _Failures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...]


class _Milestones(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    milestones: tuple[Milestone, ...]


def rules(engine: str, overlay: Path | None = None) -> tuple[Rule, ...]:
    """The known failures of an engine, most specific first."""
    return facts.load(f"engines/{engine}/failures.yaml", _Failures, overlay).rules


def milestones(engine: str, overlay: Path | None = None) -> tuple[Milestone, ...]:
    """The log lines that mark an engine's progress to ready."""
    return facts.load(f"engines/{engine}/milestones.yaml", _Milestones, overlay).milestones


def diagnose(log: Sequence[str], returncode: int | None, known: Sequence[Rule]) -> Diagnosis:
    """The likely cause of an end with these last lines and this exit code. Pure.

    What the log says counts before what the exit code says; without either the last exception is quoted.
    """
    text = "\n".join(log[-TAIL_LINES:])
    for by_code in (False, True):
        for rule in known:
            if by_code and returncode is not None and returncode in rule.returncodes:
                return Diagnosis(id=rule.id, cause=rule.cause, remedy=rule.remedy)
            match = re.search(rule.pattern, text) if rule.pattern and not by_code else None
            if match is not None:
                groups = {name: value or "?" for name, value in match.groupdict().items()}
                return Diagnosis(
                    id=rule.id,
                    cause=_fill(rule.cause, groups),
                    remedy=_fill(rule.remedy, groups),
                    evidence=_line_at(text, match.start()),
                )
    raised = last_exception(log)
    ended = "it is not known how it ended" if returncode is None else f"it ended with exit code {returncode}"
    return Diagnosis(
        id="unknown",
        cause=raised or f"{ended} and its log names no error",
        remedy="read the whole log with `aim-engine logs`",
        evidence=raised,
    )


def progress_line(line: str, known: Sequence[Milestone]) -> str | None:
    """What a log line means for somebody who waits, None when nothing."""
    for milestone in known:
        match = re.search(milestone.pattern, line)
        if match is not None:
            return _fill(milestone.says, {name: value or "?" for name, value in match.groupdict().items()})
    return None


def last_exception(log: Sequence[str]) -> str:
    """The last line of a log that names a raised exception, without the log's own prefix; empty when there is none."""
    for line in reversed(log[-TAIL_LINES:]):
        bare = strip_prefix(line)
        if _RAISED.match(bare):
            return bare
    return ""


def strip_prefix(line: str) -> str:
    """A log line without process, level, time and source position."""
    return _PREFIX.sub("", line.rstrip()).strip()


def shown_tail(log: Sequence[str]) -> tuple[str, ...]:
    """The last lines of a log worth showing beside an error."""
    return tuple(line.rstrip()[:300] for line in log if line.strip())[-SHOWN_LINES:]


def _fill(text: str, groups: dict[str, str]) -> str:
    for name, value in groups.items():
        text = text.replace(f"{{{name}}}", value.strip())
    return text


def _line_at(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return strip_prefix(text[start : None if end < 0 else end])[:300]
