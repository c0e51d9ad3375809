"""A program that behaves like a serving engine from the outside: the process under test of the runners.

    python fake_engine.py [serve MODEL] --port N [--host H] [--behave WORD ...]

It answers /health, /v1/models, /v1/chat/completions (streamed) and /metrics. --behave: `die` ends with a traceback
before it is ready; `hang` never becomes ready; `stubborn` ignores SIGTERM; `workers` starts two child processes that
ignore SIGTERM; `slow` becomes ready after 2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ANSWER = ("The ", "capital ", "of France ", "is Paris.")
WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Handler(BaseHTTPRequestHandler):
    model = "fake"
    requests = 0

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(b"", "text/plain")
        elif self.path == "/v1/models":
            self._send(json.dumps({"data": [{"id": self.model}]}).encode(), "application/json")
        elif self.path == "/metrics":
            n = Handler.requests
            lines = [
                f'vllm:generation_tokens_total{{model_name="{self.model}"}} {4 * n}',
                f'vllm:time_to_first_token_seconds_bucket{{le="0.1",model_name="{self.model}"}} {n}',
                f'vllm:time_to_first_token_seconds_bucket{{le="+Inf",model_name="{self.model}"}} {n}',
                f'vllm:time_to_first_token_seconds_sum{{model_name="{self.model}"}} {0.05 * n}',
                f'vllm:time_to_first_token_seconds_count{{model_name="{self.model}"}} {n}',
                f"process_start_time_seconds {time.time() - 10}",
            ]
            self._send("\n".join(lines).encode(), "text/plain")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != self.model:
            content = json.dumps({"error": {"message": f"The model `{body['model']}` does not exist."}}).encode()
            self._send(content, "application/json", 404)
            return
        Handler.requests += 1
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in ANSWER:
            self._event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
        self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"completion_tokens": len(ANSWER), "prompt_tokens": 7}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, document: object) -> None:
        self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")
        self.wfile.flush()

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def say(line: str) -> None:
    """One line of log."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("positional", nargs="*")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--behave", nargs="*", default=[])
    options, _ = parser.parse_known_args()
    Handler.model = options.positional[-1] if options.positional else "fake"
    say(f"INFO 11-23 14:00:00 [core.py:133] Starting to load model {Handler.model}...")
    if "stubborn" in options.behave:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "workers" in options.behave:
        for _ in range(2):
            subprocess.Popen([sys.executable, "-c", WORKER])
    if "die" in options.behave:
        say("(Worker pid=7) INFO 11-23 14:00:01 [cpu_worker.py:1] about to fail")
        raise ValueError(
            "To serve at least one request with the model's max seq len (8192), (4.00 GiB KV cache is needed, which is "
            "larger than the available KV cache memory (1.00 GiB). Based on the available memory, the estimated maximum "
            "model length is 2048. "
        )
    if "hang" in options.behave:
        while True:
            time.sleep(1)
    if "slow" in options.behave:
        time.sleep(2)
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    if "stubborn" not in options.behave:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    say("INFO:     Application startup complete.")
    say(f"environment: {os.environ.get('FAKE', '-')} {os.environ.get('PYTHONPATH', '-')} cwd {Path.cwd()}")
    server.serve_forever()


if __name__ == "__main__":
    main()
