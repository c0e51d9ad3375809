"""From evidence to a ranked list: which rules fire, which of them only show the effect of another, what to change and what it would do.

Pure: the subject goes in, diagnoses come out. A change is a change of the recipe, checked like a new one and held against the
performance model at the load that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from aim_engine.advise import knowledge
from aim_engine.advise.compare import FEW_REQUESTS
from aim_engine.advise.knowledge import Remedy, Rule, Verify
from aim_engine.advise.subject import Subject, predict
from aim_engine.backend.rules import UnknownName, compiled
from aim_engine.errors import AimError
from aim_engine.recipe.recipe import Parallelism, Recipe

_SPLIT = ("tp", "pp", "dp", "ep")
_LIMITS = {"ttft_ms": "lower", "tpot_ms": "lower", "output_tok_s": "higher", "requests_s": "higher"}


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction before and after the change, at the measured load."""

    kpi: str
    now: float
    then: float
    low: float
    high: float
    """Band of the prediction after the change."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What to change."""

    say: str
    recipe: dict[str, Any] = {}
    env: dict[str, str] = {}
    unset: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    do: tuple[str, ...] = ()

    @property
    def is_of_recipe(self) -> bool:
        """Can it be applied by planning and deploying again?"""
        return bool(self.recipe or self.env or self.unset or self.args or self.drop)


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that fired."""

    id: str
    about: str
    title: str
    severity: Literal["critical", "warning", "info"]
    evidence: str
    change: Change | None
    """The first remedy that is possible here; None when none is."""
    others: tuple[str, ...] = ()
    """Further remedies, in words."""
    effect: str
    predicted: tuple[Effect, ...] = ()
    risk: str = ""
    verify: Verify
    confidence: Literal["high", "medium", "low"]
    source: str
    explains: tuple[str, ...] = ()
    """Rules that fired too, as effects of this one."""
    held_back_by: str = ""
    """A diagnosis before it whose remedy this one's would undo."""


class Diagnosed(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/diagnosis/v1"):
    """The answer, most likely cause first."""

    found: tuple[Diagnosis, ...]
    judged: int
    """Rules whose evidence was all there."""
    unknown: tuple[str, ...] = ()
    """Rules that lacked something to judge on."""
    few_requests: float | None = None
    """Requests finished, when they are too few for advice on load."""


def diagnose(subject: Subject, overlay: Path | None = None) -> Diagnosed:
    """Every rule over a subject."""
    fired: list[Rule] = []
    unknown: list[str] = []
    judged = 0
    held_off = False
    for rule in knowledge.load(overlay):
        if subject.finished < rule.requests:
            held_off = held_off or subject.finished < FEW_REQUESTS
            continue
        answer = holds(rule, subject.names)
        if answer is None:
            unknown.append(rule.id)
            continue
        judged += 1
        if answer:
            fired.append(rule)
    causes = _causes(fired)
    ids = {rule.id for rule in fired}
    found: list[Diagnosis] = []
    for rule in causes:
        held_back = next((done.id for done in found if done.change is not None and _undoes(rule, done.id)), "")
        found.append(_told(rule, subject, tuple(name for name in rule.explains if name in ids), held_back))
    found.sort(key=lambda each: (each.severity != "critical", bool(each.held_back_by)))
    return Diagnosed(
        found=tuple(found),
        judged=judged,
        unknown=tuple(unknown),
        few_requests=subject.finished if held_off else None,
    )


def holds(rule: Rule, names: Mapping[str, Any]) -> bool | None:
    """Does a rule fire? None when it asks for something that is not known."""
    try:
        return bool(compiled(rule.when)(names))
    except UnknownName:
        return _any_known(rule.when, names)


def apply(recipe: Recipe, change: Change) -> Recipe:
    """The recipe with a change in it. Raises: InvalidInput when the engine could not have it so."""
    fields = {name: value for name, value in change.recipe.items() if name not in _SPLIT}
    split = {name: value for name, value in change.recipe.items() if name in _SPLIT}
    parallelism = msgspec.structs.replace(recipe.parallelism, **split) if split else recipe.parallelism
    replicas = fields.get("replicas", recipe.replicas)
    env = {name: value for name, value in {**recipe.env, **change.env}.items() if name not in change.unset}
    if recipe.gpu_count:
        fields["gpu_count"] = replicas * parallelism.world_size
    return msgspec.structs.replace(
        recipe,
        **fields,
        parallelism=Parallelism(**{name: getattr(parallelism, name) for name in _SPLIT}),
        env=env,
        extra_args=_arguments(recipe.extra_args, change),
        provenance="generated",
        provenance_note=f"advice: {change.say}",
    )


def _any_known(when: str, names: Mapping[str, Any]) -> bool | None:
    """Of a condition whose parts are joined by `or`, a part that is known and holds is enough."""
    parts = _alternatives(when)
    answers: list[bool | None] = []
    for part in parts if len(parts) > 1 else ():
        try:
            answers.append(bool(compiled(part)(names)))
        except UnknownName:
            answers.append(None)
    return True if True in answers else None


def _alternatives(when: str) -> list[str]:
    import ast

    body = ast.parse(when, mode="eval").body
    if isinstance(body, ast.BoolOp) and isinstance(body.op, ast.Or):
        return [ast.unparse(value) for value in body.values]
    return [when]


def _causes(fired: Sequence[Rule]) -> list[Rule]:
    """The rules that no other rule that fired explains, in the order of causes."""
    explained: set[str] = set()
    for rule in fired:
        if rule.id not in explained:
            explained |= set(rule.explains)
    return [rule for rule in fired if rule.id not in explained]


def _undoes(rule: Rule, other: str) -> bool:
    by_id = {each.id: each for each in knowledge.load()}
    return other in rule.conflicts or (other in by_id and rule.id in by_id[other].conflicts)


def _told(rule: Rule, subject: Subject, explains: tuple[str, ...], held_back: str) -> Diagnosis:
    shown = _Shown(subject.names)
    possible = [change for remedy in rule.remedies if (change := _possible(remedy, subject.names)) is not None]
    chosen = possible[0] if possible else None
    return Diagnosis(
        id=rule.id,
        about=knowledge.CLASSES[rule.id[0]],
        title=rule.title,
        severity=rule.severity,
        evidence=rule.evidence.format_map(shown),
        change=chosen,
        others=tuple(change.say for change in possible[1:]),
        effect=rule.effect.format_map(shown),
        predicted=_predicted(chosen, subject) if chosen is not None else (),
        risk=rule.risk,
        verify=rule.verify,
        confidence=rule.confidence,
        source=rule.source,
        explains=explains,
        held_back_by=held_back,
    )


def _possible(remedy: Remedy, names: Mapping[str, Any]) -> Change | None:
    try:
        if remedy.when is not None and not compiled(remedy.when)(names):
            return None
        recipe = {
            field: compiled(value)(names) if isinstance(value, str) else value for field, value in remedy.change.items()
        }
    except UnknownName:
        return None
    shown = _Shown(names)
    return Change(
        say=remedy.say.format_map(shown),
        recipe={field: round(v, 3) if isinstance(v, float) else v for field, v in recipe.items()},
        env=remedy.env,
        unset=remedy.unset,
        args=remedy.args,
        drop=remedy.drop,
        do=tuple(command.format_map(shown) for command in remedy.do),
    )


def _predicted(change: Change, subject: Subject) -> tuple[Effect, ...]:
    """What the performance model makes of a change of the recipe, at the measured load."""
    plan, calibration, workload = subject.plan, subject.calibration, subject.workload
    if not change.recipe or plan is None or plan.chosen is None or calibration is None or workload is None:
        return ()
    try:
        now = predict(plan, plan.chosen.recipe, workload, calibration)
        then = predict(plan, apply(plan.chosen.recipe, change), workload, calibration)
    except AimError:
        return ()  # the engine could not have it so; the change is told without numbers
    if now is None or then is None:
        return ()
    return tuple(
        Effect(
            kpi=name,
            now=getattr(now, name).value,
            then=getattr(then, name).value,
            low=getattr(then, name).low,
            high=getattr(then, name).high,
        )
        for name in _LIMITS
    )


def _arguments(words: tuple[str, ...], change: Change) -> tuple[str, ...]:
    kept: list[str] = []
    skipping = False
    for word in words:
        flag = word.partition("=")[0]
        if word.startswith("--"):
            skipping = flag in change.drop or flag in change.args
        if not skipping:
            kept.append(word)
    return (*kept, *change.args)


class _Shown(dict[str, Any]):
    """Names for messages; what is not known is shown as such, whatever its format."""

    def __missing__(self, key: str) -> _Question:
        return _Question()


class _Question:
    def __format__(self, _: str) -> str:
        return "?"
