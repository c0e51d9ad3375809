"""What is wrong with an answer, as far as a program can tell: empty, cut off, repeated, refused, not the JSON that was asked for.

These checks find breakage, such as a wrong scale of an fp8 cache or a wrong chat template; they do not measure how clever a model is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from aim_engine import facts
from aim_engine.deploy import chat
from aim_engine.errors import Unreachable
from aim_engine.monitor.ledger import Rating

Flaw = Literal[
    "empty", "cut off", "repeated", "refused", "not JSON", "wrong tool call", "garbled", "wrong", "no answer"
]
_REFUSALS = re.compile(
    r"^\W*(?:i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|as an ai|i can(?:no|['’])t (?:help|assist|do)|i['’]?m (?:not able|unable))",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(?P<inner>.*?)\n?```\s*$", re.DOTALL | re.IGNORECASE)
_REPEATS = 4
"""A stretch of words that comes so often in a row is a loop."""
_GARBLED_FRACTION = 0.2


class Probe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question whose answer can be checked."""

    question: str
    contains: str | None = None
    """Regular expression that a right answer has."""
    json: bool = False
    max_tokens: int = 64


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A probe and what came back."""

    question: str
    answer: str
    flaws: tuple[Flaw, ...]
    ttft_ms: float | None = None


def flaws(
    text: str,
    *,
    finish_reason: str | None = None,
    wants_json: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_call: Mapping[str, Any] | None = None,
) -> tuple[Flaw, ...]:
    """What is wrong with an answer; empty when nothing is seen. `tools` are those of the request, in the API's form."""
    found: list[Flaw] = []
    if tool_call is not None:
        return ("wrong tool call",) if not _callable(tool_call, tools) else ()
    if not text.strip():
        return ("empty",)
    if finish_reason == "length":
        found.append("cut off")
    if _REFUSALS.match(text):
        found.append("refused")
    if repeats(text):
        found.append("repeated")
    strange = sum(
        character == "\N{REPLACEMENT CHARACTER}" or not (character.isprintable() or character.isspace())
        for character in text
    )
    if strange > _GARBLED_FRACTION * len(text):
        found.append("garbled")
    if wants_json and not _is_json(text):
        found.append("not JSON")
    return tuple(found)


def repeats(text: str) -> bool:
    """Does a stretch of up to twenty words, or one character, come again and again at the end?"""
    words = text.split()
    for length in range(1, min(20, len(words) // _REPEATS) + 1):
        last = words[-length:]
        times = _REPEATS if length > 2 else 8
        if len(words) >= length * times and all(
            words[-length * (n + 1) : len(words) - length * n] == last for n in range(times)
        ):
            return True
    return re.search(r"(\S)\1{39,}$", text.rstrip()) is not None


def probes() -> tuple[Probe, ...]:
    """The bundled questions."""
    return facts.load("probes.yaml", tuple[Probe, ...])


def check(endpoint: str, model: str, asked: Sequence[Probe]) -> tuple[Checked, ...]:
    """Ask and check. A question that gets no answer is flawed; an endpoint that refuses is `no answer`."""
    found = []
    for probe in asked:
        try:
            answer = chat.ask(endpoint, model, probe.question, max_tokens=probe.max_tokens)
        except Unreachable as err:
            found.append(Checked(question=probe.question, answer=str(err), flaws=("no answer",)))
            continue
        seen = [
            each
            for each in flaws(answer.text, finish_reason=answer.finish_reason, wants_json=probe.json)
            if each != "cut off"
        ]
        if not seen and probe.contains is not None and not re.search(probe.contains, answer.text):
            seen.append("wrong")
        found.append(Checked(question=probe.question, answer=answer.text, flaws=tuple(seen), ttft_ms=answer.ttft_ms))
    return tuple(found)


def ratings(deployment: str, checked: Sequence[Checked], *, time_s: float | None = None) -> tuple[Rating, ...]:
    """Checks as ratings. A wrong fact counts as good: it says how clever the model is, not that serving is broken."""
    now_s = time.time() if time_s is None else time_s
    return tuple(
        Rating(
            deployment=deployment,
            time_s=now_s,
            good=not set(each.flaws) - {"wrong"},
            source="check",
            flaws=each.flaws,
            comment=each.question,
        )
        for each in checked
    )


def _is_json(text: str) -> bool:
    fenced = _FENCE.match(text)
    try:
        json.loads(fenced["inner"] if fenced else text)
    except ValueError:
        return False
    return True


def _callable(call: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> bool:
    function = call.get("function", {})
    known = {tool.get("function", {}).get("name"): tool.get("function", {}) for tool in tools}
    if function.get("name") not in known:
        return False
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        return False
    schema = known[function["name"]].get("parameters", {})
    allowed, required = schema.get("properties", {}), schema.get("required", ())
    if not isinstance(arguments, dict) or any(name not in arguments for name in required):
        return False
    return not allowed or all(name in allowed for name in arguments)
