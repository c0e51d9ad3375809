"""A small Xet storage for tests: what the hub's Xet client asks for, over the models of a `hub_server`, and ways in which it fails.

A file is cut into chunks of 64 KiB, which lie in xorbs; a reconstruction says which chunks of which xorbs a range of the file is, and where they are.
Source: huggingface/xet-core @af1a3ff9 xet_client/src/cas_types/mod.rs (QueryReconstructionResponseV2), cas_client/remote_client.rs,
xet_core_structures/src/xorb_object/xorb_chunk_format.rs (XorbChunkHeader).
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import hub_server
import loopback

CHUNK = 64 * 1024
CHUNKS_PER_XORB = 32
TOKEN = "xet-token-of-the-test"


class Xet:
    """How the storage behaves."""

    def __init__(self, hub: hub_server.Hub) -> None:
        self.hub = hub
        self.flip = 0
        """So many of the next xorbs have one bit wrong."""
        self.silent_after: int | None = None
        """Xorbs after which it says nothing more, for ever."""
        self.refuse = False
        """No token is good."""
        self.rate_bytes_s: float | None = None
        self.reconstructions: list[str] = []
        """The ranges that were asked for."""
        self.posted: list[str] = []
        self.served = 0
        self.sent_bytes = 0
        self.agents: set[str] = set()
        self.guard = threading.Lock()

    def content(self, xet_hash: str) -> bytes | None:
        """The file that goes by this hash."""
        for files in self.hub.models.values():
            for name, content in files.items():
                if name.endswith(hub_server.LARGE) and hub_server.xet_hash(content) == xet_hash:
                    return content
        return None


def _xorb(content: bytes, number: int) -> bytes:
    """One xorb of a file: each chunk behind a header of version, length, scheme (0: none) and length."""
    start = number * CHUNKS_PER_XORB * CHUNK
    out = bytearray()
    for at in range(start, min(start + CHUNKS_PER_XORB * CHUNK, len(content)), CHUNK):
        chunk = content[at : at + CHUNK]
        length = struct.pack("<I", len(chunk))[:3]
        out += b"\0" + length + b"\0" + length + chunk
    return bytes(out)


@contextmanager
def serving(hub: hub_server.Hub) -> Iterator[Xet]:
    """The storage beside a hub that is served; the hub gives tokens for it meanwhile."""
    xet = Xet(hub)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            words = self.path.strip("/").split("/")
            with xet.guard:
                xet.agents.add(self.headers.get("User-Agent", ""))
            if words[:2] == ["v2", "reconstructions"]:
                self._reconstruct(words[2])
            elif words[0] == "xorbs":
                self._send_xorb(words[1], int(words[2]))
            else:
                self._send(404, b"")

        def _reconstruct(self, file_hash: str) -> None:
            if xet.refuse or self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(401, b"")
                return
            content = xet.content(file_hash)
            if content is None:
                self._send(404, b"")
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            start, end = (int(asked[1]), min(int(asked[2]) + 1, len(content))) if asked else (0, len(content))
            with xet.guard:
                xet.reconstructions.append(f"{start}-{end}")
            if start >= end:
                self._send(416, b"")
                return
            terms, xorbs = [], {}
            for number in range(start // CHUNK // CHUNKS_PER_XORB, (end - 1) // CHUNK // CHUNKS_PER_XORB + 1):
                base = number * CHUNKS_PER_XORB
                first = max(start // CHUNK, base) - base
                last = min((end - 1) // CHUNK + 1, base + CHUNKS_PER_XORB) - base
                length = min((base + last) * CHUNK, len(content)) - (base + first) * CHUNK
                name = hashlib.sha256(f"{file_hash} {number}".encode()).hexdigest()
                terms.append({"hash": name, "unpacked_length": length, "range": {"start": first, "end": last}})
                spans = {"start": first * (CHUNK + 8), "end": first * (CHUNK + 8) + length + 8 * (last - first) - 1}
                where = {"chunks": {"start": first, "end": last}, "bytes": spans}
                xorbs[name] = [{"url": f"{address}/xorbs/{file_hash}/{number}", "ranges": [where]}]
            document = {"offset_into_first_range": start % CHUNK, "terms": terms, "xorbs": xorbs}
            self._send(200, json.dumps(document).encode())

        def _send_xorb(self, file_hash: str, number: int) -> None:
            content = xet.content(file_hash)
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            assert content is not None
            assert asked is not None
            payload = bytearray(_xorb(content, number)[int(asked[1]) : int(asked[2]) + 1])
            with xet.guard:
                xet.served += 1
                silent = xet.silent_after is not None and xet.served > xet.silent_after
                if xet.flip:
                    xet.flip -= 1
                    payload[len(payload) // 2 + 100] ^= 4  # in a chunk, not in a header between two
            if silent:
                time.sleep(60)
                return
            if xet.rate_bytes_s is not None:
                time.sleep(len(payload) / xet.rate_bytes_s)
            self._send(206, bytes(payload))
            with xet.guard:
                xet.sent_bytes += len(payload)

        def do_POST(self) -> None:
            with xet.guard:
                xet.posted.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self._send(404, b"")

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with loopback.http(Handler, loopback.Patient) as address:
        hub.xet = (address, TOKEN)
        try:
            yield xet
        finally:
            hub.xet = None
