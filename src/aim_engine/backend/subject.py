"""What the rules are judged over: a command line, its environment, and what is known of release, model and card.

A name that is absent is not known, and rules that ask for it are not judged. What the host and the use add is in `around`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aim_engine.backend import kernels, lint, rules
from aim_engine.backend.kernels import Features
from aim_engine.backend.release import FlagTable, ReleaseFacts, number, tuned
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec, Moe
from aim_engine.recipe.database import Family
from aim_engine.units import GIB

NO_OP = ("--disable-cascade-attn", "--log-config-file", "--ir-op-priority", "--mamba-cache-mode")
"""Arguments without effect, due to be removed. Source: vllm/engine/arg_utils.py@v0.33.0."""
ROOMY_FRACTION = 0.7
"""Share of a card's memory that weights may take and leave room for a cache worth having."""
SMALLEST_CDNA3 = 192 * GIB
"""Memory of an MI300X, the smallest of its kind: what a model is held against where no card is named."""
READY_S = 600
"""VLLM_ENGINE_READY_TIMEOUT_S when it is not set. Source: vllm/envs.py@v0.33.0."""
RUNTIME_GIB = 4
"""What the engine itself takes of a card, in the thresholds for the cache. Source: amd/skills:skills/serving-llms-on-instinct@0a8a3e5."""
STAGING_GIB = (16, 8)
"""Host memory for staging: per rank, and for the server. Engineering judgement, as in the planner's container sizes."""


def of_command(
    args: tuple[str, ...],
    env: Mapping[str, str],
    version: str,
    table: FlagTable,
    *,
    release: ReleaseFacts | None = None,
    model: ModelSpec | None = None,
    family: Family | None = None,
    gpu: Gpu | None = None,
    overlay: Path | None = None,
) -> dict[str, Any]:
    """All names that can be known. `version` may be a release whose tables are not known; `table` is then the nearest."""
    found = _command(args, env, table)
    found |= {
        "version": rules.version_of(version),
        "version_text": version,
        "minor": ".".join(str(part) for part in number(version)[:2]),
    }
    if release is not None:
        found["default_share"] = release.gpu_memory_utilization
        images = [image for image in release.images if image.device == "rocm"]
        found["image_archs"] = ", ".join(images[0].archs) if images else ""
        if images and images[0].rocm is not None:
            found |= {"rocm": rules.version_of(images[0].rocm), "rocm_text": images[0].rocm}
    if family is not None:
        found |= family_names(family)
    if gpu is not None:
        found |= card_names(gpu)
        found |= _limits(found, gpu, release)
    if model is not None:
        found |= model_names(model)
        found["serves_pp"] = model.architecture not in tuned("vllm", overlay).no_pipeline
    if gpu is not None and model is not None and model.moe is not None:
        found |= _tables(found, model, model.moe, gpu, overlay)
    if gpu is not None and model is not None and gpu.kind != "cpu":
        found |= _together(found, model, gpu, version, table, overlay)
    return found


def _command(args: tuple[str, ...], env: Mapping[str, str], table: FlagTable) -> dict[str, Any]:
    given = lint.values(args, table)
    tp, pp, dp, nnodes, dcp = (
        _number(given.get(name), None) or 1
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
        "args": given,
        "words": args,
        "envs": env,
        "tp": tp,
        "pp": pp,
        "dp": dp,
        "world": tp * pp * dp,
        "nnodes": nnodes,
        "dcp": dcp,
        "ep": given.get("enable_expert_parallel") == "true",
        "eplb": given.get("enable_eplb") == "true",
        "dp_local": _number(given.get("data_parallel_size_local"), None),
        "staging_gib": STAGING_GIB[0] * tp * pp * dp // nnodes + STAGING_GIB[1],
        "executor": given.get("distributed_executor_backend", ""),
        "all2all": given.get("all2all_backend", ""),
        "hybrid_lb": given.get("data_parallel_hybrid_lb") == "true",
        "external_lb": given.get("data_parallel_external_lb") == "true",
        "headless": given.get("headless") == "true",
        "block_size": _number(given.get("block_size"), None),
        "attention_backend": given.get("attention_backend", "").upper(),
        "kv": given.get("kv_cache_dtype", "auto"),
        "max_len": _number(given.get("max_model_len"), None),
        "seqs": _number(given.get("max_num_seqs"), None),
        "seqs_text": given.get("max_num_seqs", "1024"),
        "tokens": _number(given.get("max_num_batched_tokens"), None),
        "util": _fraction(given.get("gpu_memory_utilization")),
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
        "draft_tp": _number(str(spec.get("draft_tensor_parallel_size", "")), None),
        "tool_choice": given.get("enable_auto_tool_choice") == "true",
        "tool_parser": given.get("tool_call_parser", ""),
        "chat_template": given.get("chat_template", ""),
        "keyed": "VLLM_API_KEY" in env or "api_key" in given,
        "aiter": env.get("VLLM_ROCM_USE_AITER") == "1",
        "quick_reduce": env.get("VLLM_ROCM_QUICK_REDUCE_QUANTIZATION", "NONE") not in ("", "NONE"),
        "ready_s": _number(env.get("VLLM_ENGINE_READY_TIMEOUT_S"), READY_S),
        "token_given": any(name in env for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")),
        "noop": next((word for word in args if word.partition("=")[0] in NO_OP), None),
    }


def family_names(family: Family) -> dict[str, Any]:
    """What the recipe database says of the model's family."""
    least = family.least_vllm
    return {
        "family_tool_parser": family.tool_parser,
        "family_tokenizer_mode": family.tokenizer_mode,
        "least": rules.version_of(least) if least is not None and number(least) else None,
        "least_text": least or "",
        "draft": family.speculative_default or next(iter(sorted(family.speculative)), None),
        **({"gated": family.gated} if family.gated is not None else {}),
    }


def card_names(gpu: Gpu) -> dict[str, Any]:
    """What is known of the card."""
    links = gpu.links
    return {
        "arch": gpu.arch,
        "card": gpu.name,
        "kind": gpu.kind,
        "memory_gib": gpu.memory_bytes // GIB,
        "node_gpus": gpu.devices_per_node,
        **({"link": links.kind, "full_mesh": links.kind == "xgmi" and links.peers >= 7} if links is not None else {}),
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


def model_names(model: ModelSpec) -> dict[str, Any]:
    """What is known of the model."""
    scheme, moe = model.quantization, model.moe
    return {
        "model_type": model.model_type,
        "architecture": model.architecture,
        "group_size": scheme.group_size if scheme is not None else None,
        "mlp_width": model.intermediate_size,
        "model_id": model.model_id,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "is_moe": model.is_moe,
        "is_mla": model.is_mla,
        "is_sparse": kernels.has_sparse_indexer(model),
        "is_hybrid": model.is_hybrid,
        "is_vision": model.modality in ("vision", "omni"),
        "has_sinks": model.has_sinks,
        "bidirectional": kernels.is_bidirectional(model),
        "needs_code": model.needs_remote_code,
        "model_len": model.max_position_embeddings,
        "method": scheme.method if scheme is not None else "",
        "form": model.format,
        "kv_calibrated": scheme is not None and scheme.kv_cache_dtype == "fp8",
        "expert_width": moe.intermediate_size if moe is not None else 0,
        "total_gib": weight_bytes(model) // GIB,
        "roomy_tp": _roomy(model, SMALLEST_CDNA3),
        "roomy_gib": SMALLEST_CDNA3 // GIB,
        **({"gated": model.gated} if model.gated is not None else {}),
    }


def _together(
    found: Mapping[str, Any], model: ModelSpec, gpu: Gpu, version: str, table: FlagTable, overlay: Path | None
) -> dict[str, Any]:
    """What follows from model, card and release together: the backend we would name, and what speaks against the one named."""
    features = Features(
        tp=found["tp"], precision=_precision(model), kv_cache_dtype=found["kv"], kv_connector=found["connector"]
    )
    best = kernels.choose(model, gpu.arch, version, features, table=table, overlay=overlay)
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
        "least_tp": _roomy(model, gpu.memory_bytes),
        "roomy_tp": _roomy(model, gpu.memory_bytes),
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


def _roomy(model: ModelSpec, memory_bytes: int) -> int:
    """Cards of that size on which the weights leave room for a cache worth having; 8 where that is not enough."""
    return next((n for n in (1, 2, 4, 8) if weight_bytes(model) <= n * memory_bytes * ROOMY_FRACTION), 8)


def weight_bytes(model: ModelSpec) -> int:
    """Bytes of the checkpoint: read from it, else parameters times the bytes of its format."""
    scheme = model.quantization
    return model.weight_bytes or int(model.served_parameters * (scheme.bytes_per_weight if scheme is not None else 2))


def _precision(model: ModelSpec) -> str:
    return {"fp8_block": "fp8", "nf4": "int4", "gguf": "int4"}.get(model.format, model.format)


def _number(text: str | None, default: int | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdecimal() else default


def _takes_nothing(text: str | None) -> bool:
    """Every kind of input beside text is limited to none."""
    limits = _json(text)
    return bool(limits) and all(each == 0 for each in limits.values())


def _fraction(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
