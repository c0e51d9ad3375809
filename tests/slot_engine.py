"""A program that serves as a real engine does from the outside: so many requests at once, the others wait, and its page says so.

python slot_engine.py serve MODEL --port N [--host H] [--max-num-seqs N]

With SLOT_ENGINE_DIES in its environment it does not start.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import metric_pages

FIRST_S, GAP_S, TOKENS = 0.03, 0.005, 6


class Handler(BaseHTTPRequestHandler):
    model = "m"
    slots = threading.Semaphore(1)
    lock = threading.Lock()
    engine = metric_pages.Engine(started_s=time.time())

    def do_GET(self) -> None:
        if self.path == "/metrics":
            with self.lock:
                content = self.engine.page().encode()
        elif self.path == "/v1/models":
            content = json.dumps({"data": [{"id": self.model}]}).encode()
        else:
            content = b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        came = time.monotonic()
        self._count("waiting", 1)
        with self.slots:
            self._count("waiting", -1)
            self._count("running", 1)
            waited = time.monotonic() - came
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            time.sleep(FIRST_S)
            for _ in range(TOKENS):
                self._event({"choices": [{"delta": {"content": "a "}, "finish_reason": None}]})
                time.sleep(GAP_S)
            self._count("running", -1)
        with self.lock:
            self.engine.serve(ttft_s=waited + FIRST_S, gaps=TOKENS - 1, gap_s=GAP_S)
            self.engine.seen["queue"].append(waited)
        self._event({"choices": [], "usage": {"completion_tokens": TOKENS, "prompt_tokens": 100}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _count(self, gauge: str, change: int) -> None:
        with self.lock:
            self.engine.gauges[gauge] += change

    def _event(self, document: object) -> None:
        self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("positional", nargs="*")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--max-num-seqs", type=int, default=4)
    options, _ = parser.parse_known_args()
    if "SLOT_ENGINE_DIES" in os.environ:
        sys.stdout.write("ValueError: told to die\n")
        raise SystemExit(1)
    Handler.model = options.positional[-1] if options.positional else "m"
    Handler.slots = threading.Semaphore(options.max_num_seqs)
    Handler.engine.seen["queue"] = []
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server = Server((options.host, options.port), Handler)
    sys.stdout.write("INFO:     Application startup complete.\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
