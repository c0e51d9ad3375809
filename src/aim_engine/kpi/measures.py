"""What is read from engines and cards: each series under one name of ours, with what every engine release calls it.

A measure is one counter, gauge or histogram as it is scraped and kept; figures (`names`) are arithmetic over measures. The first
family of a measure that a page exports is read, so that a renamed metric keeps its history.
Sources: vllm-project/vllm vllm/v1/metrics/loggers.py (0.32, 0.33) and the deprecations of 0.6 to 0.12; sgl-project/sglang metrics
collector (0.5); ROCm/ATOM docs/metrics_guide.md and entrypoints/openai/request_metrics.py; ROCm/device-metrics-exporter
docs/configuration/metricslist.md (1.4) and docs/releasenotes.md for its older names; ROCm/omnistat docs/metrics.md; amd/amd_smi_exporter.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]
Across = Literal["sum", "max", "mean"]
Side = Literal["both", "prefill", "decode", "first"]
RANKS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "pid"})
"""Labels of ranks that report the same work: take one of them, do not add them up."""
SERVER_KIND = "engine_type"
"""Label in which SGLang says whether a server only prefills or only decodes; on what the scheduler tells in 0.5.9, on all in 0.5.23.
Source: its srt/observability/metrics_collector.py, srt/managers/scheduler_metrics_mixin.py."""
ENGINE_PREFIXES = {"vllm:": "vllm", "sglang:": "sglang", "atom:": "atom"}
"""How an engine's own metrics begin."""
START_TIME = "process_start_time_seconds"
"""When the engine's process started, seconds since 1970; gauge."""
CACHE_INFO = "vllm:cache_config_info"
"""Facts of the engine's cache, as labels."""


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One series that is kept."""

    name: str
    kind: Kind
    unit: str
    """Unit of the series itself, before a figure scales it."""
    families: tuple[str, ...]
    """Metric families that hold it, newest name first, without the suffixes of counters and histograms."""
    where: tuple[tuple[str, str], ...] = ()
    """Labels a sample must carry."""
    across: Across = "sum"
    """How the engines, replicas or cards of one deployment make one value."""
    device: bool = False
    """Told by a card, not by an engine."""
    zero_is_unknown: bool = False
    """Exporters write 0 where a card has no such sensor."""
    scale: float = 1.0
    """What a sample is multiplied by to be in `unit`."""
    only_with: str = ""
    """What an engine must be told to export it."""
    ours: bool = False
    """Read from the driver's files by us; AMD's exporter has no such series."""

    @property
    def side(self) -> Side:
        """Which of servers that only prefill and servers that only decode count for it, since each request passes through both.

        `first` is the time to the first token. A prefill server of vLLM is asked for one token before the decode server is asked at all, so
        its time is most of it, and the transfer and the first step of the other come on top. Both servers of SGLang are asked at once, and
        the decode server's time is all of it. Source: vllm-project/vllm examples of a proxy and issue 29474; sgl-project/sglang
        TokenizerManager.collect_metrics, of which a prefill server counts requests, prompts and one token, but no times per token.
        """
        return _SIDES.get(self.name, "both")


_SIDES: dict[str, Side] = {
    "ttft": "first",
    **dict.fromkeys(
        (
            "tpot",
            "itl",
            "e2e",
            "decode",
            "inference",
            "prompt_length",
            "output_length",
            "step_tokens",
            "output_tokens",
            "requests",
            "finished_stop",
            "finished_length",
            "finished_repetition",
        ),
        "decode",
    ),
    **dict.fromkeys(
        (
            "queue",
            "prefill",
            "input_tokens",
            "prefix_queries",
            "prefix_hits",
            "prefix_hit_gauge",
            "mm_queries",
            "mm_hits",
        ),
        "prefill",
    ),
}
"""Errors, aborts and what requests wait for count wherever they are."""


def _counter(
    name: str, unit: str, *families: str, where: tuple[tuple[str, str], ...] = (), only_with: str = ""
) -> Measure:
    return Measure(name=name, kind="counter", unit=unit, families=families, where=where, only_with=only_with)


def _gauge(name: str, unit: str, *families: str, where: tuple[tuple[str, str], ...] = ()) -> Measure:
    return Measure(name=name, kind="gauge", unit=unit, families=families, where=where)


def _fullest(name: str, unit: str, *families: str) -> Measure:
    return Measure(name=name, kind="gauge", unit=unit, families=families, across="max")


def _histogram(name: str, unit: str, *families: str) -> Measure:
    return Measure(name=name, kind="histogram", unit=unit, families=families)


def _card(
    name: str,
    unit: str,
    *families: str,
    kind: Kind = "gauge",
    across: Across = "max",
    zero: bool = False,
    scale: float = 1.0,
    where: tuple[tuple[str, str], ...] = (),
    ours: bool = False,
) -> Measure:
    return Measure(
        name=name,
        ours=ours,
        kind=kind,
        unit=unit,
        families=families,
        where=where,
        across=across,
        device=True,
        zero_is_unknown=zero,
        scale=scale,
    )


def _finished(reason: str) -> Measure:
    return _counter(f"finished_{reason}", "requests", "vllm:request_success", where=(("finished_reason", reason),))


FINISH_REASONS = ("abort", "error", "length", "repetition", "stop")

ENGINE: tuple[Measure, ...] = (
    _histogram(
        "ttft",
        "s",
        "vllm:time_to_first_token_seconds",
        "sglang:time_to_first_token_seconds",
        "atom:time_to_first_token_seconds",
        "atom:ttft_seconds",
    ),
    _histogram(
        "tpot",
        "s",
        "vllm:request_time_per_output_token_seconds",
        "sglang:request_time_per_output_token_seconds",
        "atom:tpot_seconds",
        "vllm:inter_token_latency_seconds",
        "sglang:inter_token_latency_seconds",
        "atom:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "sglang:time_per_output_token_seconds",
    ),
    _histogram(
        "itl",
        "s",
        "vllm:inter_token_latency_seconds",
        "sglang:inter_token_latency_seconds",
        "atom:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "sglang:time_per_output_token_seconds",
    ),
    _histogram(
        "e2e", "s", "vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds", "atom:e2e_latency_seconds"
    ),
    _histogram(
        "queue", "s", "vllm:request_queue_time_seconds", "sglang:queue_time_seconds", "atom:request_queue_time_seconds"
    ),
    _histogram("prefill", "s", "vllm:request_prefill_time_seconds"),
    _histogram("decode", "s", "vllm:request_decode_time_seconds"),
    _histogram("inference", "s", "vllm:request_inference_time_seconds"),
    _histogram("prompt_length", "tokens", "vllm:request_prompt_tokens", "sglang:prompt_tokens_histogram"),
    _histogram("output_length", "tokens", "vllm:request_generation_tokens", "sglang:generation_tokens_histogram"),
    _histogram("step_tokens", "tokens", "vllm:iteration_tokens_total"),
    _histogram("request_preemptions", "times", "vllm:request_num_preemptions"),
    _counter("output_tokens", "tokens", "vllm:generation_tokens", "sglang:generation_tokens", "atom:generation_tokens"),
    _counter("input_tokens", "tokens", "vllm:prompt_tokens", "sglang:prompt_tokens", "atom:prompt_tokens"),
    _counter("computed_tokens", "tokens", "vllm:prompt_tokens_by_source", where=(("source", "local_compute"),)),
    _counter(
        "transferred_tokens", "tokens", "vllm:prompt_tokens_by_source", where=(("source", "external_kv_transfer"),)
    ),
    _counter("requests", "requests", "vllm:request_success", "sglang:num_requests", "atom:requests_finished"),
    *(_finished(reason) for reason in FINISH_REASONS),
    _counter("aborted", "requests", "sglang:num_aborted_requests"),
    _counter("preemptions", "requests", "vllm:num_preemptions", "sglang:num_retracted_requests", "atom:preemptions"),
    _counter("rejections", "requests", "vllm:admission_rejections"),
    _counter("corrupted", "requests", "vllm:corrupted_requests", only_with="VLLM_COMPUTE_NANS_IN_LOGITS=1"),
    _counter(
        "prefix_queries",
        "tokens",
        "vllm:prefix_cache_queries",
        "vllm:gpu_prefix_cache_queries",
        "atom:prefix_cache_full_tokens",
    ),
    _counter(
        "prefix_hits",
        "tokens",
        "vllm:prefix_cache_hits",
        "vllm:gpu_prefix_cache_hits",
        "sglang:cached_tokens",
        "atom:prefix_cache_cached_tokens",
    ),
    _counter("mm_queries", "items", "vllm:mm_cache_queries"),
    _counter("mm_hits", "items", "vllm:mm_cache_hits"),
    _counter(
        "draft_tokens",
        "tokens",
        "vllm:spec_decode_num_draft_tokens",
        "atom:mtp_draft_tokens",
        only_with="speculative decoding",
    ),
    _counter(
        "accepted_tokens",
        "tokens",
        "vllm:spec_decode_num_accepted_tokens",
        "atom:mtp_accepted_tokens",
        only_with="speculative decoding",
    ),
    _counter("flops", "FLOP", "vllm:estimated_flops_per_gpu", "sglang:estimated_flops_per_gpu"),
    _counter("read_bytes", "bytes", "vllm:estimated_read_bytes_per_gpu", "sglang:estimated_read_bytes_per_gpu"),
    _counter("offload_bytes", "bytes", "vllm:kv_offload_total_bytes", "vllm:kv_offload_bytes"),
    _counter("cpu_s", "s", "process_cpu_seconds"),
    _gauge("running", "requests", "vllm:num_requests_running", "sglang:num_running_reqs", "atom:requests_running"),
    _gauge("waiting", "requests", "vllm:num_requests_waiting", "sglang:num_queue_reqs", "atom:requests_waiting"),
    _gauge("waiting_capacity", "requests", "vllm:num_requests_waiting_by_reason", where=(("reason", "capacity"),)),
    _gauge("waiting_deferred", "requests", "vllm:num_requests_waiting_by_reason", where=(("reason", "deferred"),)),
    _gauge("waiting_allocation", "requests", "sglang:num_decode_prealloc_queue_reqs"),
    _gauge("waiting_transfer", "requests", "sglang:num_decode_transfer_queue_reqs", "atom:requests_parked_kv_load"),
    _fullest(
        "running_fullest", "requests", "vllm:num_requests_running", "sglang:num_running_reqs", "atom:requests_running"
    ),
    _fullest(
        "kv_usage",
        "fraction",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
        "atom:kv_cache_usage_ratio",
    ),
    _fullest(
        "acceptance_gauge",
        "fraction",
        "sglang:spec_accept_rate",
        "vllm:spec_decode_draft_acceptance_rate",
        "atom:mtp_acceptance_rate",
    ),
    _fullest(
        "prefix_hit_gauge",
        "fraction",
        "sglang:cache_hit_rate",
        "vllm:gpu_prefix_cache_hit_rate",
        "atom:prefix_cache_hit_ratio",
    ),
)
"""Told by an engine's metrics page."""

DEVICE: tuple[Measure, ...] = (
    _card("gpu_busy", "%", "gpu_gfx_activity", "gpu_usage", "gpu_gfx_busy_instantaneous", across="mean"),
    _card("gpu_memory_busy", "%", "gpu_umc_activity", across="mean"),
    _card("gpu_memory_used", "MiB", "gpu_used_vram", across="sum"),
    _card("gpu_memory_total", "MiB", "gpu_total_vram", across="sum", zero=True),
    _card("gpu_memory_total_old", "MiB", "gpu_total_memory", across="sum", zero=True, scale=1e6 / 2**20),
    _card(
        "gpu_power",
        "W",
        "gpu_package_power",
        "gpu_average_package_power",
        "gpu_power_usage",
        across="sum",
        zero=True,
    ),
    _card("gpu_power_cap", "W", "gpu_power_cap", across="sum", zero=True, ours=True),
    _card("gpu_power_cap_default", "W", "gpu_power_cap_default", across="sum", zero=True, ours=True),
    _card("gpu_energy", "J", "gpu_energy_consumed", kind="counter", across="sum", scale=1e-6),
    _card("gpu_junction", "C", "gpu_junction_temperature", "gpu_edge_temperature", zero=True),
    _card("gpu_junction_crit", "C", "gpu_junction_temperature_critical", zero=True, ours=True),
    _card("gpu_hbm_temperature", "C", "gpu_memory_temperature", "gpu_hbm_temperature", zero=True),
    _card("gpu_clock", "MHz", "gpu_clock", zero=True, where=(("clock_type", "GPU_CLOCK_TYPE_SYSTEM"),)),
    _card("gpu_clock_max", "MHz", "gpu_max_clock", zero=True, where=(("clock_type", "GPU_CLOCK_TYPE_SYSTEM"),)),
    _card("gpu_ecc_correctable", "errors", "gpu_ecc_correct_total", kind="counter", across="sum"),
    _card("gpu_ecc_uncorrectable", "errors", "gpu_ecc_uncorrect_total", kind="counter", across="sum"),
    _card("gpu_ecc_deferred", "errors", "gpu_ecc_deferred_total", kind="counter", across="sum"),
    _card("gpu_bad_pages", "pages", "gpu_bad_pages", across="sum", ours=True),
    _card("throttle_samples", "samples", "gpu_violation_current_accumulated_counter", kind="counter", across="sum"),
    _card("throttle_power", "samples", "gpu_violation_ppt_residency_accumulated", kind="counter", across="sum"),
    _card(
        "throttle_socket",
        "samples",
        "gpu_violation_socket_thermal_residency_accumulated",
        "gpu_violation_soc_thermal_residency_accumulated",
        kind="counter",
        across="sum",
    ),
    _card(
        "throttle_memory",
        "samples",
        "gpu_violation_hbm_thermal_residency_accumulated",
        kind="counter",
        across="sum",
    ),
    _card(
        "throttle_vr",
        "samples",
        "gpu_violation_vr_thermal_residency_accumulated",
        "gpu_violation_vr_thermal_tracking_accumulated",
        kind="counter",
        across="sum",
    ),
    _card(
        "throttle_prochot",
        "samples",
        "gpu_violation_processor_hot_residency_accumulated",
        "gpu_violation_proc_hot_residency_accumulated",
        kind="counter",
        across="sum",
    ),
    _card("pcie_replays", "times", "pcie_replay_count", kind="counter", across="sum"),
    _card("pcie_speed", "GT/s", "pcie_speed", across="mean", zero=True),
    _card("pcie_max_speed", "GT/s", "pcie_max_speed", across="mean", zero=True),
    _card("xgmi_errors", "errors", "gpu_ecc_uncorrect_xgmi_wafl", kind="counter", across="sum"),
    _card("gpu_health", "1 or 0", "gpu_health", across="mean"),
)
"""Told by AMD's device metrics exporter, or by the machine's own sensors under the same names."""

ALL: tuple[Measure, ...] = ENGINE + DEVICE
BY_NAME: dict[str, Measure] = {measure.name: measure for measure in ALL}

_SUFFIXES = {"counter": ("_total", ""), "gauge": ("",), "histogram": ("_count",)}


def sample_names(measure: Measure) -> tuple[tuple[str, str], ...]:
    """(family, sample name that shows it is exported) in the order to look for them."""
    return tuple((family, family + suffix) for family in measure.families for suffix in _SUFFIXES[measure.kind])


def wanted() -> frozenset[str]:
    """Every sample name that is read from a page; others are not even parsed."""
    found = {START_TIME, CACHE_INFO}
    for measure in ALL:
        for family, sample in sample_names(measure):
            found.add(sample)
            if measure.kind == "histogram":
                found |= {f"{family}_bucket", f"{family}_sum"}
    return frozenset(found)
