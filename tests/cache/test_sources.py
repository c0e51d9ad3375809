"""Every kind of place that models come from, each as a real server or folder, through one contract."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import cloud_server
import hub_server
from aim_engine.cache import acquire, objects, serve, sources, sync, views
from aim_engine.cache.faults import AccessRefused, NoSuchModel, NoSuchRevision, Unavailable, Unsafe
from aim_engine.cache.manager import PEER_TOKEN, ModelCacheManager
from aim_engine.errors import AimError, InvalidInput, MissingExtra
from caches import HASTY, MODEL, WEIGHTS, Make, bucket
from loopback import http

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": WEIGHTS,
    "modeling_llama.py": b"print('hello')",
}
KINDS = (
    "hub",
    "modelscope",
    "web",
    "web with sums",
    "folder",
    "hub cache folder",
    "s3",
    "s3 with sums",
    "gs",
    "az",
    "node",
)
Place = tuple[str, Callable[[str, bytes], None]]


def sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()).encode()


class Quiet(SimpleHTTPRequestHandler):
    """A plain web server, which sends files as a whole only."""

    def log_message(self, *args: object) -> None:
        pass


def modelscope(files: dict[str, bytes]) -> type[BaseHTTPRequestHandler]:
    """Source: modelscope hub/api.py get_model_files, file_download.py; shape of a real answer of 2024-09."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            path = unquote(parts.path)
            status, headers, body = 200, {}, b""
            if not path.startswith(f"/api/v1/models/{MODEL}/") or query["Revision"] != ["master"]:
                status, body = 404, b'{"Code": 10010205001, "Success": false, "Message": "not found"}'
            elif path.endswith("/repo/files"):
                listed = [
                    {"Name": name, "Path": name, "Type": "blob", "Size": len(content), "IsLFS": len(content) > 1000,
                     "Sha256": hashlib.sha256(content).hexdigest(), "Revision": "c" * 40}
                    for name, content in files.items()
                ]  # fmt: skip
                listed.append({"Name": "images", "Path": "images", "Type": "tree", "Size": 0, "Sha256": ""})
                body = json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode()
            else:
                body = files[query["FilePath"][0]]
                asked = (self.headers.get("Range") or "").removeprefix("bytes=").split("-")
                if len(asked) == 2:
                    total, start, end = len(body), int(asked[0]), int(asked[1]) + 1
                    status, headers, body = 206, {"Content-Range": f"bytes {start}-{end - 1}/{total}"}, body[start:end]
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def cloud(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, cloud_server.Cloud]]:
    """The address of a bucket or container `models` at our Google or Azure, and what is in it."""
    stored = cloud_server.Cloud()
    with cloud_server.serving(stored, kind) as address:
        if kind == "gs":
            (tmp_path / "robot.json").write_text(cloud_server.service_account(address))
            monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "robot.json"))
            monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
            yield "gs://models", stored
        else:
            monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{address}/{cloud_server.ACCOUNT}")
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", cloud_server.KEY)
            monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
            yield f"az://{cloud_server.ACCOUNT}/models", stored


@contextmanager
def node(manager: ModelCacheManager, **options: Any) -> Iterator[serve.Server]:
    server = serve.Server(
        lambda: ModelCacheManager(manager.cache_dir, hub_cache="/nowhere", index_dir=manager.index.path.parent),
        port=0, **options,
    )  # fmt: skip
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """The address of a source with the model, and how to change a file of it there."""
    kind = request.param
    root = tmp_path / "source"
    files = dict(FILES)
    with contextlib.ExitStack() as stack:

        def on_disk(name: str, content: bytes) -> None:
            files[name] = content
            (root / MODEL).mkdir(parents=True, exist_ok=True)
            fresh = root / MODEL / f".{name}"
            fresh.write_bytes(content)
            fresh.rename(root / MODEL / name)
            if kind == "web with sums":
                (root / MODEL / sources.SUMS).write_bytes(sums(files))

        def on_hub(name: str, content: bytes) -> None:
            server.models[MODEL][name] = content
            server.commits[MODEL] = hashlib.sha1(content, usedforsecurity=False).hexdigest()

        if kind == "hub":
            yield server.address, on_hub
        elif kind == "modelscope":
            yield f"modelscope+{stack.enter_context(http(modelscope(files)))}", files.__setitem__
        elif kind in ("web", "web with sums", "folder"):
            for name, content in FILES.items():
                on_disk(name, content)
            address = str(root)
            if kind != "folder":
                address = f"web+{stack.enter_context(http(partial(Quiet, directory=str(root))))}"
            yield address, on_disk
        elif kind.startswith("s3"):
            client = stack.enter_context(bucket(monkeypatch))

            def put(name: str, content: bytes) -> None:
                files[name] = content
                client.put_object(Bucket="models", Key=f"weights/{MODEL}/{name}", Body=content)
                if kind == "s3 with sums":
                    client.put_object(Bucket="models", Key=f"weights/{MODEL}/{sources.SUMS}", Body=sums(files))

            for name, content in FILES.items():
                put(name, content)
            yield "s3://models/weights", put
        elif kind in ("gs", "az"):
            address, stored = stack.enter_context(cloud(kind, monkeypatch, tmp_path))

            def keep(name: str, content: bytes) -> None:
                stored.objects["models", f"weights/{MODEL}/{name}"] = content

            for name, content in FILES.items():
                keep(name, content)
            yield f"{address}/weights", keep
        else:
            other = ModelCacheManager(
                tmp_path / "other", endpoint=server.address, hub_cache="/nowhere", index_dir=tmp_path / "other-index",
                patience=HASTY,
            )  # fmt: skip
            other.download_model(MODEL)

            def at_other(name: str, content: bytes) -> None:
                on_hub(name, content)
                other.download_model(MODEL, revision=server.commits[MODEL])
                views.set_ref(other.store, MODEL, "main", server.commits[MODEL])

            if kind == "hub cache folder":
                yield str(other.cache_dir), at_other
            else:
                yield stack.enter_context(node(other)).address, at_other


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_source_delivers_and_only_what_changed_comes_again(place: Place, make: Make, tmp_path: Path) -> None:
    address, change = place
    manager = make(endpoint=address)
    path = manager.download_model(MODEL)
    wanted = {"config.json", "tokenizer.json", "model.safetensors"}
    assert {each.name for each in path.iterdir()} == wanted
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    fetched = manager.index.counters()["fetched_bytes"]
    assert fetched == sum(len(FILES[name]) for name in wanted)
    assert make(endpoint=address).download_model(MODEL) == path
    assert manager.index.counters()["fetched_bytes"] == fetched
    change("tokenizer.json", b'{"version": "1.1", "new": true}')
    plan = make(endpoint=address).plan_download(MODEL)
    assert plan.commit != path.name
    telling = address[:3] != "web" or (tmp_path / "source" / MODEL / sources.SUMS).exists()
    if telling and {file.path for file in plan.files if file.sha256 or file.git_oid}:
        assert [file.path for file in plan.missing] == ["tokenizer.json"]
    second = make(endpoint=address)
    acquire.apply(plan, second.store, second.index, second.client())
    again = second.get_model_path(MODEL)
    assert again is not None
    assert (again / "tokenizer.json").read_bytes() == b'{"version": "1.1", "new": true}'
    assert (path / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_source_that_lacks_a_model_says_so(place: Place, make: Make) -> None:
    with pytest.raises(NoSuchModel):
        make(endpoint=place[0]).download_model("org/unknown")
    with pytest.raises((NoSuchRevision, NoSuchModel)):
        make(endpoint=place[0]).download_model(MODEL, revision="e" * 40)


@pytest.mark.parametrize("place", ["modelscope", "web", "folder", "s3", "gs", "az", "node"], indirect=True)
def test_a_download_from_any_source_goes_on_where_it_was(
    place: Place, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = place
    manager = make(endpoint=address)
    manager.store.ensure()
    real, written = os.pwrite, 0

    def pwrite(descriptor: int, content: bytes, offset: int) -> int:
        nonlocal written
        written += len(content)
        if written > 150_000:
            raise OSError(28, "No space left on device")
        return real(descriptor, content, offset)

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", pwrite)
        with pytest.raises(AimError, match="is full"):
            acquire.apply(
                manager.plan_download(MODEL), manager.store, manager.index, manager.client(), piece_bytes=32 * 1024
            )
    plan = make(endpoint=address).plan_download(MODEL)
    tally = acquire.apply(plan, manager.store, manager.index, manager.client(), piece_bytes=32 * 1024)
    assert tally.resumed_bytes >= 32 * 1024
    found = make().get_model_path(MODEL)
    assert found is not None
    assert (found / "model.safetensors").read_bytes() == WEIGHTS


def test_nothing_of_the_credentials_of_a_bucket_is_kept_or_told(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with bucket(monkeypatch) as client:
        for name, content in FILES.items():
            client.put_object(Bucket="models", Key=f"{MODEL}/{name}", Body=content)
        manager = make(endpoint="s3://models", progress=said.append)
        manager.download_model(MODEL)
    for path in (tmp_path / "cache", tmp_path / "index"):
        for file in path.rglob("*"):
            if file.is_file():
                assert b"canary-secret" not in file.read_bytes()
                assert b"X-Amz-Signature" not in file.read_bytes()
    assert not any("Amz" in line or "canary" in line for line in said)


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_a_cloud_signs_each_address_anew_and_its_secrets_stay_with_the_library(
    kind: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with cloud(kind, monkeypatch, tmp_path) as (address, stored):
        for name, content in FILES.items():
            stored.objects["models", f"{MODEL}/{name}"] = content
        stored.expired = 2
        path = make(endpoint=address, progress=said.append).download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert len(stored.refused) == 2
    for file in (*(tmp_path / "cache").rglob("*"), *(tmp_path / "index").rglob("*")):
        if file.is_file():
            assert not any(each in file.read_bytes() for each in (b"canary-secret", b"X-Goog-Signature", b"sig="))
    assert not any("sig" in line.lower() or "canary" in line for line in said)


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_a_large_file_goes_to_a_cloud_in_parts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(20 << 20)
    (tmp_path / "large").write_bytes(content)
    with cloud(kind, monkeypatch, tmp_path) as (address, stored):
        objects.put(f"{address}/a%20b/large", tmp_path / "large", size_bytes=len(content))
        assert stored.objects["models", "a b/large"] == content
        assert len([each for each in stored.requests if each.startswith("PUT")]) >= 3
        pieces = (content[at : at + 1_000_000] for at in range(0, len(content), 1_000_000))
        objects.put(f"{address}/slow", pieces, size_bytes=len(content))
        assert stored.objects["models", "slow"] == content
        assert objects.size(f"{address}/a%20b/large") == len(content)


def test_a_container_is_found_by_azures_own_kind_of_address(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cloud("az", monkeypatch, tmp_path) as (_, stored):
        for name, content in FILES.items():
            stored.objects["models", f"kept/{MODEL}/{name}"] = content
        address = f"abfss://models@{cloud_server.ACCOUNT}.dfs.core.windows.net/kept"
        path = make(endpoint=address).download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_a_clouds_refusals_are_told_apart(
    kind: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cloud(kind, monkeypatch, tmp_path) as (address, stored):
        stored.buckets.clear()
        with pytest.raises(NoSuchModel):
            make(endpoint=address).download_model(MODEL)
        if kind == "az":
            with pytest.raises(AccessRefused, match="refuses these credentials"):
                make(endpoint="az://stranger/models").download_model(MODEL)
            with pytest.raises(InvalidInput, match="names no container"):
                make(endpoint="az://account").download_model(MODEL)


def test_the_next_source_is_asked_for_what_the_first_lacks(make: Make, server: hub_server.Hub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    manager = make(endpoint=f"{tmp_path / 'empty'}, http://127.0.0.1:9, {server.address}")
    assert manager.download_model(MODEL).is_dir()
    with pytest.raises(NoSuchModel):
        manager.download_model("org/unknown")


def test_a_link_out_of_a_folder_is_refused(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "source" / MODEL
    root.mkdir(parents=True)
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    (root / "vocab.json").symlink_to("/etc/hostname")
    with pytest.raises(Unsafe, match="leads out of"):
        make(endpoint=str(tmp_path / "source")).download_model(MODEL)


@pytest.mark.parametrize("text", ["models", "ftp://host/x", "s3://", "relative/path"])
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        sources.parse_all(text)


def test_an_address_with_credentials_is_refused_without_repeating_them() -> None:
    with pytest.raises(InvalidInput, match="credentials") as caught:
        sources.parse("https://user:canary@host/models")
    assert "canary" not in str(caught.value)
    with pytest.raises(InvalidInput, match="credentials"):
        sources.parse("abfss://user:canary@account.dfs.core.windows.net/models")
    assert sources.parse("abfss://models@account.dfs.core.windows.net/kept").name.endswith("/kept")


def test_a_bucket_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtra) as caught:
        sources.parse("s3://models")
    assert "aim-engine[objects]" in str(caught.value.hint)


@pytest.fixture
def neighbour(server: hub_server.Hub, tmp_path: Path) -> ModelCacheManager:
    other = ModelCacheManager(
        tmp_path / "other",
        endpoint=server.address,
        hub_cache="/nowhere",
        index_dir=tmp_path / "other-index",
        patience=HASTY,
    )
    other.download_model(MODEL)
    return other


def test_content_comes_from_a_neighbour_and_only_the_list_from_the_hub(
    make: Make, server: hub_server.Hub, neighbour: ModelCacheManager
) -> None:
    with node(neighbour) as peer:
        asked = len(server.requests)
        path = make(peers=(peer.address,)).download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert not any("model.safetensors" in each for each in server.requests[asked:])


def test_a_neighbour_that_lies_is_found_out_and_passed_over(
    make: Make, server: hub_server.Hub, neighbour: ModelCacheManager
) -> None:
    blob = neighbour.store.blob(hashlib.sha256(WEIGHTS).hexdigest())
    blob.chmod(0o644)
    blob.write_bytes(WEIGHTS[:-1] + b"!")
    said: list[str] = []
    with node(neighbour) as peer:
        path = make(peers=(peer.address,), progress=said.append).download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert any("wrong checksum" in line for line in said)


def test_a_neighbour_that_lacks_it_or_is_gone_costs_nothing(make: Make, server: hub_server.Hub, tmp_path: Path) -> None:
    empty = ModelCacheManager(tmp_path / "other", hub_cache="/nowhere", index_dir=tmp_path / "other-index")
    with node(empty) as peer:
        manager = make(peers=(peer.address, "http://127.0.0.1:9"))
        assert manager.download_model(MODEL).is_dir()


def test_a_served_cache_asks_for_its_token_and_gets_no_other(
    make: Make, server: hub_server.Hub, neighbour: ModelCacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    with node(neighbour, token="peers-only") as peer:
        with pytest.raises(AccessRefused):
            make(endpoint=peer.address).download_model(MODEL)
        monkeypatch.setenv(PEER_TOKEN, "peers-only")
        asked = len(server.requests)
        make(peers=(peer.address,)).download_model(MODEL)
        assert not any("model.safetensors" in each for each in server.requests[asked:])


def test_other_machines_are_served_only_with_a_token(neighbour: ModelCacheManager) -> None:
    with pytest.raises(InvalidInput, match="reached by other machines"):
        serve.Server(lambda: neighbour, host="0.0.0.0", port=0)
    serve.Server(lambda: neighbour, host="0.0.0.0", port=0, token="t").server_close()


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/content/..%2f..%2fSTORE", "/org/model/resolve/main/..%2f..%2fSTORE", "/x" * 600]
)
def test_a_served_cache_gives_nothing_else(neighbour: ModelCacheManager, path: str) -> None:
    import http.client

    with node(neighbour) as server_node:
        connection = http.client.HTTPConnection(server_node.address.removeprefix("http://"), timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status in (400, 404)
        assert b"uuid" not in answer.read()
        connection.close()


def test_the_hubs_own_client_fetches_from_a_served_cache(neighbour: ModelCacheManager, tmp_path: Path) -> None:
    import subprocess
    import sys

    with node(neighbour) as peer:
        program = (
            "import sys, huggingface_hub; print(huggingface_hub.snapshot_download('org/model', cache_dir=sys.argv[1]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "theirs")],
            env={**os.environ, "HF_ENDPOINT": peer.address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert (Path(done.stdout.strip()) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_source_that_does_not_answer_is_named(make: Make) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        make(endpoint="modelscope+http://127.0.0.1:9").download_model(MODEL)


@pytest.mark.parametrize("kind", ["s3", "gs", "az", "folder"])
def test_what_is_synced_comes_back_proved_and_goes_once(
    kind: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make()
    manager.download_model(MODEL)
    with contextlib.ExitStack() as stack:
        target = str(tmp_path / "shared")
        if kind == "s3":
            stack.enter_context(bucket(monkeypatch))
            target = "s3://models/kept"
        elif kind != "folder":
            target = f"{stack.enter_context(cloud(kind, monkeypatch, tmp_path))[0]}/kept"
        first = sync.write(manager, MODEL, target)
        assert first.written_bytes > 300_000
        assert sync.write(manager, MODEL, target).written_bytes == 0
        elsewhere = ModelCacheManager(
            tmp_path / "elsewhere", endpoint=target, hub_cache="/nowhere", index_dir=tmp_path / "e", patience=HASTY
        )
        plan = elsewhere.plan_download(MODEL)
        assert all(file.sha256 is not None for file in plan.files)
        assert (elsewhere.download_model(MODEL) / "model.safetensors").read_bytes() == WEIGHTS
    with pytest.raises(InvalidInput, match="nothing can be written"):
        sync.write(manager, MODEL, "https://huggingface.co")
