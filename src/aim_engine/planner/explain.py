"""Why not the others, and how sure: neighbours of the choice with the number that lost them, and what to measure next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from aim_engine.perf.estimate import Range
from aim_engine.planner import rank
from aim_engine.planner.plan import Candidate, Inputs, Neighbour, Rejection
from aim_engine.recipe.recipe import Parallelism, Recipe
from aim_engine.units import format_ms
from aim_engine.workload import Objective

LIMITS = ("ttft", "tpot", "e2e")
_GOALS: dict[Objective, str] = {
    "throughput": "output tok/s",
    "latency": "requests/s of one user",
    "cost": "per unit of cost",
    "energy": "tokens per joule",
    "balanced": "speed per user x per GPU",
}
Matches = Callable[[Recipe], bool]


def neighbours(
    chosen: Candidate, candidates: Sequence[Candidate], rejected: Sequence[Rejection], inputs: Inputs
) -> tuple[Neighbour, ...]:
    """The best of every other split and of those one step away, each with the number that lost it, or why it does not fit."""
    found = []
    for change, family, matches in _changes(chosen.recipe, candidates):
        near = [c for c in candidates if matches(c.recipe)]
        if near:
            best = rank.order(tuple(near), inputs.objective, open_count=inputs.open_count)[0]
            found.append(Neighbour(change=change, recipe=best.recipe.key, reason=_lost(chosen, best, inputs)))
            continue
        refusal = next((r for r in rejected if family is not None and r.recipe == family), None)
        if refusal is not None:
            found.append(Neighbour(change=change, recipe=refusal.recipe, reason=refusal.reason))
    return tuple(found)


def doubt(chosen: Candidate, runner_up: Candidate | None, inputs: Inputs) -> str:
    """The one measurement that would settle most: a limit inside its range, else the figure that tells the first two apart."""
    load = f"at {chosen.estimate.concurrency} requests"
    for name in LIMITS:
        limit_ms, figure = getattr(inputs.slo, f"{name}_ms"), getattr(chosen.estimate, f"{name}_ms")
        if limit_ms is not None and figure.low <= limit_ms <= figure.high:
            span = f"{format_ms(figure.low)} to {format_ms(figure.high)}"
            return f"{name.upper()} {load}: its range, {span}, holds the limit of {format_ms(limit_ms)}"
    ours = chosen.estimate.output_tok_s
    if runner_up is None:
        return f"output tok/s {load}: nothing else competes, and its range is {ours.low:,.0f} to {ours.high:,.0f}"
    theirs = runner_up.estimate.output_tok_s
    if min(ours.high, theirs.high) <= max(ours.low, theirs.low):
        return "none: the ranges of the first two do not overlap"
    wider = chosen if _width(ours) >= _width(theirs) else runner_up
    return f"output tok/s {load} of {wider.recipe.key}: the ranges of the first two overlap, and its is the wider"


def _changes(recipe: Recipe, candidates: Sequence[Candidate]) -> Iterator[tuple[str, str | None, Matches]]:
    """What could be one step different: a name, the family whose rejection answers when nothing fits, and a test."""
    split = recipe.parallelism
    degrees = {c.recipe.parallelism.tp for c in candidates if c.recipe.parallelism.pp == split.pp}
    for tp in sorted((degrees | {split.tp // 2, split.tp * 2}) - {split.tp, 0}):
        other = msgspec.structs.replace(split, tp=tp)
        yield f"tp {tp} instead of {split.tp}", _family(other, recipe), _split_is(other, recipe)
        turned = msgspec.structs.replace(other, ep=not split.ep)
        if turned in {c.recipe.parallelism for c in candidates}:
            how = "sliced over ranks" if split.ep else "whole on each rank"
            yield f"tp {tp} instead of {split.tp}, experts {how}", None, _split_is(turned, recipe)
    if any(c.recipe.parallelism.ep for c in candidates):
        other = msgspec.structs.replace(split, ep=not split.ep)
        name = "experts sliced over ranks" if split.ep else "experts whole on each rank"
        yield name, _family(other, recipe), _split_is(other, recipe)
    for dp in sorted({c.recipe.parallelism.dp for c in candidates} - {split.dp}):
        yield f"attention over dp {dp}", None, _dp_is(dp, recipe)
    for precision in sorted({c.recipe.precision for c in candidates} - {recipe.precision}):
        yield f"weights in {precision}", None, _field_is("precision", precision)
    for kv_dtype in sorted({c.recipe.kv_cache_dtype for c in candidates} - {recipe.kv_cache_dtype}):
        yield f"KV cache in {kv_dtype}", None, _same_but("kv_cache_dtype", kv_dtype, recipe)
    for name in ("replicas", "max_num_seqs", "max_num_batched_tokens"):
        own = getattr(recipe, name)
        values = sorted({getattr(c.recipe, name) for c in candidates if _alike(c.recipe, recipe, name)})
        below = [value for value in values if value < own]
        above = [value for value in values if value > own]
        for value in (*below[-1:], *above[:1]):
            yield f"{name} {value} instead of {own}", None, _same_but(name, value, recipe)


def _family(split: Parallelism, recipe: Recipe) -> str:
    return f"{split.describe()} {recipe.precision}"


def _split_is(split: Parallelism, recipe: Recipe) -> Matches:
    return lambda other: other.parallelism == split and other.precision == recipe.precision


def _dp_is(dp: int, recipe: Recipe) -> Matches:
    return lambda other: other.parallelism.dp == dp and other.precision == recipe.precision


def _field_is(name: str, value: object) -> Matches:
    return lambda other: getattr(other, name) == value


def _same_but(name: str, value: object, recipe: Recipe) -> Matches:
    return lambda other: getattr(other, name) == value and _alike(other, recipe, name)


def _alike(one: Recipe, other: Recipe, but: str) -> bool:
    """Whether two recipes differ in nothing of note but `but`."""
    names = {"parallelism", "precision", "kv_cache_dtype", "replicas"} - {but}
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _lost(chosen: Candidate, other: Candidate, inputs: Inputs) -> str:
    """The number that decided against `other`."""
    missed = {name: -margin for name, margin in other.estimate.slo_margin.items() if margin < 0}
    if missed and chosen.estimate.meets_slo:
        name, by = max(missed.items(), key=lambda item: item[1])
        reached = getattr(other.estimate, f"{name}_ms").value
        return f"misses {name} by {by:.0%}: {format_ms(reached)}"
    ours, theirs = (rank.value(c, inputs.objective, open_count=inputs.open_count) for c in (chosen, other))
    goal = _GOALS[inputs.objective]
    if theirs < ours * (1 - 1e-9):
        return f"{1 - theirs / ours:.1%} less {goal}"
    more = other.recipe.gpu_count - chosen.recipe.gpu_count
    if theirs <= ours * (1 + 1e-9):
        return f"the same {goal}" + (f", with {more} GPUs more" if more > 0 else "")
    gain = f"{theirs / ours - 1:.1%} more {goal}, inside the error band"
    return f"{gain}, for {more} GPUs more" if more > 0 else f"{gain}; {rank.preference(chosen, other)}"


def _width(figure: Range) -> float:
    return (figure.high - figure.low) / figure.value if figure.value else 0.0
