"""`aim-engine recipes`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click
import msgspec

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.backend.base import Backend
from aim_engine.cli import files, output
from aim_engine.errors import Corrupt, InvalidInput
from aim_engine.recipe.database import Family, Known, Match, RecipeDatabase
from aim_engine.recipe.seed_shape import UNNAMED_GPU

SCHEMA = "aim-engine/recipes/v1"
KEPT = ("ttft_ms", "tpot_ms", "e2e_ms", "output_tok_s", "requests_s")
"""Figures of a run that are kept with its recipe."""
_SUFFIXES = (".yaml", ".yml", ".json")


@click.group(epilog="Example: aim-engine recipes show Qwen/Qwen3-32B")
def recipes() -> None:
    """Find, check and exchange configurations that somebody ran."""


@recipes.command(epilog="Example: aim-engine recipes ls qwen3 --gpu MI355X")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--gpu", metavar="CARD", help="Only recipes that were run on this card.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def ls(words: tuple[str, ...], gpu: str | None, as_json: bool) -> int:
    """List the models with a known recipe, or those whose name holds every WORD."""
    card = _card(gpu)
    found = [
        known
        for known in _database()
        if all(word.lower() in known.model_id.lower() for word in words) and (card is None or card in known.gpus)
    ]
    if as_json:
        output.data({"schema": SCHEMA, "recipes": found})
    elif found:
        _table(found)
    else:
        named = f" whose name holds {' and '.join(words)}" if words else ""
        output.text(f"no recipe is known of a model{named}{f' on {card}' if card is not None else ''}")
        output.next_step("aim-engine recipes ls")
    return 0 if found else 1


@recipes.command(epilog="Example: aim-engine recipes show Qwen/Qwen3-32B")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def show(model: str, as_json: bool) -> None:
    """Show what is known to work for MODEL, with its source, and what its family needs."""
    database = _database()
    entry = database.file(model)
    found, family = database.load_recipes(model), database.family(model)
    if entry is None and not found:
        raise _unknown(model, database)
    unsupported = entry.unsupported if entry is not None else ()
    if as_json:
        least = entry.least_memory_bytes if entry is not None else None
        about = {"family": family, "unsupported": unsupported, "least_memory_bytes": least}
        output.data({"schema": SCHEMA, "recipes": found, **about})
        return
    if found:
        _table(list(found))
    for known in found:
        settings = " ".join((*known.extra_args, *(f"{name}={value}" for name, value in known.env.items())))
        if settings:
            output.text(f"{known.split} on {', '.join(known.gpus)}: {settings}")
        if known.measured:
            figures = ", ".join(f"{name} {value:g}" for name, value in known.measured.items())
            output.text(
                f"{known.split} on {', '.join(known.gpus)}, measured with {known.engine} {known.engine_version}: {figures}"
            )
    if unsupported:
        output.text(f"does not run on: {', '.join(unsupported)}")
    _show_family(family)
    for source in dict.fromkeys(known.provenance.source for known in found):
        output.text(f"source: {source}")
    output.next_step(f"aim-engine plan {model} --gpus 8xMI300X")


@recipes.command(epilog="Example: aim-engine recipes match openai/gpt-oss-120b --gpus 4xMI300X --objective latency")
@click.argument("model")
@click.option("--gpus", metavar="NxCARD", required=True, help="Hardware to match, such as 8xMI300X.")
@click.option("--precision", help="Weight format to match.")
@click.option("--objective", type=click.Choice(["throughput", "latency"]), help="What it was made for.")
@click.option("--engine", "engine_name", default="vllm", show_default=True, help="Serving engine.")
@click.option("--engine-version", metavar="X.Y.Z", help="Engine release. Default: the newest known.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def match(
    model: str,
    gpus: str,
    precision: str | None,
    objective: str | None,
    engine_name: str,
    engine_version: str | None,
    as_json: bool,
) -> int:
    """List the recipes of MODEL that fit the hardware, best first, with what speaks for each."""
    from aim_engine.hardware import catalog

    settings = all_settings.load()
    count, gpu = catalog.parse_request(gpus, workflow.overlay_dir(settings))
    engine = _backend(engine_name)
    asked = {
        "model_id": model,
        "gpu": gpu.name,
        "gpu_count": count,
        "precision": precision,
        "objective": objective,
        "engine": engine.name,
        "engine_version": engine.release(engine_version or engine.versions()[0]).version,
    }
    found = _database().match(asked)
    if as_json:
        output.data({"schema": "aim-engine/recipe-matches/v1", "matches": found})
    else:
        _show_matches(found, model, gpus)
    return 0 if found else 1


@recipes.command(epilog="Example: aim-engine recipes lint --engine-version 0.30.0")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--engine", "engine_name", default="vllm", show_default=True, help="Whose recipes to check.")
@click.option("--engine-version", metavar="X.Y.Z", help="Engine release to check against. Default: the newest known.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def lint(models: tuple[str, ...], engine_name: str, engine_version: str | None, as_json: bool) -> int:
    """Check recipes, all of them without MODEL, against a release: what it would rename, drop or refuse."""
    engine, database = _backend(engine_name), _database()
    version = engine.release(engine_version or engine.versions()[0]).version
    rows: list[tuple[str, str, str, str, str]] = []
    errors = 0
    for model in models or database.models():
        if models and database.file(model) is None and not database.load_recipes(model):
            raise _unknown(model, database)
        for known in database.load_recipes(model, engine.name):
            said = engine.translate(known.extra_args, {**known.env, **known.lossy_env}, version)
            rows += [(model, known.split, change.kind, change.what, change.to or change.why) for change in said.changes]
            wrong = [f for f in engine.check(said.args, said.env, version) if f.severity == "error"]
            errors += len(wrong)
            rows += [(model, known.split, finding.id, finding.message, finding.remedy) for finding in wrong]
    if as_json:
        names = ("model", "split", "kind", "what", "to")
        output.data(
            {
                "schema": "aim-engine/recipe-lint/v1",
                "engine_version": version,
                "findings": [dict(zip(names, row, strict=True)) for row in rows],
            }
        )
    elif rows:
        output.table(f"{engine.title} {version}", ("model", "split", "kind", "what", "to"), rows)
    if not as_json:
        output.text(f"{len(rows)} findings, {errors} that translation does not answer")
    return 1 if errors else 0


@recipes.command(
    "import", epilog="Example: aim-engine recipes export Qwen/Qwen3-32B --shape aim | aim-engine recipes import -"
)
@click.argument("items", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path, file_okay=False), help="Catalogue folder to write to."
)
@click.option("--gpu", metavar="CARD", help="Card that recipes were run on which name none.")
@click.option("--engine-version", metavar="X.Y.Z", help="Release whose words to use. Default: the newest known.")
def import_(items: tuple[Path, ...], folder: Path | None, gpu: str | None, engine_version: str | None) -> int:
    """Read AMD AIM profiles and recipes of the first specification as catalogue recipes: files, folders of them, - for stdin.

    What the release has under another name is translated, what it lacks is dropped, and both are reported on stderr. Without
    -o the files are printed. Of several files those that are no recipes are named, and the others are read all the same.
    """
    engine = _backend()
    version = engine.release(engine_version or engine.versions()[0]).version
    found: dict[str, list[Known]] = {}
    paths, failed, card = _recipe_files(items), 0, _card(gpu)
    for path in paths:
        try:
            read = _known(path)
        except (InvalidInput, Corrupt) as err:
            if len(paths) == 1:
                raise
            output.note(f"{err.what}{f': {err.why}' if err.why else ''}")
            failed += 1
            continue
        for known in read:
            said = engine.translate(known.extra_args, known.env, version)
            for change in said.changes:
                output.note(f"{path}: {change.what} {'-> ' + change.to if change.to else 'dropped'} ({change.why})")
            mended = msgspec.structs.replace(known, extra_args=said.args, env=said.env)
            if known.gpus == (UNNAMED_GPU,) and card is not None:
                mended = msgspec.structs.replace(mended, gpus=(card,))
            elif known.gpus == (UNNAMED_GPU,):
                output.note(f"{path}: it names no card, so no plan will match it; --gpu says which")
            found.setdefault(known.model_id, []).append(mended)
    for model_id, entries in sorted(found.items()):
        text = _yaml(_file(model_id, entries))
        if folder is None:
            output.text(text.rstrip())
            continue
        target = folder / "recipes" / f"{model_id}.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        output.text(f"{target}: {len(entries)} recipe{'s' * (len(entries) != 1)}")
    if failed:
        output.note(f"{failed} of {len(paths)} files were not read")
    return InvalidInput.exit_code if failed else 0


@recipes.command(epilog="Example: aim-engine recipes keep qwen3-32b")
@click.argument("name", metavar="DEPLOYMENT")
def keep(name: str) -> None:
    """Keep the recipe of a running DEPLOYMENT with what its engine measured, for every later plan.

    Figures are those since the engine's start. The recipe is kept beside the state, in the shape of the catalogue's files.
    """
    from aim_engine.deploy.records import Store
    from aim_engine.monitor import report, scrape
    from aim_engine.recipe import measured

    settings = all_settings.load()
    store = Store(settings.state_dir)
    record = store.load(store.members(name)[0])
    plan = store.plan(record.name)
    if plan.chosen is None:
        raise InvalidInput(f"the plan of {name} chose nothing, so there is no recipe to keep")
    seen = report.summarise(None, scrape.fetch(record.endpoint), endpoint=record.endpoint)
    figures = {kpi: value for kpi in KEPT if (value := seen.value(kpi)) is not None}
    known = measured.of_run(plan.chosen.recipe, plan.inputs.gpu.name, figures, image=record.image, checked=_today())
    path = measured.keep(Path(settings.state_dir).expanduser(), known)
    output.note(f"kept in {path}: " + ", ".join(f"{kpi} {value:g}" for kpi, value in known.measured.items()))
    output.next_step(f"aim-engine recipes show {known.model_id}")


@recipes.command(epilog="Example: aim-engine recipes export Qwen/Qwen3-32B --shape aim")
@click.argument("model")
@click.option(
    "--shape", type=click.Choice(["aim", "seed", "catalogue"]), default="aim", show_default=True, help="Whose shape."
)
@click.option("--gpu", metavar="CARD", help="Only recipes for this card.")
def export(model: str, shape: str, gpu: str | None) -> None:
    """Write the recipes of MODEL as AMD AIM profiles, in the first specification's shape, or as a catalogue file."""
    from aim_engine.recipe import exchange

    database, card = _database(), _card(gpu)
    every = database.load_recipes(model, "vllm")
    found = [known for known in every if card is None or card in known.gpus]
    if every and not found:
        cards = sorted({name for known in every for name in known.gpus})
        raise InvalidInput(f"no recipe of {model} was run on {card}", hint=f"there are some for {', '.join(cards)}")
    if not found:
        raise _unknown(model, database)
    if shape == "catalogue":
        output.text(_yaml(_file(model, found)).rstrip())
        return
    documents = [
        exchange.write(msgspec.structs.replace(known, gpus=(name,)), "aim" if shape == "aim" else "seed")
        for known in found
        for name in known.gpus
        if known.parallelism is not None and card in (None, name)
    ]
    if not documents:
        raise InvalidInput(
            f"no recipe of {model} names a split", hint=f"aim-engine plan {model} works one out for your hardware"
        )
    output.text("---\n".join(_yaml(document) for document in documents).rstrip())


@recipes.command(epilog="Example: aim-engine recipes diff Qwen/Qwen3-32B 0.30.0 0.33.0")
@click.argument("model")
@click.argument("old")
@click.argument("new")
@click.option("--engine", "engine_name", default="vllm", show_default=True, help="Whose releases and recipes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def diff(model: str, old: str, new: str, engine_name: str, as_json: bool) -> None:
    """Show what of MODEL's recipes is said differently in the release NEW than in OLD, or is gone."""
    engine, database = _backend(engine_name), _database()
    known_here = database.load_recipes(model, engine.name)
    if not known_here:
        raise _unknown(model, database)
    old, new = engine.release(old).version, engine.release(new).version
    rows = []
    for known in known_here:
        before = engine.translate(known.extra_args, known.env, old)
        after = engine.translate(before.args, before.env, new)
        rows += [(known.split, change.what, change.to, change.why) for change in after.changes]
    if as_json:
        names = ("split", "old", "new", "why")
        output.data(
            {"schema": "aim-engine/recipe-diff/v1", "changes": [dict(zip(names, row, strict=True)) for row in rows]}
        )
    elif rows:
        output.table(f"{model}, {engine.title} {old} to {new}", ("split", old, new, "why"), rows)
    else:
        output.text(f"{engine.title} {new} takes the recipes of {model} as {old} does")


def _show_matches(found: tuple[Match, ...], model: str, gpus: str) -> None:
    if not found:
        output.text(f"no recipe of {model} fits {gpus}")
        output.next_step(f"aim-engine plan {model} --gpus {gpus}")
        return
    output.table(
        None,
        ("split", "precision", "for", "because", "source"),
        [
            (m.known.split, m.known.precision, m.known.objective or "", ", ".join(m.reasons), m.known.provenance.source)
            for m in found
        ],
    )


def _show_family(family: Family | None) -> None:
    if family is None:
        return
    rows = [
        ("tool parser", family.tool_parser),
        ("reasoning parser", family.reasoning_parser),
        ("chat template for tools", family.tool_chat_template),
        ("tokenizer mode", family.tokenizer_mode),
        ("draft heads", ", ".join(family.speculative) or None),
        ("code from the repository", "its recipe runs it" if family.remote_code else None),
        ("least vLLM", family.least_vllm),
        ("gated", None if family.gated is None else ("yes" if family.gated else "no")),
        ("licence", family.licence),
    ]
    output.table(
        "whatever the hardware", ("what", "value"), [(name, value) for name, value in rows if value is not None]
    )


def _table(found: list[Known]) -> None:
    output.table(
        None,
        ("model", "cards", "split", "precision", "engine", "for"),
        [
            (k.model_id, ", ".join(k.gpus), k.split, k.precision, k.engine, k.objective or "")
            for k in sorted(found, key=lambda k: (k.model_id, k.engine, k.gpus, k.split, k.objective or ""))
        ],
    )


def _file(model_id: str, entries: list[Known]) -> dict[str, Any]:
    """A catalogue file of these entries, equal ones once."""
    plain = [msgspec.to_builtins(entry) for entry in entries]
    for entry in plain:
        del entry["model_id"]
    unique = [entry for index, entry in enumerate(plain) if entry not in plain[:index]]
    return {"model_id": model_id, "recipes": unique}


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True))


def _known(path: Path) -> list[Known]:
    """The recipes of one file. Raises: InvalidInput, Corrupt."""
    from aim_engine.recipe import exchange
    from aim_engine.render import document

    found = []
    for entry in document.read(files.read_text(str(path)), str(path))[0]:
        if not isinstance(entry, dict) or exchange.shape_of(entry) is None:
            raise InvalidInput(f"{path} is neither an AIM profile nor a recipe of the first specification")
        found.append(exchange.read(entry, source=path.name, checked=_today()))
    return found


def _recipe_files(items: tuple[Path, ...]) -> list[Path]:
    """The files named, and those below the folders named. Raises: InvalidInput when a folder has none."""
    found: list[Path] = []
    for item in items:
        if not item.is_dir():
            found.append(item)
            continue
        inside = sorted(path for path in item.glob("**/*") if path.suffix in _SUFFIXES and path.is_file())
        if not inside:
            raise InvalidInput(f"the folder {item} holds no YAML or JSON file")
        found += inside
    return found


def _card(named: str | None) -> str | None:
    """The catalogue's name of a card. Raises: InvalidInput."""
    from aim_engine.hardware import catalog

    overlay = workflow.overlay_dir(all_settings.load())
    return None if named is None else catalog.parse_request(named, overlay)[1].name


def _unknown(model: str, database: RecipeDatabase) -> InvalidInput:
    close = difflib.get_close_matches(model, database.models(), n=3, cutoff=0.4)
    return InvalidInput(
        f"no recipe is known for {model}",
        why=f"close names: {', '.join(close)}" if close else None,
        hint=f"aim-engine plan {model} generates one for your hardware",
    )


def _today() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).date().isoformat()


def _backend(name: str = "vllm") -> Backend:
    from aim_engine import backend

    return backend.get(name, workflow.overlay_dir(all_settings.load()))


def _database() -> RecipeDatabase:
    settings = all_settings.load()
    return RecipeDatabase(workflow.overlay_dir(settings), Path(settings.state_dir).expanduser())
