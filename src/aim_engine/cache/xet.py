"""Files that a hub keeps in Xet storage, through the hub's own library, in a process of its own.

The library cuts files into chunks that lie in shared containers and puts them together again. It takes gigabytes of buffers, may hang, and passes
on what arrives without holding it against the file's checksum. So it runs apart: its memory is bounded, it is killed when it brings nothing, and
its bytes come over a pipe like those of any connection: paced, kept in pieces, gone on with after a failure, and proved by their sha256 before they count.

It is asked first for files that the hub's plain addresses may refuse for their size, or for all large files on request; else last, when
the plain address is refused. Source: huggingface_hub 2.4 constants.py MAX_HTTP_DOWNLOAD_SIZE, utils/_xet.py; hf-xet 1.8.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urljoin

from aim_engine.cache.faults import Unavailable

if TYPE_CHECKING:
    from aim_engine.cache.transport import Client

PLAIN_MOST_BYTES = 50 * 1000**3
"""Larger files the hub's client refuses to fetch from the plain address."""
LEAST_BYTES = 16 << 20
"""Smaller ones are not worth a process."""
MEMORY_BYTES = 4 << 30
"""The most that the library's process may allocate; it fails beyond that, and the plain address is tried."""
_BUFFER_BYTES = 512 << 20
_SETTINGS: dict[str, object] = {
    "telemetry.enabled": False,
    "client.connect_timeout": dt.timedelta(seconds=10),
    "client.read_timeout": dt.timedelta(seconds=20),
    "client.retry_base_delay": dt.timedelta(seconds=1),
    "client.retry_max_attempts": 3,
    "reconstruction.download_buffer_size": _BUFFER_BYTES,
    "reconstruction.download_buffer_perfile_size": _BUFFER_BYTES // 4,
    "reconstruction.download_buffer_limit": _BUFFER_BYTES,
    "reconstruction.min_prefetch_buffer": _BUFFER_BYTES // 2,
}
"""Bounds on its buffers, which are 2 to 6 GB by default, and on its patience, which is 300 s. It reports transfers to the hub by default."""
_SCHEME = "xet+"
_RANGE = re.compile(r"bytes=(\d+)-")
_HASH = re.compile(r"[0-9a-f]{64}")
_LINK = re.compile(r'<([^>]+)>\s*;\s*rel="?xet-auth"?')
_PR_SET_PDEATHSIG = 1
_WAIT_S = 5.0


def is_installed() -> bool:
    """May the library be used here? The hub client's own variable forbids it too."""
    if os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    return importlib.util.find_spec("hf_xet") is not None


def address(plain: str) -> str:
    """The address under which a file of a hub comes through the library."""
    return _SCHEME + plain


def is_address(url: str) -> bool:
    """Does this come through the library?"""
    return url.startswith(_SCHEME)


def goes_first(size_bytes: int, *, wanted: bool) -> bool:
    """Should the library be tried before the plain address?"""
    return size_bytes > PLAIN_MOST_BYTES or (wanted and size_bytes >= LEAST_BYTES)


def remedy(err: Unavailable) -> Unavailable:
    """The same error with what helps when a hub refuses the plain address of a file in Xet storage."""
    if is_installed():
        return err
    return Unavailable(
        err.what,
        why=f"{err.why}; the hub keeps this file in Xet storage, and may give it out only from there",
        hint="pip install 'aim-engine[xet]', and leave HF_HUB_DISABLE_XET unset",
    )


class Stream:
    """What the library's process writes, read as a response is."""

    status = 200

    def __init__(self, told: Mapping[str, Any], start: int, size_bytes: int, stall_s: float) -> None:
        """`told` is what the process needs: the file, where from, and a token for that, which it reads and nobody sees."""
        self.headers: Mapping[str, str] = {"Content-Length": str(size_bytes)}
        if start:
            self.status = 206
            self.headers = {"Content-Range": f"bytes {start}-{size_bytes - 1}/{size_bytes}"}
        self._left = size_bytes - start
        self._stall_s = stall_s
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aim_engine.cache.xet"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(),
        )  # fmt: skip
        assert self._process.stdin is not None  # noqa: S101 - as asked for above
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:  # it says why when it is read
            pipe.write(json.dumps({**told, "start": start, "size": size_bytes}).encode())

    def read1(self, amt: int) -> bytes:
        """Some of the next bytes; none at the end. Raises: TryAgain when there should be more."""
        from aim_engine.cache.transport import TryAgain

        if self._left == 0 or amt <= 0:
            return b""
        pipe: Any = self._process.stdout
        if not select.select([pipe], [], [], self._stall_s)[0]:
            self.close()
            raise TryAgain(f"Xet storage brought nothing for {self._stall_s:.0f} s")
        content = os.read(pipe.fileno(), min(amt, self._left))
        if not content:
            raise TryAgain(f"Xet storage: {self._last_words()}")
        self._left -= len(content)
        return content

    def read(self, amt: int) -> bytes:
        """The next so many bytes; fewer at the end. Raises: TryAgain."""
        parts, left = [], amt
        while left and (content := self.read1(left)):
            parts.append(content)
            left -= len(content)
        return b"".join(parts)

    def shutdown(self) -> None:
        """End the process, which wakes whoever reads from it."""
        self._process.kill()

    def close(self) -> None:
        """End the process and let go of it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _last_words(self) -> str:
        """Why the process ended, without what an address or a header may hold."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_WAIT_S)
        stderr = self._process.stderr
        said = stderr.read().decode(errors="replace").strip().splitlines() if stderr is not None else []
        if not said:
            return f"its process ended with {self._process.poll()}"
        return re.sub(r"\?\S*", "", said[-1])[:200]


@contextlib.contextmanager
def opened(client: Client, url: str, asked: str | None) -> Iterator[Stream | None]:
    """The file of an address of `address`, from the start of a Range header on; None when its hub does not keep it in Xet storage.

    Raises: TryAgain, Unsafe.
    """
    from aim_engine.cache.transport import TryAgain

    plain = url.removeprefix(_SCHEME)
    with client.open(plain, method="HEAD") as answer:
        told = answer.first
    route = _LINK.search(told.get("link", ""))
    place = route[1] if route is not None else told.get("x-xet-refresh-route", "")
    name, size = told.get("x-xet-hash", ""), told.get("x-linked-size", "")
    if not place or not _HASH.fullmatch(name) or not size.isdigit():
        yield None
        return
    with client.open(_at_the_same_hub(place, plain)) as answer:
        if answer.status != 200:
            raise TryAgain(f"the hub refuses a token for its Xet storage: status {answer.status}")
        token, endpoint = answer.header("X-Xet-Access-Token"), answer.header("X-Xet-Cas-Url")
        expiry = answer.header("X-Xet-Token-Expiration") or ""
    if not token or not endpoint or not expiry.isdigit():
        raise TryAgain("the hub gives no token for its Xet storage")
    client.require_safe(plain, plain, endpoint)
    match = _RANGE.match(asked or "")
    needed = {"hash": name, "endpoint": endpoint, "token": token, "expiry": int(expiry)}
    stream = Stream(needed, int(match[1]) if match is not None else 0, int(size), client.patience.stall_s)
    try:
        yield stream
    finally:
        stream.close()


def _at_the_same_hub(place: str, plain: str) -> str:
    """Where to ask for a token: a mirror names the hub behind it, which may not be reached. Source: huggingface_hub utils/_xet.py."""
    from aim_engine.cache.hub import ENDPOINT

    return urljoin(plain, place.removeprefix(ENDPOINT)) if place.startswith(ENDPOINT + "/") else urljoin(plain, place)


def _environment() -> dict[str, str]:
    """The user's, without the hub's token, which the library does not need, and without what would undo the bounds."""
    dropped = ("HF_XET_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    kept = {each: said for each, said in os.environ.items() if each == "HF_XET_CACHE" or not each.startswith(dropped)}
    return kept | {"HF_XET_LOG_DEST": "", "RUST_LOG": "error"}


def _main(source: BinaryIO, target: BinaryIO) -> None:
    """The library's process: reads what it needs, writes the file."""
    import ctypes
    import resource
    import signal

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # whoever reads may be killed
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    told = json.loads(source.read())
    import hf_xet

    settings = hf_xet.XetConfig()
    for name, value in _SETTINGS.items():
        settings = settings.with_config(name, value)
    group = hf_xet.XetSession(settings).new_download_stream_group(
        endpoint=told["endpoint"], token=told["token"], token_expiry_unix_secs=told["expiry"]
    )
    file = hf_xet.XetFileInfo(told["hash"], told["size"])
    target.writelines(group.download_stream(file, start=told["start"], end=told["size"]))
    target.flush()


if __name__ == "__main__":
    try:
        _main(sys.stdin.buffer, sys.stdout.buffer)
    except Exception as err:  # noqa: BLE001 - its last words, for the process that reads them
        sys.exit(f"{type(err).__name__}: {err}")
