"""What one engine step has to do, as ideal times: bytes over bandwidth, FLOP over peak, and counts of things with a fixed cost.

Nothing here is fitted: a feature is the time a part of the step would take on a perfect device (or a number of layers,
collectives, requests), and `perf.calibration` says what each costs in practice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from aim_engine.errors import MissingFigure
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import LayerGroup, ModelSpec
from aim_engine.perf import memory
from aim_engine.recipe.recipe import Recipe
from aim_engine.workload import Workload

NAMES: Mapping[str, tuple[str, str]] = {
    "attention_weights": ("memory", "attention weights"),
    "attention_flop": ("compute", "attention weights"),
    "dense_weights": ("memory", "dense weights"),
    "dense_flop": ("compute", "dense weights"),
    "head_weights": ("memory", "vocabulary"),
    "head_flop": ("compute", "vocabulary"),
    "expert_weights": ("memory", "expert weights"),
    "expert_flop": ("compute", "expert weights"),
    "kv_read": ("cache", "KV cache read"),
    "kv_flop": ("compute", "KV cache read"),
    "full_context": ("cache", "KV cache read"),
    "latent_context": ("cache", "KV cache read"),
    "state_read": ("cache", "state read"),
    "indexer_read": ("cache", "KV cache read"),
    "latent_rereads": ("latents", "KV cache read"),
    "mixed_attention_weights": ("memory", "prefill"),
    "mixed_attention_flop": ("prefill", "prefill"),
    "mixed_dense_weights": ("memory", "prefill"),
    "mixed_dense_flop": ("prefill", "prefill"),
    "mixed_expert_weights": ("memory", "prefill"),
    "mixed_expert_flop": ("prefill", "prefill"),
    "prefill_attention_flop": ("prefill", "prefill"),
    "prefill_sparse_flop": ("prefill", "prefill"),
    "prefill_state_flop": ("prefill", "prefill"),
    "prefill_layers": ("prefill", "prefill"),
    "prefill_activations": ("prefill", "prefill"),
    "prefill_routed": ("prefill", "prefill"),
    "prefill_allreduce": ("prefill", "prefill"),
    "prefills": ("prefill", "prefill"),
    "allreduce_bytes": ("exchange", "all-reduce"),
    "allreduces": ("exchange", "all-reduce"),
    "expert_exchange_bytes": ("exchange", "expert exchange"),
    "expert_exchanges": ("exchange", "expert exchange"),
    "full_layers": ("overhead", "layers"),
    "latent_layers": ("overhead", "layers"),
    "state_layers": ("overhead", "layers"),
    "expert_layers": ("overhead", "layers"),
    "indexers": ("overhead", "layers"),
    "step": ("overhead", "step"),
    "requests": ("rows", "requests"),
    "row_layers": ("rows", "requests"),
    "activations": ("rows", "requests"),
    "routed": ("rows", "requests"),
    "sampler": ("rows", "vocabulary"),
}
"""Feature -> (the class whose coefficients an engine or card shifts together, its line in the ledger of a step).

Units: seconds, except layers, exchanges, allreduces, indexers, prefills, requests (counts), row_layers (rows x layers), step (1).
"""
OF_PROMPTS = tuple(name.startswith(("prefill", "mixed")) for name in NAMES)
"""Features that a prompt computed alone has; those of mixed steps hold the decode rows beside it as well."""
INDEX = {name: number for number, name in enumerate(NAMES)}
CLASSES = tuple(dict.fromkeys(shifted for shifted, _ in NAMES.values()))
CLASS_OF = tuple(CLASSES.index(shifted) for shifted, _ in NAMES.values())
PAIRS = tuple(
    (INDEX[memory_bound], INDEX[compute_bound])
    for memory_bound, compute_bound in (
        ("attention_weights", "attention_flop"),
        ("dense_weights", "dense_flop"),
        ("head_weights", "head_flop"),
        ("expert_weights", "expert_flop"),
        ("kv_read", "kv_flop"),
        ("mixed_attention_weights", "mixed_attention_flop"),
        ("mixed_dense_weights", "mixed_dense_flop"),
        ("mixed_expert_weights", "mixed_expert_flop"),
    )
)
"""Features of one kernel, which reads while it computes: the longer of the two binds."""
SPARSE_TOKENS = 2048
"""Tokens that a sparse indexer keeps for attention (index_topk of DeepSeek-V3.2 and GLM-5)."""
INDEX_HEADS = 64
"""Heads of a sparse indexer (index_n_heads of DeepSeek-V3.2)."""
_LATENT_HEADS = (16, 128)
"""Heads of a device for which decode kernels over a latent were written (fewer are padded): with others the latent is read again for
each 16, or slower kernels take over. Source: ROCm/aiter#548, vllm-project/vllm#18338."""
_COMPUTE_FORMATS = {
    "bf16": "bf16",
    "fp16": "bf16",
    "fp32": "fp32",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "bf16",
    "mxfp8": "fp8",
    "mxfp6": "fp8",
    "mxfp4": "fp8",
    "nvfp4": "fp8",
}
"""Weight format -> the arithmetic its kernels run in when the device has it; weight-only formats compute in 16 bit. Four-bit
expert kernels were measured nearer the FP8 rate than the FP4 one."""
_TOKENS_OF_DRAFTS = (1.0, 1.7, 2.1, 2.35, 2.6, 2.8, 2.9, 3.0)
"""Tokens of one step by number of drafts, at the acceptance usual for multi-token prediction; the rest is fitted."""


def tokens_per_step(drafts: int) -> float:
    """Tokens a step yields for each request with `drafts` speculated."""
    return _TOKENS_OF_DRAFTS[min(drafts, len(_TOKENS_OF_DRAFTS) - 1)]


class _Attended(NamedTuple):
    read_s: float
    flop_s: float
    full_context: float
    latent_context: float
    index_s: float
    rereads_s: float


class _Prompted(NamedTuple):
    flop_s: float
    sparse_s: float


class Features:
    """Ideal times of one recipe on one device, with everything that does not depend on the load computed once."""

    def __init__(
        self,
        spec: ModelSpec,
        gpu: Gpu,
        recipe: Recipe,
        workload: Workload,
        *,
        drafts: int = 0,
        separate_prefill: bool = False,
    ) -> None:
        """`drafts` tokens are speculated in each step; `separate_prefill`: other devices compute the prompts.

        Raises: MissingFigure.
        """
        split, parts = recipe.parallelism, spec.parameters
        tp, dp = split.tp, split.dp
        ranks = tp * dp
        bandwidth = gpu.bandwidth()
        peaks = {part: _peak(spec, gpu, recipe, part) for part in ("attention", "dense_mlp", "experts")}
        plain_peak = _peak_16bit(gpu, recipe)

        def stored(part: str) -> float:
            return memory.bytes_per_weight(spec, recipe, part)

        self.layers, self.dp, self.pp = spec.layers, dp, split.pp
        self.drafts = drafts
        self.yielded = tokens_per_step(drafts)
        self.prompt_tokens = max(1.0, workload.input_tokens * (1 - workload.prefix_hit_fraction))
        self.output_tokens = float(workload.output_tokens)
        self.chunk_tokens = max(1, recipe.max_num_batched_tokens)
        self.prefill_share = 0.0 if separate_prefill else 1.0
        kv_split = min(tp, max(1, spec.kv_heads))
        split_heads = (parts.attention - parts.kv_projection) / tp + parts.kv_projection / kv_split
        mlp = (parts.dense_mlp + parts.shared_experts) / tp
        head = (parts.lm_head or parts.embedding) / tp
        self.attention_s = (
            split_heads * stored("attention") + parts.attention_replicated * stored("attention_replicated")
        ) / bandwidth
        self.dense_s = (
            parts.dense_mlp / tp * stored("dense_mlp")
            + parts.shared_experts / tp * stored("shared_experts")
            + parts.router * stored("router")
        ) / bandwidth
        self.head_s = head * stored("lm_head") / bandwidth
        self.attention_row_s = 2 * (split_heads + parts.attention_replicated) / peaks["attention"]
        self.dense_row_s = 2 * mlp / peaks["dense_mlp"]
        self.head_row_s = 2 * head / plain_peak
        self.experts = self.active_experts = self.expert_layers = 0
        self.experts_s = self.expert_row_s = self.expert_prompt_s = self.routed_row_s = 0.0
        if spec.moe is not None:
            self.experts, self.active_experts = spec.moe.experts, spec.moe.experts_per_token
            self.expert_layers = spec.moe.layers
            self.experts_s = parts.experts * stored("experts") / ranks / bandwidth
            active = parts.experts * self.active_experts / self.experts
            self.expert_row_s = 2 * active / ranks / peaks["experts"]
            self.expert_prompt_s = 2 * active / ranks / _wide_peak(spec, gpu, recipe, peaks["experts"])
            routed = self.active_experts * self.expert_layers * spec.hidden_size * 2
            self.routed_row_s = routed / bandwidth
        self.context = workload.input_tokens + workload.output_tokens / 2
        """Tokens that a decoding request holds on average."""
        self.before = workload.input_tokens - self.prompt_tokens / 2
        self._groups, self._tp, self._bandwidth, self._plain_peak = spec.groups, tp, bandwidth, plain_peak
        self._value_bytes = memory.kv_bytes_per_value(spec, recipe)
        self._contexts: dict[float, _Attended] = {}
        self._prompts: dict[float, _Prompted] = {}
        self._layers(spec, recipe, bandwidth)
        self.activation_row_s = spec.layers * spec.hidden_size * 2 / bandwidth
        self.sampler_row_s = spec.vocab_size / tp * 4 / bandwidth
        self.collectives = 0
        self.link_s_per_row = self.exchange_row_s = 0.0
        if tp > 1:
            self.collectives = 2 * spec.layers
            volume = 2 * spec.layers * spec.hidden_size * 2 * 2 * (tp - 1) / tp
            self.link_s_per_row = volume / link_bytes_s(gpu, tp)
        if self.experts and dp > 1:
            # Each row goes to the ranks of its experts in 8 bit and comes back in 16.
            targets = min(self.active_experts, ranks) * (ranks - 1) / ranks
            volume = self.expert_layers * targets * spec.hidden_size * 3 / ranks
            self.exchange_row_s = volume / link_bytes_s(gpu, ranks)
        self.exchanges = self.expert_layers if self.experts and dp > 1 else 0

    def _layers(self, spec: ModelSpec, recipe: Recipe, bandwidth: float) -> None:
        self.full_layers = self.latent_layers = self.state_layers = self.indexers = 0
        states = 0.0
        for group in spec.groups:
            if group.kind == "mla":
                self.latent_layers += group.count
                self.indexers += group.count if group.indexer_dim else 0
            elif group.kind in ("linear", "mamba"):
                self.state_layers += group.count
                states += 8.0 * group.count * group.state_elements / recipe.parallelism.tp
            else:
                self.full_layers += group.count
        self.prompt_state_s = states / self._plain_peak
        self.state_row_s = 2.0 * memory.state_bytes_per_sequence(spec, recipe) / bandwidth

    def _attended(self, context: float) -> _Attended:
        """What a row of `context` tokens costs to decode over all layers."""
        found = self._contexts.get(context)
        if found is None:
            read = index = flop = full = latent = again = 0.0
            for group in self._groups:
                held = _held(group, context)
                if group.kind == "mla":
                    once = group.count * held * group.latent_dim * self._value_bytes
                    read += once
                    again += once * _rereads(group.heads / self._tp)
                    flop += 4.0 * group.count * group.heads / self._tp * group.latent_dim * held
                    latent += group.count * held
                    index += group.count * context * group.indexer_dim
                elif group.kind in ("full", "sliding", "chunked"):
                    width = group.head_dim_k + group.head_dim_v
                    read += group.count * held * max(1.0, group.kv_heads / self._tp) * width * self._value_bytes
                    flop += 2.0 * group.count * group.heads / self._tp * width * held
                    full += group.count * held
            found = self._contexts[context] = _Attended(
                read_s=read / self._bandwidth,
                flop_s=flop / self._plain_peak,
                full_context=full,
                latent_context=latent,
                index_s=index / self._bandwidth,
                rereads_s=again / self._bandwidth,
            )
        return found

    def _prompted(self, before: float) -> _Prompted:
        """What attention of one prompt token costs with `before` tokens before it, over all layers."""
        found = self._prompts.get(before)
        if found is None:
            dense = sparse = 0.0
            for group in self._groups:
                held = _held(group, before)
                if group.kind == "mla" and group.indexer_dim:
                    # Each token scores all before it, and attends to those kept in the latent itself, as decoding does.
                    sparse += 4.0 * group.count * group.heads / self._tp * group.latent_dim * held
                    sparse += 2.0 * group.count * INDEX_HEADS * group.indexer_dim * before
                elif group.kind == "mla":
                    # Prefill expands the latent: 192 wide keys and 128 wide values of each head (nope + rope, v).
                    dense += 2.0 * group.count * group.heads / self._tp * 320 * held
                elif group.kind in ("full", "sliding", "chunked"):
                    width = group.head_dim_k + group.head_dim_v
                    dense += 2.0 * group.count * group.heads / self._tp * width * held
            found = self._prompts[before] = _Prompted(dense / self._plain_peak, sparse / self._plain_peak)
        return found

    def step(self, requests: float) -> list[float]:
        """The features of one steady step with `requests` decoding on a replica, in the order of `NAMES`.

        Data-parallel ranks and pipeline stages each work on their share of the requests at the same time. In steady state each
        step also computes prompts for those that replace the finished, requests x tokens of a step / output tokens of them. They
        come whole or in chunks, so a share of the steps computes some beside the tokens of those that decode.
        """
        shared = requests / self.pp
        prompts = shared * self.yielded / self.output_tokens * self.prefill_share / self.dp
        chunks = max(1.0, self.prompt_tokens / self.chunk_tokens)
        mixed = min(1.0, prompts * chunks)
        return self._of(shared / self.dp, self.context, mixed, prompts, prompts * self.prompt_tokens, self.before)

    def one_step(
        self, decoding: float, context: float, prompts: float, prompt_tokens: float, before: float
    ) -> list[float]:
        """The features of one step of a rank that decodes `decoding` requests over `context` tokens each, and computes
        `prompt_tokens` tokens of `prompts` prompts (a chunk counts as its share) after `before` tokens of them on average.
        """
        return self._of(decoding, context, 1.0 if prompt_tokens else 0.0, prompts, prompt_tokens, before)

    def prompt(self) -> list[float]:
        """The features of one prompt computed alone, in as many steps as it needs."""
        chunks = max(1.0, self.prompt_tokens / self.chunk_tokens)
        features = self._of(0.0, self.context, chunks, 1.0, self.prompt_tokens, self.before)
        return [value if own else 0.0 for value, own in zip(features, OF_PROMPTS, strict=True)]

    @property
    def least_token_s(self) -> float:
        """What no token can be faster than, at peak bandwidth: the weights one request touches and the cache it holds. Unit: seconds."""
        weights_s = self.attention_s + self.dense_s + self.head_s + self.experts_s * self._touched(1.0)
        return (weights_s + self._attended(self.context).read_s) / self.yielded

    @property
    def least_prompt_s(self) -> float:
        """What no prompt can be faster than, at the peak rates of the devices. Unit: seconds."""
        each = self.attention_row_s + self.dense_row_s + self.expert_prompt_s + self._prompted(self.before).flop_s
        return each * self.prompt_tokens

    def _of(
        self, running: float, context: float, mixed: float, prompts: float, tokens: float, before: float
    ) -> list[float]:
        """Of a rank: `mixed` steps of one compute `tokens` tokens of `prompts` prompts all together; the rest only decode."""
        rows = running * (self.drafts + 1)
        all_rows = rows * self.dp
        chunk = tokens / mixed if mixed else 0.0
        plain = max(0.0, 1.0 - mixed)
        attended = self._attended(context)
        prompted = self._prompted(before)
        return [
            plain * self.attention_s,
            plain * self.attention_row_s * rows,
            plain * self.dense_s,
            plain * self.dense_row_s * rows,
            self.head_s,
            self.head_row_s * rows,
            plain * self.experts_s * self._touched(all_rows),
            plain * self.expert_row_s * all_rows,
            attended.read_s * running,
            attended.flop_s * rows,
            attended.full_context,
            attended.latent_context,
            self.state_row_s * running,
            attended.index_s * running,
            attended.rereads_s * running,
            mixed * self.attention_s,
            mixed * self.attention_row_s * (rows + chunk),
            mixed * self.dense_s,
            mixed * self.dense_row_s * (rows + chunk),
            mixed * self.experts_s * self._touched(all_rows + chunk * self.dp),
            mixed * self.expert_prompt_s * (all_rows + chunk * self.dp),
            prompted.flop_s * tokens,
            prompted.sparse_s * tokens,
            self.prompt_state_s * tokens,
            mixed * self.layers,
            self.activation_row_s * tokens,
            self.routed_row_s * tokens,
            self.link_s_per_row * tokens,
            prompts,
            self.link_s_per_row * rows,
            float(self.collectives),
            self.exchange_row_s * (all_rows + tokens * self.dp),
            float(self.exchanges),
            float(self.full_layers),
            float(self.latent_layers),
            float(self.state_layers),
            float(self.expert_layers),
            float(self.indexers),
            1.0,
            running,
            rows * self.layers,
            self.activation_row_s * rows,
            self.routed_row_s * rows,
            self.sampler_row_s * rows,
        ]

    def _touched(self, rows: float) -> float:
        """Share of the experts that some of `rows` tokens are routed to, evenly at random."""
        return 1 - (1 - self.active_experts / self.experts) ** rows if self.experts else 0.0


def _rereads(heads: float) -> float:
    """How often a latent is read besides once, for so many heads of a device."""
    return 0.0 if heads in _LATENT_HEADS else max(0.0, heads / min(_LATENT_HEADS) - 1)


def _held(group: LayerGroup, tokens: float) -> float:
    """Tokens of `tokens` that a row of this layer attends to."""
    if group.indexer_dim:
        return min(tokens, SPARSE_TOKENS)
    return tokens if group.window_tokens is None else min(tokens, group.window_tokens)


def _peak(spec: ModelSpec, gpu: Gpu, recipe: Recipe, part: str) -> float:
    """FLOP per second of the arithmetic that a part's weights are computed in on this device.

    Quantised activations use the narrow units where the device has them; everything else computes in 16 bit. A device
    without 16-bit units (a CPU without AVX-512 BF16) computes in fp32 at its own rate, which its figures already say.
    """
    quantised = spec.quantization
    if quantised is None:
        wanted: str = recipe.precision if recipe.online_quantization is not None else "bf16"
    elif part not in quantised.quantised_parts or quantised.activations == "16bit":
        wanted = "bf16"
    else:
        wanted = _COMPUTE_FORMATS.get(recipe.precision, "bf16")
    if wanted in gpu.compute_flop_s and wanted != "bf16":
        return float(gpu.compute(wanted))
    return _peak_16bit(gpu, recipe)


def _wide_peak(spec: ModelSpec, gpu: Gpu, recipe: Recipe, otherwise: float) -> float:
    """FLOP per second of experts over the many rows of a prompt: four-bit units where weights and activations both have four bits."""
    narrow = spec.quantization is not None and spec.quantization.activations == "fp4"
    if narrow and recipe.precision in ("mxfp4", "nvfp4") and "fp4" in gpu.compute_flop_s:
        return float(gpu.compute("fp4"))
    return otherwise


def _peak_16bit(gpu: Gpu, recipe: Recipe) -> float:
    wanted: str = recipe.precision if recipe.precision in memory.DTYPE_BYTES else "bf16"
    for name in (wanted, "bf16", "fp16"):
        if name in gpu.compute_flop_s:
            return float(gpu.compute(name))
    return float(gpu.compute("bf16"))


def link_bytes_s(gpu: Gpu, ranks: int) -> float:
    """What one device can send to the others of its group at once: one link per peer on a mesh. Raises: MissingFigure.

    Devices with the host's own memory sit in hosts of their own, on a network nobody stated: only the number of exchanges counts.
    """
    links = gpu.links
    if gpu.shared_memory and links is None:
        return math.inf
    if links is None or (links.kind == "pcie" and not links.link_bytes_s):
        return _pcie_bytes_s(gpu)
    if links.kind == "xgmi":
        return min(ranks - 1, links.peers) * links.link_bytes_s
    return links.link_bytes_s


def _pcie_bytes_s(gpu: Gpu) -> float:
    """One direction of a x16 slot. Raises: MissingFigure.

    16 lanes x 16 GT/s (generation 4) or 32 GT/s (generation 5) x 128/130 coding / 8 bits.
    """
    rates = {3: 8, 4: 16, 5: 32, 6: 64}
    if gpu.pcie_generation not in rates:
        raise MissingFigure(f"{gpu.name} pcie_generation", file=gpu.file)
    return math.floor(16 * rates[gpu.pcie_generation] * 1e9 * 128 / 130 / 8)
