"""What a registry says a tag names, through tokens, redirects and refusals, over a real connection."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

import registry_server
from aim_engine.deploy import digests, registry
from aim_engine.deploy.registry import Login
from aim_engine.errors import AimError, Corrupt, InvalidInput, Unreachable
from registry_server import Registry

READER = Login(user="reader", password="secret")


@pytest.fixture
def server() -> Iterator[Registry]:
    with registry_server.serving(Registry()) as found:
        yield found


def ask(server: Registry, image: str = "models/vllm:v1", login: Login | None = None) -> str:
    return registry.digest(f"{server.address}/{image}", lambda _: login)


def refusal(kind: type[AimError], server: Registry, login: Login | None = None) -> AimError:
    with pytest.raises(kind) as caught:
        ask(server, login=login)
    assert type(caught.value) is kind
    assert server.address in caught.value.what
    assert caught.value.why
    assert caught.value.hint
    return caught.value


def test_names_are_completed_as_container_engines_complete_them() -> None:
    completed = {
        "busybox": "docker.io/library/busybox:latest",
        "vllm/vllm-openai-rocm:v0.32.0": "docker.io/vllm/vllm-openai-rocm:v0.32.0",
        "index.docker.io/prom/prometheus:v3": "docker.io/prom/prometheus:v3",
        "ghcr.io/llm-d/llm-d-rocm:v0.9.0": "ghcr.io/llm-d/llm-d-rocm:v0.9.0",
        "localhost/x": "localhost/x:latest",
        "registry:5000/a/b/c": "registry:5000/a/b/c:latest",
    }
    assert {given: registry.name(given).whole for given in completed} == completed
    assert registry.name("busybox").host == "registry-1.docker.io"
    assert registry.name("ghcr.io/x/y:1").host == "ghcr.io"


def test_the_index_of_an_image_for_several_platforms_is_what_is_named(server: Registry) -> None:
    index = server.push("models/vllm", "v1", "amd64", "arm64")
    assert index != registry_server.digest(server.platform["models/vllm", "v1"])
    assert ask(server) == index
    assert server.requests == ["HEAD /v2/models/vllm/manifests/v1"]


def test_an_image_for_one_platform_is_named_by_its_manifest(server: Registry) -> None:
    expected = server.push("x", "2", "amd64")
    assert ask(server, "x:2") == expected


def test_a_token_is_fetched_as_nobody_where_the_registry_sends_for_one(server: Registry) -> None:
    server.wants_token, expected = True, server.push("models/vllm", "v1", "amd64", "arm64")
    assert ask(server) == expected
    assert server.authorizations == ["", "", "Bearer good"]
    assert server.requests[1].startswith("GET /token?service=registry+of+tests&scope=repository%3Amodels%2Fvllm%3Apull")


def test_a_stored_password_goes_to_the_token_server_only(server: Registry) -> None:
    server.wants_token, server.password = True, "secret"
    expected = server.push("models/vllm", "v1", "amd64")
    assert ask(server, login=READER) == expected
    basic = "Basic " + base64.b64encode(b"reader:secret").decode()
    assert server.authorizations == ["", basic, "Bearer good"]
    assert "stored" not in str(refusal(InvalidInput, server))
    assert "the login that is stored for it" in str(
        refusal(InvalidInput, server, Login(user="reader", password="wrong"))
    )


def test_an_identity_token_is_exchanged(server: Registry) -> None:
    server.wants_token, server.identity_token = True, "from-an-earlier-login"
    expected = server.push("models/vllm", "v1", "amd64")
    assert ask(server, login=Login(identity_token="from-an-earlier-login")) == expected
    refusal(InvalidInput, server, Login(identity_token="another"))


def test_a_registry_may_ask_for_the_password_itself(server: Registry) -> None:
    server.wants_basic, server.password = True, "secret"
    expected = server.push("models/vllm", "v1", "amd64")
    assert ask(server, login=READER) == expected
    assert "docker login" in str(refusal(InvalidInput, server).hint)


def test_a_token_that_does_not_help_is_not_asked_for_again(server: Registry) -> None:
    server.wants_token = server.refuses_token = True
    server.push("models/vllm", "v1", "amd64")
    refusal(InvalidInput, server)
    assert len(server.requests) == 3


def test_a_tag_that_is_not_there_is_said_so(server: Registry) -> None:
    server.push("models/vllm", "v2", "amd64")
    assert "has no models/vllm:v1" in str(refusal(InvalidInput, server))


def test_a_rate_limit_says_for_how_long(server: Registry) -> None:
    server.push("models/vllm", "v1", "amd64")
    server.answers = [(429, {"Retry-After": "1800"})]
    error = refusal(Unreachable, server)
    assert error.why == "rate limit (429), for 1800 s"
    assert len(server.requests) == 1


def test_a_failure_that_passes_is_waited_out_and_one_that_does_not_is_told(server: Registry) -> None:
    expected = server.push("models/vllm", "v1", "amd64")
    server.answers = [(503, {}), (502, {})]
    assert ask(server) == expected
    server.answers = [(500, {})] * 9
    assert "HTTP status 500" in str(refusal(Unreachable, server))


def test_without_the_header_the_digest_is_counted(server: Registry) -> None:
    expected = server.push("models/vllm", "v1", "amd64", "arm64")
    server.tells_digest = False
    assert ask(server) == expected
    assert [line.partition(" ")[0] for line in server.requests] == ["HEAD", "GET"]
    server.tells_digest, server.knows_head = True, False
    assert ask(server) == expected


def test_content_that_is_not_what_the_header_says_is_refused(server: Registry) -> None:
    server.push("models/vllm", "v1", "amd64")
    server.knows_head, server.lies = False, f"sha256:{'0' * 64}"
    refusal(Corrupt, server)


@pytest.mark.parametrize("told", [f"sha512:{'0' * 128}", "sha256:short", "\tx"])
def test_a_digest_that_no_engine_takes_is_refused(server: Registry, told: str) -> None:
    server.push("models/vllm", "v1", "amd64")
    server.lies = told
    refusal(InvalidInput, server)


def test_a_registry_that_does_not_answer_is_named(server: Registry) -> None:
    closed = Registry()
    with registry_server.serving(closed):
        pass
    with pytest.raises(Unreachable) as caught:
        ask(closed)
    assert closed.address in caught.value.what


def test_a_redirect_is_followed_and_takes_no_authorization_along(server: Registry) -> None:
    with registry_server.serving(Registry()) as other:
        expected = other.push("models/vllm", "v1", "amd64")
        server.wants_token, server.redirect = True, f"http://localhost:{other.address.rpartition(':')[2]}"
        server.answers = [
            (401, {"WWW-Authenticate": f'Bearer realm="http://{server.address}/token",service="registry of tests"'})
        ]
        assert ask(server) == expected
        assert server.authorizations[-1] == "Bearer good"
        assert other.authorizations == [""]


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """A certificate authority that this process trusts."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


def context(authority: trustme.CA) -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(found)
    return found


def test_encrypted_registries_stay_encrypted(authority: trustme.CA, server: Registry) -> None:
    with registry_server.serving(Registry(), context(authority)) as safe:
        expected = safe.push("models/vllm", "v1", "amd64")
        safe.wants_token = True
        assert ask(safe) == expected
        safe.realm = f"http://{server.address}/token"
        assert "not encrypted" in str(refusal(Unreachable, safe))
        assert server.requests == []
        safe.wants_token, safe.redirect = False, f"http://{server.address}"
        server.push("models/vllm", "v1", "amd64")
        assert "without encryption" in str(refusal(Unreachable, safe))


def test_only_this_machine_is_asked_without_encryption() -> None:
    own = ("localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000")
    assert [registry.is_loopback(host) for host in own] == [True] * len(own)
    assert not any(
        registry.is_loopback(host) for host in ("ghcr.io", "registry.local:5000", "10.0.0.1", "localhost.io")
    )


def test_the_login_of_docker_or_podman_is_used(
    server: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("docker")
    server.wants_token, server.password = True, "secret"
    expected = server.push("models/vllm", "v1", "amd64")
    stored = {"auths": {server.address: {"auth": base64.b64encode(b"reader:secret").decode()}}}
    for variable, file in (("REGISTRY_AUTH_FILE", "auth.json"), ("DOCKER_CONFIG", "config.json")):
        place = tmp_path / variable / file
        place.parent.mkdir()
        place.write_text(json.dumps(stored))
        with monkeypatch.context() as patch:
            patch.delenv("XDG_RUNTIME_DIR", raising=False)
            patch.setenv(variable, str(place if variable == "REGISTRY_AUTH_FILE" else place.parent))
            assert registry.digest(f"{server.address}/models/vllm:v1") == expected
    with monkeypatch.context() as patch:
        patch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none.json"))
        assert registry.stored_login(server.address) is None


def test_answers_are_kept_and_asked_again_only_on_demand(server: Registry, tmp_path: Path) -> None:
    path, image = tmp_path / "state" / "digests.json", f"{server.address}/models/vllm:v1"
    first = server.push("models/vllm", "v1", "amd64")
    (made,) = digests.resolve(path, [image], now="2026-11-28T00:00:00Z")
    assert (made.digest, made.was) == (first, None)
    moved = server.push("models/vllm", "v1", "amd64", "arm64")
    asked = len(server.requests)
    (kept,) = digests.resolve(path, [image], now="2026-11-29T00:00:00Z", ask=digests.refuse)
    assert (kept.digest, kept.asked, len(server.requests)) == (first, "2026-11-28T00:00:00Z", asked)
    (again,) = digests.resolve(path, [image], now="2026-11-29T00:00:00Z", again=True)
    assert (again.digest, again.was) == (moved, first)
    assert digests.read(path).digests[image].asked == "2026-11-29T00:00:00Z"


def test_what_was_answered_before_a_failure_is_kept(server: Registry, tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    server.push("a", "1", "amd64")
    images = [f"{server.address}/{each}:1" for each in ("a", "missing")]
    with pytest.raises(InvalidInput, match="has no missing:1"):
        digests.resolve(path, images, now="2026-11-28T00:00:00Z")
    assert list(digests.read(path).digests) == images[:1]


def test_a_damaged_file_of_answers_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    path.write_text("{")
    with pytest.raises(Corrupt, match="cannot be read") as caught:
        digests.resolve(path, ["a"], now="", ask=lambda _: f"sha256:{'0' * 64}")
    assert "mv " in (caught.value.hint or "")
    assert path.read_text() == "{"
