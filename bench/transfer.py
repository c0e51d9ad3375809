"""Fetches the same model with AIM Engine and with the hub's own client, from one server with TLS on this machine, in turns.

    python bench/transfer.py [--json] [--rounds N] [--files N]

Each fetch is a whole process into an empty cache. AIM Engine proves every byte by its sha256 meanwhile; the hub's client compares
sizes. Judged are the medians of all rounds: rate on the clock, and processor time per byte without that of the interpreter's start.
The server is a process of its own; what it takes is shown, so that one sees whether the clients wait for it. Exits 1 when a promise of `bench/README.md` is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

LEAST_RATE = 1.4
MOST_PROCESSOR = 0.9
MODEL_BYTES = 1 << 30
OURS = """
import sys
from aim_engine.cache.manager import ModelCacheManager
place = sys.argv[1]
manager = ModelCacheManager(place + "/cache", hub_cache=place + "/none", index_dir=place + "/index")
if len(sys.argv) > 2:
    manager.download_model("org/model")
"""
THEIRS = """
import sys
from huggingface_hub import snapshot_download
if len(sys.argv) > 2:
    snapshot_download("org/model", cache_dir=sys.argv[1])
"""
SERVER = """
import ssl, sys
sys.path.insert(0, sys.argv[1])
import hub_server
hub = hub_server.Hub()
count, size = int(sys.argv[3]), int(sys.argv[4])
hub.models["org/model"] = {f"model-{n:05d}.safetensors": hub_server.safetensors(size, n) for n in range(count)}
hub.models["org/model"]["config.json"] = b"{}"
for content in hub.models["org/model"].values():  # known once, so that no client waits for it
    hub_server._sha256(content), hub_server._oid(content)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
with hub_server.serving(hub, context) as address:
    print(address, flush=True)
    sys.stdin.read()
"""


class Took(NamedTuple):
    """One fetch."""

    clock_s: float
    processor_s: float
    server_s: float
    """Processor time of the server meanwhile."""


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=4, help="weight files of the model, of 1 GiB together")
    chosen = parser.parse_args()
    memory = Path("/dev/shm")
    file_bytes = MODEL_BYTES // chosen.files
    total = chosen.files * file_bytes
    place = tempfile.mkdtemp(dir=memory if shutil.disk_usage(memory).free > 6 * total else None)
    crowded = os.getloadavg()[0] > (os.cpu_count() or 1)
    found: dict[str, list[Took]] = {"aim-engine": [], "huggingface_hub": []}
    try:
        with serving(Path(place), chosen.files, file_bytes) as (environment, server):
            for _ in range(chosen.rounds):
                for name, program in (("aim-engine", OURS), ("huggingface_hub", THEIRS)):
                    start = fetch(program, Path(place), environment, server, 0)
                    whole = fetch(program, Path(place), environment, server, total)
                    found[name].append(Took(*(each - least for each, least in zip(whole, start, strict=True))))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    rate = {name: total / statistics.median(each.clock_s for each in took) / 1e9 for name, took in found.items()}
    processor = {
        name: statistics.median(each.processor_s for each in took) / (total / 1e9) for name, took in found.items()
    }
    server_s = {name: statistics.median(each.server_s for each in took) / (total / 1e9) for name, took in found.items()}
    faster = rate["aim-engine"] / rate["huggingface_hub"]
    cheaper = processor["aim-engine"] / processor["huggingface_hub"]
    kept = (crowded or faster >= LEAST_RATE) and cheaper <= MOST_PROCESSOR
    if chosen.json:
        document = {
            "rate_gb_s": rate,
            "processor_s_per_gb": processor,
            "server_s_per_gb": server_s,
            "faster": faster,
            "cheaper": cheaper,
        }
        print(json.dumps(document, indent=2))
    else:
        load = os.getloadavg()[0]
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}; {total / 1e9:.2f} GB in "
            f"{chosen.files} files over TLS, median of {chosen.rounds}"
        )
        for name, proved in (("aim-engine", "sha256 of every file"), ("huggingface_hub", "sizes only")):
            print(
                f"  {name:<16} {rate[name]:.2f} GB/s   {processor[name]:.2f} processor s per GB   "
                f"the server {server_s[name]:.2f}   checks {proved}"
            )
        print(
            f"  {faster:.2f} times the rate (at least {LEAST_RATE}), {cheaper:.2f} times the processor (at most {MOST_PROCESSOR})"
        )
        if crowded:
            print("  other work takes every core, so both wait for it alike: the rate is shown, not judged")
    if not kept:
        print("broken: fetching over TLS against the hub's own client")
    return 0 if kept else 1


@contextmanager
def serving(place: Path, files: int, file_bytes: int) -> Iterator[tuple[dict[str, str], int]]:
    """A hub with TLS in a process of its own; gives the environment in which clients find and trust it, and its number."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(place / "authority.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(place / "server.pem"))
    ssl.create_default_context(cafile=str(place / "authority.pem"))
    tests = str(Path(__file__).parents[1] / "tests")
    command = [sys.executable, "-c", SERVER, tests, str(place / "server.pem"), str(files), str(file_bytes)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": address,
            "HF_HUB_DISABLE_XET": "1",  # the server has no chunk store; both clients take plain files
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": str(place / "home"),
            "SSL_CERT_FILE": str(place / "authority.pem"),
        }
        yield environment, server.pid
    finally:
        server.communicate()


def fetch(program: str, place: Path, environment: dict[str, str], server: int, total: int) -> Took:
    """One process that fetches everything, or only starts where `total` is 0. Raises: CalledProcessError."""
    target = Path(tempfile.mkdtemp(dir=place))
    command = [sys.executable, "-c", program, str(target), *(["fetch"] if total else [])]
    served_s, started = processor_s(server), time.perf_counter()
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    clock_s = time.perf_counter() - started
    served_s = processor_s(server) - served_s
    process.returncode = os.waitstatus_to_exitcode(status)
    stored = sum(
        each.stat().st_size
        for each in target.rglob("*")
        if each.is_file() and not each.is_symlink() and each.stat().st_size > 1 << 20
    )
    shutil.rmtree(target)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    if stored < total:
        raise SystemExit("the model did not arrive")
    return Took(clock_s, usage.ru_utime + usage.ru_stime, served_s)


def processor_s(process: int) -> float:
    """Processor time that a process took so far. Source: proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
