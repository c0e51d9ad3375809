"""What a recipe would do: memory per device, and speed at one load, each figure with a range and its basis."""

from __future__ import annotations

from typing import Literal

import msgspec

Basis = Literal["measured", "calibrated", "modelled"]


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction with the band in which about 90 % of comparable measurements fell."""

    value: float
    low: float
    high: float
    basis: Basis
    source: str = ""


class MemoryBreakdown(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on the fullest device; the parts add up to `total_bytes`, which is at most `budget_bytes` when it fits."""

    device_bytes: int
    budget_bytes: int
    """What gpu_memory_utilization leaves of the device."""
    weights_bytes: int
    activation_bytes: int
    graphs_bytes: int
    overhead_bytes: int
    """Runtime, collective buffers, workspaces."""
    kv_cache_bytes: int
    """What remains for the cache; negative when the rest does not fit."""
    kv_bytes_per_token: int
    """Of one device, all layers, for a token inside every window."""
    state_bytes_per_sequence: int
    kv_cache_tokens: int
    """Tokens the cache of one replica holds, as the engine's log counts them."""
    longest_sequences: float
    """Sequences of max_model_len that one rank's cache holds; the engine starts only when it is one at least."""
    max_sequences: int
    """Sequences of the workload's length the cache of one replica holds."""

    @property
    def total_bytes(self) -> int:
        """All parts, a negative cache counted as none."""
        return (
            self.weights_bytes
            + self.activation_bytes
            + self.graphs_bytes
            + self.overhead_bytes
            + max(0, self.kv_cache_bytes)
        )

    @property
    def fits(self) -> bool:
        """Room for the weights and for at least one sequence of max_model_len."""
        return self.kv_cache_bytes > 0 and self.longest_sequences >= 1

    @property
    def missing_bytes(self) -> int:
        """Bytes lacking on the fullest device before any cache; 0 when the rest fits."""
        return max(0, -self.kv_cache_bytes)


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How a time spreads over requests."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    def at(self, percentile: int | None) -> float:
        """The mean for None."""
        return float(self.mean if percentile is None else getattr(self, f"p{percentile}"))


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """What single requests saw when the traffic was played through the engine's scheduler."""

    requests: int
    """How many were measured, of one replica."""
    seed: int
    ttft_ms: Spread
    tpot_ms: Spread
    itl_ms: Spread
    """Between two tokens, over tokens."""
    e2e_ms: Spread
    preemptions: int
    goodput_fraction: float
    """Share of requests that kept every limit by itself."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Prediction for one recipe at one load. Rates are of the whole deployment, times of one request."""

    memory: MemoryBreakdown
    concurrency: int
    """Requests in flight, all replicas together, at which the figures hold."""
    ttft_ms: Range
    tpot_ms: Range
    e2e_ms: Range
    output_tok_s: Range
    requests_s: Range
    output_tok_s_per_gpu: float
    output_tok_s_per_user: float
    step_ms: dict[str, float]
    """Time ledger of one decode step: feature -> milliseconds; adds up to tpot_ms.value."""
    load_s: float
    """Seconds from start to ready, weights on local disk."""
    meets_slo: bool
    slo_margin: dict[str, float] = {}
    """Limit -> (limit - prediction) / limit; negative where it is missed."""
    limited_ms: dict[str, Range] = {}
    """Limit -> what is held against it: the mean, or the percentile that was asked for."""
    simulated: Simulated | None = None
    """None: closed forms only."""
