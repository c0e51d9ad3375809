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


PERCENTILES = (50, 90, 95, 99)
"""Percentiles that a limit may be on."""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of a service level."""

    name: str
    """ttft, tpot or e2e."""
    ms: float
    percentile: int | None
    """None: on the mean."""

    def describe(self) -> str:
        """`ttft`, `p99 ttft`."""
        return self.name if self.percentile is None else f"p{self.percentile} {self.name}"


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that the chosen configuration must keep; None means no limit. Each is on the mean, or on a percentile of requests."""

    ttft_ms: float | None = None
    """Time to first token."""
    tpot_ms: float | None = None
    """Time per output token after the first, averaged over one request."""
    e2e_ms: float | None = None
    """Whole request."""
    ttft_percentile: int | None = None
    tpot_percentile: int | None = None
    e2e_percentile: int | None = None

    def __post_init__(self) -> None:
        for name in ("ttft", "tpot", "e2e"):
            value, percentile = getattr(self, f"{name}_ms"), getattr(self, f"{name}_percentile")
            if value is not None and value <= 0:
                raise InvalidInput(f"a {name} limit of {value} ms can never be met")
            if percentile is None:
                continue
            if value is None:
                raise InvalidInput(f"a percentile of {name} without a limit", hint=f"--{name} p{percentile}:500ms")
            if percentile not in PERCENTILES:
                raise InvalidInput(
                    f"p{percentile} of {name} is not predicted",
                    hint=f"use one of {', '.join(f'p{known}' for known in PERCENTILES)}, or no percentile for the mean",
                )

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Those that are set."""
        pairs = ((name, getattr(self, f"{name}_ms")) for name in ("ttft", "tpot", "e2e"))
        return tuple(
            Limit(name=name, ms=ms, percentile=getattr(self, f"{name}_percentile"))
            for name, ms in pairs
            if ms is not None
        )

    def told(self, name: str) -> str:
        """How a limit is called: `p99 ttft`."""
        return next((limit.describe() for limit in self.limits if limit.name == name), name)

    @property
    def has_percentiles(self) -> bool:
        """Whether a limit is on more than the mean."""
        return any(limit.percentile is not None for limit in self.limits)
