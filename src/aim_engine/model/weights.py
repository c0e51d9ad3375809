"""Exact weight bytes from a checkpoint's own headers; the weights themselves are never read.

A safetensors file starts with an 8-byte length and a JSON header that lists every tensor's type, shape and offsets.
Source: https://github.com/huggingface/safetensors, format section of the README.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.model.spec import ModelSpec

MAX_HEADER_BYTES = 100_000_000
"""What the format's own library accepts at most."""


def with_weights(spec: ModelSpec, folder: Path) -> ModelSpec:
    """`spec` with the exact bytes of the safetensors files in `folder`; unchanged when there are none.

    An index that lists files which are not there gives its own total. Raises: Corrupt.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    listed = _index(index) if index.is_file() else None
    if listed is not None and {path.name for path in files} < set(listed[1]):
        return exact(spec, listed[0])
    if not files:
        return spec
    chosen = [path for path in files if listed is None or path.name in listed[1]]
    return exact(spec, sum(tensor_bytes(path) for path in chosen))


def exact(spec: ModelSpec, weight_bytes: int) -> ModelSpec:
    """`spec` with weight bytes that were read, not computed."""
    return msgspec.structs.replace(spec, weight_bytes=weight_bytes, basis="headers")


def tensor_bytes(path: Path) -> int:
    """Bytes of all tensors in one safetensors file, by its header. Raises: Corrupt."""
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
            header = json.loads(handle.read(length))
    except (ValueError, RecursionError) as err:
        raise Corrupt(f"{path} has no readable header", why=str(err), hint="fetch it again") from err
    except OSError as err:
        raise Corrupt(f"{path} cannot be read", why=err.strerror) from err
    end = max((_end(name, entry, path) for name, entry in header.items() if name != "__metadata__"), default=0)
    if 8 + length + end > size:
        raise Corrupt(
            f"{path} is cut short", why=f"{8 + length + end} bytes are needed, {size} are there", hint="fetch it again"
        )
    return end


def index_total(content: bytes, name: str) -> int | None:
    """`total_size` of a model.safetensors.index.json; None when it states none. Raises: Corrupt."""
    try:
        total = json.loads(content).get("metadata", {}).get("total_size")
    except (ValueError, AttributeError) as err:
        raise Corrupt(f"{name} is not a weight index", why=str(err), hint="fetch it again") from err
    return int(total) if isinstance(total, int | float) and total > 0 else None


def _index(path: Path) -> tuple[int, list[str]] | None:
    """Total bytes and file names of an index; None when it has no total. Raises: Corrupt."""
    content = path.read_bytes()
    total = index_total(content, str(path))
    mapping: Any = json.loads(content).get("weight_map")
    return (total, sorted(set(mapping.values()))) if total and isinstance(mapping, dict) else None


def _end(name: str, entry: object, path: Path) -> int:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(o, int) and o >= 0 for o in offsets)):
        raise Corrupt(f"{path} has no offsets for the tensor {name}", hint="fetch it again")
    return int(offsets[1])
