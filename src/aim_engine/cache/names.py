"""Names that come from outside and become paths: model ids, revisions and the files of a repository.

Nothing here touches a disk. A name that could leave its folder, hide, be cut off or clash with another one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from aim_engine.cache.faults import Unsafe
from aim_engine.errors import InvalidInput

_MODEL_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:/[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?)?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_ID = 96
"""The hub's own limit for repository names."""
_MAX_PART_BYTES = 255
"""NAME_MAX of every Linux file system in use."""
_MAX_PATH_BYTES = 1024
MAX_FILES = 100_000
"""More files than any model has; a listing beyond it is an attack or a mistake."""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))}


def require_model_id(model_id: str) -> str:
    """The id as given. Raises: InvalidInput unless it has the form `name` or `organisation/name`.

    Source: huggingface_hub utils/_validators.py validate_repo_id: at most 96 characters of [A-Za-z0-9._-] around one slash,
    neither `--` nor `..` in it, no `.git` at its end.
    """
    if (
        len(model_id) > _MAX_ID
        or not _MODEL_ID.fullmatch(model_id)
        or "--" in model_id
        or ".." in model_id
        or model_id.endswith(".git")
    ):
        raise InvalidInput(f"'{model_id}' is not a model id", hint=_meant(model_id))
    return model_id


def _meant(text: str) -> str:
    """What somebody probably meant who gave this as a model id."""
    if text.startswith(("/", "./", "../", "~")):
        return f"there is no folder {text[:200]}"
    name, _, revision = text.strip().partition("@") if "@" in text else text.strip().partition(":")
    if "//" in text:  # the address of its page
        name, revision = "/".join(text.partition("//")[2].split("?")[0].split("/")[1:3]), ""
    if name != text and _MODEL_ID.fullmatch(name) and "/" in name:
        return f"did you mean {name}" + (f" --revision {revision}?" if _REVISION.fullmatch(revision) else "?")
    return "for example Qwen/Qwen3-32B, or the path of a folder"


def require_revision(revision: str) -> str:
    """The revision as given. Raises: InvalidInput when it cannot be a branch, tag or commit."""
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision.endswith("/"):
        raise InvalidInput(f"'{revision}' is not a revision", hint="give a branch, a tag or a commit")
    return revision


def require_sha256(digest: str) -> str:
    """The digest as given. Raises: InvalidInput unless it is 64 lower-case hex digits."""
    if not _HEX64.fullmatch(digest):
        raise InvalidInput(
            f"'{digest[:80]}' is not a sha256", hint="64 hexadecimal digits, as `cache ls --files` shows"
        )
    return digest


def is_sha256(text: str | None) -> bool:
    """Is this a sha256 in hex?"""
    return text is not None and _HEX64.fullmatch(text) is not None


def folder(model_id: str) -> str:
    """The hub's folder name of a model: `models--org--name`. Raises: InvalidInput."""
    return "models--" + require_model_id(model_id).replace("/", "--")


def model_id(folder_name: str) -> str | None:
    """The model id of a hub folder name; None when it is none."""
    kind, _, rest = folder_name.partition("--")
    found = rest.replace("--", "/", 1)
    if kind != "models" or not _MODEL_ID.fullmatch(found) or "--" in found:
        return None
    return found


def require_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """The relative file paths of a repository, as given. Raises: Unsafe naming the first that cannot be stored as it is."""
    accepted: list[str] = []
    seen: dict[str, str] = {}
    folders: set[str] = set()
    for path in paths:
        why = _refusal(path)
        if why is not None:
            raise Unsafe(f"the file name {path[:120]!r} is refused", why=why)
        folded = path.casefold()
        if folded in seen:
            raise Unsafe(f"the file name {path!r} is refused", why=f"it differs from {seen[folded]!r} in case only")
        seen[folded] = path
        parts = folded.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        accepted.append(path)
        if len(accepted) > MAX_FILES:
            raise Unsafe("the repository is refused", why=f"it lists more than {MAX_FILES:,} files")
    both = folders & seen.keys()
    if both:
        raise Unsafe(f"the file name {seen[min(both)]!r} is refused", why="it is a file and a folder at once")
    return tuple(accepted)


def _refusal(path: str) -> str | None:
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if not path or len(encoded) > _MAX_PATH_BYTES:
        return "it is empty or longer than 1,024 bytes"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
        return "it holds control characters"
    if "\\" in path:
        return "a backslash separates folders on other systems"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "it could leave its folder"
        if len(part.encode("utf-8")) > _MAX_PART_BYTES:
            return "a part of it is longer than 255 bytes"
        if part.split(".")[0].casefold() in _RESERVED:
            return "it is a device name on other systems"
    return None
