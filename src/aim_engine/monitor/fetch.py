"""Gets pages from many endpoints, over connections that stay open, within limits of time and size.

An endpoint can do anything: refuse, ask for a key, answer a byte a second, send fifty megabytes. Each ends in time, with a reason.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from aim_engine.deploy import endpoint as http
from aim_engine.errors import Unreachable

if TYPE_CHECKING:
    import urllib3

MOST_BYTES = 16 * 1024 * 1024
"""A page of an engine has some hundred kilobytes."""
_CHUNK = 64 * 1024


class Fetcher:
    """One client for all endpoints. Safe to use from several threads."""

    def __init__(self, *, hosts: int = 64, key: str | None = None) -> None:
        """`hosts` is how many connections may stay open; `key` is sent as a bearer token."""
        import urllib3

        self._pool = urllib3.PoolManager(num_pools=hosts, maxsize=2, retries=False)
        self._proxies: dict[str, urllib3.ProxyManager] = {}
        self._headers = {"Accept": "text/plain", "Accept-Encoding": "identity", "User-Agent": "aim-engine"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        for pool in (self._pool, *self._proxies.values()):
            pool.clear()

    def get(self, url: str, timeout_s: float) -> str:
        """The whole answer to a GET, within `timeout_s` from now. Raises: Unreachable."""
        import urllib3

        ends = time.monotonic() + timeout_s
        try:
            try:
                return self._page(url, ends, timeout_s)
            except urllib3.exceptions.ProtocolError as err:
                # A server may close a connection that it kept open just as the next question is on its way.
                if not isinstance(err.args[-1], ConnectionError):
                    raise
                return self._page(url, ends, timeout_s)
        except urllib3.exceptions.HTTPError as err:
            raise Unreachable(
                f"{url} does not answer"
                if not isinstance(err, urllib3.exceptions.ProtocolError)
                else f"{url} broke off",
                why=_why(err),
                hint="check that the server runs and that the address is right",
            ) from err

    def _page(self, url: str, ends: float, timeout_s: float) -> str:
        import urllib3

        timeout = urllib3.Timeout(connect=timeout_s, read=timeout_s)
        answer = self._manager(url).request(
            "GET", url, headers=self._headers, timeout=timeout, preload_content=False, redirect=False
        )
        try:
            page = self._body(answer, url, ends, timeout_s)
        except BaseException:
            answer.close()
            raise
        answer.release_conn()
        return page

    def _body(self, answer: urllib3.BaseHTTPResponse, url: str, ends: float, timeout_s: float) -> str:
        if answer.status != 200:
            hints = {401: "set VLLM_API_KEY", 403: "set VLLM_API_KEY"}
            raise Unreachable(
                f"{url} answered {answer.status}",
                why=answer.reason,
                hint=hints.get(answer.status, "is this the address of a serving engine?"),
            )
        parts, size = [], 0
        while chunk := answer.read1(_CHUNK):
            parts.append(chunk)
            size += len(chunk)
            if size > MOST_BYTES:
                raise Unreachable(
                    f"{url} sends more than {MOST_BYTES} bytes", why="that is no metrics page of a serving engine"
                )
            if time.monotonic() > ends:
                raise Unreachable(f"{url} is too slow", why=f"{size} bytes came within {timeout_s:g} s")
        return b"".join(parts).decode("utf-8", "replace")

    def _manager(self, url: str) -> urllib3.PoolManager:
        """Straight, or through the proxy that the environment names for this host."""
        import urllib.request

        import urllib3

        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        if http.is_local(host) or urllib.request.proxy_bypass(host):
            return self._pool
        proxy = urllib.request.getproxies().get(parts.scheme)
        if not proxy:
            return self._pool
        if proxy not in self._proxies:
            self._proxies[proxy] = urllib3.ProxyManager(proxy if "://" in proxy else f"http://{proxy}", retries=False)
        return self._proxies[proxy]


def _why(err: Exception) -> str:
    import urllib3

    if isinstance(err, urllib3.exceptions.TimeoutError) and not isinstance(err, urllib3.exceptions.NewConnectionError):
        return "no answer in time"
    if isinstance(err, urllib3.exceptions.NameResolutionError):
        return "the name is not known to DNS"
    if "refused" in str(err):
        return "connection refused: nothing listens there"
    if "IncompleteRead" in str(err):
        return "the page ends before the length that it states"
    if "without response" in str(err):
        return "the server closed the connection without an answer"
    return str(err).rpartition(": ")[2] or type(err).__name__
