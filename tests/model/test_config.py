"""Configurations of every family become the right shapes, and broken ones name their key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.errors import AimError, InvalidInput
from aim_engine.model import catalog, config
from aim_engine.model.spec import ModelSpec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


def parse(**changes: Any) -> ModelSpec:
    return config.parse({**LLAMA, **changes}, model_id="test/model")


def test_a_dense_model_has_the_published_count() -> None:
    assert parse().parameters.total == 8_030_261_248  # as the hub states for Llama-3.1-8B


PACKED_OR_PARTIAL = {
    "Qwen/Qwen3-0.6B",  # the tied head is published twice
    "google/gemma-4-26B-A4B",  # its towers' own layers
    "meta-llama/Llama-3.2-11B-Vision",  # two vision encoders
    "microsoft/Phi-3-mini-128k-instruct",  # published for a quantised copy
    "microsoft/Phi-3-vision-128k-instruct",
}


def comparable() -> list[tuple[str, int]]:
    """Bundled models whose published total counts the same things; 4-bit weights are published as packed bytes."""
    found = []
    for name in catalog.names():
        entry, spec = catalog.entry(name), catalog.load(name)
        assert entry is not None
        assert spec is not None
        packed = spec.format in ("nvfp4", "mxfp4", "int4") or name in PACKED_OR_PARTIAL
        if entry.published_parameters is not None and not packed:
            found.append((name, entry.published_parameters))
    return found


@pytest.mark.parametrize(("name", "published"), comparable())
def test_counts_agree_with_what_the_hub_publishes(name: str, published: int) -> None:
    spec = catalog.load(name)
    assert spec is not None
    counts = (spec.parameters.total, spec.served_parameters)
    assert min(abs(count / published - 1) for count in counts) < 0.005, counts


def test_window_patterns_are_read_from_lists_and_from_rules() -> None:
    listed = parse(layer_types=["sliding_attention", "full_attention"] * 16, sliding_window=128)
    assert {group.kind: group.count for group in listed.groups} == {"full": 16, "sliding": 16}
    ruled = parse(model_type="gemma2", sliding_window=4096)
    assert {group.kind: group.count for group in ruled.groups} == {"full": 16, "sliding": 16}
    switched_off = parse(sliding_window=4096, use_sliding_window=False)
    assert [group.kind for group in switched_off.groups] == ["full"]
    wider_than_context = parse(sliding_window=131072)
    assert [group.kind for group in wider_than_context.groups] == ["full"]


def test_hybrids_alternate_states_and_attention() -> None:
    spec = catalog.load("Qwen/Qwen3.5-35B-A3B")
    assert spec is not None
    kinds = {group.kind: group for group in spec.groups}
    assert kinds["linear"].count == 30
    assert kinds["full"].count == 10
    assert kinds["linear"].state_elements == 32 * 128 * 128
    assert spec.is_hybrid


def test_a_latent_model_keeps_a_latent() -> None:
    spec = catalog.load("deepseek-ai/DeepSeek-V3")
    assert spec is not None
    (group,) = spec.groups
    assert (group.kind, group.latent_dim, group.count) == ("mla", 576, 61)
    assert spec.moe is not None
    assert spec.moe.layers == 58
    assert spec.active_parameters == pytest.approx(37e9, rel=0.02)


def test_experts_and_their_shared_part_are_counted() -> None:
    spec = catalog.load("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert spec is not None
    assert spec.moe is not None
    assert (spec.moe.experts, spec.moe.experts_per_token, spec.moe.shared_intermediate_size) == (16, 1, 8192)


@pytest.mark.parametrize(
    ("section", "form", "size", "parts"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 1 + 4 / 16384, 5),
        ({"quant_method": "fp8"}, "fp8", 1.0, 5),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", 0.5 + 2.5 / 128, 5),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8", 1 + 3 / 128, 5),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4", 0.5 + 0.5 / 64, 5),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}},
                "ignore": ["lm_head", "re:.*self_attn.*"],
            },
            "int4",
            0.5 + 2.5 / 128,
            3,
        ),
        (
            {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
            "mxfp4",
            0.53125,
            5,
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", 0.5625, 5),
    ],
)
def test_quantisation_schemes_are_read(section: dict[str, Any], form: str, size: float, parts: int) -> None:
    quantised = parse(quantization_config=section).quantization
    assert quantised is not None
    assert quantised.format == form
    assert quantised.bytes_per_weight == pytest.approx(size)
    assert len(quantised.quantised_parts) == parts


def test_an_unknown_architecture_is_planned_with_a_visible_warning() -> None:
    spec = parse(model_type="wonder", architectures=["WonderForCausalLM"])
    assert "not known" in spec.warnings[0]
    assert spec.parameters.total == parse().parameters.total


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers"])
def test_a_missing_key_is_named(key: str) -> None:
    broken = {name: value for name, value in LLAMA.items() if name != key}
    with pytest.raises(InvalidInput, match=key):
        config.parse({**broken, "model_type": "wonder"}, model_id="test/model")


@pytest.mark.parametrize("value", ["many", -1, 0, 1.5, float("nan"), True, [], {}, 10**30])
def test_a_wrong_value_is_named_with_its_key(value: object) -> None:
    with pytest.raises(InvalidInput, match="hidden_size"):
        parse(hidden_size=value)


def test_an_encoder_decoder_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidInput, match="encoder-decoder"):
        parse(is_encoder_decoder=True)


def test_remote_code_is_asked_for_only_where_the_engine_lacks_the_model() -> None:
    assert not parse(auto_map={"AutoConfig": "x"}).needs_remote_code
    assert parse(auto_map={"AutoConfig": "x"}, model_type="wonder").needs_remote_code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    changes=st.dictionaries(
        st.sampled_from(
            [
                *LLAMA,
                "layer_types",
                "quantization_config",
                "num_experts",
                "sliding_window",
                "kv_lora_rank",
                "text_config",
                "vision_config",
                "moe_layer_freq",
                "num_nextn_predict_layers",
            ]
        ),
        JSON,
        max_size=4,
    )
)
def test_damaged_configs_never_raise_anything_else(changes: dict[str, Any]) -> None:
    try:
        spec = config.parse({**LLAMA, **changes}, model_id="test/model")
    except AimError as err:
        assert str(err)  # noqa: PT017 - the refusal itself is looked at
    else:
        assert spec.parameters.total > 0
        json.dumps(spec.model_type)
