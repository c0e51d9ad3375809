"""Where a model's description comes from: a folder, a config.json, the catalogue, the local cache, the hub; in that order."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aim_engine.errors import AimError, InvalidInput, Unreachable
from aim_engine.model import catalog, config, weights
from aim_engine.model.spec import ModelSpec

if TYPE_CHECKING:
    from aim_engine.model.hub import Repository

LONGEST_ID = 200
"""More than the hub allows (96 for each of the two parts)."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)(b|m)(?![a-z0-9])", re.IGNORECASE)


def describe(
    ref: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    overlay: Path | None = None,
    headers: bool = False,
) -> ModelSpec:
    """The model that `ref` names: a folder, a config.json, a GGUF file, or a hub id.

    A hub id is looked up in the catalogue (unless a revision is asked for), then in the local hub cache, then on the hub. With
    `headers`, the first bytes of every weight file on the hub are read too, for exact bytes by type and layer. Where a model
    cannot be read (offline, gated, no network) but its name says family or size, a likeness is given whose basis is the name.
    Raises: InvalidInput, Corrupt, Unreachable.
    """
    path = Path(ref).expanduser()
    if os.path.isdir(path):  # noqa: PTH112 - says no to a name that no file system takes, where Path.is_dir raises
        return from_folder(path)
    if os.path.isfile(path):  # noqa: PTH113 - likewise
        return _from_gguf(path) if path.suffix == ".gguf" else from_file(path)
    if ref.startswith(("/", "./", "../", "~")) or ref.endswith(".json"):
        raise InvalidInput(
            f"{ref} does not exist", hint="give a model folder, a config.json or a hub id such as Qwen/Qwen3-32B"
        )
    if not _HUB_ID.fullmatch(ref) or ".." in ref or len(ref) > LONGEST_ID:
        raise InvalidInput(
            f"'{ref[:LONGEST_ID]}' is not a model",
            why=f"a hub id has the form organisation/name, at most {LONGEST_ID} characters",
            hint=_close(ref, overlay),
        )
    if revision is None:
        known = catalog.load(ref, overlay)
        if known is not None:
            return known
    cached = cached_snapshot(ref, revision, cache_dir)
    if cached is not None:
        return msgspec.structs.replace(from_folder(cached), model_id=ref, source=f"local cache, {cached.name}")
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        unknown = InvalidInput(
            f"{ref} is not known here",
            why="it is neither in the catalogue nor in the local cache, and asking the hub is switched off",
            hint=_close(ref, overlay),
        )
        return _by_name(ref, revision, overlay, unknown)
    from aim_engine.model.hub import Gated

    try:
        return _from_hub(ref, revision, endpoint, token, overlay, headers=headers)
    except (Gated, Unreachable) as err:
        return _by_name(ref, revision, overlay, err)


def from_file(path: Path) -> ModelSpec:
    """The model in a config.json of any name, with ModelOpt's side file when one lies beside it. Raises: InvalidInput."""
    plain = path.name == "config.json"
    side = path.with_name("hf_quant_config.json" if plain else f"{path.stem}.hf_quant_config.json")
    return config.parse(
        _read_json(path),
        model_id=path.resolve().parent.name if plain else path.stem.replace("__", "/"),
        source=str(path),
        quant_config=_read_json(side) if side.is_file() else None,
    )


def from_folder(folder: Path) -> ModelSpec:
    """The model in a checkpoint folder, with exact bytes where its headers can be read. Raises: InvalidInput, Corrupt."""
    path = folder / "config.json"
    if not path.is_file():
        files = sorted(folder.glob("*.gguf"))
        if files:
            return _from_gguf(files[0])
        raise InvalidInput(f"{folder} holds no config.json", hint="give the folder of a Hugging Face checkpoint")
    side = folder / "hf_quant_config.json"
    spec = config.parse(
        _read_json(path),
        model_id=folder.resolve().name,
        source=str(path),
        quant_config=_read_json(side) if side.is_file() else None,
    )
    return weights.with_weights(spec, folder)


def _from_gguf(path: Path) -> ModelSpec:
    from aim_engine.model import gguf

    return gguf.describe(gguf.read(path), str(path))


def cached_snapshot(model_id: str, revision: str | None = None, cache_dir: Path | None = None) -> Path | None:
    """The snapshot folder of a model in the local hub cache that holds a config.json; None when there is none."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    ).expanduser()
    root = cache_dir or Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repository = root / ("models--" + model_id.replace("/", "--"))
    wanted = revision or "main"
    reference = repository / "refs" / wanted
    try:
        commit = reference.read_text().strip() if reference.is_file() else wanted
    except OSError as err:
        raise Unreachable(f"the cache at {root} cannot be read", why=err.strerror) from err
    snapshot = repository / "snapshots" / commit
    return snapshot if (snapshot / "config.json").is_file() else None


def size_from_name(model_id: str) -> float | None:
    """Billions of parameters that a model's name states: 32B, 8x7B, 235B-A22B (the total), 0.6B, 135M; None without one."""
    sizes = []
    for experts, number, unit in _SIZE.findall(re.sub(r"[-_/]", " ", model_id)):
        sizes.append(float(number) * (int(experts) if experts else 1) / (1000 if unit.lower() == "m" else 1))
    return max(sizes, default=None)


def _by_name(ref: str, revision: str | None, overlay: Path | None, reason: AimError) -> ModelSpec:
    """A likeness of the model that `ref` names, or what kept it from being read. Raises: `reason`."""
    from aim_engine.model import library

    found = library.likeness(ref, size_from_name(ref), overlay) if revision is None else None
    if found is None:
        raise reason
    like, how = found
    return msgspec.structs.replace(
        like,
        model_id=ref,
        basis="name",
        weight_bytes=None,
        stored=None,
        gated=None,
        license=None,
        source=f"its name: {how}",
        warnings=(*like.warnings, f"{reason.what}, so it is described by its name: {how}"),
    )


def _from_hub(
    ref: str, revision: str | None, endpoint: str | None, token: str | None, overlay: Path | None, *, headers: bool
) -> ModelSpec:
    """Fetch the small files that describe a model, and with `headers` the first bytes of its weights.

    Raises: InvalidInput, Unreachable, Corrupt.
    """
    from aim_engine.model import hub

    commit = revision or "main"
    repository = hub.Repository(ref, commit, endpoint=endpoint, token=token, hint=_close(ref, overlay))
    document = repository.json("config.json")
    if document is None:
        return _gguf_from_hub(repository)
    side = repository.json("hf_quant_config.json")
    spec = config.parse(document, model_id=ref, source=f"hub, {ref} at {commit}", quant_config=side)
    index = repository.file("model.safetensors.index.json")
    if headers:
        files = weights.shards(index, f"the weight index of {ref}") if index is not None else {"model.safetensors": []}
        stored = weights.read_remote(repository, files, spec.layers)
        if stored is not None:
            return weights.with_stored(spec, stored, index, f"the weight index of {ref}")
    total = weights.index_total(index, f"the weight index of {ref}") if index is not None else None
    return weights.exact(spec, total) if total else spec


def _gguf_from_hub(repository: Repository) -> ModelSpec:
    """The model in the first GGUF file of a repository that holds nothing else. Raises: InvalidInput."""
    from aim_engine.model import gguf

    names = [name for name in repository.names() if name.endswith(".gguf") and "mmproj" not in name]
    if not names:
        raise InvalidInput(
            f"{repository.ref} holds no config.json on the hub",
            hint="it may be an adapter repository; give a full checkpoint",
        )
    first = min(names, key=lambda name: (re.search(r"-0*[2-9]\d*-of-", name) is not None, name))
    return gguf.describe(gguf.read_remote(repository, first), f"{repository.ref}, {first}")


def _close(ref: str, overlay: Path | None) -> str:
    close = catalog.close_matches(ref, overlay)
    return f"did you mean {', '.join(close)}?" if close else "aim-engine model --list shows the bundled ones"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        raise InvalidInput(f"{path} is not readable as JSON", why=str(err), hint="fetch it again") from err
    except OSError as err:
        raise InvalidInput(f"{path} cannot be read", why=err.strerror) from err
