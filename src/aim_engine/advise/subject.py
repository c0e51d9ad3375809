"""What the rules are judged over: figures of a window, the plan, the log, what doctor found, an earlier window.

A name that is absent is not known, and rules that ask for it are not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aim_engine.advise import logfacts
from aim_engine.monitor import figures
from aim_engine.monitor.figures import KpiReport
from aim_engine.monitor.span import Span, quantile
from aim_engine.perf import memory
from aim_engine.perf.calibration import Calibration
from aim_engine.perf.estimate import Estimate
from aim_engine.perf.predict import at_load
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import Parallelism, Recipe
from aim_engine.workload import Workload

FAR = 8.0
"""Times the bucket edge at or above the median beyond which a first token is an outlier."""
_QUANTILES = {
    "ttft": ("ttft", 1e3),
    "tpot": ("tpot", 1e3),
    "itl": ("itl", 1e3),
    "queue": ("queue", 1e3),
    "prefill": ("prefill", 1e3),
    "prompt": ("prompt_length", 1.0),
    "output": ("output_length", 1.0),
    "step": ("step_tokens", 1.0),
    "preempted": ("request_preemptions", 1.0),
}
"""Beginning of a name -> histogram, and what makes its unit that of the figures."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The names, and what predictions of changes need."""

    names: dict[str, Any]
    plan: Plan | None = None
    calibration: Calibration | None = None
    workload: Workload | None = None
    """The traffic that was measured."""
    finished: float = 0.0


def of(
    report: KpiReport | None,
    plan: Plan | None = None,
    *,
    span: Span | None = None,
    before: KpiReport | None = None,
    log: str | None = None,
    findings: Sequence[str] | None = None,
    cards: Mapping[str, Mapping[str, float]] | None = None,
    calibration: Calibration | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Subject:
    """Everything that is known. `extra` names win over all others."""
    found: dict[str, Any] = {}
    finished = 0.0
    if report is not None:
        found |= {name: each.value for name, each in report.readings.items() if each.value is not None}
        finished = report.readings["requests_s"].count or 0.0
        found |= {"finished": finished, "window_s": report.window_s or 0.0}
        found |= {f"{name}_count": each.count for name, each in report.readings.items() if each.count is not None}
        if "repetition" in report.finished:
            found["repetition"] = report.finished["repetition"]
    if before is not None:
        found |= {f"{name}_before": each.value for name, each in before.readings.items() if each.value is not None}
    if span is not None:
        found |= _of_span(span, report.window_s if report is not None else None)
    if log is not None:
        found |= logfacts.read(log)
    if findings is not None:
        found["findings"] = tuple(findings)
    if cards:
        found |= _of_cards(cards)
    workload = _traffic(report, plan)
    if plan is not None and plan.chosen is not None:
        found |= _of_plan(plan, found)
        if calibration is not None and workload is not None:
            found |= _predicted(plan, calibration, workload, found)
    found |= extra or {}
    found.setdefault("lossy_allowed", False)
    return Subject(names=found, plan=plan, calibration=calibration, workload=workload, finished=finished)


def _of_span(span: Span, window_s: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for begin, (name, scale) in _QUANTILES.items():
        histogram = span.histograms.get(name)
        if histogram is None:
            continue
        buckets = histogram.cumulative()
        for share in (0.5, 0.9, 0.95, 0.99):
            value = quantile(buckets, share)
            if value is not None:
                found[f"{begin}_p{share * 100:g}"] = value.value * scale
    first = span.histograms.get("ttft")
    middle = None if first is None else quantile(first.cumulative(), 0.5)
    if first is not None and middle is not None and middle.high is not None:
        far = FAR * middle.high
        below = sum(
            count
            for edge, count in zip((*first.edges, float("inf")), first.counts, strict=True)
            if _low(first.edges, edge) < far
        )
        found |= {
            "ttft_far": round(first.count - below, 6),
            "ttft_far_ms": far * 1e3,
            "ttft_seen": first.count,
            "ttft_p50_edge": middle.high * 1e3,
        }
    for name in ("mm_hits", "offload_bytes", "corrupted"):
        if name in span.counters:
            found[name] = span.counters[name]
    if span.counters.get("mm_queries"):
        found["mm_hit_fraction"] = span.counters.get("mm_hits", 0.0) / span.counters["mm_queries"]
    seconds = span.seconds or window_s or 0.0
    if seconds and "offload_bytes" in span.counters:
        found["offload_bytes_s"] = span.counters["offload_bytes"] / seconds
    if seconds and span.counters.get("read_bytes"):
        found["read_bytes_s"] = span.counters["read_bytes"] / seconds
    running, fullest = span.gauges.get("running"), span.gauges.get("running_fullest")
    if running is not None and fullest is not None and running.mean > 0:
        found["fullest_share"] = fullest.mean / running.mean
    inference, whole = span.histograms.get("inference"), span.histograms.get("e2e")
    if inference is not None and whole is not None and inference.count and whole.count:
        found["front_ms"] = max(0.0, whole.total / whole.count - inference.total / inference.count) * 1e3
    return found


def _low(edges: Sequence[float], edge: float) -> float:
    below = [each for each in edges if each < edge]
    return max(below, default=0.0)


def _of_cards(cards: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    clocks = {name: figures["clock_fraction"] for name, figures in cards.items() if "clock_fraction" in figures}
    found: dict[str, Any] = {"cards": len(cards)}
    if len(clocks) > 1:
        slowest = min(clocks, key=lambda name: (clocks[name], name))
        others = sorted(value for name, value in clocks.items() if name != slowest)
        middle = others[len(others) // 2]
        if middle > 0:
            found |= {"card_clock_low_fraction": clocks[slowest] / middle, "slow_card": slowest}
    return found


def _of_plan(plan: Plan, known: Mapping[str, Any]) -> dict[str, Any]:
    if plan.chosen is None:
        return {}
    recipe, gpu, model, slo = plan.chosen.recipe, plan.inputs.gpu, plan.inputs.model, plan.inputs.slo
    split = recipe.parallelism
    words = recipe.extra_args
    node = plan.inputs.cluster.nodes[0] if plan.inputs.cluster.nodes else None
    found: dict[str, Any] = {
        "tp": split.tp,
        "pp": split.pp,
        "dp": split.dp,
        "world": split.world_size,
        "replicas": recipe.replicas,
        "gpus": recipe.gpu_count,
        "gpus_per_node": max(1, gpu.devices_per_node),
        "nodes": max(1, -(-split.world_size // max(1, gpu.devices_per_node))),
        "max_num_seqs": recipe.max_num_seqs,
        "max_num_batched_tokens": recipe.max_num_batched_tokens,
        "max_model_len": recipe.max_model_len,
        "gpu_memory_utilization": recipe.gpu_memory_utilization,
        "kv": recipe.kv_cache_dtype,
        "precision": recipe.precision,
        "envs": recipe.env,
        "words": words,
        "aiter_env": recipe.env.get("VLLM_ROCM_USE_AITER", "unset"),
        "arch": gpu.arch,
        "kind": gpu.kind,
        "card_fp8": "fp8" in gpu.compute_flop_s,
        "card_mx": "mxfp4" in gpu.compute_flop_s,
        "head_dim": model.head_dim,
        "is_vision": model.modality in ("vision", "omni"),
        "lossy_allowed": plan.inputs.allow_lossy,
        "eager": "--enforce-eager" in words,
        "async_off": "--no-async-scheduling" in words,
        "prefix_caching": "--no-enable-prefix-caching" not in words,
        "numa_bound": "--numa-bind" in words,
        "interactive": slo.tpot_ms is not None,
        "wanted_concurrency": plan.inputs.workload.concurrency or 0,
        "running_planned": max(1, plan.chosen.estimate.concurrency // recipe.replicas),
        "ttft_limit_ms": slo.ttft_ms if slo.ttft_ms is not None else plan.chosen.estimate.ttft_ms.high,
    }
    if slo.tpot_ms is not None:
        found["slo_tpot_ms"] = slo.tpot_ms
    for name, percentile in (
        (
            "ttft",
            slo.ttft_percentile if slo.ttft_ms is not None else 95,
        ),  # without a limit the tail, against what was predicted
        ("tpot", slo.tpot_percentile),
    ):
        level = "ms" if percentile is None else f"p{percentile}"
        if f"{name}_{level}" in known:
            found[f"{name}_held_ms"] = known[f"{name}_{level}"]
            found[f"{name}_level"] = "a mean" if percentile is None else level
    if node is not None and node.devices:
        found |= {"partition_known": node.devices[0].partition is not None, "partition": node.devices[0].partition}
    if node is not None and node.cpu is not None:
        found |= {"host_cores": node.cpu.cores, "numa_nodes": node.cpu.numa_nodes}
    prompt, output = known.get("prompt_p95"), known.get("output_p95")
    length = prompt + output if prompt and output else plan.inputs.workload.total_tokens
    found["mean_length"] = (known.get("prompt_tokens") or 0.0) + (known.get("output_tokens") or 0.0)
    found["slots_by_cache"] = max(1, int(plan.chosen.estimate.memory.kv_cache_tokens // max(1.0, length)))
    if "fullest_share" in known:
        found["imbalance"] = known["fullest_share"] * split.dp * recipe.replicas
    if "read_bytes_s" in known and gpu.bandwidth_bytes_s:
        found["mbu_fraction"] = known["read_bytes_s"] / gpu.bandwidth_bytes_s
    return found


def _traffic(report: KpiReport | None, plan: Plan | None) -> Workload | None:
    """The load that was measured, as a workload; None where nobody told it."""
    if report is None:
        return plan.inputs.workload if plan is not None else None
    engines = 1
    if plan is not None and plan.chosen is not None:
        engines = plan.chosen.recipe.replicas * plan.chosen.recipe.parallelism.dp
    return figures.traffic(report, engines=engines)


def predict(plan: Plan, recipe: Recipe, workload: Workload, calibration: Calibration) -> Estimate | None:
    """What a recipe would do under the measured load; None when it does not fit."""
    inputs = plan.inputs
    if memory.split_problem(inputs.model, recipe.parallelism) is not None:
        return None
    breakdown = memory.breakdown(inputs.model, inputs.gpu, recipe, workload)
    if not breakdown.fits or breakdown.max_sequences < 1:
        return None
    return at_load(inputs.model, inputs.gpu, recipe, workload, inputs.slo, inputs.objective, calibration, breakdown)


def _predicted(plan: Plan, calibration: Calibration, workload: Workload, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the plan promises for the measured load, and what half the devices would do."""
    if plan.chosen is None:
        return {}
    recipe = plan.chosen.recipe
    found: dict[str, Any] = {}
    now = predict(plan, recipe, workload, calibration)
    if now is not None:
        found["tpot_predicted_ms"] = now.tpot_ms.value
        slower = []
        for name, promised in (("ttft_ms", now.ttft_ms), ("tpot_ms", now.tpot_ms)):
            measured = known.get(name)
            if measured is not None and name == "ttft_ms":
                # What requests wait for each other depends on how unevenly they come, which a mean load does not tell; P1 looks at it.
                measured = max(0.0, measured - known.get("queue_ms", 0.0))
            if measured is not None and promised.high > 0:
                slower.append((measured / promised.high, name, measured, promised))
        if slower:
            worst = max(slower, key=lambda each: each[0])
            found |= {
                "slower_by": worst[0],
                "slower_kpi": worst[1],
                "slower_measured": worst[2],
                "slower_low": worst[3].low,
                "slower_high": worst[3].high,
            }
    split = recipe.parallelism
    if split.tp > 1 and recipe.gpu_count:
        half = msgspec.structs.replace(
            recipe,
            parallelism=Parallelism(tp=split.tp // 2, pp=split.pp, dp=split.dp, ep=split.ep),
            gpu_count=recipe.replicas * split.world_size // 2,
        )
        then = predict(plan, half, workload, calibration)
        limit = plan.inputs.slo.tpot_ms
        found["half_fits"] = then is not None
        if then is not None:
            found |= {
                "half_tpot_ms": then.tpot_ms.value,
                "half_meets": limit is None or then.tpot_ms.value <= limit,
            }
    return found
