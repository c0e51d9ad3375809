"""Gives a cache to other nodes: by model as a hub does, so that any hub client may use it as its mirror, and by checksum.

    GET /api/models/<model>/revision/<revision>   the files of a revision, each with its sha256; also /tree/<revision>
    GET /<model>/resolve/<revision>/<path>         a file, whole or a range of it
    GET /content/<sha256>                          content by checksum: what other nodes' caches ask for, and pieces of what is being fetched
    GET /content/<sha256>/pieces                   which ranges of it are here
    GET /metrics                                   aim_cache_* for Prometheus

It reads and never writes; whoever fetches proves what arrives, so a node need not be trusted with more than not to answer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from aim_engine.cache import metrics, names, pieces
from aim_engine.errors import AimError, InvalidInput, Unreachable

if TYPE_CHECKING:
    from aim_engine.cache.manager import ModelCacheManager
    from aim_engine.cache.manifest import Revision, StoredFile

PORT = 8471
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT = re.compile(r"/content/([0-9a-f]{64})(/pieces)?")
_DESCRIBE = re.compile(r"/api/models/([^/]+(?:/[^/]+)?)(?:/(revision|tree)/(.+))?")
_RESOLVE = re.compile(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)")
_MOST_CONNECTIONS = 64
_IDLE_S = 60.0


class Server(ThreadingHTTPServer):
    """Serves one cache. Use as a context, `serve_forever`, `shutdown`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        make: Callable[[], ModelCacheManager],
        host: str = "127.0.0.1",
        port: int = PORT,
        *,
        token: str | None = None,
        insecure: bool = False,
    ) -> None:
        """`make` gives a manager for each answer. A host that others reach needs a token, or consent to go without.

        Raises: InvalidInput, Unreachable.
        """
        if token is None and not insecure and host not in ("127.0.0.1", "::1", "localhost"):
            raise InvalidInput(
                f"{host} is reached by other machines, and everyone there could read the models",
                hint="give --token-file, or --insecure-i-know on a network that you trust",
            )
        self.make = make
        self.token_digest = None if token is None else hashlib.sha256(token.encode()).digest()
        self.slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as err:
            raise Unreachable(
                f"port {port} of {host} cannot be used", why=err.strerror, hint="choose another --port"
            ) from err

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own; beyond so many connections, newcomers wait."""
        self.slots.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "aim-engine-cache"
    sys_version = ""
    timeout = _IDLE_S
    server: Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        try:
            if not self._allowed():
                self._refuse(401, "Unauthorized", "this cache needs a token")
            elif path == "/metrics":
                text = metrics.render(self.server.make())
                self._send(200, text.encode(), {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
            elif match := _CONTENT.fullmatch(path):
                send = self._held if match[2] else self._content
                send(self.server.make(), match[1])
            elif match := _DESCRIBE.fullmatch(path):
                self._describe(match[1], match[3] or "main", as_tree=match[2] == "tree")
            elif match := _RESOLVE.fullmatch(path):
                self._resolve(match[1], match[2], match[3])
            else:
                self._refuse(404, "EntryNotFound", "there is nothing here")
        except AimError as err:
            self._refuse(400 if isinstance(err, InvalidInput) else 503, "", err.what)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _allowed(self) -> bool:
        wanted = self.server.token_digest
        if wanted is None:
            return True
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        return kind == "Bearer" and hmac.compare_digest(hashlib.sha256(given.encode()).digest(), wanted)

    def _revision(self, manager: ModelCacheManager, model_id: str, revision: str) -> Revision | None:
        names.require_model_id(model_id)
        known = [each for each in manager.revisions() if each.revision.model_id == model_id]
        if not known:
            self._refuse(404, "RepoNotFound", f"{model_id} is not in this cache")
            return None
        for each in known:
            if revision == each.revision.commit or revision in each.refs:
                return each.revision
        self._refuse(404, "RevisionNotFound", f"{model_id} has no revision {revision[:80]} here")
        return None

    def _describe(self, model_id: str, revision: str, *, as_tree: bool) -> None:
        manager = self.server.make()
        found = self._revision(manager, model_id, revision)
        if found is None:
            return
        if as_tree:
            entries = [
                {
                    "type": "file",
                    "path": file.path,
                    "size": file.size_bytes,
                    "oid": file.sha256[:40],
                    "lfs": {"oid": file.sha256, "size": file.size_bytes, "pointerSize": 135},
                }
                for file in found.files
            ]
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
            return
        siblings = [
            {
                "rfilename": file.path,
                "size": file.size_bytes,
                "lfs": {"sha256": file.sha256, "size": file.size_bytes, "pointerSize": 135},
            }
            for file in found.files
        ]
        document = {
            "id": found.model_id,
            "modelId": found.model_id,
            "sha": found.commit,
            "private": False,
            "cardData": {"license": found.licence},
            "siblings": siblings,
        }
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _resolve(self, model_id: str, revision: str, path: str) -> None:
        manager = self.server.make()
        found = self._revision(manager, model_id, revision)
        if found is None:
            return
        file = next((each for each in found.files if each.path == path), None)
        if file is None:
            self._refuse(404, "EntryNotFound", f"{model_id} has no file {path[:120]}")
            return
        self._content(manager, file.sha256, found, file)

    def _content(
        self, manager: ModelCacheManager, sha256: str, revision: Revision | None = None, file: StoredFile | None = None
    ) -> None:
        try:
            descriptor = os.open(manager.store.blob(sha256), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            if revision is not None or not self._piece(manager, sha256):
                self._refuse(404, "EntryNotFound", "this content is not here")
            return
        try:
            size = os.fstat(descriptor).st_size
            headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
            if revision is not None and file is not None:
                headers |= {
                    "X-Repo-Commit": revision.commit,
                    "X-Linked-Etag": f'"{sha256}"',
                    "X-Linked-Size": str(size),
                }
            start, end, status = 0, size, 200
            asked = _RANGE.fullmatch(self.headers.get("Range") or "")
            if asked is not None:
                start = int(asked[1])
                end = min(end, int(asked[2]) + 1) if asked[2] else end
                if start >= end:
                    self._send(416, b"", {"Content-Range": f"bytes */{size}"})
                    return
                status = 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            self._head(status, end - start, headers)
            self._send_range(descriptor, start, end)
        finally:
            os.close(descriptor)

    def _held(self, manager: ModelCacheManager, sha256: str) -> None:
        held: tuple[tuple[int, int], ...] | None
        try:
            held = ((0, manager.store.blob(sha256).stat().st_size),)
        except OSError:
            held = pieces.held(manager.store, sha256)
        if held is None:
            self._refuse(404, "EntryNotFound", "this content is not here")
            return
        document = {"schema": "aim-engine/cache-pieces/v1", "held": held}
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _piece(self, manager: ModelCacheManager, sha256: str) -> bool:
        """Send a range of content that is being fetched, if all of it is here and reads as it came."""
        asked = _RANGE.fullmatch(self.headers.get("Range") or "")
        if asked is None or not asked[2]:
            return False
        start, end = int(asked[1]), int(asked[2]) + 1
        found = pieces.open_proven(manager.store, sha256, start, end)
        if found is None:
            return False
        descriptor, size = found
        try:
            headers = {"ETag": f'"{sha256}"', "Content-Range": f"bytes {start}-{end - 1}/{size}"}
            self._head(206, end - start, {**headers, "Content-Type": "application/octet-stream"})
            self._send_range(descriptor, start, end)
        finally:
            os.close(descriptor)
        return True

    def _send_range(self, descriptor: int, start: int, end: int) -> None:
        while self.command != "HEAD" and start < end:
            self.wfile.flush()
            sent = os.sendfile(self.connection.fileno(), descriptor, start, end - start)
            if sent == 0:  # somebody cut the file short
                raise ConnectionResetError
            start += sent

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message.encode("ascii", "replace").decode().replace("\n", " ")}
        if code:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **headers})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(content), headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Requests are not logged: their headers may hold a token."""
