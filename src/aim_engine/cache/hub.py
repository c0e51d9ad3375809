"""Checkpoints from the Hugging Face hub, in the cache layout that every other tool on the machine shares.

The layout's own rules say what is there (refs name a commit, snapshots link to blobs); no index of ours stands beside it
that could disagree. Only what an engine loads is fetched: configuration, tokenizer and one set of weights.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aim_engine.errors import AimError, InvalidInput, Unreachable
from aim_engine.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

Progress = Callable[[str], None]
SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.vocab", "tokenizer*", "LICENSE*")
"""Configuration, tokenizer and templates."""
_OTHER_FORMATS = ("original/*", "metal/*", "onnx/*", "openvino/*", "gguf/*", "coreml/*", "flax_*", "tf_*", "rust_*")
"""Folders and files with the same weights in formats that the engines do not load."""
_RESERVE_BYTES = 1 << 30
_PROGRESS_S = 5.0
_TIMEOUT_S = 15.0


class File(msgspec.Struct, frozen=True):
    """A file of a repository."""

    path: str
    size_bytes: int | None


def default_cache_dir() -> Path:
    """The hub cache that HF_HUB_CACHE, HF_HOME and the defaults of huggingface_hub name."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(model_id: str, cache_dir: Path) -> Path:
    """Where the cache keeps a model. Raises: InvalidInput when it is no model id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(model_id)
    except HFValidationError as err:
        raise InvalidInput(
            f"'{model_id}' is not a model id", why=str(err), hint="for example Qwen/Qwen3-32B, or the path of a folder"
        ) from err
    return cache_dir / ("models--" + model_id.replace("/", "--"))


def cached(model_id: str, cache_dir: Path, revision: str = "main") -> Path | None:
    """The snapshot of a model with everything an engine loads; None when it, or a part of it, is not there."""
    folder = repository_folder(model_id, cache_dir)
    commit = revision
    with contextlib.suppress(OSError):  # without a ref the revision is a commit, or not cached
        commit = (folder / "refs" / revision).read_text().strip()
    snapshot = folder / "snapshots" / commit
    return snapshot if is_complete(snapshot) else None


def is_complete(folder: Path) -> bool:
    """Does a folder hold a configuration and all weight files that its index names?"""
    if not (folder / "config.json").is_file():
        return False
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            try:
                shards = set(json.loads((folder / index).read_text())["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError):
                return False
            return bool(shards) and all((folder / shard).is_file() for shard in shards)
    return any(path.is_file() for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))


def choose_files(files: Iterable[File]) -> tuple[File, ...]:
    """What an engine loads of a repository: side files, and one set of weights, safetensors if there are any."""
    usable = [file for file in files if not any(fnmatch.fnmatch(file.path, skip) for skip in _OTHER_FORMATS)]
    names = {file.path for file in usable}
    top = [file for file in usable if "/" not in file.path]
    weights = [file for file in top if file.path.endswith(".safetensors")]
    if any(file.path.startswith("model") for file in weights):  # the same weights again in the maker's own layout
        weights = [file for file in weights if not file.path.startswith("consolidated")]
    if not weights:
        weights = [file for file in top if fnmatch.fnmatch(file.path, "pytorch_model*.bin")]
        weights = weights or [file for file in top if file.path.endswith(".bin") and file.path != "training_args.bin"]
    elif "model.safetensors.index.json" not in names and "model.safetensors" in names:
        weights = [file for file in weights if not fnmatch.fnmatch(file.path, "model-*-of-*")]
    side = [
        file
        for file in usable
        if file not in weights and any(fnmatch.fnmatch(Path(file.path).name, each) for each in SIDE_FILES)
    ]
    unused_index = "pytorch_model.bin.index.json" if any(f.path.endswith(".safetensors") for f in weights) else ""
    return tuple(sorted((file for file in (*side, *weights) if file.path != unused_index), key=lambda file: file.path))


def download(
    model_id: str,
    cache_dir: Path,
    *,
    revision: str = "main",
    force: bool = False,
    endpoint: str | None = None,
    progress: Progress,
) -> Path:
    """Fetch a model into the cache and return its snapshot. Whole files that are already there are not fetched again.

    Raises: InvalidInput (no such model or revision, gated), Unreachable (network, hub, disk).
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    folder = repository_folder(model_id, cache_dir)
    with _typed(model_id, revision):
        info = HfApi(endpoint=endpoint).model_info(model_id, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    files = choose_files(File(each.rfilename, each.size) for each in info.siblings or ())
    if not any(file.path.endswith((".safetensors", ".bin")) for file in files):
        raise InvalidInput(
            f"{model_id} has no weights that an engine loads",
            why="its repository holds neither safetensors nor PyTorch files",
            hint="look for the original of this conversion on the hub",
        )
    snapshot = folder / "snapshots" / str(info.sha)
    missing = [file for file in files if force or not (snapshot / file.path).is_file()]
    missing_bytes = sum(file.size_bytes or 0 for file in missing)
    _require_space(model_id, cache_dir, missing_bytes)
    if missing:
        progress(f"fetching {model_id}: {len(missing)} files, {format_bytes(missing_bytes)}")
    disable_progress_bars()
    with _typed(model_id, revision), _watched(folder / "blobs", missing_bytes, progress):
        path = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            endpoint=endpoint,
            force_download=force,
            allow_patterns=[glob.escape(file.path) for file in files],
        )
    wrong = [file.path for file in files if _size(Path(path) / file.path) not in (file.size_bytes, None)]
    if wrong:
        raise Unreachable(
            f"{model_id} arrived damaged",
            why=f"{wrong[0]} has another size than the hub says",
            hint=f"aim-engine cache pull --force {model_id}",
        )
    return Path(path)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _require_space(model_id: str, cache_dir: Path, needed_bytes: int) -> None:
    folder = cache_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed_bytes and free < needed_bytes + _RESERVE_BYTES:
        raise Unreachable(
            f"not enough disk space for {model_id}",
            why=f"{format_bytes(needed_bytes)} are to be fetched, {cache_dir} has {format_bytes(free)} free",
            hint="aim-engine cache ls shows what could go; HF_HOME names another place",
        )


@contextmanager
def _watched(blobs: Path, total_bytes: int, progress: Progress) -> Iterator[None]:
    """Tell every few seconds how much has arrived."""
    done = threading.Event()
    before = _folder_bytes(blobs)

    def watch() -> None:
        while not done.wait(_PROGRESS_S):
            here = _folder_bytes(blobs) - before
            if here > 0 and total_bytes:
                progress(
                    f"{format_bytes(here)} of {format_bytes(total_bytes)} ({min(99, 100 * here // total_bytes)} %)"
                )

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _folder_bytes(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return 0


@contextmanager
def _typed(model_id: str, revision: str) -> Iterator[None]:
    """The hub client's errors as ours: what, why, and what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as err:
        raise InvalidInput(
            f"{model_id} is gated",
            why="its owner grants access per account",
            hint=f"accept its licence at https://huggingface.co/{model_id}, then set HF_TOKEN or run `hf auth login`",
        ) from err
    except errors.RevisionNotFoundError as err:
        raise InvalidInput(
            f"{model_id} has no revision '{revision}'", hint="leave --revision out for the newest"
        ) from err
    except errors.RepositoryNotFoundError as err:
        raise InvalidInput(
            f"the hub knows no model {model_id}",
            why="it does not exist, or it is private and the token does not reach it",
            hint="check the name on the hub, and HF_TOKEN or `hf auth whoami`",
        ) from err
    except errors.OfflineModeIsEnabled as err:
        raise Unreachable(
            f"{model_id} is not cached", why="HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE"
        ) from err
    except errors.HfHubHTTPError as err:
        status = getattr(getattr(err, "response", None), "status_code", None)
        raise _http(model_id, status, str(err)) from err
    except errors.LocalEntryNotFoundError as err:
        raise _offline(model_id, err.__cause__ or err) from err
    except AimError:
        raise
    except OSError as err:
        raise _operating_system(model_id, err) from err
    except Exception as err:
        if type(err).__module__.partition(".")[0] in ("httpx", "httpcore", "requests", "urllib3", "httpx2"):
            raise _offline(model_id, err) from err
        raise


def _http(model_id: str, status: int | None, text: str) -> AimError:
    if status == 429:
        return Unreachable(
            f"the hub refuses more requests for {model_id}",
            why="rate limit (429)",
            hint="wait a minute; a token (HF_TOKEN) raises the limit",
        )
    if status in (401, 403):
        return InvalidInput(
            f"the hub refuses access to {model_id} ({status})", hint="check HF_TOKEN or `hf auth whoami`"
        )
    return Unreachable(
        f"the hub answered {status or 'with an error'} for {model_id}",
        why=text.splitlines()[0][:200],
        hint="try again later",
    )


def _offline(model_id: str, err: BaseException) -> Unreachable:
    return Unreachable(
        f"the hub cannot be reached to fetch {model_id}",
        why=str(err).splitlines()[0][:200] if str(err) else type(err).__name__,
        hint="check network and proxy, set HF_ENDPOINT to a mirror, or give the path of a folder that holds the model",
    )


def _operating_system(model_id: str, err: OSError) -> AimError:
    import errno

    if err.errno == errno.ENOSPC:
        return Unreachable(
            f"the disk became full while {model_id} was fetched", why=str(err), hint="aim-engine cache ls"
        )
    if err.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return Unreachable("the model cache cannot be written", why=str(err), hint="HF_HOME names another place")
    return _offline(model_id, err)
