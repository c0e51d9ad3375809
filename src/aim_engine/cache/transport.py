"""Requests over HTTP that behave: they follow few redirects, keep secrets from strangers, wait when told and give up in the end.

A token goes only to the host it was given for. A redirect may change the host but not drop encryption, nor lead from the
internet into a private network.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import urljoin, urlsplit

import msgspec

from aim_engine.cache.faults import RateLimited, Unavailable, Unsafe

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

_MAX_REDIRECTS = 5
_RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
_MAX_DOCUMENT_BYTES = 64 << 20


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, and for what."""

    connect_s: float = 10.0
    read_s: float = 20.0
    stall_s: float = 30.0
    """A transfer slower than `floor_bytes_s` for this long is broken off and begun elsewhere."""
    floor_bytes_s: float = 64 * 1024.0
    attempts: int = 6
    """Failures in a row, without a byte of progress, after which a file is given up."""
    document_attempts: int = 3
    """The same for what is asked before anything is fetched; a person waits for it."""
    backoff_s: float = 1.0
    """First pause after a failure; doubled each time, up to 30 s, with jitter."""
    longest_wait_s: float = 600.0
    """The most that a server may ask to wait in total (Retry-After)."""


class Body(Protocol):
    """What an answer is read from: an HTTP response, or a file."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers."""

    @property
    def status(self) -> int:
        """HTTP status."""

    def read(self, amt: int) -> bytes:
        """The next so many bytes; fewer at the end."""

    def read1(self, amt: int) -> bytes:
        """Some of the next bytes, as soon as there are any."""

    def close(self) -> None:
        """Let go of it."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A response whose body was not read yet."""

    response: Body
    url: str
    """Where it came from after redirects."""
    first: Mapping[str, str]
    """Headers of the first hop, lower case: the hub tells checksums there."""

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.response.status

    def header(self, name: str) -> str | None:
        """A header of the last hop."""
        found = self.response.headers.get(name)
        return None if found is None else str(found)

    def shutdown(self) -> None:
        """Wake the thread that reads, which then fails. Called from another thread."""
        wake = getattr(self.response, "shutdown", None)
        if wake is not None:
            with contextlib.suppress(Exception):  # it may be through by now, or was never connected
                wake()


class _Nothing:
    """The answer of a place that does not have a file."""

    status = 404
    headers: Mapping[str, str] = {}

    def read(self, amt: int) -> bytes:
        """Nothing."""
        return b""

    read1 = read

    def close(self) -> None:
        """There is nothing to let go of."""


NOTHING = _Nothing()


class TryAgain(Exception):
    """A failure that may pass: what it was, and how long the server asked to wait."""

    def __init__(
        self, why: str, wait_s: float | None = None, *, unconnected: bool = False, elsewhere: bool = False
    ) -> None:
        super().__init__(why)
        self.why = why
        self.wait_s = wait_s
        self.unconnected = unconnected
        """Nobody answered at all."""
        self.elsewhere = elsewhere
        """This place does not have it; another one may."""


class Client:
    """Connections to everything that one download talks to. Threads share it."""

    def __init__(
        self,
        *,
        token: str | None = None,
        token_for: str = "",
        peers: Collection[str] = (),
        peer_token: str | None = None,
        patience: Patience | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`token` is sent to the host of the address `token_for` and to no other, `peer_token` to those of `peers`.

        `tell` hears of waits.
        """
        self.patience = patience or Patience()
        self.requests = 0
        self._tokens = {_host(peer): peer_token for peer in peers if peer_token is not None}
        if token is not None:
            self._tokens[_host(token_for)] = token
        self._tell = tell
        self._guard = threading.Lock()
        self._paused: dict[str, float] = {}
        self._waited_s = 0.0
        self._pools: dict[str, PoolManager] = {}
        self._trusted_private: dict[str, bool] = {}

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Iterator[Answer]:
        """One request and its redirects. Raises: TryAgain for what may pass, Unsafe for a redirect that must not be followed."""
        from aim_engine.cache import folder, objects, xet

        if xet.is_address(url):
            with xet.opened(self, url, (headers or {}).get("Range")) as stream:
                yield Answer(response=stream or NOTHING, url=url, first={})
            return
        if url.startswith("file:"):
            with folder.opened(url, (headers or {}).get("Range")) as body:
                if body is None:
                    raise TryAgain("the file is not there any more")
                yield Answer(response=body, url=url, first={})
            return
        if objects.is_address(url):
            url = objects.signed(url)
        import urllib3
        from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProxyError

        first: dict[str, str] | None = None
        origin = url
        response: BaseHTTPResponse | None = None
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                self._wait_for(url)
                sent = {"Accept-Encoding": "identity", "User-Agent": "aim-engine", **(headers or {})}
                if _host(url) in self._tokens:
                    sent["Authorization"] = f"Bearer {self._tokens[_host(url)]}"
                try:
                    self.requests += 1
                    response = self._pool(url).request(
                        method,
                        url,
                        headers=sent,
                        redirect=False,
                        preload_content=False,
                        decode_content=False,
                        timeout=urllib3.Timeout(connect=self.patience.connect_s, read=self.patience.read_s),
                    )
                except HTTPError as err:
                    unconnected = isinstance(err, (NewConnectionError, ConnectTimeoutError, ProxyError))
                    raise TryAgain(_reason(err), unconnected=unconnected) from err
                if first is None:
                    first = {key.lower(): value for key, value in response.headers.items()}
                location = response.headers.get("Location")
                if response.status not in (301, 302, 303, 307, 308) or location is None:
                    break
                response.drain_conn()
                response.release_conn()
                target = urljoin(url, location)
                self.require_safe(origin, url, target)
                url = target
            else:
                raise TryAgain(f"more than {_MAX_REDIRECTS} redirects")
            if response.status in _RETRY_STATUS:
                wait_s = retry_after_s(response.headers.get("Retry-After"), time.time())
                if wait_s is not None:
                    self._pause(url, wait_s)
                raise TryAgain(f"status {response.status}", wait_s)
            encoding = response.headers.get("Content-Encoding", "identity")
            if response.status < 300 and encoding.lower() != "identity":
                raise TryAgain(f"the server compresses ({encoding}) although it was asked not to")
            yield Answer(response=cast("Body", response), url=url, first=first or {})
        except (HTTPError, OSError) as err:
            if isinstance(err, OSError) and not isinstance(err, (TimeoutError, ConnectionError)):
                raise
            raise TryAgain(_reason(err)) from err
        finally:
            if response is not None:
                with contextlib.suppress(Exception):
                    response.close()

    def document(self, url: str, method: str = "GET") -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of a small document, tried until it comes. Raises: Unavailable, RateLimited, Unsafe."""
        failures = 0
        while True:
            try:
                with self.open(url, method=method) as answer:
                    body = answer.response.read(_MAX_DOCUMENT_BYTES + 1)
                    if len(body) > _MAX_DOCUMENT_BYTES:
                        raise Unsafe(f"{url} is refused", why=f"it is longer than {_MAX_DOCUMENT_BYTES:,} bytes")
                    headers = {key.lower(): value for key, value in answer.response.headers.items()}
                    return answer.status, headers, body
            except TryAgain as err:
                failures += 2 if err.unconnected else 1
                self.after_failure(url, err, failures, most=self.patience.document_attempts)

    def after_failure(
        self, url: str, err: TryAgain, failures: int, stop: threading.Event | None = None, most: int | None = None
    ) -> None:
        """Wait before the next try. Raises: RateLimited or Unavailable when there should be none."""
        if failures >= (most or self.patience.attempts):
            raise self.give_up(url, err)
        if err.wait_s is not None:
            return  # the pause for the whole host is served before the next request
        pause_s = min(30.0, self.patience.backoff_s * 2 ** (failures - 1)) * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        self._tell(f"{_host(url)}: {err.why}; trying again in {pause_s:.1f} s")
        (stop or threading.Event()).wait(pause_s)

    def give_up(self, url: str, err: TryAgain) -> RateLimited | Unavailable:
        """The typed error for a failure that did not pass."""
        if "429" in err.why:
            return RateLimited(
                f"{_host(url)} refuses more requests",
                why="rate limit (429)",
                hint="wait a minute; a token (HF_TOKEN) raises the limit",
            )
        return Unavailable(
            f"{_host(url)} cannot be reached",
            why=err.why,
            hint="check network and proxy, set HF_ENDPOINT to a mirror, or give the path of a folder that holds the model",
        )

    def _pool(self, url: str) -> PoolManager:
        import urllib.request

        import urllib3

        parts = urlsplit(url)
        proxy = ""
        if parts.hostname and not urllib.request.proxy_bypass(parts.hostname):
            proxy = urllib.request.getproxies().get(parts.scheme, "")
        with self._guard:
            if proxy not in self._pools:
                options = {"retries": False, "maxsize": 32, "num_pools": 32}
                self._pools[proxy] = (
                    urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)  # type: ignore[arg-type]
                )
            return self._pools[proxy]

    def _pause(self, url: str, wait_s: float) -> None:
        with self._guard:
            until = time.monotonic() + wait_s
            before = max(self._paused.get(_host(url), 0.0), time.monotonic())
            self._paused[_host(url)] = max(until, before)
            self._waited_s += max(0.0, until - before)
            exceeded = self._waited_s > self.patience.longest_wait_s
        if exceeded:
            raise RateLimited(
                f"{_host(url)} asks to wait {wait_s:.0f} s",
                why=f"with earlier waits that is more than {self.patience.longest_wait_s:.0f} s",
                hint="try again later; a token (HF_TOKEN) raises the limit. What arrived is kept",
            )
        if wait_s >= 1:
            self._tell(f"{_host(url)} asks to wait {wait_s:.0f} s")

    def _wait_for(self, url: str) -> None:
        while (remaining := self._paused.get(_host(url), 0.0) - time.monotonic()) > 0:
            time.sleep(min(remaining + random.uniform(0, 0.1), 1.0))  # noqa: S311 - no secret

    def require_safe(self, origin: str, before: str, after: str) -> None:
        """May what `before` says lead to `after`, when it all began at `origin`? Raises: Unsafe."""
        if urlsplit(after).scheme not in ("http", "https"):
            raise Unsafe(f"a redirect of {_host(before)} is refused", why=f"it leads to {after[:60]}")
        if urlsplit(before).scheme == "https" and urlsplit(after).scheme != "https":
            raise Unsafe(
                f"a redirect of {_host(before)} is refused", why=f"it leads to {_host(after)} without encryption"
            )
        if _host(after) != _host(origin) and self._is_private(after) and not self._is_private(origin):
            raise Unsafe(f"a redirect of {_host(before)} is refused", why=f"{_host(after)} is in a private network")

    def _is_private(self, url: str) -> bool:
        host = urlsplit(url).hostname or ""
        if host not in self._trusted_private:
            self._trusted_private[host] = is_private(host)
        return self._trusted_private[host]


def is_private(host: str) -> bool:
    """Does a host name lead to an address that is not on the public internet?"""
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False  # it will fail to connect, and say so
    return any(not ipaddress.ip_address(address.partition("%")[0]).is_global for address in addresses)


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Seconds to wait that a Retry-After header asks for, given as seconds or as a date; None without a usable one.

    Source: RFC 9110 section 10.2.3.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isdigit():
        return float(text)
    import email.utils

    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now_s)
    return None


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def _reason(err: BaseException) -> str:
    inner = getattr(err, "reason", None) or err
    text = str(inner).splitlines()[0][:200] if str(inner) else type(inner).__name__
    if ": " in text and text.startswith(("HTTPConnection", "HTTPSConnection", "<urllib3")):
        text = text.partition(": ")[2]
    return text
