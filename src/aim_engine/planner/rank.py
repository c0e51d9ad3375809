"""Which candidate is best for a goal, and which are never worse at both speeds."""

from __future__ import annotations

from aim_engine.planner.plan import Candidate
from aim_engine.workload import Objective

ERROR_BAND_FRACTION = 0.10
"""Predictions closer than this are not told apart: then what was run before, fewer devices and the simpler set-up win."""


def value(candidate: Candidate, objective: Objective, *, open_count: bool = False) -> float:
    """What the objective maximises. Where the number of devices is open, throughput counts per device."""
    estimate = candidate.estimate
    if objective == "latency":
        return 1.0 / estimate.e2e_ms.value
    if objective == "cost":
        usd_h = candidate.running.usd_h
        return 1.0 / (max(1, candidate.recipe.gpu_count) if usd_h is None else usd_h)
    if objective == "energy":
        return candidate.running.output_tokens_per_joule or 0.0
    if objective == "balanced":
        return estimate.output_tok_s_per_user * estimate.output_tok_s_per_gpu
    return estimate.output_tok_s_per_gpu if open_count else estimate.output_tok_s.value


def order(candidates: tuple[Candidate, ...], objective: Objective, *, open_count: bool = False) -> list[Candidate]:
    """Best first. Those that keep the service levels come before those that do not.

    Those that do not are ordered by how little they miss. Among the others the best value leads; within the error band of it, a known recipe beats a generated one, fewer devices beat more, and one
    kind of parallelism beats two. The rest follows by value.
    """
    if not candidates:
        return []
    worth = {id(candidate): value(candidate, objective, open_count=open_count) for candidate in candidates}
    ranked = sorted(candidates, key=lambda c: (_missed_fraction(c), -worth[id(c)], *_simplicity(c)))
    best = ranked[0]
    if not best.estimate.meets_slo:
        return ranked
    floor = worth[id(best)] * (1 - ERROR_BAND_FRACTION)
    level = [c for c in ranked if c.estimate.meets_slo and worth[id(c)] >= floor]
    if objective == "cost":
        level.sort(key=lambda c: (-c.estimate.output_tok_s.value, *_simplicity(c)))
    else:
        level.sort(key=lambda c: (*_standing(c), -worth[id(c)], *_simplicity(c)))
    chosen = level[0]
    return [chosen, *(c for c in ranked if c is not chosen)]


def _missed_fraction(candidate: Candidate) -> float:
    """By how much the worst limit is missed; 0 when all are kept."""
    return max(0.0, -min(candidate.estimate.slo_margin.values(), default=0.0))


def pareto(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Candidates that no other beats in both tokens/s per user and tokens/s per device, fastest for the user first."""
    front: list[Candidate] = []
    best = -1.0
    ranked = sorted(
        candidates,
        key=lambda c: (-c.estimate.output_tok_s_per_user, -c.estimate.output_tok_s_per_gpu, *_simplicity(c)),
    )
    for candidate in ranked:
        if candidate.estimate.output_tok_s_per_gpu > best * (1 + 1e-9):
            front.append(candidate)
            best = candidate.estimate.output_tok_s_per_gpu
    return tuple(front)


def distinct(candidates: list[Candidate], count: int) -> tuple[Candidate, ...]:
    """The first `count` that differ in more than scheduler limits."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for candidate in candidates:
        recipe = candidate.recipe
        shape = (recipe.parallelism, recipe.replicas, recipe.precision, recipe.kv_cache_dtype)
        if shape not in seen:
            seen.add(shape)
            kept.append(candidate)
        if len(kept) == count:
            break
    return tuple(kept)


def preference(chosen: Candidate, other: Candidate) -> str:
    """Why `chosen` stands before `other` although the figures do not tell them apart."""
    if chosen.recipe.provenance != "generated" and other.recipe.provenance == "generated":
        return "the chosen one was run on this card before"
    if chosen.recipe.gpu_count < other.recipe.gpu_count:
        return f"the chosen one needs {other.recipe.gpu_count - chosen.recipe.gpu_count} GPUs less"
    return "the chosen one is simpler"


def _standing(candidate: Candidate) -> tuple[object, ...]:
    recipe = candidate.recipe
    lossy = (recipe.online_quantization is not None) + (recipe.kv_cache_dtype != "auto")
    return (recipe.provenance == "generated", recipe.gpu_count, lossy, recipe.parallelism.pp, recipe.parallelism.ep)


def _simplicity(candidate: Candidate) -> tuple[object, ...]:
    recipe = candidate.recipe
    return (
        recipe.gpu_count,
        recipe.parallelism.pp,
        recipe.parallelism.ep,
        recipe.parallelism.dp,
        recipe.parallelism.tp,
        recipe.max_num_seqs,
        recipe.max_num_batched_tokens,
        recipe.key,
    )
