"""A small Hugging Face hub for tests: the endpoints its client uses, and the ways in which the real one refuses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Models by id, each a mapping of file name to content, and how the hub behaves."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.fail_api: int | None = None
        """Status that every question about a model gets."""
        self.cut: dict[str, int] = {}
        """File -> bytes after which its transfer breaks off, every time."""
        self.requests: list[str] = []
        self.sent_bytes = 0

    def add(self, model: str, **files: bytes) -> None:
        """A model with files; `__` in a name stands for a dot, as in `config__json`."""
        self.models[model] = {name.replace("__", "."): content for name, content in files.items()}


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The address of the hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[0] == "api":
                self._describe("/".join(parts[2:4]), parts[4:], body=body)
            else:
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body=body)

        def _refused(self, model: str, revision: str) -> bool:
            if hub.fail_api is not None:
                self._send(hub.fail_api, b"{}", {"Retry-After": "0"})
            elif model in hub.gated:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif model not in hub.models:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", COMMIT):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                return False
            return True

        def _describe(self, model: str, rest: list[str], *, body: bool) -> None:
            revision = rest[1] if len(rest) > 1 else "main"
            if self._refused(model, revision):
                return
            files = hub.models[model]
            if rest and rest[0] == "tree":
                document: object = [
                    {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                    for name, content in files.items()
                ]
            else:
                document = {
                    "id": model,
                    "sha": COMMIT,
                    "siblings": [{"rfilename": name, "size": len(content)} for name, content in files.items()],
                }
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, body=body)

        def _file(self, model: str, revision: str, name: str, *, body: bool) -> None:
            if self._refused(model, revision):
                return
            content = hub.models[model].get(name)
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
            if body and name in hub.cut:
                self.send_response(200)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content[: hub.cut[name]])
                self.wfile.flush()
                self.close_connection = True
                return
            self._send(200, content, headers, body=body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool = True) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(content)
                hub.sent_bytes += len(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
