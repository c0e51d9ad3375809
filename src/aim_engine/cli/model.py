"""`aim-engine model`."""

from __future__ import annotations

import click

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cli import output
from aim_engine.errors import InvalidInput
from aim_engine.model import catalog, quantization
from aim_engine.model.spec import LayerGroup, ModelSpec
from aim_engine.perf import memory
from aim_engine.units import format_bytes, format_count


@click.command(epilog="Example: aim-engine model Qwen/Qwen3-32B")
@click.argument("model_name", metavar="MODEL", required=False)
@click.option("--list", "as_list", is_flag=True, help="List the bundled models.")
@click.option("--revision", help="Revision on the hub.")
@click.option("--offline", is_flag=True, default=None, help="Never ask the hub.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def model(model_name: str | None, as_list: bool, revision: str | None, offline: bool | None, as_json: bool) -> None:
    """Show what MODEL needs: layers, parameters, weights, KV cache per token.

    A hub id, a folder, a config.json or a GGUF file. Of weights only the headers are read.
    """
    settings = all_settings.load({"offline": offline})
    if as_list:
        found = catalog.names(workflow.overlay_dir(settings))
        if as_json:
            output.data({"schema": "aim-engine/models/v1", "models": found})
        else:
            for name in found:
                output.text(name)
        return
    if model_name is None:
        raise InvalidInput("no model was named", hint="aim-engine model Qwen/Qwen3-32B, or --list")
    spec = workflow.describe(model_name, settings, revision, headers=True)
    if as_json:
        output.data(spec)
        return
    _show(spec, catalog.variants(spec.model_id, workflow.overlay_dir(settings)))
    output.next_step(f"aim-engine plan {model_name} --gpus 8xMI300X")


_FORMATS = ("bf16", "fp8", "mxfp4")
"""Formats that AMD cards compute with, widest first."""


def _show(spec: ModelSpec, variants: tuple[str, ...]) -> None:
    active = f", {format_count(spec.active_parameters)} active per token" if spec.is_moe else ""
    output.heading(f"{spec.model_id}: {spec.architecture}, {format_count(spec.parameters.total)} parameters{active}")
    cache = memory.kv_bytes_per_token_whole(spec)
    state = memory.state_bytes_whole(spec)
    exact = "read from headers" if spec.weight_bytes is not None else "computed from shapes"
    rows = [
        ("layers", ", ".join(_group(group) for group in spec.groups)),
        ("weights", f"{format_bytes(spec.weight_bytes or memory.checkpoint_bytes(spec))} in {spec.format}, {exact}"),
        ("stored as", ", ".join(f"{form} {format_bytes(quantization.stored_bytes(spec, form))}" for form in _FORMATS)),
        (
            "KV cache",
            f"{format_bytes(cache)} per token in 16 bit, {format_bytes(cache / 2)} in fp8"
            + (f", {format_bytes(state)} per request" if state else ""),
        ),
        ("context", f"{spec.max_position_embeddings:,} tokens"),
        ("licence", f"{spec.license or 'unknown'}{', gated' if spec.gated else ''}"),
        ("modality", spec.modality),
        ("source", spec.source),
    ]
    if spec.moe is not None:
        moe = spec.moe
        rows.insert(1, ("experts", f"{moe.experts} in {moe.layers} layers, {moe.experts_per_token} per token"))
    if variants:
        rows.append(("also as", ", ".join(variants)))
    for name, value in rows:
        output.text(f"  {name:<10} {value}")
    _stored(spec)
    parts = [
        (n, c) for n in spec.parameters.__struct_fields__ if (c := getattr(spec.parameters, n)) and n != "kv_projection"
    ]
    output.table(
        "parameters",
        ("part", "count", "share"),
        [(n.replace("_", " "), format_count(c), f"{c / spec.parameters.total:.1%}") for n, c in parts],
        right=("count", "share"),
    )
    for warning in spec.warnings:
        output.text(f"warning: {warning}")
    if spec.needs_remote_code:
        output.text("warning: serving it needs code from its repository (trust_remote_code)")


def _stored(spec: ModelSpec) -> None:
    """What the headers say, where they were read."""
    stored = spec.stored
    if stored is None:
        return
    types = ", ".join(f"{name} {format_bytes(size)}" for name, size in stored.dtype_bytes.items())
    output.text(f"  {'files':<10} {stored.files} with {stored.tensors:,} tensors: {types}")
    if stored.index_bytes is not None:
        agrees = "agrees" if stored.index_bytes == stored.total_bytes else f"says {format_bytes(stored.index_bytes)}"
        output.text(f"  {'index':<10} {agrees}")
    output.table(
        "stored",
        ("part", "size", "share"),
        [(n, format_bytes(size), f"{size / stored.total_bytes:.1%}") for n, size in stored.part_bytes.items()],
        right=("size", "share"),
    )
    sizes = stored.layer_bytes
    if sizes:
        alike: list[tuple[str, str, int]] = []
        for number, size in sizes.items():
            if alike and alike[-1][2] == size:
                alike[-1] = (alike[-1][0], number, size)
            else:
                alike.append((number, number, size))
        rows = [(first if first == last else f"{first} to {last}", format_bytes(size)) for first, last, size in alike]
        output.table("by layer", ("layers", "each"), rows[:24], right=("each",))


def _group(group: LayerGroup) -> str:
    text = f"{group.count} {group.kind}"
    if group.kind == "mla":
        return f"{text} (latent {group.latent_dim})"
    if group.kv_heads:
        text += f" ({group.heads} heads, {group.kv_heads} KV, {group.head_dim_k} wide"
        return text + (f", window {group.window_tokens})" if group.window_tokens else ")")
    return text
