"""`aim-engine cache`."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click

from aim_engine import settings as all_settings
from aim_engine.cache import manager as managers
from aim_engine.cli import output
from aim_engine.deploy import environment
from aim_engine.settings import Settings
from aim_engine.units import GIB, format_bytes
from aim_engine.workflow import overlay_dir


@click.group(epilog="Example: aim-engine cache ls")
def cache() -> None:
    """List and fetch model weights."""


@cache.command(epilog="Example: aim-engine cache pull HuggingFaceTB/SmolLM2-135M-Instruct")
@click.argument("model")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit on the hub.")
@click.option("--force", is_flag=True, help="Fetch every file again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def pull(model: str, revision: str, force: bool, as_json: bool) -> None:
    """Fetch MODEL, unless it is there, and print its folder."""
    settings = all_settings.load()
    path = managers.fetch(
        model,
        settings,
        output.note,
        python=lambda: _converter(settings),
        revision=revision,
        force=force,
    )
    if as_json:
        output.data({"schema": "aim-engine/cached-model/v1", "model_id": model, "path": str(path)})
    else:
        output.text(str(path))
    output.next_step(f"aim-engine up {model}")


@cache.command(epilog="Example: aim-engine cache ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def ls(as_json: bool) -> None:
    """List the models on this machine."""
    models = _models(all_settings.load())
    if as_json:
        output.data({"schema": "aim-engine/cache/v1", "models": models})
        return
    output.table(
        None,
        ("model", "size", "revisions", "complete", "last used", "from"),
        [
            (
                each.model_id,
                format_bytes(each.size_bytes),
                str(each.revisions),
                "yes" if each.complete else "no",
                dt.datetime.fromtimestamp(each.last_used).astimezone().strftime("%Y-%m-%d %H:%M"),
                each.origin,
            )
            for each in models
        ],
        right=("size", "revisions"),
    )
    if not models:
        output.next_step("aim-engine cache pull HuggingFaceTB/SmolLM2-135M-Instruct")


@cache.command(epilog="Example: aim-engine cache stats --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def stats(as_json: bool) -> None:
    """Count the models and what they take."""
    settings = all_settings.load()
    models = _models(settings)
    shared = managers.ModelCacheManager().get_cache_stats()
    document = {
        **shared,
        "total_models": len(models),
        "total_size_gb": sum(each.size_bytes for each in models) / GIB,
        "converted_dir": str(Path(settings.data_dir).expanduser() / "models"),
    }
    if as_json:
        output.data({"schema": "aim-engine/cache-stats/v1", **document})
        return
    output.table(
        None,
        ("models", "size", "hub cache", "converted models"),
        [
            (
                str(len(models)),
                format_bytes(sum(each.size_bytes for each in models)),
                str(document["cache_dir"]),
                str(document["converted_dir"]),
            )
        ],
        right=("models", "size"),
    )


def _models(settings: Settings) -> list[managers.CachedModel]:
    found = [*managers.ModelCacheManager().models(), *managers.converted_models(settings.data_dir)]
    return sorted(found, key=lambda each: (each.model_id, each.origin))


def _converter(settings: Settings) -> Path:
    name = environment.for_device("vllm", "cpu", overlay_dir(settings))
    return environment.ensure(name, settings, output.note).python
