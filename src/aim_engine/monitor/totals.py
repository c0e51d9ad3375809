"""What a metrics page says at one moment, by measure: counts since the engine's start, levels, histograms.

Engines of one server add up; ranks that report the same work count once, by their maximum.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence

import msgspec

from aim_engine.kpi import measures
from aim_engine.kpi.measures import Measure
from aim_engine.monitor.scrape import Sample, Snapshot

_CARD_LABELS = ("gpu_uuid", "GPU_UUID", "gpu_id", "GPU_ID")
_PART_LABELS = ("gpu_partition_id", "GPU_PARTITION_ID", "partition_id")


class Buckets(msgspec.Struct, frozen=True, array_like=True):
    """A histogram since the engine's start; the last count is of what lies above every edge."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    total: float


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """A page, read."""

    time_s: float | None
    start_s: float | None = None
    """When the process started, where it says so."""
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    histograms: dict[str, Buckets] = {}
    families: dict[str, str] = {}
    """Measure -> metric family it was read from."""
    facts: dict[str, str] = {}
    """Labels of the engine's cache."""
    engine: str | None = None
    models: tuple[str, ...] = ()
    skipped: int = 0
    side: str = ""
    """`prefill` or `decode` where the server says that it does only that."""


def read(snapshot: Snapshot, kept: Iterable[Measure] = measures.ENGINE) -> Totals:
    """A page by measure. What it does not export, or exports as NaN, is absent."""
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    histograms: dict[str, Buckets] = {}
    families: dict[str, str] = {}
    samples = snapshot.samples
    kinds = _kinds(snapshot)
    both = {"prefill", "decode"} <= kinds  # the page of a router, with the figures of both kinds of servers
    for measure in kept:
        other = _OTHER_SIDE[measure.side] if both else ""
        for family, name in _NAMES[measure.name]:
            if name not in samples:
                continue
            if measure.kind == "histogram":
                found = _buckets(snapshot, family, other)
                if found is None:
                    continue
                histograms[measure.name] = found
            else:
                values = _by_engine(samples[name], measure.where, other)
                if measure.zero_is_unknown:
                    values = [value for value in values if value]
                if measure.unit == "fraction":
                    values = [
                        value for value in values if value >= 0
                    ]  # vLLM before 0.8 writes -1 where it does not know
                if not values:
                    continue
                value = _across(measure, values) * measure.scale
                (counters if measure.kind == "counter" else gauges)[measure.name] = value
            families[measure.name] = family
            break
    return Totals(
        time_s=snapshot.time_s,
        start_s=min((s.value for s in samples.get(measures.START_TIME, ()) if math.isfinite(s.value)), default=None),
        counters=counters,
        gauges=gauges,
        histograms=histograms,
        families=families,
        facts=_facts(snapshot),
        engine=next(
            (e for prefix, e in measures.ENGINE_PREFIXES.items() if any(n.startswith(prefix) for n in samples)), None
        ),
        models=_models(snapshot),
        skipped=snapshot.skipped,
        side=next(iter(kinds & {"prefill", "decode"}), "") if not both else "",
    )


_OTHER_SIDE = {"both": "", "prefill": "decode", "decode": "prefill", "first": "prefill"}
"""Side that counts for a measure -> kind of server of SGLang that does not."""


def _kinds(snapshot: Snapshot) -> set[str]:
    """The kinds of servers that a page tells of."""
    return {
        kind
        for name in ("sglang:num_running_reqs", "sglang:token_usage", "sglang:num_requests_total")
        for sample in snapshot.samples.get(name, ())
        if (kind := sample.label(measures.SERVER_KIND))
    }


def by_card(snapshot: Snapshot, pods: str = "") -> dict[str, Snapshot]:
    """An exporter's page as one page per card, or per partition of one; of all cards, or of those that matching `pods` hold."""
    cards: dict[str, dict[str, list[Sample]]] = {}
    for name, group in snapshot.samples.items():
        for sample in group:
            card = next((value for label in _CARD_LABELS if (value := sample.label(label))), None)
            if card is None or (pods and not re.fullmatch(pods, sample.label("pod") or "")):
                continue
            part = next((value for label in _PART_LABELS if (value := sample.label(label))), "0")
            cards.setdefault(card if part == "0" else f"{card}/{part}", {}).setdefault(name, []).append(sample)
    return {
        card: Snapshot(
            samples={name: tuple(group) for name, group in found.items()},
            time_s=snapshot.time_s,
            skipped=snapshot.skipped,
        )
        for card, found in sorted(cards.items())
    }


_NAMES = {measure.name: measures.sample_names(measure) for measure in measures.ALL}


def _across(measure: Measure, values: list[float]) -> float:
    if measure.kind == "counter" or measure.across == "sum":
        return math.fsum(values)
    return max(values) if measure.across == "max" else math.fsum(values) / len(values)


def _by_engine(samples: Sequence[Sample], where: tuple[tuple[str, str], ...] = (), other: str = "") -> list[float]:
    """One value for each engine. Samples of servers of kind `other` are left out."""
    groups: dict[str, float] = {}
    # SGLang with priorities: one series for each of them, and with an empty label their sum.
    summed = samples[0].name.startswith("sglang:") and any(sample.label("priority") == "" for sample in samples)
    for sample in samples:
        if (summed and sample.label("priority")) or (other and sample.label(measures.SERVER_KIND) == other):
            continue
        if not math.isfinite(sample.value) or any(pair not in sample.labels for pair in where):
            continue
        known = groups.get(sample.group)
        groups[sample.group] = sample.value if known is None else max(known, sample.value)
    return list(groups.values())


def _buckets(snapshot: Snapshot, family: str, other: str = "") -> Buckets | None:
    """A histogram, None when a part of it is missing: the page was cut off in it, or it holds no number."""
    told = snapshot.samples.get(f"{family}_sum", ())
    counts = _by_engine(snapshot.samples[f"{family}_count"], other=other)
    sums = _by_engine(told, other=other) if told else []
    if not counts or not sums:
        return None
    all_of = math.fsum(counts)
    groups: dict[float, dict[str, float]] = {}
    for sample in snapshot.samples.get(f"{family}_bucket", ()):
        edge = _edge(sample)
        if other and sample.label(measures.SERVER_KIND) == other:
            continue
        if not math.isnan(edge) and math.isfinite(sample.value):
            known = groups.setdefault(edge, {})
            known[sample.group] = max(sample.value, known.get(sample.group, 0.0))
    edges = sorted(edge for edge in groups if math.isfinite(edge))
    if groups and math.inf not in groups:
        return None
    below, each = 0.0, []
    for edge in edges:
        now = math.fsum(groups[edge].values())
        each.append(max(0.0, now - below))
        below = max(below, now)
    return Buckets(tuple(edges), (*each, max(0.0, all_of - below)), math.fsum(sums))


def _edge(sample: Sample) -> float:
    try:
        return float(sample.label("le") or "nan")
    except ValueError:
        return math.nan


def _facts(snapshot: Snapshot) -> dict[str, str]:
    for sample in snapshot.samples.get(measures.CACHE_INFO, ()):
        return dict(sample.labels)
    return {}


def _models(snapshot: Snapshot) -> tuple[str, ...]:
    prefixes = tuple(measures.ENGINE_PREFIXES)
    groups = (group[:1] for name, group in snapshot.samples.items() if name.startswith(prefixes))
    return tuple(sorted({model for s in itertools.chain.from_iterable(groups) if (model := s.label("model_name"))}))
