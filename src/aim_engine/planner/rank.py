"""Which candidate is best for a goal, and which are never worse at both speeds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol, TypeVar

from aim_engine.recipe.recipe import Parallelism
from aim_engine.workload import Objective

ERROR_BAND_FRACTION = 0.10
"""Speeds closer than this are not told apart: then what was run before, fewer devices and the simpler set-up win. Asked of an engine
that was not measured, the ratio of two splits' speeds is off by more than 12 % in half of 232 measured pairs."""
KNOWN_BAND_FRACTION = 0.24
"""So far may a configuration that somebody ran be behind a generated one and still stand before it: by less is the ratio of two
splits' speeds off in three of four pairs."""
NOISE_FRACTION = 0.03
"""By so much the same configuration differs from night to night in one case of four. Where latency is all that counts, fewer devices are
no reason beyond it: of 26 pairs at up to 8 requests whose larger split was predicted up to 10 % quicker, it was in 20."""
EXPERTS_LEAD_FRACTION = 0.10
"""Experts whole on each rank were measured so much slower beside sliced ones than predicted (median of 10 pairs)."""
ATTENTION_LEAD_FRACTION = 0.24
"""Attention over data-parallel ranks likewise (10 pairs; mean of what time per token and output are off by)."""
# The five figures above: `tools/split_errors.py` over public measurements, 2026-11-28; they change with the fit.


class Rated(Protocol):
    """What ranking must know of a configuration at its load."""

    @property
    def missed_fraction(self) -> float: ...  # noqa: D102
    @property
    def misses(self) -> tuple[tuple[str, float, float], ...]: ...  # noqa: D102
    @property
    def waits(self) -> bool: ...  # noqa: D102
    @property
    def e2e_s(self) -> float: ...  # noqa: D102
    @property
    def output_tok_s(self) -> float: ...  # noqa: D102
    @property
    def tok_s_per_user(self) -> float: ...  # noqa: D102
    @property
    def tok_s_per_gpu(self) -> float: ...  # noqa: D102
    @property
    def usd_h(self) -> float | None: ...  # noqa: D102
    @property
    def tokens_per_joule(self) -> float: ...  # noqa: D102
    @property
    def devices(self) -> int: ...  # noqa: D102
    @property
    def replicas(self) -> int: ...  # noqa: D102
    @property
    def requests(self) -> float: ...  # noqa: D102
    @property
    def split(self) -> Parallelism: ...  # noqa: D102
    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def kv_cache_dtype(self) -> str: ...  # noqa: D102
    @property
    def max_num_seqs(self) -> int: ...  # noqa: D102
    @property
    def max_num_batched_tokens(self) -> int: ...  # noqa: D102
    @property
    def generated(self) -> bool: ...  # noqa: D102
    @property
    def lossy(self) -> int: ...  # noqa: D102
    @property
    def off_default(self) -> float: ...  # noqa: D102


One = TypeVar("One", bound=Rated)


def value(rated: Rated, objective: Objective, *, open_count: bool = False) -> float:
    """What the objective maximises. Where the number of devices is open, throughput counts per device."""
    if objective == "latency":
        return 1.0 / rated.e2e_s
    if objective == "cost":
        return 1.0 / (max(1, rated.devices) if rated.usd_h is None else rated.usd_h)
    if objective == "energy":
        return rated.tokens_per_joule
    if objective == "balanced":
        return rated.tok_s_per_user * rated.tok_s_per_gpu
    return rated.tok_s_per_gpu if open_count else rated.output_tok_s


def credited(rated: Rated, objective: Objective, *, open_count: bool = False) -> float:
    """Its value less what such splits were measured to fall behind their prediction."""
    powers = 0 if objective == "cost" else _powers(objective)
    return value(rated, objective, open_count=open_count) * (1 - lead(rated)) ** powers


def lead(rated: Rated) -> float:
    """The share of its predicted speed that such a split was measured to lack beside tensor parallelism; 0 where somebody runs it so."""
    if not rated.generated:
        return 0.0
    return ATTENTION_LEAD_FRACTION if rated.split.dp > 1 else EXPERTS_LEAD_FRACTION if rated.split.ep else 0.0


def order(candidates: Sequence[One], objective: Objective, *, open_count: bool = False) -> list[One]:
    """Best first. Those that keep the service levels come before those that do not.

    Those that do not are ordered by how little they miss. Among the others the best credited value leads; within the error band of it,
    one that runs all requests at once beats one that lets some wait for a slot, a known recipe beats a generated one, fewer devices beat
    more, one kind of parallelism beats two, and one server beats several behind a balancer; where as much is done (a rate is served),
    the quicker answer. The rest follows by value.
    """
    if not candidates:
        return []
    worth = {id(one): _digits(credited(one, objective, open_count=open_count), 6) for one in candidates}
    ranked = sorted(candidates, key=lambda c: (max(0.0, c.missed_fraction), -worth[id(c)], *_simplicity(c)))
    best = ranked[0]
    if best.missed_fraction > 0:
        return ranked
    kept = [c for c in ranked if c.missed_fraction <= 0]
    if best.generated and objective != "cost":
        floor = worth[id(best)] * (1 - KNOWN_BAND_FRACTION) ** _powers(objective)
        known = [c for c in kept if not c.generated and c.waits <= best.waits and worth[id(c)] >= floor]
        best, kept = (known[0], known) if known else (best, kept)
    level = [c for c in kept if worth[id(c)] >= worth[id(best)] * (1 - band(objective))]
    if objective == "cost":
        chosen = min(level, key=lambda c: (-_digits(c.output_tok_s, 6), _digits(c.e2e_s, 2), *_simplicity(c)))
    else:
        chosen = min(level, key=lambda c: (*_standing(c), -worth[id(c)], _digits(c.e2e_s, 2), *_simplicity(c)))
    return [chosen, *(c for c in ranked if c is not chosen)]


def band(objective: Objective) -> float:
    """By what share of its value one may be behind another and still not be told apart from it: a product of two speeds errs twice."""
    return NOISE_FRACTION if objective == "latency" else 1 - (1 - ERROR_BAND_FRACTION) ** _powers(objective)


def _powers(objective: Objective) -> int:
    """How often a speed counts in a value: the balanced one is a product of two."""
    return 2 if objective == "balanced" else 1


def _digits(value: float, count: int) -> float:
    """A value to so many digits, so that what differs by rounding alone is the same."""
    return float(f"{value:.{count}g}")


def pareto(candidates: Iterable[One]) -> tuple[One, ...]:
    """Candidates that no other beats in both tokens/s per user and tokens/s per device, fastest for the user first."""
    front: list[One] = []
    best = -1.0
    for candidate in sorted(candidates, key=lambda c: (-c.tok_s_per_user, -c.tok_s_per_gpu, *_simplicity(c))):
        if candidate.tok_s_per_gpu > best * (1 + 1e-9):
            front.append(candidate)
            best = candidate.tok_s_per_gpu
    return tuple(front)


def spread(rated: Rated) -> Hashable:
    """What sets a configuration apart beside the scheduler's limits and the number of replicas."""
    return (rated.split, rated.precision, rated.kv_cache_dtype)


def distinct(candidates: Iterable[One], count: int) -> tuple[One, ...]:
    """The first `count` that differ in their spread or formats."""
    seen: set[Hashable] = set()
    kept = []
    for candidate in candidates:
        own = spread(candidate)
        if own not in seen:
            seen.add(own)
            kept.append(candidate)
            if len(kept) == count:
                break
    return tuple(kept)


def preference(chosen: Rated, other: Rated) -> str:
    """Why `chosen` stands before `other` although the figures do not tell them apart."""
    if not chosen.generated and other.generated:
        return "the chosen one was run on this card before"
    if lead(other) > lead(chosen):
        what = "attention over data-parallel ranks was" if other.split.dp > 1 else "whole experts on each rank were"
        return f"{what} measured {lead(other):.0%} slower beside tensor parallelism than predicted"
    if chosen.devices < other.devices:
        return f"the chosen one needs {other.devices - chosen.devices} GPUs less"
    if chosen.replicas < other.replicas:
        return f"the chosen one is {_servers(chosen.replicas)} instead of {other.replicas}"
    return "the chosen one is simpler"


def _servers(count: int) -> str:
    return "one server" if count == 1 else f"{count} servers"


def _standing(rated: Rated) -> tuple[object, ...]:
    return (rated.waits, rated.generated, rated.devices, rated.lossy, rated.split.pp, rated.split.ep, rated.replicas)


def _simplicity(rated: Rated) -> tuple[object, ...]:
    split = rated.split
    return (
        rated.devices,
        split.pp,
        split.ep,
        split.dp,
        split.tp,
        rated.off_default,
        rated.max_num_seqs,
        rated.max_num_batched_tokens,
        rated.precision,
        rated.kv_cache_dtype,
        rated.replicas,
    )
