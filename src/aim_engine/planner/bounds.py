"""What physics leaves: the least time that reading weights and computing prompts takes at the full rates of the devices.

No calibration is in it. A limit below it can be kept by no setting, only by other devices, fewer bytes or shorter prompts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from aim_engine.planner.family import Family
from aim_engine.units import format_gib, format_ms
from aim_engine.workload import Limit


class Bound(NamedTuple):
    """The least a time can be with any of some spreads."""

    ms: float
    why: str


def below(limit: Limit, families: Iterable[Family]) -> Bound | None:
    """The bound of a limit that is below it with every one of `families`; None when it is not."""
    least = min(
        (_bound(limit.name, family) for family in families), key=lambda bound: (bound.ms, bound.why), default=None
    )
    return least if least is not None and limit.ms < least.ms else None


def _bound(name: str, family: Family) -> Bound:
    features, gpu = family.speed.model.features, family.inputs.gpu
    token_ms, prompt_ms = features.least_token_s * 1e3, features.least_prompt_s * 1e3
    read = format_gib(features.least_token_s * features.yielded * gpu.bandwidth())
    reading = (
        f"a token reads {read} of weights and cache per device ({family.name}), which takes {format_ms(token_ms)} at "
        f"{gpu.bandwidth() / 1e12:g} TB/s"
    )
    computing = f"the prompt takes {format_ms(prompt_ms)} at the peak rate of the devices ({family.name})"
    if name == "tpot":
        return Bound(token_ms, reading)
    if name == "ttft":
        return Bound(prompt_ms, computing)
    return Bound(prompt_ms + (features.output_tokens - 1) * token_ms, f"{computing}, and {reading}")
