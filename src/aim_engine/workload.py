"""What the user wants from the server: the traffic, the service levels, the goal."""

from __future__ import annotations

from typing import Literal

import msgspec

from aim_engine.errors import InvalidInput

Objective = Literal["throughput", "latency", "cost", "energy", "balanced"]
"""throughput: most output tokens/s; latency: least time per request for one user; cost: least money an hour (fewest GPUs where
no price is known), then most throughput; energy: most output tokens per joule; balanced: best product of speed per user and
per GPU."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The requests to serve. Either a number of concurrent requests or an arrival rate, or neither.

    With neither, the planner chooses the concurrency at which the objective is best.
    """

    input_tokens: int = 1024
    """Mean prompt length."""
    output_tokens: int = 512
    """Mean answer length."""
    concurrency: int | None = None
    """Requests in flight at once (closed loop)."""
    rate_requests_s: float | None = None
    """Requests arriving per second (open loop)."""
    prefix_hit_fraction: float = 0.0
    """Share of prompt tokens found in the prefix cache."""

    def __post_init__(self) -> None:
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise InvalidInput(
                f"{self.input_tokens} tokens in and {self.output_tokens} out is not a workload",
                hint="both must be at least 1",
            )
        if self.concurrency is not None and self.rate_requests_s is not None:
            raise InvalidInput("give a concurrency or a rate, not both", hint="drop --concurrency or --rate")
        if self.concurrency is not None and self.concurrency < 1:
            raise InvalidInput(f"a concurrency of {self.concurrency} is not possible", hint="give at least 1")
        if self.rate_requests_s is not None and self.rate_requests_s <= 0:
            raise InvalidInput(f"a rate of {self.rate_requests_s} requests/s is not possible", hint="give more than 0")
        if not 0.0 <= self.prefix_hit_fraction < 1.0:
            raise InvalidInput(f"a prefix hit share of {self.prefix_hit_fraction} is not between 0 and 1")

    @property
    def total_tokens(self) -> int:
        """Tokens of one finished request."""
        return self.input_tokens + self.output_tokens


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that the chosen configuration must keep; None means no limit."""

    ttft_ms: float | None = None
    """Time to first token, mean."""
    tpot_ms: float | None = None
    """Time per output token after the first, mean."""
    e2e_ms: float | None = None
    """Whole request, mean."""

    def __post_init__(self) -> None:
        for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InvalidInput(f"a {name.removesuffix('_ms')} limit of {value} ms can never be met")
