"""A real registry, behind a password: the digest that it tells is what Docker, Compose and podman then start from a written file."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

import dockerd
import plans
from aim_engine.deploy import digests, registry
from aim_engine.errors import InvalidInput
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

pytestmark = [
    pytest.mark.docker,
    # docker's SDK leaves sockets of its own pool to the collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
READER = "reader:$2b$04$8aN1pNRw4UeA90u.sZVFOOZ3MH50ASI0jvDPZQaWb.XcLs.pAHD.W"
"""Password `secret`, as `htpasswd -B` writes it."""
COMPOSE = Path(__file__).parents[2] / ".tools" / "compose" / "docker-compose"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry on loopback."""
    if shutil.which("docker-registry") is None:
        pytest.skip("no registry: apt-get install docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    (folder / "users").write_text(READER + "\n")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": place},
        "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "users")}},
    }
    (folder / "config.yml").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", int(place.rpartition(":")[2]))):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield place
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture(scope="module")
def docker_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dockerd.engine(tmp_path_factory.mktemp("docker")) as found:
        yield found


def run(*words: str | Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout.strip()


def test_what_is_pinned_is_what_starts_after_the_tag_has_moved(
    tmp_path: Path, address: str, docker_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, state = f"{address}/team/vllm:v0.32.0", tmp_path / "digests.json"
    env = {"DOCKER_HOST": docker_host, "DOCKER_CONFIG": str(tmp_path / "login")}
    monkeypatch.setenv("DOCKER_CONFIG", env["DOCKER_CONFIG"])
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with pytest.raises(InvalidInput, match=r"does not let team/vllm:v0\.32\.0 be read"):
        digests.resolve(state, [image], now="")
    run("docker", "login", "--username", "reader", "--password", "secret", address, **env)
    with pytest.raises(InvalidInput, match=r"has no team/vllm:v0\.32\.0"):
        digests.resolve(state, [image], now="")

    def push(note: str) -> str:
        """A new image under the same tag; the digest under which Docker knows it."""
        context = tmp_path / note
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM scratch\nCOPY note /note\nLABEL note={note}\n")
        (context / "note").write_text(note)
        run("docker", "build", "--tag", image, context, **env, DOCKER_BUILDKIT="0")
        run("docker", "push", image, **env)
        return run("docker", "inspect", "--format", "{{index .RepoDigests 0}}", image, **env).rpartition("@")[2]

    first = push("first")
    (found,) = digests.resolve(state, [image], now="2026-11-28T00:00:00Z")
    assert found.digest == first
    options = Options(name="pinned", image=image, digests={image: first})
    second = push("second")
    assert registry.digest(image) == second != first
    run("docker", "image", "rm", "--force", image, f"{image.rpartition(':')[0]}@{first}", **env)

    compose = yaml.safe_load(render(plans.on_cpu(), "compose", options)[0].content)
    written = compose["services"]["pinned"]["image"]
    assert written == f"{image}@{first}"
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump({"services": {"pinned": {"image": written, "command": "x"}}}))
    label = ("--format", '{{index .Config.Labels "note"}}')
    try:
        if COMPOSE.exists():
            run(COMPOSE, "--file", tmp_path / "compose.yaml", "--project-name", "aimpinned", "create", **env)
            assert run("docker", "inspect", *label, "aimpinned-pinned-1", **env) == "first"
        (script,) = [file for file in render(plans.on_cpu(), "docker", options) if file.path.endswith(".sh")]
        assert f" {written} " in script.content.replace("\\\n", " ")
        run("docker", "create", "--name", "aimcreated", written, "x", **env)
        assert run("docker", "inspect", *label, "aimcreated", **env) == "first"
    finally:
        run("docker", "rm", "--force", "aimcreated", "aimpinned-pinned-1", **env)
    if shutil.which("podman") is not None and os.geteuid() == 0:
        (quadlet,) = [file for file in render(plans.on_cpu(), "podman", options) if file.path.endswith(".container")]
        assert f"\nImage={written}\n" in quadlet.content
        assert pulled_by_podman(written, address) == "first"


def pulled_by_podman(image: str, address: str) -> str:
    """The note of an image as podman fetches it."""
    with tempfile.TemporaryDirectory(prefix="aim-", dir="/tmp") as name:
        folder = Path(name)
        places = [f"--{each}={folder / each}" for each in ("root", "runroot", "tmpdir")]
        login = ("--tls-verify=false", f"--authfile={folder}/auth.json")
        run("podman", *places, "login", *login, "--username", "reader", "--password", "secret", address)
        try:
            run("podman", *places, "pull", *login, image)
            return run("podman", *places, "image", "inspect", "--format", '{{index .Labels "note"}}', image)
        finally:
            run("podman", *places, "system", "reset", "--force")
