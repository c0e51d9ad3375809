"""All configurations of one spread over devices, weight format and cache format: they share their step times and most of their memory.

What differs between them are the scheduler's limits and the number of replicas, so speed is worked out once for each load, memory
once for each pair of limits, and a configuration is looked up in both. Only the few that are shown become whole recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.perf import memory, predict
from aim_engine.perf.calibration import Calibration
from aim_engine.perf.estimate import Estimate, MemoryBreakdown
from aim_engine.perf.predict import Load, Speed
from aim_engine.perf.roofline import Model
from aim_engine.planner.plan import Candidate, Inputs, Rejection, Running
from aim_engine.recipe.database import Known
from aim_engine.recipe.recipe import Parallelism, Recipe
from aim_engine.units import GIB, MIB, format_gib, format_ms

CPU_CACHE_FRACTION = 0.8
"""Of what is left after weights and runtime, so that the operating system keeps the rest."""
ALL_COUNTS_UP_TO = 8
"""Replicas up to here are tried one by one, beyond in powers of two."""
MOST_REPLICAS = 4096
"""Of an open count: above, the question is wrong rather than the fleet too small."""


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A pair of scheduler limits that fits, and with what context."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_cache_memory_bytes: int | None
    memory: MemoryBreakdown
    slots: int
    """Requests one replica runs at once."""


class Option:
    """One configuration at its load: figures enough to rank it."""

    __slots__ = (
        "devices",
        "e2e_s",
        "family",
        "fitted",
        "load",
        "missed_fraction",
        "output_tok_s",
        "replicas",
        "tok_s_per_gpu",
        "tok_s_per_user",
        "tokens_per_joule",
        "usd_h",
    )

    def __init__(self, family: Family, fitted: Fitted, replicas: int, load: Load) -> None:
        inputs = family.inputs
        self.family, self.fitted, self.replicas, self.load = family, fitted, replicas, load
        self.devices = 0 if inputs.gpu.kind == "cpu" else replicas * family.split.world_size
        self.e2e_s = load.e2e_s
        self.output_tok_s = load.requests_s * replicas * inputs.workload.output_tokens
        self.tok_s_per_user = 1.0 / load.tpot_s
        self.tok_s_per_gpu = self.output_tok_s / max(1, self.devices)
        self.usd_h = None if inputs.price is None else inputs.price.usd_h * self.devices
        power_w = inputs.gpu.power_w
        self.tokens_per_joule = self.output_tok_s / (power_w * self.devices) if power_w and self.devices else 0.0
        self.missed_fraction = max(
            (load.seconds(limit.name, limit.percentile) * 1e3 / limit.ms - 1 for limit in family.limits),
            default=0.0,
        )

    @property
    def misses(self) -> tuple[tuple[str, float, float], ...]:
        """Limits that are missed, the worst first: name, by what share, milliseconds reached."""
        reached = [(limit, self.load.seconds(limit.name, limit.percentile) * 1e3) for limit in self.family.limits]
        found = [(limit.name, ms / limit.ms - 1, ms) for limit, ms in reached if ms > limit.ms]
        return tuple(sorted(found, key=lambda one: (-one[1], one[0])))

    @property
    def waits(self) -> bool:
        """Whether users of a closed loop wait for a slot."""
        return self.load.waiting > 0 and not self.load.open

    @property
    def meets_slo(self) -> bool:
        """Whether every limit is kept."""
        return self.missed_fraction <= 0

    @property
    def requests(self) -> float:
        """In flight over all replicas."""
        return (self.load.requests + self.load.waiting) * self.replicas

    @property
    def split(self) -> Parallelism:
        """How one replica is spread."""
        return self.family.split

    @property
    def precision(self) -> str:
        """Weight format."""
        return self.family.draft.precision

    @property
    def kv_cache_dtype(self) -> str:
        """Cache format."""
        return self.family.draft.kv_cache_dtype

    @property
    def max_num_seqs(self) -> int:
        """Requests a replica may run at once."""
        return self.fitted.max_num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens of one step."""
        return self.fitted.max_num_batched_tokens

    @property
    def generated(self) -> bool:
        """Whether nobody is known to have run it."""
        return self.family.source is None

    @property
    def lossy(self) -> int:
        """Formats the checkpoint was not made for."""
        return self.family.lossy

    @property
    def off_default(self) -> float:
        """Doublings between its max_num_batched_tokens and the engine's own."""
        return abs(math.log2(self.fitted.max_num_batched_tokens / self.family.default_tokens))

    @property
    def key(self) -> str:
        """As `Recipe.key`."""
        draft, fitted = self.family.draft, self.fitted
        return (
            f"{self.replicas}x {self.split.describe()} {draft.precision} kv={draft.kv_cache_dtype} "
            f"seqs={fitted.max_num_seqs} tokens={fitted.max_num_batched_tokens}"
        )

    def candidate(self) -> Candidate:
        """As a whole recipe with its estimate."""
        return self.family.candidate(self.fitted, self.replicas, self.load)


class Family:
    """Configurations that differ in scheduler limits, context and replicas only."""

    def __init__(
        self, inputs: Inputs, backend: Backend, calibration: Calibration, draft: Recipe, source: Known | None
    ) -> None:
        """`draft`: one of them. Raises: MissingFigure, InvalidInput when it cannot be split so."""
        self.inputs, self.draft, self.source = inputs, draft, source
        self.split = draft.parallelism
        self.limits = inputs.slo.limits
        self.lossy = (draft.online_quantization is not None) + (draft.kv_cache_dtype != "auto")
        self.rejected: list[Rejection] = []
        """Those that do not fit, may not be, or carry too little."""
        self.configurations = 0
        """Looked at."""
        self.points = 0
        """Configurations x loads looked at."""
        self._backend, self._calibration = backend, calibration
        self._room = memory.Room(inputs.model, inputs.gpu, draft, inputs.workload)
        self._speed: Speed | None = None
        self.default_tokens = backend.defaults(inputs.engine_version, inputs.gpu).max_num_batched_tokens

    @property
    def name(self) -> str:
        """As rejections call it: `tp1 bf16`, `tp1 bf16 kv=fp8`."""
        kv = "" if self.draft.kv_cache_dtype == "auto" else f" kv={self.draft.kv_cache_dtype}"
        return f"{self.split.describe()} {self.draft.precision}{kv}"

    @property
    def speed(self) -> Speed:
        """Its times at any load."""
        if self._speed is None:
            inputs = self.inputs
            model = Model(inputs.model, inputs.gpu, self.draft, inputs.workload, self._calibration)
            self._speed = Speed(model, self.default_tokens)
        return self._speed

    def hopeless(self) -> str | None:
        """The limit that not even one request alone keeps; None when there is none. All times grow with the load."""
        if not self.limits:
            return None
        alone = self.speed.closed(1.0, 1.0)
        for limit in self.limits:
            reached_s = (
                alone.tpot_s if limit.name == "tpot" else min(alone.seconds(limit.name, None), alone.ttft_median_s)
            )
            if limit.name == "e2e":
                reached_s = alone.ttft_median_s + (self.inputs.workload.output_tokens - 1) * alone.tpot_s
            by = reached_s * 1e3 / limit.ms - 1
            if by > 0:
                return f"misses {limit.name} by {by:.0%}: {format_ms(reached_s * 1e3)} for one request alone"
        return None

    def options(
        self, available: int, limits: Sequence[tuple[int, int]], *, every_count: bool = True
    ) -> Iterator[Option]:
        """Each pair of (max_num_seqs, max_num_batched_tokens) of `limits` that fits, in each number of replicas."""
        inputs = self.inputs
        for max_num_seqs, budget in limits:
            self.configurations += 1
            fitted = self._fit(max_num_seqs, budget)
            if fitted is None:
                continue
            loads = sum(load <= fitted.slots for load in predict.LOADS)
            for replicas in self._counts(fitted, available):
                self.points += loads
                problem = (
                    too_many(replicas) or self._over_budget(replicas) or self._holds_back(fitted, replicas, limits)
                )
                load = None
                if problem is None:
                    load, problem = self.speed.settle(
                        fitted.slots, replicas, inputs.workload, inputs.slo, inputs.objective
                    )
                if load is None or problem is not None:
                    self.rejected.append(Rejection(recipe=self.name, reason=problem or ""))
                    continue
                yield Option(self, fitted, replicas, self.speed.chunked(load, budget))

    def front(self, fits: Sequence[Fitted], replicas: int) -> Iterator[Option]:
        """The family at each load that the roomiest of its limits carries."""
        widest = max(fits, key=lambda one: (one.slots, -one.max_num_seqs, one.max_num_batched_tokens))
        for load in predict.LOADS:
            if load <= widest.slots:
                smallest = min(
                    (one for one in fits if one.slots >= load),
                    key=lambda one: (abs(one.max_num_batched_tokens - self.default_tokens), one.max_num_seqs),
                )
                yield Option(self, smallest, replicas, self.speed.closed(float(load), float(load)))

    def recipe(self, fitted: Fitted, replicas: int) -> Recipe:
        """The configuration, complete."""
        inputs, draft = self.inputs, self.draft
        cpu = inputs.gpu.kind == "cpu"
        resources = draft.resources
        if fitted.kv_cache_memory_bytes is not None:
            ledger = fitted.memory
            working = ledger.weights_bytes + ledger.activation_bytes + ledger.overhead_bytes
            total = _ceil(working + fitted.kv_cache_memory_bytes, GIB)
            resources = msgspec.structs.replace(resources, memory_bytes=total + resources.shm_bytes)
        recipe = msgspec.structs.replace(
            draft,
            replicas=replicas,
            gpu_count=0 if cpu else replicas * self.split.world_size,
            max_num_seqs=fitted.max_num_seqs,
            max_num_batched_tokens=fitted.max_num_batched_tokens,
            max_model_len=fitted.max_model_len,
            kv_cache_memory_bytes=fitted.kv_cache_memory_bytes,
            resources=resources,
        )
        if self.source is not None:
            recipe = self._backend.adopt(recipe, self.source, allow_lossy=inputs.allow_lossy)
        return self._backend.tune(inputs.model, inputs.gpu, recipe, allow_lossy=inputs.allow_lossy)

    def candidate(self, fitted: Fitted, replicas: int, load: Load) -> Candidate:
        """A configuration at a load as a whole recipe with its estimate."""
        inputs = self.inputs
        recipe = self.recipe(fitted, replicas)
        estimate = predict.estimate(
            inputs.model,
            recipe,
            inputs.workload,
            inputs.slo,
            self._calibration,
            fitted.memory,
            self.speed.model,
            load,
        )
        return Candidate(recipe=recipe, estimate=estimate, running=running(recipe, inputs, estimate))

    def needed(self, slots: int) -> int:
        """Replicas that the load takes when each carries as much as the limits allow; one without a load."""
        workload, slo, speed = self.inputs.workload, self.inputs.slo, self.speed
        if workload.concurrency is not None:
            return math.ceil(workload.concurrency / speed.most_within(slots, slo))
        rate = workload.rate_requests_s
        if rate is None:
            return 1

        def enough(replicas: int) -> bool:
            load, problem = speed.arriving(rate / replicas, slots)
            return problem is None and not predict.missed(load, slo)

        high = 1
        while not enough(high):
            if high > MOST_REPLICAS:
                return high
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def _counts(self, fitted: Fitted, available: int) -> tuple[int, ...]:
        inputs, workload = self.inputs, self.inputs.workload
        if inputs.open_count:
            return (self.needed(fitted.slots),)
        if inputs.gpu.kind == "cpu":
            return (1,)
        most = available // self.split.world_size
        if workload.concurrency is None and workload.rate_requests_s is None:
            if inputs.objective == "latency":
                return (1,)
            if inputs.objective == "throughput":
                return (most,)
        if most <= ALL_COUNTS_UP_TO:
            return tuple(range(1, most + 1))
        return tuple(sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)}))

    def _over_budget(self, replicas: int) -> str | None:
        """Why this many devices may not be used; None when they may."""
        inputs, devices = self.inputs, replicas * self.split.world_size
        if inputs.gpu.kind == "cpu":
            return None
        if inputs.max_gpus is not None and devices > inputs.max_gpus:
            return f"takes {devices} GPUs, {inputs.max_gpus} are allowed"
        if inputs.max_usd_h is not None and inputs.price is not None:
            usd_h = inputs.price.usd_h * devices
            if usd_h > inputs.max_usd_h:
                return f"costs {usd_h:.2f} USD an hour, {inputs.max_usd_h:g} are allowed"
        return None

    def _holds_back(self, fitted: Fitted, replicas: int, limits: Sequence[tuple[int, int]]) -> str | None:
        """Why a scheduler's limit below the concurrency is no answer: it would keep a limit by letting users wait for a slot.

        Where the cache holds fewer requests than the scheduler may run, they have to wait all the same.
        """
        concurrency = self.inputs.workload.concurrency
        if concurrency is None:
            return None
        each = math.ceil(concurrency / replicas / self.split.dp)
        if fitted.max_num_seqs >= min(each, max(sequences for sequences, _ in limits)):
            return None
        return f"max_num_seqs {fitted.max_num_seqs} runs fewer than the {each} requests of a rank at once"

    def _fit(self, max_num_seqs: int, budget: int) -> Fitted | None:
        """These limits with the longest context that fits; None with the reason among `rejected`.

        The context is what was asked for, else the model's own, shortened (to a multiple of 1,024) to what the cache holds; it is
        never shorter than one request of the workload.
        """
        room, workload, wanted = self._room, self.inputs.workload, self.draft.max_model_len
        found = room.breakdown(max_num_seqs, budget, wanted, None)
        if found.missing_bytes:
            working = found.budget_bytes + found.missing_bytes - found.weights_bytes
            self._refuse(
                f"{format_gib(found.weights_bytes)} of weights and {format_gib(working)} of working memory exceed "
                f"{format_gib(found.budget_bytes)} of usable memory per device",
                found.missing_bytes,
            )
            return None
        cache_bytes = None
        if self.inputs.gpu.kind == "cpu":
            cache_bytes = self._cpu_cache(max_num_seqs, budget, found)
            found = room.breakdown(max_num_seqs, budget, wanted, cache_bytes)
        if not found.fits:
            length = room.longest(found.kv_cache_bytes, wanted, budget)
            needed = self.inputs.max_model_len or workload.total_tokens
            if length < needed:
                self._refuse(
                    f"the KV cache of {format_gib(found.kv_cache_bytes)} holds {length} tokens, one request needs {needed}"
                )
                return None
            wanted = length
            found = room.breakdown(max_num_seqs, budget, wanted, cache_bytes)
        if found.max_sequences < 1:
            self._refuse(
                f"the KV cache of {format_gib(found.kv_cache_bytes)} holds no request of {workload.total_tokens} tokens"
            )
            return None
        return Fitted(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=wanted,
            kv_cache_memory_bytes=cache_bytes,
            memory=found,
            slots=min(max_num_seqs * self.split.dp, found.max_sequences),
        )

    def _refuse(self, reason: str, missing_bytes: int | None = None) -> None:
        self.rejected.append(Rejection(recipe=self.name, reason=reason, missing_bytes=missing_bytes))

    def _cpu_cache(self, max_num_seqs: int, budget: int, found: MemoryBreakdown) -> int:
        """A cache for max_num_seqs requests of the workload or one of max_model_len, at most the share that is ours to take."""
        room, longest = self._room, self.draft.max_model_len
        wanted = max(
            room.sequence_bytes(longest, budget),
            max_num_seqs * room.sequence_bytes(min(self.inputs.workload.total_tokens, longest), budget),
        )
        return max(1, min(int(found.kv_cache_bytes * CPU_CACHE_FRACTION), _ceil(wanted * 1.05, 64 * MIB)))


def too_many(replicas: int) -> str | None:
    """Why a load is beyond any deployment; None when it is not."""
    return f"the load takes more than {MOST_REPLICAS:,} replicas" if replicas > MOST_REPLICAS else None


def running(recipe: Recipe, inputs: Inputs, estimate: Estimate) -> Running:
    """Money and energy of a recipe at its load: price and board power of all its devices."""
    output_tok_s = estimate.output_tok_s.value
    usd_h = None if inputs.price is None else inputs.price.usd_h * recipe.gpu_count
    power_w = inputs.gpu.power_w * recipe.gpu_count if inputs.gpu.power_w and recipe.gpu_count else None
    return Running(
        usd_h=usd_h,
        usd_per_million_output_tokens=None if usd_h is None else usd_h / 3600 / output_tok_s * 1e6,
        power_w=power_w,
        output_tokens_per_joule=None if power_w is None else output_tok_s / power_w,
    )


def _ceil(count: float, step: int) -> int:
    return math.ceil(count / step) * step
