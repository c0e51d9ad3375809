"""The small files of a repository on the hub, and pieces of its large ones; never the weights themselves."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from aim_engine.errors import AimError, Corrupt, InvalidInput, Unreachable

TIMEOUT_S = 10.0
MAX_FILE_BYTES = 64 * 1024 * 1024
TRIES = 3
"""How often a piece that breaks off is asked for."""


class Gated(InvalidInput):
    """The repository is there, and its owner lets nobody read it unasked."""


class Repository:
    """One model at one commit."""

    def __init__(
        self, ref: str, commit: str, *, endpoint: str | None = None, token: str | None = None, hint: str = ""
    ) -> None:
        """`hint` is what to say when there is no such model."""
        from huggingface_hub import get_token

        self.ref, self.commit = ref, commit
        self._endpoint = endpoint or os.environ.get("HF_ENDPOINT")
        self._secret = token or get_token()
        self._hint = hint

    def json(self, name: str) -> Any:
        """A JSON document; None when the repository has no such file. Raises: Corrupt and what `file` raises."""
        content = self.file(name)
        if content is None:
            return None
        try:
            return json.loads(content)
        except ValueError as err:
            raise Corrupt(f"{name} of {self.ref} on the hub is not JSON", why=str(err)) from err

    def file(self, name: str) -> bytes | None:
        """One small file; None when the repository has none of that name. Raises: InvalidInput, Unreachable, Corrupt."""
        answer = self._get(self._address(name), name, None, MAX_FILE_BYTES + 1)
        if answer is None:
            return None
        content, announced = answer
        if len(content) > MAX_FILE_BYTES:
            raise Corrupt(
                f"{name} of {self.ref} on the hub is larger than any such file", why=f"over {MAX_FILE_BYTES} bytes"
            )
        if len(content) < announced:
            raise self._cut(name, len(content), announced)
        return content

    def piece(self, name: str, start: int, stop: int) -> bytes | None:
        """Bytes `start` up to `stop` of a file, fewer where it ends; None when the repository has none of that name.

        A server that ignores ranges is read no further than needed. Raises: InvalidInput, Unreachable.
        """
        failure: Unreachable | None = None
        for _ in range(TRIES):
            try:
                answer = self._get(self._address(name), name, (start, stop), stop)
            except Unreachable as err:
                failure = err
                continue
            if answer is None:
                return None
            content, announced = answer
            if len(content) >= min(announced, stop - start):
                return content
            failure = self._cut(name, len(content), min(announced, stop - start))
        raise failure or self._cut(name, 0, stop - start)

    def names(self) -> list[str]:
        """All files of the repository. Raises: InvalidInput, Unreachable, Corrupt."""
        base = (self._endpoint or "https://huggingface.co").rstrip("/")
        url = f"{base}/api/models/{self.ref}/revision/{urllib.parse.quote(self.commit, safe='')}"
        answer = self._get(url, "the file list", None, MAX_FILE_BYTES)
        try:
            listed = json.loads(answer[0])["siblings"] if answer is not None else []
            return sorted(str(entry["rfilename"]) for entry in listed)
        except (ValueError, KeyError, TypeError) as err:
            raise Corrupt(f"the file list of {self.ref} on the hub is damaged", why=str(err)) from err

    def _address(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(self.ref, name, revision=self.commit, endpoint=self._endpoint))

    def _get(self, url: str, name: str, span: tuple[int, int] | None, most: int) -> tuple[bytes, int] | None:
        """Content and how long it was announced to be; None for a file that is not there."""
        request = urllib.request.Request(url, headers={})  # noqa: S310
        if self._secret:
            request.add_unredirected_header("Authorization", f"Bearer {self._secret}")
        if span is not None:
            request.add_header("Range", f"bytes={span[0]}-{span[1] - 1}")
        try:
            with urllib.request.build_opener(_Redirects(self._secret)).open(request, timeout=TIMEOUT_S) as reply:
                ranged = span is not None and reply.status == http.client.PARTIAL_CONTENT
                content: bytes = reply.read(span[1] - span[0] if ranged and span else most)
                announced = int(reply.headers.get("Content-Length") or len(content))
                if span is not None and not ranged:
                    content, announced = content[span[0] : span[1]], max(0, announced - span[0])
                return content, announced
        except urllib.error.HTTPError as err:
            err.close()
            if err.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b"", 0
            refusal = self._refusal(err.code, err.headers.get("x-error-code", ""))
            if refusal is None:
                return None
            raise refusal from err
        except (OSError, http.client.HTTPException, ValueError) as err:
            reason = getattr(err, "reason", err)
            raise Unreachable(
                f"the hub cannot be asked about {self.ref}",
                why=str(reason) or type(err).__name__,
                hint=f"check the network, or name a bundled model: {self._hint}",
            ) from err

    def _cut(self, name: str, got: int, announced: int) -> Unreachable:
        return Unreachable(
            f"the hub cannot be asked about {self.ref}",
            why=f"the transfer of {name} broke off after {got} of {announced} bytes",
            hint="try again",
        )

    def _refusal(self, status: int, code: str) -> AimError | None:
        """The error that a hub's answer means; None when only this one file is absent."""
        if code == "EntryNotFound" or (status == 404 and code not in ("RepoNotFound", "RevisionNotFound")):
            return None
        if code == "GatedRepo" or status == 403:
            return Gated(
                f"{self.ref} is gated",
                why="its owner asks for agreement to terms before it may be read",
                hint="accept them on the model's page, then set HF_TOKEN",
            )
        if code == "RevisionNotFound":
            return InvalidInput(f"{self.ref} has no such revision", hint="drop --revision to use the newest")
        if code == "RepoNotFound" or status in (401, 404):
            return InvalidInput(
                f"{self.ref} is not on the hub",
                why="there is no such model, or it is private and HF_TOKEN is not set",
                hint=self._hint,
            )
        return Unreachable(
            f"the hub refused to answer about {self.ref}", why=f"HTTP status {status}", hint="try again later"
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but takes the token to no other host."""

    def __init__(self, secret: str | None) -> None:
        self._secret = secret

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        same = urllib.parse.urlsplit(newurl).netloc == urllib.parse.urlsplit(req.full_url).netloc
        if following is not None and same and self._secret:
            following.add_unredirected_header("Authorization", f"Bearer {self._secret}")
        return following
