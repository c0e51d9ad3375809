"""How is an engine told? Flags, environment, images and defaults of serving engines, by release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aim_engine.errors import InvalidInput

if TYPE_CHECKING:
    from aim_engine.backend.base import Backend

NAMES = ("vllm", "sglang")


def get(name: str, overlay: Path | None = None) -> Backend:
    """The engine of that name. Raises: InvalidInput with the known ones."""
    if name == "vllm":
        from aim_engine.backend.vllm import Vllm

        return Vllm(overlay)
    if name == "sglang":
        from aim_engine.backend.sglang import Sglang

        return Sglang(overlay)
    raise InvalidInput(f"'{name}' is not an engine AIM Engine knows", hint=f"known: {', '.join(NAMES)}")
