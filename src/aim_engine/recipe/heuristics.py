"""Rules of thumb on a model's name, for when nothing better is known.

They come from the product's first specification. Where a model's files can be read the planner computes instead, and it
says which of the two it used: 70B models, for one, need eight GPUs by this table and one MI300X in reality.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_engine.errors import InvalidInput


def calculate_optimal_gpu_count(model_requirements: Mapping[str, Any]) -> int:
    """GPUs by model size alone. `model_requirements['size']` is in billions of parameters. Raises: InvalidInput."""
    size = _size(model_requirements)
    for limit, count in ((8, 1), (14, 2), (34, 4), (72, 8)):
        if size <= limit:
            return count
    return min(16, int(size // 8))


def select_optimal_precision(model_requirements: Mapping[str, Any], gpu_info: Mapping[str, Any]) -> str:
    """16-bit format by model size and `gpu_info['memory_per_gpu']` in GB: small models fp16, large or tight ones bf16.

    Raises: InvalidInput.
    """
    size = _size(model_requirements)
    memory_gb = gpu_info.get("memory_per_gpu")
    if not isinstance(memory_gb, int | float) or memory_gb <= 0:
        raise InvalidInput(f"memory_per_gpu={memory_gb!r} is not a size in GB")
    if size > 32 or memory_gb < 24:
        return "bf16"
    return "fp16" if size <= 14 else "bf16"


def _size(requirements: Mapping[str, Any]) -> float:
    size = requirements.get("size")
    if not isinstance(size, int | float) or isinstance(size, bool) or size <= 0:
        raise InvalidInput(f"size={size!r} is not a number of billions of parameters", hint="for example {'size': 32}")
    return float(size)
