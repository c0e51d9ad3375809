"""Every configuration worth looking at, with memory proven and speed predicted for those that fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.errors import MissingFigure
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory, predict
from aim_engine.perf.calibration import Calibration
from aim_engine.perf.estimate import Estimate, MemoryBreakdown
from aim_engine.perf.roofline import Model
from aim_engine.planner.plan import Candidate, Inputs, Rejection, Running
from aim_engine.recipe.database import Known
from aim_engine.recipe.recipe import Parallelism, Precision, Recipe, Resources
from aim_engine.units import GIB, MIB, format_gib

SEQUENCES = (64, 128, 256, 512, 1024)
CPU_SEQUENCES = (4, 16, 64)
TOKEN_BUDGETS = (2048, 8192, 16384)
CPU_TOKEN_BUDGETS = (2048,)
SIXTEEN_BIT = ("bf16", "fp16")
CPU_CACHE_FRACTION = 0.8
"""Of what is left after weights and runtime, so that the operating system keeps the rest."""
CPU_MAX_MODEL_LEN = 8192
"""Longest context planned on a CPU unless asked: prefill of longer prompts takes minutes."""


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """A format the weights can be served in: the checkpoint's own, or one made on load."""

    precision: Precision
    online: str | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a search came back with."""

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]
    looked_at: int
    """Configurations for which memory was computed."""


def device_counts(available: int) -> tuple[int, ...]:
    """Tensor-parallel degrees to try: powers of two up to what is there."""
    return tuple(2**power for power in range(available.bit_length()) if 2**power <= available)


def parallelisms(spec: ModelSpec, available: int) -> Iterator[Parallelism]:
    """Ways to spread one replica: tp alone, experts whole per rank, MLA attention data-parallel, pipeline where tp cannot."""
    for tp in device_counts(available):
        yield Parallelism(tp=tp)
        if spec.is_moe and tp > 1:
            yield Parallelism(tp=tp, ep=True)
            if spec.is_mla:
                yield Parallelism(dp=tp, ep=True)
        for pp in (2, 4, 8):
            if tp * pp <= available and not _splits_by_tensor(spec, tp * pp):
                yield Parallelism(tp=tp, pp=pp)


def _splits_by_tensor(spec: ModelSpec, devices: int) -> bool:
    """Whether tensor parallelism spreads the model over so many devices, with experts sliced or whole."""
    ways = (Parallelism(tp=devices), *((Parallelism(tp=devices, ep=True),) if spec.is_moe else ()))
    return any(memory.split_problem(spec, way) is None for way in ways)


def weights_options(inputs: Inputs, backend: Backend) -> tuple[tuple[Weights, ...], tuple[Rejection, ...]]:
    """The formats this model can be served in here, and those asked for that it cannot."""
    spec, gpu = inputs.model, inputs.gpu
    own: Precision = own_precision(spec)
    wanted = inputs.precision
    options: list[Weights] = []
    if wanted is None or wanted == own or (wanted in memory.DTYPE_BYTES and own in memory.DTYPE_BYTES):
        options.append(Weights(precision=own if wanted is None else wanted))  # type: ignore[arg-type]
    if wanted is None and gpu.kind == "cpu" and own in SIXTEEN_BIT:
        options.append(Weights(precision="fp32"))  # loses nothing, and is faster without 16-bit instructions
    online_asked = wanted == "fp8" and spec.quantization is None
    if online_asked or (wanted is None and inputs.allow_lossy and spec.quantization is None):
        options.append(Weights(precision="fp8", online="fp8"))
    rejected = []
    if wanted is not None and not options:
        rejected.append(
            Rejection(
                recipe=wanted,
                reason=f"the checkpoint is stored in {own}, and the engine makes only fp8 of a 16-bit one on load",
            )
        )
    kept = []
    for option in options:
        reason = backend.supports(spec, gpu, option.precision)
        if reason is None:
            kept.append(option)
        else:
            rejected.append(Rejection(recipe=option.precision, reason=reason))
    return tuple(kept), tuple(rejected)


def search(
    inputs: Inputs, available: int, backend: Backend, calibration: Calibration, known: tuple[Known, ...]
) -> Found:
    """All candidates on `available` devices of one kind (0 on a CPU), each with its best load, and why others fell out."""
    formats, rejected_formats = weights_options(inputs, backend)
    if not inputs.open_count:
        available = int(min(available, max(1, _allowed(inputs))))
    candidates: list[Candidate] = []
    rejected: list[Rejection] = list(rejected_formats)
    looked_at = 0
    for option in formats:
        for parallelism in parallelisms(inputs.model, max(1, available)):
            family = f"{parallelism.describe()} {option.precision}"
            problem = memory.split_problem(inputs.model, parallelism)
            if problem is not None:
                rejected.append(Rejection(recipe=family, reason=problem))
                continue
            source = _known_for(known, parallelism, option, inputs)
            try:
                found, reasons, tried = _family(inputs, available, backend, calibration, option, parallelism, source)
            except MissingFigure as err:
                rejected.append(Rejection(recipe=family, reason=f"{err.what}; {err.hint}"))
                continue
            looked_at += tried
            candidates.extend(found)
            if not found:
                rejected.append(_worst(family, reasons))
    return Found(candidates=tuple(candidates), rejected=tuple(rejected), looked_at=looked_at)


def _family(
    inputs: Inputs,
    available: int,
    backend: Backend,
    calibration: Calibration,
    option: Weights,
    parallelism: Parallelism,
    source: Known | None,
) -> tuple[list[Candidate], list[Rejection], int]:
    """Candidates of one parallelism and format over the scheduler's limits, cache formats and replica counts."""
    spec, gpu, workload = inputs.model, inputs.gpu, inputs.workload
    cpu = gpu.kind == "cpu"
    defaults = backend.defaults(inputs.engine_version, gpu)
    found: list[Candidate] = []
    reasons: list[Rejection] = []
    looked_at = 0
    for kv_dtype in _kv_dtypes(inputs, backend):
        for max_num_seqs in CPU_SEQUENCES if cpu else SEQUENCES:
            for budget in CPU_TOKEN_BUDGETS if cpu else TOKEN_BUDGETS:
                if budget < max_num_seqs:
                    continue
                draft = Recipe(
                    model_id=spec.model_id,
                    gpu="cpu" if cpu else gpu.name,
                    gpu_count=0 if cpu else parallelism.world_size,
                    engine=inputs.engine,
                    engine_version=inputs.engine_version,
                    parallelism=parallelism,
                    precision=option.precision,
                    online_quantization=option.online,
                    kv_cache_dtype=kv_dtype,
                    max_model_len=_wanted_length(inputs),
                    max_num_seqs=max_num_seqs,
                    max_num_batched_tokens=budget,
                    gpu_memory_utilization=defaults.gpu_memory_utilization,
                    trust_remote_code=spec.needs_remote_code,
                    resources=resources(spec, parallelism, gpu),
                    provenance=_provenance(source),
                    provenance_note=source.provenance.source if source is not None else "",
                )
                if source is not None:
                    draft = backend.adopt(draft, source, allow_lossy=inputs.allow_lossy)
                looked_at += 1
                fitted, breakdown, reason = fit(inputs, draft)
                if fitted is None:
                    reasons.append(Rejection(recipe=draft.key, reason=reason, missing_bytes=breakdown.missing_bytes))
                    continue
                fitted = backend.tune(spec, gpu, fitted, allow_lossy=inputs.allow_lossy)
                model = Model(spec, gpu, fitted, workload, calibration)
                slots = predict.capacity(fitted, breakdown)
                counts = (
                    (_needed(model, slots, inputs),)
                    if inputs.open_count
                    else _replica_counts(inputs, available, parallelism)
                )
                for replicas in counts:
                    recipe = msgspec.structs.replace(
                        fitted,
                        replicas=replicas,
                        gpu_count=0 if cpu else replicas * parallelism.world_size,
                    )
                    problem = _over_budget(recipe, inputs)
                    if problem is not None:
                        reasons.append(Rejection(recipe=recipe.key, reason=problem))
                        continue
                    load, problem = predict.settle(model, slots, replicas, workload, inputs.slo, inputs.objective)
                    if problem is not None:
                        reasons.append(Rejection(recipe=recipe.key, reason=problem))
                        continue
                    estimate = predict.estimate(spec, recipe, workload, inputs.slo, calibration, breakdown, model, load)
                    found.append(Candidate(recipe=recipe, estimate=estimate, running=running(recipe, inputs, estimate)))
    return found, reasons, looked_at


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


def _needed(model: Model, slots: int, inputs: Inputs) -> int:
    """Replicas that the load takes when each carries as much as the limits allow; one without a load."""
    workload = inputs.workload
    most = predict.most_within(model, slots, inputs.slo)
    if workload.concurrency is not None:
        return math.ceil(workload.concurrency / most)
    if workload.rate_requests_s is not None:
        return math.ceil(workload.rate_requests_s / predict.Load(model, most, most).requests_s * (1 + 1e-9))
    return 1


def _allowed(inputs: Inputs) -> float:
    """Devices that the limits on their number and price leave."""
    allowed = math.inf if inputs.max_gpus is None else inputs.max_gpus
    if inputs.max_usd_h is not None and inputs.price is not None:
        allowed = min(allowed, inputs.max_usd_h // inputs.price.usd_h)
    return allowed


def _over_budget(recipe: Recipe, inputs: Inputs) -> str | None:
    """Why this many devices may not be used; None when they may."""
    if inputs.max_gpus is not None and recipe.gpu_count > inputs.max_gpus:
        return f"takes {recipe.gpu_count} GPUs, {inputs.max_gpus} are allowed"
    if inputs.max_usd_h is not None and inputs.price is not None:
        usd_h = inputs.price.usd_h * recipe.gpu_count
        if usd_h > inputs.max_usd_h:
            return f"costs {usd_h:.2f} USD an hour, {inputs.max_usd_h:g} are allowed"
    return None


def fit(inputs: Inputs, draft: Recipe) -> tuple[Recipe | None, MemoryBreakdown, str]:
    """`draft` with the longest context that fits, its memory, and the reason when it does not fit.

    The context is what was asked for, else the model's own, shortened (to a multiple of 1,024) to what the cache holds; it is
    never shorter than one request of the workload.
    """
    spec, gpu, workload = inputs.model, inputs.gpu, inputs.workload
    breakdown = memory.breakdown(spec, gpu, draft, workload)
    if breakdown.missing_bytes:
        ledger = f"{format_gib(breakdown.weights_bytes)} of weights and {format_gib(breakdown.budget_bytes + breakdown.missing_bytes - breakdown.weights_bytes)} of working memory"
        return None, breakdown, f"{ledger} exceed {format_gib(breakdown.budget_bytes)} of usable memory per device"
    recipe = draft
    if gpu.kind == "cpu":
        recipe = _with_cpu_cache(spec, draft, breakdown, workload.total_tokens)
        breakdown = memory.breakdown(spec, gpu, recipe, workload)
    if not breakdown.fits:
        length = _longest(spec, recipe, breakdown.kv_cache_bytes)
        needed = inputs.max_model_len or workload.total_tokens
        if length < needed:
            return (
                None,
                breakdown,
                f"the KV cache of {format_gib(breakdown.kv_cache_bytes)} holds {length} tokens, one request needs {needed}",
            )
        recipe = msgspec.structs.replace(recipe, max_model_len=length)
        breakdown = memory.breakdown(spec, gpu, recipe, workload)
    if breakdown.max_sequences < 1:
        return (
            None,
            breakdown,
            f"the KV cache of {format_gib(breakdown.kv_cache_bytes)} holds no request of {workload.total_tokens} tokens",
        )
    return recipe, breakdown, ""


def resources(spec: ModelSpec, parallelism: Parallelism, gpu: Gpu) -> Resources:
    """What a container of one replica asks of the host.

    Cores: 8 per device, on a CPU all of them. Shared memory: 16 GiB with tensor parallelism (collectives), else 4. Memory: the shared part, 16 GiB
    per device for staging, and 8 for the server.
    """
    devices = parallelism.world_size
    shm_bytes = (16 if devices > 1 else 4) * GIB
    if gpu.kind == "cpu":
        weights = spec.weight_bytes or memory.checkpoint_bytes(spec)
        cores = gpu.compute_units or 1
        return Resources(cpu_cores=cores, memory_bytes=_ceil(weights * 2 + 4 * GIB, GIB), shm_bytes=shm_bytes, gpus=0)
    return Resources(
        cpu_cores=8 * devices, memory_bytes=shm_bytes + (16 * devices + 8) * GIB, shm_bytes=shm_bytes, gpus=devices
    )


def own_precision(spec: ModelSpec) -> Precision:
    """The format the checkpoint's weights are computed from, in a recipe's words."""
    names: dict[str, Precision] = {"fp8_block": "fp8", "nf4": "int4", "gguf": "int4"}
    return names.get(spec.format, spec.format)  # type: ignore[arg-type]


def _kv_dtypes(inputs: Inputs, backend: Backend) -> tuple[str, ...]:
    quantization = inputs.model.quantization
    calibrated = quantization is not None and quantization.kv_cache_dtype == "fp8"
    if (calibrated or inputs.allow_lossy) and backend.supports(inputs.model, inputs.gpu, "kv_fp8") is None:
        return ("auto", "fp8")
    return ("auto",)


def _wanted_length(inputs: Inputs) -> int:
    if inputs.max_model_len is not None:
        return inputs.max_model_len
    longest = max(inputs.model.max_position_embeddings, inputs.workload.total_tokens)
    if inputs.gpu.kind == "cpu":
        return min(longest, max(CPU_MAX_MODEL_LEN, inputs.workload.total_tokens))
    return longest


def _longest(spec: ModelSpec, recipe: Recipe, kv_bytes: int) -> int:
    """The longest sequence the cache holds, rounded down to 1,024 tokens where it is longer than that."""
    low, high = 0, recipe.max_model_len
    while high - low > 1:
        middle = (low + high) // 2
        if memory.sequence_bytes(spec, recipe, middle) <= kv_bytes:
            low = middle
        else:
            high = middle
    return low // 1024 * 1024 if low >= 1024 else low


def _with_cpu_cache(spec: ModelSpec, recipe: Recipe, breakdown: MemoryBreakdown, tokens: int) -> Recipe:
    """A cache for max_num_seqs requests of the workload or one of max_model_len, at most the share that is ours to take."""
    most = int(breakdown.kv_cache_bytes * CPU_CACHE_FRACTION)
    wanted = max(
        memory.sequence_bytes(spec, recipe, recipe.max_model_len),
        recipe.max_num_seqs * memory.sequence_bytes(spec, recipe, min(tokens, recipe.max_model_len)),
    )
    chosen = max(1, min(most, _ceil(wanted * 1.05, 64 * MIB)))
    total = _ceil(breakdown.weights_bytes + breakdown.activation_bytes + breakdown.overhead_bytes + chosen, GIB)
    return msgspec.structs.replace(
        recipe,
        kv_cache_memory_bytes=chosen,
        resources=msgspec.structs.replace(recipe.resources, memory_bytes=total + recipe.resources.shm_bytes),
    )


def _replica_counts(inputs: Inputs, available: int, parallelism: Parallelism) -> tuple[int, ...]:
    if inputs.gpu.kind == "cpu":
        return (1,)
    most = available // parallelism.world_size
    if (
        inputs.objective == "latency"
        and inputs.workload.concurrency is None
        and inputs.workload.rate_requests_s is None
    ):
        return (1,)
    counts = {most, *(2**power for power in range(most.bit_length()) if 2**power <= most)}
    if (
        inputs.objective == "throughput"
        and inputs.workload.concurrency is None
        and inputs.workload.rate_requests_s is None
    ):
        return (most,)
    return tuple(sorted(counts))


def _known_for(known: tuple[Known, ...], parallelism: Parallelism, option: Weights, inputs: Inputs) -> Known | None:
    """A recipe that was run on this card with this split; the 16-bit formats count as one, the model's own being kept."""
    for entry in known:
        same_format = entry.precision == option.precision or {entry.precision, option.precision} <= set(SIXTEEN_BIT)
        if entry.parallelism == parallelism and same_format and inputs.gpu.name in entry.gpus:
            return entry
    return None


def _provenance(source: Known | None) -> Literal["generated", "curated", "measured"]:
    if source is None:
        return "generated"
    return "measured" if source.measured else "curated"


def _worst(family: str, reasons: list[Rejection]) -> Rejection:
    """The rejection of a family that came closest: least memory missing, else the one with most slots, which is the last."""
    if not reasons:
        return Rejection(recipe=family, reason="no scheduler setting is valid for it")
    closest = min(reversed(reasons), key=lambda rejection: rejection.missing_bytes or math.inf)
    return msgspec.structs.replace(closest, recipe=family)


def _ceil(count: float, step: int) -> int:
    return math.ceil(count / step) * step
