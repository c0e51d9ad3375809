"""The small files of a repository on the hub, and pieces of its large ones; never the weights themselves."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aim_engine.errors import AimError, Corrupt, InvalidInput, Unreachable

if TYPE_CHECKING:
    import urllib3

TIMEOUT_S = 10.0
MAX_FILE_BYTES = 64 * 1024 * 1024
CONNECTIONS = 8
"""Kept open to each host while pieces are read."""
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
        answer = self._get(self._address(name), MAX_FILE_BYTES + 1)
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
                answer = self._get_piece(self._address(name), start, stop)
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
        answer = self._get(url, MAX_FILE_BYTES)
        try:
            listed = json.loads(answer[0])["siblings"] if answer is not None else []
            return sorted(str(entry["rfilename"]) for entry in listed)
        except (ValueError, KeyError, TypeError) as err:
            raise Corrupt(f"the file list of {self.ref} on the hub is damaged", why=str(err)) from err

    def _address(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(self.ref, name, revision=self.commit, endpoint=self._endpoint))

    def _get(self, url: str, most: int) -> tuple[bytes, int] | None:
        """Content and how long it was announced to be; None for a file that is not there."""
        request = urllib.request.Request(url, headers={})  # noqa: S310
        if self._secret:
            request.add_unredirected_header("Authorization", f"Bearer {self._secret}")
        try:
            with urllib.request.build_opener(_Redirects(self._secret)).open(request, timeout=TIMEOUT_S) as reply:
                content: bytes = reply.read(most)
                return content, int(reply.headers.get("Content-Length") or len(content))
        except urllib.error.HTTPError as err:
            err.close()
            refusal = self._refusal(err.code, err.headers.get("x-error-code", ""))
            if refusal is None:
                return None
            raise refusal from err
        except (OSError, http.client.HTTPException, ValueError) as err:
            raise self._unreachable(getattr(err, "reason", err)) from err

    @cached_property
    def _pool(self) -> urllib3.PoolManager:
        """Keeps connections, and like `_Redirects` takes the token to no other host."""
        import urllib3

        retries = urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=5)
        host = urllib.parse.urlsplit(self._address("config.json"))
        proxy = (
            None if urllib.request.proxy_bypass(host.hostname or "") else urllib.request.getproxies().get(host.scheme)
        )
        if proxy:
            return urllib3.ProxyManager(proxy, maxsize=CONNECTIONS, timeout=TIMEOUT_S, retries=retries)
        return urllib3.PoolManager(maxsize=CONNECTIONS, timeout=TIMEOUT_S, retries=retries)

    def _get_piece(self, url: str, start: int, stop: int) -> tuple[bytes, int] | None:
        """Content and how long it was announced to be; None for a file that is not there."""
        from urllib3.exceptions import HTTPError

        asked = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if self._secret:
            asked["Authorization"] = f"Bearer {self._secret}"
        try:
            reply = self._pool.request("GET", url, headers=asked, preload_content=False)
            try:
                if reply.status in (http.client.OK, http.client.PARTIAL_CONTENT):
                    skipped = start if reply.status == http.client.OK else 0
                    announced = int(reply.headers.get("Content-Length") or stop) - skipped
                    content = reply.read(skipped + stop - start)[skipped:]
                    return content, max(0, announced)
            finally:
                if reply.length_remaining:
                    reply.close()
                reply.release_conn()
        except (HTTPError, OSError, ValueError) as err:
            raise self._unreachable(err) from err
        if reply.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b"", 0
        refusal = self._refusal(reply.status, reply.headers.get("x-error-code", ""))
        if refusal is None:
            return None
        raise refusal

    def _unreachable(self, reason: object) -> Unreachable:
        return Unreachable(
            f"the hub cannot be asked about {self.ref}",
            why=str(reason) or type(reason).__name__,
            hint=f"check the network, or name a bundled model: {self._hint}",
        )

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
