"""How is an engine told? Flags, environment, images and defaults of serving engines, by release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aim_engine.errors import InvalidInput

if TYPE_CHECKING:
    from aim_engine.backend.vllm import Vllm

NAMES = ("vllm",)


def get(name: str, overlay: Path | None = None) -> Vllm:
    """The engine of that name. Raises: InvalidInput with the known ones."""
    if name != "vllm":
        raise InvalidInput(f"'{name}' is not an engine AIM Engine knows", hint=f"known: {', '.join(NAMES)}")
    from aim_engine.backend.vllm import Vllm

    return Vllm(overlay)
