"""What SGLang's rules are judged over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_engine.backend import lint, sglang_kernels
from aim_engine.backend.line import Line, fraction, staging_gib, weight_bytes, whole
from aim_engine.units import GIB


def of_command(line: Line) -> dict[str, Any]:
    """All names that can be known. Sizes have the names that the rules of every engine use."""
    given = lint.values(line.args, line.table)
    args, env, model, gpu = line.args, line.env, line.model, line.gpu
    # The first spelling of an argument became its second over time, and with it the name that the parser gives it.
    tp, pp = _size(given, "tp_size", "tensor_parallel_size"), _size(given, "pp_size", "pipeline_parallel_size")
    attention_dp = (
        _size(given, "attn_dp_size") if "attn_dp_size" in given else _size(given, "dp_size", "data_parallel_size")
    )
    inside = "attn_dp_size" in given or any("enable-dp-attention" in word for word in args)
    ep, nnodes = _size(given, "ep_size", "expert_parallel_size"), _size(given, "nnodes")
    world = tp * pp * (1 if inside else attention_dp)
    found: dict[str, Any] = {
        **line.names(given, places=3),
        "tp": tp,
        "pp": pp,
        "dp": attention_dp if inside else 1,
        "servers": 1 if inside else attention_dp,
        "ep_size": ep,
        "ep": ep > 1,
        "world": world,
        "nnodes": nnodes,
        "executor": "",
        "staging_gib": staging_gib(world, nnodes),
        "attention_backend": given.get("attention_backend", ""),
        "kv": given.get("kv_cache_dtype", "auto"),
        "max_len": whole(given.get("context_length")),
        "seqs": whole(given.get("max_running_requests")),
        "tokens": whole(given.get("chunked_prefill_size")),
        "util": fraction(given.get("mem_fraction_static")),
        "page_size": whole(given.get("page_size")),
        "quantization": given.get("quantization", ""),
        "dtype": given.get("dtype", ""),
        "tool_parser": given.get("tool_call_parser", ""),
        "spec_method": given.get("speculative_algorithm", ""),
        "radix": "disable_radix_cache" not in given,
        "aiter": env.get("SGLANG_USE_AITER", "1") not in ("0", "false", "False"),
        "keyed": "api_key" in given,
        "host": given.get("host", "127.0.0.1"),
        "model_path": given.get("model_path", given.get("model", "")),
    }
    if line.release is not None:
        found["image_archs"] = ", ".join(sorted({arch for image in line.images for arch in image.archs}))
    if model is not None:
        found["heads_a_rank"] = model.heads // tp if model.heads % tp == 0 else 0
        found["latent_kernels"] = sglang_kernels.load().latent_heads
        if line.table.architectures:
            found["has_class"] = model.architecture in line.table.architectures
    if gpu is not None and model is not None and gpu.kind != "cpu":
        found["objection"] = sglang_kernels.objection(model, gpu, "")
        if found["util"] is not None:
            left = found["util"] * gpu.memory_bytes - weight_bytes(model) / (tp * pp)
            found["kv_left_gib"] = round(left / GIB, 1)
            found["wanted_gib"] = round(found["util"] * gpu.memory_bytes / GIB, 1)
    return found


def _size(given: Mapping[str, str], *names: str) -> int:
    return next((size for name in names if (size := whole(given.get(name))) is not None and size > 0), 1)
