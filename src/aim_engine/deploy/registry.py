"""Which content does an image's tag name now? Asked of its registry, as container engines do.

Of an image for several platforms it is the index that is named, so that one digest serves every node. Source:
opencontainers/distribution-spec spec.md (checking if content exists, pulling manifests), opencontainers/image-spec (media types),
distribution/distribution docs/content/spec/auth (token.md, oauth.md), distribution/reference normalize.go.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode, urlsplit

import msgspec

from aim_engine.errors import AimError, Corrupt, InvalidInput, Unreachable

if TYPE_CHECKING:
    import urllib3

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
"""What may be answered; a registry that has the image for several platforms answers with one of the first two."""
HUB = "docker.io"
HUB_HOST = "registry-1.docker.io"
CONNECT_S = 10.0
READ_S = 20.0
TRIES = 2
"""How often a failure that may pass is tried again."""
MAX_MANIFEST_BYTES = 4 << 20
"""Source: opencontainers/distribution-spec, pushing manifests: registries should take at least 4 megabytes, so none is larger."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: a user with a password, or a token that an earlier login left."""

    user: str = ""
    password: str = ""
    identity_token: str = ""


Logins = Callable[[str], Login | None]
"""Registry, as the first part of an image's name says it -> who asks it; None asks as nobody."""


class Name(msgspec.Struct, frozen=True, kw_only=True):
    """An image's name, completed as container engines complete it."""

    registry: str
    repository: str
    tag: str

    @property
    def whole(self) -> str:
        """`docker.io/library/busybox:latest`."""
        return f"{self.registry}/{self.repository}:{self.tag}"

    @property
    def host(self) -> str:
        """Where it is asked for."""
        return HUB_HOST if self.registry == HUB else self.registry


def name(reference: str) -> Name:
    """The completed name of an image that has no digest."""
    first, slash, rest = reference.partition("/")
    has_registry = bool(slash) and (first == "localhost" or "." in first or ":" in first)
    registry, path = (first, rest) if has_registry else (HUB, reference)
    registry = HUB if registry == f"index.{HUB}" else registry
    repository, colon, tag = path.rpartition(":")
    if not colon:
        repository, tag = path, "latest"
    if registry == HUB and "/" not in repository:
        repository = f"library/{repository}"
    return Name(registry=registry, repository=repository, tag=tag)


def digest(reference: str, logins: Logins | None = None) -> str:
    """`sha256:...` of what the tag of `reference` names now. Raises: InvalidInput, Unreachable, Corrupt."""
    asked = name(reference)
    return _Asking(asked, (logins or stored_login)(asked.registry)).digest()


def stored_login(registry: str) -> Login | None:
    """The login of `docker login` or `podman login`, credential helpers included; None without one. Raises: InvalidInput."""
    for place in _auth_files():
        if place is not None and not place.is_file():
            continue
        try:
            from docker import auth, errors
        except ImportError:
            return None  # the refusal says what to install
        try:
            found = auth.load_config(None if place is None else str(place)).resolve_authconfig(registry)
        except errors.DockerException as err:
            raise InvalidInput(
                f"the login for {registry} cannot be read", why=str(err), hint=f"docker login {registry}"
            ) from err
        if found:
            lower = {key.lower(): value for key, value in found.items()}
            return Login(
                user=lower.get("username") or "",
                password=lower.get("password") or "",
                identity_token=lower.get("identitytoken") or "",
            )
    return None


def _auth_files() -> tuple[Path | None, ...]:
    """Where logins are kept, in order; None is docker's own place. Source: containers-auth.json(5)."""
    if chosen := os.environ.get("REGISTRY_AUTH_FILE"):
        return (Path(chosen),)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return (None, *((Path(runtime) / "containers" / "auth.json",) if runtime else ()))


class _Refused(Exception):
    """The registry wants to know who asks."""

    def __init__(self, challenge: str) -> None:
        super().__init__(challenge)
        self.challenge = challenge


class _Asking:
    """One question, with the connections and the authorization that it needs."""

    def __init__(self, asked: Name, login: Login | None) -> None:
        self._asked, self._login = asked, login
        self._scheme = "https"
        self._authorization: str | None = None

    def digest(self) -> str:
        """The digest. Raises: InvalidInput, Unreachable, Corrupt."""
        try:
            return self._digest()
        except _Refused as err:
            self._authorization = self._authorize(err.challenge)
        try:
            return self._digest()
        except _Refused as err:
            raise self._forbidden(401) from err

    def _digest(self) -> str:
        told, _ = self._manifest("HEAD")
        if told is None:
            told, content = self._manifest("GET")
            counted = f"sha256:{hashlib.sha256(content).hexdigest()}"
            if told is not None and told.startswith("sha256:") and told != counted:
                raise Corrupt(
                    f"{self._asked.registry} sent other content for {self._asked.whole} than it says",
                    why=f"it says {told}, what came is {counted}",
                    hint="try again, without a proxy that changes answers",
                )
            return counted
        if not _DIGEST.fullmatch(told):
            raise InvalidInput(
                f"the digest of {self._asked.whole} cannot be written",
                why=f"{self._asked.registry} says '{told[:80]}', and container engines agree on sha256 only",
                hint="give one yourself: --image NAME@sha256:...",
            )
        return told

    def _manifest(self, method: Literal["HEAD", "GET"]) -> tuple[str | None, bytes]:
        """The digest that the registry says, and the manifest's bytes. None asks for them: HEAD does not serve."""
        path = f"/v2/{self._asked.repository}/manifests/{self._asked.tag}"
        headers = {"Accept": ", ".join(MANIFESTS)}
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        reply, content = self._answer(method, path, headers)
        if reply.status == 401:
            raise _Refused(reply.headers.get("WWW-Authenticate", ""))
        if method == "HEAD" and reply.status in (405, 501):
            return None, b""
        if reply.status != 200:
            raise self._failure(reply.status, reply.headers, content)
        return reply.headers.get("Docker-Content-Digest"), content

    def _answer(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """From the registry, which may speak without TLS only where it cannot be overheard."""
        from urllib3.exceptions import MaxRetryError, SSLError

        try:
            return self._ask(method, f"{self._scheme}://{self._asked.host}{path}", headers)
        except Unreachable as err:
            cause = err.__cause__
            plain = isinstance(cause, MaxRetryError) and isinstance(cause.reason, SSLError)
            if not (plain and self._scheme == "https" and is_loopback(self._asked.host)):
                raise
            self._scheme = "http"
        return self._ask(method, f"http://{self._asked.host}{path}", headers)

    def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: str | None = None
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """Response and content. Redirects are followed, an authorization goes to no other host. Raises: Unreachable, Corrupt."""
        import urllib3
        from urllib3.exceptions import HTTPError

        retries = urllib3.Retry(
            None, connect=TRIES, read=TRIES, status=TRIES, other=0, redirect=5, backoff_factor=0.5,
            status_forcelist=(500, 502, 503, 504), allowed_methods=None,
            raise_on_status=False, respect_retry_after_header=False,
        )  # fmt: skip
        sent = {"User-Agent": "aim-engine", "Accept-Encoding": "identity", **headers}
        try:
            with self._pool(url, retries) as pool:
                reply = pool.request(method, url, headers=sent, body=body, preload_content=False)
                content = reply.read(MAX_MANIFEST_BYTES + 1)
        except (HTTPError, OSError) as err:
            why = str(getattr(err, "reason", None) or err)
            raise Unreachable(
                f"{urlsplit(url).netloc} cannot be asked about {self._asked.whole}",
                why=why,
                hint="check network, proxy and SSL_CERT_FILE, or give the digest yourself: --image NAME@sha256:...",
            ) from err
        for place in reply.retries.history if reply.retries is not None else ():
            if url.startswith("https:") and (place.redirect_location or "").startswith("http:"):
                raise Unreachable(
                    f"the answer of {urlsplit(url).netloc} about {self._asked.whole} is refused",
                    why=f"it leads to {urlsplit(place.redirect_location or '').netloc} without encryption",
                    hint="give the digest yourself: --image NAME@sha256:...",
                )
        if len(content) > MAX_MANIFEST_BYTES:
            raise Corrupt(
                f"the answer of {urlsplit(url).netloc} about {self._asked.whole} is no manifest",
                why=f"it is longer than {MAX_MANIFEST_BYTES:,} bytes",
            )
        return reply, content

    def _pool(self, url: str, retries: urllib3.Retry) -> urllib3.PoolManager:
        import urllib3

        parts = urlsplit(url)
        proxy = None
        if not urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = urllib.request.getproxies().get(parts.scheme)
        timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
        if proxy:
            return urllib3.ProxyManager(proxy, timeout=timeout, retries=retries)
        return urllib3.PoolManager(timeout=timeout, retries=retries)

    def _authorize(self, challenge: str) -> str:
        """The header that answers a challenge. Raises: InvalidInput, Unreachable."""
        scheme, _, words = challenge.partition(" ")
        if scheme.lower() == "basic" and self._login is not None:
            return _basic(self._login)
        if scheme.lower() != "bearer":
            raise self._forbidden(401)
        told = urllib.request.parse_keqv_list([word for word in urllib.request.parse_http_list(words) if "=" in word])
        realm = told.get("realm", "")
        if urlsplit(realm).scheme not in (("https",) if self._scheme == "https" else ("https", "http")):
            raise Unreachable(
                f"{self._asked.registry} cannot be asked about {self._asked.whole}",
                why=f"it sends to '{realm[:80]}' for a token, which is not encrypted",
                hint="give the digest yourself: --image NAME@sha256:...",
            )
        scope = told.get("scope") or f"repository:{self._asked.repository}:pull"
        service = {"service": told["service"]} if "service" in told else {}
        return f"Bearer {self._token(realm, {**service, 'scope': scope})}"

    def _token(self, realm: str, asked: dict[str, str]) -> str:
        headers: dict[str, str] = {}
        if self._login is not None and self._login.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": self._login.identity_token,
                "client_id": "aim-engine",
            }
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            reply, content = self._ask("POST", realm, headers, urlencode({**asked, **form}))
        else:
            if self._login is not None:
                headers["Authorization"] = _basic(self._login)
            joint = "&" if "?" in realm else "?"
            reply, content = self._ask("GET", f"{realm}{joint}{urlencode(asked)}", headers)
        if reply.status != 200:
            raise self._failure(reply.status, reply.headers, content)
        try:
            told = msgspec.json.decode(content, type=dict[str, object])
            token = told.get("token") or told["access_token"]
        except (msgspec.DecodeError, KeyError) as err:
            raise Corrupt(f"the token of {urlsplit(realm).netloc} cannot be read", why=str(err)) from err
        return str(token)

    def _failure(self, status: int, headers: Mapping[str, str], content: bytes) -> AimError:
        asked = self._asked
        if status in (401, 403):
            return self._forbidden(status)
        if status == 404:
            return InvalidInput(
                f"{asked.registry} has no {asked.repository}:{asked.tag}",
                why=_told(content) or "there is no such tag, or nobody may see it without a login",
                hint=f"check the name, or docker login {asked.registry}",
            )
        if status == 429:
            wait = headers.get("Retry-After")
            return Unreachable(
                f"{asked.registry} answers no more questions for now",
                why="rate limit (429)" + (f", for {wait} s" if wait and wait.isdecimal() else ""),
                hint=f"try again later; docker login {asked.registry} raises the limit, and answers are kept",
            )
        return Unreachable(
            f"{asked.registry} cannot say what {asked.whole} is",
            why=f"HTTP status {status}" + (f": {told}" if (told := _told(content)) else ""),
            hint="try again later, or give the digest yourself: --image NAME@sha256:...",
        )

    def _forbidden(self, status: int) -> InvalidInput:
        asked = self._asked
        if self._login is not None:
            why = f"the login that is stored for it may not (HTTP status {status})"
        elif _has_docker():
            why = f"it wants a login, or there is no such image (HTTP status {status})"
        else:
            why = f"it wants a login (HTTP status {status}), and stored ones are read by aim-engine[docker] only"
        hint = f"docker login {asked.registry}"
        return InvalidInput(
            f"{asked.registry} does not let {asked.repository}:{asked.tag} be read",
            why=why,
            hint=hint if self._login is not None or _has_docker() else f"pip install 'aim-engine[docker]', then {hint}",
        )


def is_loopback(host: str) -> bool:
    """Is `host`, with or without a port, this machine?"""
    bare = urlsplit(f"//{host}").hostname or ""
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()


def _has_docker() -> bool:
    from importlib.util import find_spec

    return find_spec("docker") is not None


def _told(content: bytes) -> str:
    """The first message of an answer in the registry's own form; empty without one."""
    try:
        told = msgspec.json.decode(content, type=dict[str, list[dict[str, object]]])
        return str(told["errors"][0].get("message") or "")[:200]
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, IndexError):
        return ""
