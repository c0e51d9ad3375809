"""The vocabulary of measurement: our names, their units and meanings, and what each engine release calls them.

Engines rename their metrics between releases. Whoever reads metrics asks for a name from this module and gets the first
of its aliases that the page exports; "not exported" is then a different answer from "zero".
Sources of the aliases: vllm-project/vllm vllm/v1/metrics/loggers.py (0.32) and the deprecations of 0.9 to 0.12;
sgl-project/sglang metrics collector (0.5).
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["histogram", "counter", "gauge", "derived", "device", "evaluation"]
Better = Literal["higher", "lower", "band"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a figure should lie. None leaves that side open."""

    low: float | None = None
    high: float | None = None
    source: str = ""


class Kpi(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: what it is called, in which unit, what it means and where it comes from."""

    name: str
    label: str
    """As tables print it."""
    unit: str
    """ms, tok/s, requests/s, requests, tokens, fraction, score."""
    meaning: str
    better: Better
    kind: Kind
    metrics: tuple[str, ...] = ()
    """Engine metric families that hold it, newest name first, without the suffixes of counters and histograms."""
    seed_name: str = ""
    """What the product's first description called it."""
    target: Target | None = None


LATENCIES: tuple[Kpi, ...] = (
    Kpi(
        name="ttft_ms",
        label="time to first token",
        unit="ms",
        meaning="from the arrival of a request to its first output token",
        better="lower",
        kind="histogram",
        metrics=("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
        seed_name="First Token Latency",
        target=Target(high=100.0, source="the product's first description: below 100 ms for most models"),
    ),
    Kpi(
        name="tpot_ms",
        label="time per output token",
        unit="ms",
        meaning="mean gap between the output tokens of one request, after the first",
        better="lower",
        kind="histogram",
        metrics=(
            "vllm:request_time_per_output_token_seconds",
            "sglang:request_time_per_output_token_seconds",
            "vllm:inter_token_latency_seconds",
            "sglang:inter_token_latency_seconds",
            "vllm:time_per_output_token_seconds",
            "sglang:time_per_output_token_seconds",
        ),
    ),
    Kpi(
        name="itl_ms",
        label="inter-token latency",
        unit="ms",
        meaning="gap between two output tokens, counted per gap",
        better="lower",
        kind="histogram",
        metrics=(
            "vllm:inter_token_latency_seconds",
            "sglang:inter_token_latency_seconds",
            "vllm:time_per_output_token_seconds",
            "sglang:time_per_output_token_seconds",
        ),
    ),
    Kpi(
        name="e2e_ms",
        label="end-to-end latency",
        unit="ms",
        meaning="from the arrival of a request to its last output token",
        better="lower",
        kind="histogram",
        metrics=("vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds"),
        seed_name="End-to-End Latency",
    ),
    Kpi(
        name="queue_ms",
        label="time in the queue",
        unit="ms",
        meaning="from the arrival of a request to its first scheduling",
        better="lower",
        kind="histogram",
        metrics=("vllm:request_queue_time_seconds", "sglang:queue_time_seconds"),
    ),
    Kpi(
        name="prefill_ms",
        label="prefill time",
        unit="ms",
        meaning="from the first scheduling of a request to its first output token",
        better="lower",
        kind="histogram",
        metrics=("vllm:request_prefill_time_seconds",),
    ),
)

COUNTERS: tuple[Kpi, ...] = (
    Kpi(
        name="output_tok_s",
        label="output tokens per second",
        unit="tok/s",
        meaning="tokens generated per second by the whole server",
        better="higher",
        kind="counter",
        metrics=("vllm:generation_tokens", "sglang:generation_tokens"),
        seed_name="Tokens per Second",
    ),
    Kpi(
        name="input_tok_s",
        label="prompt tokens per second",
        unit="tok/s",
        meaning="prompt tokens processed per second by the whole server, those found in the prefix cache included",
        better="higher",
        kind="counter",
        metrics=("vllm:prompt_tokens", "sglang:prompt_tokens"),
    ),
    Kpi(
        name="requests_s",
        label="requests per second",
        unit="requests/s",
        meaning="requests finished per second, for whatever reason",
        better="higher",
        kind="counter",
        metrics=("vllm:request_success", "sglang:num_requests"),
        seed_name="Requests per Second",
    ),
    Kpi(
        name="preemptions",
        label="preemptions",
        unit="requests",
        meaning="requests thrown out of the batch for lack of KV cache and computed again",
        better="lower",
        kind="counter",
        metrics=("vllm:num_preemptions", "sglang:num_retracted_requests"),
    ),
)

GAUGES: tuple[Kpi, ...] = (
    Kpi(
        name="running",
        label="requests running",
        unit="requests",
        meaning="requests in the batch at the moment of the scrape",
        better="band",
        kind="gauge",
        metrics=("vllm:num_requests_running", "sglang:num_running_reqs"),
    ),
    Kpi(
        name="waiting",
        label="requests waiting",
        unit="requests",
        meaning="requests not yet in the batch at the moment of the scrape",
        better="lower",
        kind="gauge",
        metrics=("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    ),
    Kpi(
        name="kv_usage_fraction",
        label="KV cache in use",
        unit="fraction",
        meaning="share of the KV cache that holds live tokens at the moment of the scrape, of the fullest engine",
        better="band",
        kind="gauge",
        metrics=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"),
    ),
)

DERIVED: tuple[Kpi, ...] = (
    Kpi(
        name="output_tok_s_per_user",
        label="output tokens per second per user",
        unit="tok/s",
        meaning="speed at which one request's answer grows: 1 / mean inter-token latency",
        better="higher",
        kind="derived",
    ),
    Kpi(
        name="prefix_hit_fraction",
        label="prefix cache hits",
        unit="fraction",
        meaning="share of the prompt tokens looked up that the prefix cache held",
        better="higher",
        kind="derived",
    ),
)

DEVICES: tuple[Kpi, ...] = (
    Kpi(
        name="gpu_busy_fraction",
        label="GPU utilisation",
        unit="fraction",
        meaning="share of time in which some kernel ran; says nothing about how well it ran",
        better="band",
        kind="device",
        seed_name="GPU Utilization",
        target=Target(low=0.8, high=0.9, source="the product's first description: 80-90 %"),
    ),
    Kpi(
        name="gpu_memory_fraction",
        label="GPU memory in use",
        unit="fraction",
        meaning="share of device memory taken; engines reserve theirs at start, so it hardly moves with load",
        better="band",
        kind="device",
        seed_name="Memory Utilization",
        target=Target(high=0.95, source="the product's first description: below 95 %, to avoid running out"),
    ),
)

QUALITY: tuple[Kpi, ...] = (
    Kpi(
        name="accuracy_score",
        label="model accuracy",
        unit="score",
        meaning="result of an evaluation task; not readable from a running engine",
        better="higher",
        kind="evaluation",
        seed_name="Model Accuracy",
    ),
    Kpi(
        name="response_quality_score",
        label="response quality",
        unit="score",
        meaning="users' ratings of answers; not readable from a running engine",
        better="higher",
        kind="evaluation",
        seed_name="Response Quality",
    ),
)

ALL: tuple[Kpi, ...] = LATENCIES + COUNTERS + GAUGES + DERIVED + DEVICES + QUALITY
BY_NAME: dict[str, Kpi] = {kpi.name: kpi for kpi in ALL}

PREFIX_QUERIES = ("vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries")
"""Prompt tokens looked up in the prefix cache; counter."""
PREFIX_HITS = ("vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits")
"""Prompt tokens found in the prefix cache; counter."""
START_TIME = "process_start_time_seconds"
"""When the engine's process started, seconds since 1970; gauge."""
ENGINE_PREFIXES = {"vllm:": "vllm", "sglang:": "sglang"}
"""How an engine's own metrics begin."""
