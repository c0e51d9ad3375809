"""Talking to a serving engine over HTTP: one small client with time limits, typed errors and no proxy in between.

The standard library is enough here and starts faster than any client package. Loopback addresses never go through a
proxy, whatever the environment says, because a proxy cannot reach them.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from aim_engine.errors import InvalidInput, Unreachable

MAX_BODY_BYTES = 64 * 1024 * 1024


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer: status, reason phrase and body."""

    status: int
    reason: str
    text: str


def normalise(endpoint: str) -> str:
    """`localhost:8000`, `http://host:8000/` and `http://host:8000/v1` as a base URL without a trailing slash.

    Raises: InvalidInput when it is no address.
    """
    text = endpoint.strip()
    if "://" not in text:
        text = f"http://{text}"
    parts = urllib.parse.urlsplit(text)
    try:
        port = parts.port
    except ValueError as err:
        raise InvalidInput(
            f"'{endpoint}' is not an address", why=str(err), hint="for example http://127.0.0.1:8000"
        ) from err
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(
            f"'{endpoint}' is not an address of a server",
            why="http or https and a host are needed",
            hint="for example http://127.0.0.1:8000",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path.removesuffix('/v1')}"


def reachable_host(host: str) -> str:
    """The address to ask when a server listens on `host`: a wildcard is asked on loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, not bound


def base_url(host: str, port: int) -> str:
    """`http://127.0.0.1:8000` for a server that listens on this host and port."""
    asked = reachable_host(host)
    return f"http://[{asked}]:{port}" if ":" in asked else f"http://{asked}:{port}"


def get(url: str, *, timeout_s: float = 5.0, headers: dict[str, str] | None = None) -> Reply:
    """One GET. Raises: Unreachable when nobody answers in time."""
    with _request("GET", url, None, headers or {}, timeout_s) as response:
        return Reply(status=response.status, reason=response.reason, text=_body(response, url))


def post(url: str, document: object, *, timeout_s: float = 60.0, headers: dict[str, str] | None = None) -> Reply:
    """One POST of a JSON document. Raises: Unreachable when nobody answers in time."""
    with _request("POST", url, document, headers or {}, timeout_s) as response:
        return Reply(status=response.status, reason=response.reason, text=_body(response, url))


def stream(
    url: str, document: object, *, timeout_s: float = 60.0, headers: dict[str, str] | None = None
) -> Iterator[tuple[int, str]]:
    """The lines of a streamed answer to a POST, each with the status, as they arrive. Raises: Unreachable."""
    with _request("POST", url, document, headers or {}, timeout_s) as response:
        try:
            for line in response:
                yield response.status, line.decode("utf-8", "replace").rstrip("\r\n")
        except (OSError, http.client.HTTPException) as err:
            raise Unreachable(f"{url} stopped in the middle of its answer", why=_why(err)) from err


def answers(url: str, *, timeout_s: float = 2.0) -> bool:
    """Does a GET of `url` give 200 in time?"""
    try:
        return get(url, timeout_s=timeout_s).status == 200
    except Unreachable:
        return False


@contextmanager
def _request(
    method: str, url: str, document: object, headers: dict[str, str], timeout_s: float
) -> Iterator[http.client.HTTPResponse]:
    parts = urllib.parse.urlsplit(url)
    connection, through_proxy = _connect(parts, timeout_s)
    target = url if through_proxy else urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    body = None
    sent = {"Accept": "*/*", "User-Agent": "aim-engine", "Connection": "close", **headers}
    if method == "POST":
        body = json.dumps(document).encode()
        sent["Content-Type"] = "application/json"
    try:
        try:
            connection.request(method, target, body=body, headers=sent)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as err:
            raise Unreachable(
                f"{parts.scheme}://{parts.netloc} does not answer",
                why=_why(err),
                hint="check that the server runs and that the address is right",
            ) from err
        yield response
    finally:
        connection.close()


def _connect(parts: urllib.parse.SplitResult, timeout_s: float) -> tuple[http.client.HTTPConnection, bool]:
    """A connection, and whether requests on it must carry the whole URL because a proxy reads them."""
    host = parts.hostname or ""
    proxy = None if is_local(host) else _proxy(parts.scheme, host)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        if proxy is None:
            return http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context), False
        tunnel = http.client.HTTPSConnection(proxy[0], proxy[1], timeout=timeout_s, context=context)
        tunnel.set_tunnel(host, parts.port or 443)
        return tunnel, False
    return http.client.HTTPConnection(*(proxy or (host, parts.port)), timeout=timeout_s), proxy is not None


def _proxy(scheme: str, host: str) -> tuple[str, int] | None:
    import urllib.request

    if urllib.request.proxy_bypass(host):
        return None
    found = urllib.request.getproxies().get(scheme)
    if not found:
        return None
    parts = urllib.parse.urlsplit(found if "://" in found else f"http://{found}")
    return (parts.hostname, parts.port or 3128) if parts.hostname else None


def is_local(host: str) -> bool:
    """Is it this machine, by name or loopback address?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _body(response: http.client.HTTPResponse, url: str) -> str:
    try:
        content = response.read(MAX_BODY_BYTES + 1)
    except (OSError, http.client.HTTPException) as err:
        raise Unreachable(f"{url} stopped in the middle of its answer", why=_why(err)) from err
    if len(content) > MAX_BODY_BYTES:
        raise Unreachable(f"{url} sends more than {MAX_BODY_BYTES} bytes", why="that is no answer of a serving engine")
    return content.decode("utf-8", "replace")


def _why(err: Exception) -> str:
    if isinstance(err, TimeoutError):
        return "no answer in time"
    if isinstance(err, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(err, socket.gaierror):
        return "the name is not known to DNS"
    if isinstance(err, http.client.RemoteDisconnected):
        return "the server closed the connection without an answer"
    return str(err) or type(err).__name__
