"""Models in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.

The library lists and signs; the bytes then come from signed addresses over the same transport as everything else. Credentials are
those that the cloud's own tools use (AWS_*, GOOGLE_*, AZURE_* variables and what the machine's role gives) and never leave the library.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from aim_engine.cache import sources
from aim_engine.cache.faults import AccessRefused, NoSuchModel, Unavailable
from aim_engine.cache.hub import File, Listing
from aim_engine.cache.transport import Client
from aim_engine.errors import AimError, InvalidInput, MissingExtra

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
_SIGNED_FOR = dt.timedelta(hours=1)
"""An address is signed anew when it is refused, so this bounds how long a leaked one is of use, not a download."""
_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_")
_MAX_SUMS_BYTES = 16 << 20
_STATUS = re.compile(r"status code: (\d{3})")
"""What the library says of answers that it has no class for."""
_PART_BYTES = 8 << 20
_MOST_PARTS = 9_500
_PARTS_AT_ONCE = 6
_guard = threading.Lock()
_stores: dict[tuple[object, ...], S3Store | GCSStore | AzureStore] = {}


class Objects:
    """A bucket, or a prefix in one."""

    def __init__(self, text: str) -> None:
        """`text` is its address, such as s3://bucket/models."""
        parts = urlsplit(text)
        if not parts.netloc:
            raise InvalidInput(f"'{text}' names no bucket", hint="for example s3://bucket/models")
        if parts.scheme == "az" and not parts.path.strip("/"):
            raise InvalidInput(f"'{text}' names no container", hint="az://ACCOUNT/CONTAINER/PATH")
        self.text = text
        self.name = text.rstrip("/")
        _library()

    def describe(self, client: Client, model_id: str, revision: str) -> Listing:
        """See `Source`."""
        base = sources.expand(self.name, model_id, revision)
        root, prefix = _split(base)
        prefix = prefix.rstrip("/") + "/"
        files: list[File] = []
        told: dict[str, str] = {}
        try:
            bucket = _store(root)
            for batch in _library().list(bucket, prefix=prefix):
                for each in batch:
                    path = str(each["path"]).removeprefix(prefix)
                    if path == sources.SUMS and int(each["size"]) <= _MAX_SUMS_BYTES:
                        content = bytes(_library().get(bucket, prefix + path).bytes())
                        told = sources.sums(content.decode(errors="replace"))
                    elif path:
                        files.append(File(path, int(each["size"]), etag=str(each["e_tag"] or each["last_modified"])))
        except Exception as err:
            raise _typed(err, self.name, model_id) from err
        known = [File(file.path, file.size_bytes, told.get(file.path), etag=file.etag) for file in files]
        return sources.listing(model_id, revision, known, base)

    def address(self, listing: Listing, path: str) -> str:
        """See `Source`. It is signed when it is used."""
        return f"{listing.source}/{quote(path)}"

    def refusal(self, status: int, headers: Mapping[str, str], model_id: str, path: str) -> AimError:
        """See `Source`."""
        return sources.refused(self.name, status, model_id, path)


def is_address(url: str) -> bool:
    """Must this address be signed?"""
    return url.partition(":")[0] in SCHEMES


def signed(url: str) -> str:
    """An address that anybody can read for an hour. Raises: Unavailable, AccessRefused."""
    root, path = _split(url)
    try:
        return str(_library().sign(_store(root), "GET", unquote(path), _SIGNED_FOR))
    except Exception as err:
        raise _typed(err, root, path) from err


def read(url: str) -> bytes:
    """A small object; empty when it is not there. Raises: Unavailable, AccessRefused."""
    root, path = _split(url)
    try:
        return bytes(_library().get(_store(root), unquote(path)).bytes())
    except FileNotFoundError:
        return b""
    except Exception as err:
        raise _typed(err, root, path) from err


def size(url: str) -> int | None:
    """Bytes of an object; None when it is not there. Raises: Unavailable, AccessRefused."""
    root, path = _split(url)
    try:
        return int(_library().head(_store(root), unquote(path))["size"])
    except FileNotFoundError:
        return None
    except Exception as err:
        raise _typed(err, root, path) from err


def part_bytes(size_bytes: int) -> int:
    """How large the parts of an object are, so that there are not more than a store takes.

    Source: Amazon S3 User Guide, "Amazon S3 multipart upload limits": 10,000 parts, 5 MiB to 5 GiB each.
    """
    return max(_PART_BYTES, -(-size_bytes // _MOST_PARTS))


def put(url: str, content: Path | bytes | Iterator[bytes], *, size_bytes: int) -> None:
    """Write an object, in parts when it is large. Raises: Unavailable, AccessRefused."""
    root, path = _split(url)
    try:
        _library().put(
            _store(root), unquote(path), content, chunk_size=part_bytes(size_bytes), max_concurrency=_PARTS_AT_ONCE
        )
    except Exception as err:
        raise _typed(err, root, path) from err


def _split(url: str) -> tuple[str, str]:
    """The bucket of an address, and the path in it."""
    parts = urlsplit(url)
    path = parts.path.lstrip("/")
    if parts.scheme == "az":  # az://account/container/path
        container, _, path = path.partition("/")
        return f"{parts.scheme}://{parts.netloc}/{container}", path
    return f"{parts.scheme}://{parts.netloc}", path


def _store(root: str) -> Any:
    from obstore.store import AzureStore, from_url

    said = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    key = (root, *sorted(said.items()))
    with _guard:
        if key not in _stores:
            parts = urlsplit(root)
            if parts.scheme == "az":  # the library takes the host for the container
                _stores[key] = AzureStore(parts.path.strip("/"), account_name=parts.netloc)
            else:
                _stores[key] = from_url(root)  # type: ignore[assignment]
        return _stores[key]


def _library() -> Any:
    try:
        import obstore
    except ImportError as err:
        raise MissingExtra("obstore", extra="objects", needed_for="fetching from an object store") from err
    return obstore


def _typed(err: Exception, name: str, model_id: str) -> AimError:
    if isinstance(err, AimError):
        return err
    kind = type(err).__name__
    first = (str(err).splitlines() or [kind])[0]
    status, why = _STATUS.search(first), first[:200]
    code = status[1] if status is not None else ""
    if (
        kind in ("PermissionDeniedError", "UnauthenticatedError")
        or code in ("401", "403")
        or "InvalidAccessKeyId" in first
    ):
        return AccessRefused(
            f"{name} refuses these credentials", why=kind, hint="check AWS_*, GOOGLE_* or AZURE_* variables"
        )
    if kind == "NotFoundError" or isinstance(err, FileNotFoundError) or code == "404":
        return NoSuchModel(f"{name} has no {model_id}", why=kind, hint="check the name of the bucket")
    return Unavailable(f"{name} cannot be read", why=f"{kind}: {why}", hint="check the network and AWS_ENDPOINT_URL")
