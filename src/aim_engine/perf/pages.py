"""How the engine lays out its cache: which layers share a block, how many bytes a block takes, how many a request needs.

Every layer keeps pages of one block of tokens each. Layers of one kind share a block table; layers of different kinds (full attention
beside windows, attention beside recurrent states) are put into groups of equally many layers, all of whose pages are made equally large,
so that any free block serves any group. A request holds blocks in every group.

Source: vllm-project/vllm v0.32.0 vllm/v1/core/kv_cache_utils.py (get_kv_cache_groups, unify_kv_cache_spec_page_size,
_get_kv_cache_groups_uniform_page_size, get_kv_cache_capacity), vllm/v1/kv_cache_interface.py, vllm/platforms/interface.py
(_align_hybrid_block_size).
"""

from __future__ import annotations

import math

import msgspec

from aim_engine.model.spec import LayerGroup, ModelSpec

BLOCK_TOKENS = 16
CPU_BLOCK_TOKENS = 128
"""vllm/platforms/cpu.py check_and_update_config: block_size 128 unless the user gives one."""
BATCHES_IN_FLIGHT = 2
"""Steps that are scheduled before the first is settled, with asynchronous scheduling."""
STATE_PAGES = {"linear": 2, "mamba": 3, "full": 3, "sliding": 3}
"""Pages that a request keeps of a recurrent state while prefix caching is on, as it is unless switched off: the running one, the
last block's, and for Mamba layers (those beside attention in one layer too) a checkpoint of the prefill."""
_NEARLY_AS_MANY = 1.5
"""Below this ratio of layers per kind, groups are padded up to the larger kind instead of split down to the smaller."""
_CONCURRENCY_SINCE = (0, 22)
"""First release whose log counts tokens by the requests of full length that fit; older ones count blocks per group."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Block tables of one kind: `tables` of them, each shared by equally many layers."""

    kind: str
    tables: int
    block_tokens: int
    window_tokens: int | None = None
    pages: int = 1
    """Of a state: pages of each table that one request keeps, with those that prefix caching checkpoints into."""

    def blocks(self, tokens: int, in_flight_tokens: int) -> int:
        """Blocks that one request of `tokens` holds in all tables of this group."""
        if self.kind == "state":
            return self.tables * self.pages
        held, extra = tokens, 0
        if self.window_tokens is not None:
            if self.kind == "chunked":
                held = min(tokens, self.window_tokens + in_flight_tokens)
            else:
                held, extra = min(tokens, self.window_tokens - 1 + in_flight_tokens), 1
        return self.tables * (math.ceil(held / self.block_tokens) + extra)


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The cache of one device."""

    groups: tuple[Group, ...]
    block_bytes: int
    """Bytes that one block takes over all layers of a table; 0 for a model without any cache."""

    def blocks(self, tokens: int, in_flight_tokens: int) -> int:
        """Blocks one request of `tokens` holds."""
        return sum(group.blocks(tokens, in_flight_tokens) for group in self.groups)

    def pool(self, kv_bytes: int) -> int:
        """Blocks that fit into `kv_bytes`."""
        return max(0, kv_bytes) // self.block_bytes if self.block_bytes else 0

    def logged_tokens(self, kv_bytes: int, max_model_len: int, in_flight_tokens: int, version: str) -> int:
        """The number that the engine's log calls its cache size."""
        count = self.pool(kv_bytes)
        if not count:
            return 0
        if release(version) >= _CONCURRENCY_SINCE:
            return int(count / self.blocks(max_model_len, in_flight_tokens) * max_model_len)
        tables = sum(group.tables for group in self.groups)
        return count // tables * min(group.block_tokens for group in self.groups)


def layout(
    spec: ModelSpec, *, tp: int, pp: int, value_bytes: float, state_value_bytes: float, block_tokens: int
) -> Layout:
    """The cache of one device of the fullest pipeline stage.

    `value_bytes` are those of a cached key or value, `state_value_bytes` those of a convolution state's value.
    """
    attention: dict[tuple[str, int | None, float], int] = {}
    states: dict[tuple[float, int], int] = {}
    for group in spec.groups:
        count = math.ceil(group.count / pp)
        per_token = layer_bytes_per_token(group, tp, value_bytes)
        if per_token:
            key = ("full" if group.kind == "mla" else group.kind, group.window_tokens, per_token)
            attention[key] = attention.get(key, 0) + count
        size = layer_state_bytes(group, state_value_bytes) / tp
        if size:
            state = (size, STATE_PAGES.get(group.kind, 1))
            states[state] = states.get(state, 0) + count
    if not attention:
        return _states_only(states)
    kinds = {(kind, window) for kind, window, _ in attention}
    if len(kinds) == 1 and not states:
        (kind, window) = next(iter(kinds))
        total = sum(per_token * count for (_, _, per_token), count in attention.items())
        one = Group(kind=kind, tables=1, block_tokens=block_tokens, window_tokens=window)
        return Layout(groups=(one,), block_bytes=math.ceil(total * block_tokens))
    return _hybrid(attention, states, block_tokens)


def layer_bytes_per_token(group: LayerGroup, tp: int, value_bytes: float) -> float:
    """Bytes one token takes in one layer on one device; 0 for a layer that keeps a state instead.

    Heads are replicated, not split, once tp exceeds them; a latent is never split.
    """
    if group.kind == "mla":
        # The sparse indexer's keys are always one byte each, with a 32-bit scale for 128 of them.
        return group.latent_dim * value_bytes + group.indexer_dim * (1 + 4 / 128)
    if group.kind in ("full", "sliding", "chunked"):
        return max(1, group.kv_heads // tp) * (group.head_dim_k + group.head_dim_v) * value_bytes
    return 0.0


def layer_state_bytes(group: LayerGroup, value_bytes: float) -> float:
    """State of one sequence in one whole layer: recurrent values in their own type, convolution in the model's."""
    return group.state_elements * group.state_value_bytes + group.conv_elements * value_bytes


def _states_only(states: dict[tuple[float, int], int]) -> Layout:
    """A model without attention: one table, one page of state for each layer."""
    if not states:
        return Layout(groups=(), block_bytes=0)
    total = sum(size * count for (size, _), count in states.items())
    pages = max(pages for _, pages in states)
    return Layout(groups=(Group(kind="state", tables=1, block_tokens=1, pages=pages),), block_bytes=math.ceil(total))


def _hybrid(
    attention: dict[tuple[str, int | None, float], int], states: dict[tuple[float, int], int], block_tokens: int
) -> Layout:
    """Several kinds: pages as large as the largest, tables of equally many layers.

    A recurrent state's page does not scale with tokens, so the attention block is raised until its page holds the state.
    """
    if states:
        widest = max(per_token for _, _, per_token in attention)
        block_tokens = max(
            block_tokens, block_tokens * math.ceil(max(size for size, _ in states) / (block_tokens * widest))
        )
    page = max(per_token for _, _, per_token in attention) * block_tokens
    buckets: list[tuple[str, int, int, int | None, int]] = []
    for (kind, window, per_token), count in attention.items():
        ratio = page / (per_token * block_tokens)
        tokens = block_tokens * round(ratio) if abs(ratio - round(ratio)) < 1e-9 else block_tokens
        buckets.append((kind, count, tokens, window, 1))
    if states:
        kept = max(pages for _, pages in states)
        buckets.append(("state", sum(states.values()), block_tokens, None, kept))
    fewest, most = min(bucket[1] for bucket in buckets), max(bucket[1] for bucket in buckets)
    layers = most if most < fewest * _NEARLY_AS_MANY else fewest
    groups = tuple(
        Group(kind=kind, tables=math.ceil(count / layers), block_tokens=tokens, window_tokens=window, pages=kept)
        for kind, count, tokens, window, kept in buckets
    )
    return Layout(groups=groups, block_bytes=math.ceil(page * layers))


def release(version: str) -> tuple[int, int]:
    """(major, minor) of an engine's version; before everything when it does not look like one of vLLM's."""
    parts = version.lower().removeprefix("vllm").strip(" v").split(".")
    try:
        found = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        return (0, 0)
    return found if found < (2, 0) else (0, 0)
