"""One given configuration: what it needs, whether it fits, and the questions turned round.

How long a context fits, how few devices would do, which card is cheapest, and what to change, from what costs nothing to what costs
quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Gpu
from aim_engine.hardware.prices import PriceList
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory, predict
from aim_engine.perf.calibration import Calibration
from aim_engine.perf.estimate import Estimate, MemoryBreakdown
from aim_engine.planner.search import CPU_MAX_MODEL_LEN, own_precision, resources
from aim_engine.recipe.recipe import Parallelism, Recipe
from aim_engine.units import format_gib
from aim_engine.workload import Slo, Workload

Costs = Literal["nothing", "headroom", "parallel requests", "context", "devices", "quality"]
_ORDER: tuple[Costs, ...] = ("nothing", "headroom", "parallel requests", "context", "devices", "quality")
"""What a way out costs, the least first."""
HIGH_UTILISATION = 0.95
SHORT_QUEUE = 64
BLOCK_TOKENS = 16


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One change that fits, or fits more."""

    change: str
    costs: Costs
    kv_cache_tokens: int
    """What the cache of one replica then holds."""
    how: str
    """The option that does it."""


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration as somebody states it; None leaves a figure to the engine's defaults."""

    spec: ModelSpec
    gpu: Gpu
    devices: int
    """How many there are; 0 on a CPU."""
    engine_version: str
    tp: int | None = None
    """None: all devices that pp and dp leave."""
    pp: int = 1
    dp: int = 1
    ep: bool = False
    precision: str | None = None
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    input_tokens: int = 1024
    output_tokens: int = 512
    concurrency: int | None = None


class Sized(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/estimate/v1"):
    """What a configuration needs, and the ways from it."""

    recipe: Recipe
    gpu: Gpu
    workload: Workload
    memory: MemoryBreakdown
    fits: bool
    reason: str = ""
    longest_tokens: int = 0
    """Longest context that fits with everything else as it is; 0 when not even the weights do."""
    fewest_gpus: int | None = None
    """Smallest tensor-parallel group of this card that holds it; None when no node of it does."""
    cheapest: str | None = None
    """Smallest rent among cards with a price, as a request such as 1xMI300X."""
    ways: tuple[Way, ...] = ()
    estimate: Estimate | None = None
    warnings: tuple[str, ...] = ()


GIVEN = tuple(name for name in Given.__struct_fields__ if name not in ("spec", "gpu", "devices", "engine_version"))
"""Fields of `Given` that a user states."""


def size(
    given: Given,
    *,
    backend: Backend,
    calibration: Calibration,
    cards: Callable[[], Sequence[Gpu]],
    prices: PriceList,
) -> Sized:
    """Everything about one configuration. Raises: InvalidInput when it is impossible in itself."""
    spec, gpu = given.spec, given.gpu
    workload = Workload(
        input_tokens=given.input_tokens, output_tokens=given.output_tokens, concurrency=given.concurrency
    )
    recipe = draft(given, backend)
    memory.check_split(spec, recipe.parallelism)
    unsupported = backend.supports(spec, gpu, recipe.precision)
    if unsupported is not None:
        raise InvalidInput(f"{spec.model_id} cannot run so on {gpu.name}", why=unsupported)
    now = memory.breakdown(spec, gpu, recipe, workload)
    speed = None
    if now.fits and now.max_sequences >= 1:
        speed = predict.at_load(spec, gpu, recipe, workload, Slo(), "throughput", calibration, now)
    return Sized(
        recipe=recipe,
        gpu=gpu,
        workload=workload,
        memory=now,
        fits=now.fits,
        reason=reason(gpu, now, recipe),
        longest_tokens=longest(spec, gpu, recipe, workload),
        fewest_gpus=None if gpu.kind == "cpu" else fewest(spec, gpu, recipe, workload),
        cheapest=cheapest(spec, cards(), recipe, workload, prices, backend),
        ways=ways(spec, gpu, recipe, workload, backend, now),
        estimate=speed,
        warnings=spec.warnings,
    )


def draft(given: Given, backend: Backend) -> Recipe:
    """The recipe that was stated, the engine's defaults filled in. Raises: InvalidInput."""
    spec, gpu = given.spec, given.gpu
    cpu = gpu.kind == "cpu"
    own = own_precision(spec)
    wanted = given.precision or own
    online = "fp8" if wanted == "fp8" and spec.quantization is None else None
    if wanted != own and online is None and not {wanted, own} <= set(memory.DTYPE_BYTES):
        raise InvalidInput(
            f"{spec.model_id} is stored in {own}, not in {wanted}",
            why="the engine makes only fp8 of a 16-bit checkpoint on load",
            hint="name a checkpoint in that format",
        )
    if given.max_model_len is not None and given.max_model_len > spec.max_position_embeddings:
        raise InvalidInput(
            f"{spec.model_id} cannot serve a context of {given.max_model_len:,} tokens",
            why=f"its own limit is {spec.max_position_embeddings:,}",
            hint="lower --max-model-len, or name a model with a longer context",
        )
    tp = given.tp or (1 if cpu else max(1, given.devices // (given.pp * given.dp)))
    parallelism = Parallelism(tp=tp, pp=given.pp, dp=given.dp, ep=given.ep)
    if not cpu and parallelism.world_size > given.devices:
        raise InvalidInput(
            f"{parallelism.describe()} takes {parallelism.world_size} devices, {given.devices} are there",
            hint=f"--gpus {parallelism.world_size}x{gpu.name}",
        )
    defaults = backend.defaults(given.engine_version, gpu)
    seqs = given.max_num_seqs or defaults.max_num_seqs
    length = given.max_model_len or min(spec.max_position_embeddings, CPU_MAX_MODEL_LEN if cpu else 2**40)
    return Recipe(
        model_id=spec.model_id,
        gpu="cpu" if cpu else gpu.name,
        gpu_count=0 if cpu else parallelism.world_size,
        engine=backend.name,
        engine_version=given.engine_version,
        parallelism=parallelism,
        precision=wanted,  # type: ignore[arg-type]
        online_quantization=online,
        kv_cache_dtype=given.kv_cache_dtype,
        max_model_len=max(length, given.input_tokens + given.output_tokens),
        max_num_seqs=seqs,
        max_num_batched_tokens=given.max_num_batched_tokens or max(defaults.max_num_batched_tokens, seqs),
        gpu_memory_utilization=given.gpu_memory_utilization or defaults.gpu_memory_utilization,
        resources=resources(spec, parallelism, gpu),
    )


def longest(spec: ModelSpec, gpu: Gpu, recipe: Recipe, workload: Workload) -> int:
    """The longest max_model_len that fits, a multiple of a cache block unless it is the model's own limit; 0 when none does.

    What a request holds grows with its length while nothing else changes, so the answer is exact: one block more does not fit.
    """
    limit = max(spec.max_position_embeddings, recipe.max_model_len)

    def fits(tokens: int) -> bool:
        return memory.breakdown(spec, gpu, msgspec.structs.replace(recipe, max_model_len=tokens), workload).fits

    if fits(limit):
        return limit
    low, high = 0, limit // BLOCK_TOKENS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * BLOCK_TOKENS) else (low, middle)
    return low * BLOCK_TOKENS


def fewest(spec: ModelSpec, gpu: Gpu, recipe: Recipe, workload: Workload) -> int | None:
    """The smallest tensor-parallel group of this card that holds the recipe; None when no node of it does."""
    count = 1
    while count <= gpu.devices_per_node:
        spread = _spread(recipe, count)
        if (
            memory.split_problem(spec, spread.parallelism) is None
            and memory.breakdown(spec, gpu, spread, workload).fits
        ):
            return count
        count *= 2
    return None


def cheapest(
    spec: ModelSpec, cards: Sequence[Gpu], recipe: Recipe, workload: Workload, prices: PriceList, backend: Backend
) -> str | None:
    """The lowest hourly price at which one replica of the recipe fits, as a request such as 1xMI300X; None without prices."""
    found: list[tuple[float, str]] = []
    for gpu in cards:
        offer = prices.cheapest(gpu.name)
        if offer is None or backend.supports(spec, gpu, recipe.precision) is not None:
            continue
        count = fewest(spec, gpu, recipe, workload)
        if count is not None:
            found.append((offer.usd_h * count, f"{count}x{gpu.name}"))
    return min(found)[1] if found else None


def ways(
    spec: ModelSpec, gpu: Gpu, recipe: Recipe, workload: Workload, backend: Backend, now: MemoryBreakdown
) -> tuple[Way, ...]:
    """Changes after which it fits, or after which the cache holds at least a tenth more; what costs least first."""
    found = []
    for change, costs, how, changed in _changes(spec, gpu, recipe, backend, workload):
        if memory.split_problem(spec, changed.parallelism) is not None:
            continue
        then = memory.breakdown(spec, gpu, changed, workload)
        if then.fits and (not now.fits or then.kv_cache_tokens >= 1.1 * now.kv_cache_tokens):
            found.append(Way(change=change, costs=costs, kv_cache_tokens=then.kv_cache_tokens, how=how))
    return tuple(sorted(found, key=lambda way: (_ORDER.index(way.costs), -way.kv_cache_tokens, way.change)))


def reason(gpu: Gpu, breakdown: MemoryBreakdown, recipe: Recipe) -> str:
    """Why it does not fit; empty when it does."""
    if breakdown.fits:
        return ""
    if breakdown.missing_bytes:
        needed = (
            breakdown.weights_bytes + breakdown.activation_bytes + breakdown.graphs_bytes + breakdown.overhead_bytes
        )
        return (
            f"weights and working memory take {format_gib(needed)} of {format_gib(breakdown.budget_bytes)} usable on each "
            f"{gpu.name}: {format_gib(breakdown.missing_bytes)} are missing"
        )
    return f"the KV cache of {format_gib(breakdown.kv_cache_bytes)} holds no request of max_model_len {recipe.max_model_len:,}"


def _changes(
    spec: ModelSpec, gpu: Gpu, recipe: Recipe, backend: Backend, workload: Workload
) -> Iterator[tuple[str, Costs, str, Recipe]]:
    def changed(**values: object) -> Recipe:
        return msgspec.structs.replace(recipe, **values)

    if gpu.kind != "cpu" and recipe.gpu_memory_utilization < HIGH_UTILISATION:
        yield (
            f"utilisation {HIGH_UTILISATION}",
            "headroom",
            f"--gpu-memory-utilization {HIGH_UTILISATION}",
            changed(gpu_memory_utilization=HIGH_UTILISATION),
        )
    if recipe.max_num_seqs > SHORT_QUEUE:
        yield (
            f"{SHORT_QUEUE} requests at once",
            "parallel requests",
            f"--max-num-seqs {SHORT_QUEUE}",
            changed(max_num_seqs=SHORT_QUEUE),
        )
    length = longest(spec, gpu, recipe, workload)
    if workload.total_tokens <= length < recipe.max_model_len:
        yield (f"a context of {length:,}", "context", f"--max-model-len {length}", changed(max_model_len=length))
    for count in (2, 4, 8, 16):
        devices = recipe.parallelism.world_size * count
        if gpu.kind != "cpu" and devices <= gpu.devices_per_node:
            yield f"{devices} devices", "devices", f"--gpus {devices}x{gpu.name}", _spread(recipe, devices)
    if recipe.kv_cache_dtype == "auto" and backend.supports(spec, gpu, "kv_fp8") is None:
        yield "KV cache in fp8", "quality", "--kv-cache-dtype fp8", changed(kv_cache_dtype="fp8")
    if spec.quantization is None and recipe.online_quantization is None and backend.supports(spec, gpu, "fp8") is None:
        yield "weights in fp8", "quality", "--precision fp8", changed(precision="fp8", online_quantization="fp8")


def _spread(recipe: Recipe, devices: int) -> Recipe:
    """The recipe as one replica over so many devices by tensor parallelism."""
    return msgspec.structs.replace(
        recipe,
        replicas=1,
        gpu_count=devices,
        parallelism=Parallelism(tp=devices, ep=recipe.parallelism.ep and devices > 1),
    )
