"""Where a model's description comes from: a folder, a config.json, the catalogue, the local cache, the hub; in that order."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aim_engine.errors import AimError, Corrupt, InvalidInput, Unreachable
from aim_engine.model import catalog, config, weights
from aim_engine.model.spec import ModelSpec

if TYPE_CHECKING:
    import urllib.request

HUB_TIMEOUT_S = 10.0
MAX_FILE_BYTES = 64 * 1024 * 1024
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
) -> ModelSpec:
    """The model that `ref` names: a folder, a config.json, or a hub id.

    A hub id is looked up in the catalogue (unless a revision is asked for), then in the local hub cache, then on the hub.
    Raises: InvalidInput, Corrupt, Unreachable.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return from_folder(path)
    if path.is_file():
        return from_file(path)
    if ref.startswith(("/", "./", "../", "~")) or ref.endswith(".json"):
        raise InvalidInput(
            f"{ref} does not exist", hint="give a model folder, a config.json or a hub id such as Qwen/Qwen3-32B"
        )
    if not _HUB_ID.fullmatch(ref) or ".." in ref:
        raise InvalidInput(
            f"'{ref}' is not a model", why="a hub id has the form organisation/name", hint=_close(ref, overlay)
        )
    if revision is None:
        known = catalog.load(ref, overlay)
        if known is not None:
            return known
    cached = cached_snapshot(ref, revision, cache_dir)
    if cached is not None:
        return msgspec.structs.replace(from_folder(cached), model_id=ref, source=f"local cache, {cached.name}")
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise InvalidInput(
            f"{ref} is not known here",
            why="it is neither in the catalogue nor in the local cache, and asking the hub is switched off",
            hint=_close(ref, overlay),
        )
    return _from_hub(ref, revision, endpoint, token, overlay)


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
        raise InvalidInput(f"{folder} holds no config.json", hint="give the folder of a Hugging Face checkpoint")
    side = folder / "hf_quant_config.json"
    spec = config.parse(
        _read_json(path),
        model_id=folder.resolve().name,
        source=str(path),
        quant_config=_read_json(side) if side.is_file() else None,
    )
    return weights.with_weights(spec, folder)


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


def _from_hub(
    ref: str, revision: str | None, endpoint: str | None, token: str | None, overlay: Path | None
) -> ModelSpec:
    """Fetch the small files that describe a model. Raises: InvalidInput, Unreachable, Corrupt."""
    commit = revision or "main"
    document = _hub_json(ref, commit, "config.json", endpoint, token, overlay)
    if document is None:
        raise InvalidInput(
            f"{ref} holds no config.json on the hub",
            hint="it may be a GGUF or adapter repository; give a full checkpoint",
        )
    side = _hub_json(ref, commit, "hf_quant_config.json", endpoint, token, overlay)
    spec = config.parse(document, model_id=ref, source=f"hub, {ref} at {commit}", quant_config=side)
    index = _hub_file(ref, commit, "model.safetensors.index.json", endpoint, token, overlay)
    total = weights.index_total(index, f"the weight index of {ref}") if index is not None else None
    return weights.exact(spec, total) if total else spec


def _hub_json(ref: str, commit: str, name: str, endpoint: str | None, token: str | None, overlay: Path | None) -> Any:
    content = _hub_file(ref, commit, name, endpoint, token, overlay)
    if content is None:
        return None
    try:
        return json.loads(content)
    except ValueError as err:
        raise Corrupt(f"{name} of {ref} on the hub is not JSON", why=str(err)) from err


def _hub_file(
    ref: str, commit: str, name: str, endpoint: str | None, token: str | None, overlay: Path | None
) -> bytes | None:
    """One small file of a repository; None when the repository has no such file."""
    import http.client
    import urllib.error
    import urllib.request

    from huggingface_hub import get_token, hf_hub_url

    url = hf_hub_url(ref, name, revision=commit, endpoint=endpoint or os.environ.get("HF_ENDPOINT"))
    secret = token or get_token()
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {secret}"} if secret else {})  # noqa: S310
    try:
        with urllib.request.build_opener(_redirects()).open(request, timeout=HUB_TIMEOUT_S) as reply:
            content: bytes = reply.read(MAX_FILE_BYTES + 1)
            announced = int(reply.headers.get("Content-Length") or len(content))
    except urllib.error.HTTPError as err:
        err.close()
        refusal = _refusal(ref, err.code, err.headers.get("x-error-code", ""), overlay)
        if refusal is None:
            return None
        raise refusal from err
    except (OSError, http.client.HTTPException, ValueError) as err:
        reason = getattr(err, "reason", err)
        raise Unreachable(
            f"the hub cannot be asked about {ref}",
            why=str(reason) or type(err).__name__,
            hint=f"check the network, or name a bundled model: {_close(ref, overlay)}",
        ) from err
    if len(content) > MAX_FILE_BYTES:
        raise Corrupt(f"{name} of {ref} on the hub is larger than any such file", why=f"over {MAX_FILE_BYTES} bytes")
    if len(content) < announced:
        raise Unreachable(
            f"the hub cannot be asked about {ref}",
            why=f"the transfer of {name} broke off after {len(content)} of {announced} bytes",
            hint="try again",
        )
    return content


def _redirects() -> urllib.request.HTTPRedirectHandler:
    """Follows redirects, but takes the token to no other host."""
    import urllib.parse
    import urllib.request

    class KeepTokenHome(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            following = super().redirect_request(req, fp, code, msg, headers, newurl)
            if (
                following is not None
                and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc
            ):
                following.remove_header("Authorization")
            return following

    return KeepTokenHome()


def _refusal(ref: str, status: int, code: str, overlay: Path | None) -> AimError | None:
    """The error that a hub's answer means; None when only this one file is absent."""
    if code == "EntryNotFound" or (status == 404 and code not in ("RepoNotFound", "RevisionNotFound")):
        return None
    if code == "GatedRepo" or status == 403:
        return InvalidInput(
            f"{ref} is gated",
            why="its owner asks for agreement to terms before it may be read",
            hint="accept them on the model's page, then set HF_TOKEN",
        )
    if code == "RevisionNotFound":
        return InvalidInput(f"{ref} has no such revision", hint="drop --revision to use the newest")
    if code == "RepoNotFound" or status in (401, 404):
        return InvalidInput(
            f"{ref} is not on the hub",
            why="there is no such model, or it is private and HF_TOKEN is not set",
            hint=_close(ref, overlay),
        )
    return Unreachable(f"the hub refused to answer about {ref}", why=f"HTTP status {status}", hint="try again later")


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
