"""One serving configuration, complete enough to start an engine with it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from aim_engine.errors import InvalidInput

Precision = Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4", "mxfp4", "mxfp6", "mxfp8", "nvfp4"]


class Parallelism(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """How one replica is spread over devices."""

    tp: int = 1
    """Tensor parallel."""
    pp: int = 1
    """Pipeline parallel."""
    dp: int = 1
    """Data-parallel attention ranks inside one server (MoE and MLA models)."""
    ep: bool = False
    """Expert parallel: whole experts per rank over tp x dp, instead of slices of each."""

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}={getattr(self, name)} is not possible", hint=f"{name} is at least 1")

    @property
    def world_size(self) -> int:
        """Devices one replica takes."""
        return self.tp * self.pp * self.dp

    def describe(self) -> str:
        """`tp8`, `tp4 pp2`, `dp8 ep`."""
        parts = [f"{name}{getattr(self, name)}" for name in ("tp", "pp", "dp") if getattr(self, name) > 1]
        return " ".join((*(parts or ["tp1"]), *(("ep",) if self.ep else ())))


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica asks of the host, for container and pod limits."""

    cpu_cores: int
    memory_bytes: int
    shm_bytes: int
    gpus: int


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A real run of a recipe."""

    gpu: str
    engine_version: str
    image: str | None = None
    date: str = ""
    source: str = ""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/recipe/v1"):
    """A serving configuration. Field names follow the engine's own where it has one."""

    model_id: str
    gpu: str
    """Name in the GPU catalogue, or `cpu`."""
    gpu_count: int
    """Devices of all replicas together; 0 on a CPU."""
    replicas: int = 1
    engine: str
    engine_version: str
    parallelism: Parallelism = Parallelism()
    precision: Precision
    """Format the weights are computed from: the checkpoint's, or one that the engine quantises to on load."""
    online_quantization: str | None = None
    """The engine's `--quantization` value when it quantises a 16-bit checkpoint on load."""
    kv_cache_dtype: str = "auto"
    attention_backend: str | None = None
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None = None
    """Bytes of cache per device set outright, which makes the engine ignore gpu_memory_utilization; used on CPUs,
    where the rest of the memory belongs to others."""
    trust_remote_code: bool = False
    extra_args: tuple[str, ...] = ()
    """Further engine arguments, verbatim tokens."""
    env: dict[str, str] = {}
    resources: Resources
    provenance: Literal["curated", "measured", "generated", "fallback"] = "generated"
    provenance_note: str = ""
    verified: tuple[Verified, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "replicas"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}={getattr(self, name)} is not possible", hint=f"{name} is at least 1")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise InvalidInput(
                f"gpu_memory_utilization={self.gpu_memory_utilization} is not possible", hint="it lies above 0, up to 1"
            )
        if self.gpu_count not in (0, self.replicas * self.parallelism.world_size):
            raise InvalidInput(
                f"{self.gpu_count} GPUs do not hold {self.replicas} x {self.parallelism.describe()}",
                hint=f"that takes {self.replicas * self.parallelism.world_size}",
            )

    @property
    def key(self) -> str:
        """Short stable name: `1x tp2 fp8 kv=auto seqs=256 tokens=8192`."""
        return (
            f"{self.replicas}x {self.parallelism.describe()} {self.precision} kv={self.kv_cache_dtype} "
            f"seqs={self.max_num_seqs} tokens={self.max_num_batched_tokens}"
        )


def replace(recipe: Recipe, **changes: Any) -> Recipe:
    """A copy of `recipe` with `changes`, checked like a new one."""
    return msgspec.structs.replace(recipe, **changes)
