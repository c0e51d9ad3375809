"""A small container registry for tests: manifests by tag, tokens as the distribution specification has them, and how real ones fail.

Source: opencontainers/distribution-spec spec.md; distribution/distribution docs/content/spec/auth/token.md, oauth.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def manifest(architecture: str) -> bytes:
    """A manifest of one platform, different for each."""
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": f"sha256:{'0' * 64}", "size": 2}
    about = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}
    return json.dumps({**about, "annotations": {"for": architecture}}).encode()


def digest(content: bytes) -> str:
    """The name of some content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Registry:
    """Repositories, and how the registry behaves."""

    def __init__(self) -> None:
        self.tags: dict[tuple[str, str], tuple[str, bytes]] = {}
        """(repository, tag) -> media type and content."""
        self.platform: dict[tuple[str, str], bytes] = {}
        """The same -> the manifest for those who do not ask for an index."""
        self.password: str | None = None
        """Of user `reader`, without whom nothing is shown."""
        self.identity_token: str | None = None
        """Taken in exchange instead of a password."""
        self.wants_token = False
        self.wants_basic = False
        self.realm: str | None = None
        """Where it sends for a token instead of to itself."""
        self.refuses_token = False
        self.tells_digest = True
        self.lies: str | None = None
        """A digest to tell instead of the right one."""
        self.knows_head = True
        self.answers: list[tuple[int, dict[str, str]]] = []
        """Status and headers that the next questions about manifests get, one each."""
        self.redirect: str | None = None
        """Where questions about manifests lead."""
        self.requests: list[str] = []
        self.authorizations: list[str] = []
        self.address = ""

    def push(self, repository: str, tag: str, *architectures: str) -> str:
        """An image for some platforms; the digest that its tag then names."""
        single = [manifest(each) for each in architectures]
        key = repository, tag
        if len(single) == 1:
            self.tags[key] = MANIFEST, single[0]
        else:
            listed = [{"mediaType": MANIFEST, "digest": digest(each), "size": len(each)} for each in single]
            about = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
            self.tags[key] = INDEX, json.dumps(about).encode()
            self.platform[key] = single[0]
        return digest(self.tags[key][1])


@contextmanager
def serving(registry: Registry, tls: ssl.SSLContext | None = None) -> Iterator[Registry]:
    """Run the registry on 127.0.0.1; `address` is then its name in images."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            right = registry.identity_token is not None and form["refresh_token"] == [registry.identity_token]
            self._tell(200 if right else 401, {}, json.dumps({"access_token": "good"} if right else {}).encode())

        def do_GET(self) -> None:
            registry.requests.append(f"{self.command} {self.path}")
            authorization = self.headers.get("Authorization", "")
            registry.authorizations.append(authorization)
            parts = urlsplit(self.path)
            if parts.path == "/token":
                return self._token(parse_qs(parts.query), authorization)
            if registry.answers:
                status, headers = registry.answers.pop(0)
                return self._tell(status, headers)
            if registry.redirect is not None:
                return self._tell(307, {"Location": registry.redirect + self.path})
            if not self._allowed(authorization):
                return None
            if self.command == "HEAD" and not registry.knows_head:
                return self._tell(405)
            return self._manifest(parts.path)

        def _manifest(self, path: str) -> None:
            repository, _, tag = path.removeprefix("/v2/").rpartition("/manifests/")
            key = repository, tag
            if key not in registry.tags:
                known = any(each == repository for each, _ in registry.tags)
                code, message = ("MANIFEST_UNKNOWN", "manifest unknown") if known else ("NAME_UNKNOWN", "no such name")
                return self._tell(404, {}, json.dumps({"errors": [{"code": code, "message": message}]}).encode())
            kind, content = registry.tags[key]
            if kind not in self.headers.get("Accept", "") and key in registry.platform:
                kind, content = MANIFEST, registry.platform[key]
            told = registry.lies or digest(content)
            headers = {"Content-Type": kind, **({"Docker-Content-Digest": told} if registry.tells_digest else {})}
            return self._tell(200, headers, content)

        def _token(self, asked: dict[str, list[str]], authorization: str) -> None:
            given = base64.b64encode(f"reader:{registry.password}".encode()).decode()
            if registry.password is not None and authorization != f"Basic {given}":
                return self._tell(401)
            right = asked["service"] == ["registry of tests"] and asked["scope"][0].startswith("repository:")
            return self._tell(200 if right else 400, {}, json.dumps({"token": "good"}).encode())

        def _allowed(self, authorization: str) -> bool:
            if registry.wants_basic:
                given = base64.b64encode(f"reader:{registry.password}".encode()).decode()
                if authorization == f"Basic {given}":
                    return True
                self._tell(401, {"WWW-Authenticate": 'Basic realm="tests"'})
                return False
            if not registry.wants_token or (authorization == "Bearer good" and not registry.refuses_token):
                return True
            name = self.path.removeprefix("/v2/").partition("/manifests/")[0]
            scheme = "https" if tls is not None else "http"
            realm = registry.realm or f"{scheme}://{registry.address}/token"
            words = f'realm="{realm}",service="registry of tests",scope="repository:{name}:pull"'
            self._tell(401, {"WWW-Authenticate": f"Bearer {words}"})
            return False

        def _tell(self, status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that speak TLS to it are no news."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    registry.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
