"""The best few, played through the engine's scheduler: what single requests see decides between them.

Closed forms rank thousands; percentiles, waits and bursts are simulated for a handful. A deployment whose size is open grows or
shrinks until the simulated times keep the limits, and one without a load takes fewer requests until they do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.perf import play, predict
from aim_engine.planner import rank
from aim_engine.planner.family import Option, running
from aim_engine.planner.plan import Candidate, Inputs, Rejection

FINALISTS = 6
"""Spreads that are played."""
MOST_SPREADS = 15
"""... while none keeps the limits."""
TRIES = 6
"""Sizes, loads or limits of one spread that are played."""
COUNTS = 4
"""... of which so many are replica counts at most."""
NOBODY = 0.01
"""Mean number of requests that wait for a slot, below which nobody does."""
STEP_FRACTION = 0.05
"""An open count moves by this much, or by one."""


class Finals(NamedTuple):
    """What the simulation made of the best few."""

    ranked: tuple[Candidate, ...]
    """Best first."""
    smaller: tuple[Candidate, ...]
    """Sizes below those of `ranked` that missed a limit."""
    rejected: tuple[Rejection, ...]
    played: int
    """Simulations that were run."""


def play_off(inputs: Inputs, ranked: Sequence[Option]) -> Finals:
    """The first spreads of `ranked` (best first by closed forms), played and ranked anew."""
    found: list[Candidate] = []
    smaller: list[Candidate] = []
    rejected: list[Rejection] = []
    count = 0
    for option in rank.distinct(ranked, MOST_SPREADS):
        if len(found) >= FINALISTS and any(candidate.meets_slo for candidate in found):
            break
        stage = _Stage(inputs, option, ranked)
        best = stage.best()
        count += stage.played
        if best is None:
            rejected.append(Rejection(recipe=option.key, reason=stage.problem))
        else:
            found.append(best)
        if stage.too_small is not None:
            smaller.append(stage.too_small)
    ranked_anew = rank.order(found, inputs.objective, open_count=inputs.open_count)
    return Finals(tuple(ranked_anew), tuple(smaller), tuple(rejected), count)


class _Stage:
    """One spread and what was played of it."""

    def __init__(self, inputs: Inputs, option: Option, ranked: Sequence[Option]) -> None:
        self.inputs, self.option, self.ranked = inputs, option, ranked
        self.played = 0
        self.problem = ""
        self.too_small: Candidate | None = None
        """The largest number of replicas that was played and missed a limit, where a larger one keeps them."""

    def best(self) -> Candidate | None:
        """The spread where the simulated limits hold, else as it was; None when it drowns."""
        inputs, workload = self.inputs, self.inputs.workload
        if inputs.open_count and not play.needs_load(workload):
            return self._sized()
        if play.needs_load(workload) and inputs.slo.limits:
            return self._eased()
        return self._first_keeping()

    def _first_keeping(self) -> Candidate | None:
        """The best of its replica counts and step sizes that keeps the limits, else the nearest."""
        nearest: Candidate | None = None
        for option in self._variants():
            self.option = option
            got = self._at(option.replicas, option.load)
            if got is not None and (nearest is None or got.missed_fraction < nearest.missed_fraction):
                nearest = got
            if got is not None and got.meets_slo:
                return got
            if got is not None and (self.too_small is None or got.replicas > self.too_small.replicas):
                self.too_small = got
        return nearest

    def _variants(self) -> list[Option]:
        """The spread's own options that differ in more than max_num_seqs: replica counts first, best first, then step sizes."""
        own = rank.spread(self.option)
        kept: dict[tuple[int, int], Option] = {}
        for option in self.ranked:
            if rank.spread(option) == own:
                kept.setdefault((option.replicas, option.max_num_batched_tokens), option)
        budget = self.option.max_num_batched_tokens
        counts = [option for option in kept.values() if option.max_num_batched_tokens == budget]
        steps = [option for option in kept.values() if option.max_num_batched_tokens != budget]
        return [*counts[:COUNTS], *steps[: TRIES - min(COUNTS, len(counts))]]

    def _sized(self) -> Candidate | None:
        """With as few replicas as keep the limits."""
        replicas = self.option.replicas
        kept: Candidate | None = None
        last: Candidate | None = None
        while self.played < TRIES and replicas >= 1:
            got = self._in_size(replicas)
            last = got or last
            step = max(1, math.floor(replicas * STEP_FRACTION))
            if got is not None and got.meets_slo:
                kept = got
                if self.too_small is not None:
                    break
                replicas -= step
            elif kept is not None:
                self.too_small = got
                break
            else:
                self.too_small = got or self.too_small
                replicas += step
        return kept or last

    def _in_size(self, replicas: int) -> Candidate | None:
        """So many replicas, with the smallest max_num_seqs that lets nobody wait for a slot; None when none carries the load."""
        speed, workload = self.option.family.speed, self.inputs.workload
        own = rank.spread(self.option)
        alike = {
            option.max_num_seqs: option
            for option in self.ranked
            if rank.spread(option) == own and option.max_num_batched_tokens == self.option.max_num_batched_tokens
        }
        best: tuple[Option, predict.Load] | None = None
        for _, option in sorted(alike.items()):
            load, problem = speed.settle(
                option.fitted.slots, replicas, workload, self.inputs.slo, self.inputs.objective
            )
            if problem is not None:
                self.problem = problem
                continue
            best = option, speed.chunked(load, option.max_num_batched_tokens)
            if load.waiting < NOBODY:
                break
        if best is None:
            return None
        self.option = best[0]
        return self._at(replicas, best[1])

    def _eased(self) -> Candidate | None:
        """At as many requests as keep the limits."""
        load, speed = self.option.load, self.option.family.speed
        got = self._at(self.option.replicas, load)
        while got is not None and not got.meets_slo and self.played < TRIES and load.requests > 1:
            share = min(0.95, 1 / (1 + got.missed_fraction))
            requests = float(max(1, math.floor(load.requests * share)))
            load = speed.chunked(speed.closed(requests, requests), self.option.max_num_batched_tokens)
            got = self._at(self.option.replicas, load)
        return got

    def _at(self, replicas: int, load: predict.Load) -> Candidate | None:
        family, inputs = self.option.family, self.inputs
        candidate = family.candidate(self.option.fitted, replicas, load)
        self.played += 1
        try:
            outcome = play.play(
                family.speed.model,
                candidate.recipe,
                self.option.fitted.memory,
                inputs.slo,
                default_tokens=family.default_tokens,
                running=load.requests + load.waiting,
            )
        except InvalidInput as err:
            self.problem = f"simulated: {err}"
            return None
        estimate = predict.played(candidate.estimate, family.speed.model, inputs.slo, outcome)
        return msgspec.structs.replace(
            candidate, estimate=estimate, running=running(candidate.recipe, inputs, estimate)
        )
