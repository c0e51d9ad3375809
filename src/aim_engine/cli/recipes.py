"""`aim-engine recipes`."""

from __future__ import annotations

import difflib

import click

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cli import output
from aim_engine.errors import InvalidInput
from aim_engine.recipe.database import Known, RecipeDatabase


@click.group(epilog="Example: aim-engine recipes show Qwen/Qwen3-32B")
def recipes() -> None:
    """List and show configurations that somebody ran."""


@recipes.command(epilog="Example: aim-engine recipes ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def ls(as_json: bool) -> None:
    """List the models with a known recipe."""
    database = _database()
    if as_json:
        output.data({"schema": "aim-engine/recipes/v1", "recipes": list(database)})
        return
    _table(list(database))


@recipes.command(epilog="Example: aim-engine recipes show Qwen/Qwen3-32B")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def show(model: str, as_json: bool) -> None:
    """Show what is known to work for MODEL, with its source."""
    database = _database()
    found = database.load_recipes(model)
    if not found:
        close = difflib.get_close_matches(model, database.models(), n=3, cutoff=0.4)
        raise InvalidInput(
            f"no recipe is known for {model}",
            why=f"close names: {', '.join(close)}" if close else None,
            hint=f"aim-engine plan {model} generates one for your hardware",
        )
    if as_json:
        output.data({"schema": "aim-engine/recipes/v1", "recipes": found})
        return
    _table(list(found))
    for source in dict.fromkeys(known.provenance.source for known in found):
        output.text(f"source: {source}")


def _table(found: list[Known]) -> None:
    output.table(
        None,
        ("model", "cards", "split", "precision", "for"),
        [
            (k.model_id, ", ".join(k.gpus), k.parallelism.describe(), k.precision, k.objective or "")
            for k in sorted(found, key=lambda k: (k.model_id, k.gpus, k.parallelism, k.objective or ""))
        ],
    )


def _database() -> RecipeDatabase:
    return RecipeDatabase(workflow.overlay_dir(all_settings.load()))
