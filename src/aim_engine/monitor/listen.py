"""A small door to the monitor: ratings come in, figures go out for those who scrape.

    POST /feedback   {"deployment": "demo", "good": true, "comment": "...", "request_id": "..."}
    GET  /metrics    the figures of the last five minutes, as Prometheus reads them
    GET  /report     the same as one JSON document for each deployment

It listens on loopback only, since it asks for no key, and takes only JSON, which no foreign web page can send here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.deploy import endpoint as http
from aim_engine.errors import AimError, InvalidInput, Unreachable
from aim_engine.kpi import names
from aim_engine.monitor import views
from aim_engine.monitor.history import History
from aim_engine.monitor.ledger import Ledger, Rating
from aim_engine.planner.plan import Plan

_MOST_BYTES = 64 * 1024
_WINDOW_S = 300.0


class Posted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a rating."""

    deployment: str
    good: bool
    comment: str = ""
    request_id: str = ""


class Listener:
    """The server, in a thread of its own."""

    def __init__(self, where: str, state_dir: Path, plans: Mapping[str, Plan | None]) -> None:
        """`where` is HOST:PORT; port 0 takes a free one. `plans` may change while it listens. Raises: InvalidInput, Unreachable."""
        host, _, port = where.rpartition(":")
        if not port.isdecimal() or not host:
            raise InvalidInput(f"'{where}' is not an address to listen on", hint="for example 127.0.0.1:9470")
        if not http.is_local(host):
            raise InvalidInput(
                f"{host} is not this machine alone",
                why="whoever reaches the address could rate answers",
                hint=f"127.0.0.1:{port}, with a proxy before it that asks for a key",
            )
        handler = type("Handler", (_Handler,), {"state_dir": state_dir, "plans": plans})
        try:
            self._server = ThreadingHTTPServer((host, int(port)), handler)
        except (OSError, OverflowError) as err:
            raise Unreachable(f"{where} cannot be listened on", why=str(err), hint="choose another port") from err
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()
        self.address = f"http://{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state_dir: Path
    plans: Mapping[str, Plan | None]
    timeout = 10.0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        try:
            if self.path == "/metrics":
                self._answer(200, self._metrics(), "text/plain; version=0.0.4")
            elif self.path == "/report":
                documents = [each for _, each in self._documents()]
                self._answer(200, msgspec.json.encode(documents), "application/json")
            else:
                self._problem(404, "there is nothing here", "GET /metrics, GET /report, POST /feedback")
        except AimError as err:
            self._problem(503, str(err), err.hint or "")

    def do_POST(self) -> None:
        if self.path != "/feedback":
            self._problem(404, "there is nothing here", "POST /feedback")
            return
        if self.headers.get_content_type() != "application/json":
            self._problem(415, "a rating is JSON", "Content-Type: application/json")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            self._problem(413, f"a rating has a length, and at most {_MOST_BYTES} bytes", "shorten the comment")
            return
        try:
            posted = msgspec.json.decode(self.rfile.read(int(length)), type=Posted)
        except msgspec.DecodeError as err:
            self._problem(400, "that is no rating", str(err))
            return
        if posted.deployment not in self.plans:
            self._problem(404, f"there is no deployment '{posted.deployment}'", f"one of {', '.join(self.plans)}")
            return
        try:
            ledger = Ledger(self.state_dir / "ledger.db")
            try:
                ledger.rate(Rating(time_s=time.time(), **msgspec.structs.asdict(posted)))
            finally:
                ledger.close()
        except AimError as err:
            self._problem(503, str(err), err.hint or "")
            return
        self._answer(200, b'{"kept":true}\n', "application/json")

    def _documents(self) -> list[tuple[str, views.Document]]:
        history, ledger = History(self.state_dir / "history.db"), Ledger(self.state_dir / "ledger.db")
        now_s = time.time()
        try:
            return [
                (name, views.of_history(history, name, now_s - _WINDOW_S, now_s, plan=plan, ledger=ledger, points=0))
                for name, plan in dict(self.plans).items()
            ]
        finally:
            history.close()
            ledger.close()

    def _metrics(self) -> bytes:
        lines = []
        for kpi in names.ALL:
            samples = []
            for name, document in self._cached():
                value = document.figures.value(kpi.name)
                if value is not None:
                    label = name.replace("\\", r"\\").replace('"', r"\"")
                    samples.append(f'aim_engine_{kpi.name}{{deployment="{label}"}} {value:.12g}')
            if samples:
                lines += [
                    f"# HELP aim_engine_{kpi.name} {kpi.meaning}",
                    f"# TYPE aim_engine_{kpi.name} gauge",
                    *samples,
                ]
        return ("\n".join(lines) + "\n").encode()

    def _cached(self) -> list[tuple[str, views.Document]]:
        if not hasattr(self, "_kept"):
            self._kept = self._documents()
        return self._kept

    def _problem(self, status: int, title: str, detail: str) -> None:
        body = msgspec.json.encode({"status": status, "title": title, "detail": detail})
        self._answer(status, body, "application/problem+json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status >= 400:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Requests are not logged: comments may be private."""
