"""Which parts of a checkpoint are stored in which format."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import specs
from aim_engine.model import config, quantization
from aim_engine.model.spec import Quantization

LAYERS = 4
ATTENTION = ("attention", "attention_replicated")
BLOCK_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def parse(description: dict[str, Any]) -> Quantization:
    found = quantization.parse(description, name="x", layers=LAYERS, has_experts=True)
    assert found is not None
    return found


def per_layer(*names: str) -> list[str]:
    return [f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in names]


@pytest.mark.parametrize(
    "ignored",
    [
        per_layer("input_layernorm", "post_attention_layernorm", "mlp.gate"),
        per_layer("self_attn.q_a_layernorm", "self_attn.indexer.k_norm", "mlp.gate.e_score_correction_bias"),
        ["lm_head", "gate", "e_score_correction_bias", "model.embed_tokens", "visual.blocks.0.attn.qkv", "mtp.*"],
        per_layer("self_attn.kv_b_proj"),
        ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"],
    ],
)
def test_what_is_never_quantised_or_rarely_leaves_its_part_alone(ignored: list[str]) -> None:
    assert parse({**BLOCK_FP8, "modules_to_not_convert": ignored}).quantised_parts == quantization.LINEAR_PARTS


@pytest.mark.parametrize(
    ("ignored", "gone"),
    [
        (per_layer("self_attn*"), ATTENTION),
        (per_layer("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), ATTENTION),
        (["model.layers.*.self_attn", "lm_head"], ATTENTION),
        (["re:.*self_attn.*", "re:.*shared_experts.*"], (*ATTENTION, "shared_experts")),
        ([r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"], ("dense_mlp",)),
        (["*.attn.*", "*.ffn.shared_experts.*", "head"], (*ATTENTION, "shared_experts")),
        (per_layer("block_sparse_moe.experts*"), ("experts",)),
    ],
)
def test_excluded_modules_keep_their_part_plain(ignored: list[str], gone: tuple[str, ...]) -> None:
    kept = parse({**BLOCK_FP8, "modules_to_not_convert": ignored}).quantised_parts
    assert set(quantization.LINEAR_PARTS) - set(kept) == set(gone)


SHAPE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 256,
    "tie_word_embeddings": False,
}


def test_a_mixed_checkpoint_has_the_right_total() -> None:
    layers = {
        "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
        "model.layers.0.mlp.experts.0.up_proj": {"quant_algo": "NVFP4"},
        "lm_head": {"quant_algo": "W4A16_NVFP4"},
    }
    section = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    spec = config.parse({**SHAPE, "quantization_config": section}, model_id="test/mixed")
    assert spec.quantization is not None
    assert set(spec.quantization.quantised_parts) == {*ATTENTION, "experts", "lm_head"}
    parts = spec.parameters
    total = parts.attention * 1.0 + (parts.experts + parts.lm_head) * 0.5625
    stored = (
        sum(getattr(parts, part) for part in spec.quantization.quantised_parts) * spec.quantization.bytes_per_weight
    )
    assert stored == pytest.approx(total)


def test_groups_of_targets_are_sizes_too() -> None:
    groups = {
        "a": {"targets": ["model.layers.0.self_attn.q_proj"], "weights": {"num_bits": 8, "type": "float"}},
        "b": {"targets": ["model.layers.0.mlp.experts.0.up_proj"], "weights": {"num_bits": 4, "type": "float"}},
    }
    found = quantization.sizes({"quant_method": "compressed-tensors", "config_groups": groups})
    assert found == {"attention": 1.0, "attention_replicated": 1.0, "experts": 0.5625}


def test_experts_narrower_than_the_rest_are_averaged() -> None:
    by_part = quantization.sizes({"quant_method": "fp8"}, expert_dtype="fp4")
    assert by_part["experts"] == 0.53125
    assert by_part["attention"] == pytest.approx(1, abs=0.001)


def test_a_uniform_checkpoint_has_no_sizes_of_its_own() -> None:
    assert quantization.sizes(BLOCK_FP8) == {}
    assert quantization.sizes(None) == {}


@pytest.mark.parametrize(
    ("section", "stored"),
    [
        (BLOCK_FP8, True),
        ({**BLOCK_FP8, "modules_to_not_convert": ["mtp.*"]}, False),
        ({**BLOCK_FP8, "modules_to_not_convert": ["model.layers.2*"]}, False),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, False),
    ],
)
def test_draft_layers_are_stored_in_block_fp8_unless_excluded(section: dict[str, Any], stored: bool) -> None:
    spec = config.parse(
        {**SHAPE, "num_nextn_predict_layers": 1, "quantization_config": section}, model_id="test/drafts"
    )
    assert spec.parameters.mtp > 0
    assert spec.quantization is not None
    assert ("mtp" in spec.quantization.quantised_parts) is stored


def test_a_checkpoint_in_another_format_keeps_its_cache_in_its_own_way() -> None:
    """The shapes of DeepSeek-V3.2 are known from an NVFP4 checkpoint with an FP8 cache; the original has a 16-bit one."""
    spec = specs.dense()
    source = msgspec.structs.replace(quantization.stored_as(spec, "fp8"), weight_bytes=1)
    assert source.quantization is not None
    source = msgspec.structs.replace(
        source, quantization=msgspec.structs.replace(source.quantization, kv_cache_dtype="fp8")
    )
    other = quantization.stored_as(source, "int4").quantization
    assert other is not None
    assert other.kv_cache_dtype is None
