"""Which card: the plans of several, put side by side."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aim_engine.planner import rank
from aim_engine.planner.plan import Plan, Rejection, Step
from aim_engine.workload import Objective

ALTERNATIVES = 5
AHEAD = 4
"""Cards that are looked at more closely."""
NO_IMAGE = "VER011"
"""The rule that finds an image without kernels for the card."""


def ahead(plans: Sequence[Plan], objective: Objective) -> tuple[str, ...]:
    """The cards that lead by closed forms, which are worth a closer look."""
    able = [plan.chosen for plan in plans if plan.chosen is not None and _without_image(plan) is None]
    ranked = rank.order(able, objective, open_count=True)
    return tuple(candidate.recipe.gpu for candidate in ranked[:AHEAD])


def best(plans: Sequence[Plan], refused: Sequence[Rejection], objective: Objective) -> Plan:
    """The plan of the best card, with the best of each other card as its alternatives and why the rest fell out.

    `plans` is not empty; `refused` are cards that could not be planned on at all. A card that no published image of the engine
    has kernels for is chosen only when no other can do what was asked.
    """
    able = [plan for plan in plans if plan.chosen is not None]
    ready = [plan for plan in able if _without_image(plan) is None] or able
    ranked = rank.order([plan.chosen for plan in ready if plan.chosen is not None], objective, open_count=True)
    unready = [
        Rejection(recipe=plan.inputs.gpu.name, reason=_without_image(plan) or "") for plan in able if plan not in ready
    ]
    rejected = [*refused, *unready, *(_refusal(plan) for plan in plans if plan.chosen is None)]
    if not ranked:
        return _none(plans, rejected)
    first = ranked[0]
    winner = next(plan for plan in plans if plan.chosen is first)
    text = first.reason
    if len(ranked) > 1:
        ours, theirs = (rank.value(candidate, objective, open_count=True) for candidate in ranked[:2])
        behind = f" ({1 - theirs / ours:.0%} behind)" if 0 < theirs < ours else ""
        text += f"; of {len(plans)} cards the next is {ranked[1].recipe.gpu}{behind}"
    return msgspec.structs.replace(
        winner,
        chosen=msgspec.structs.replace(first, reason=text),
        alternatives=tuple(ranked[1 : ALTERNATIVES + 1]),
        pareto=rank.pareto(candidate for plan in plans for candidate in plan.pareto),
        rejected=(*rejected, *winner.rejected),
        steps=_steps(winner, plans, len(ranked)),
    )


def _without_image(plan: Plan) -> str | None:
    """What a plan says where the engine's image was not built for its card."""
    return next((finding.message for finding in plan.findings if finding.id == NO_IMAGE), None)


def _none(plans: Sequence[Plan], rejected: Sequence[Rejection]) -> Plan:
    """The plan of the card that comes closest: it misses a limit by least, or lacks least memory."""

    def distance(plan: Plan) -> tuple[float, float, str]:
        missed = [-min(candidate.estimate.slo_margin.values(), default=0.0) for candidate in plan.alternatives]
        lacking = [rejection.missing_bytes for rejection in plan.rejected if rejection.missing_bytes]
        return (min(missed, default=float("inf")), min(lacking, default=float("inf")), plan.inputs.gpu.name)

    closest = min(plans, key=distance)
    return msgspec.structs.replace(closest, rejected=(*rejected, *closest.rejected), steps=_steps(closest, plans, 0))


def _refusal(plan: Plan) -> Rejection:
    fallback = next((step.summary for step in plan.steps if step.name == "fallback"), "nothing fits")
    reasons = [rejection.reason for rejection in plan.rejected]
    return Rejection(recipe=plan.inputs.gpu.name, reason=fallback if not reasons else f"{fallback}: {reasons[-1]}")


def _steps(plan: Plan, plans: Sequence[Plan], able: int) -> tuple[Step, ...]:
    """The steps of one card, the first of which says that others were looked at."""
    first, *others = plan.steps
    summary = f"{len(plans)} cards compared, {able} can do what was asked"
    return (Step(name=first.name, summary=summary, details=(first.summary, *first.details)), *others)
