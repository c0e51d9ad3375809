"""Metrics pages built from facts: an engine that counts, under the names of any release, and a small server for such pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from aim_engine.kpi import measures
from loopback import http

EDGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


def family(measure: str, engine: str = "vllm", *, oldest: bool = False) -> str:
    """The name of a measure at an engine, newest or oldest."""
    own = [name for name in measures.BY_NAME[measure].families if name.startswith(f"{engine}:")]
    return own[-1 if oldest else 0]


class Engine:
    """Counts like a serving engine and writes its page."""

    def __init__(self, engine: str = "vllm", *, started_s: float | None = 1000.0, oldest: bool = False) -> None:
        self.engine, self.started_s, self.oldest = engine, started_s, oldest
        self.counters = {"output_tokens": 0.0, "input_tokens": 0.0, "requests": 0.0, "preemptions": 0.0}
        self.gauges = {"running": 0.0, "waiting": 0.0, "kv_usage": 0.0}
        self.seen: dict[str, list[float]] = {"ttft": [], "itl": [], "e2e": []}

    def serve(self, *, ttft_s: float, gaps: int, gap_s: float, prompt: int = 100) -> None:
        """One request from its arrival to its last token."""
        self.seen["ttft"].append(ttft_s)
        self.seen["itl"].extend([gap_s] * gaps)
        self.seen["e2e"].append(ttft_s + gaps * gap_s)
        self.counters["output_tokens"] += gaps + 1
        self.counters["input_tokens"] += prompt
        self.counters["requests"] += 1

    def restart(self, started_s: float) -> None:
        """All counts at zero again."""
        self.__init__(self.engine, started_s=started_s, oldest=self.oldest)  # type: ignore[misc]

    def page(self) -> str:
        """What it exports now."""
        labels = 'model_name="m"' if self.engine == "sglang" else 'engine="0",model_name="m"'
        lines = [] if self.started_s is None else [f"process_start_time_seconds {self.started_s}"]
        for name, value in self.counters.items():
            found = family(name, self.engine, oldest=self.oldest)
            extra = ',finished_reason="stop"' if found == "vllm:request_success" else ""
            lines.append(f"{found}_total{{{labels}{extra}}} {value}")
        for name, value in self.gauges.items():
            lines.append(f"{family(name, self.engine, oldest=self.oldest)}{{{labels}}} {value}")
        for name, values in self.seen.items():
            found = family(name, self.engine, oldest=self.oldest)
            lines += [
                f'{found}_bucket{{{labels},le="{edge}"}} {sum(value <= edge for value in values)}' for edge in EDGES
            ]
            lines.append(f'{found}_bucket{{{labels},le="+Inf"}} {len(values)}')
            lines += [f"{found}_sum{{{labels}}} {sum(values)}", f"{found}_count{{{labels}}} {len(values)}"]
        return "\n".join(lines) + "\n"


Reply = Callable[[BaseHTTPRequestHandler], None]


def text(content: str | bytes, *, status: int = 200, length: int | None = None) -> Reply:
    """A plain answer; `length` may lie."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        body = content if isinstance(content, bytes) else content.encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = handler.close_connection or length is not None

    return reply


def dripping(seconds: float) -> Reply:
    """A byte now and then."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            handler.wfile.write(b"#")
            handler.wfile.flush()
            time.sleep(0.05)
        handler.close_connection = True

    return reply


@contextmanager
def serving(pages: dict[str, Reply]) -> Iterator[str]:
    """A server of these paths on loopback; gives its address. Replies may be exchanged while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply = pages.get(self.path)
            try:
                if reply is None:
                    text("nothing here", status=404)(self)
                else:
                    reply(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with http(Handler) as address:
        yield address
