"""How a figure is made of measures: one definition that gives the number from what was scraped, and the PromQL that gives it too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.kpi import measures
from aim_engine.kpi.measures import Measure

Pick = Literal["last", "mean", "peak", "least"]


class Rate(msgspec.Struct, frozen=True, tag=True):
    """Events per second."""

    measure: str


class Increase(msgspec.Struct, frozen=True, tag=True):
    """Events in the window."""

    measure: str


class Mean(msgspec.Struct, frozen=True, tag=True):
    """Mean of what a histogram observed."""

    measure: str


class Count(msgspec.Struct, frozen=True, tag=True):
    """Observations per second of a histogram."""

    measure: str


class Level(msgspec.Struct, frozen=True, tag=True):
    """Value of a gauge."""

    measure: str
    pick: Pick = "mean"


class Parameter(msgspec.Struct, frozen=True, tag=True):
    """A number from outside: a price, a peak of the card."""

    name: str


class Constant(msgspec.Struct, frozen=True, tag=True):
    """A number."""

    value: float


class Over(msgspec.Struct, frozen=True, tag=True):
    """Quotient; unknown when the divisor is zero."""

    top: Formula
    bottom: Formula


class Minus(msgspec.Struct, frozen=True, tag=True):
    """Difference."""

    one: Formula
    other: Formula


class Up(msgspec.Struct, frozen=True, tag=True):
    """Share of the looks at an endpoint that it answered."""


class Sum(msgspec.Struct, frozen=True, tag=True):
    """Sum of the parts that are known; unknown when none is."""

    parts: tuple[Formula, ...]


class First(msgspec.Struct, frozen=True, tag=True):
    """The first part that is known."""

    parts: tuple[Formula, ...]


class Goodput(msgspec.Struct, frozen=True, tag=True):
    """Requests per second that surely met every limit: of those finished, less the shares that missed one.

    A histogram knows requests one by one only within one limit, so several limits give a lower bound.
    """

    measure: str = "requests"


Formula = Rate | Increase | Mean | Count | Level | Parameter | Constant | Over | Sum | First | Goodput | Minus | Up
LIMITS = {"slo_ttft_ms": "ttft", "slo_tpot_ms": "tpot", "slo_e2e_ms": "e2e"}
"""Parameter that holds a limit in ms -> histogram in seconds that is held against it."""


class Unknown(Exception):
    """A figure that cannot be had, and why."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where numbers come from: one function per kind of question, each raising Unknown with the reason."""

    seconds: Callable[[], float]
    increase: Callable[[str], float]
    mean: Callable[[str], float]
    count: Callable[[str], float]
    level: Callable[[str, Pick], float]
    within: Callable[[str, float], float]
    """Share of a histogram's observations up to a value."""
    up: Callable[[], float]
    parameters: Mapping[str, float] = {}


def evaluate(formula: Formula, source: Source) -> float:
    """The number. Raises: Unknown."""
    match formula:
        case Rate(measure):
            return source.increase(measure) / source.seconds()
        case Increase(measure):
            return source.increase(measure)
        case Mean(measure):
            return source.mean(measure)
        case Count(measure):
            return source.count(measure) / source.seconds()
        case Level(measure, pick):
            return source.level(measure, pick)
        case Parameter(name):
            if name not in source.parameters:
                raise Unknown(f"{name} is not known")
            return source.parameters[name]
        case Constant(value):
            return value
        case Over(top, bottom):
            divisor = evaluate(bottom, source)
            if divisor == 0:
                raise Unknown(f"{_said(bottom)} is zero in the window")
            return evaluate(top, source) / divisor
        case Minus(one, other):
            return evaluate(one, source) - evaluate(other, source)
        case Up():
            return source.up()
        case Sum(parts):
            return _sum(parts, source)
        case First(parts):
            return _first(parts, source)
        case Goodput(measure):
            missed = [
                1.0 - source.within(histogram, source.parameters[limit] / 1000)
                for limit, histogram in LIMITS.items()
                if limit in source.parameters
            ]
            if not missed:
                raise Unknown("the plan has no limits to meet")
            return source.increase(measure) / source.seconds() * max(0.0, 1.0 - sum(missed))


def _sum(parts: tuple[Formula, ...], source: Source) -> float:
    found, reasons = [], []
    for part in parts:
        try:
            found.append(evaluate(part, source))
        except Unknown as err:
            reasons.append(str(err))
    if not found:
        raise Unknown(reasons[0])
    return sum(found)


def _first(parts: tuple[Formula, ...], source: Source) -> float:
    reason = ""
    for part in parts:
        try:
            return evaluate(part, source)
        except Unknown as err:
            reason = reason or str(err)
    raise Unknown(reason)


def measures_of(formula: Formula) -> Iterator[str]:
    """Names of all measures a formula reads."""
    match formula:
        case Rate(measure) | Increase(measure) | Mean(measure) | Count(measure) | Level(measure):
            yield measure
        case Over(top, bottom):
            yield from measures_of(top)
            yield from measures_of(bottom)
        case Minus(one, other):
            yield from measures_of(one)
            yield from measures_of(other)
        case Sum(parts) | First(parts):
            for part in parts:
                yield from measures_of(part)
        case Goodput(measure):
            yield measure
        case Parameter() | Constant() | Up():
            return


def promql(
    formula: Formula,
    *,
    selector: str,
    window: str,
    engine: str = "vllm",
    parameters: Mapping[str, float] | None = None,
    devices: str | None = None,
    edges: Mapping[str, tuple[str, ...]] | None = None,
    offset: str = "",
    prefill: str = "",
) -> str:
    """PromQL for the same number over `window`, for series that `selector` picks (`devices` for those of cards).

    `prefill` is a matcher of the servers that only prefill, where there are such; see `chosen`.

    Names of all releases of `engine` are joined by `or`, newest first. `edges` are the `le` labels of histograms by measure, needed
    where a share below a limit is asked; `offset` asks for an earlier window. Raises: Unknown when a parameter or an edge is not known.
    """
    given = parameters or {}
    back = f" offset {offset}" if offset else ""

    def goodput(measure: str) -> str:
        missed = []
        for limit, histogram in LIMITS.items():
            if limit in given:
                below = [le for le in (edges or {}).get(histogram, ()) if float(le) <= given[limit] / 1000]
                if not below:
                    raise Unknown(f"no bucket edge of {histogram} at or below its limit is known")
                le = max(below, key=float)
                picked = chosen(measures.BY_NAME[histogram], engine, selector, prefill)
                met = [
                    f'sum(rate({name}_bucket{{{picked}{"," * bool(picked)}le="{le}"}}[{window}]))'
                    for name in prometheus_names(measures.BY_NAME[histogram], engine, "")
                ]
                all_of = series(histogram, "sum", "rate", "_count")
                missed.append(f"(1 - ({' or '.join(met)}) / {all_of})")
        if not missed:
            raise Unknown("the plan has no limits to meet")
        return f"({series(measure, 'sum', 'rate')} * clamp_min(1 - ({' + '.join(missed)}), 0))"

    def text(part: Formula) -> str:
        match part:
            case Rate(name):
                return series(name, "sum", "rate")
            case Increase(name):
                return series(name, "sum", "increase")
            case Mean(name):
                return f"({series(name, 'sum', 'rate', '_sum')} / {series(name, 'sum', 'rate', '_count')})"
            case Count(name):
                return series(name, "sum", "rate", "_count")
            case Level(name, pick):
                over = {"last": "", "mean": "mean", "peak": "max_over_time", "least": "min_over_time"}[pick]
                across = {"sum": "sum", "max": "max", "mean": "avg"}[measures.BY_NAME[name].across]
                return series(name, across, over)
            case Parameter(name):
                if name not in given:
                    raise Unknown(f"{name} is not known")
                return f"{given[name]:.12g}"
            case Constant(value):
                return f"{value:.12g}"
            case Over(top, bottom):
                return f"({text(top)} / {text(bottom)})"
            case Minus(one, other):
                return f"({text(one)} - {text(other)})"
            case Up():
                return f"avg(avg_over_time(up{{{selector}}}[{window}]))"
            case Sum(parts):
                return "(" + " + ".join(f"({text(each)} or vector(0))" for each in parts) + ")"
            case First(parts):
                return "(" + " or ".join(text(each) for each in parts) + ")"
            case Goodput(measure):
                return goodput(measure)

    def series(name: str, across: str, function: str, suffix: str | None = None) -> str:
        measure = measures.BY_NAME[name]
        picked = devices if measure.device and devices is not None else chosen(measure, engine, selector, prefill)
        found = []
        for metric in prometheus_names(measure, engine, suffix):
            labels = ",".join((*((picked,) if picked else ()), *(f'{key}="{value}"' for key, value in measure.where)))
            inner = f"{metric}{{{labels}}}" if labels else metric
            if function == "mean":
                found.append(mean_level(across, inner, window, "15s", back))
            else:
                found.append(
                    f"{across}({function}({inner}[{window}]{back}))" if function else f"{across}({inner}{back})"
                )
        joined = " or ".join(found)
        whole = f"({joined})" if len(found) > 1 else joined
        return whole if measure.scale == 1.0 else f"({whole} * {measure.scale:g})"

    return text(formula)


def mean_level(across: str, series: str, window: str, step: str, offset: str = "") -> str:
    """PromQL of the mean of a gauge over time: a look that failed leaves the level before it standing, for two minutes.

    A plain avg_over_time is a mean over looks, and of those the busy times have the fewest. Series are summed before, so that one of a
    replica that came later counts for its time.
    """
    held = f"last_over_time({series}[2m])"
    if across == "sum":
        return f"avg_over_time({across}({held})[{window}:{step}]{offset})"
    return f"{across}(avg_over_time({held}[{window}:{step}]{offset}))"


def quantile_promql(
    measure: str, share: float, *, selector: str, window: str, engine: str = "vllm", prefill: str = ""
) -> str:
    """PromQL of a quantile of a histogram."""
    picked = chosen(measures.BY_NAME[measure], engine, selector, prefill)
    found = [
        f"histogram_quantile({share:g}, sum by (le) (rate({metric}{{{picked}}}[{window}])))"
        for metric in prometheus_names(measures.BY_NAME[measure], engine, "_bucket")
    ]
    return found[0] if len(found) == 1 else "(" + " or ".join(found) + ")"


def chosen(measure: Measure, engine: str | None, selector: str, prefill: str = "") -> str:
    """Label matchers of the series of a measure, so that each request is counted once where some servers only prefill.

    Those of SGLang say it in a label. Those of vLLM do not: there `prefill` is the matcher that picks them, such as pod=~"demo-prefill-.*".
    Raises: InvalidInput when that is not one matcher.
    """
    if measure.device or measure.side == "both":
        return selector
    if engine == "sglang" and not prefill:
        own = f'{measures.SERVER_KIND}!="{"decode" if measure.side == "prefill" else "prefill"}"'
    elif prefill:
        own = (
            prefill if measure.side == "prefill" or (measure.side == "first" and engine != "sglang") else _not(prefill)
        )
    else:
        return selector
    return f"{selector},{own}" if selector else own


_MATCHER = re.compile(r'\s*([A-Za-z_]\w*)\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*")\s*')
_OPPOSITE = {"=": "!=", "!=": "=", "=~": "!~", "!~": "=~"}


def _not(matcher: str) -> str:
    """The matcher of all other series. Raises: InvalidInput."""
    found = _MATCHER.fullmatch(matcher)
    if found is None:
        raise InvalidInput(f"'{matcher}' is not one label matcher", hint="for example 'pod=~\"demo-prefill-.*\"'")
    return f"{found[1]}{_OPPOSITE[found[2]]}{found[3]}"


def prometheus_names(measure: Measure, engine: str | None = None, suffix: str | None = None) -> tuple[str, ...]:
    """Series names of a measure as Prometheus has them, newest first; those of one engine where it is named.

    Counters end in `_total` there; cards' and exporters' counters keep the name they are exported under.
    """
    other = tuple(prefix for prefix, name in measures.ENGINE_PREFIXES.items() if engine is not None and name != engine)
    families = [family for family in measure.families if not (other and family.startswith(other))]
    ending = suffix if suffix is not None else "_total" if measure.kind == "counter" and not measure.device else ""
    return tuple(f"{family}{ending}" for family in families or measure.families)


def _said(formula: Formula) -> str:
    return next((name.replace("_", " ") for name in measures_of(formula)), "the divisor")
