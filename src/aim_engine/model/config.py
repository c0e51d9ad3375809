"""A Hugging Face `config.json` of any family as a `ModelSpec`: shapes, parameters by part, weight format.

One set of rules reads all families; what differs is named where it differs. A family that is not known is planned from the
generic fields, and the spec says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Provenance
from aim_engine.model import architecture, mixers, parameters, quantization
from aim_engine.model import fields as names
from aim_engine.model import layers as stack
from aim_engine.model.architecture import Architecture
from aim_engine.model.fields import Fields
from aim_engine.model.spec import LayerGroup, LayerKind, ModelSpec, Moe

_VISION_SECTIONS = ("vision_config", "visual", "vision_tower_config", "img_processor")
_AUDIO_SECTIONS = ("audio_config", "audio_encoder", "speech_config")
_DTYPES: dict[str, Literal["bf16", "fp16", "fp32"]] = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
_BARE = frozenset(
    [
        "BertModel",
        "GemmaModel",
        "Gemma2Model",
        "Gemma3TextModel",
        "LlamaModel",
        "MistralModel",
        "Qwen2Model",
        "Qwen3Model",
    ]
)
_NOBODY = Provenance(kind="unsourced", source="no file of the catalogue", checked="")
_EMBEDDING_WORDS = ("EmbeddingModel", "BertModel", "ForSequenceClassification", "ForMaskedLM", "RewardModel")

_STATES_IN_32_BIT = ("nemotron_h", "kimi_linear")


def parse(
    config: Mapping[str, Any],
    *,
    model_id: str,
    source: str = "",
    quant_config: Mapping[str, Any] | None = None,
    license: str | None = None,  # noqa: A002 - the field's own name
    gated: bool | None = None,
) -> ModelSpec:
    """The model that `config` describes. `quant_config` is ModelOpt's side file hf_quant_config.json.

    Raises: InvalidInput naming the key that is missing or wrong.
    """
    name = source or model_id
    if not isinstance(config, dict):
        raise InvalidInput(f"{name} is not a model configuration", why="the file holds no JSON object")
    fields = Fields(config, name)
    model_type = fields.text("model_type")
    outer_type = config.get("model_type") if isinstance(config.get("model_type"), str) else model_type
    class_name = _architecture(config) or _architecture(fields.raw("architectures"))
    known = architecture.find(model_type, class_name) or (outer_type and architecture.find(outer_type)) or None
    arch = known or Architecture(model_type=model_type or "unknown", provenance=_NOBODY)
    fields = fields.with_defaults(arch.defaults)
    name_of_class = class_name or model_type or "unknown"
    if config.get("is_encoder_decoder") is True and outer_type != "whisper":
        raise InvalidInput(
            f"{name}: {name_of_class} is an encoder-decoder model",
            why="its encoder and cross attention are not modelled",
            hint="decoder-only and vision-language models can be planned",
        )
    kinds = ["none"] * fields.count(*names.LAYERS) if arch.encoder_only else stack.kinds(fields, model_type)
    hidden = fields.count(*names.HIDDEN)
    vocab = fields.count(*names.VOCAB)
    heads = fields.maybe(*names.HEADS) or 0
    if heads == 0 and any(kind not in ("mamba", "none") for kind in kinds):
        fields.count(*names.HEADS)
    kv_heads = _kv_heads(fields, heads)
    head_dim = fields.maybe(*names.HEAD_DIM) or (hidden // heads if heads else 0)
    is_mla = bool(fields.maybe("kv_lora_rank")) and fields.raw("use_mla") is not False
    compressed = model_type in ("deepseek_v4", "deepseek_ref", "deepseek_v41")
    moe_where = stack.moe_layers(fields, kinds) if _experts(fields) else []
    moe = _moe(fields, model_type, len(moe_where))
    shape = parameters.Shape(
        fields=fields,
        arch=arch,
        model_type=model_type,
        hidden=hidden,
        vocab=vocab,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        kinds=tuple(kinds),
        moe_layers=frozenset(moe_where),
        moe=moe,
        is_mla=is_mla,
        is_compressed=compressed,
        tied=_tied(fields, known is not None),
        headless=arch.encoder_only or _is_headless(class_name),
    )
    counted = parameters.count(shape)
    quantised = quantization.parse(
        _quantization_section(config, fields),
        name=name,
        layers=len(kinds),
        has_experts=moe is not None,
        side_file=quant_config,
        expert_dtype=fields.text("expert_dtype"),
    )
    mixed = quantization.sizes(
        _quantization_section(config, fields), side_file=quant_config, expert_dtype=fields.text("expert_dtype")
    )
    if quantised is not None and mixed:
        quantised = quantization.averaged(quantised, mixed, counted)
    elif quantised is not None and counted.mtp:
        quantised = quantization.with_drafts(quantised, _quantization_section(config, fields), len(kinds))
    warnings = []
    if known is None:
        warnings.append(f"the architecture {name_of_class} is not known; planned from generic fields")
    positions = _context(fields, str(outer_type))
    if not positions:
        warnings.append("the config names no context length; 2,048 tokens are assumed")
    return ModelSpec(
        model_id=model_id,
        architecture=name_of_class,
        model_type=str(outer_type or model_type or "unknown"),
        basis="config",
        hidden_size=hidden,
        layers=len(kinds),
        heads=heads,
        kv_heads=1 if is_mla or compressed else kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        intermediate_size=shape.intermediate,
        max_position_embeddings=positions or 2048,
        dtype=_DTYPES.get(fields.text("torch_dtype", "dtype").removeprefix("torch."), "bf16"),
        groups=_groups(shape),
        parameters=counted,
        moe=moe,
        quantization=quantised,
        tied_embeddings=shape.tied,
        encoder_only=arch.encoder_only or any(word in name_of_class for word in _EMBEDDING_WORDS),
        has_sinks=shape.has_sinks("full") or shape.has_sinks("sliding"),
        modality=_modality(config),
        needs_remote_code=arch.remote_code
        or (bool(config.get("auto_map")) and (known is None or known.model_type not in (model_type, outer_type))),
        gated=gated,
        license=license,
        source=source,
        warnings=tuple(warnings),
    )


def _architecture(source: object) -> str:
    """The first class name of `architectures`; empty when there is none."""
    listed = source.get("architectures") if isinstance(source, dict) else source
    return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""


def _context(fields: Fields, model_type: str) -> int:
    """Tokens of the longest context, as the engine derives it; 0 when the config states none.

    The smallest of the keys that state one, unless model_max_length overrides them, times the factor of a rope scaling that
    leaves them unscaled. Source: vllm/config/model.py _get_and_verify_max_len, v0.32.0.
    """
    stated = [found for key in names.POSITIONS if (found := fields.maybe(key))]
    longest = fields.maybe("model_max_length") or min(stated, default=0)
    scaling = fields.section("rope_scaling") or fields.section("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    if kind not in ("linear", "dynamic") or model_type.startswith("gemma3"):
        return longest
    if isinstance(factor, int | float) and not isinstance(factor, bool) and 1 <= factor < names.MAX_COUNT:
        return round(longest * factor)
    return longest


def _kv_heads(fields: Fields, heads: int) -> int:
    if fields.flag("multi_query_attention"):
        return fields.maybe("multi_query_group_num") or 1
    blocks = fields.raw("block_configs")
    if isinstance(blocks, list) and fields.maybe(*names.KV_HEADS) is None:
        groups = [
            b["attention"].get("n_heads_in_group")
            for b in blocks
            if isinstance(b, dict) and isinstance(b.get("attention"), dict)
        ]
        sizes = [size for size in groups if isinstance(size, int) and 0 < size <= heads]
        if sizes:
            return heads // min(sizes)
    explicit = fields.maybe(*names.KV_HEADS)
    if explicit and not (fields.flag("multi_query") and fields.raw("new_decoder_architecture") is False):
        return explicit
    return 1 if fields.flag("multi_query") and not fields.flag("new_decoder_architecture") else heads


def _experts(fields: Fields) -> int:
    found = fields.maybe(*names.EXPERTS) or 0
    return found if found > 1 else 0


def _moe(fields: Fields, model_type: str, layers: int) -> Moe | None:
    experts = _experts(fields)
    if not experts or not layers:
        return None
    inner = fields.maybe(
        "moe_intermediate_size", "expert_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size"
    )
    width = inner or fields.count(*names.INTERMEDIATE)
    shared = fields.maybe(
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
        "share_expert_dim",
    )
    if shared is None:
        shared = (
            fields.maybe("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert") or 0
        ) * width
    if model_type in ("llama4", "llama4_text"):
        shared = width
    return Moe(
        layers=layers,
        experts=experts,
        experts_per_token=min(experts, fields.count(*names.EXPERTS_PER_TOKEN)),
        intermediate_size=width,
        shared_intermediate_size=shared,
    )


def _tied(fields: Fields, is_known: bool) -> bool:
    """Is the head the embedding? A config that transformers wrote leaves the key out when it is true.

    Of two sections that disagree, the language part's counts; since transformers 5 the outer one's.
    """
    outer = fields.outer.get("tie_word_embeddings")
    if isinstance(outer, bool) and fields.text("transformers_version").startswith("5"):
        return outer
    stated = fields.raw("tie_word_embeddings")
    if isinstance(stated, bool):
        return stated
    return is_known and isinstance(fields.outer.get("transformers_version"), str) and not fields.nested


def _is_headless(class_name: str) -> bool:
    """A bare model or a classifier, whose checkpoint holds no language model head."""
    if class_name.endswith(("ForSequenceClassification", "ForTokenClassification", "RewardModel")):
        return True
    return class_name in _BARE


def _quantization_section(config: Mapping[str, Any], fields: Fields) -> Mapping[str, Any] | None:
    for key in ("quantization_config", "compression_config"):
        for section in (config.get(key), fields.raw(key)):
            if isinstance(section, dict):
                return section
    return None


def _modality(config: Mapping[str, Any]) -> Literal["text", "vision", "audio", "omni"]:
    sources = [config, config.get("thinker_config") or {}]
    vision = any(isinstance(source.get(key), dict) for source in sources for key in _VISION_SECTIONS)
    audio = any(isinstance(source.get(key), dict) for source in sources for key in _AUDIO_SECTIONS)
    if vision and audio:
        return "omni"
    return "vision" if vision else "audio" if audio or config.get("model_type") == "whisper" else "text"


def _groups(shape: parameters.Shape) -> tuple[LayerGroup, ...]:
    """Layers of one kind and shape, gathered."""
    counts = Counter(_group(shape, index, kind) for index, kind in enumerate(shape.kinds))
    return tuple(msgspec.structs.replace(group, count=count) for group, count in sorted(counts.items(), key=repr))


def _group(shape: parameters.Shape, index: int, kind: str) -> LayerGroup:
    fields = shape.fields
    if kind == "linear":
        return LayerGroup(
            kind="linear",
            count=1,
            state_elements=shape.linear_state,
            state_value_bytes=_state_value_bytes(shape),
            conv_elements=_linear_conv(shape),
        )
    if kind == "mamba":
        return LayerGroup(
            kind="mamba",
            count=1,
            state_elements=shape.mamba_state,
            state_value_bytes=_state_value_bytes(shape),
            conv_elements=shape.mamba_conv,
        )
    if kind == "none" or shape.shares_kv(index):
        return LayerGroup(kind="none", count=1, heads=shape.heads if kind != "none" or shape.arch.encoder_only else 0)
    if shape.is_compressed:
        return _compressed_group(shape, index)
    if shape.is_mla:
        latent = fields.count("kv_lora_rank") + (fields.maybe("qk_rope_head_dim") or 0)
        return LayerGroup(
            kind="mla",
            count=1,
            heads=shape.heads,
            kv_heads=1,
            latent_dim=latent * (2 if shape.is_double else 1),
            indexer_dim=(fields.maybe("index_head_dim") or 0) if shape.has_indexer(index) else 0,
        )
    heads, kv_heads, dim, value_dim = shape.attention_shape(index, kind)
    window = fields.maybe("sliding_window", "sliding_window_size") if kind == "sliding" else None
    if kind == "chunked":
        window = fields.maybe("attention_chunk_size", "sliding_window")
    typed: LayerKind = {"full": "full", "sliding": "sliding", "chunked": "chunked", "cross": "cross"}[kind]  # type: ignore[assignment]
    return LayerGroup(
        kind=typed,
        count=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim_k=dim,
        head_dim_v=value_dim,
        window_tokens=window,
        indexer_dim=_index_dim(shape, index),
        state_elements=shape.mamba_state if shape.has_parallel_mamba else 0,
        state_value_bytes=_state_value_bytes(shape),
        conv_elements=shape.mamba_conv if shape.has_parallel_mamba else 0,
    )


def _state_value_bytes(shape: parameters.Shape) -> int:
    """Bytes of a recurrent state's value: the config's own wish, 4 for families that always keep 32 bit, else 16 bit.

    Source: vllm/model_executor/models/config.py (Qwen3_5ForConditionalGenerationConfig, NemotronHForCausalLMConfig),
    layers/mamba/mamba_utils.py MambaStateDtypeCalculator.
    """
    stated = shape.fields.text("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    if stated:
        return 4 if "32" in stated else 2
    return 4 if shape.model_type.startswith(_STATES_IN_32_BIT) else 2


def _linear_conv(shape: parameters.Shape) -> int:
    return 0 if shape.is_lightning else shape.linear_conv


def _index_dim(shape: parameters.Shape, index: int) -> int:
    """What a layer that chooses blocks keeps per token beside keys and values."""
    section = shape.fields.section("sparse_attention_config")
    dim = section.get("sparse_index_dim") if section is not None and shape.is_block_sparse(index) else 0
    return dim if isinstance(dim, int) and 0 < dim < names.MAX_COUNT else 0


def _compressed_group(shape: parameters.Shape, index: int) -> LayerGroup:
    """One entry for every few tokens and a window of whole tokens; an indexer entry where there is little compression.

    Source: vllm/models/deepseek_v4/attention.py get_kv_cache_spec (tokens_per_state, DeepseekV4SWACache), v0.32.0.
    """
    ratio = shape.compression(index)
    window = shape.fields.maybe("sliding_window") or 0
    if ratio <= 1:
        return LayerGroup(
            kind="mla", count=1, heads=shape.heads, kv_heads=1, latent_dim=shape.head_dim, window_tokens=window or None
        )
    index_dim = (shape.fields.maybe("index_head_dim") or 0) if ratio < mixers.HEAVY else 0
    return LayerGroup(
        kind="mla",
        count=1,
        heads=shape.heads,
        kv_heads=1,
        latent_dim=-(-shape.head_dim // ratio),
        indexer_dim=-(-index_dim // ratio),
        conv_elements=window * shape.head_dim,
    )
