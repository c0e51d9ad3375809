"""Towers are counted as their classes build them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine import facts
from aim_engine.model import towers

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "image_size": 336,
    "patch_size": 14,
}
QWEN3_VL = {
    "model_type": "qwen3_vl",
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_position_embeddings": 2304,
    "out_hidden_size": 2048,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "deepstack_visual_indexes": [5, 11, 17],
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}


@pytest.mark.parametrize(
    ("owner", "section", "text_hidden", "built"),
    [
        ("llava", CLIP, 4096, 324_487_168),
        ("qwen3_vl", QWEN3_VL, 2048, 406_957_056),
        ("gemma3", SIGLIP, 5376, 423_060_336),
        (
            "qwen2_vl",
            {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "patch_size": 14},
            1536,
            665_271_296,
        ),
    ],
)
def test_a_tower_has_the_parameters_its_class_builds(
    owner: str, section: dict[str, Any], text_hidden: int, built: int
) -> None:
    """The numbers are those of transformers 5.19.0 models built on the meta device."""
    assert towers.count({"model_type": owner, "vision_config": section}, text_hidden) == built


def test_a_model_without_towers_has_none() -> None:
    assert towers.count({"model_type": "llama"}, 4096) == 0


@pytest.mark.parametrize("path", sorted((facts.BUNDLED / towers.FOLDER).glob("*.yaml")), ids=lambda path: path.stem)
def test_every_bundled_tower_is_usable_and_named_as_its_file(path: Any) -> None:
    assert facts.read(path, towers.Tower).kind == path.stem


@given(
    section=st.dictionaries(
        st.sampled_from([*CLIP, *QWEN3_VL, "mlp_ratio", "embed_dim", "params"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=8)
        | st.lists(st.integers(), max_size=3),
    ),
    owner=st.sampled_from(["llava", "qwen3_vl", "gemma3", "mllama", "glm4v", "llama4", "wonder", "../x"]),
)
def test_a_damaged_section_never_breaks_the_count(section: dict[str, Any], owner: str) -> None:
    assert towers.count({"model_type": owner, "vision_config": section}, 64) >= 0
