"""What SGLang's rules are judged over: a command line, its environment, and what is known of release, model and card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_engine.backend import lint, rules, sglang_kernels
from aim_engine.backend.release import FlagTable, ReleaseFacts, number
from aim_engine.backend.subject import STAGING_GIB, card_names, family_names, model_names, weight_bytes
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.database import Family
from aim_engine.units import GIB


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
) -> dict[str, Any]:
    """All names that can be known. Sizes have the names that the rules of every engine use."""
    given = lint.values(args, table)
    # The first spelling of an argument became its second over time, and with it the name that the parser gives it.
    tp, pp = _size(given, "tp_size", "tensor_parallel_size"), _size(given, "pp_size", "pipeline_parallel_size")
    attention_dp = (
        _size(given, "attn_dp_size") if "attn_dp_size" in given else _size(given, "dp_size", "data_parallel_size")
    )
    inside = "attn_dp_size" in given or any("enable-dp-attention" in word for word in args)
    ep, nnodes = _size(given, "ep_size", "expert_parallel_size"), _size(given, "nnodes")
    world = tp * pp * (1 if inside else attention_dp)
    found: dict[str, Any] = {
        "version": rules.version_of(version),
        "version_text": version,
        "minor": ".".join(str(part) for part in number(version)[:3]),
        "args": given,
        "words": args,
        "envs": env,
        "tp": tp,
        "pp": pp,
        "dp": attention_dp if inside else 1,
        "servers": 1 if inside else attention_dp,
        "ep_size": ep,
        "ep": ep > 1,
        "world": world,
        "nnodes": nnodes,
        "executor": "",
        "staging_gib": STAGING_GIB[0] * world // nnodes + STAGING_GIB[1],
        "attention_backend": given.get("attention_backend", ""),
        "kv": given.get("kv_cache_dtype", "auto"),
        "max_len": _whole(given.get("context_length")),
        "seqs": _whole(given.get("max_running_requests")),
        "tokens": _whole(given.get("chunked_prefill_size")),
        "util": _share(given.get("mem_fraction_static")),
        "page_size": _whole(given.get("page_size")),
        "quantization": given.get("quantization", ""),
        "dtype": given.get("dtype", ""),
        "tool_parser": given.get("tool_call_parser", ""),
        "spec_method": given.get("speculative_algorithm", ""),
        "radix": "disable_radix_cache" not in given,
        "aiter": env.get("SGLANG_USE_AITER", "1") not in ("0", "false", "False"),
        "keyed": "api_key" in given,
        "host": given.get("host", "127.0.0.1"),
        "model_path": given.get("model_path", given.get("model", "")),
        "token_given": any(name in env for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")),
    }
    if release is not None:
        images = [image for image in release.images if image.device == "rocm"]
        found["image_archs"] = ", ".join(sorted({arch for image in images for arch in image.archs}))
        if images and images[0].rocm is not None:
            found |= {"rocm": rules.version_of(images[0].rocm), "rocm_text": images[0].rocm}
    if family is not None:
        found |= family_names(family)
    if gpu is not None:
        found |= card_names(gpu)
    if model is not None:
        found |= model_names(model)
        found["heads_a_rank"] = model.heads // tp if model.heads % tp == 0 else 0
        found["latent_kernels"] = sglang_kernels.load().latent_heads
        if table.architectures:
            found["has_class"] = model.architecture in table.architectures
    if gpu is not None and model is not None and gpu.kind != "cpu":
        found["objection"] = sglang_kernels.objection(model, gpu, "")
        if found["util"] is not None:
            left = found["util"] * gpu.memory_bytes - weight_bytes(model) / (tp * pp)
            found["kv_left_gib"] = round(left / GIB, 1)
            found["wanted_gib"] = round(found["util"] * gpu.memory_bytes / GIB, 1)
    return found


def _size(given: Mapping[str, str], *names: str) -> int:
    return next((size for name in names if (size := _whole(given.get(name))) is not None and size > 0), 1)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None


def _share(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
