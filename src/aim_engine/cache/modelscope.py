"""ModelScope, and servers that speak as it does: every file is listed with its sha256.

Source: github.com/modelscope/modelscope modelscope/hub/api.py get_model_files; hub/file_download.py get_file_download_url.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import quote

from aim_engine.cache import names, sources
from aim_engine.cache.faults import AccessRefused, NoSuchModel, Unavailable
from aim_engine.cache.hub import File, Listing
from aim_engine.cache.transport import Client
from aim_engine.errors import AimError

ENDPOINT = "https://www.modelscope.cn"
_BRANCH = "master"
"""What ModelScope calls the branch that the hub calls main."""


class ModelScope:
    """A ModelScope server."""

    def __init__(self, text: str) -> None:
        """`text` is `modelscope`, or `modelscope+` and an address."""
        self.text = text
        self.endpoint = text.partition("+")[2].rstrip("/") or ENDPOINT
        self.name = self.endpoint

    def describe(self, client: Client, model_id: str, revision: str) -> Listing:
        """See `Source`."""
        branch = self._branch(revision)
        query = f"Revision={quote(branch, safe='')}&Recursive=true"
        url = f"{self.endpoint}/api/v1/models/{model_id}/repo/files?{query}"
        status, _, body = client.document(url)
        if status in (401, 403):
            raise AccessRefused(
                f"{self.name} refuses access to {model_id}", hint="only public models are fetched there"
            )
        if status == 404:
            raise NoSuchModel(f"{self.name} has no {model_id} at {branch}", hint="names may differ from the hub's")
        try:
            document = json.loads(body)
            if not document.get("Success", True) or document.get("Data") is None:
                raise NoSuchModel(f"{self.name} has no {model_id}", why=str(document.get("Message", ""))[:200])
            entries = document["Data"]["Files"] or []
            if len(entries) > names.MAX_FILES:
                raise ValueError(f"it lists {len(entries):,} files")
            files = [
                File(str(each["Path"]), _size(each["Size"]), names.require_sha256(str(each["Sha256"])))
                for each in entries
                if each.get("Type") != "tree"
            ]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            raise Unavailable(
                f"{self.name} does not answer as ModelScope", why=f"{type(err).__name__}: {err} (status {status})"
            ) from err
        found = sources.listing(model_id, "main", files, f"{self.endpoint}/models/{model_id}/tree/{branch}")
        if names.COMMIT.fullmatch(revision):  # a commit of its own names what was asked for
            return Listing(model_id=model_id, commit=revision, files=found.files, source=found.source)
        return found

    def address(self, listing: Listing, path: str) -> str:
        """See `Source`."""
        branch = quote(listing.source.rpartition("/tree/")[2], safe="")
        query = f"Revision={branch}&FilePath={quote(path, safe='')}"
        return f"{self.endpoint}/api/v1/models/{listing.model_id}/repo?{query}"

    def refusal(self, status: int, headers: Mapping[str, str], model_id: str, path: str) -> AimError:
        """See `Source`."""
        return sources.refused(self.name, status, model_id, path)

    @staticmethod
    def _branch(revision: str) -> str:
        return _BRANCH if revision == "main" else revision


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value
