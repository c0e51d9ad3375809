"""One choice out of many that hang together: attention, KV cache format, block size, expert kernels, AITER and weights.

Each limits the others: AITER attention needs AITER on, a head width and a card; an FP8 cache needs a backend that reads it;
a block size is valid for one backend and not for another. `choose` weighs them once per model, card, release and split, from
`engines/vllm/kernels.yaml` and `switches.yaml`, and says of each part why.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine import facts
from aim_engine.backend.base import Reason
from aim_engine.backend.release import FlagTable, number
from aim_engine.hardware.gpu import Provenance
from aim_engine.model.spec import LayerGroup, ModelSpec
from aim_engine.recipe.recipe import Recipe

BIDIRECTIONAL = ("gemma3", "gemma3n")
"""Model types whose image tokens attend both ways. Source: vllm/model_executor/models supports_mm_prefix users, v0.33.0."""


class Aiter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where AITER has kernels, and from which release."""

    archs: tuple[str, ...]
    since: str
    names_attention: bool
    """Its attention must be named, since the engine's own order prefers another."""
    kv_cache: tuple[str, ...] | None = None
    why: str
    source: str


class Attention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attention backend and what it takes."""

    name: str
    kind: Literal["heads", "latent", "sparse"]
    archs: tuple[str, ...] | None = None
    needs_aiter: bool = False
    heads: tuple[int, ...] | None = None
    least_head: int = 0
    kv_cache: tuple[str, ...]
    block_multiple: int | None = None
    preferred_block: int | None = None
    sinks_since: str | None = None
    kv_connector: bool = True
    decoder_only: bool = False
    image_prefix: bool = False
    avoid: dict[Literal["sinks", "window", "hybrid"], str] = {}
    """Traits of a model for which another backend is preferred, with the reason."""
    why: str
    source: str


class NativePaged(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ROCM_ATTN's own paged kernel takes on some archs."""

    archs: tuple[str, ...]
    heads: tuple[int, ...]
    blocks: tuple[int, ...]
    gqa: tuple[int, int]
    longest: int
    kv_cache: tuple[str, ...]


class Computed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a format is computed on an arch."""

    how: Literal["native", "converted", "emulated", "none"]
    note: str = ""


class Kernels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `engines/vllm/kernels.yaml`."""

    provenance: Provenance
    aiter: tuple[Aiter, ...]
    attention: tuple[Attention, ...]
    native_paged: tuple[NativePaged, ...]
    weights: dict[str, dict[str, Computed]]
    kv_fp8: dict[str, Computed]


class Switch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `engines/vllm/switches.yaml`: what a family of models is served with."""

    match: str
    archs: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    releases: tuple[str, ...] | None = None
    """Minor releases such as 0.21; None means all."""
    min_tp: int = 1
    max_tp: int | None = None
    heads_per_rank_below: int | None = None
    attention_backend: str | None = None
    moe_backend: str | None = None
    linear_backend: str | None = None
    block_size: int | None = None
    env: dict[str, str] = {}
    lossy_env: dict[str, str] = {}
    why: str
    source: str = "vllm-project/vllm:recipes/models@v0.33.0"


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice depends on beside model, card and release."""

    tp: int = 1
    precision: str = "bf16"
    online_quantization: str | None = None
    kv_cache_dtype: str = "auto"
    kv_connector: bool = False
    allow_lossy: bool = False

    @classmethod
    def of(cls, recipe: Recipe, *, allow_lossy: bool) -> Features:
        """Those of a recipe."""
        return cls(
            tp=recipe.parallelism.tp,
            precision=recipe.precision,
            online_quantization=recipe.online_quantization,
            kv_cache_dtype=recipe.kv_cache_dtype,
            kv_connector="--kv-transfer-config" in recipe.extra_args,
            allow_lossy=allow_lossy,
        )


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is told about kernels, and why."""

    attention_backend: str | None
    """None leaves the engine's order, which is then right."""
    block_size: int | None
    moe_backend: str | None
    linear_backend: str | None
    env: dict[str, str]
    reasons: tuple[Reason, ...]


@functools.cache
def load(overlay: Path | None = None) -> Kernels:
    """The kernel facts."""
    return facts.load("engines/vllm/kernels.yaml", Kernels, overlay)


@functools.cache
def switches(overlay: Path | None = None) -> tuple[Switch, ...]:
    """What families of models are served with."""
    return facts.load("engines/vllm/switches.yaml", tuple[Switch, ...], overlay)


def choose(
    model: ModelSpec, arch: str, version: str, features: Features, *, table: FlagTable, overlay: Path | None = None
) -> Choice:
    """Kernels for `model` on a card of `arch` in one release, whose arguments and variables are `table`."""
    known = load(overlay)
    fitting = [entry for entry in switches(overlay) if _applies(entry, model, arch, version, features)]
    reasons: list[Reason] = [_weights_reason(known, arch, features)]
    built = _aiter(known, arch, version, features)
    env, env_reasons = _environment(fitting, table, built, allow_lossy=features.allow_lossy)
    aiter_on = built is not None and env.get("VLLM_ROCM_USE_AITER") != "0"
    reasons += env_reasons
    named = next((entry for entry in fitting if entry.attention_backend is not None), None)
    attention, block, reason = _attention(known, model, arch, version, features, built if aiter_on else None, named)
    reasons.append(reason)
    fixed = next((entry for entry in fitting if entry.block_size is not None), None)
    if fixed is not None:
        block = fixed.block_size
        reasons.append(Reason(topic="block size", choice=str(block), why=fixed.why, source=fixed.source))
    moe, moe_reasons = _backend(fitting, "moe_backend", "--moe-backend", "experts", table, aiter_on=aiter_on)
    if moe is None and model.is_moe:
        moe_reasons = [_expert_reason(aiter_on=aiter_on and env.get("VLLM_ROCM_USE_AITER_MOE") != "0")]
    linear, linear_reasons = _backend(fitting, "linear_backend", "--linear-backend", "linear", table, aiter_on=aiter_on)
    reasons += [*(moe_reasons if model.is_moe else ()), *linear_reasons, _cache_reason(known, model, arch, features)]
    return Choice(
        attention_backend=attention,
        block_size=block,
        moe_backend=moe if model.is_moe else None,
        linear_backend=linear,
        env=env,
        reasons=tuple(reasons),
    )


def computed(form: str, arch: str, overlay: Path | None = None) -> Computed:
    """How weights of a format are computed on `arch`; 16-bit formats and unlisted ones are native."""
    table = load(overlay).weights.get(form)
    return _by_arch(table, arch) if table is not None else Computed(how="native")


def computed_kv_fp8(arch: str, overlay: Path | None = None) -> Computed:
    """How an FP8 KV cache is read on `arch`."""
    return _by_arch(load(overlay).kv_fp8, arch)


def objection(
    name: str,
    model: ModelSpec,
    arch: str,
    version: str,
    *,
    aiter_on: bool,
    kv_cache_dtype: str = "auto",
    block_size: int | None = None,
    kv_connector: bool = False,
    overlay: Path | None = None,
) -> str | None:
    """Why the attention backend `name` cannot serve this, None when it can or is not one we know."""
    entry = next((each for each in load(overlay).attention if each.name == name.upper()), None)
    if entry is None:
        return None
    widths = sorted({group.head_dim_k for group in attending(model)})
    if entry.archs is not None and arch not in entry.archs:
        return f"{entry.name} is built for {', '.join(entry.archs)}, not {arch}"
    if entry.needs_aiter and not aiter_on:
        return f"{entry.name} needs VLLM_ROCM_USE_AITER=1"
    if (entry.kind == "heads") == model.is_mla:
        return f"{entry.name} is {'not ' if entry.kind == 'heads' else ''}for latent attention"
    if entry.kind == "heads":
        wrong = [w for w in widths if w < entry.least_head or (entry.heads is not None and w not in entry.heads)]
        if wrong:
            return f"{entry.name} has no kernel for heads of {', '.join(map(str, wrong))}"
    if kv_cache_dtype not in entry.kv_cache:
        return f"{entry.name} does not read a KV cache in {kv_cache_dtype}"
    if model.has_sinks and (entry.sinks_since is None or number(version) < number(entry.sinks_since)):
        return f"{entry.name} has no attention sinks in vLLM {version}"
    if is_bidirectional(model) and not entry.image_prefix and entry.kind == "heads":
        return f"{entry.name} cannot let image tokens attend both ways"
    if model.encoder_only and entry.decoder_only:
        return f"{entry.name} serves decoders only"
    if block_size is not None and entry.block_multiple is not None and block_size % entry.block_multiple:
        return f"{entry.name} needs a block size that is a multiple of {entry.block_multiple}, not {block_size}"
    if kv_connector and not entry.kv_connector:
        return f"{entry.name} cannot hand its KV cache to a connector"
    return None


def falls_back(
    model: ModelSpec,
    arch: str,
    *,
    kv_cache_dtype: str,
    block_size: int | None,
    max_model_len: int,
    overlay: Path | None = None,
) -> str | None:
    """Why ROCM_ATTN would run its slower Triton path instead of its own kernel; None when it does not."""
    if model.is_mla or not attending(model):
        return None
    for entry in load(overlay).native_paged:
        if arch not in entry.archs:
            continue
        for group in attending(model):
            ratio = group.heads // max(1, group.kv_heads)
            if group.head_dim_k not in entry.heads:
                return f"heads of {group.head_dim_k}"
            if not entry.gqa[0] <= ratio <= entry.gqa[1]:
                return f"{ratio} heads to one KV head"
            if group.window_tokens is not None:
                return "a sliding window"
        if model.has_sinks:
            return "attention sinks"
        if block_size is not None and block_size not in entry.blocks:
            return f"blocks of {block_size}"
        if max_model_len > entry.longest:
            return f"a context beyond {entry.longest:,} tokens"
        if kv_cache_dtype not in entry.kv_cache:
            return f"a KV cache in {kv_cache_dtype}"
    return None


def attending(model: ModelSpec) -> list[LayerGroup]:
    """The layer groups that keep keys and values per head."""
    return [group for group in model.groups if group.kv_heads and group.kind in ("full", "sliding", "chunked")]


def is_bidirectional(model: ModelSpec) -> bool:
    """Image tokens attend both ways."""
    return model.modality in ("vision", "omni") and model.model_type.startswith(BIDIRECTIONAL)


def has_sparse_indexer(model: ModelSpec) -> bool:
    """Latent attention that reads selected tokens only."""
    return any(group.indexer_dim for group in model.groups)


def _applies(entry: Switch, model: ModelSpec, arch: str, version: str, features: Features) -> bool:
    tp = features.tp
    return (
        (entry.archs is None or arch in entry.archs)
        and (entry.precisions is None or features.precision in entry.precisions)
        and entry.min_tp <= tp <= (entry.max_tp or tp)
        and (entry.releases is None or any(_is_minor(version, minor) for minor in entry.releases))
        and (entry.heads_per_rank_below is None or model.heads // tp < entry.heads_per_rank_below)
        and _matcher(entry.match).search(model.model_id) is not None
    )


@functools.cache
def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _is_minor(version: str, minor: str) -> bool:
    return number(version)[:2] == number(minor)[:2]


def _aiter(known: Kernels, arch: str, version: str, features: Features) -> Aiter | None:
    for entry in known.aiter:
        if (
            arch in entry.archs
            and number(version) >= number(entry.since)
            and (entry.kv_cache is None or features.kv_cache_dtype in entry.kv_cache)
        ):
            return entry
    return None


def _environment(
    fitting: list[Switch], table: FlagTable, built: Aiter | None, *, allow_lossy: bool
) -> tuple[dict[str, str], list[Reason]]:
    """The variables and their reasons."""
    env: dict[str, str] = {}
    reasons: list[Reason] = []
    for entry in fitting:
        new = {k: v for k, v in entry.env.items() if k not in env and _read_by(table, k)}
        lossy = {k: v for k, v in entry.lossy_env.items() if k not in {**env, **new} and _read_by(table, k)}
        env |= new | (lossy if allow_lossy else {})
        shown = {**new, **(lossy if allow_lossy else {})}
        if shown:
            text = " ".join(f"{name}={value}" for name, value in shown.items())
            is_lossy = bool(lossy) and allow_lossy
            reasons.append(Reason(topic="switches", choice=text, why=entry.why, source=entry.source, lossy=is_lossy))
        if lossy and not allow_lossy:
            text = " ".join(f"{name}={value}" for name, value in lossy.items())
            why = f"{entry.why} sets it; it changes answers and was not allowed (--allow-lossy)"
            reasons.append(Reason(topic="left out", choice=text, why=why, source=entry.source, lossy=True))
    if built is not None and "VLLM_ROCM_USE_AITER" not in env:
        env = {"VLLM_ROCM_USE_AITER": "1", **env}
        reasons.insert(0, Reason(topic="AITER", choice="on", why=built.why, source=built.source))
    return env, reasons


def _read_by(table: FlagTable, name: str) -> bool:
    return not name.startswith("VLLM_") or name in table.env


def _attention(
    known: Kernels,
    model: ModelSpec,
    arch: str,
    version: str,
    features: Features,
    built: Aiter | None,
    named: Switch | None,
) -> tuple[str | None, int | None, Reason]:
    """The backend to name, the block size it prefers, and why."""
    engine_order = "the engine's order"
    if model.is_mla and named is None:
        kind = "sparse" if has_sparse_indexer(model) else "latent"
        first = next(
            e
            for e in known.attention
            if e.kind == kind and (built is not None or not e.needs_aiter or kind == "sparse")
        )
        return (
            None,
            None,
            Reason(topic="attention", choice=f"{first.name} by {engine_order}", why=first.why, source=first.source),
        )
    if named is not None and named.attention_backend is not None:
        reason = _objects(named.attention_backend, model, arch, version, features, built)
        if reason is None:
            return (
                named.attention_backend,
                None,
                Reason(topic="attention", choice=named.attention_backend, why=named.why, source=named.source),
            )
    if built is None or not built.names_attention or not attending(model) or model.encoder_only:
        why = built.why if built is not None and attending(model) else "nothing better is built for this card and model"
        return None, None, Reason(topic="attention", choice=engine_order, why=why, source=known.provenance.source)
    passed: list[str] = []
    for entry in known.attention:
        if entry.kind != "heads":
            continue
        against = _objects(entry.name, model, arch, version, features, built) or _avoided(entry, model)
        if against is None:
            why = "; ".join((entry.why, *passed))
            return (
                entry.name,
                entry.preferred_block if model.has_sinks else None,
                Reason(topic="attention", choice=entry.name, why=why, source=entry.source),
            )
        passed.append(f"not {entry.name}: {against}" if entry.name not in against else against)
    return (
        None,
        None,
        Reason(topic="attention", choice=engine_order, why="; ".join(passed), source=known.provenance.source),
    )


def _objects(
    name: str, model: ModelSpec, arch: str, version: str, features: Features, built: Aiter | None
) -> str | None:
    return objection(
        name,
        model,
        arch,
        version,
        aiter_on=built is not None,
        kv_cache_dtype=features.kv_cache_dtype,
        kv_connector=features.kv_connector,
    )


def _avoided(entry: Attention, model: ModelSpec) -> str | None:
    traits: tuple[tuple[Literal["sinks", "window", "hybrid"], bool], ...] = (
        ("sinks", model.has_sinks),
        ("hybrid", model.is_hybrid),
        ("window", any(group.kind != "full" for group in attending(model))),
    )
    return next((entry.avoid[trait] for trait, has in traits if has and trait in entry.avoid), None)


def _backend(
    fitting: list[Switch],
    field: Literal["moe_backend", "linear_backend"],
    flag: str,
    topic: str,
    table: FlagTable,
    *,
    aiter_on: bool,
) -> tuple[str | None, list[Reason]]:
    for entry in fitting:
        value: str | None = getattr(entry, field)
        if value is None or not aiter_on:
            continue
        choices = next((each.choices for each in table.flags if flag in each.flags), ())
        if choices is not None and value not in choices:
            return None, []
        return value, [Reason(topic=topic, choice=value, why=entry.why, source=entry.source)]
    return None, []


def _expert_reason(*, aiter_on: bool) -> Reason:
    return Reason(
        topic="experts",
        choice="AITER" if aiter_on else "Triton",
        why="AITER's experts come with VLLM_ROCM_USE_AITER" if aiter_on else "AITER's experts are off here",
        source="vllm-project/vllm:vllm/model_executor/layers/fused_moe/oracle@v0.33.0",
    )


def _weights_reason(known: Kernels, arch: str, features: Features) -> Reason:
    table = known.weights.get(features.precision)
    found = _by_arch(table, arch) if table is not None else Computed(how="native")
    note = f"{found.how} on {arch}" + (f": {found.note}" if found.note else "")
    online = features.online_quantization is not None
    if online:
        note += "; made on load, which changes answers"
    return Reason(topic="weights", choice=features.precision, why=note, source=known.provenance.source, lossy=online)


def _cache_reason(known: Kernels, model: ModelSpec, arch: str, features: Features) -> Reason:
    scheme = model.quantization
    calibrated = scheme is not None and scheme.kv_cache_dtype == "fp8"
    if features.kv_cache_dtype == "auto":
        why = "16 bit as the model computes" if not calibrated else "as the checkpoint says"
        if not calibrated and _by_arch(known.kv_fp8, arch).how == "native":
            why += "; fp8 would hold twice the tokens, but the checkpoint has no scales for it and answers would change"
        return Reason(topic="KV cache", choice="auto", why=why, source=known.provenance.source)
    why = (
        "the checkpoint has scales for it"
        if calibrated
        else "allowed by the user; scales default to 1.0, compare answers"
    )
    return Reason(
        topic="KV cache", choice=features.kv_cache_dtype, why=why, source=known.provenance.source, lossy=not calibrated
    )


def _by_arch(table: dict[str, Computed], arch: str) -> Computed:
    """The entry with the longest start of `arch`."""
    fitting = [prefix for prefix in table if arch.startswith(prefix)]
    return table[max(fitting, key=len)] if fitting else Computed(how="native")
