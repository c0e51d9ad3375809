"""Reading a config.json whose families name the same thing differently, with errors that name the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aim_engine.errors import InvalidInput

NESTED = ("text_config", "language_config", "llm_config", "llm_cfg", "language_model_config")
MAX_COUNT = 2**40

HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model", "dim", "model_dim")
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "num_attention_groups")
HEAD_DIM = ("head_dim", "kv_channels", "attention_head_dim", "head_size", "hidden_size_per_head")
INTERMEDIATE = (
    "intermediate_size",
    "ffn_hidden_size",
    "n_inner",
    "ffn_dim",
    "d_ff",
    "inner_hidden_size",
    "ff_intermediate_size",
    "block_ff_dim",
)
VOCAB = ("vocab_size", "padded_vocab_size", "n_vocab")
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "seq_length",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
    "max_seq_length",
    "max_target_positions",
    "seq_len",
)
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "experts_per_token",
    "num_experts_per_token",
    "moe_top_k",
    "top_k_experts",
    "moe_k",
    "moe_topk",
    "num_selected_experts",
)
NEEDED = frozenset([*HIDDEN, *LAYERS, *HEADS, *VOCAB, *INTERMEDIATE])
"""Sizes that a whole config.json always states; a class's default stands in only inside a larger config."""


class Fields:
    """The fields of a config's language part; what is missing there is looked up around it, then in the class defaults."""

    def __init__(self, config: Mapping[str, Any], name: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self._inner = config
        for _ in range(3):
            nested = self._inner.get("thinker_config")
            nested = nested if isinstance(nested, dict) else None
            nested = nested or next((self._inner[k] for k in NESTED if isinstance(self._inner.get(k), dict)), None)
            if nested is None:
                break
            self._inner = nested
        self.outer = config
        self._parts = [
            self._inner,
            *(v for k in ("attn_config", "ffn_config", "ssm_cfg") if isinstance(v := self._inner.get(k), dict)),
        ]
        keep = defaults or {}
        self._defaults = keep if self.nested else {key: keep[key] for key in keep if key not in NEEDED}

    @property
    def nested(self) -> bool:
        """Is the language part inside a larger config?"""
        return self._inner is not self.outer

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """The same fields over a model class's own defaults."""
        return Fields(self.outer, self.name, defaults)

    def raw(self, *names: str) -> Any:
        """The first of `names` that is present and not null, else None; a key that is null on purpose gets no default."""
        stated = False
        for source in (*self._parts, self.outer):
            for name in names:
                if source.get(name) is not None:
                    return source[name]
                stated = stated or name in source
        return None if stated else next((self._defaults[name] for name in names if name in self._defaults), None)

    def count(self, *names: str, default: int | None = None) -> int:
        """A positive whole number. Raises: InvalidInput naming the key when absent without default, or no such number."""
        value = self.maybe(*names)
        if value is None:
            value = default
        if value is None:
            raise InvalidInput(
                f"{self.name}: the key {names[0]} is missing",
                why="without it the model's size cannot be computed",
                hint="check that this is the whole config.json of the model",
            )
        if value < 1:
            raise self._bad(names, value, "a number of at least 1 is needed")
        return value

    def maybe(self, *names: str) -> int | None:
        """A whole number of at least 0, or None when absent. Raises: InvalidInput naming the key."""
        value = self.raw(*names)
        if value is None or value == "auto":
            return None
        if isinstance(value, list):
            whole = [each for each in value if isinstance(each, int) and not isinstance(each, bool)]
            value = max(whole) if whole and len(whole) == len(value) else value
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._bad(names, value, "a whole number is needed")
        if not 0 <= value <= MAX_COUNT:
            raise self._bad(names, value, f"it must lie between 0 and {MAX_COUNT}")
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        """A boolean; anything that is not one counts as absent."""
        value = self.raw(*names)
        return value if isinstance(value, bool) else default

    def text(self, *names: str) -> str:
        """A string, empty when absent."""
        value = self.raw(*names)
        return value if isinstance(value, str) else ""

    def words(self, *names: str) -> list[str] | None:
        """A list of strings, None when absent. Raises: InvalidInput naming the key."""
        value = self.raw(*names)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._bad(names, value, "a list of names is needed")
        return value

    def numbers(self, *names: str) -> list[int] | None:
        """A list of whole numbers, None when absent or not such a list."""
        value = self.raw(*names)
        if isinstance(value, list) and all(isinstance(each, int) for each in value):
            return value
        return None

    def section(self, name: str) -> Mapping[str, Any] | None:
        """A nested mapping, None when absent."""
        value = self.raw(name)
        return value if isinstance(value, dict) else None

    def _bad(self, names: tuple[str, ...], value: object, why: str) -> InvalidInput:
        key = next((name for name in names if any(name in part for part in (*self._parts, self.outer))), names[0])
        return InvalidInput(
            f"{self.name}: the key {key} is {value!r}", why=why, hint="fetch the config.json again, or correct the key"
        )
