"""Where the bytes of a device go, following the engine's own accounting.

The engine takes `device x gpu_memory_utilization`, subtracts weights, the peak of a profiling run, graphs and runtime
buffers, and gives the rest to the KV cache. The same subtraction is done here, before anything is started.

Source of the accounting: vllm-project/vllm v0.32.0 vllm/v1/worker/gpu_worker.py determine_available_memory,
vllm/v1/kv_cache_interface.py, vllm/model_executor/layers/linear.py (QKVParallelLinear), vocab_parallel_embedding.py.
"""

from __future__ import annotations

import functools
import math

import msgspec

from aim_engine import facts
from aim_engine.errors import InvalidInput, MissingFigure
from aim_engine.hardware.gpu import Gpu, Provenance
from aim_engine.model.spec import LayerGroup, ModelSpec
from aim_engine.perf import pages
from aim_engine.perf.estimate import MemoryBreakdown
from aim_engine.recipe.recipe import Parallelism, Recipe
from aim_engine.units import GIB, MIB
from aim_engine.workload import Workload

DTYPE_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
VOCAB_PADDING = 64
"""vocab_parallel_embedding.py DEFAULT_VOCAB_PADDING_SIZE."""

FILE = "calibration/memory.yaml"
_LOADED_WEIGHTS_FACTOR = 1.007
_LOADED_WEIGHTS_EXTRA_BYTES = round(0.03 * GIB)
"""Logged weights against shapes: Llama-3.1-8B 15.06 GiB for 14.96 (R9700 server logs), 7.58 at tp2."""
_GRAPHS_CHARGED_SINCE = (0, 21)
ONLINE_FP8_BYTES_PER_WEIGHT = 1.0
_LINEAR_PARTS = ("attention", "attention_replicated", "dense_mlp", "experts", "shared_experts")


class Overheads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine takes beside weights and cache, by device."""

    name: str
    archs: tuple[str, ...]
    """Device targets; `cpu` for every CPU."""
    runtime_bytes: int
    """Contexts and workspaces on one device."""
    runtime_several_bytes: int
    """The same on each of several devices, communication buffers included."""
    profile_bytes: int
    """Constant part of the profiling run's peak."""
    sampler_bytes_per_row_and_token: float
    """Peak of the sampler's pass per max_num_seqs x vocabulary."""
    forward_fraction: float
    """Share of a layer's activations, all alive at once, that a forward pass holds."""
    tower_bytes: int = 0
    """What profiling a vision or audio tower adds."""
    early_release_bytes: int = 0
    early_before: tuple[int, int] = (0, 0)
    """Releases before this one take `early_release_bytes` more, for models without a tower."""
    provenance: Provenance


def breakdown(spec: ModelSpec, gpu: Gpu, recipe: Recipe, workload: Workload) -> MemoryBreakdown:
    """Bytes by cause on the fullest device of one replica, and what the KV cache then holds.

    Raises: InvalidInput when heads cannot be split by tp.
    """
    room = Room(spec, gpu, recipe, workload)
    return room.breakdown(
        recipe.max_num_seqs, recipe.max_num_batched_tokens, recipe.max_model_len, recipe.kv_cache_memory_bytes
    )


class Room:
    """Memory of one device for recipes that differ in nothing but the scheduler's limits and the context."""

    def __init__(self, spec: ModelSpec, gpu: Gpu, recipe: Recipe, workload: Workload) -> None:
        """`recipe`: one of them. Raises: InvalidInput when heads cannot be split by tp, MissingFigure."""
        check_split(spec, recipe.parallelism)
        known = overheads(gpu)
        self._ranks = recipe.parallelism.dp
        self._cpu = gpu.kind == "cpu"
        self._version = recipe.engine_version
        self._device_bytes = gpu.memory_bytes
        self._budget_bytes = self._device_bytes
        if not self._cpu:
            self._budget_bytes = math.ceil(gpu.memory_bytes * recipe.gpu_memory_utilization)
        self._weights_bytes = weights_bytes_per_device(spec, recipe)
        self._per_token_bytes = kv_bytes_per_token(spec, recipe)
        self._state_bytes = state_bytes_per_sequence(spec, recipe)
        self._overhead_bytes = _runtime_bytes(spec, recipe, known)
        self._sampler_bytes, self._forward_bytes, self._profile_bytes = _activations(spec, recipe, known)
        self._cache = layout(spec, recipe)
        self._tokens = workload.total_tokens

    def breakdown(
        self, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int, kv_cache_memory_bytes: int | None
    ) -> MemoryBreakdown:
        """The ledger with these limits."""
        activation_bytes = self._profile_bytes + round(
            max(self._sampler_bytes * max_num_seqs, self._forward_bytes * max_num_batched_tokens)
        )
        graphs_bytes = 0 if self._cpu else _graphs_bytes(self._version, max_num_seqs)
        kv_bytes = self._budget_bytes - self._weights_bytes - activation_bytes - graphs_bytes - self._overhead_bytes
        if self._cpu and kv_cache_memory_bytes is not None and kv_bytes >= kv_cache_memory_bytes:
            kv_bytes = kv_cache_memory_bytes
        cache, in_flight = self._cache, max_num_batched_tokens * pages.BATCHES_IN_FLIGHT
        blocks = cache.pool(kv_bytes)
        longest_blocks = cache.blocks(max_model_len, in_flight)
        typical_blocks = cache.blocks(min(self._tokens, max_model_len), in_flight)
        tokens = cache.logged_tokens(kv_bytes, max_model_len, in_flight, self._version)
        if not cache.block_bytes:
            tokens = max_model_len * max_num_seqs if kv_bytes > 0 else 0
        return MemoryBreakdown(
            device_bytes=self._device_bytes,
            budget_bytes=self._budget_bytes,
            weights_bytes=self._weights_bytes,
            activation_bytes=activation_bytes,
            graphs_bytes=graphs_bytes,
            overhead_bytes=self._overhead_bytes,
            kv_cache_bytes=kv_bytes,
            kv_bytes_per_token=self._per_token_bytes,
            state_bytes_per_sequence=self._state_bytes,
            kv_cache_tokens=tokens * self._ranks,
            longest_sequences=blocks / longest_blocks if longest_blocks else float(max_num_seqs * (kv_bytes > 0)),
            max_sequences=(blocks // typical_blocks if typical_blocks else max_num_seqs) * self._ranks,
        )

    def sequence_bytes(self, tokens: int, max_num_batched_tokens: int) -> int:
        """Bytes one sequence of `tokens` holds on one device, in whole blocks of every table."""
        in_flight = max_num_batched_tokens * pages.BATCHES_IN_FLIGHT
        return self._cache.blocks(tokens, in_flight) * self._cache.block_bytes

    def longest(self, kv_bytes: int, most_tokens: int, max_num_batched_tokens: int) -> int:
        """The longest sequence the cache holds, rounded down to 1,024 tokens where it is longer than that."""
        low, high = 0, most_tokens
        while high - low > 1:
            middle = (low + high) // 2
            if self.sequence_bytes(middle, max_num_batched_tokens) <= kv_bytes:
                low = middle
            else:
                high = middle
        return low // 1024 * 1024 if low >= 1024 else low


def check_split(spec: ModelSpec, parallelism: Parallelism) -> None:
    """Whether heads and layers can be split so. Raises: InvalidInput with the sizes that can.

    Source: vllm/config/model.py verify_with_parallel_config; layers/linear.py QKVParallelLinear.
    """
    reason = split_problem(spec, parallelism)
    if reason is not None:
        raise InvalidInput(f"{spec.model_id} cannot run with {parallelism.describe()}", why=reason)


def split_problem(spec: ModelSpec, parallelism: Parallelism) -> str | None:
    """Why heads, layers or experts cannot be split so; None when they can."""
    tp, pp = parallelism.tp, parallelism.pp
    for group in spec.groups:
        if group.heads and group.heads % tp:
            return f"{group.heads} attention heads cannot be split over tp={tp}"
        if group.kind in ("mla", "linear", "mamba") or not group.kv_heads:
            continue
        if group.kv_heads % tp and tp % group.kv_heads:
            return f"{group.kv_heads} KV heads and tp={tp} are not multiples of each other"
    if spec.layers < pp:
        return f"{spec.layers} layers cannot be split into {pp} pipeline stages"
    if parallelism.ep and spec.moe is None:
        return "expert parallelism needs a model with experts"
    if parallelism.dp > 1 and not (spec.is_moe or spec.is_mla):
        return "data-parallel ranks of a dense model are better run as replicas"
    block = spec.quantization.block_size if spec.quantization is not None else None
    if block is not None and spec.moe is not None and not parallelism.ep:
        size = spec.moe.intermediate_size
        if size % tp or (size // tp) % block[0]:
            return f"expert width {size} split over tp={tp} is not a multiple of the quantisation block {block[0]}"
    if spec.moe is not None and not parallelism.ep and spec.moe.intermediate_size % tp:
        return f"expert width {spec.moe.intermediate_size} cannot be split over tp={tp}"
    return None


def weights_bytes_per_device(spec: ModelSpec, recipe: Recipe) -> int:
    """Weight bytes on the fullest device, as loaded.

    Each part is counted in its own format and split by its own rule: K and V projections are replicated once tp exceeds
    the KV heads, MLA down-projections, router and norms always; experts are split by tp x dp, or whole per expert rank.
    """
    parts = spec.parameters
    parallelism = recipe.parallelism
    tp, dp = parallelism.tp, parallelism.dp
    kv_split = min(tp, max(1, spec.kv_heads))

    def stored(part: str, count: float) -> float:
        return count * bytes_per_weight(spec, recipe, part)

    query = parts.attention - parts.kv_projection
    body = stored("attention", query / tp + parts.kv_projection / kv_split)
    body += stored("attention_replicated", parts.attention_replicated)
    body += stored("dense_mlp", parts.dense_mlp / tp)
    body += stored("shared_experts", parts.shared_experts / tp)
    body += stored("router", parts.router) + stored("norms", parts.norms) + stored("other", parts.other)
    if spec.moe is not None:
        ranks = tp * dp
        share = math.ceil(spec.moe.experts / ranks) / spec.moe.experts if parallelism.ep else 1 / ranks
        body += stored("experts", parts.experts * share)
    stage = body * math.ceil(spec.layers / parallelism.pp) / spec.layers
    padded = math.ceil(spec.vocab_size / VOCAB_PADDING) * VOCAB_PADDING / spec.vocab_size
    embedding = stored("embedding", parts.embedding * padded / tp)
    head = stored("lm_head", parts.lm_head * padded / tp)
    ends = embedding + head if parallelism.pp == 1 else max(embedding, head or embedding)
    total = stage + ends + stored("vision", parts.vision)
    if spec.weight_bytes is not None and recipe.online_quantization is None:
        total *= spec.weight_bytes / checkpoint_bytes(spec)
    return round(total * _LOADED_WEIGHTS_FACTOR) + _LOADED_WEIGHTS_EXTRA_BYTES


def checkpoint_bytes(spec: ModelSpec) -> int:
    """Bytes of the checkpoint as its own format stores it, draft layers included."""
    plain = DTYPE_BYTES[spec.dtype]
    packed = spec.quantization.bytes_per_weight if spec.quantization is not None else plain
    quantised = set(spec.quantization.quantised_parts) if spec.quantization is not None else set()
    parts = spec.parameters
    inside: int = sum(getattr(parts, name) for name in sorted(quantised) if name != "kv_projection")
    return round(inside * packed + (parts.total - inside) * plain)


def bytes_per_weight(spec: ModelSpec, recipe: Recipe, part: str) -> float:
    """Bytes one weight of `part` takes on the device."""
    if spec.quantization is not None:
        if part in spec.quantization.quantised_parts:
            return spec.quantization.bytes_per_weight
    elif recipe.online_quantization is not None and part in _LINEAR_PARTS:
        return ONLINE_FP8_BYTES_PER_WEIGHT
    return DTYPE_BYTES[recipe.precision if recipe.precision in DTYPE_BYTES else spec.dtype]


def kv_bytes_per_value(spec: ModelSpec, recipe: Recipe) -> float:
    """Bytes of one cached value: the model's 16 bit unless the cache is quantised."""
    if recipe.kv_cache_dtype.startswith(("fp8", "int8")):
        return 1.0
    if recipe.kv_cache_dtype == "auto" and spec.quantization is not None and spec.quantization.kv_cache_dtype == "fp8":
        return 1.0
    return DTYPE_BYTES[recipe.precision if recipe.precision in DTYPE_BYTES else spec.dtype]


def kv_bytes_per_token(spec: ModelSpec, recipe: Recipe) -> int:
    """Bytes one token takes in the KV cache of one device while it is inside every window.

    layers x kv_heads_on_device x (head_dim_k + head_dim_v) x bytes(dtype); heads are replicated, not split, once tp exceeds
    them; an MLA latent is never split. Unit: bytes per token per device.
    Source: vllm/v1/kv_cache_interface.py FullAttentionSpec.real_page_size_bytes, MLAAttentionSpec.
    """
    value_bytes = kv_bytes_per_value(spec, recipe)
    return round(
        sum(
            pages.layer_bytes_per_token(group, recipe.parallelism.tp, value_bytes) * _layers_on_stage(group, recipe)
            for group in spec.groups
        )
    )


def kv_bytes_per_token_whole(spec: ModelSpec) -> int:
    """Bytes one token takes in a 16-bit KV cache, all heads of all layers together."""
    return round(
        sum(pages.layer_bytes_per_token(group, 1, DTYPE_BYTES[spec.dtype]) * group.count for group in spec.groups)
    )


def state_bytes_whole(spec: ModelSpec) -> int:
    """Bytes of recurrent and convolution state of one sequence, all heads of all layers together."""
    return round(sum(group.count * pages.layer_state_bytes(group, DTYPE_BYTES[spec.dtype]) for group in spec.groups))


def state_bytes_per_sequence(spec: ModelSpec, recipe: Recipe) -> int:
    """Bytes of recurrent and convolution state one sequence takes on one device, whatever its length."""
    value_bytes = DTYPE_BYTES[spec.dtype]
    return round(
        sum(
            _layers_on_stage(group, recipe) * pages.layer_state_bytes(group, value_bytes) / recipe.parallelism.tp
            for group in spec.groups
        )
    )


def sequence_bytes(spec: ModelSpec, recipe: Recipe, tokens: int) -> int:
    """Bytes one sequence of `tokens` holds on one device, in whole blocks of every table."""
    pages_of = layout(spec, recipe)
    return pages_of.blocks(tokens, in_flight_tokens(recipe)) * pages_of.block_bytes


def layout(spec: ModelSpec, recipe: Recipe) -> pages.Layout:
    """The cache of one device of `recipe`."""
    return pages.layout(
        spec,
        tp=recipe.parallelism.tp,
        pp=recipe.parallelism.pp,
        value_bytes=kv_bytes_per_value(spec, recipe),
        state_value_bytes=DTYPE_BYTES[spec.dtype],
        block_tokens=pages.CPU_BLOCK_TOKENS if recipe.gpu == "cpu" else pages.BLOCK_TOKENS,
    )


def in_flight_tokens(recipe: Recipe) -> int:
    """Tokens that may be scheduled and not yet settled."""
    return recipe.max_num_batched_tokens * pages.BATCHES_IN_FLIGHT


def _layers_on_stage(group: LayerGroup, recipe: Recipe) -> int:
    return math.ceil(group.count / recipe.parallelism.pp)


def overheads(gpu: Gpu) -> Overheads:
    """What the engine takes beside weights and cache on this kind of device. Raises: MissingFigure."""
    arch = "cpu" if gpu.kind == "cpu" else gpu.arch
    for entry in _all_overheads():
        if arch in entry.archs:
            return entry
    raise MissingFigure(f"memory overheads of {arch}", file=f"data/{FILE}")


@functools.cache
def _all_overheads() -> tuple[Overheads, ...]:
    return facts.load(FILE, tuple[Overheads, ...])


def _activations(spec: ModelSpec, recipe: Recipe, known: Overheads) -> tuple[float, float, int]:
    """Transient peak of the engine's profiling run, in parts: bytes of the sampler for each of max_num_seqs, of a forward pass for
    each of max_num_batched_tokens, and what is there anyway.

    max(c x max_num_seqs x vocabulary, share x max_num_batched_tokens x widths of a layer x 2 bytes) + a constant and what a tower adds.
    """
    tp = recipe.parallelism.tp
    width = spec.intermediate_size / tp
    if spec.moe is not None:
        width = max(
            width if spec.moe.layers < spec.layers else 0.0,
            spec.moe.intermediate_size * spec.moe.experts_per_token / (1 if recipe.parallelism.ep else tp),
        )
    forward = (12 * spec.hidden_size + 6 * width) * known.forward_fraction
    tower = known.tower_bytes if spec.parameters.vision else 0
    return known.sampler_bytes_per_row_and_token * spec.vocab_size, forward, known.profile_bytes + tower


def _runtime_bytes(spec: ModelSpec, recipe: Recipe, known: Overheads) -> int:
    """Contexts, workspaces and communication buffers of one device."""
    several = recipe.parallelism.world_size > 1
    base = known.runtime_several_bytes if several else known.runtime_bytes
    early = (0, 0) < pages.release(recipe.engine_version) < known.early_before and not spec.parameters.vision
    return base + (known.early_release_bytes if early else 0)


@functools.cache
def _graphs_bytes(version: str, max_num_seqs: int) -> int:
    """Captured graphs: two sets (full and piecewise) of the capture sizes, at least 1 MiB each after the first.

    Sizes 1, 2, 4, 8..248 step 8, 256..max step 16 with max = min(2 x max_num_seqs, 512). Releases before 0.21 capture them
    outside of what they budget.
    Source: vllm/config/vllm.py _set_cudagraph_sizes; vllm/v1/worker/gpu_worker.py (estimate charged since 0.21).
    """
    if pages.release(version) < _GRAPHS_CHARGED_SINCE:
        return 0
    largest = min(2 * max_num_seqs, 512)
    sizes = 3 + len(range(8, min(largest, 248) + 1, 8)) + len(range(256, largest + 1, 16))
    return 2 * (64 + sizes) * MIB
