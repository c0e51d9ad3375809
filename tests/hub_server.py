"""A small Hugging Face hub for tests: the endpoints its clients use, its content server, and the ways in which the real ones fail.

Large files are kept apart as on the real hub: `resolve` tells their sha256 and redirects to another host with a signed address.
Source: huggingface_hub file_download.py get_hf_file_metadata, hf_api.py model_info; constants.py for the header names.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

import loopback

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".gguf")


class Hub:
    """Models by id, each a mapping of file name to content, and how the hub behaves."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        """Model -> its newest commit, where it is not COMMIT."""
        self.gated: set[str] = set()
        self.token: str | None = None
        """Token without which every model is hidden, as a private one is."""
        self.fail_api: int | None = None
        """Status that every question about a model gets."""
        self.fail_files: list[tuple[int, dict[str, str]]] = []
        """Status and headers that the next file requests get, one each."""
        self.cut: dict[str, int] = {}
        """File -> bytes after which its transfer breaks off, every time."""
        self.cut_once: dict[str, int] = {}
        """The same, the first time only."""
        self.flip: dict[str, int] = {}
        """File -> how many of its next transfers have one bit wrong."""
        self.flip_piece_at: int | None = None
        """Only transfers that start here have it."""
        self.drip_s: float = 0.0
        """Seconds between single bytes of the next large transfer."""
        self.ignores_ranges = False
        self.compresses = False
        self.lies_about_length = 0
        """Bytes added to the lengths that the content server states."""
        self.expired = False
        """Signed addresses are refused until the hub signs anew."""
        self.plain_status: int | None = None
        """Status that the content server gives for everything: the files lie in Xet storage only."""
        self.xet: tuple[str, str] | None = None
        """Address of the Xet storage, and the token that it takes; see `xet_server`."""
        self.redirect_to: str | None = None
        """Where large files lead instead of the content server."""
        self.delay_s = 0.0
        self.rate_bytes_s: float | None = None
        self.requests: list[str] = []
        self.authorised: list[str] = []
        """Requests that carried a token."""
        self.sent_bytes = 0
        self.connections = 0
        self.address = ""
        self.content_address = ""
        self.guard = threading.Lock()
        self.signature = 0

    def add(self, model: str, **files: bytes) -> None:
        """A model with files; `__` in a name stands for a dot, as in `config__json`."""
        self.models[model] = {name.replace("__", "."): content for name, content in files.items()}

    def commit(self, model: str) -> str:
        """The commit of a model's main branch."""
        return self.commits.get(model, COMMIT)


def safetensors(size: int, seed: int = 0) -> bytes:
    """A sound safetensors file whose one tensor has so many bytes, different for each seed."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    block = hashlib.sha512(f"{seed}".encode()).digest() * 1024
    body = bytearray((block * (size // len(block) + 1))[:size])
    for at in range(0, size - 8, 4096):  # so that no two pieces are equal
        body[at : at + 8] = struct.pack("<Q", at)
    return struct.pack("<Q", len(header)) + header + bytes(body)


@contextmanager
def serving(hub: Hub, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of the hub; its content server listens beside it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            with hub.guard:
                hub.connections += 1
            super().setup()

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            with hub.guard:
                hub.requests.append(f"{self.command} {path}")
                if self.headers.get("Authorization"):
                    hub.authorised.append(f"{self.headers.get('Host')} {path}")
            words = path.strip("/").split("/")
            if words[0] == "content":
                self._content(words[1], "/".join(words[2:]), parse_qs(parts.query), body=body)
            elif words[0] == "api":
                self._describe("/".join(words[2:4]), words[4:], body=body)
            else:
                self._file("/".join(words[:2]), words[3], "/".join(words[4:]), body=body)

        def _refused(self, model: str, revision: str) -> bool:
            if hub.fail_api is not None:
                self._send(hub.fail_api, b"{}", {"Retry-After": "0"})
            elif hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif model in hub.gated:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif model not in hub.models:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", "v1", COMMIT, hub.commit(model)):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                return False
            return True

        def _describe(self, model: str, rest: list[str], *, body: bool) -> None:
            revision = rest[1] if len(rest) > 1 else "main"
            if self._refused(model, revision):
                return
            if rest and rest[0] == "xet-read-token" and hub.xet is not None:
                expiry = str(int(time.time()) + 900)
                told = dict(
                    zip(
                        ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration"),
                        (*hub.xet, expiry),
                        strict=True,
                    )
                )
                self._send(
                    200,
                    json.dumps({"casUrl": hub.xet[0], "exp": int(expiry), "accessToken": hub.xet[1]}).encode(),
                    told,
                )
                return
            files = hub.models[model]
            if rest and rest[0] == "tree":
                document: object = [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(content),
                        "oid": _oid(content),
                        **_lfs(name, content, "oid"),
                    }
                    for name, content in files.items()
                ]
            else:
                document = {
                    "id": model,
                    "sha": hub.commit(model),
                    "cardData": {"license": "apache-2.0"},
                    "siblings": [
                        {
                            "rfilename": name,
                            "size": len(content),
                            "blobId": _oid(content),
                            **_lfs(name, content, "sha256"),
                        }
                        for name, content in files.items()
                    ],
                }
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, body=body)

        def _file(self, model: str, revision: str, name: str, *, body: bool) -> None:
            if self._refused(model, revision):
                return
            content = hub.models[model].get(name)
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if self._stumbles():
                return
            if not name.endswith(LARGE):
                headers = {"X-Repo-Commit": hub.commit(model), "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
                self._send_content(name, content, headers, body=body)
                return
            digest = _sha256(content)
            with hub.guard:
                hub.signature += 1
                signed = f"{hub.content_address}/content/{digest}/{name}?model={model}&signature={hub.signature}"
                hub.expired = False
            headers = {
                "Location": hub.redirect_to or signed,
                "X-Repo-Commit": hub.commit(model),
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                "X-Xet-Hash": xet_hash(content),
                "Link": f'<{hub.address}/api/models/{model}/xet-read-token/{COMMIT}>; rel="xet-auth"',
                "ETag": f'"{digest}"',
            }
            self._send(302, b"", headers, body=body)

        def _content(self, digest: str, name: str, query: dict[str, list[str]], *, body: bool) -> None:
            if self._stumbles():
                return
            if hub.plain_status is not None:
                self._send(hub.plain_status, b"<Error/>", {})
                return
            if hub.expired:
                self._send(403, b"<Error><Code>AccessDenied</Code></Error>", {})
                return
            content = hub.models[query["model"][0]][name]
            if _sha256(content) != digest:
                self._send(404, b"", {})
                return
            self._send_content(name, content, {"ETag": f'"{digest[:32]}"', "Accept-Ranges": "bytes"}, body=body)

        def _stumbles(self) -> bool:
            time.sleep(hub.delay_s)
            with hub.guard:
                failure = hub.fail_files.pop(0) if hub.fail_files else None
            if failure is not None:
                self._send(failure[0], b"", failure[1])
            return failure is not None

        def _send_content(self, name: str, content: bytes, headers: dict[str, str], *, body: bool) -> None:
            start, end, status = 0, len(content), 200
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if asked and not hub.ignores_ranges:
                start = int(asked[1])
                end = min(end, int(asked[2]) + 1) if asked[2] else end
                if start >= len(content):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                    return
                status = 206
                total = len(content) + hub.lies_about_length
                headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{total}"}
            payload: bytes | memoryview = memoryview(content)[start:end]
            with hub.guard:
                if hub.flip.get(name, 0) > 0 and payload and hub.flip_piece_at in (None, start):
                    hub.flip[name] -= 1
                    middle = len(payload) // 2
                    payload = bytes(payload[:middle]) + bytes([payload[middle] ^ 4]) + bytes(payload[middle + 1 :])
                cut = hub.cut_once.pop(name, None) if name not in hub.cut else hub.cut[name]
                drip_s, hub.drip_s = hub.drip_s, 0.0
            if hub.compresses:
                payload = gzip.compress(payload)
                headers = {**headers, "Content-Encoding": "gzip"}
            if status == 200 and hub.lies_about_length:
                headers = {**headers, "Content-Length": str(len(payload) + hub.lies_about_length)}
            if not body or (cut is None and not drip_s and hub.rate_bytes_s is None):
                self._send(status, payload, headers, body=body)
                return
            self.send_response(status)
            for key, value in {"Content-Length": str(len(payload)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            try:
                self._trickle(payload if cut is None else payload[:cut], drip_s)
            except OSError:
                self.close_connection = True
            if cut is not None or drip_s:
                self.close_connection = True

        def _trickle(self, payload: bytes | memoryview, drip_s: float) -> None:
            step = 1 if drip_s else 64 * 1024
            for at in range(0, len(payload), step):
                chunk = payload[at : at + step]
                self.wfile.write(chunk)
                self.wfile.flush()
                with hub.guard:
                    hub.sent_bytes += len(chunk)
                if drip_s:
                    time.sleep(drip_s)
                elif hub.rate_bytes_s is not None:
                    time.sleep(len(chunk) / hub.rate_bytes_s)

        def _send(
            self, status: int, content: bytes | memoryview, headers: dict[str, str], *, body: bool = True
        ) -> None:
            try:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if body and self.command != "HEAD":
                    self.wfile.write(content)
                    with hub.guard:
                        hub.sent_bytes += len(content)
            except OSError:
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    servers = [loopback.Patient(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers if tls is not None else ():
        assert tls is not None
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in servers]
    scheme = "http" if tls is None else "https"
    hub.address, hub.content_address = (f"{scheme}://127.0.0.1:{server.server_port}" for server in servers)
    for thread in threads:
        thread.start()
    try:
        yield hub.address
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


@functools.lru_cache(maxsize=64)  # a file in many pieces is asked for often
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def xet_hash(content: bytes) -> str:
    """The name of a file in Xet storage. Of the right form only: the client takes it as it is told."""
    return hashlib.blake2b(_sha256(content).encode(), digest_size=32).hexdigest()


@functools.lru_cache(maxsize=64)
def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _lfs(name: str, content: bytes, key: str) -> dict[str, object]:
    if not name.endswith(LARGE):
        return {}
    return {"lfs": {key: _sha256(content), "size": len(content), "pointerSize": 135}}
