"""What vLLM's rules are judged over; what the host and the use add is in `around`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aim_engine.backend import kernels, lint
from aim_engine.backend.kernels import Features
from aim_engine.backend.line import Line, fraction, roomy, staging_gib, weight_bytes, whole
from aim_engine.backend.release import ReleaseFacts, tuned
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec, Moe
from aim_engine.units import GIB

NO_OP = ("--disable-cascade-attn", "--log-config-file", "--ir-op-priority", "--mamba-cache-mode")
"""Arguments without effect, due to be removed. Source: vllm/engine/arg_utils.py@v0.33.0."""
READY_S = 600
"""VLLM_ENGINE_READY_TIMEOUT_S when it is not set. Source: vllm/envs.py@v0.33.0."""
RUNTIME_GIB = 4
"""What the engine itself takes of a card, in the thresholds for the cache. Source: amd/skills:skills/serving-llms-on-instinct@0a8a3e5."""


def of_command(line: Line) -> dict[str, Any]:
    """All names that can be known."""
    given = lint.values(line.args, line.table)
    found = _command(line, given) | line.names(given, places=2)
    gpu, model, overlay = line.gpu, line.model, line.overlay
    if line.release is not None:
        found["default_share"] = line.release.gpu_memory_utilization
        found["image_archs"] = ", ".join(line.images[0].archs) if line.images else ""
    if gpu is not None:
        found |= _limits(found, gpu, line.release)
    if model is not None:
        found["serves_pp"] = model.architecture not in tuned("vllm", overlay).no_pipeline
    if gpu is not None and model is not None and model.moe is not None:
        found |= _tables(found, model, model.moe, gpu, overlay)
    if gpu is not None and model is not None and gpu.kind != "cpu":
        found |= _together(found, model, gpu, line)
    return found


def _command(line: Line, given: Mapping[str, str]) -> dict[str, Any]:
    args, env = line.args, line.env
    tp, pp, dp, nnodes, dcp = (
        whole(given.get(name)) or 1
        for name in (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "data_parallel_size",
            "nnodes",
            "decode_context_parallel_size",
        )
    )
    spec = _json(given.get("speculative_config"))
    method = str(spec.get("method", "draft" if spec else ""))
    return {
        "tp": tp,
        "pp": pp,
        "dp": dp,
        "world": tp * pp * dp,
        "nnodes": nnodes,
        "dcp": dcp,
        "ep": given.get("enable_expert_parallel") == "true",
        "eplb": given.get("enable_eplb") == "true",
        "dp_local": whole(given.get("data_parallel_size_local")),
        "staging_gib": staging_gib(tp * pp * dp, nnodes),
        "executor": given.get("distributed_executor_backend", ""),
        "all2all": given.get("all2all_backend", ""),
        "hybrid_lb": given.get("data_parallel_hybrid_lb") == "true",
        "external_lb": given.get("data_parallel_external_lb") == "true",
        "headless": given.get("headless") == "true",
        "block_size": whole(given.get("block_size")),
        "attention_backend": given.get("attention_backend", "").upper(),
        "kv": given.get("kv_cache_dtype", "auto"),
        "max_len": whole(given.get("max_model_len")),
        "seqs": whole(given.get("max_num_seqs")),
        "seqs_text": given.get("max_num_seqs", "1024"),
        "tokens": whole(given.get("max_num_batched_tokens")),
        "util": fraction(given.get("gpu_memory_utilization")),
        "dtype": given.get("dtype", ""),
        "eager": given.get("enforce_eager") == "true",
        "chunked": given.get("enable_chunked_prefill", "true") == "true",
        "prefix_caching": given.get("enable_prefix_caching", "true") == "true",
        "connector": "kv_transfer_config" in given,
        "lora": given.get("enable_lora") == "true",
        "text_only": "language_model_only" in given,
        "no_images": _takes_nothing(given.get("limit_mm_per_prompt")),
        "numa_bind": given.get("numa_bind") == "true" or "numactl" in args,
        "spec_method": method,
        "draft_tp": whole(str(spec.get("draft_tensor_parallel_size", ""))),
        "tool_choice": given.get("enable_auto_tool_choice") == "true",
        "tool_parser": given.get("tool_call_parser", ""),
        "chat_template": given.get("chat_template", ""),
        "keyed": "VLLM_API_KEY" in env or "api_key" in given,
        "aiter": env.get("VLLM_ROCM_USE_AITER") == "1",
        "quick_reduce": env.get("VLLM_ROCM_QUICK_REDUCE_QUANTIZATION", "NONE") not in ("", "NONE"),
        "ready_s": whole(env.get("VLLM_ENGINE_READY_TIMEOUT_S"), READY_S),
        "noop": next((word for word in args if word.partition("=")[0] in NO_OP), None),
    }


def _limits(found: Mapping[str, Any], gpu: Gpu, release: ReleaseFacts | None) -> dict[str, Any]:
    """What the engine takes of the card, and the limits it sets itself where none are given."""
    if release is None:
        return {}
    kind = "cpu" if gpu.kind == "cpu" else "gpu"
    fitting = [d for d in release.batch_defaults if d.device == kind and gpu.memory_bytes >= d.at_least_bytes]
    best = max(fitting, key=lambda entry: entry.at_least_bytes)
    share = found["util"] if found["util"] is not None else release.gpu_memory_utilization
    return {
        "default_tokens": best.max_num_batched_tokens,
        "default_seqs": best.max_num_seqs,
        "wanted_gib": round(share * gpu.memory_bytes / GIB, 1),
    }


def _together(found: Mapping[str, Any], model: ModelSpec, gpu: Gpu, line: Line) -> dict[str, Any]:
    """What follows from model, card and release together: the backend we would name, and what speaks against the one named."""
    features = Features(
        tp=found["tp"], precision=_precision(model), kv_cache_dtype=found["kv"], kv_connector=found["connector"]
    )
    version, overlay = line.version, line.overlay
    best = kernels.choose(model, gpu.arch, version, features, table=line.table, overlay=overlay)
    named = found["attention_backend"]
    against = None
    if named:
        against = kernels.objection(
            named,
            model,
            gpu.arch,
            version,
            aiter_on=found["aiter"],
            kv_cache_dtype=found["kv"],
            block_size=found["block_size"],
            kv_connector=found["connector"],
            overlay=overlay,
        )
    longest = found["max_len"] or model.max_position_embeddings
    ranks = found["world"] if found["ep"] else found["tp"] * found["pp"]
    left = found["wanted_gib"] - weight_bytes(model) / ranks / GIB - RUNTIME_GIB if "wanted_gib" in found else None
    return {
        **({} if left is None else {"kv_left_gib": round(left, 1)}),
        "least_tp": roomy(model, gpu.memory_bytes),
        "roomy_tp": roomy(model, gpu.memory_bytes),
        "roomy_gib": gpu.memory_bytes // GIB,
        "best_attention": best.attention_backend,
        "fixed_block": best.block_size if best.block_size not in (None, 64, 1) else None,
        "objection": against,
        "fallback": kernels.falls_back(
            model,
            gpu.arch,
            kv_cache_dtype=found["kv"],
            block_size=found["block_size"],
            max_model_len=longest,
            overlay=overlay,
        ),
    }


def _tables(found: Mapping[str, Any], model: ModelSpec, moe: Moe, gpu: Gpu, overlay: Path | None) -> dict[str, Any]:
    """The table of expert kernels that the engine would look for, and whether it has one."""
    ranks = found["tp"] * found["dp"]
    experts, width = (
        (moe.experts // ranks, moe.intermediate_size)
        if found["ep"]
        else (moe.experts, moe.intermediate_size // found["tp"])
    )
    form = {"fp8": "fp8_w8a8", "fp8_block": "fp8_w8a8_block", "int8": "int8_w8a8", "int4": "int4_w4a16"}.get(
        model.format, "16bit"
    )
    return {
        "experts": experts,
        "expert_rank_width": width,
        "moe_dtype": form,
        "moe_tuned": (gpu.name, experts, width, form) in tuned("vllm", overlay).experts,
    }


def _precision(model: ModelSpec) -> str:
    return {"fp8_block": "fp8", "nf4": "int4", "gguf": "int4"}.get(model.format, model.format)


def _takes_nothing(text: str | None) -> bool:
    """Every kind of input beside text is limited to none."""
    limits = _json(text)
    return bool(limits) and all(each == 0 for each in limits.values())


def _json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
