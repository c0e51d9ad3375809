"""The document every stage reads and adds to: what was asked, what was chosen and why."""

from __future__ import annotations

from typing import Literal

import msgspec

from aim_engine.backend.base import Reason
from aim_engine.hardware.cluster import Cluster, Finding
from aim_engine.hardware.gpu import Gpu
from aim_engine.hardware.prices import Offer
from aim_engine.model.spec import ModelSpec
from aim_engine.perf.estimate import Estimate
from aim_engine.recipe.recipe import Parallelism, Recipe
from aim_engine.workload import Objective, Slo, Workload

SCHEMA = "aim-engine/plan/v1"


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the choice depends on; the same inputs give the same plan, byte for byte."""

    model: ModelSpec
    cluster: Cluster
    gpu: Gpu
    """The kind of device that is planned on; a CPU when there is no GPU."""
    workload: Workload
    slo: Slo
    objective: Objective
    precision: str | None = None
    engine: str
    engine_version: str
    max_model_len: int | None = None
    allow_lossy: bool = False
    """May the planner choose formats that the checkpoint was not made for (online fp8, fp8 KV cache)?"""
    open_count: bool = False
    """The question is how many devices the load takes, not what those at hand can do: replicas are as many as it needs, in as
    many nodes as it takes."""
    price: Offer | None = None
    """What one device costs; None when no firm price is known."""
    max_gpus: int | None = None
    simulate: bool = False
    """Are the best few played through the engine's scheduler, so that percentiles and waits are those of single requests?"""
    max_usd_h: float | None = None
    """Most that the deployment may cost. Unit: US dollars per hour."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe costs while it runs; None where the card's figure is not known."""

    usd_h: float | None = None
    usd_per_million_output_tokens: float | None = None
    power_w: int | None = None
    """Board power of all devices, which a busy engine reaches; the host's share is not in it."""
    output_tokens_per_joule: float | None = None


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe and what it would do."""

    recipe: Recipe
    estimate: Estimate
    running: Running = Running()
    reason: str = ""

    @property
    def missed_fraction(self) -> float:
        """By how much the worst limit is missed; 0 or less when all are kept."""
        return -min(self.estimate.slo_margin.values(), default=0.0)

    @property
    def misses(self) -> tuple[tuple[str, float, float], ...]:
        """Limits that are missed, the worst first: name, by what share, milliseconds reached."""
        found = [
            (name, -margin, self.estimate.limited_ms[name].value)
            for name, margin in self.estimate.slo_margin.items()
            if margin < 0
        ]
        return tuple(sorted(found, key=lambda one: (-one[1], one[0])))

    @property
    def waits(self) -> bool:
        """Whether more are in flight than run at once."""
        slots = min(self.recipe.max_num_seqs * self.split.dp, self.estimate.memory.max_sequences)
        return self.estimate.concurrency > slots * self.replicas

    @property
    def meets_slo(self) -> bool:
        """Whether every limit is kept."""
        return self.estimate.meets_slo

    @property
    def e2e_s(self) -> float:
        """Whole request, mean."""
        return self.estimate.e2e_ms.value / 1e3

    @property
    def output_tok_s(self) -> float:
        """Of the whole deployment."""
        return self.estimate.output_tok_s.value

    @property
    def tok_s_per_user(self) -> float:
        """Tokens per second that one user sees."""
        return self.estimate.output_tok_s_per_user

    @property
    def tok_s_per_gpu(self) -> float:
        """Output over devices."""
        return self.estimate.output_tok_s_per_gpu

    @property
    def usd_h(self) -> float | None:
        """Money an hour."""
        return self.running.usd_h

    @property
    def tokens_per_joule(self) -> float:
        """0 where the card's power is not known."""
        return self.running.output_tokens_per_joule or 0.0

    @property
    def devices(self) -> int:
        """Of all replicas; 0 on a CPU."""
        return self.recipe.gpu_count

    @property
    def replicas(self) -> int:
        """Servers that share the load."""
        return self.recipe.replicas

    @property
    def requests(self) -> float:
        """In flight over all replicas."""
        return float(self.estimate.concurrency)

    @property
    def split(self) -> Parallelism:
        """How one replica is spread."""
        return self.recipe.parallelism

    @property
    def precision(self) -> str:
        """Weight format."""
        return self.recipe.precision

    @property
    def kv_cache_dtype(self) -> str:
        """Cache format."""
        return self.recipe.kv_cache_dtype

    @property
    def max_num_seqs(self) -> int:
        """Requests a replica may run at once."""
        return self.recipe.max_num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens of one step."""
        return self.recipe.max_num_batched_tokens

    @property
    def generated(self) -> bool:
        """Whether nobody is known to have run it."""
        return self.recipe.provenance == "generated"

    @property
    def lossy(self) -> int:
        """Formats the checkpoint was not made for."""
        return (self.recipe.online_quantization is not None) + (self.recipe.kv_cache_dtype != "auto")

    @property
    def off_default(self) -> float:
        """Limits were chosen before."""
        return 0.0

    @property
    def key(self) -> str:
        """The recipe's."""
        return self.recipe.key


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration that was looked at and why it lost its place."""

    recipe: str
    """`Recipe.key`, or a family of them such as `tp1 bf16`."""
    reason: str
    missing_bytes: int | None = None


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration one step away from the chosen one, and the number that lost it its place."""

    change: str
    recipe: str
    """`Recipe.key`, or the family that does not fit."""
    reason: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One of the six steps of recipe selection and what it found."""

    name: Literal["detect", "analyse", "match", "rank", "validate", "fallback"]
    summary: str
    details: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """The answer: a chosen recipe, or None with the reasons and the nearest way out."""

    inputs: Inputs
    chosen: Candidate | None
    alternatives: tuple[Candidate, ...] = ()
    """Best first, without the chosen one."""
    pareto: tuple[Candidate, ...] = ()
    """No other candidate has both more tokens/s per user and more tokens/s per GPU."""
    rejected: tuple[Rejection, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    doubt: str = ""
    """The one measurement that would make the choice surer."""
    kernels: tuple[Reason, ...] = ()
    """Why the engine is told of these kernels, formats and switches, part by part."""
    findings: tuple[Finding, ...] = ()
    steps: tuple[Step, ...] = ()
    hint: str = ""
    """The next thing to try when nothing was chosen."""


def encode(plan: Plan) -> bytes:
    """The plan as JSON, stable order, one line."""
    return msgspec.json.encode(plan, order="deterministic")
