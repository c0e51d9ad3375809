"""Checkpoint folders that hold everything but weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aim_engine.model import catalog as models


def checkpoint(folder: Path, model: str, *, plain: bool = False) -> Path:
    """A checkpoint folder without weights: the catalogue's config, `plain` without its quantisation, and a tokenizer of a few words."""
    entry = models.entry(model)
    assert entry is not None
    config = entry.config
    if plain:
        nested = {key: _without(value) if isinstance(value, dict) else value for key, value in config.items()}
        config = _without(nested)
    (folder / "config.json").write_text(json.dumps(config))
    words = ["[UNK]", "<think>", "</think>", "<tool_call>", "</tool_call>", "hello"]
    tokens = [
        {
            "id": n,
            "content": word,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for n, word in enumerate(words)
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": tokens,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(words)}, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def _without(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}
