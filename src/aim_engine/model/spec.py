"""What a model is, as far as serving it is concerned: shapes, parameters by part, and weight format.

A spec is built from a `config.json` by `model.config` and refined with safetensors headers by `model.weights`. It says
nothing about any GPU or engine: what it costs to run is `perf`'s question.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from aim_engine.errors import InvalidInput

LayerKind = Literal["full", "sliding", "chunked", "mla", "linear", "mamba", "cross", "none"]
"""How a layer remembers the past: full/sliding/chunked attention keep K and V, mla keeps a latent, linear and mamba
keep a fixed-size state, cross attends to an encoder, none (a feed-forward-only layer) keeps nothing."""


class LayerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Layers of one kind and shape, anywhere in the stack."""

    kind: LayerKind
    count: int
    heads: int = 0
    kv_heads: int = 0
    head_dim_k: int = 0
    head_dim_v: int = 0
    window_tokens: int | None = None
    """Sliding window, or chunk length for chunked attention."""
    latent_dim: int = 0
    """mla: kv_lora_rank + qk_rope_head_dim, what one token keeps per layer."""
    indexer_dim: int = 0
    """mla with a sparse indexer: extra values one token keeps per layer."""
    state_elements: int = 0
    state_value_bytes: int = 4
    """Bytes of one recurrent value: what the config asks for, else the model's own type."""
    """linear, mamba: recurrent state values of one sequence per layer."""
    conv_elements: int = 0
    """linear, mamba: convolution state values of one sequence per layer."""


class Moe(msgspec.Struct, frozen=True, kw_only=True):
    """The mixture-of-experts feed-forward layers."""

    layers: int
    experts: int
    experts_per_token: int
    intermediate_size: int
    """Of one routed expert."""
    shared_intermediate_size: int = 0
    """Sum over the shared experts of a layer; 0 without any."""


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Parameter counts by part; the parts add up to `total`."""

    embedding: int
    lm_head: int
    """0 when tied to the embedding."""
    attention: int
    """Projections of all layers that can be split by heads (K and V included), linear attention and mamba mixers too."""
    attention_replicated: int = 0
    """Attention weights every tensor-parallel rank holds whole, such as MLA down-projections."""
    kv_projection: int = 0
    """The part of `attention` that is K and V projections: replicated once tp exceeds the KV heads."""
    dense_mlp: int = 0
    experts: int = 0
    """All routed experts."""
    shared_experts: int = 0
    router: int = 0
    norms: int = 0
    vision: int = 0
    """Vision and audio towers and their projectors."""
    mtp: int = 0
    """Multi-token-prediction (draft) layers in the checkpoint; loaded only when speculation is on."""
    other: int = 0

    @property
    def total(self) -> int:
        """All parts, `kv_projection` being contained in `attention`. MTP layers included."""
        return (
            self.embedding
            + self.lm_head
            + self.attention
            + self.attention_replicated
            + self.dense_mlp
            + self.experts
            + self.shared_experts
            + self.router
            + self.norms
            + self.vision
            + self.mtp
            + self.other
        )


WeightFormat = Literal[
    "bf16",
    "fp16",
    "fp32",
    "fp8",
    "fp8_block",
    "int8",
    "int4",
    "mxfp4",
    "mxfp6",
    "mxfp8",
    "nvfp4",
    "nf4",
    "gguf",
]


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """How a checkpoint's weights are stored when not in plain 16 or 32 bit."""

    method: str
    """The engine's name: fp8, compressed-tensors, awq, gptq, quark, mxfp4, modelopt, bitsandbytes, gguf."""
    format: WeightFormat
    """Of the quantised layers."""
    bytes_per_weight: float
    """Scales and zero points included, for the quantised layers."""
    quantised_parts: tuple[str, ...]
    """Fields of `Parameters` that are stored in this format; the rest stays in `ModelSpec.dtype`."""
    activations: Literal["16bit", "fp8", "int8", "fp4"] = "16bit"
    kv_cache_dtype: str | None = None
    """KV cache format that the checkpoint was calibrated for, if it says so."""
    block_size: tuple[int, int] | None = None
    group_size: int | None = None


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What the headers of a checkpoint's files say; bytes."""

    files: int
    tensors: int
    total_bytes: int
    dtype_bytes: dict[str, int]
    """By type as the files name it, such as BF16 or F8_E4M3."""
    part_bytes: dict[str, int]
    """By part of the model, largest first."""
    layer_bytes: dict[str, int]
    """By number of the layer."""
    index_bytes: int | None = None
    """What the weight index says the total is; None without one."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/model/v1"):
    """A model's shape. Counts are whole numbers, sizes are bytes."""

    model_id: str
    architecture: str
    """First entry of `architectures`, or model_type when absent."""
    model_type: str
    basis: Literal["headers", "config", "name"]
    """headers: weight bytes are exact; config: computed from shapes; name: only the size in the name is known."""
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    intermediate_size: int
    max_position_embeddings: int
    dtype: Literal["bf16", "fp16", "fp32"]
    groups: tuple[LayerGroup, ...]
    parameters: Parameters
    moe: Moe | None = None
    quantization: Quantization | None = None
    tied_embeddings: bool = False
    encoder_only: bool = False
    has_sinks: bool = False
    """Attention sinks (gpt-oss), which some attention backends lack."""
    modality: Literal["text", "vision", "audio", "omni"] = "text"
    weight_bytes: int | None = None
    """Exact checkpoint bytes when headers or an index were read."""
    stored: Stored | None = None
    """What the headers say in detail, where they were read."""
    needs_remote_code: bool = False
    gated: bool | None = None
    license: str | None = None
    has_chat_template: bool | None = None
    source: str = ""
    """Where the description came from: catalogue file, local folder, hub revision."""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "vocab_size"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{self.model_id}: {name} must be positive, not {getattr(self, name)}")
        if sum(group.count for group in self.groups) != self.layers:
            raise InvalidInput(
                f"{self.model_id}: the layer groups hold {sum(g.count for g in self.groups)} layers, not {self.layers}"
            )

    @property
    def is_moe(self) -> bool:
        """Has expert layers."""
        return self.moe is not None

    @property
    def is_mla(self) -> bool:
        """Keeps a compressed latent instead of keys and values."""
        return any(group.kind == "mla" for group in self.groups)

    @property
    def is_hybrid(self) -> bool:
        """Has layers with a recurrent state beside attention layers."""
        return any(group.kind in ("linear", "mamba") for group in self.groups)

    @property
    def served_parameters(self) -> int:
        """Parameters an engine loads without speculation (MTP layers left out)."""
        return self.parameters.total - self.parameters.mtp

    @property
    def active_parameters(self) -> int:
        """Parameters that one token's forward pass touches; the input embedding is a look-up and is not counted."""
        parts = self.parameters
        active = self.served_parameters - parts.embedding - parts.vision - parts.experts
        if self.tied_embeddings:
            active += self.vocab_size * self.hidden_size
        if self.moe is not None:
            active += parts.experts * self.moe.experts_per_token // self.moe.experts
        return active

    @property
    def format(self) -> WeightFormat:
        """The format most of the weights are stored in."""
        return self.quantization.format if self.quantization is not None else self.dtype
