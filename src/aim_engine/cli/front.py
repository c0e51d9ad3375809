"""The Pareto front of a plan as a picture: speed per user against speed per device, in a terminal or in a file."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.planner.plan import Candidate, Plan

FORMATS = ("svg", "png")
COLUMNS, LINES = 68, 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CHOSEN = "*"
_ACROSS, _UP = "output tok/s per user", "output tok/s per GPU"
# Distinguishable with any colour vision (Okabe and Ito); each spread has a marker of its own too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = "os^DvPX"


class Point(NamedTuple):
    """One configuration at one load."""

    per_user: float
    per_gpu: float
    spread: str
    requests: int


def points(plan: Plan) -> list[Point]:
    """The front of a plan, fastest for the user first."""
    return [_point(candidate, plan) for candidate in plan.pareto]


def _point(candidate: Candidate, plan: Plan) -> Point:
    several = len({each.recipe.gpu for each in plan.pareto}) > 1
    kv = "" if candidate.kv_cache_dtype == "auto" else f" kv {candidate.kv_cache_dtype}"
    card = f" {candidate.recipe.gpu}" if several else ""
    name = f"{candidate.split.describe()} {candidate.precision}{kv}{card}"
    requests = round(candidate.estimate.concurrency / candidate.replicas)
    return Point(candidate.tok_s_per_user, candidate.tok_s_per_gpu, name, requests)


def text(plan: Plan) -> Iterator[str]:
    """The front as lines of characters, both axes logarithmic: a letter for each spread, * for the choice."""
    front = points(plan)
    if not front:
        return
    spreads = list(dict.fromkeys(point.spread for point in front))
    marks = [(point, _LETTERS[spreads.index(point.spread) % len(_LETTERS)]) for point in front]
    if plan.chosen is not None:
        marks.append((_point(plan.chosen, plan), _CHOSEN))
    across, up = _Axis([p.per_user for p, _ in marks], COLUMNS), _Axis([p.per_gpu for p, _ in marks], LINES)
    grid = [[" "] * COLUMNS for _ in range(LINES)]
    for point, mark in marks:
        grid[LINES - 1 - up.at(point.per_gpu)][across.at(point.per_user)] = mark
    labels = {LINES - 1 - up.at(value): f"{value:,.0f}" for value in up.ticks(4)}
    width = max(len(label) for label in labels.values())
    yield f"{_UP} (up) against {_ACROSS} (across), over loads; {_CHOSEN} is the choice"
    for number, row in enumerate(grid):
        line = "".join(row).rstrip()
        yield f"{labels.get(number, ''):>{width}} {'┤' if number in labels else '│'}{line}"
    ticks = {across.at(value): value for value in across.ticks(6)}
    yield " " * (width + 1) + "└" + "".join("┬" if column in ticks else "─" for column in range(COLUMNS))
    under = [" "] * (COLUMNS + 8)
    for column, value in ticks.items():
        label = f"{value:,.0f}"
        under[column : column + len(label)] = label
    yield (" " * (width + 2) + "".join(under)).rstrip()
    for number, spread in enumerate(spreads):
        loads = [point.requests for point in front if point.spread == spread]
        span = f"{min(loads)}" if min(loads) == max(loads) else f"{min(loads)} to {max(loads)}"
        yield f"{_LETTERS[number % len(_LETTERS)]}  {spread}, {span} requests of a replica"


class _Axis:
    """A logarithmic scale over so many cells."""

    def __init__(self, values: Sequence[float], cells: int) -> None:
        self._low, self._high = math.log(min(values)), math.log(max(values))
        self._cells = cells

    def at(self, value: float) -> int:
        """The cell of a value."""
        if self._high <= self._low:
            return 0
        share = (math.log(value) - self._low) / (self._high - self._low)
        return round(share * (self._cells - 1))

    def ticks(self, count: int) -> list[float]:
        """Values at equal distances, ends included."""
        return [math.exp(self._low + (self._high - self._low) * n / (count - 1)) for n in range(count)]


def check(path: Path) -> None:
    """Whether a picture could be written so, before any work is done. Raises: InvalidInput."""
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise InvalidInput(f"{path} is no picture that can be drawn", hint="name it .svg or .png")
    _matplotlib()


def draw(plan: Plan, path: Path) -> None:
    """The front in a file. Raises: InvalidInput without matplotlib or without a front, Unreachable when it cannot be written."""
    if not plan.pareto:
        raise InvalidInput("there is nothing to plot", why="no configuration fits", hint="plan for more devices")
    try:
        path.write_bytes(image(plan, path.suffix.lower().lstrip(".")))
    except OSError as err:
        raise Unreachable(f"the picture cannot be written to {path}", why=err.strerror) from err


def image(plan: Plan, kind: str) -> bytes:
    """The front as an SVG or PNG file; the same plan gives the same bytes."""
    matplotlib = _matplotlib()
    settings = {"svg.hashsalt": "aim-engine", "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False}
    with matplotlib.rc_context({**settings, "axes.spines.right": False}):
        figure = matplotlib.figure.Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.add_subplot()
        _plot(axes, plan)
        written = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(written, format=kind, dpi=150, metadata=metadata)
    return written.getvalue()


def _plot(axes: Any, plan: Plan) -> None:
    front, inputs = points(plan), plan.inputs
    axes.plot([p.per_user for p in front], [p.per_gpu for p in front], color="#bbbbbb", zorder=1)
    for number, spread in enumerate(dict.fromkeys(point.spread for point in front)):
        own = [point for point in front if point.spread == spread]
        axes.scatter(
            [p.per_user for p in own],
            [p.per_gpu for p in own],
            s=36,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            label=spread,
            zorder=2,
        )
    for point in front[:: max(1, len(front) // 8)]:
        axes.annotate(
            f"{point.requests}",
            (point.per_user, point.per_gpu),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=8,
            color="#555555",
        )
    if plan.chosen is not None:
        chosen = _point(plan.chosen, plan)
        label = f"chosen: {plan.chosen.replicas} x {chosen.spread}, {chosen.requests} requests each"
        axes.scatter(
            [chosen.per_user],
            [chosen.per_gpu],
            s=170,
            marker="*",
            color="#d00000",
            edgecolors="white",
            label=label,
            zorder=3,
        )
    if inputs.slo.tpot_ms is not None:
        speed = 1000 / inputs.slo.tpot_ms
        axes.axvline(speed, color="#888888", linestyle=":", label=f"limit on TPOT: {inputs.slo.tpot_ms:g} ms")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if f"{value:.0e}"[0] in "25" and value >= 1 else "")
    axes.tick_params(which="both", length=3, pad=4)
    axes.set_xlabel(_ACROSS)
    axes.set_ylabel(_UP)
    axes.set_axisbelow(True)
    axes.grid(which="both", color="#eeeeee")
    shape = f"{inputs.workload.input_tokens:,} tokens in, {inputs.workload.output_tokens:,} out"
    where = "this CPU" if inputs.gpu.kind == "cpu" else inputs.cluster.describe()
    axes.set_title(
        f"{inputs.model.model_id} on {where}, {inputs.engine} {inputs.engine_version}\n"
        f"{shape}; numbers are requests of a replica",
        fontsize=11,
        loc="left",
    )
    axes.legend(frameon=False, fontsize=9)


def _matplotlib() -> Any:
    """The library, imported when something is drawn. Raises: InvalidInput with how to get it."""
    try:
        import matplotlib as mpl
        import matplotlib.figure
    except ImportError as err:
        raise InvalidInput("pictures need matplotlib", hint="pip install 'aim-engine[plot]'") from err
    return mpl
