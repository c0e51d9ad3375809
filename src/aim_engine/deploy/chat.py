"""Asking a served model a question, and how long the answer took."""

from __future__ import annotations

import json
import os
import time

import msgspec

from aim_engine.deploy import endpoint as http
from aim_engine.errors import Unreachable


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said. Times are the client's own, from sending the request."""

    text: str
    ttft_ms: float
    """Until the first piece of text."""
    total_ms: float
    tokens: int
    """Output tokens as the engine counts them."""
    prompt_tokens: int
    finish_reason: str | None


def models(endpoint: str, *, timeout_s: float = 10.0) -> tuple[str, ...]:
    """Names under which a server answers. Raises: Unreachable."""
    url = f"{http.normalise(endpoint)}/v1/models"
    reply = http.get(url, timeout_s=timeout_s, headers=_authorisation())
    if reply.status != 200:
        raise _refused(url, reply.status, reply.text)
    try:
        return tuple(str(each["id"]) for each in json.loads(reply.text)["data"])
    except (ValueError, KeyError, TypeError) as err:
        raise Unreachable(f"{url} is no list of models", why="this is not a serving engine's answer") from err


def ask(
    endpoint: str,
    model: str,
    question: str,
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    timeout_s: float = 120.0,
) -> Answer:
    """One question to a chat model, streamed so that the first token can be timed. Raises: Unreachable.

    An API key is taken from VLLM_API_KEY when the server wants one.
    """
    url = f"{http.normalise(endpoint)}/v1/chat/completions"
    request = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    first: float | None = None
    text, reason, status = "", None, 200
    usage: dict[str, int] = {}
    refusal: list[str] = []
    for status, line in http.stream(url, request, timeout_s=timeout_s, headers=_authorisation()):
        if status != 200:
            refusal.append(line)
            continue
        if not line.startswith("data:") or line.strip() == "data: [DONE]":
            continue
        try:
            event = json.loads(line.removeprefix("data:"))
        except ValueError as err:
            raise Unreachable(f"{url} sent an event that is no JSON", why=line[:200]) from err
        if "error" in event:
            raise _refused(url, 200, line)
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            piece = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
            if piece and first is None:
                first = time.perf_counter()
            text += delta.get("content") or ""
            reason = choice.get("finish_reason") or reason
    ended = time.perf_counter()
    if refusal:
        raise _refused(url, status, "\n".join(refusal))
    return Answer(
        text=text.strip(),
        ttft_ms=((first or ended) - started) * 1000,
        total_ms=(ended - started) * 1000,
        tokens=int(usage.get("completion_tokens", 0)),
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        finish_reason=reason,
    )


def _authorisation() -> dict[str, str]:
    key = os.environ.get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _refused(url: str, status: int, body: str) -> Unreachable:
    why = body.strip()[:300]
    try:
        document = json.loads(body.removeprefix("data:"))
        error = document.get("error", document)
        why = str(error.get("message", why)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        pass  # not JSON: the body itself is the reason
    hint = {401: "set VLLM_API_KEY", 404: "ask the server for its names: GET /v1/models"}.get(status)
    return Unreachable(f"{url} refused the question ({status})", why=why, hint=hint)
