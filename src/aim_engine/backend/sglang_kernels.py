"""SGLang's joint choice on AMD cards: attention, memory share, all-reduce and weights, from `engines/sglang/kernels.yaml`.

SGLang names the right attention backend by itself; saying it makes the plan's memory share certain, which depends on it.
"""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec

from aim_engine import facts
from aim_engine.backend.base import Reason
from aim_engine.backend.kernels import Computed, has_sparse_indexer
from aim_engine.hardware.gpu import Gpu, Provenance
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.recipe import Recipe

LONG_CONTEXT = 8192
"""Beyond it AITER's attention gets a part of the memory share. Source: attention_hook.py of sglang 0.5.23."""


class Switch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What AMD's engineers serve a kind of model with."""

    archs: tuple[str, ...]
    min_ranks: int = 1
    env: dict[str, str] = {}
    lossy_env: dict[str, str] = {}
    args: tuple[str, ...] = ()
    why: str
    source: str


class Kernels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `engines/sglang/kernels.yaml`."""

    provenance: Provenance
    archs: tuple[str, ...]
    """Device targets that the images are built for."""
    long_context_share: float
    latent_heads: tuple[int, ...]
    """Heads per rank for which AITER's latent attention has kernels."""
    methods: tuple[str, ...]
    """Checkpoint formats by their makers' name that run on ROCm."""
    weights: dict[str, dict[str, Computed]]
    switches: tuple[Switch, ...]


class Parsers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `engines/sglang/parsers.yaml`: the recipe database's names in this engine's words."""

    tool: dict[str, str]
    reasoning: dict[str, str]
    provenance: Provenance


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is told, and why."""

    attention_backend: str | None
    env: dict[str, str]
    args: tuple[str, ...]
    reasons: tuple[Reason, ...]


@functools.cache
def load(overlay: Path | None = None) -> Kernels:
    """The kernel facts."""
    return facts.load("engines/sglang/kernels.yaml", Kernels, overlay)


@functools.cache
def parsers(overlay: Path | None = None) -> Parsers:
    """Names of parsers."""
    return facts.load("engines/sglang/parsers.yaml", Parsers, overlay)


def long_context_share(arch: str) -> float:
    """What is left of the memory share when AITER's attention serves long contexts; 1 where AITER is not built."""
    found = load()
    return found.long_context_share if arch in found.archs else 1.0


def said_share(recipe: Recipe) -> float:
    """The `--mem-fraction-static` that gives the recipe its share: the engine cuts it for AITER with a long context."""
    share = recipe.gpu_memory_utilization
    if recipe.attention_backend != "triton" and recipe.max_model_len > LONG_CONTEXT:
        share /= load().long_context_share
    return round(min(share, 0.98), 3)


def objection(model: ModelSpec, gpu: Gpu, precision: str) -> str | None:
    """Why this card cannot serve the model in a format; None when it can."""
    found = load()
    if gpu.arch not in found.archs:
        return f"SGLang's ROCm images are built for {', '.join(found.archs)}, not for {gpu.name} ({gpu.arch})"
    if precision == "kv_fp8":
        return None
    method = model.quantization.method if model.quantization is not None else None
    if method is not None and method not in found.methods:
        return f"SGLang does not take {method} checkpoints on ROCm; it takes {', '.join(found.methods)}"
    form = model.quantization.format if model.quantization is not None else precision
    table = found.weights.get("quark_mxfp4" if (method, form) == ("quark", "mxfp4") else form, {})
    computed = table.get(gpu.arch, Computed(how="native"))
    return f"{computed.note} on {gpu.name} ({gpu.arch})" if computed.how == "none" else None


def choose(model: ModelSpec, gpu: Gpu, recipe: Recipe, *, allow_lossy: bool) -> Choice:
    """What `recipe` of `model` is started with on `gpu`."""
    found = load()
    split = recipe.parallelism
    attention, why = _attention(found, model, split.tp)
    source = found.provenance.source
    reasons = [Reason(topic="attention", choice=attention or "the engine's order", why=why, source=source)]
    env: dict[str, str] = {}
    args: list[str] = []
    for switch in found.switches:
        if gpu.arch not in switch.archs or split.tp * split.dp < switch.min_ranks:
            continue
        taken = switch.lossy_env if allow_lossy and switch.lossy_env else switch.env
        env |= {name: value for name, value in taken.items() if name not in env}
        args += switch.args
        shown = " ".join((*(f"{name}={value}" for name, value in taken.items()), *switch.args))
        lossy = bool(switch.lossy_env) and allow_lossy
        reasons.append(Reason(topic="switches", choice=shown, why=switch.why, source=switch.source, lossy=lossy))
    if attention != "triton" and recipe.max_model_len > LONG_CONTEXT:
        share = f"{said_share(recipe):g} said, {recipe.gpu_memory_utilization:g} kept"
        why = f"with AITER the engine keeps {found.long_context_share:g} of it for contexts beyond {LONG_CONTEXT:,} tokens"
        reasons.append(Reason(topic="memory share", choice=share, why=why, source=source))
    reasons.append(_cache(model, recipe, source))
    return Choice(attention_backend=attention, env=env, args=tuple(args), reasons=tuple(reasons))


def _attention(found: Kernels, model: ModelSpec, tp: int) -> tuple[str | None, str]:
    """The backend to name, None to leave it to the engine, and why."""
    if has_sparse_indexer(model):
        return None, "sparse attention has backends of its own, chosen by the model's class"
    if model.is_hybrid or model.encoder_only:
        return None, "the model's class chooses backends for its kinds of layers"
    if model.is_mla:
        heads = max(1, model.heads // tp)
        if heads in found.latent_heads:
            return "aiter", f"AITER's latent attention has kernels for {heads} heads a rank"
        return "triton", f"AITER's latent attention lacks kernels for {heads} heads a rank"
    return "aiter", "AITER's attention is the engine's own choice on ROCm"


def _cache(model: ModelSpec, recipe: Recipe, source: str) -> Reason:
    scheme = model.quantization
    calibrated = scheme is not None and scheme.kv_cache_dtype == "fp8"
    if recipe.kv_cache_dtype == "auto":
        return Reason(topic="KV cache", choice="auto", why="as the checkpoint says, else 16 bit", source=source)
    why = "the checkpoint has scales for it" if calibrated else "allowed by the user; scales default to 1.0"
    return Reason(topic="KV cache", choice=recipe.kv_cache_dtype, why=why, source=source, lossy=not calibrated)
