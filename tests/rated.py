"""A configuration by figures that are set here."""

from __future__ import annotations

import msgspec

from aim_engine.recipe.recipe import Parallelism


class One(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration with just what ranking reads."""

    split: Parallelism = Parallelism(tp=8)
    speed: float = 100.0
    """Tokens per second of one user."""
    per_gpu: float = 100.0
    devices: int = 8
    generated: bool = True
    usd_h: float | None = None
    waits: bool = False
    missed_fraction: float = 0.0
    misses: tuple[tuple[str, float, float], ...] = ()
    replicas: int = 1
    requests: float = 8.0
    precision: str = "fp8"
    kv_cache_dtype: str = "auto"
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 8192
    lossy: int = 0
    off_default: float = 0.0
    tokens_per_joule: float = 1.0

    @property
    def e2e_s(self) -> float:
        return 100 / self.speed

    @property
    def tok_s_per_user(self) -> float:
        return self.speed

    @property
    def tok_s_per_gpu(self) -> float:
        return self.per_gpu

    @property
    def output_tok_s(self) -> float:
        return self.per_gpu * self.devices
