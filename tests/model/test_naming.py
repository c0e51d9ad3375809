"""Printed names of checkpoints: what family and size they mean, and in which format."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.errors import InvalidInput
from aim_engine.model import catalog, library, naming

LIBRARY = library.build()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RedHatAI/gemma-3-12b-it-FP8-dynamic", "gemma 3 12b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama 3.1 8b"),
        ("Qwen_Qwen3-30B-A3B-Thinking-2507-Q4_K_M (GGUF)", "qwen3 30b a3b"),
        ("llama-2-7b.Q4_0 (GGUF)", "llama 2 7b"),
        ("qwen3:0.6b (GGUF)", "qwen3 0.6b"),
        ("mistralai_Devstral-Small-2507-Q4_K_M (GGUF)", "devstral small"),
        ("amd/DeepSeek-R1-0528-MXFP4-Preview", "deepseek r1"),
        ("cyankiwi/Qwen3.5-122B-A10B-AWQ-4bit", "qwen3.5 122b a10b"),
    ],
)
def test_family_and_size_are_what_remains_of_a_name(name: str, words: str) -> None:
    assert " ".join(naming.core(name)) == words


@pytest.mark.parametrize(
    ("name", "model_id", "form"),
    [
        ("openai/gpt-oss-120b", "openai/gpt-oss-120b", "mxfp4"),
        ("OPENAI/GPT-OSS-120B", "openai/gpt-oss-120b", "mxfp4"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B", "fp8"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek-ai/DeepSeek-V3", "fp8_block"),
        ("amd/Kimi-K2-Thinking-MXFP4", "moonshotai/Kimi-K2-Instruct", "mxfp4"),
        ("DeepSeek-R1-Distill-Qwen-14B-Q4_K_M (GGUF)", "Qwen/Qwen2.5-14B-Instruct", "gguf"),
        ("cpatonn/Qwen3-Coder-30B-A3B-Instruct-GPTQ-4bit", "Qwen/Qwen3-30B-A3B", "int4"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-ai/DeepSeek-V3.2", "fp8_block"),
    ],
)
def test_a_name_finds_its_model_in_its_format(name: str, model_id: str, form: str) -> None:
    found = LIBRARY.find(name)
    assert found is not None
    assert (found.spec.model_id, found.spec.format) == (model_id, form)


@pytest.mark.parametrize(
    ("name", "form"), [("Qwen/Qwen3.6-27B", "bf16"), ("Qwen/Qwen3.6-27B-FP8", "fp8"), ("x/Qwen3.6-27B-NVFP4", "nvfp4")]
)
def test_what_others_made_of_a_model_says_nothing_of_its_own_format(name: str, form: str) -> None:
    found = LIBRARY.find(name)
    assert found is not None
    assert found.spec.model_id == "nvidia/Qwen3.6-27B-NVFP4", "the catalogue has the model itself now: take another"
    assert found.spec.format == form


def test_a_stated_precision_wins_over_the_name() -> None:
    found = LIBRARY.find("meta-llama/Llama-2-70b-chat-hf", stated_format="mxfp4")
    assert found is not None
    assert found.spec.format == "mxfp4"


@pytest.mark.parametrize(
    "name", ["MiniMax M2.1-REAP-139B-A10B", "DeepSeek-R1-Distill-Foo-99B", "nobody/unheard-of", ""]
)
def test_what_is_not_known_is_not_guessed(name: str) -> None:
    assert LIBRARY.find(name) is None


def test_every_alias_names_a_bundled_model_and_is_in_its_normal_form() -> None:
    for alias in naming.aliases():
        assert catalog.load(alias.model_id) is not None, alias
        assert alias.source


def test_every_bundled_model_is_found_under_its_own_id_as_it_is() -> None:
    for name in catalog.names():
        found = LIBRARY.find(name)
        assert found is not None
        assert found.spec.model_id == name


def test_a_folder_of_configs_adds_models_and_wins(tmp_path: Path) -> None:
    (tmp_path / "me__mine-3b.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 4,'
        ' "num_attention_heads": 8, "intermediate_size": 2048, "vocab_size": 1000}'
    )
    (tmp_path / "me__broken.json").write_text("{")
    added = library.build(tmp_path)
    for name in ("me/mine-3b", "someone/Mine-3B-GPTQ-4bit"):
        found = added.find(name)
        assert found is not None
        assert found.spec.layers == 4
    assert added.find("me/broken") is None
    with pytest.raises(InvalidInput, match="not a folder"):
        library.build(tmp_path / "absent")


@given(st.text(max_size=60))
def test_no_name_makes_trouble(name: str) -> None:
    naming.core(name)
    LIBRARY.find(name, stated_format=name[:10])
