"""Options that several commands share, parsed from text with units into values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from aim_engine import settings as all_settings
from aim_engine import units
from aim_engine.errors import InvalidInput
from aim_engine.recipe.recipe import Precision
from aim_engine.settings import Settings
from aim_engine.workflow import Request
from aim_engine.workload import Slo, Workload

Command = TypeVar("Command", bound=Callable[..., Any])

_TRAFFIC = (
    click.option("--concurrency", metavar="N", help="Requests in flight at once."),
    click.option("--input-tokens", metavar="N", default="1024", show_default=True, help="Mean prompt length."),
    click.option("--output-tokens", metavar="N", default="512", show_default=True, help="Mean answer length."),
)
_WEIGHTS = (
    click.option("--max-model-len", metavar="N", help="Context length to serve. Default: the model's, or what fits."),
    click.option(
        "--precision", type=click.Choice(get_args(Precision)), help="Weight format. Default: the checkpoint's own."
    ),
    click.option("--engine", default="vllm", show_default=True, help="Serving engine."),
    click.option("--engine-version", metavar="X.Y.Z", help="Engine release. Default: the newest known."),
    click.option("--revision", help="Revision of the model on the hub."),
    click.option("--offline", is_flag=True, default=None, help="Never ask the hub."),
)
_PLANNING = (
    click.option(
        "--gpus",
        metavar="NxCARD",
        help="Hardware to plan for: 8xMI300X, cpu, anyxMI300X for as many as the load takes, any for the best card too. "
        "Default: this machine.",
    ),
    click.option(
        "--objective",
        type=click.Choice(["throughput", "latency", "cost", "energy", "balanced"]),
        default="throughput",
        show_default=True,
        help="What to make best.",
    ),
    click.option(
        "--ttft",
        metavar="[pN:]TIME",
        help="Limit on the time to first token: 500ms on the mean, p99:500ms on a percentile.",
    ),
    click.option("--tpot", metavar="[pN:]TIME", help="Limit on the time per output token, such as 30ms or p90:30ms."),
    click.option("--e2e", metavar="[pN:]TIME", help="Limit on the time of a whole request, such as 20s or p95:20s."),
    click.option(
        "--simulate/--no-simulate",
        default=None,
        help="Play the best few through the engine's scheduler. Default: with --rate or a limit on a percentile.",
    ),
    *_TRAFFIC,
    click.option("--rate", type=float, metavar="N", help="Requests arriving per second."),
    click.option("--max-gpus", type=click.IntRange(min=1), metavar="N", help="Most devices to use."),
    click.option("--max-usd-h", type=float, metavar="USD", help="Most that the deployment may cost an hour."),
    click.option(
        "--prices",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Your own price list. Default: prices/cloud.yaml of your catalogue folder, else the bundled one.",
    ),
    click.option("--allow-lossy", is_flag=True, help="Also consider fp8 weights and KV cache made on load."),
    *_WEIGHTS,
)


def planning(command: Command) -> Command:
    """The options that shape a plan."""
    return _with(command, _PLANNING)


def traffic(command: Command) -> Command:
    """The options that say what is asked of the server."""
    return _with(command, _TRAFFIC)


def weights(command: Command) -> Command:
    """The options that say which weights are served by which engine."""
    return _with(command, _WEIGHTS)


def _with(command: Command, chosen: tuple[Callable[[Any], Any], ...]) -> Command:
    for option in reversed(chosen):
        command = option(command)
    return command


def request(model: str, flags: dict[str, Any]) -> tuple[Request, Settings]:
    """The planning request and the settings that `flags` describe. Raises: InvalidInput."""
    concurrency, length = flags["concurrency"], flags["max_model_len"]
    asked = Request(
        model=model,
        gpus=flags["gpus"],
        workload=Workload(
            input_tokens=units.parse_count(flags["input_tokens"]),
            output_tokens=units.parse_count(flags["output_tokens"]),
            concurrency=units.parse_count(concurrency) if concurrency else None,
            rate_requests_s=flags["rate"],
        ),
        slo=limits(flags),
        objective=flags["objective"],
        precision=flags["precision"],
        engine=flags["engine"],
        engine_version=flags["engine_version"],
        max_model_len=units.parse_count(length) if length else None,
        allow_lossy=flags["allow_lossy"],
        max_gpus=flags["max_gpus"],
        max_usd_h=flags["max_usd_h"],
        simulate=flags["simulate"],
        prices=flags["prices"],
        revision=flags["revision"],
    )
    return asked, all_settings.load({"offline": flags["offline"]})


def limits(flags: dict[str, Any]) -> Slo:
    """The service level that --ttft, --tpot and --e2e ask for. Raises: InvalidInput."""
    found: dict[str, Any] = {}
    for name in ("ttft", "tpot", "e2e"):
        if not flags[name]:
            continue
        before, colon, time = flags[name].rpartition(":")
        if colon:
            percentile = re.fullmatch(r"p(\d{1,2})", before.strip().lower())
            if percentile is None:
                raise InvalidInput(
                    f"'{flags[name]}' is not a limit",
                    hint=f"--{name} 500ms for the mean, --{name} p99:500ms for a percentile",
                )
            found[f"{name}_percentile"] = int(percentile[1])
        found[f"{name}_ms"] = units.parse_ms(time)
    return Slo(**found)
