"""A Docker engine for tests: the one that answers here, else one started below a temporary folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

IMAGE = "aim-engine-test:1"
HOST_FOLDERS = (("/usr", "/usr"), (sys.base_prefix, sys.base_prefix))
"""What the test image shows of the host instead of holding it: programs, libraries, Python."""


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """The address of a Docker engine, for DOCKER_HOST. Skips with the way to get one."""
    docker = pytest.importorskip("docker", reason="pip install 'aim-engine[docker]'")
    if _answers(docker):
        yield os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        return
    if shutil.which("dockerd") is None:
        pytest.skip("no Docker engine: apt-get install docker.io")
    if os.geteuid() != 0:
        pytest.skip("no Docker engine runs here, and starting one needs root")
    if shutil.which("ip") is None:
        pytest.skip("a Docker engine of our own needs a bridge of its own: apt-get install iproute2")
    host, bridge = f"unix://{folder}/docker.sock", f"aim{os.getpid()}"
    # A bridge of our own and no firewall rules: another engine on this machine is not disturbed, and nothing stays.
    _ip("link", "add", "name", bridge, "type", "bridge")
    _ip("address", "add", f"10.213.{os.getpid() % 250}.1/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    command = [
        "dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid",
        "--host", host, "--bridge", bridge, "--iptables=false", "--ip-masq=false",
    ]  # fmt: skip
    with (folder / "dockerd.log").open("w") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 30
        while not (folder / "docker.sock").exists():
            if daemon.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not start here: {(folder / 'dockerd.log').read_text()[-300:]}")
            time.sleep(0.1)
        yield host
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)
        _ip("link", "delete", bridge)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _answers(docker: Any) -> bool:
    try:
        client = docker.from_env()
    except docker.errors.DockerException:
        return False
    try:
        client.ping()
    except docker.errors.DockerException:
        return False
    finally:
        client.close()
    return True


def save_image(path: Path) -> None:
    """The files of an image of links into the host's folders, as a tar archive."""
    with tarfile.open(path, mode="w") as archive:
        for name in ("bin", "lib", "lib64", "sbin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
        for name in ("tmp", "etc", "root"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(entry)


def make_image(host: str, path: str) -> None:
    """An image of links into the host's folders, with `path` as its PATH."""
    with tempfile.TemporaryDirectory() as folder:
        save_image(Path(folder) / "image.tar")
        _import(host, Path(folder) / "image.tar", IMAGE, [f"ENV PATH={path}"])


def make_program_image(host: str, reference: str, program: str, *arguments: str) -> None:
    """An image called `reference` that holds and starts one program of this host, with the libraries it needs."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no {program}: apt-get install {program}")
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(Path(folder) / "image.tar", "w", dereference=True) as archive:
            for file in (path, *re.findall(r"(?:=> )?(/\S+) \(0x", linked)):
                archive.add(file, file.lstrip("/"))
        _import(host, Path(folder) / "image.tar", reference, [f"ENTRYPOINT {json.dumps([path, *arguments])}"])


def _import(host: str, archive: Path, reference: str, changes: list[str]) -> None:
    import docker

    client = docker.DockerClient(base_url=host)
    repository, tag = reference.rsplit(":", 1)
    client.api.import_image_from_file(str(archive), repository=repository, tag=tag, changes=changes)
    client.close()
