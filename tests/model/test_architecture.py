"""What model classes build by themselves is read from the catalogue, one file per model type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aim_engine import facts
from aim_engine.model import architecture, config
from aim_engine.model.spec import ModelSpec

FILES = sorted((facts.BUNDLED / architecture.FOLDER).glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_bundled_architecture_is_usable_and_named_as_its_file(path: Path) -> None:
    found = architecture.find(path.stem)
    assert found is not None
    assert found.model_type == path.stem


def test_a_class_stands_in_for_a_model_type_that_has_no_file() -> None:
    found = architecture.find("wonder", "Qwen3ForCausalLM")
    assert found is not None
    assert found.qk_norm == "heads"
    assert architecture.find("wonder", "WonderForCausalLM") is None
    assert architecture.find("../models/x") is None


def test_a_users_folder_adds_an_architecture(tmp_path: Path) -> None:
    folder = tmp_path / architecture.FOLDER
    folder.mkdir()
    (folder / "wonder.yaml").write_text(
        "model_type: wonder\nlike: gpt2\ndefaults: {n_embd: 64}\n"
        "provenance: {kind: vendor, source: its paper, checked: '2026-11-23'}\n"
    )
    found = architecture.find("wonder", overlay=tmp_path)
    assert found is not None
    assert (found.model_type, found.plain_mlp, found.defaults["n_embd"]) == ("wonder", True, 64)


def count(published: int, **fields: Any) -> tuple[ModelSpec, float]:
    """The spec of a config and the deviation from the hub's published total."""
    spec = config.parse(fields, model_id="test/model")
    return spec, spec.parameters.total / published - 1


def test_short_convolutions_are_counted_as_published() -> None:
    spec, error = count(
        1_170_340_608,  # LiquidAI/LFM2-1.2B
        model_type="lfm2",
        hidden_size=2048,
        num_hidden_layers=16,
        block_ff_dim=12288,
        block_multiple_of=256,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=True,
        conv_L_cache=3,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=65536,
        full_attn_idxs=[2, 5, 8, 10, 12, 14],
    )
    assert error == 0
    assert {group.kind: group.count for group in spec.groups} == {"full": 6, "mamba": 10}
    assert sum(group.state_elements for group in spec.groups) == 0


def test_a_hybrid_of_mamba_and_experts_is_counted_as_published() -> None:
    attending = (5, 15, 25, 35)
    spec, error = count(
        6_939_037_248,  # ibm-granite/granite-4.0-h-tiny
        model_type="granitemoehybrid",
        hidden_size=1536,
        num_hidden_layers=40,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=512,
        shared_intermediate_size=1024,
        num_local_experts=64,
        num_experts_per_tok=6,
        vocab_size=100352,
        layer_types=["attention" if index in attending else "mamba" for index in range(40)],
        mamba_n_heads=48,
        mamba_d_head=64,
        mamba_d_state=128,
        mamba_n_groups=1,
        mamba_expand=2,
        mamba_d_conv=4,
        tie_word_embeddings=True,
    )
    assert error == 0
    assert spec.is_hybrid


def test_delta_attention_beside_latents_is_counted_as_published() -> None:
    full = [4, 8, 12, 16, 20, 24, 27]
    spec, error = count(
        49_122_681_728,  # moonshotai/Kimi-Linear-48B-A3B-Instruct
        model_type="kimi_linear",
        hidden_size=2304,
        num_hidden_layers=27,
        intermediate_size=9216,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=163840,
        linear_attn_config={
            "num_heads": 32,
            "head_dim": 128,
            "short_conv_kernel_size": 4,
            "full_attn_layers": full,
            "kda_layers": [layer for layer in range(1, 28) if layer not in full],
        },
        num_experts=256,
        num_experts_per_token=8,
        num_shared_experts=1,
        moe_intermediate_size=1024,
        first_k_dense_replace=1,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        tie_word_embeddings=False,
        model_max_length=1048576,
    )
    assert abs(error) < 1e-6
    assert {group.kind: group.count for group in spec.groups} == {"linear": 20, "mla": 7}
    assert spec.max_position_embeddings == 1048576


def test_layers_of_a_searched_architecture_have_their_own_widths() -> None:
    block = {"attention": {"n_heads_in_group": 8, "no_op": False}, "ffn": {"ffn_mult": 5.25, "no_op": False}}
    without = {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": 1.0, "no_op": False}}
    spec, _ = count(
        1,
        model_type="nemotron-nas",
        hidden_size=8192,
        num_hidden_layers=2,
        num_attention_heads=64,
        num_key_value_heads=None,
        intermediate_size=None,
        vocab_size=128256,
        block_configs=[block, without],
    )
    assert {group.kind: group.kv_heads for group in spec.groups} == {"full": 8, "none": 0}
    assert spec.parameters.dense_mlp == 3 * 8192 * (28672 + 5632)  # 2/3 x 5.25 and 1.0 x 8192, rounded up to 256


def test_windows_and_full_layers_may_differ_in_heads_and_value_width() -> None:
    spec, _ = count(
        1,
        model_type="mimo_v2_flash",
        hidden_size=4096,
        num_hidden_layers=4,
        num_attention_heads=64,
        num_key_value_heads=4,
        head_dim=192,
        v_head_dim=128,
        swa_num_key_value_heads=8,
        swa_head_dim=192,
        swa_v_head_dim=128,
        hybrid_layer_pattern=[0, 1, 1, 1],
        sliding_window=128,
        intermediate_size=16384,
        vocab_size=152576,
        moe_layer_freq=[0, 1, 1, 1],
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=2048,
    )
    shapes = {g.kind: (g.count, g.kv_heads, g.head_dim_k, g.head_dim_v, g.window_tokens) for g in spec.groups}
    assert shapes == {"full": (1, 4, 192, 128, None), "sliding": (3, 8, 192, 128, 128)}


def test_compressed_layers_keep_an_entry_for_several_tokens() -> None:
    spec, _ = count(
        1,
        model_type="deepseek_v4",
        hidden_size=4096,
        num_hidden_layers=3,
        num_attention_heads=64,
        num_key_value_heads=1,
        head_dim=512,
        q_lora_rank=1024,
        o_lora_rank=1024,
        o_groups=8,
        index_head_dim=128,
        index_n_heads=64,
        compress_ratios=[0, 4, 128],
        sliding_window=128,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=2048,
        vocab_size=1024,
    )
    kept = sorted((g.latent_dim, g.indexer_dim, g.window_tokens) for g in spec.groups if g.kind == "mla")
    assert kept == [(4, 0, None), (128, 32, None), (512, 0, 128)]


def test_an_encoder_keeps_no_cache_and_has_no_head() -> None:
    spec, error = count(
        335_141_888,  # BAAI/bge-large-en-v1.5, without its position ids
        model_type="bert",
        architectures=["BertModel"],
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        vocab_size=30522,
        type_vocab_size=2,
        max_position_embeddings=512,
    )
    assert abs(error) < 1e-4
    assert spec.encoder_only
    assert [group.kind for group in spec.groups] == ["none"]
    assert spec.parameters.lm_head == 0


@pytest.mark.parametrize(
    ("fields", "tied"),
    [
        ({"model_type": "cohere"}, True),
        ({"model_type": "llama"}, False),
        ({"model_type": "wonder"}, False),
        ({"model_type": "llama", "tie_word_embeddings": True}, True),
    ],
)
def test_an_absent_tie_is_what_the_class_assumes(fields: dict[str, Any], tied: bool) -> None:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    }
    spec, _ = count(1, **shape, **fields)
    assert spec.tied_embeddings is tied


def test_a_null_on_purpose_gets_no_class_default() -> None:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    }
    windowed, _ = count(1, model_type="mistral", sliding_window=32, max_position_embeddings=512, **shape)
    plain, _ = count(1, model_type="mistral", sliding_window=None, max_position_embeddings=512, **shape)
    assert [group.kind for group in windowed.groups] == ["sliding"]
    assert [group.kind for group in plain.groups] == ["full"]


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_position_embeddings": 4096, "seq_length": 8192}, 4096),
        ({"max_position_embeddings": 4096, "model_max_length": 16384}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072),
    ],
)
def test_the_longest_context_is_derived_as_the_engine_does(fields: dict[str, Any], tokens: int) -> None:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    }
    assert count(1, model_type="llama", **shape, **fields)[0].max_position_embeddings == tokens
