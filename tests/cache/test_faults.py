"""What may go wrong around a cache, and what it must do then. Faults of transfers are in test_fetch, damaged bundles in test_bundle."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import trustme

import hub_server
from aim_engine.cache import acquire, bundle, evict, holds, locks, names, pack, scrub, space, views, writeback
from aim_engine.cache.faults import (
    AccessRefused,
    Gated,
    NoSpace,
    NoSuchFile,
    NoSuchModel,
    NoSuchRevision,
    Unavailable,
    Unsafe,
)
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.pace import UNPACED
from aim_engine.cache.transport import Client
from aim_engine.errors import AimError, Unreachable
from caches import HASTY, MODEL, WEIGHTS, Make, checkpoint
from crashes import Dying, Killed
from loopback import http

Do = Callable[[ModelCacheManager], object]


def packable(server: hub_server.Hub, manager: ModelCacheManager) -> None:
    server.models[MODEL]["model.safetensors"] = checkpoint({"w": ("BF16", b"\x12\x3d" * 100_000)})
    manager.download_model(MODEL)


def freeze(manager: ModelCacheManager) -> None:
    pack.apply(pack.choose(manager.store, manager.index, models=(MODEL,)), manager.store, manager.index)


def prepared(what: str, manager: ModelCacheManager, server: hub_server.Hub, tmp_path: Path) -> Do:
    """Bring a cache to where an operation begins."""
    if what == "download":
        return lambda each: each.download_model(MODEL)
    packable(server, manager)
    if what == "prune":
        return lambda each: evict.apply(each.plan_prune(target_bytes=10**9), each.store, each.index)
    if what == "remove and come back":
        manager.remove_model(MODEL)
        return lambda each: each.download_model(MODEL)
    if what == "empty the trash":
        manager.remove_model(MODEL)
        return lambda each: evict.empty_trash(each.store, grace_s=0)
    if what == "compress":
        return freeze
    if what == "unpack":
        freeze(manager)
        return lambda each: each.download_model(MODEL)
    if what == "write back":
        plan = manager.plan_download(MODEL)
        writeback.queue(manager.store, plan, str(tmp_path / "shared"))
        return lambda each: writeback.drain(each, pace=UNPACED)
    if what == "scrub":
        blob = manager.store.blob(hub_server._sha256(server.models[MODEL]["model.safetensors"]))
        blob.unlink()
        blob.write_bytes(b"rotten")
        return lambda each: scrub.scrub(each, cycle_days=1, mend=True)
    if what == "export":
        return lambda each: bundle.write(each.store, each.index, [], tmp_path / "out.tar")
    bundle.write(manager.store, manager.index, [], tmp_path / "carried")
    manager.remove_model(MODEL)
    evict.empty_trash(manager.store, grace_s=0)
    return lambda each: each.import_bundle(tmp_path / "carried")


@pytest.mark.parametrize(
    "what",
    [
        "empty the trash",
        "compress",
        "unpack",
        "export",
        "write back",
        "scrub",
        *(
            pytest.param(each, marks=pytest.mark.kill)
            for each in ("download", "prune", "remove and come back", "import")
        ),
    ],
)
def test_dying_at_any_change_of_the_disk_breaks_nothing(
    what: str, make: Make, server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 between every two changes of the disk that an operation makes, one after the other."""
    monkeypatch.setattr(pack, "_SMALLEST_BYTES", 1000)
    after, survived = 0, False
    while not survived:
        place = tmp_path / f"{after}"
        index = place / "index"
        options: dict[str, Any] = {"endpoint": server.address, "hub_cache": "/nowhere", "index_dir": index}
        manager = ModelCacheManager(place / "cache", patience=HASTY, **options)
        do = prepared(what, manager, server, place)
        with Dying(after) as dying, contextlib.suppress(Killed, AimError):
            do(manager)
        survived = not dying.died
        manager.index.close()
        for path in (place / "cache" / "leases").rglob("*.json"):  # a dead process holds nothing
            path.unlink()
        fresh = ModelCacheManager(place / "cache", patience=HASTY, **options)
        if fresh.store.exists:
            for blob in fresh.store.path("blobs", "sha256").iterdir():
                assert space.digest(blob) == blob.name or (what == "scrub" and blob.read_bytes() == b"rotten")
            fresh.index.refresh()
            before = set(fresh.index.blobs())
            fresh.index.rebuild()
            on_disk = {blob.name for blob in fresh.store.path("blobs", "sha256").iterdir()}
            assert set(fresh.index.blobs()) == on_disk
            assert before - on_disk == set() or what != "download"
            assert all(pack.proves(fresh.store, sha256) for sha256 in pack.sizes(fresh.store))
        if what == "scrub":
            scrub.scrub(fresh, cycle_days=1, now_s=fresh.store.now_s() + 2 * 86_400, mend=True)
        path = fresh.download_model(MODEL)
        assert (path / "model.safetensors").read_bytes() == server.models[MODEL]["model.safetensors"]
        assert fresh.verify() == ()
        if what == "write back":
            writeback.drain(fresh, pace=UNPACED)
            listed = (place / "shared" / MODEL / "SHA256SUMS").read_text()
            assert all(space.digest(place / "shared" / MODEL / line[66:]) == line[:64] for line in listed.splitlines())
            assert len(listed.splitlines()) == 3
        fresh.index.close()
        after += 1 if what != "download" else 2
    assert after > 2


def test_content_is_on_disk_before_its_name_is(manager: ModelCacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power loss: the file's bytes are synced before it is named, and the name is synced before anything refers to it."""
    manager.store.ensure()
    partial = manager.store.path("parts", "x.part")
    partial.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    events: list[str] = []
    real_sync, real_link = os.fsync, os.link

    def fsync(descriptor: int) -> None:
        events.append("sync " + ("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"))  # noqa: PTH112
        real_sync(descriptor)

    def link(source: Path, target: Path, **options: object) -> None:
        events.append("name")
        real_link(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    manager.store.publish(partial, digest)
    assert events == ["sync file", "name", "sync folder"]


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, NoSpace, "is full"), (errno.EDQUOT, NoSpace, "is full"),
        (errno.EROFS, Unreachable, "cannot be written"), (errno.EACCES, Unreachable, "cannot be written"),
        (errno.EIO, Unreachable, "cannot be used"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ["open", "link", "fsync"])
def test_a_disk_that_refuses_is_typed_and_what_is_there_stays_readable(
    call: str, number: int, kind: type[AimError], words: str, manager: ModelCacheManager, make: Make,
    server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server.models["org/other"] = {"config.json": b"{}", "model.safetensors": hub_server.safetensors(50_000, 4)}
    there = manager.download_model(MODEL)
    real = getattr(os, call)
    root = str(tmp_path / "cache")

    def refusing(first: object, *rest: object, **options: object) -> object:
        writes = call != "open" or bool(int(rest[0]) & (os.O_WRONLY | os.O_RDWR))  # type: ignore[call-overload]
        ours = call != "open" or (str(first).startswith(root) and "/parts/" in str(first))
        if writes and ours:
            raise OSError(number, os.strerror(number), str(first))
        return real(first, *rest, **options)

    with monkeypatch.context() as refused:
        refused.setattr(os, call, refusing)
        with pytest.raises(kind, match=words):
            make().download_model("org/other")
        assert make().get_model_path(MODEL) == there
        assert make().get_cache_stats()["total_models"] == 1
    assert make().download_model("org/other").is_dir()


def test_a_really_full_disk_is_refused_before_the_first_byte(
    make: Make, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aim_engine.cache import layout

    monkeypatch.setattr(layout, "free_bytes", lambda _: 1000)
    asked = len(server.requests)
    with pytest.raises(NoSpace, match="not enough disk space") as caught:
        make().download_model(MODEL)
    assert "may go" in str(caught.value.why)
    assert not any("/resolve/" in each for each in server.requests[asked:])


REFUSALS: dict[str, tuple[Callable[[hub_server.Hub], object], type[AimError]]] = {
    "gated": (lambda hub: hub.gated.add(MODEL), Gated),
    "no model": (lambda hub: hub.models.pop(MODEL), NoSuchModel),
    "no revision": (lambda hub: hub.commits.update({MODEL: "f" * 40}), NoSuchRevision),
    "no file": (lambda hub: hub.fail_files.extend([(404, {"X-Error-Code": "EntryNotFound"})] * 9), NoSuchFile),
    "refused": (lambda hub: hub.fail_files.extend([(403, {})] * 9), AccessRefused),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_is_told_apart_and_a_cached_copy_stays_of_use(
    case: str, make: Make, server: hub_server.Hub
) -> None:
    server.models["org/kept"] = dict(server.models[MODEL])
    kept = make().download_model("org/kept")
    server.models[MODEL] = {**server.models[MODEL], "model.safetensors": hub_server.safetensors(90_000, 7)}
    change, kind = REFUSALS[case]
    change(server)
    revision = hub_server.COMMIT[::-1] if case == "no revision" else "main"
    with pytest.raises(kind) as caught:
        make().download_model(MODEL, revision=revision)
    assert type(caught.value) is kind
    assert caught.value.hint
    if case == "gated":
        assert f"https://huggingface.co/{MODEL}" in str(caught.value.hint)
    server.gated.add("org/kept")
    assert make().download_model("org/kept") == kept


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def context(authority: trustme.CA) -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(found)
    return found


def test_a_server_nobody_vouches_for_gets_nothing(
    make: Make, server: hub_server.Hub, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    for variable in ("HF_HUB_DISABLE_SSL_VERIFY", "PYTHONHTTPSVERIFY", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(variable, "0" if variable == "PYTHONHTTPSVERIFY" else "")
    with hub_server.serving(server, context(authority)) as address:
        with pytest.raises(Unavailable, match="cannot be reached") as caught:
            make(endpoint=address).download_model(MODEL)
        assert "certificate" in str(caught.value.why).lower()
        assert server.authorised == []
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        path = make(endpoint=address).download_model(MODEL)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert server.authorised
    assert not any("/content/" in each for each in server.authorised)


def test_encryption_is_never_dropped_by_a_redirect(
    make: Make, server: hub_server.Hub, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    plain = server.content_address
    with hub_server.serving(hub := hub_server.Hub(), context(authority)) as address:
        hub.models = dict(server.models)
        hub.redirect_to = f"{plain}/content/x/model.safetensors"
        with pytest.raises(Unsafe, match="redirect") as caught:
            make(endpoint=address).download_model(MODEL)
    assert "without encryption" in str(caught.value.why)


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:1/",
        "http://169.254.169.254/latest/",
        "http://[::1]:1/",
        "http://10.0.0.1/",
        "http://0x7f000001/",
    ],
)
def test_the_internet_does_not_lead_into_a_private_network(target: str) -> None:
    client = Client()
    client._trusted_private["hub.example"] = False
    with pytest.raises(Unsafe, match="redirect"):
        client.require_safe("http://hub.example/a", "http://hub.example/a", target)


@pytest.mark.parametrize("address", ["http://no-such-host.invalid", "http://127.0.0.1:9"])
def test_a_host_that_is_not_there_is_named(make: Make, address: str) -> None:
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        make(endpoint=address).download_model(MODEL)
    assert address in str(caught.value.why)


def test_a_file_that_changes_while_it_is_fetched_is_not_mixed(make: Make, tmp_path: Path) -> None:
    """Without any checksum only the ETag tells."""
    contents = [hub_server.safetensors(300_000, 1), hub_server.safetensors(300_000, 2)]
    asked = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            nonlocal asked
            name = self.path.rsplit("/", 1)[-1]
            content = {"config.json": b"{}"}.get(name)
            if name == "model.safetensors":
                asked += self.command == "GET"
                content = contents[1 if asked > 2 else 0]
            status, headers, body = (
                (200, {"ETag": f'"{hash(content)}"'}, content) if content is not None else (404, {}, b"")
            )
            asked_range = (self.headers.get("Range") or "").removeprefix("bytes=").split("-")
            if content is not None and len(asked_range) == 2:
                start, end = int(asked_range[0]), int(asked_range[1]) + 1
                status, body = 206, content[start:end]
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http(Handler) as address:
        manager = make(endpoint=f"web+{address}")
        manager.store.ensure()
        with pytest.raises(Unavailable, match="changed while it was fetched"):
            acquire.apply(
                manager.plan_download(MODEL),
                manager.store,
                manager.index,
                manager.client(),
                piece_bytes=64 * 1024,
                connections=1,
            )
        assert not make().is_cached(MODEL)
        plan = make(endpoint=f"web+{address}").plan_download(MODEL)
        acquire.apply(plan, manager.store, manager.index, manager.client(), piece_bytes=64 * 1024)
    found = make().get_model_path(MODEL)
    assert found is not None
    assert (found / "model.safetensors").read_bytes() == contents[1]


def test_a_listing_without_end_is_refused(make: Make, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_FILES", 50)
    server.models[MODEL].update({f"f{number}.json": b"{}" for number in range(60)})
    with pytest.raises(AimError, match="it lists 66 files"):
        make().download_model(MODEL)


def test_a_store_of_somebody_else_is_refused(
    manager: ModelCacheManager, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.download_model(MODEL)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    if manager.store.root.stat().st_uid == 0:  # what root owns is trusted by everybody
        os.chown(manager.store.path("blobs"), 1234, 1234)
    with pytest.raises(AimError, match="cannot be trusted"):
        make()


def test_a_dead_nodes_lock_stays_until_a_person_breaks_it(
    manager: ModelCacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.store.ensure()
    monkeypatch.setattr(locks, "is_shared", lambda *_: True)
    held = locks.attempt(manager.store, "index")
    assert held is not None
    for path in manager.store.path("locks").rglob("*"):
        os.utime(path, (0, 0))  # as old as can be: age alone breaks nothing
    assert locks.attempt(manager.store, "index") is None
    owner = locks.unlock(manager.store, "index")
    assert owner is not None
    assert f"process {os.getpid()}" in owner
    assert locks.attempt(manager.store, "index") is None
    locks.unlock(manager.store, "index", force=True)
    again = locks.attempt(manager.store, "index")
    assert again is not None
    again.release()


def test_a_slow_piece_is_taken_over_by_idle_connections(make: Make, server: hub_server.Hub) -> None:
    """One connection crawls above the floor; without help it alone would take eight seconds."""
    server.models[MODEL]["model.safetensors"] = hub_server.safetensors(4 << 20)
    manager = make()
    manager.store.ensure()
    plan = manager.plan_download(MODEL)
    server.rate_bytes_s = 500_000
    tally = acquire.apply(plan, manager.store, manager.index, manager.client(), piece_bytes=4 << 20)
    assert tally.helped_pieces > 0
    assert tally.seconds < 6.5
    assert tally.received_bytes < 1.25 * (4 << 20)
    assert make().verify() == ()


def test_a_silent_connection_does_not_hold_up_the_rest(make: Make) -> None:
    """One answer never gets past its headers; its piece comes over another connection long before any timeout."""
    content = hub_server.safetensors(1 << 20)
    silent = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            body = {"config.json": b"{}", "model.safetensors": content}.get(name, b"")
            start, end = 0, len(body)
            asked = (self.headers.get("Range") or "").removeprefix("bytes=").split("-")
            self.send_response((206 if len(asked) == 2 else 200) if body else 404)
            if len(asked) == 2:
                start, end = int(asked[0]), int(asked[1]) + 1
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if self.command == "GET" and start == 256 * 1024 and not silent.is_set():
                silent.set()
                self.wfile.flush()
                silent_until.wait(30)
                self.close_connection = True
                return
            if self.command == "GET":
                self.wfile.write(body[start:end])

        def log_message(self, *args: object) -> None:
            pass

    silent_until = threading.Event()
    patient = HASTY.__class__(connect_s=30, read_s=30, stall_s=30, attempts=3)
    with http(Handler) as address:
        manager = make(endpoint=f"web+{address}", patience=patient)
        manager.store.ensure()
        tally = acquire.apply(
            manager.plan_download(MODEL), manager.store, manager.index, manager.client(), piece_bytes=256 * 1024
        )
        silent_until.set()
    assert silent.is_set()
    assert tally.helped_pieces > 0
    assert tally.seconds < 10
    assert make().verify() == ()


def test_twenty_models_that_share_most_cost_what_is_unique(make: Make, server: hub_server.Hub) -> None:
    shared = {
        "model-00001-of-00002.safetensors": hub_server.safetensors(2_000_000, 1),
        "tokenizer.json": b'{"t": 1}' * 50_000,
    }
    unique = sum(map(len, shared.values()))
    for number in range(20):
        own = hub_server.safetensors(20_000, 100 + number)
        unique += len(own)
        server.models[f"org/m{number}"] = {
            **shared, "model-00002-of-00002.safetensors": own, "config.json": b'{"n": 1}',
            "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}',
        }  # fmt: skip
        make().download_model(f"org/m{number}")
    disk = sum(
        {
            about.st_ino: about.st_blocks * 512
            for path in make().store.root.rglob("*")
            if (about := path.lstat()).st_size > 4096
        }.values()
    )
    assert disk <= 1.01 * unique + 20 * 8192
    assert server.sent_bytes < 1.05 * unique + 200_000


def test_a_thousand_links_take_less_than_a_second(manager: ModelCacheManager) -> None:
    import time

    from aim_engine.cache.manifest import Revision, StoredFile

    manager.store.ensure()
    partial = manager.store.path("parts", "x.part")
    partial.write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    manager.store.publish(partial, digest)
    files = tuple(StoredFile(path=f"{number}.json", sha256=digest, size_bytes=1) for number in range(500))
    began = time.process_time()
    views.make(manager.store, Revision(model_id=MODEL, commit="a" * 40, files=files))  # two views of 500 files
    assert time.process_time() - began < 1.0


def test_two_leases_of_one_content_share_its_pages(make: Make, server: hub_server.Hub) -> None:
    server.models["org/fork"] = {**server.models[MODEL], "config.json": b'{"a": 1}'}
    first, second = make().download_model(MODEL), make().download_model("org/fork")
    make().lease(first, "one")
    make().lease(second, "two")
    assert {(first / "model.safetensors").stat().st_ino, (second / "model.safetensors").stat().st_ino} == {
        make().store.blob(hashlib.sha256(WEIGHTS).hexdigest()).stat().st_ino
    }
    assert len(holds.leases(make().store)) == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_map": {"AutoModel": "modeling_evil.Evil"}}, "auto_map"),
        ({"_attn_implementation_internal": "evil/kernel"}, "evil/kernel"),
        ({"attn_implementation": "sdpa"}, None),
    ],
)
def test_a_model_that_asks_to_run_code_is_reported_and_gets_none(
    config: dict[str, object], words: str | None, make: Make, server: hub_server.Hub
) -> None:
    server.models[MODEL]["config.json"] = json.dumps(config).encode()
    server.models[MODEL]["modeling_evil.py"] = b"raise SystemExit('canary')"
    said: list[str] = []
    path = make(progress=said.append).download_model(MODEL)
    assert not list(path.glob("*.py"))
    assert not any("modeling_evil" in each for each in server.requests)
    told = [line for line in said if "asks to run code" in line]
    assert (words is None) == (told == [])
    assert words is None or words in told[0]


def test_an_export_and_an_import_open_no_socket(
    make: Make, manager: ModelCacheManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.download_model(MODEL)
    monkeypatch.setattr(socket, "socket", None)
    bundle.write(manager.store, manager.index, [], tmp_path / "out.tar")
    other = ModelCacheManager(tmp_path / "other", hub_cache="/nowhere", index_dir=tmp_path / "other-index")
    other.import_bundle(tmp_path / "out.tar")
    assert other.download_model(MODEL).is_dir()
