"""`aim-engine estimate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from aim_engine import settings as all_settings
from aim_engine import units, workflow
from aim_engine.cli import options, output
from aim_engine.errors import InvalidInput
from aim_engine.planner.sizing import Sized
from aim_engine.units import format_gib, format_ms


@click.command(epilog="Example: aim-engine estimate Qwen/Qwen3-32B --gpus 2xMI300X --tp 2")
@click.argument("model", required=False)
@click.option("--gpus", metavar="NxCARD", help="Hardware, such as 2xMI300X or cpu. Default: this machine.")
@click.option("--tp", type=click.IntRange(min=1), help="Tensor parallel. Default: all the devices asked for.")
@click.option("--pp", type=click.IntRange(min=1), default=1, show_default=True, help="Pipeline parallel.")
@click.option("--dp", type=click.IntRange(min=1), default=1, show_default=True, help="Data-parallel attention ranks.")
@click.option("--ep", is_flag=True, help="Whole experts on each rank.")
@options.weights
@click.option(
    "--kv-cache-dtype", type=click.Choice(["auto", "fp8"]), default="auto", show_default=True, help="KV cache."
)
@click.option(
    "--gpu-memory-utilization", type=float, help="Share of a device the engine may take. Default: the engine's."
)
@click.option("--max-num-seqs", type=click.IntRange(min=1), help="Requests running at once. Default: the engine's.")
@click.option("--max-num-batched-tokens", type=click.IntRange(min=1), help="Tokens of a step. Default: the engine's.")
@options.traffic
@click.option(
    "--batch",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Instead of MODEL: a CSV table of measurements; every row is answered under the table's own column names.",
)
@click.option(
    "--models",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --batch: a folder of org__name.json configs for models that the catalogue lacks.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document; with --batch one JSON object for each row.")
def estimate(model: str | None, batch: Path | None, folder: Path | None, as_json: bool, **flags: Any) -> int:
    """Say what one given configuration needs and does: memory to the byte, whether it fits, and how fast it would be.

    Where `plan` chooses, this takes the configuration as it is. With --batch, every row of a table.
    """
    if batch is not None and model is None:
        return _batch(batch, folder)
    if model is None or batch is not None:
        raise InvalidInput("name a MODEL, or a table with --batch", hint="aim-engine estimate --help")
    sized = workflow.size(model, _request(flags), all_settings.load({"offline": flags["offline"]}))
    if as_json:
        output.data(sized)
    else:
        show(sized)
    return 0 if sized.fits else 1


def _request(flags: dict[str, Any]) -> workflow.SizeRequest:
    length, concurrency = flags["max_model_len"], flags["concurrency"]
    return workflow.SizeRequest(
        gpus=flags["gpus"],
        tp=flags["tp"],
        pp=flags["pp"],
        dp=flags["dp"],
        ep=flags["ep"],
        precision=flags["precision"],
        kv_cache_dtype=flags["kv_cache_dtype"],
        gpu_memory_utilization=flags["gpu_memory_utilization"],
        max_num_seqs=flags["max_num_seqs"],
        max_num_batched_tokens=flags["max_num_batched_tokens"],
        max_model_len=units.parse_count(length) if length else None,
        input_tokens=units.parse_count(flags["input_tokens"]),
        output_tokens=units.parse_count(flags["output_tokens"]),
        concurrency=units.parse_count(concurrency) if concurrency else None,
        engine=flags["engine"],
        engine_version=flags["engine_version"],
        revision=flags["revision"],
    )


def _batch(path: Path, folder: Path | None) -> int:
    """Every row of a table as one JSON line, in order."""
    import msgspec

    try:
        content = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8", errors="replace")
    except OSError as err:
        raise InvalidInput(f"{path} cannot be read", why=err.strerror) from err
    for answer in workflow.answer_table(content, str(path), folder, all_settings.load({"offline": True})):
        output.text(msgspec.json.encode(answer).decode())
    return 0


def show(sized: Sized) -> None:
    """The estimate for a person."""
    recipe, memory = sized.recipe, sized.memory
    card = "this CPU" if sized.gpu.kind == "cpu" else f"{max(1, recipe.gpu_count)} x {sized.gpu.name}"
    verdict = "fits" if sized.fits else "does not fit"
    output.heading(f"{recipe.model_id} on {card}, {recipe.parallelism.describe()} {recipe.precision}: {verdict}")
    rows = [
        ("weights", memory.weights_bytes),
        ("activations", memory.activation_bytes),
        ("graphs", memory.graphs_bytes),
        ("runtime and collectives", memory.overhead_bytes),
    ]
    room = ("KV cache", memory.kv_cache_bytes) if memory.kv_cache_bytes >= 0 else ("missing", -memory.kv_cache_bytes)
    rows += [room, ("left to others", memory.device_bytes - memory.budget_bytes)]
    output.table(
        "memory of one device", ("part", "size"), [(name, format_gib(size)) for name, size in rows], right=("size",)
    )
    if sized.fits:
        output.text(
            f"KV cache: {memory.kv_cache_tokens:,} tokens, {memory.kv_cache_tokens / recipe.max_model_len:.1f} requests of {recipe.max_model_len:,}"
        )
        output.text(
            f"          {memory.max_sequences:,} requests of the {sized.workload.total_tokens:,} tokens asked about"
        )
    else:
        output.text(sized.reason)
    if sized.longest_tokens:
        output.text(f"longest context that fits: {sized.longest_tokens:,} tokens")
    if sized.fewest_gpus is not None:
        output.text(f"fewest of this card: {sized.fewest_gpus}")
    if sized.cheapest is not None:
        output.text(f"cheapest to rent: {sized.cheapest}")
    if sized.estimate is not None:
        speed = sized.estimate
        output.text(
            f"at {speed.concurrency} requests: {speed.output_tok_s.value:,.0f} tok/s ({speed.output_tok_s.low:,.0f} to "
            f"{speed.output_tok_s.high:,.0f}), first token {format_ms(speed.ttft_ms.value)}, per token {format_ms(speed.tpot_ms.value)}"
        )
    for warning in sized.warnings:
        output.text(f"warning: {warning}")
    if sized.ways:
        output.table(
            "what would change it",
            ("change", "costs", "KV cache then", "how"),
            [(way.change, way.costs, f"{way.kv_cache_tokens:,} tokens", way.how) for way in sized.ways],
            right=("KV cache then",),
        )
