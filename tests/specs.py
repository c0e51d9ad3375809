"""Models, cards and recipes built from facts, for tests that are about arithmetic rather than files."""

from __future__ import annotations

from typing import Any

from aim_engine.hardware.gpu import Gpu, Links
from aim_engine.model.spec import LayerGroup, ModelSpec, Moe, Parameters, Quantization
from aim_engine.recipe.recipe import Parallelism, Recipe, Resources
from aim_engine.units import GIB
from aim_engine.workload import Workload

GIGA = 10**9


def dense(
    *,
    hidden: int = 5120,
    layers: int = 64,
    heads: int = 64,
    kv_heads: int = 8,
    head_dim: int = 128,
    intermediate: int = 25600,
    vocab: int = 151936,
    tied: bool = False,
    **changes: Any,
) -> ModelSpec:
    """A dense model with grouped-query attention; the defaults are Qwen3-32B's shapes."""
    kv = 2 * hidden * kv_heads * head_dim * layers
    values: dict[str, Any] = {
        "model_id": "test/dense",
        "architecture": "Qwen3ForCausalLM",
        "model_type": "qwen3",
        "basis": "config",
        "hidden_size": hidden,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "intermediate_size": intermediate,
        "max_position_embeddings": 40960,
        "dtype": "bf16",
        "tied_embeddings": tied,
        "groups": (
            LayerGroup(
                kind="full", count=layers, heads=heads, kv_heads=kv_heads, head_dim_k=head_dim, head_dim_v=head_dim
            ),
        ),
        "parameters": Parameters(
            embedding=vocab * hidden,
            lm_head=0 if tied else vocab * hidden,
            attention=2 * hidden * heads * head_dim * layers + kv,
            kv_projection=kv,
            dense_mlp=3 * hidden * intermediate * layers,
            norms=layers * (2 * hidden + 2 * head_dim) + hidden,
        ),
    }
    return ModelSpec(**{**values, **changes})


def small() -> ModelSpec:
    """Qwen3-0.6B's shapes: 28 layers of 1,024, 16 heads, 8 KV heads, tied embeddings."""
    return dense(hidden=1024, layers=28, heads=16, kv_heads=8, intermediate=3072, tied=True, model_id="test/small")


def mixture() -> ModelSpec:
    """Qwen3-30B-A3B's shapes: 128 experts of width 768, 8 per token, 4 KV heads."""
    hidden, layers, experts, width = 2048, 48, 128, 768
    base = dense(hidden=hidden, layers=layers, heads=32, kv_heads=4, intermediate=6144)
    parts = base.parameters
    return dense(
        hidden=hidden,
        layers=layers,
        heads=32,
        kv_heads=4,
        intermediate=6144,
        model_id="test/mixture",
        moe=Moe(layers=layers, experts=experts, experts_per_token=8, intermediate_size=width),
        parameters=Parameters(
            embedding=parts.embedding,
            lm_head=parts.lm_head,
            attention=parts.attention,
            kv_projection=parts.kv_projection,
            experts=3 * hidden * width * experts * layers,
            router=hidden * experts * layers,
            norms=parts.norms,
        ),
    )


def latent() -> ModelSpec:
    """A model with a compressed KV latent: 61 layers keeping 512 + 64 values a token, 128 heads."""
    layers, hidden, heads = 61, 7168, 128
    return ModelSpec(
        model_id="test/latent",
        architecture="DeepseekV3ForCausalLM",
        model_type="deepseek_v3",
        basis="config",
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=1,
        head_dim=192,
        vocab_size=129280,
        intermediate_size=18432,
        max_position_embeddings=163840,
        dtype="bf16",
        groups=(LayerGroup(kind="mla", count=layers, heads=heads, kv_heads=1, latent_dim=576),),
        moe=Moe(layers=58, experts=256, experts_per_token=8, intermediate_size=2048, shared_intermediate_size=2048),
        parameters=Parameters(
            embedding=129280 * hidden,
            lm_head=129280 * hidden,
            attention=layers * (1536 * heads * 192 + 512 * heads * 256 + heads * 128 * hidden),
            attention_replicated=layers * (hidden * 1536 + hidden * 576),
            dense_mlp=3 * 3 * hidden * 18432,
            experts=58 * 256 * 3 * hidden * 2048,
            shared_experts=58 * 3 * hidden * 2048,
            router=58 * hidden * 256,
            norms=layers * 2 * hidden,
        ),
        quantization=Quantization(
            method="fp8",
            format="fp8_block",
            bytes_per_weight=1 + 4 / 16384,
            quantised_parts=("attention", "attention_replicated", "dense_mlp", "experts", "shared_experts"),
            activations="fp8",
            block_size=(128, 128),
        ),
    )


def card(**changes: Any) -> Gpu:
    """An MI300X by its public peak figures."""
    values: dict[str, Any] = {
        "name": "MI300X",
        "product": "AMD Instinct MI300X",
        "arch": "gfx942",
        "kind": "instinct",
        "memory_bytes": 192 * GIB,
        "bandwidth_bytes_s": 5300 * GIGA,
        "compute_flop_s": {"bf16": 1_307_400 * GIGA, "fp16": 1_307_400 * GIGA, "fp8": 2_614_900 * GIGA},
        "fp8_format": "fnuz",
        "links": Links(kind="xgmi", link_bytes_s=64 * GIGA, peers=7),
    }
    return Gpu(**{**values, **changes})


def recipe(spec: ModelSpec, **changes: Any) -> Recipe:
    """A plain recipe for `spec`; give `parallelism` and the rest follows."""
    parallelism = changes.get("parallelism", Parallelism())
    replicas = changes.get("replicas", 1)
    values: dict[str, Any] = {
        "model_id": spec.model_id,
        "gpu": "MI300X",
        "gpu_count": parallelism.world_size * replicas,
        "engine": "vllm",
        "engine_version": "0.32.0",
        "precision": "bf16" if spec.quantization is None else "fp8",
        "max_model_len": 8192,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": 0.92,
        "resources": Resources(cpu_cores=8, memory_bytes=32 * GIB, shm_bytes=4 * GIB, gpus=parallelism.world_size),
    }
    return Recipe(**{**values, **changes})


WORKLOAD = Workload(input_tokens=1024, output_tokens=512)
