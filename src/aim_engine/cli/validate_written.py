"""What `aim-engine validate` makes of recipes, profiles and an engine's own configuration file."""

from __future__ import annotations

from typing import Any

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.errors import AimError, InvalidInput
from aim_engine.hardware.cluster import Finding
from aim_engine.hardware.gpu import Gpu
from aim_engine.recipe import exchange, seed_shape
from aim_engine.recipe.recipe import Recipe
from aim_engine.render import check_engine
from aim_engine.render.check_engine import Container
from aim_engine.settings import Settings


class Checker(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks ask."""

    backend: Backend
    version: str | None
    """Engine release to check against, instead of the one a file names."""
    kubernetes_version: str | None
    settings: Settings
    gpu: Gpu | None = None
    """The card that was named."""


def profile(entry: dict[str, Any], checker: Checker) -> tuple[Finding, ...]:
    """What is wrong with one of AMD's AIM profiles."""
    try:
        args, env = exchange.command_line(entry)
    except InvalidInput as err:
        message = f"{err.what}: {err.why}" if err.why else err.what
        return (Finding(id="REC001", severity="error", message=message, evidence="profile", remedy=err.hint or ""),)
    from aim_engine import workflow
    from aim_engine.hardware import catalog

    version = checker.version or checker.backend.versions()[0]
    try:
        gpu = catalog.load(str(entry["metadata"].get("gpu")), workflow.overlay_dir(checker.settings))
    except AimError:
        gpu = None
    found = checker.backend.check(args, env, version, gpu=gpu)
    return tuple(msgspec.structs.replace(finding, evidence="profile") for finding in found)


def arguments(entry: dict[str, Any], checker: Checker) -> tuple[Finding, ...]:
    """What an engine's configuration file asks for, judged as the command line that it stands for."""
    engine = checker.backend
    program = ("vllm", "serve") if engine.name == "vllm" else ("sglang", "serve")
    container = Container(where="arguments", image="", entrypoint=(*program, *exchange.words_of(entry)))
    _, found = check_engine.check(container, engine, checker.version or engine.versions()[0])
    return tuple(finding for finding in found if finding.id != "VER009")


def recipe(entry: dict[str, Any], checker: Checker) -> tuple[Finding, ...]:
    """What is wrong with a recipe, ours or of the product's first specification."""
    version = checker.version or checker.backend.versions()[0]
    try:
        if seed_shape.is_seed_shape(entry):
            named = bool(entry.get("gpu") or entry.get("hardware"))
            card = checker.gpu.name if checker.gpu is not None and not named else None
            found = seed_shape.from_seed(entry, engine_version=version, gpu=card)
        else:
            found = msgspec.convert(entry, Recipe)
    except msgspec.ValidationError as err:
        return (Finding(id="REC001", severity="error", message=str(err), evidence="recipe"),)
    except InvalidInput as err:
        message = f"{err.what}: {err.why}" if err.why else err.what
        return (Finding(id="REC001", severity="error", message=message, evidence="recipe", remedy=err.hint or ""),)
    return tuple(
        finding if finding.evidence else msgspec.structs.replace(finding, evidence="recipe")
        for finding in _rules(found, checker)
    )


def _rules(recipe: Recipe, checker: Checker) -> tuple[Finding, ...]:
    """The planner's rules when model and card are known here, else what the engine says of the command line."""
    from aim_engine import workflow
    from aim_engine.hardware import catalog
    from aim_engine.model import library
    from aim_engine.planner import validate as rules

    try:
        offline = msgspec.structs.replace(checker.settings, offline=True)
        gpu = catalog.load(recipe.gpu, workflow.overlay_dir(checker.settings))
        spec = workflow.describe(recipe.model_id, offline)
        if not library.has_its_shapes(spec):
            raise InvalidInput(
                f"{recipe.model_id} is not known here", hint="aim-engine model with network describes it"
            )
    except AimError as err:
        command = checker.backend.command(recipe, model_ref=recipe.model_id, host="127.0.0.1", port=8000)
        unnamed = recipe.gpu == seed_shape.UNNAMED_GPU
        why, remedy = ("it names no card", "--gpu says which") if unnamed else (err.what, err.hint or "")
        note = Finding(id="REC002", severity="info", message=f"memory was not checked: {why}", remedy=remedy)
        return (note, *checker.backend.check(command.args, command.env, recipe.engine_version))
    return rules.recipe_findings(recipe, spec, gpu, checker.backend)


def catalogue(entry: dict[str, Any]) -> tuple[Finding, ...]:
    """What is wrong with a file of the recipe database."""
    from aim_engine.recipe.database import Known

    found = []
    for index, recipe in enumerate(entry["recipes"]):
        try:
            msgspec.convert({"model_id": entry["model_id"], **recipe} if isinstance(recipe, dict) else recipe, Known)
        except (msgspec.ValidationError, InvalidInput) as err:
            found.append(Finding(id="REC001", severity="error", message=str(err), evidence=f"recipes[{index}]"))
    return tuple(found)
