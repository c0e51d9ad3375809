"""The store is read little by little, and what decays in it is found, told and mended."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import hub_server
from aim_engine import backend
from aim_engine.cache import holds, pack, process, scrub, timers
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cli.cache import cache
from aim_engine.errors import InvalidInput
from aim_engine.render import check_kubernetes
from caches import MODEL, WEIGHTS, Make, checkpoint

DAY_S = 86_400.0


def decay(path: Path) -> None:
    """One bit turns, and nothing tells."""
    about = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.fixture
def filled(make: Make, server: hub_server.Hub) -> ModelCacheManager:
    for number in range(20):
        server.add(
            f"org/m{number}",
            config__json=b'{"n": %d}' % number,
            model__safetensors=hub_server.safetensors(30_000, number),
        )
    manager = make()
    for number in range(20):
        manager.download_model(f"org/m{number}")
    return manager


def blobs(manager: ModelCacheManager) -> list[Path]:
    return sorted(manager.store.path("blobs", "sha256").iterdir())


def test_every_file_is_read_once_in_a_cycle_whoever_reads(
    filled: ModelCacheManager, make: Make, tmp_path: Path
) -> None:
    start_s, read_files, read_bytes = filled.store.now_s(), 0, 0
    total = sum(path.stat().st_size for path in blobs(filled))
    for day in range(60):
        other = make(index_dir=tmp_path / f"index-{day % 3}")  # other nodes, or an index that was lost
        done = scrub.scrub(other, now_s=start_s + day * DAY_S)
        other.index.close()
        read_files, read_bytes = read_files + done.files, read_bytes + done.read_bytes
    assert read_bytes == pytest.approx(2 * total, abs=31_000)
    assert read_files == pytest.approx(2 * len(blobs(filled)), abs=2)


def test_whatever_decays_is_found_within_a_cycle_and_not_all_in_one_day(filled: ModelCacheManager) -> None:
    start_s, found, days = filled.store.now_s(), [], []
    doomed = [path for path in blobs(filled) if filled.index.users(path.name)][::7]
    for path in doomed:
        decay(path)
    for day in range(31):
        done = scrub.scrub(filled, now_s=start_s + day * DAY_S)
        found += [(each.model_id, each.path) for each in done.damaged]
        days.append(len(done.damaged))
    assert len(set(found)) == len(found) == len(doomed) == 6
    assert max(days) <= 2
    assert not any(path.exists() for path in doomed)
    assert filled.index.counters()["damaged_files"] == 6


def test_a_manifest_that_decays_is_written_anew(make: Make) -> None:
    manager = make()
    manager.download_model(MODEL)
    [document] = [path for path in blobs(manager) if b"vnd.oci.image.manifest" in path.read_bytes()]
    decay(document)
    assert scrub.scrub(manager, cycle_days=1).damaged == ()
    assert hashlib.sha256(document.read_bytes()).hexdigest() == document.name


def test_a_run_that_is_cut_short_leaves_the_rest_to_the_next(filled: ModelCacheManager, make: Make) -> None:
    start_s = filled.store.now_s()
    assert scrub.scrub(filled, now_s=start_s, most_s=0).left_bytes > 0
    later_s = start_s + 15 * DAY_S  # the machine was off
    first = scrub.scrub(filled, now_s=later_s)
    total = sum(path.stat().st_size for path in blobs(filled))
    assert first.read_bytes == pytest.approx(16 / 30 * total, abs=31_000)
    assert scrub.scrub(filled, now_s=later_s).files == 0
    assert scrub.scrub(filled, now_s=later_s + 400 * DAY_S).read_bytes == pytest.approx(total, abs=1)
    assert scrub.scrub(filled, now_s=start_s).files == 0  # a clock that went back


def test_damage_names_who_serves_it_and_only_that_file_comes_again(
    make: Make, server: hub_server.Hub, tmp_path: Path
) -> None:
    manager = make()
    place = manager.download_model(MODEL)
    mine = holds.Lease(model_id=MODEL, commit=hub_server.COMMIT, holder="chat", by=process.me())
    holds.lease(manager.store, mine)
    decay(manager.store.blob(hub_server._sha256(WEIGHTS)))
    said: list[str] = []
    sent = server.sent_bytes
    done = scrub.scrub(manager, cycle_days=1, mend=True, tell=said.append)
    [damage] = done.damaged
    assert (damage.model_id, damage.path, damage.used_by, damage.mended) == (
        MODEL,
        "model.safetensors",
        ("chat",),
        True,
    )
    assert done.fine
    assert any("chat serves" in each for each in said)
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    assert len(WEIGHTS) <= server.sent_bytes - sent < len(WEIGHTS) + 5_000
    assert len(list(manager.store.path("quarantine").iterdir())) == 1


def test_what_cannot_be_fetched_again_is_told_and_stays_set_aside(make: Make, server: hub_server.Hub) -> None:
    manager = make()
    manager.download_model(MODEL)
    decay(manager.store.blob(hub_server._sha256(WEIGHTS)))
    server.fail_api = 404
    said: list[str] = []
    done = scrub.scrub(manager, cycle_days=1, mend=True, tell=said.append)
    assert not done.fine
    assert any("cannot be fetched again" in each for each in said)
    assert not manager.is_cached(MODEL)


def test_packed_weights_are_read_too(make: Make, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_SMALLEST_BYTES", 1000)
    server.models[MODEL]["model.safetensors"] = checkpoint({"w": ("BF16", b"\x80\x3f\x81\x3f" * 20_000)})
    manager = make()
    manager.download_model(MODEL)
    choices = pack.choose(manager.store, manager.index, idle_days=0, models=(MODEL,), in_use=set())
    assert pack.apply(choices, manager.store, manager.index).files == 1
    [packed] = manager.store.path("packed").glob("*.planes")
    assert scrub.scrub(manager, cycle_days=1).damaged == ()
    decay(packed)
    done = scrub.scrub(manager, cycle_days=1, now_s=manager.store.now_s() + 2 * DAY_S, mend=True)
    assert [(each.path, each.mended) for each in done.damaged] == [("model.safetensors", True)]


def test_the_command_says_no_when_something_is_damaged(
    make: Make, server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CACHE_DIR": "cache", "STATE_DIR": "state"}.items():
        monkeypatch.setenv(f"AIM_ENGINE_{name}", str(tmp_path / value))
    monkeypatch.setattr(os, "nice", lambda _: 0)  # this process goes on with other tests
    manager = make()
    manager.download_model(MODEL)
    fine = CliRunner().invoke(cache, ["scrub", "--cycle", "1"], standalone_mode=False)
    assert (fine.return_value, "files read" in fine.stdout) == (0, True)
    manager.store.path("scrub.json").unlink()
    decay(manager.store.blob(hub_server._sha256(WEIGHTS)))
    bad = CliRunner().invoke(cache, ["scrub", "--cycle", "1"], standalone_mode=False)
    assert bad.return_value == 1
    assert f"{MODEL}@{hub_server.COMMIT[:12]} model.safetensors: damaged" in bad.stdout


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    written = timers.systemd(str(tmp_path / "a b%"), "/var/lib/aim", ("--cycle", "30"))
    for name, content in written.items():
        (tmp_path / name).write_text(content)
    assert 'Environment="AIM_ENGINE_CACHE_DIR=' in written["aim-engine-cache-scrub.service"]
    assert "a b%%" in written["aim-engine-cache-scrub.service"]
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: apt-get install systemd")
    paths = [str(tmp_path / name) for name in written]
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", *paths], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_kubernetes_takes_the_cron_job(tmp_path: Path) -> None:
    image = f"registry.example/aim-engine@sha256:{'1' * 64}"
    [content] = timers.kubernetes("qwen-cache", image, ("--mend",)).values()
    document = yaml.safe_load(content)
    found = check_kubernetes.check([document], backend.get("vllm"), "1.36")
    assert [each for each in found if each.severity != "info"] == []
    pod = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == ["aim-engine", "cache", "scrub", "--mend"]
    assert pod["volumes"][1] == {"name": "cache", "persistentVolumeClaim": {"claimName": "qwen-cache"}}
    with pytest.raises(InvalidInput, match="may become another one"):
        timers.kubernetes("qwen-cache", "registry.example/aim-engine:1")
    root = yaml.safe_load(next(iter(timers.kubernetes("c", image, user=0).values())))
    assert "runAsNonRoot" not in root["spec"]["jobTemplate"]["spec"]["template"]["spec"]["securityContext"]
