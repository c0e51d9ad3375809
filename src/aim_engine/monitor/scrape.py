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
from aim_engine.kpi import measures
from aim_engine.kpi.measures import RANKS

Labels = tuple[tuple[str, str], ...]

_LABEL = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^\s=,{}"]+)\s*(?:=\s*"((?:[^"\\]|\\.)*)")?\s*(,|$)')
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:.\-]*")
_OTHER_NAMES = ("amd_", "ray_", "vllm_", "sglang_", "atom_", "GPU_", "PCIE_")
"""How names begin that others write in another way."""
_KNOWN = measures.wanted()
_PREFIXED = re.compile(
    r"^([A-Za-z_]\w*?_)gpu_(?:gfx_activity|(?:average_)?package_power|used_vram|health)\b", re.MULTILINE
)
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


class Sample(msgspec.Struct, frozen=True):
    """One line of a page."""

    name: str
    labels: Labels
    value: float
    group: str = ""
    """Name and labels without those of ranks that report the same work: samples of one group are the same count."""

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
    ended: bool = True
    """Did the page end with a line feed? One that usually does and now does not was cut off."""
    last: Sample | None = None
    """The last line, whose number may be cut off when the page is."""

    def has(self, name: str) -> bool:
        """Does the page export a sample of this name with a number?"""
        return any(not math.isnan(sample.value) for sample in self.samples.get(name, ()))


def fetch(endpoint: str, *, timeout_s: float = 5.0, wanted: frozenset[str] | None = None) -> Snapshot:
    """The metrics page of a running engine, read now. `endpoint` is a base URL, a host:port or the page itself.

    Raises: Unreachable when nothing answers there or the answer is not a metrics page; InvalidInput for a bad address.
    """
    from aim_engine.monitor.fetch import Fetcher

    with Fetcher() as fetcher:
        return read(fetcher.get(address(endpoint), timeout_s), address(endpoint), time.time(), wanted)


def address(endpoint: str) -> str:
    """The address of the metrics page of an engine, or of all engines behind a router of SGLang. Raises: InvalidInput."""
    url = http.normalise(endpoint)
    return url if url.endswith(("/metrics", "/engine_metrics")) else url + "/metrics"


def read(page: str, url: str, time_s: float, wanted: frozenset[str] | None = None) -> Snapshot:
    """An answer as a page of metrics. Raises: Unreachable when it is none."""
    snapshot = parse(page, time_s=time_s, wanted=wanted)
    if not snapshot.samples and (wanted is None or not parse(page).samples):
        raise Unreachable(
            f"{url} is not a metrics page",
            why="it holds no line of the form `name value`",
            hint="is this the address of a serving engine?",
        )
    return snapshot


def parse(page: str, *, time_s: float | None = None, wanted: frozenset[str] | None = None) -> Snapshot:
    """A metrics page as samples by name, all of them or those `wanted`. Never fails: unreadable lines are counted in `skipped`."""
    samples: dict[str, list[Sample]] = {}
    skipped = 0
    last: Sample | None = None
    for line in page.split("\n"):
        if not line or line[0] == "#":
            continue
        front, _, number = line.rpartition(" ")
        series = _seen.get(front)
        sample: Sample | None = None
        if series is not None:
            try:
                sample = Sample(series[0], series[1], float(number), series[2])
            except ValueError:
                sample = None  # the last space was another one than that before the number
        if sample is None:
            named = _NAME.match(line) if wanted is not None else None
            if wanted is not None and named is not None and _usually(named[0]) not in wanted:
                continue
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            sample = _sample(line, front)
            if sample is None:
                skipped += 1
                continue
        last = sample
        samples.setdefault(last.name, []).append(last)
    return Snapshot(
        samples={name: tuple(group) for name, group in samples.items()},
        time_s=time_s,
        skipped=skipped,
        ended=page.endswith("\n"),
        last=last,
    )


_seen: dict[str, tuple[str, Labels, str]] = {}
"""Series as they stand on pages -> what they mean; pages repeat theirs at each reading."""
_MOST_SEEN = 400_000


def unprefixed(page: str) -> str:
    """The page of an exporter without what its setting `MetricsFieldPrefix` puts before each name."""
    found = _PREFIXED.search(page)
    if found is None or found[1] == "amd_":
        return page
    return re.sub(rf"^{re.escape(found[1])}", "", page, flags=re.MULTILINE)


def _usually(name: str) -> str:
    return _usual(name) if name.startswith(_OTHER_NAMES) else name


def _usual(name: str) -> str:
    """A name as the engine or exporter itself has it: collectors and Ray write `_` for `:`, AMD's exporter was in capitals once and
    mostly has `amd_` before its names.
    """
    for other in (
        name.removeprefix("amd_"),
        name.lower(),
        re.sub(r"^(?:ray_)?(vllm|sglang|atom)_", r"\1:", name),
    ):
        if other != name and other in _KNOWN:
            return other
    return name


def _sample(line: str, front: str) -> Sample | None:
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
        number = float(fields[0])
    except ValueError:
        return None
    name = _usually(name)
    known = tuple(sorted(labels))
    group = name + repr([pair for pair in known if pair[0] not in RANKS])
    if line == f"{front} {fields[0]}":
        if len(_seen) >= _MOST_SEEN:
            _seen.clear()
        _seen[front] = (name, known, group)
    return Sample(name, known, number, group)


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
