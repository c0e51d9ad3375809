"""Where a model may come from: a hub or mirror, ModelScope, a plain web server, an object store, a folder, another node's cache.

    https://huggingface.co                a hub, a mirror of it, or a node that runs `aim-engine cache serve`
    modelscope, modelscope+https://HOST   ModelScope
    web+https://HOST/models/{model}       files on a web server
    s3://bucket/models, gs://, az://      an object store
    /mnt/models, file:///mnt/models       a folder, as on a shared file system

A source lists a model's files with what is known of their content and says under which addresses they lie; the bytes of all of
them come through the same transport, in pieces, and are proved by the same checks. Where a source knows no commits, the list of its
files stands for one, so that another content never passes for the same revision.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, urlsplit

from aim_engine.cache import names
from aim_engine.cache.faults import AccessRefused, NoSuchFile, NoSuchModel, NoSuchRevision, Unavailable
from aim_engine.cache.hub import File, Listing
from aim_engine.errors import AimError, InvalidInput

if TYPE_CHECKING:
    from aim_engine.cache.transport import Client

SUMS = "SHA256SUMS"
"""A file of this name beside a model's files tells their checksums, as `sha256sum` writes them."""
_SUM = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(.+)")


class Source(Protocol):
    """A place that has models. Every implementation passes the same contract test."""

    text: str
    """As `parse` reads it."""
    name: str
    """As people read it."""

    def describe(self, client: Client, model_id: str, revision: str) -> Listing:
        """The files of a model at a revision. Raises: InvalidInput (no such model or revision), Unavailable, RateLimited."""

    def address(self, listing: Listing, path: str) -> str:
        """Where a file of a listing is."""

    def refusal(self, status: int, headers: Mapping[str, str], model_id: str, path: str) -> AimError:
        """The typed error for a refusal of a file."""


def parse(text: str) -> Source:
    """The source that an address names. Raises: InvalidInput, MissingExtra."""
    from aim_engine.cache import folder, hub, modelscope, objects, web

    scheme = text.partition(":")[0].casefold() if "://" in text else ""
    user = urlsplit(text).netloc.rpartition("@")[0] if scheme else ""
    if user and (
        scheme not in ("abfs", "abfss") or ":" in user
    ):  # there it is the container: abfss://CONTAINER@ACCOUNT...
        raise InvalidInput(
            f"'{_public(text)}' is named with credentials",
            why="an address is kept and shown",
            hint="HF_TOKEN, AWS_*, GOOGLE_* and AZURE_* variables hold credentials",
        )
    makers: dict[str, Callable[[str], Source]] = {
        "http": hub.Hub,
        "https": hub.Hub,
        "": modelscope.ModelScope if text.casefold() == "modelscope" else folder.Folder,
        "file": folder.Folder,
        "modelscope+https": modelscope.ModelScope,
        "modelscope+http": modelscope.ModelScope,
        "web+https": web.Web,
        "web+http": web.Web,
        **dict.fromkeys(objects.SCHEMES, objects.Objects),
    }
    if scheme not in makers or (scheme == "" and not text.startswith(("/", "~")) and text.casefold() != "modelscope"):
        raise InvalidInput(
            f"'{_public(text)}' is not a place that models come from",
            hint="https://HOST, modelscope, web+https://HOST/PATH, s3://BUCKET/PATH, gs://, az://, or a folder",
        )
    return makers[scheme](text)


def parse_all(text: str) -> tuple[Source, ...]:
    """The sources of a list that is separated by commas, in order of preference. Raises: InvalidInput."""
    found = tuple(parse(each.strip()) for each in text.split(",") if each.strip())
    if not found:
        raise InvalidInput("no place is named that models come from", hint="unset AIM_ENGINE_CACHE_SOURCES")
    return found


def expand(template: str, model_id: str, revision: str) -> str:
    """The address of one model: where `{model}` and `{revision}` stand, else below the address."""
    if "{model}" in template:
        return template.replace("{model}", model_id).replace("{revision}", revision)
    return f"{template.rstrip('/')}/{model_id}"


def listing(model_id: str, revision: str, files: Iterable[File], source: str) -> Listing:
    """A listing of a source that knows no commits: they are named after the content. Raises: NoSuchModel, NoSuchRevision."""
    found = tuple(sorted(files, key=lambda file: file.path))
    if not found:
        raise NoSuchModel(f"{source} has no {model_id}", hint="check the name, and where its files lie there")
    told = hashlib.sha1(usedforsecurity=False)
    for file in found:
        told.update(f"{file.path}\0{file.size_bytes}\0{file.sha256 or file.git_oid or file.etag}\n".encode())
    commit = told.hexdigest()
    if names.COMMIT.fullmatch(revision) and revision != commit:
        raise NoSuchRevision(
            f"{source} has another version of {model_id}",
            why=f"it is {commit[:12]} now, not {revision[:12]}",
            hint="leave --revision out for what is there",
        )
    return Listing(model_id=model_id, commit=commit, files=found, source=source)


def sums(text: str) -> dict[str, str]:
    """Path -> sha256 of a SHA256SUMS file; lines of another form are left out."""
    return {match[2]: match[1] for line in text.splitlines() if (match := _SUM.fullmatch(line.strip()))}


def refused(name: str, status: int, model_id: str, path: str) -> AimError:
    """The typed error for a refusal by a source without codes of its own."""
    if status in (401, 403):
        return AccessRefused(f"{name} refuses access to {path} of {model_id} ({status})", hint="check the credentials")
    if status == 404:
        return NoSuchFile(f"{name} has no file {path} of {model_id}", hint="it may have been removed meanwhile")
    return Unavailable(f"{name} answered {status} for {path} of {model_id}", hint="try again later")


def below(base: str, path: str) -> str:
    """The address of a file below a folder's address."""
    return f"{base.rstrip('/')}/{quote(path)}"


def _public(text: str) -> str:
    """An address without credentials."""
    parts = urlsplit(text)
    return text.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)[:120] if parts.netloc else text[:120]
