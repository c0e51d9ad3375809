"""Asking an engine: addresses, streamed answers, and the refusals that come instead."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aim_engine.deploy import chat, endpoint
from aim_engine.errors import InvalidInput, Unreachable


@contextmanager
def answering(status: int, body: bytes, kind: str = "text/event-stream") -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers every request so; with the headers it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def events(*documents: object) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in documents) + b"data: [DONE]\n\n"


def test_pieces_are_joined_and_tokens_taken_from_the_engine() -> None:
    body = events(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": " Par"}}]},
        {"choices": [{"delta": {"content": "is. "}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 9}},
    )
    with answering(200, body) as (address, _):
        answer = chat.ask(address, "m", "?")
    assert (answer.text, answer.tokens, answer.prompt_tokens, answer.finish_reason) == ("Paris.", 3, 9, "stop")


def test_thinking_counts_as_the_first_token_but_is_no_answer() -> None:
    body = events({"choices": [{"delta": {"reasoning_content": "hm"}}]}, {"choices": [{"delta": {"content": "42"}}]})
    with answering(200, body) as (address, _):
        assert chat.ask(address, "m", "?").text == "42"


def test_the_key_is_sent_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with answering(200, events({"choices": [{"delta": {"content": "x"}}]})) as (address, seen):
        chat.ask(address, "m", "?")
    assert seen[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"error": "Unauthorized"}', "Unauthorized"),
        (400, b'{"error": {"message": "too long"}}', "too long"),
        (500, b"Internal Server Error", "Internal Server Error"),
        (200, b'data: {"error": {"message": "engine died"}}\n\n', "engine died"),
    ],
)
def test_a_refusal_is_quoted(status: int, body: bytes, words: str) -> None:
    with answering(status, body) as (address, _), pytest.raises(Unreachable) as caught:
        chat.ask(address, "m", "?")
    assert words in str(caught.value.why)


def test_what_is_no_event_stream_is_said_so() -> None:
    with answering(200, b"data: {broken\n\n") as (address, _), pytest.raises(Unreachable, match="no JSON"):
        chat.ask(address, "m", "?")
    with answering(200, b"<html>", "text/html") as (address, _), pytest.raises(Unreachable, match="no list of models"):
        chat.models(address)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("http://host/", "http://host"),
        ("https://host:8443/v1/", "https://host:8443"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        (" host ", "http://host"),
        ("http://host/prefix", "http://host/prefix"),
    ],
)
def test_addresses_are_understood_in_every_usual_form(given: str, expected: str) -> None:
    assert endpoint.normalise(given) == expected


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput):
        endpoint.normalise("http://host:99999")


def test_a_server_on_all_addresses_is_asked_on_loopback() -> None:
    assert endpoint.base_url("0.0.0.0", 8000) == "http://127.0.0.1:8000"
    assert endpoint.base_url("::", 8000) == "http://[::1]:8000"
    assert endpoint.base_url("192.0.2.1", 8000) == "http://192.0.2.1:8000"
