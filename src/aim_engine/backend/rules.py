"""Rules as data: each file `rules/*.yaml` holds conditions, reasons and remedies, and two cases that show when each fires.

Those of one engine stand in `rules/<engine>/`; the others hold for hosts, containers and clusters whatever runs there.

A condition is an expression over the names of `subject`. It is compiled once and has no access to anything else. A rule that
asks for something unknown here, such as the heads of a model nobody described, is not judged.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from aim_engine import facts
from aim_engine.backend.release import number
from aim_engine.errors import Corrupt, InvalidInput
from aim_engine.hardware.cluster import Finding

Subject = Mapping[str, Any]
_Judge = Callable[[Subject], Any]
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
}


class Repair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes a rule content without taking anything away: the one value that is right."""

    drop: tuple[str, ...] = ()
    """Arguments to leave out."""
    set: dict[str, str] = {}
    """Arguments and their value."""
    unset: tuple[str, ...] = ()
    """Variables to leave out."""
    env: dict[str, str] = {}
    """Variables and their value."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule. Names in braces are filled in from the subject."""

    id: str
    severity: Literal["error", "warning", "info"]
    what: str
    why: str
    fix: str
    source: str
    when: str
    repair: Repair | None = None
    triggers: dict[str, Any]
    """Values of a subject for which it must fire."""
    passes: dict[str, Any]
    """Values of a subject for which it must not."""


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that fired, filled in."""

    finding: Finding
    repair: Repair | None


class UnknownName(Exception):
    """A condition asked for something that is not known of this subject."""


@functools.cache
def load(engine: str, overlay: Path | None = None) -> tuple[Rule, ...]:
    """The rules for an engine, bundled ones and the user's own; one with the id of a bundled rule replaces it.

    Raises: InvalidInput.
    """
    found: dict[str, Rule] = {}
    for root in (facts.BUNDLED, overlay):
        if root is None:
            continue
        folder = root / "rules"
        for path in (*sorted(folder.glob("*.yaml")), *sorted((folder / engine).glob("*.yaml"))):
            for rule in facts.read(path, tuple[Rule, ...]):
                found[rule.id] = rule
    return tuple(found.values())


def judge(subject: Subject, engine: str, overlay: Path | None = None) -> tuple[Hit, ...]:
    """The rules that fire for `subject`, in the order of their files."""
    return tuple(hit for rule in load(engine, overlay) if (hit := apply(rule, subject)) is not None)


def apply(rule: Rule, subject: Subject) -> Hit | None:
    """`rule` filled in when it fires; None when it does not, or cannot be judged."""
    try:
        if not compiled(rule.when)(subject):
            return None
    except UnknownName:
        return None
    known = _Shown(subject)
    finding = Finding(
        id=rule.id,
        severity=rule.severity,
        message=f"{rule.what.format_map(known)}: {rule.why.format_map(known)}",
        remedy=rule.fix.format_map(known),
        source=rule.source,
    )
    return Hit(finding=finding, repair=_filled(rule.repair, known) if rule.repair is not None else None)


@functools.cache
def compiled(expression: str) -> _Judge:
    """An expression as a function of a subject. Raises: Corrupt when it uses anything a condition may not."""
    try:
        return _compile(ast.parse(expression, mode="eval").body)
    except SyntaxError as err:
        raise Corrupt(f"the condition '{expression}' is not readable", why=err.msg) from err


class _Shown(dict[str, Any]):
    """A subject as texts for messages; what is not known is shown as such."""

    def __missing__(self, key: str) -> str:
        return "?"


def _filled(repair: Repair, known: _Shown) -> Repair:
    return Repair(
        drop=repair.drop,
        set={flag: value.format_map(known) for flag, value in repair.set.items()},
        unset=repair.unset,
        env={name: value.format_map(known) for name, value in repair.env.items()},
    )


def _compile(node: ast.AST) -> _Judge:
    match node:
        case ast.Constant(value=value):
            return lambda _: value
        case ast.Name(id=name):
            return lambda subject: _look_up(subject, name)
        case ast.Tuple(elts=parts):
            each = [_compile(part) for part in parts]
            return lambda subject: tuple(part(subject) for part in each)
        case ast.BoolOp(op=op, values=parts):
            each = [_compile(part) for part in parts]
            return _any(each) if isinstance(op, ast.Or) else _all(each)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            denied = _compile(inner)
            return lambda subject: not denied(subject)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _pair(_compile(left), _OPERATORS[type(op)], _compile(right))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _pair(_compile(left), _OPERATORS[type(op)], _compile(right))
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in _FUNCTIONS:
            each = [_compile(part) for part in parts]
            call = _FUNCTIONS[name]
            return lambda subject: call(subject, *(part(subject) for part in each))
        case _:
            raise Corrupt(f"a condition may not use {ast.unparse(node)}")


def _all(parts: list[_Judge]) -> _Judge:
    def judged(subject: Subject) -> Any:
        value: Any = True
        for part in parts:
            value = part(subject)
            if not value:
                return value
        return value

    return judged


def _any(parts: list[_Judge]) -> _Judge:
    def judged(subject: Subject) -> Any:
        value: Any = False
        for part in parts:
            value = part(subject)
            if value:
                return value
        return value

    return judged


def _pair(left: _Judge, apply_: Callable[[Any, Any], Any], right: _Judge) -> _Judge:
    def judged(subject: Subject) -> Any:
        try:
            return apply_(left(subject), right(subject))
        except (TypeError, ZeroDivisionError) as err:
            raise UnknownName from err

    return judged


def _look_up(subject: Subject, name: str) -> Any:
    if name not in subject:
        raise UnknownName(name)
    value = subject[name]
    return tuple(value) if isinstance(value, list) else value


def _env(subject: Subject, name: str) -> str | None:
    found = _look_up(subject, "envs")
    if not isinstance(found, Mapping):
        raise UnknownName("envs")
    value: str | None = found.get(name)
    return value


def _arg(subject: Subject, dest: str) -> str | None:
    found: Mapping[str, str] = _look_up(subject, "args")
    return found.get(dest)


def _given(subject: Subject, flag: str) -> bool:
    return any(word.partition("=")[0].replace("_", "-") == flag for word in _look_up(subject, "words"))


def _matches(_: Subject, text: object, pattern: str) -> bool:
    if not isinstance(text, str):
        raise UnknownName
    return _pattern(pattern).search(text) is not None


@functools.cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _whole(_: Subject, text: object) -> int:
    if not isinstance(text, str) or not text.isdecimal():
        raise UnknownName
    return int(text)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "env": _env,
    "arg": _arg,
    "given": _given,
    "matches": _matches,
    "whole": _whole,
    "release": lambda _, text: _padded(number(text)),
    "least": lambda _, *numbers: min(numbers),
    "most": lambda _, *numbers: max(numbers),
}


def _padded(version: tuple[int, ...]) -> tuple[int, ...]:
    return (*version, 0, 0)[:3]


def version_of(text: str) -> tuple[int, ...]:
    """A release as conditions compare it: three numbers. Raises: InvalidInput when there is none in it."""
    found = number(text)
    if not found:
        raise InvalidInput(f"'{text}' is no release")
    return _padded(found)
