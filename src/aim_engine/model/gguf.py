"""GGUF files: a header that describes the model and lists every tensor; the weights after it are never read.

Layout: magic, version, numbers of tensors and of metadata entries, the entries (key, type, value), then name, dimensions, type and
offset of each tensor. All numbers are little-endian.
Source: ggml-org/ggml docs/gguf.md; ggml/src/ggml-common.h for the block sizes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aim_engine.errors import Corrupt, InvalidInput
from aim_engine.model import config, weights
from aim_engine.model.spec import ModelSpec, Quantization
from aim_engine.model.weights import Tensor

if TYPE_CHECKING:
    from aim_engine.model.hub import Repository

PIECE_BYTES = 1024 * 1024
MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_ENTRIES = 1_000_000
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""Type number -> name, values in a block, bytes of a block."""
_MODEL_TYPES = {
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "deepseek2": "deepseek_v3",
    "glm4moe": "glm4_moe",
    "gpt-oss": "gpt_oss",
    "command-r": "cohere",
    "granitemoe": "granitemoe",
    "chatglm": "chatglm",
    "llama4": "llama4_text",
    "phimoe": "phimoe",
}
"""Architecture names that differ from those of a config.json."""
_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "first_k_dense_replace": "leading_dense_block_count",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
}
_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim")


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A GGUF header."""

    metadata: dict[str, Any]
    """Arrays of more than 16 entries are given by their length alone."""
    tensors: tuple[Tensor, ...]
    shapes: dict[str, tuple[int, ...]]


def read(path: Path) -> File:
    """The header of a local file. Raises: Corrupt, InvalidInput."""
    try:
        with path.open("rb") as handle:

            def more(start: int, stop: int) -> bytes:
                handle.seek(start)
                return handle.read(stop - start)

            return _Cursor(more, str(path)).file()
    except OSError as err:
        raise InvalidInput(f"{path} cannot be read", why=err.strerror) from err


def read_remote(repository: Repository, name: str) -> File:
    """The header of a file on the hub, in pieces. Raises: Corrupt, InvalidInput, Unreachable."""
    where = f"{name} of {repository.ref} on the hub"
    return _Cursor(lambda start, stop: repository.piece(name, start, stop) or b"", where).file()


def describe(file: File, source: str) -> ModelSpec:
    """The model in a GGUF file, with its exact bytes. Raises: InvalidInput naming what its metadata lacks."""
    about = file.metadata
    arch = str(about.get("general.architecture") or "")
    if not arch:
        raise InvalidInput(f"{source} names no architecture", why="its metadata has no general.architecture")
    vocabulary = about.get("tokenizer.ggml.tokens")
    embedding = file.shapes.get("token_embd.weight")
    values: dict[str, Any] = {
        "model_type": _MODEL_TYPES.get(arch, arch),
        "vocab_size": vocabulary if isinstance(vocabulary, int) else embedding[1] if embedding else None,
        "tie_word_embeddings": "output.weight" not in file.shapes,
    }
    for key, name in _KEYS.items():
        value = about.get(f"{arch}.{name}")
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            values[key] = value
    if "kv_lora_rank" not in values:
        values = {key: value for key, value in values.items() if key not in _LATENT}
    else:
        values["qk_nope_head_dim"] = values.get("head_dim", 0) - values.get("qk_rope_head_dim", 0)
        values["v_head_dim"] = about.get(f"{arch}.attention.value_length") or values.get("head_dim")
    shared = about.get(f"{arch}.expert_shared_count")
    if isinstance(shared, int) and shared:
        values["n_shared_experts"] = shared
    name = str(about.get("general.name") or Path(source).stem)
    spec = config.parse({k: v for k, v in values.items() if v is not None}, model_id=name, source=source)
    stored = weights.summary(file.tensors, 1, spec.layers)
    size = stored.total_bytes / max(1, spec.served_parameters)
    packed = Quantization(
        method="gguf",
        format="gguf",
        bytes_per_weight=size,
        quantised_parts=tuple(
            part for part in spec.parameters.__struct_fields__ if part not in ("kv_projection", "mtp")
        ),
    )
    whole = msgspec.structs.replace(spec, quantization=packed, stored=stored)
    return weights.exact(whole, stored.total_bytes)


class _Cursor:
    """Reads a header piece by piece."""

    def __init__(self, more: Callable[[int, int], bytes], where: str) -> None:
        self._more, self._where = more, where
        self._content = b""
        self._at = 0

    def file(self) -> File:
        if self._take(4) != b"GGUF":
            raise Corrupt(f"{self._where} is not a GGUF file", why="it does not begin with GGUF")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise InvalidInput(f"{self._where} is a GGUF file of version {version}", why="versions 2 and 3 are known")
        tensors, entries = self._count("tensors"), self._count("metadata entries")
        metadata = {}
        for _ in range(entries):
            key = self._string()
            metadata[key] = self._value(self._scalar("<I"))
        found, shapes = [], {}
        for _ in range(tensors):
            name = self._string()
            dimensions = self._scalar("<I")
            if dimensions > 8:
                raise self._damaged(f"the tensor {name} has {dimensions} dimensions")
            shape = tuple(int(self._scalar("<Q")) for _ in range(dimensions))
            kind = self._scalar("<I")
            self._scalar("<Q")
            if kind not in _TYPES:
                raise InvalidInput(f"{self._where} has a tensor of type {kind}", why="its block size is not known")
            label, block, size = _TYPES[kind]
            count = 1
            for length in shape:
                count *= length
            found.append(Tensor(name.replace("blk.", "layers."), label, -(-count // block) * size))
            shapes[name] = shape
        return File(metadata=metadata, tensors=tuple(found), shapes=shapes)

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > MAX_HEADER_BYTES:
            raise self._damaged("its header does not end")
        while len(self._content) < end:
            piece = self._more(len(self._content), max(end, len(self._content) + PIECE_BYTES))
            if not piece:
                raise self._damaged("it ends inside its header")
            self._content += piece
        taken = self._content[self._at : end]
        self._at = end
        return taken

    def _scalar(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self, what: str) -> int:
        count = int(self._scalar("<Q"))
        if count > MAX_ENTRIES:
            raise self._damaged(f"it claims {count} {what}")
        return count

    def _string(self) -> str:
        return self._take(int(self._scalar("<Q"))).decode("utf-8", errors="replace")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth > 2:
            raise self._damaged(f"a metadata entry has the type {kind}")
        inner, count = self._scalar("<I"), int(self._scalar("<Q"))
        if inner in _SCALARS and count > 16:
            self._take(struct.calcsize(_SCALARS[inner]) * count)
            return count
        values = []
        for number in range(count):
            value = self._value(inner, depth + 1)
            if number < 16:
                values.append(value)
        return values if count <= 16 else count

    def _damaged(self, why: str) -> Corrupt:
        return Corrupt(f"{self._where} is damaged", why=why, hint="fetch it again")
