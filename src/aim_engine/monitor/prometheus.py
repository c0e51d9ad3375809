"""A Prometheus-compatible server as history: the same figures over the same windows, asked of it instead of our own file.

Each question is one query for all measures of a kind; series come back labelled with the measure's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from aim_engine.errors import Unreachable
from aim_engine.kpi import formula, measures
from aim_engine.kpi.formula import prometheus_names
from aim_engine.kpi.measures import Measure
from aim_engine.monitor.span import Gauge, Histogram, Span

TIMEOUT_S = 30.0
Form = Callable[[str, str], str]
"""Aggregation and series -> the expression to ask."""
_LABEL = "aim_measure"


class Prometheus:
    """One server, asked for the series of one deployment."""

    def __init__(
        self,
        url: str,
        *,
        selector: str = "",
        devices: str | None = None,
        token: str | None = None,
        prefill: str = "",
    ) -> None:
        """`selector` are label matchers such as `namespace="models",pod=~"qwen-.*"`; `devices` those of the exporter's series.

        Without `devices` no card is asked for. `prefill` is a matcher of the servers that only prefill.
        """
        self.url = url.rstrip("/")
        self._selector, self._devices, self._prefill = selector, devices, prefill
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def window(self, begin_s: float, end_s: float) -> Span:
        """What happened between two times. Raises: Unreachable."""
        length = f"{max(1, round(end_s - begin_s))}s"
        kept = [m for m in measures.ALL if not m.device or self._devices is not None]
        counters = self._ask(
            [m for m in kept if m.kind == "counter"], lambda _, series: f"sum(increase({series}[{length}]))", end_s
        )
        step = f"{min(15, max(1, round((end_s - begin_s) / 100)))}s" if end_s - begin_s < 86400 else "1m"
        forms: dict[str, Form] = {
            "last": lambda across, series: f"{across}(last_over_time({series}[{length}]))",
            "high": lambda across, series: f"{across}(max_over_time({series}[{length}]))",
            "low": lambda across, series: f"{across}(min_over_time({series}[{length}]))",
            "count": lambda across, series: f"{across}(count_over_time({series}[{length}]))",
            "mean": lambda across, series: formula.mean_level(across, series, length, step),
        }
        gauges: dict[str, dict[str, float]] = {}
        levels = [m for m in kept if m.kind == "gauge"]
        for name, form in forms.items():
            for measure, _, value in self._ask(levels, form, end_s):
                gauges.setdefault(measure, {})[name] = value if name == "count" else value * _scale(measure)
        shapes = [m for m in kept if m.kind == "histogram"]
        sums = {
            m: value
            for m, _, value in self._ask(shapes, lambda _, series: f"sum(increase({series}[{length}]))", end_s, "_sum")
        }
        buckets: dict[str, dict[float, float]] = {}
        for name, labels, value in self._ask(
            shapes, lambda _, series: f"sum by (le) (increase({series}[{length}]))", end_s, "_bucket"
        ):
            buckets.setdefault(name, {})[float(labels["le"])] = value
        return Span(
            end_s - begin_s,
            {name: value * _scale(name) for name, _, value in counters},
            {name: _gauge(found, end_s - begin_s) for name, found in gauges.items() if len(found) == 5},
            {name: _histogram(found, sums[name]) for name, found in buckets.items() if name in sums},
            scrapes=int(max((found.get("count", 0.0) for found in gauges.values()), default=0.0)),
            side="both" if self._prefill else "",
        )

    def query(self, expression: str, time_s: float) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of an instant query. Raises: Unreachable."""
        import urllib.parse

        import urllib3

        url = f"{self.url}/api/v1/query"
        try:
            answer = urllib3.request(
                "POST",
                url,
                body=urllib.parse.urlencode({"query": expression, "time": f"{time_s:.3f}"}),
                headers={"Content-Type": "application/x-www-form-urlencoded", **self._headers},
                timeout=TIMEOUT_S,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as err:
            raise Unreachable(
                f"the Prometheus server at {self.url} does not answer",
                why=str(err).rpartition(": ")[2],
                hint="check --prometheus",
            ) from err
        try:
            document: dict[str, Any] = json.loads(answer.data)
            if document["status"] != "success":
                raise Unreachable(f"{url} refused a query", why=str(document.get("error")), hint="check --selector")
            return [
                (dict(each["metric"]), number)
                for each in document["data"]["result"]
                if math.isfinite(number := float(each["value"][1]))
            ]
        except (ValueError, KeyError, TypeError) as err:
            raise Unreachable(
                f"{url} is not the API of a Prometheus server",
                why=f"it answered {answer.status} with something else",
                hint="give the server's base address, such as http://127.0.0.1:9090",
            ) from err

    def _ask(
        self, asked: list[Measure], form: Form, time_s: float, suffix: str | None = None
    ) -> list[tuple[str, dict[str, str], float]]:
        """(measure, labels, value) for each measure that the server has, under the newest of its names."""
        parts, order = [], {}
        for measure in asked:
            for place, name in enumerate(prometheus_names(measure, None, suffix)):
                engine = "sglang" if name.startswith("sglang:") else "vllm"
                chosen = (
                    self._devices if measure.device else formula.chosen(measure, engine, self._selector, self._prefill)
                )
                labels = ",".join(
                    (*((chosen,) if chosen else ()), *(f'{key}="{value}"' for key, value in measure.where))
                )
                across = {"sum": "sum", "max": "max", "mean": "avg"}[measure.across]
                expression = form(across, f"{name}{{{labels}}}")
                parts.append(f'label_replace({expression}, "{_LABEL}", "{measure.name}:{place}", "", "")')
                order[f"{measure.name}:{place}"] = (measure.name, place)
        best: dict[str, int] = {}
        found = []
        for said, value in self.query(" or ".join(parts), time_s):
            name, place = order[said[_LABEL]]
            best[name] = min(place, best.get(name, place))
            found.append((name, place, said, value))
        return [(name, labels, value) for name, place, labels, value in found if place == best[name]]


def _scale(name: str) -> float:
    return measures.BY_NAME[name].scale


def _gauge(found: dict[str, float], seconds: float) -> Gauge:
    count = max(1, int(found["count"]))
    return Gauge(found["last"], found["low"], found["high"], found["mean"] * count, count).over(seconds)


def _histogram(cumulative: dict[float, float], total: float) -> Histogram:
    edges = tuple(sorted(edge for edge in cumulative if math.isfinite(edge)))
    counts, below = [], 0.0
    for edge in (*edges, math.inf):
        now = max(below, cumulative.get(edge, below))
        counts.append(now - below)
        below = now
    return Histogram(edges, tuple(counts), total)
