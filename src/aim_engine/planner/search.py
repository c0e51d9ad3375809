"""Every configuration worth looking at, with memory proven and speed predicted for those that fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.errors import MissingFigure
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory
from aim_engine.perf.calibration import Calibration
from aim_engine.planner import rank
from aim_engine.planner.family import Family, Fitted, Option
from aim_engine.planner.plan import Candidate, Inputs, Rejection
from aim_engine.recipe.database import Known
from aim_engine.recipe.recipe import Parallelism, Precision, Recipe, Resources
from aim_engine.units import GIB

SEQUENCES = (16, 32, 64, 128, 256, 512, 1024)
TOKEN_BUDGETS = (2048, 4096, 8192, 16384, 32768)
LIMITS = tuple((sequences, budget) for sequences in SEQUENCES for budget in TOKEN_BUDGETS)
"""Pairs of max_num_seqs and max_num_batched_tokens."""
CPU_LIMITS = ((4, 2048), (16, 2048), (64, 2048))
SIXTEEN_BIT = ("bf16", "fp16")
CPU_MAX_MODEL_LEN = 8192
"""Longest context planned on a CPU unless asked: prefill of longer prompts takes minutes."""


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """A format the weights can be served in: the checkpoint's own, or one made on load."""

    precision: Precision
    online: str | None = None


class Found(NamedTuple):
    """What a search came back with."""

    options: tuple[Option, ...]
    rejected: tuple[Rejection, ...]
    configurations: int
    """Spreads x formats x scheduler limits for which memory was computed."""
    points: int
    """Those that fit, in every number of replicas, at every load they carry."""


def device_counts(available: int) -> tuple[int, ...]:
    """Tensor-parallel degrees to try: powers of two up to what is there."""
    return tuple(2**power for power in range(available.bit_length()) if 2**power <= available)


def parallelisms(spec: ModelSpec, available: int) -> Iterator[Parallelism]:
    """Ways to spread one replica.

    Tensor parallelism alone; experts whole per rank; attention data-parallel where more tensor parallelism would only copy the cache
    (latent attention, fewer KV heads than devices); a pipeline where tensor parallelism cannot split so far.
    """
    for tp in device_counts(available):
        yield Parallelism(tp=tp)
        if spec.is_moe and tp > 1:
            yield Parallelism(tp=tp, ep=True)
        for dp in device_counts(available // tp)[1:] if spec.is_moe else ():
            if spec.is_mla or tp == spec.kv_heads:
                yield Parallelism(tp=tp, dp=dp, ep=True)
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
    """All configurations on `available` devices of one kind (0 on a CPU), each at its best load, and why others fell out.

    A spread that misses a limit with one request already is left out of the search, unless that leaves nothing.
    """
    formats, rejected_formats = weights_options(inputs, backend)
    if not inputs.open_count:
        available = int(min(available, max(1, _allowed(inputs))))
    rejected: list[Rejection] = list(rejected_formats)
    families: list[Family] = []
    for option in formats:
        for parallelism in parallelisms(inputs.model, max(1, available)):
            name = f"{parallelism.describe()} {option.precision}"
            problem = memory.split_problem(inputs.model, parallelism)
            if problem is not None:
                rejected.append(Rejection(recipe=name, reason=problem))
                continue
            source = _known_for(known, parallelism, option, inputs)
            for kv_dtype in _kv_dtypes(inputs, backend):
                draft = _draft(inputs, backend, option, parallelism, kv_dtype, source)
                families.append(Family(inputs, backend, calibration, draft, source))
    options: list[Option] = []
    hopeless: list[tuple[Family, str]] = []
    for family in families:
        try:
            problem = family.hopeless()
            if problem is not None:
                hopeless.append((family, problem))
                continue
            _take(family, available, options, rejected)
        except MissingFigure as err:
            rejected.append(Rejection(recipe=family.name, reason=f"{err.what}; {err.hint}"))
    if any(option.meets_slo for option in options):
        rejected.extend(Rejection(recipe=family.name, reason=problem) for family, problem in hopeless)
    else:
        for family, _ in hopeless:
            _take(family, available, options, rejected)
    return Found(
        options=tuple(options),
        rejected=tuple(rejected),
        configurations=sum(family.configurations for family in families),
        points=sum(family.points for family in families),
    )


def front(options: Sequence[Option], inputs: Inputs, available: int) -> tuple[Candidate, ...]:
    """What no other spread beats in both speed per user and per device, over all loads that each carries."""
    fits: dict[int, tuple[Family, dict[tuple[int, int], Fitted]]] = {}
    for option in options:
        _, kept = fits.setdefault(id(option.family), (option.family, {}))
        kept[option.max_num_seqs, option.max_num_batched_tokens] = option.fitted
    points = [
        point
        for family, kept in fits.values()
        for point in family.front(
            tuple(kept.values()), 1 if inputs.open_count else max(1, available // family.split.world_size)
        )
    ]
    return tuple(point.candidate() for point in rank.pareto(points))


def _take(family: Family, available: int, options: list[Option], rejected: list[Rejection]) -> None:
    """Add the options of a family, or the rejection that came closest."""
    found = list(family.options(available, CPU_LIMITS if family.inputs.gpu.kind == "cpu" else LIMITS))
    options.extend(found)
    if not found:
        rejected.append(_worst(family.name, family.rejected))


def _draft(
    inputs: Inputs, backend: Backend, option: Weights, parallelism: Parallelism, kv_dtype: str, source: Known | None
) -> Recipe:
    """A recipe of this family; its scheduler's limits are still open."""
    spec, gpu = inputs.model, inputs.gpu
    cpu = gpu.kind == "cpu"
    defaults = backend.defaults(inputs.engine_version, gpu)
    return Recipe(
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
        max_num_seqs=defaults.max_num_seqs,
        max_num_batched_tokens=defaults.max_num_batched_tokens,
        gpu_memory_utilization=defaults.gpu_memory_utilization,
        trust_remote_code=spec.needs_remote_code,
        resources=resources(spec, parallelism, gpu),
        provenance=_provenance(source),
        provenance_note=source.provenance.source if source is not None else "",
    )


def _allowed(inputs: Inputs) -> float:
    """Devices that the limits on their number and price leave."""
    allowed = math.inf if inputs.max_gpus is None else inputs.max_gpus
    if inputs.max_usd_h is not None and inputs.price is not None:
        allowed = min(allowed, inputs.max_usd_h // inputs.price.usd_h)
    return allowed


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
