"""Models on a plain web server: the files of a model lie in one folder there.

A SHA256SUMS file in that folder names the files and proves them. Without one, the files that engines load are asked for by their usual
names, and the weights by their index; then only sizes and ETags guard what comes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from aim_engine.cache import names, sources
from aim_engine.cache.faults import NoSuchModel, Unavailable, Unsafe
from aim_engine.cache.hub import File, Listing
from aim_engine.cache.transport import Client
from aim_engine.errors import AimError

_USUAL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "preprocessor_config.json",
    "processor_config.json", "LICENSE", "model.safetensors.index.json", "model.safetensors",
)  # fmt: skip
_INDEX = "model.safetensors.index.json"


class Web:
    """A web server with models."""

    def __init__(self, text: str) -> None:
        """`text` is `web+` and an address."""
        self.text = text
        self._template = text.partition("+")[2]
        self.name = self._template

    def describe(self, client: Client, model_id: str, revision: str) -> Listing:
        """See `Source`."""
        base = sources.expand(self._template, model_id, revision).rstrip("/")
        status, _, body = client.document(f"{base}/{sources.SUMS}")
        told = sources.sums(body.decode(errors="replace")) if status == 200 else {}
        wanted = tuple(told) or (*_USUAL, *self._shards(client, base))
        if len(wanted) > names.MAX_FILES:
            raise Unsafe(f"{base} is refused", why=f"it lists {len(wanted):,} files")
        names.require_paths(wanted)
        files = []
        for path in wanted:
            status, headers, _ = client.document(sources.below(base, path), method="HEAD")
            length = headers.get("content-length", "")
            if status == 200 and length.isdigit():
                etag = headers.get("etag") or headers.get("last-modified")
                files.append(File(path, int(length), told.get(path), etag=etag))
            elif status in (401, 403) or (path in told and status != 404):
                raise sources.refused(self.name, status, model_id, path)
            elif path in told or path == "config.json":
                raise NoSuchModel(f"{base} has no {model_id}", why=f"{path}: status {status}")
        return sources.listing(model_id, revision, files, base)

    def address(self, listing: Listing, path: str) -> str:
        """See `Source`."""
        return sources.below(listing.source, path)

    def refusal(self, status: int, headers: Mapping[str, str], model_id: str, path: str) -> AimError:
        """See `Source`."""
        return sources.refused(self.name, status, model_id, path)

    @staticmethod
    def _shards(client: Client, base: str) -> tuple[str, ...]:
        status, _, body = client.document(f"{base}/{_INDEX}")
        if status != 200:
            return ()
        try:
            return tuple(sorted({str(shard) for shard in json.loads(body)["weight_map"].values()}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            raise Unavailable(f"{base}/{_INDEX} cannot be read", why=f"{type(err).__name__}: {err}") from err
