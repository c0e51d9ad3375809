"""A Hugging Face `config.json` of any family as a `ModelSpec`: shapes, parameters by part, weight format.

One set of rules reads all families; what differs is named where it differs. A family that is not known is planned from the
generic fields, and the spec says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from aim_engine import facts
from aim_engine.errors import InvalidInput
from aim_engine.model import fields as names
from aim_engine.model import layers as stack
from aim_engine.model import parameters, quantization
from aim_engine.model.fields import Fields
from aim_engine.model.spec import LayerGroup, LayerKind, ModelSpec, Moe

DEFAULTS_FILE = "architectures/defaults.yaml"
_NATIVE = frozenset(
    [
        "afmoe",
        "apertus",
        "arcee",
        "aria",
        "baichuan",
        "bailing_moe",
        "bloom",
        "chameleon",
        "chatglm",
        "cohere",
        "cohere2",
        "command_r",
        "dbrx",
        "deepseek",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "deepseek_ref",
        "deepseek_vl_v2",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone",
        "exaone4",
        "falcon",
        "falcon_h1",
        "falcon_mamba",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gemma3n",
        "gemma4",
        "gemma4_text",
        "glm",
        "glm4",
        "glm4_moe",
        "glm4v",
        "glm_moe_dsa",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gpt_oss",
        "gptj",
        "granite",
        "granitemoe",
        "granitemoehybrid",
        "grok-1",
        "hunyuan_v1_moe",
        "hunyuan",
        "internlm",
        "internlm2",
        "internlm3",
        "internvl_chat",
        "jais",
        "jamba",
        "kimi_k2",
        "kimi_k25",
        "kimi_k3",
        "kimi_linear",
        "kimi_vl",
        "lfm2",
        "lfm2_moe",
        "llama",
        "llama4",
        "llama4_text",
        "llava",
        "llava_next",
        "longcat_flash",
        "mamba",
        "mamba2",
        "mimo",
        "mimo_v2",
        "minicpm",
        "minicpm3",
        "minimax",
        "minimax_m1",
        "minimax_m2",
        "minimax_m3",
        "ministral3",
        "mistral",
        "mistral3",
        "mixtral",
        "mllama",
        "mllama_text_model",
        "molmo",
        "mpt",
        "multi_modality",
        "nemotron",
        "nemotron_h",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "opt",
        "orion",
        "ovis",
        "persimmon",
        "phi",
        "phi3",
        "phi3_v",
        "phi4mm",
        "phimoe",
        "pixtral",
        "plamo2",
        "qwen",
        "qwen2",
        "qwen2_5_omni",
        "qwen2_5_vl",
        "qwen2_audio",
        "qwen2_moe",
        "qwen2_vl",
        "qwen3",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_omni_moe",
        "qwen3_vl",
        "qwen3_vl_moe",
        "qwen3_vl_moe_text",
        "qwen3_vl_text",
        "seed_oss",
        "smollm3",
        "solar",
        "stablelm",
        "starcoder2",
        "step3p5",
        "step3p7",
        "step3_text",
        "whisper",
        "xverse",
        "zamba2",
    ]
)
"""Model types that serving engines implement themselves, so that no code of the repository is needed."""
_VISION_SECTIONS = ("vision_config", "visual", "vision_tower_config", "img_processor")
_AUDIO_SECTIONS = ("audio_config", "audio_encoder", "speech_config")
_DTYPES: dict[str, Literal["bf16", "fp16", "fp32"]] = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
_EMBEDDING_WORDS = ("EmbeddingModel", "BertModel", "ForSequenceClassification", "ForMaskedLM", "RewardModel")


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
    fields = fields.with_defaults(_class_defaults(model_type))
    architecture = _architecture(config) or _architecture(fields.raw("architectures")) or model_type or "unknown"
    if config.get("is_encoder_decoder") is True and outer_type != "whisper":
        raise InvalidInput(
            f"{name}: {architecture} is an encoder-decoder model",
            why="its encoder and cross attention are not modelled",
            hint="decoder-only and vision-language models can be planned",
        )
    kinds = stack.kinds(fields, model_type)
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
        tied=_tied(fields, config, model_type),
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
    warnings = []
    known = model_type in _NATIVE or outer_type in _NATIVE
    if not known:
        warnings.append(f"the architecture {architecture} is not known; planned from generic fields")
    if compressed:
        warnings.append("compressed attention is counted as uncompressed: the KV cache is overestimated")
    positions = fields.maybe(*names.POSITIONS)
    if not positions:
        warnings.append("the config names no context length; 2,048 tokens are assumed")
    return ModelSpec(
        model_id=model_id,
        architecture=architecture,
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
        encoder_only=any(word in architecture for word in _EMBEDDING_WORDS),
        has_sinks=model_type == "gpt_oss" or fields.flag("attention_sink", "add_swa_attention_sink_bias"),
        modality=_modality(config),
        needs_remote_code=bool(config.get("auto_map")) and not known,
        gated=gated,
        license=license,
        source=source,
        warnings=tuple(warnings),
    )


def _architecture(source: object) -> str:
    """The first class name of `architectures`; empty when there is none."""
    listed = source.get("architectures") if isinstance(source, dict) else source
    return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""


def _class_defaults(model_type: str) -> Mapping[str, Any]:
    """What the model class assumes where a config is silent."""
    return facts.load(DEFAULTS_FILE, dict[str, dict[str, Any]]).get(model_type, {})


def _kv_heads(fields: Fields, heads: int) -> int:
    if fields.flag("multi_query_attention"):
        return fields.maybe("multi_query_group_num") or 1
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


def _tied(fields: Fields, config: Mapping[str, Any], model_type: str) -> bool:
    inner = fields.raw("tie_word_embeddings")
    if isinstance(inner, bool):
        return inner
    outer = config.get("tie_word_embeddings")
    return (
        outer if isinstance(outer, bool) else model_type.startswith(("gemma", "gpt2", "opt", "bloom", "mpt", "falcon"))
    )


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
    if kind in ("full", "sliding", "chunked", "cross") and (shape.is_mla or shape.is_compressed):
        latent = (
            shape.head_dim
            if shape.is_compressed
            else fields.count("kv_lora_rank") + (fields.maybe("qk_rope_head_dim") or 0)
        )
        indexer = 0 if shape.is_compressed else fields.maybe("index_head_dim") or 0
        return LayerGroup(kind="mla", count=1, heads=shape.heads, kv_heads=1, latent_dim=latent, indexer_dim=indexer)
    if kind == "linear":
        return LayerGroup(kind="linear", count=1, state_elements=shape.linear_state, conv_elements=shape.linear_conv)
    if kind == "mamba":
        return LayerGroup(kind="mamba", count=1, state_elements=shape.mamba_state, conv_elements=shape.mamba_conv)
    if kind == "none":
        return LayerGroup(kind="none", count=1)
    if index >= len(shape.kinds) - (fields.maybe("num_kv_shared_layers") or 0):
        return LayerGroup(kind="none", count=1, heads=shape.heads)
    kv_heads, dim = shape.kv_shape(kind)
    window = fields.maybe("sliding_window", "sliding_window_size") if kind == "sliding" else None
    if kind == "chunked":
        window = fields.maybe("attention_chunk_size", "sliding_window")
    typed: LayerKind = {"full": "full", "sliding": "sliding", "chunked": "chunked", "cross": "cross"}[kind]  # type: ignore[assignment]
    return LayerGroup(
        kind=typed,
        count=1,
        heads=shape.heads,
        kv_heads=kv_heads,
        head_dim_k=dim,
        head_dim_v=fields.maybe("v_head_dim") or dim if model_has_own_v(shape.model_type) else dim,
        window_tokens=window,
    )


def model_has_own_v(model_type: str) -> bool:
    """Do values have another width than keys outside of latent attention?"""
    return model_type in ("mimo_v2", "mimo_v2_flash", "minicpm3")
