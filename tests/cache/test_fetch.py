"""Transfers under the faults that hubs, networks, disks and processes have."""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest

import hub_server
from aim_engine.cache import acquire, fetch, pieces
from aim_engine.cache.faults import AccessRefused, Damaged, NoSpace, NoSuchFile, RateLimited, Unavailable, Unsafe
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.progress import Progress, Tally
from aim_engine.cache.transport import retry_after_s
from aim_engine.errors import AimError
from caches import HASTY, MODEL, WEIGHTS, Make

PIECE = 32 * 1024
FILE = "model.safetensors"


def pull(manager: ModelCacheManager, **options: object) -> tuple[Path, Tally]:
    """Fetch in small pieces, so that a small file has many."""
    manager.store.ensure()
    plan = manager.plan_download(MODEL)
    tally = acquire.apply(plan, manager.store, manager.index, manager.client(), piece_bytes=PIECE, **options)  # type: ignore[arg-type]
    found = manager.get_model_path(MODEL)
    assert found is not None
    return found, tally


def is_right(path: Path) -> bool:
    return (path / FILE).read_bytes() == WEIGHTS


def test_a_file_comes_in_pieces_over_several_connections(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.delay_s = 0.01
    seen: list[Progress] = []
    path, tally = pull(manager, progress=seen.append)
    assert is_right(path)
    assert len([each for each in server.requests if each.startswith("GET /content/")]) == pytest.approx(10, abs=1)
    assert server.connections > 2
    assert tally.received_bytes == len(WEIGHTS) + 41
    assert seen[-1].done_bytes == seen[-1].total_bytes == len(WEIGHTS) + 41


def test_what_arrived_before_a_failure_is_not_fetched_again(
    manager: ModelCacheManager, make: Make, server: hub_server.Hub
) -> None:
    server.cut[FILE] = PIECE // 2
    server.rate_bytes_s = 2_000_000
    manager.index.close()
    with pytest.raises(Unavailable):
        pull(make(patience=HASTY.__class__(attempts=1, backoff_s=0.01)))
    assert not make().is_cached(MODEL)
    server.cut.clear()
    server.cut_once[FILE] = 0
    with pytest.raises(Unavailable):  # one piece fails, the others in flight may finish
        pull(make(patience=HASTY.__class__(attempts=1, backoff_s=0.01)))
    plan = make().plan_download(MODEL)
    assert plan.resumed_bytes % PIECE == 0
    sent = server.sent_bytes
    path, tally = pull(make())
    assert is_right(path)
    assert tally.resumed_bytes == plan.resumed_bytes
    assert server.sent_bytes - sent < len(WEIGHTS) - tally.resumed_bytes + 5_000
    assert list((manager.cache_dir / "parts").iterdir()) == []


def test_a_cut_connection_goes_on_where_it_was(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.cut_once[FILE] = 20_000
    path, tally = pull(manager)
    assert is_right(path)
    assert tally.received_bytes == len(WEIGHTS) + 41


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_refusals_are_waited_out(manager: ModelCacheManager, server: hub_server.Hub, status: int) -> None:
    server.fail_files = [(status, {}), (status, {"Retry-After": "0"})]
    assert is_right(pull(manager)[0])


def test_being_asked_to_wait_stops_every_connection_for_that_long(
    manager: ModelCacheManager, server: hub_server.Hub
) -> None:
    server.fail_files = [(429, {"Retry-After": "1"})]
    path, tally = pull(manager)
    assert is_right(path)
    assert tally.seconds > 0.9


def test_being_asked_to_wait_too_long_is_told(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.fail_files = [(429, {"Retry-After": "3600"})] * 20
    with pytest.raises(RateLimited, match="asks to wait 3600 s"):
        pull(manager)


def test_a_wait_is_given_in_seconds_or_as_a_date() -> None:
    now = dt.datetime(2026, 11, 23, 12, 0, tzinfo=dt.UTC).timestamp()
    assert retry_after_s("120", now) == 120
    assert retry_after_s("Mon, 23 Nov 2026 12:00:30 GMT", now) == 30
    assert retry_after_s("Mon, 23 Nov 2026 11:00:00 GMT", now) == 0
    assert retry_after_s("soon", now) is None
    assert retry_after_s(None, now) is None


def test_a_crawling_transfer_is_broken_off(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.drip_s = 0.05
    said: list[str] = []
    path, tally = pull(manager, tell=said.append)
    assert is_right(path)
    assert tally.seconds < 5


def test_flipped_bits_are_found_and_only_that_file_comes_twice(
    manager: ModelCacheManager, server: hub_server.Hub
) -> None:
    piece = len(WEIGHTS) // 399
    server.flip[FILE] = 1
    server.flip_piece_at = 200 * piece
    manager.store.ensure()
    plan = manager.plan_download(MODEL)
    tally = acquire.apply(plan, manager.store, manager.index, manager.client(), piece_bytes=piece)
    path = manager.get_model_path(MODEL)
    assert path is not None
    assert len([each for each in server.requests if each.startswith("GET /content/")]) >= 400
    assert is_right(path)
    assert tally.repaired_files == 1
    assert tally.received_bytes <= 2 * len(WEIGHTS) + 41


def test_a_source_that_always_alters_a_file_is_refused(
    manager: ModelCacheManager, make: Make, server: hub_server.Hub
) -> None:
    server.flip[FILE] = 1000
    with pytest.raises(Damaged, match="arrives with a wrong checksum"):
        pull(manager)
    assert not make().is_cached(MODEL)
    assert [path.name[:64] for path in (manager.cache_dir / "quarantine").iterdir()] == [
        hashlib.sha256(WEIGHTS).hexdigest()
    ]
    server.flip.clear()
    assert is_right(pull(make())[0])


def test_small_files_are_proved_by_their_git_checksum(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.flip["tokenizer.json"] = 1
    path, tally = pull(manager)
    assert tally.repaired_files == 1
    assert (path / "tokenizer.json").read_bytes() == b'{"version": "1.0"}'


def test_a_server_without_ranges_still_delivers(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.ignores_ranges = True
    server.cut_once[FILE] = 200_000
    assert is_right(pull(manager)[0])


@pytest.mark.parametrize("fault", ["compresses", "lies_about_length"])
def test_a_server_that_alters_bodies_is_not_believed(
    manager: ModelCacheManager, server: hub_server.Hub, fault: str
) -> None:
    setattr(server, fault, True if fault == "compresses" else 7)
    with pytest.raises(Unavailable):
        pull(manager)
    assert list((manager.cache_dir / "blobs" / "sha256").glob("*")) == []


def test_an_expired_signed_address_is_asked_for_anew(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.rate_bytes_s = 1_000_000
    expired = False

    def expire(progress: Progress) -> None:
        nonlocal expired
        if not expired and progress.done_bytes > PIECE:
            expired = server.expired = True

    path, _ = pull(manager, progress=expire)
    assert is_right(path)
    assert expired
    assert len([each for each in server.requests if f"/{FILE}" in each and "/resolve/" in each]) > 1


def test_an_unencrypted_or_foreign_redirect_is_refused(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.redirect_to = "file:///etc/passwd"
    with pytest.raises(Unsafe, match="redirect"):
        pull(manager)
    server.redirect_to = f"{server.address}/{MODEL}/resolve/{hub_server.COMMIT}/{FILE}"
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        pull(manager)
    assert "redirects" in str(caught.value.why)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(404, "EntryNotFound", NoSuchFile), (404, "", NoSuchFile), (403, "", AccessRefused), (401, "", AimError)],
)
def test_refusals_of_a_file_are_typed(
    manager: ModelCacheManager, server: hub_server.Hub, status: int, code: str, kind: type[AimError]
) -> None:
    server.fail_files = [(status, {"X-Error-Code": code})] * 10
    with pytest.raises(kind):
        pull(manager)


@pytest.mark.parametrize(
    "name", ["../x.json", "/etc/x.json", "a\\b.json", "a\nb.json", "a/../../x.json", "x" * 300 + ".json", "con.json"]
)
def test_hostile_file_names_are_refused_before_anything_is_fetched(
    manager: ModelCacheManager, server: hub_server.Hub, name: str
) -> None:
    server.models[MODEL][name] = b"{}"
    with pytest.raises(Unsafe, match="file name"):
        pull(manager)
    assert not any("/resolve/" in request for request in server.requests)


def test_names_that_differ_in_case_only_are_refused(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.models[MODEL]["Config.json"] = b"{}"
    with pytest.raises(Unsafe, match="in case only"):
        pull(manager)


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        b"\x80\x04\x95" + b"x" * 50,
        hub_server.safetensors(1000)[:-1],
        hub_server.safetensors(1000).replace(b"[0, 1000]", b"[9, 1000]"),
    ],
    ids=["header bomb", "renamed pickle", "truncated", "gap"],
)
def test_unsound_safetensors_are_refused(manager: ModelCacheManager, server: hub_server.Hub, content: bytes) -> None:
    server.models[MODEL][FILE] = content
    with pytest.raises(Unsafe, match="no sound safetensors"):
        pull(manager)


def test_a_full_disk_keeps_what_arrived(
    manager: ModelCacheManager, make: Make, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    real = os.pwrite

    def pwrite(descriptor: int, content: bytes, offset: int) -> int:
        nonlocal written
        written += len(content)
        if written > 5 * PIECE:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content, offset)

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", pwrite)
        with pytest.raises(NoSpace, match="is full"):
            pull(manager)
    path, tally = pull(make())
    assert is_right(path)
    assert tally.resumed_bytes > 0


def _process(make_arguments: tuple[str, str, str], kind: str, results: multiprocessing.Queue[int]) -> None:
    cache, address, index = make_arguments
    if kind == "locks of a shared file system":
        from aim_engine.cache import locks

        locks.is_shared = lambda *_: True
    if kind == "no locks":
        import filelock

        filelock.FileLock._acquire = lambda self: setattr(self._context, "lock_file_fd", os.open(os.devnull, 0))  # type: ignore[method-assign]
    manager = ModelCacheManager(cache, endpoint=address, hub_cache="/nowhere", index_dir=index, patience=HASTY)
    manager.download_model(MODEL)
    results.put(1)


@pytest.mark.parametrize("kind", ["locks", "locks of a shared file system", "no locks"])
def test_processes_at_once_share_one_download_and_are_right_without_locks(
    kind: str, make: Make, server: hub_server.Hub, tmp_path: Path
) -> None:
    server.rate_bytes_s = 1_000_000
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    arguments = (str(tmp_path / "cache"), server.address, str(tmp_path / "index"))
    workers = [context.Process(target=_process, args=(arguments, kind, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    path = make().get_model_path(MODEL)
    assert path is not None
    assert is_right(path)
    content = [each for each in server.requests if each.startswith("GET /content/")]
    if kind != "no locks":
        assert len(content) == 1
    assert list((tmp_path / "cache" / "parts").iterdir()) == []


def test_waiting_for_another_process_is_told_once(
    make: Make, server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_WAIT_S", 0.1)
    server.rate_bytes_s = 300_000
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache"), server.address, str(tmp_path / "index"))
    other = context.Process(target=_process, args=(arguments, "locks", context.Queue()))
    other.start()
    while not any(each.startswith("GET /content/") for each in server.requests):
        time.sleep(0.01)
    said: list[str] = []
    manager = make(progress=said.append)
    manager.download_model(MODEL)
    other.join(60)
    assert [line for line in said if "another process" in line] == [f"another process fetches {FILE}; waiting for it"]
    assert manager.index.counters()["fetched_bytes"] < 2 * len(WEIGHTS)


def test_the_same_content_in_one_model_is_fetched_once(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.models[MODEL]["tokenizer_config.json"] = server.models[MODEL]["tokenizer.json"]
    _, tally = pull(manager)
    assert tally.received_bytes == len(WEIGHTS) + 41


def test_an_empty_file_is_a_file(manager: ModelCacheManager, server: hub_server.Hub) -> None:
    server.models[MODEL]["merges.txt"] = b""
    path, _ = pull(manager)
    assert (path / "merges.txt").read_bytes() == b""


def test_claims_are_believed_only_after_reading_back(make: Make, server: hub_server.Hub) -> None:
    manager = make()
    manager.store.ensure()
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    part = pieces.open_part(manager.store, digest, len(WEIGHTS), PIECE)
    import zlib

    for piece in range(4):
        start, end = part.span(piece)
        part.write(WEIGHTS[start:end], start)
        part.claim(piece, zlib.crc32(WEIGHTS[start:end]))
    part.write(b"torn", PIECE)
    part.close()
    _disown(part.claims_path)
    path, tally = pull(manager)
    assert is_right(path)
    assert tally.resumed_bytes == 3 * PIECE


def _disown(claims: Path) -> None:
    """As if the writer had died."""
    line, _, rest = claims.read_bytes().partition(b"\n")
    claims.write_bytes(line.replace(b'"pid":', b'"pid":9') + b"\n" + rest)


def test_a_living_writers_part_is_copied_not_taken(make: Make, server: hub_server.Hub) -> None:
    import zlib

    manager = make()
    manager.store.ensure()
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    other = pieces.open_part(manager.store, digest, len(WEIGHTS), PIECE)
    other.write(WEIGHTS[:PIECE], 0)
    other.claim(0, zlib.crc32(WEIGHTS[:PIECE]))
    path, tally = pull(manager)
    assert is_right(path)
    assert tally.resumed_bytes == PIECE
    assert other.path.exists()
