"""What a model's files could do to whoever loads them, told before they are stored or shown.

Weights as safetensors are data. Pickles and Python files are programs: they stay out of views unless their content was
approved by checksum. A safetensors header is read with bounds, since its length and offsets come from a stranger.
"""

from __future__ import annotations

import json
from pathlib import Path

from aim_engine.cache.faults import Unsafe

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
_CODE = (".py", ".pyc", ".so", ".sh")
_MAX_CONFIG_BYTES = 16 << 20
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself. Source: github.com/huggingface/safetensors tensor.rs MAX_HEADER_SIZE."""


def is_pickle(path: str) -> bool:
    """Is it of a format that runs code when it is loaded?"""
    return path.lower().endswith(_PICKLES)


def is_code(path: str) -> bool:
    """Is it a program?"""
    return path.lower().endswith(_CODE)


def runs_code(path: str) -> bool:
    """Is it something that may only be loaded when its content was approved?"""
    return is_pickle(path) or is_code(path)


def wants_code(config: Path) -> str | None:
    """How a model's configuration asks for code that is not in the engine; None when it does not, or cannot be read.

    Source: transformers dynamic_module_utils.py (auto_map), modeling_utils.py (_attn_implementation_internal, which may name a
    repository with a kernel).
    """
    try:
        if config.stat().st_size > _MAX_CONFIG_BYTES:
            return None
        document = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    if document.get("auto_map"):
        return "its auto_map names Python files of its repository"
    for key in ("_attn_implementation_internal", "_attn_implementation", "attn_implementation"):
        if "/" in str(document.get(key, "")):
            return f"its {key} names the repository {str(document[key])[:100]}"
    return None


def require_sound(path: Path, name: str) -> None:
    """Check a safetensors file's header: its length, and that its tensors fill the file without overlap. Raises: Unsafe.

    Source: github.com/huggingface/safetensors README, section Format: 8 bytes little-endian length, JSON, then the data.
    """
    if not name.endswith(".safetensors"):
        return
    why = _header_fault(path)
    if why is not None:
        raise Unsafe(
            f"{name} is refused",
            why=f"it is no sound safetensors file: {why}",
            hint="look for another copy of the model",
        )


def _header_fault(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            return f"its header claims {length:,} bytes of {size:,}"
        text = handle.read(length)
    try:
        header = json.loads(text)
        spans = sorted(_span(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as err:
        return f"its header cannot be read ({type(err).__name__})"
    reached = 0
    for start, end in spans:
        if start != reached or end < start:
            return "its tensors overlap or leave gaps"
        reached = end
    if reached != size - 8 - length:
        return f"its tensors take {reached:,} bytes of {size - 8 - length:,}"
    return None


def _span(offsets: object) -> tuple[int, int]:
    match offsets:
        case [int(start), int(end)]:
            return start, end
    raise ValueError("offsets are two whole numbers")
