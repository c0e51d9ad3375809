"""Why not the others, and how sure: neighbours of the choice with the number that lost them, and what to measure next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from aim_engine.perf.estimate import Range
from aim_engine.planner import rank
from aim_engine.planner.beside import Evidence
from aim_engine.planner.family import Option
from aim_engine.planner.plan import Candidate, Inputs, Neighbour, Rejection
from aim_engine.planner.rank import Rated
from aim_engine.recipe.recipe import Parallelism
from aim_engine.units import format_ms
from aim_engine.workload import Objective

_GOALS: dict[Objective, str] = {
    "throughput": "output tok/s",
    "latency": "requests/s of one user",
    "cost": "per unit of cost",
    "energy": "tokens per joule",
    "balanced": "speed per user x per GPU",
}
Matches = Callable[[Rated], bool]
_SCHEDULER = ("max_num_seqs", "max_num_batched_tokens")


def neighbours(
    chosen: Candidate,
    options: Sequence[Option],
    rejected: Sequence[Rejection],
    inputs: Inputs,
    smaller: Sequence[Candidate] = (),
    evidence: Evidence | None = None,
) -> tuple[Neighbour, ...]:
    """The best of every other split and of those one step away, each with the number that lost it, or why it does not fit.

    `smaller`: sizes that were simulated and missed a limit; `evidence`: what was measured of splits beside each other.
    """

    def lost(other: Rated) -> str:
        measured = "" if evidence is None else evidence.told(chosen, other)
        return "; ".join(filter(None, (_lost(chosen, other, inputs), measured)))

    found = [
        Neighbour(
            change=f"replicas {one.replicas} instead of {chosen.replicas}",
            recipe=one.key,
            reason=_lost(chosen, one, inputs),
        )
        for one in smaller
        if rank.spread(one) == rank.spread(chosen) and one.replicas < chosen.replicas
    ]
    for change, family, matches in _changes(chosen, options, counts=not inputs.open_count):
        near = [option for option in options if matches(option)]
        if any(one.change == change for one in found):
            continue
        if near:
            best = rank.order(near, inputs.objective, open_count=inputs.open_count)[0]
            found.append(Neighbour(change=change, recipe=best.key, reason=lost(best)))
            continue
        refusal = next((r for r in rejected if family is not None and r.recipe == family), None)
        if refusal is not None:
            found.append(Neighbour(change=change, recipe=refusal.recipe, reason=refusal.reason))
    named = {neighbour.recipe for neighbour in found}
    for split in sorted({option.split for option in options} - {chosen.split}):
        near = [option for option in options if option.split == split]
        best = rank.order(near, inputs.objective, open_count=inputs.open_count)[0]
        if best.key not in named:
            found.append(Neighbour(change=f"spread as {split.describe()}", recipe=best.key, reason=lost(best)))
    return tuple(found)


def doubt(chosen: Candidate, runner_up: Candidate | None, inputs: Inputs) -> str:
    """The one measurement that would settle most: a limit inside its range, else the figure that tells the first two apart."""
    load = f"at {chosen.estimate.concurrency} requests"
    for limit in inputs.slo.limits:
        figure = chosen.estimate.limited_ms[limit.name]
        if figure.low <= limit.ms <= figure.high:
            span = f"{format_ms(figure.low)} to {format_ms(figure.high)}"
            name = limit.name.upper() if limit.percentile is None else f"p{limit.percentile} {limit.name.upper()}"
            return f"{name} {load}: its range, {span}, holds the limit of {format_ms(limit.ms)}"
    ours = chosen.estimate.output_tok_s
    if runner_up is None:
        return f"output tok/s {load}: nothing else competes, and its range is {ours.low:,.0f} to {ours.high:,.0f}"
    theirs = runner_up.estimate.output_tok_s
    if min(ours.high, theirs.high) <= max(ours.low, theirs.low):
        return "none: the ranges of the first two do not overlap"
    wider = chosen if _width(ours) >= _width(theirs) else runner_up
    return f"output tok/s {load} of {wider.recipe.key}: the ranges of the first two overlap, and its is the wider"


def _changes(chosen: Rated, options: Sequence[Option], *, counts: bool) -> Iterator[tuple[str, str | None, Matches]]:
    """What could be one step different: a name, the family whose rejection answers when nothing fits, and a test.

    `counts`: the number of replicas too, unless each spread was only looked at in the number that it needs.
    """
    split = chosen.split
    degrees = {option.split.tp for option in options if option.split.pp == split.pp}
    for tp in sorted((degrees | {split.tp // 2, split.tp * 2}) - {split.tp, 0}):
        other = msgspec.structs.replace(split, tp=tp)
        yield f"tp {tp} instead of {split.tp}", _family(other, chosen), _split_is(other, chosen)
        turned = msgspec.structs.replace(other, ep=not split.ep)
        if turned in {option.split for option in options}:
            how = "sliced over ranks" if split.ep else "whole on each rank"
            yield f"tp {tp} instead of {split.tp}, experts {how}", None, _split_is(turned, chosen)
    if any(option.split.ep for option in options):
        other = msgspec.structs.replace(split, ep=not split.ep)
        name = "experts sliced over ranks" if split.ep else "experts whole on each rank"
        yield name, _family(other, chosen), _split_is(other, chosen)
    for dp in sorted({option.split.dp for option in options} - {split.dp}):
        yield f"attention over dp {dp}", None, _dp_is(dp, chosen)
    for precision in sorted({option.precision for option in options} - {chosen.precision}):
        yield f"weights in {precision}", None, _precision_is(precision)
    for kv_dtype in sorted({option.kv_cache_dtype for option in options} - {chosen.kv_cache_dtype}):
        yield f"KV cache in {kv_dtype}", None, _same_but("kv_cache_dtype", kv_dtype, chosen)
    for name in (*(("replicas",) if counts else ()), *_SCHEDULER):
        own = getattr(chosen, name)
        values = sorted({getattr(option, name) for option in options if _alike(option, chosen, name)})
        below = [value for value in values if value < own]
        above = [value for value in values if value > own]
        for value in (*below[-1:], *above[:1]):
            yield f"{name} {value} instead of {own}", None, _same_but(name, value, chosen)


def _family(split: Parallelism, chosen: Rated) -> str:
    return f"{split.describe()} {chosen.precision}"


def _split_is(split: Parallelism, chosen: Rated) -> Matches:
    return lambda other: other.split == split and other.precision == chosen.precision


def _dp_is(dp: int, chosen: Rated) -> Matches:
    return lambda other: other.split.dp == dp and other.precision == chosen.precision


def _precision_is(precision: str) -> Matches:
    return lambda other: other.precision == precision


def _same_but(name: str, value: object, chosen: Rated) -> Matches:
    return lambda other: getattr(other, name) == value and _alike(other, chosen, name)


def _alike(one: Rated, other: Rated, but: str) -> bool:
    """Whether two differ in nothing of note but `but`: of the scheduler's limits, only the one that is changed may differ."""
    names = {"split", "precision", "kv_cache_dtype", "replicas"} - {but}
    if but in _SCHEDULER:
        names |= set(_SCHEDULER) - {but}
    return all(getattr(one, name) == getattr(other, name) for name in sorted(names))


def _lost(chosen: Candidate, other: Rated, inputs: Inputs) -> str:
    """The number that decided against `other`."""
    if other.misses and chosen.meets_slo:
        name, by, reached_ms = other.misses[0]
        return f"misses {inputs.slo.told(name)} by {by:.0%}: {format_ms(reached_ms)}"
    ours, theirs = (rank.value(c, inputs.objective, open_count=inputs.open_count) for c in (chosen, other))
    goal = _GOALS[inputs.objective]
    if theirs < ours * (1 - 1e-9):
        return f"{1 - theirs / ours:.1%} less {goal}"
    more = other.devices - chosen.devices
    if theirs <= ours * (1 + 1e-9):
        return f"the same {goal}" + (f", with {_gpus(more)} more" if more > 0 else "")
    gain = f"{theirs / ours - 1:.1%} more {goal}"
    if ours >= theirs * (1 - rank.band(inputs.objective)):
        gain += ", inside the error band"
        if more > 0:
            return f"{gain}, for {_gpus(more)} more"
    return f"{gain}; {rank.preference(chosen, other)}"


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count != 1)}"


def _width(figure: Range) -> float:
    return (figure.high - figure.low) / figure.value if figure.value else 0.0
