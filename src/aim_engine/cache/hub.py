"""The Hugging Face hub and its mirrors: which files a revision has, with sizes and checksums, and which of them an engine loads.

Only what an engine loads is asked for: configuration, tokenizer and one set of weights.
Source: huggingface_hub hf_api.py model_info, file_download.py, utils/_http.py hf_raise_for_status.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from aim_engine.cache import names
from aim_engine.cache.faults import AccessRefused, Gated, NoSuchFile, NoSuchModel, NoSuchRevision, Unavailable
from aim_engine.errors import AimError, Unreachable

if TYPE_CHECKING:
    from aim_engine.cache.transport import Client

ENDPOINT = "https://huggingface.co"
SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.vocab", "tokenizer*", "LICENSE*")
"""Configuration, tokenizer and templates."""
_OTHER_FORMATS = ("original/*", "metal/*", "onnx/*", "openvino/*", "gguf/*", "coreml/*", "flax_*", "tf_*", "rust_*")
"""Folders and files with the same weights in formats that the engines do not load."""


class File(msgspec.Struct, frozen=True):
    """A file of a repository."""

    path: str
    size_bytes: int | None
    sha256: str | None = None
    """Of files that the hub keeps outside git."""
    git_oid: str | None = None
    """Git's SHA-1 of the others."""
    etag: str | None = None
    """What a source without checksums calls this version of it."""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A repository at a commit."""

    model_id: str
    commit: str
    files: tuple[File, ...]
    licence: str = ""
    source: str = ""
    """Address of the repository."""


def default_cache_dir() -> Path:
    """The hub's own cache, as HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME name it. Source: huggingface_hub constants.py."""
    return Path(os.environ.get("HF_HUB_CACHE") or home() / "hub").expanduser()


def home() -> Path:
    """The hub client's folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("HF_HOME") or base / "huggingface").expanduser()


def token() -> str | None:
    """The user's hub token: HF_TOKEN, else the file that `hf auth login` wrote. Source: huggingface_hub utils/_auth.py."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        found = os.environ.get(variable, "").strip()
        if found:
            return found
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or home() / "token").expanduser().read_text().strip() or None
    except OSError:
        return None


def is_offline() -> bool:
    """Did the user forbid the hub client to use the network? Source: huggingface_hub constants.py HF_HUB_OFFLINE."""
    return any(
        os.environ.get(variable, "").upper() in ("1", "TRUE", "YES", "ON")
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def endpoints() -> str:
    """Where the hub's client would ask: HF_ENDPOINT or the hub; several separated by commas."""
    return os.environ.get("HF_ENDPOINT") or ENDPOINT


def cached(model_id: str, cache_dir: Path, revision: str = "main") -> Path | None:
    """The snapshot of a model in a hub cache with everything an engine loads; None when it, or a part of it, is not there."""
    folder = cache_dir / names.folder(model_id)
    commit = revision
    with contextlib.suppress(OSError):  # without a ref the revision is a commit, or not cached
        commit = (folder / "refs" / names.require_revision(revision)).read_text().strip()
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


def is_weight(path: str) -> bool:
    """Does this file hold weights?"""
    return path.endswith((".safetensors", ".bin"))


def describe(client: Client, endpoint: str, model_id: str, revision: str) -> Listing:
    """The files of a model at a revision, in one request.

    Raises: NoSuchModel, NoSuchRevision, Gated, AccessRefused, RateLimited, Unavailable, Unsafe.
    """
    names.require_model_id(model_id)
    names.require_revision(revision)
    url = f"{endpoint}/api/models/{model_id}/revision/{quote(revision, safe='')}?blobs=true"
    status, headers, body = client.document(url)
    if status != 200:
        raise refusal(status, headers, model_id, revision)
    try:
        document = json.loads(body)
        commit = str(document["sha"])
        if not names.COMMIT.fullmatch(commit):
            raise ValueError(f"'{commit[:80]}' is not a commit")
        siblings = document.get("siblings") or []
        if len(siblings) > names.MAX_FILES:
            raise ValueError(f"it lists {len(siblings):,} files")
        files = tuple(_file(each) for each in siblings)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise Unavailable(
            f"{endpoint} does not answer as a hub",
            why=f"{type(err).__name__}: {err}",
            hint="check HF_ENDPOINT and proxy",
        ) from err
    return Listing(
        model_id=model_id, commit=commit, files=files, licence=_licence(document), source=f"{endpoint}/{model_id}"
    )


def refusal(status: int, headers: Mapping[str, str], model_id: str, revision: str, path: str | None = None) -> AimError:
    """The typed error for a hub's refusal. Proxies and mirrors send no X-Error-Code; then the status decides."""
    code = headers.get("x-error-code", "")
    if code == "GatedRepo":
        return Gated(
            f"{model_id} is gated",
            why="its owner grants access per account",
            hint=f"accept its licence at {ENDPOINT}/{model_id}, then set HF_TOKEN or run `hf auth login`",
        )
    if code == "RevisionNotFound":
        return NoSuchRevision(f"{model_id} has no revision '{revision}'", hint="leave --revision out for the newest")
    if path is not None and (code == "EntryNotFound" or (status == 404 and not code)):
        return NoSuchFile(
            f"{model_id} at {revision[:12]} has no file {path}", hint="the listing and the files disagree"
        )
    if code == "RepoNotFound" or status == 404 or (status == 401 and token() is None):
        return NoSuchModel(
            f"the hub knows no model {model_id}",
            why="it does not exist, or it is private and the token does not reach it",
            hint="check the name on the hub, and HF_TOKEN or `hf auth whoami`",
        )
    if status in (401, 403):
        return AccessRefused(
            f"the hub refuses access to {model_id} ({status})", hint="check HF_TOKEN or `hf auth whoami`"
        )
    return Unavailable(
        f"the hub answered {status} for {model_id}",
        why=headers.get("x-error-message", "")[:200] or None,
        hint="try again later",
    )


class Hub:
    """The hub, a mirror of it, or a node that serves its cache."""

    def __init__(self, text: str) -> None:
        """`text` is its address."""
        self.text = text
        self.endpoint = text.rstrip("/")
        self.name = self.endpoint

    def describe(self, client: Client, model_id: str, revision: str) -> Listing:
        """See `sources.Source`."""
        return describe(client, self.endpoint, model_id, revision)

    def address(self, listing: Listing, path: str) -> str:
        """See `sources.Source`."""
        return f"{self.endpoint}/{listing.model_id}/resolve/{listing.commit}/{quote(path)}"

    def refusal(self, status: int, headers: Mapping[str, str], model_id: str, path: str) -> AimError:
        """See `sources.Source`."""
        return refusal(status, headers, model_id, "this commit", path)


def offline_error(model_id: str) -> Unreachable:
    """Nobody may be asked for this model."""
    return Unreachable(f"{model_id} is not cached", why="HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")


def _file(sibling: Any) -> File:
    lfs = sibling.get("lfs") or {}
    size = lfs.get("size", sibling.get("size"))
    if size is not None and (not isinstance(size, int) or size < 0):
        raise ValueError(f"{size!r} is not a size")
    digest = lfs.get("sha256") or lfs.get("oid")
    return File(
        path=str(sibling["rfilename"]),
        size_bytes=size,
        sha256=names.require_sha256(str(digest)) if digest else None,
        git_oid=None if digest or not sibling.get("blobId") else str(sibling["blobId"]),
    )


def _licence(document: Any) -> str:
    found = (document.get("cardData") or {}).get("license")
    if not found:
        found = next((tag[8:] for tag in document.get("tags") or () if str(tag).startswith("license:")), "")
    return str(found)[:100]
