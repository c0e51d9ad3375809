"""Reads a metrics page: the Prometheus text format as engines, proxies and hand-made recordings really write it.

The parser accepts the classic text format and OpenMetrics (timestamps, exemplars, `# EOF`, quoted UTF-8 names) and skips
what it cannot read, counting it, because one damaged line must not blind the monitor. Metric types in `# TYPE` lines are
not trusted: recordings exist in which gauges are declared as counters.
"""

from __future__ import annotations

import math
import re
import time

import msgspec

from aim_engine.deploy import endpoint as http
from aim_engine.errors import Unreachable

Labels = tuple[tuple[str, str], ...]

_LABEL = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^\s=,{}"]+)\s*(?:=\s*"((?:[^"\\]|\\.)*)")?\s*(,|$)')
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:.\-]*")
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


class Sample(msgspec.Struct, frozen=True):
    """One line of a page."""

    name: str
    labels: Labels
    value: float

    def label(self, name: str) -> str | None:
        """The value of one label, None when it is absent."""
        return next((value for key, value in self.labels if key == name), None)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A page at one moment."""

    samples: dict[str, tuple[Sample, ...]]
    """Sample name (with its `_total`, `_bucket`, `_sum` or `_count`) -> samples."""
    time_s: float | None = None
    """When it was read, seconds since 1970; None when nobody wrote it down."""
    skipped: int = 0
    """Lines that could not be read."""

    def has(self, name: str) -> bool:
        """Does the page export a sample of this name with a number?"""
        return any(not math.isnan(sample.value) for sample in self.samples.get(name, ()))


def fetch(endpoint: str, *, timeout_s: float = 5.0) -> Snapshot:
    """The metrics page of a running engine, read now. `endpoint` is a base URL, a host:port or the page itself.

    Raises: Unreachable when nothing answers there or the answer is not a metrics page; InvalidInput for a bad address.
    """
    url = http.normalise(endpoint)
    if not url.endswith("/metrics"):
        url += "/metrics"
    reply = http.get(url, timeout_s=timeout_s)
    if reply.status != 200:
        raise Unreachable(
            f"{url} answered {reply.status}", why=reply.reason, hint="is this the address of a serving engine?"
        )
    snapshot = parse(reply.text, time_s=time.time())
    if not snapshot.samples:
        raise Unreachable(
            f"{url} is not a metrics page",
            why="it holds no line of the form `name value`",
            hint="is this the address of a serving engine?",
        )
    return snapshot


def parse(page: str, *, time_s: float | None = None) -> Snapshot:
    """A metrics page as samples by name. Never fails: unreadable lines are counted in `skipped`."""
    samples: dict[str, list[Sample]] = {}
    skipped = 0
    for line in page.split("\n"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        sample = _sample(line)
        if sample is None:
            skipped += 1
        else:
            samples.setdefault(sample.name, []).append(sample)
    return Snapshot(samples={name: tuple(group) for name, group in samples.items()}, time_s=time_s, skipped=skipped)


def _sample(line: str) -> Sample | None:
    match = _NAME.match(line)
    name = match.group(0) if match else ""
    rest = line[len(name) :].lstrip()
    labels: list[tuple[str, str]] = []
    if rest.startswith("{"):
        closing = _closing(rest)
        position = 1
        while position < closing and rest[position:closing].strip():
            found = _LABEL.match(rest, position, closing)
            if found is None or found.end() == position:
                return None
            key, value, position = found.group(1), found.group(2), found.end()
            if value is None:  # a quoted metric name stands first among the labels
                if name or not key.startswith('"'):
                    return None
                name = _unescape(key.strip('"'))
            else:
                labels.append((_unescape(key.strip('"')), _unescape(value)))
        rest = rest[closing + 1 :]
    fields = rest.split(None, 1)
    if not name or not fields:
        return None
    try:
        value_number = float(fields[0])
    except ValueError:
        return None
    return Sample(name, tuple(sorted(labels)), value_number)


def _closing(text: str) -> int:
    """Position of the `}` that ends a label set: the first one outside quotes, else the end of the text."""
    quoted = False
    position = 1
    while position < len(text):
        character = text[position]
        if character == "\\" and quoted:
            position += 1
        elif character == '"':
            quoted = not quoted
        elif character == "}" and not quoted:
            break
        position += 1
    return position


def _unescape(text: str) -> str:
    return re.sub(r"\\.", lambda match: _ESCAPES.get(match.group(0), match.group(0)), text) if "\\" in text else text
