"""Exact weight bytes from a checkpoint's own headers; the weights themselves are never read.

A safetensors file starts with an 8-byte length and a JSON header that lists every tensor's type, shape and offsets.
Source: https://github.com/huggingface/safetensors, format section of the README.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.model.spec import ModelSpec, Stored
from aim_engine.units import format_bytes

if TYPE_CHECKING:
    from aim_engine.model.hub import Repository

MAX_HEADER_BYTES = 100_000_000
"""What the format's own library accepts at most."""
FIRST_BYTES = 16 * 1024
"""Asked first of a file whose tensors no index lists; the rest of a longer header is asked for."""
ENTRY_BYTES = 92
"""About what a header says of one tensor beside its name: a type, two or three dimensions and two offsets."""
PARALLEL = 8
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("vision", re.compile(r"visual|vision|image|mm_projector|multi_modal|audio")),
    ("mtp", re.compile(r"(?:^|\.)mtp\.|eh_proj|nextn")),
    ("shared experts", re.compile(r"shared_expert")),
    ("experts", re.compile(r"experts|block_sparse_moe\.experts")),
    ("embedding", re.compile(r"embed_tokens|wte\.|word_embeddings|tok_embeddings|token_embd")),
    ("head", re.compile(r"lm_head|(?:^|\.)output\.weight|embed_out")),
    ("norms", re.compile(r"norm|ln_\d|ln_f")),
    ("attention", re.compile(r"attn|attention|mixer|q_proj|k_proj|v_proj|o_proj|qkv")),
    ("feed-forward", re.compile(r"mlp|ffn|feed_forward|gate_proj|up_proj|down_proj|router|gate\.")),
)


class Tensor(msgspec.Struct, frozen=True):
    """One tensor of a file: its name, type as the file says it, and bytes."""

    name: str
    dtype: str
    size_bytes: int


def with_weights(spec: ModelSpec, folder: Path) -> ModelSpec:
    """`spec` with the exact bytes of the safetensors files in `folder`; unchanged when there are none.

    An index that lists files which are not there gives its own total. Raises: Corrupt.
    """
    files = sorted(folder.glob("*.safetensors"))
    path = folder / "model.safetensors.index.json"
    index = path.read_bytes() if path.is_file() else None
    listed = set(shards(index, str(path))) if index is not None else set()
    if index is not None and {file.name for file in files} < listed:
        total = index_total(index, str(path))
        return exact(spec, total) if total else spec
    chosen = [file for file in files if not listed or file.name in listed]
    if not chosen:
        return spec
    stored = summary([tensor for file in chosen for tensor in tensors(file)], len(chosen), spec.layers)
    return with_stored(spec, stored, index, str(path))


def with_stored(spec: ModelSpec, stored: Stored, index: bytes | None, name: str) -> ModelSpec:
    """`spec` with what its headers say, and a warning when the index says otherwise. Raises: Corrupt."""
    total = index_total(index, name) if index is not None else None
    stored = msgspec.structs.replace(stored, index_bytes=total)
    warnings = spec.warnings
    if total is not None and abs(total - stored.total_bytes) > 0.001 * stored.total_bytes:
        warnings += (
            f"the weight index says {format_bytes(total)}, the headers add up to {format_bytes(stored.total_bytes)}",
        )
    return msgspec.structs.replace(exact(spec, stored.total_bytes), stored=stored, warnings=warnings)


def exact(spec: ModelSpec, weight_bytes: int) -> ModelSpec:
    """`spec` with weight bytes that were read, not computed."""
    return msgspec.structs.replace(spec, weight_bytes=weight_bytes, basis="headers")


def summary(found: Iterable[Tensor], files: int, decoder_layers: int) -> Stored:
    """Bytes by type, part and layer of all tensors of a checkpoint; layers beyond the decoder's are draft layers."""
    dtypes: dict[str, int] = {}
    parts: dict[str, int] = {}
    layers: dict[int, int] = {}
    count = 0
    for tensor in found:
        count += 1
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.size_bytes
        part = next((name for name, pattern in _PARTS if pattern.search(tensor.name)), "other")
        layer = _LAYER.search(tensor.name)
        if layer is not None and part != "vision" and int(layer[1]) >= decoder_layers:
            part = "mtp"
        parts[part] = parts.get(part, 0) + tensor.size_bytes
        if layer is not None and part != "vision":
            layers[int(layer[1])] = layers.get(int(layer[1]), 0) + tensor.size_bytes
    return Stored(
        files=files,
        tensors=count,
        total_bytes=sum(dtypes.values()),
        dtype_bytes=dict(sorted(dtypes.items())),
        part_bytes=dict(sorted(parts.items(), key=lambda item: (-item[1], item[0]))),
        layer_bytes={str(number): layers[number] for number in sorted(layers)},
    )


def tensors(path: Path) -> list[Tensor]:
    """All tensors of one safetensors file, by its header. Raises: Corrupt."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise Corrupt(
                    f"{path} is not a safetensors file",
                    why=f"its header claims {length} bytes in a file of {size}",
                    hint="fetch it again",
                )
            content = handle.read(length)
    except OSError as err:
        raise Corrupt(f"{path} cannot be read", why=err.strerror) from err
    found, end = _parsed(content, str(path))
    if 8 + length + end > size:
        raise Corrupt(
            f"{path} is cut short", why=f"{8 + length + end} bytes are needed, {size} are there", hint="fetch it again"
        )
    return found


def read_remote(repository: Repository, files: Mapping[str, Sequence[str]], layers: int) -> Stored | None:
    """The headers of all files of a checkpoint on the hub, side by side; None when there is no such file.

    `files`: each with the tensors that the index lists for it, which tell how long its header will be.
    Raises: Corrupt, InvalidInput, Unreachable.
    """
    from concurrent.futures import ThreadPoolExecutor

    def read(name: str) -> list[Tensor] | None:
        where = f"{name} of {repository.ref} on the hub"
        expected = 512 + sum(len(tensor) + ENTRY_BYTES for tensor in files[name])
        first = repository.piece(name, 0, expected if files[name] else FIRST_BYTES)
        if first is None:
            return None
        length = int.from_bytes(first[:8], "little")
        if len(first) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise Corrupt(f"{where} is not a safetensors file", why=f"its header claims {length} bytes")
        content = first[8 : 8 + length]
        if len(content) < length:
            content += repository.piece(name, 8 + len(content), 8 + length) or b""
        if len(content) < length:
            raise Corrupt(f"{where} is cut short", why=f"its header has {len(content)} of {length} bytes")
        return _parsed(content, where)[0]

    with ThreadPoolExecutor(PARALLEL) as pool:
        read_files = list(pool.map(read, files))
    found = [file for file in read_files if file is not None]
    if len(found) < len(files):
        return None
    return summary([tensor for file in found for tensor in file], len(found), layers)


def index_total(content: bytes, name: str) -> int | None:
    """`total_size` of a model.safetensors.index.json; None when it states none. Raises: Corrupt."""
    total = _mapping(_index(content, name).get("metadata")).get("total_size")
    return int(total) if isinstance(total, int | float) and total > 0 else None


def shards(content: bytes, name: str) -> dict[str, list[str]]:
    """The files that an index lists with their tensors; none when it lists none. Raises: Corrupt."""
    found: dict[str, list[str]] = {}
    for tensor, file in _mapping(_index(content, name).get("weight_map")).items():
        if isinstance(file, str) and "/" not in file:
            found.setdefault(file, []).append(tensor)
    return dict(sorted(found.items()))


def _index(content: bytes, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as err:
        raise Corrupt(f"{name} is not a weight index", why=str(err), hint="fetch it again") from err
    if not isinstance(found, dict):
        raise Corrupt(f"{name} is not a weight index", why="it is not a JSON object", hint="fetch it again")
    return found


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _parsed(content: bytes, where: str) -> tuple[list[Tensor], int]:
    """The tensors of a header, and where the last of them ends. Raises: Corrupt."""
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise Corrupt(f"{where} has no readable header", why=str(err), hint="fetch it again") from err
    found, end = [], 0
    for name, entry in _mapping(header).items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int and o >= 0 for o in offsets)):
            raise Corrupt(f"{where} has no offsets for the tensor {name}", hint="fetch it again")
        found.append(Tensor(name, str(entry.get("dtype", "unknown")), max(0, offsets[1] - offsets[0])))
        end = max(end, offsets[1])
    return found, end
