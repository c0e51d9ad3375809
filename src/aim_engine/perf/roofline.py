"""How long one engine step takes, and from that what users see.

A step computes `rows` decode tokens and some prefill tokens. Its time is a sum of features, each an ideal time (bytes over
bandwidth, FLOP over peak) multiplied by a coefficient, plus fixed costs per layer, collective and request. The decode
step's time is the time per output token (TPOT excludes the first token, as serving benchmarks count it).
"""

from __future__ import annotations

import math

from aim_engine.errors import MissingFigure
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory
from aim_engine.perf.calibration import Calibration
from aim_engine.recipe.recipe import Recipe
from aim_engine.workload import Workload

COMPUTE_FORMATS = {
    "bf16": "bf16",
    "fp16": "fp16",
    "fp32": "fp32",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "bf16",
    "mxfp8": "fp8",
    "mxfp6": "fp6",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
}
"""Weight format -> the arithmetic it runs in when the device has it; weight-only formats compute in 16 bit."""


class Model:
    """Step times of one recipe on one device, with everything that does not depend on the load computed once."""

    def __init__(self, spec: ModelSpec, gpu: Gpu, recipe: Recipe, workload: Workload, calibration: Calibration) -> None:
        parallelism = recipe.parallelism
        self.workload = workload
        self.calibration = calibration
        self.coefficients = calibration.coefficients
        self.layers = spec.layers
        self.dp = parallelism.dp
        self.pp = parallelism.pp
        tp = parallelism.tp
        ranks = tp * parallelism.dp
        bandwidth = gpu.bandwidth()
        self.flop_s = gpu.compute(compute_dtype(spec, gpu, recipe))
        self.attention_flop_s = gpu.compute(recipe.precision if recipe.precision in memory.DTYPE_BYTES else "bf16")
        self.tokens_budget = recipe.max_num_batched_tokens

        parts = spec.parameters
        head = parts.lm_head or parts.embedding
        moe_bytes = 0.0
        self.experts = self.experts_per_token = 0
        if spec.moe is not None:
            self.experts, self.experts_per_token = spec.moe.experts, spec.moe.experts_per_token
            moe_bytes = parts.experts * memory.bytes_per_weight(spec, recipe, "experts") / ranks
        kv_split = min(tp, max(1, spec.kv_heads))
        dense = (
            (parts.attention - parts.kv_projection) / tp + parts.kv_projection / kv_split
        ) * memory.bytes_per_weight(spec, recipe, "attention")
        dense += parts.attention_replicated * memory.bytes_per_weight(spec, recipe, "attention_replicated")
        dense += parts.dense_mlp / tp * memory.bytes_per_weight(spec, recipe, "dense_mlp")
        dense += parts.shared_experts / tp * memory.bytes_per_weight(spec, recipe, "shared_experts")
        dense += parts.router * memory.bytes_per_weight(spec, recipe, "router")
        dense += head / tp * memory.bytes_per_weight(spec, recipe, "lm_head")
        self.dense_s = dense / bandwidth
        self.experts_s = moe_bytes / bandwidth
        self.active_flop = 2 * spec.active_parameters / tp
        mean_context = workload.input_tokens + workload.output_tokens / 2
        self.kv_row_s = _kv_read_bytes(spec, recipe, mean_context) / bandwidth
        self.attention_flop_per_context = _attention_flop(spec, 1.0) / tp
        self.decode_row_s = (self.active_flop / self.flop_s) + _attention_flop(spec, mean_context) / tp / (
            self.attention_flop_s
        )
        self.link_s_per_row = 0.0
        self.collectives = 0
        if tp > 1:
            self.collectives = 2 * spec.layers
            volume = 2 * spec.layers * spec.hidden_size * 2 * 2 * (tp - 1) / tp
            self.link_s_per_row = volume / _link_bytes_s(gpu, tp)
        if spec.moe is not None and parallelism.dp > 1:
            # Experts over data-parallel ranks: each layer gathers every rank's rows and scatters the sums back.
            self.collectives += 2 * spec.moe.layers
            volume = 2 * (parallelism.dp - 1) * spec.hidden_size * 2 * spec.moe.layers
            self.link_s_per_row += volume / _link_bytes_s(gpu, parallelism.dp)
        prompt = calibration.prompt_compute
        self.prompt_factor = prompt.get(gpu.arch, prompt["default"])
        self.prompt_tokens = max(1.0, workload.input_tokens * (1 - workload.prefix_hit_fraction))

    def step_s(self, requests: float) -> dict[str, float]:
        """Seconds by feature of one steady step of one replica with `requests` running.

        Data-parallel ranks and pipeline stages each work on their share of the requests at the same time. In steady state each step also prefills requests x prompt / output tokens, for those that replace the finished.
        """
        c = self.coefficients
        rows = requests / (self.dp * self.pp)
        prefill = min(rows * self.prompt_tokens / self.workload.output_tokens, float(self.tokens_budget))
        touched = 0.0
        if self.experts:
            touched = 1 - (1 - self.experts_per_token / self.experts) ** (self.dp * (rows + prefill))
        prefill_s = prefill * (
            self.active_flop / self.flop_s
            + self.prompt_tokens / 2 * self.attention_flop_per_context / self.attention_flop_s
        )
        return {
            "dense weights": c.dense_weights * self.dense_s,
            "expert weights": c.expert_weights * self.experts_s * touched,
            "KV cache read": c.kv_read * self.kv_row_s * rows,
            "decode compute": c.decode_compute * self.decode_row_s * rows,
            "prefill compute": c.prefill_compute * prefill_s,
            "all-reduce": c.allreduce_bytes * self.link_s_per_row * (rows + prefill)
            + c.allreduce_count * self.collectives,
            "layers": c.layers * self.layers,
            "requests": c.requests * rows,
            "step": c.step,
        }

    def tpot_s(self, requests: float) -> float:
        """Mean time per output token with `requests` running on one replica."""
        return sum(self.step_s(requests).values())

    def prompt_s(self) -> float:
        """Prefill of one prompt alone, in as many steps as the token budget needs."""
        c = self.coefficients
        compute = self.prompt_tokens * (
            self.active_flop / self.flop_s
            + self.prompt_tokens / 2 * self.attention_flop_per_context / self.attention_flop_s
        )
        weights = c.dense_weights * self.dense_s + c.expert_weights * self.experts_s
        steps = math.ceil(self.prompt_tokens / self.tokens_budget)
        fixed = steps * (c.layers * self.layers + c.allreduce_count * self.collectives + c.step)
        links = c.allreduce_bytes * self.link_s_per_row * self.prompt_tokens
        return max(self.prompt_factor * compute, steps * weights) + links + fixed

    def ttft_s(self, requests: float, tpot_s: float) -> float:
        """Mean time to first token: fixed cost, wait for the running step, queue for the prefill, prefill.

        The prefill is a server with utilisation rate x service; waiting time as in M/D/1. Closed loop: the rate is what the
        other requests - 1 requests bring, so one request alone never waits.
        """
        service = self.prompt_s()
        alone = self.calibration.fixed_ttft_s + service
        others = max(0.0, requests / self.dp - 1)
        if others == 0:
            return alone
        cycle = alone + self.workload.output_tokens * tpot_s
        busy = min(0.95, others * service / cycle)
        return alone + tpot_s / 2 + busy * service / (2 * (1 - busy))


def compute_dtype(spec: ModelSpec, gpu: Gpu, recipe: Recipe) -> str:
    """The arithmetic most of the matrix work runs in on this device.

    Quantised activations use the narrow units where the device has them; everything else computes in 16 bit. A device
    without 16-bit units (a CPU without AVX-512 BF16) computes in fp32 at its own rate, which its figures already say.
    """
    wanted = COMPUTE_FORMATS[recipe.precision]
    if spec.quantization is not None and spec.quantization.activations == "16bit":
        wanted = "bf16"
    return wanted if wanted in gpu.compute_flop_s else "bf16"


def _kv_read_bytes(spec: ModelSpec, recipe: Recipe, context_tokens: float) -> float:
    """Bytes of cache one decode row reads on one device at this context."""
    value_bytes = memory.kv_bytes_per_value(spec, recipe)
    tp = recipe.parallelism.tp
    total = 2.0 * memory.state_bytes_per_sequence(spec, recipe)
    for group in spec.groups:
        held = context_tokens if group.window_tokens is None else min(context_tokens, group.window_tokens)
        if group.kind == "mla":
            total += group.count * held * group.latent_dim * value_bytes
        elif group.kind in ("full", "sliding", "chunked"):
            total += (
                group.count * held * max(1, group.kv_heads // tp) * (group.head_dim_k + group.head_dim_v) * value_bytes
            )
    return total


def _attention_flop(spec: ModelSpec, context_tokens: float) -> float:
    """FLOP of scores and values for one row over `context_tokens`, all layers, all heads."""
    total = 0.0
    for group in spec.groups:
        held = context_tokens if group.window_tokens is None else min(context_tokens, group.window_tokens)
        if group.kind == "mla":
            total += 4.0 * group.count * group.heads * group.latent_dim * held
        elif group.kind in ("full", "sliding", "chunked"):
            total += 2.0 * group.count * group.heads * (group.head_dim_k + group.head_dim_v) * held
    return total


def _link_bytes_s(gpu: Gpu, ranks: int) -> float:
    """What one device can send to the others of its group at once: one link per peer on a mesh. Raises: MissingFigure."""
    links = gpu.links
    if links is None or (links.kind == "pcie" and not links.link_bytes_s):
        return _pcie_bytes_s(gpu)
    if links.kind == "xgmi":
        return min(ranks - 1, links.peers) * links.link_bytes_s
    return links.link_bytes_s


def _pcie_bytes_s(gpu: Gpu) -> int:
    """One direction of a x16 slot. Raises: MissingFigure.

    16 lanes x 16 GT/s (generation 4) or 32 GT/s (generation 5) x 128/130 coding / 8 bits.
    """
    rates = {3: 8, 4: 16, 5: 32, 6: 64}
    if gpu.pcie_generation not in rates:
        raise MissingFigure(f"{gpu.name} pcie_generation", file=gpu.file)
    return int(16 * rates[gpu.pcie_generation] * 1e9 * 128 / 130 / 8)
