"""A report as Markdown, or as one HTML file with its charts in it: no script, no other file, readable in print and in the dark."""

from __future__ import annotations

import datetime as dt
import html
import itertools
from collections.abc import Sequence

from aim_engine.kpi import names
from aim_engine.monitor.views import Document, Line, Point
from aim_engine.units import format_ms

_WIDTH, _HEIGHT = 560, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 10, 22
_MOST_EVENTS = 20
_STYLE = """
:root{color-scheme:light dark;--ink:#1d2329;--soft:#5b6670;--line:#d5dbe0;--back:#fff;--one:#0b6e99;--two:#9cc7dc;--bad:#b3261e;--good:#1b7f4d;--limit:#c77700}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaee;--soft:#9aa7b2;--line:#38424b;--back:#14191e;--one:#5db4dc;--two:#2f5468;--bad:#ff8a80;--good:#6fd39c;--limit:#f0b357}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:2rem auto;max-width:1180px;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p.sub{color:var(--soft);margin:.2rem 0 1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th{text-align:left;color:var(--soft);font-weight:600}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line)}td.n,th.n{text-align:right;white-space:nowrap}
.bad{color:var(--bad);font-weight:600}.good{color:var(--good)}.soft{color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:1.2rem}figure{margin:0}figcaption{font-weight:600;margin-bottom:.2rem}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
"""


def markdown(document: Document, advice: Sequence[tuple[str, str, str]] = ()) -> str:
    """The report as Markdown. `advice` is (id, what to change, evidence)."""
    lines = [f"# {document.deployment}: {document.model}", "", subtitle(document), ""]
    header = ["figure", "measured", "p95", promised(document), "limit", ""]
    if document.before is not None:
        header[5:5] = [document.before_label, "change"]
    lines += ["| " + " | ".join(header) + " |", "|" + "|".join(["---", *["--:"] * (len(header) - 2), "---"]) + "|"]
    lines += ["| " + " | ".join(_cells(document, line)) + " |" for line in document.lines]
    if document.cards:
        lines += ["", "## Cards", "", *_card_table(document)]
    if document.alerts:
        lines += ["", "## Alerts", ""]
        lines += [f"- **{a.rule}** {a.state} since {when(a.since_s)}: {a.summary}" for a in document.alerts]
    if advice:
        lines += ["", "## Advice", "", *(f"- **{rule}** {change} ({evidence})" for rule, change, evidence in advice)]
    if document.events:
        lines += ["", "## Events", ""]
        lines += [f"- {when(e.time_s)} {e.kind}: {e.text}" for e in document.events[-_MOST_EVENTS:]]
    lines += [f"\nNote: {note}." for note in (*filter(None, [loads(document)]), *document.notes)]
    return "\n".join(lines) + "\n"


def page(document: Document, advice: Sequence[tuple[str, str, str]] = ()) -> str:
    """The report as one HTML file."""
    text = html.escape
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(document.deployment)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{text(document.deployment)}: {text(document.model)}</h1>",
        f'<p class="sub">{text(subtitle(document))}</p>',
    ]
    parts += [
        f'<p class="bad">{text(a.rule)} {text(a.state)}: {text(a.summary)}</p>'
        for a in document.alerts
        if a.state == "firing" and not a.inhibited_by
    ]
    header = ["figure", "measured", "p95", promised(document), "limit"]
    if document.before is not None:
        header += [document.before_label, "change"]
    parts.append("<h2>Figures</h2><table><thead><tr>")
    parts += [f"<th{' class=n' if n else ''}>{text(name)}</th>" for n, name in enumerate(header)]
    parts.append("<th></th></tr></thead><tbody>")
    for line in document.lines:
        cells = _cells(document, line)
        marked = (
            "bad" if line.verdict == "missed" or line.trend == "worse" else "good" if line.verdict == "met" else "soft"
        )
        meaning = text(names.BY_NAME[line.kpi].meaning)
        parts.append(f'<tr><td title="{meaning}">{text(cells[0])}</td>')
        parts += [f'<td class="n">{text(cell)}</td>' for cell in cells[1:-1]]
        parts.append(f'<td class="{marked}">{text(cells[-1])}</td></tr>')
    parts.append("</tbody></table>")
    if document.curves:
        limits = {line.kpi: line.limit for line in document.lines if line.limit is not None}
        parts.append('<h2>Over time</h2><div class="charts">')
        parts += [
            chart(name, points, document.begin_s, document.end_s, limits.get(name))
            for name, points in document.curves.items()
            if len(points) > 1
        ]
        parts.append("</div>")
    if document.cards:
        parts.append("<h2>Cards</h2><table><thead><tr>")
        rows = _card_rows(document)
        parts += [f"<th{' class=n' if n else ''}>{text(cell)}</th>" for n, cell in enumerate(rows[0])]
        parts.append("</tr></thead><tbody>")
        for row in rows[1:]:
            parts.append(
                "<tr>" + "".join(f"<td{' class=n' if n else ''}>{text(c)}</td>" for n, c in enumerate(row)) + "</tr>"
            )
        parts.append("</tbody></table>")
    if advice:
        parts.append("<h2>Advice</h2><ol>")
        parts += [
            f"<li><b>{text(rule)}</b> {text(change)} <span class=soft>{text(evidence)}</span></li>"
            for rule, change, evidence in advice
        ]
        parts.append("</ol>")
    if document.events:
        parts.append("<h2>Events</h2><ul>")
        parts += [f"<li>{when(e.time_s)} {text(e.kind)}: {text(e.text)}</li>" for e in document.events[-_MOST_EVENTS:]]
        parts.append("</ul>")
    parts += [f'<p class="sub">{text(note)}.</p>' for note in (*filter(None, [loads(document)]), *document.notes)]
    parts.append("</body></html>\n")
    return "\n".join(parts)


def chart(name: str, points: Sequence[Point], begin_s: float, end_s: float, limit: float | None) -> str:
    """One figure over time as SVG: the mean as a line, up to the 95th percentile shaded, the limit dashed."""
    kpi = names.BY_NAME[name]
    peak = max(point.high if point.high is not None else point.value for point in points)
    top = _round_up(max(peak, limit or 0.0) * 1.05) or 1.0

    def x(time_s: float) -> float:
        return _LEFT + (time_s - begin_s) / (end_s - begin_s) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - min(1.0, max(0.0, value / top)) * (_HEIGHT - _TOP - _BOTTOM)

    step_s = min((b.time_s - a.time_s for a, b in itertools.pairwise(points)), default=1.0)
    runs: list[list[Point]] = [[points[0]]]
    for point in points[1:]:
        if point.time_s - runs[-1][-1].time_s > 2.5 * step_s:
            runs.append([])
        runs[-1].append(point)
    drawn = []
    for run in runs:
        line = " ".join(f"{x(p.time_s):.1f},{y(p.value):.1f}" for p in run)
        if any(p.high is not None for p in run):
            upper = " ".join(f"{x(p.time_s):.1f},{y(p.high if p.high is not None else p.value):.1f}" for p in run)
            lower = " ".join(f"{x(p.time_s):.1f},{y(p.value):.1f}" for p in reversed(run))
            drawn.append(f'<polygon points="{upper} {lower}" fill="var(--two)" opacity=".55"/>')
        if len(run) == 1:
            drawn.append(f'<circle cx="{x(run[0].time_s):.1f}" cy="{y(run[0].value):.1f}" r="2" fill="var(--one)"/>')
        else:
            drawn.append(f'<polyline points="{line}" fill="none" stroke="var(--one)" stroke-width="1.6"/>')
    if limit is not None:
        drawn.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" stroke="var(--limit)" '
            'stroke-dasharray="5 4"/>'
        )
    grid = []
    for share in (0.0, 0.5, 1.0):
        at = y(top * share)
        grid.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>')
        grid.append(
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{html.escape(value(kpi.unit, top * share))}</text>'
        )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        at_s = begin_s + (end_s - begin_s) * share
        grid.append(
            f'<text x="{x(at_s):.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{_clock(at_s, end_s - begin_s)}</text>'
        )
    last = value(kpi.unit, points[-1].value)
    label = f"{kpi.label}, last {last}, peak {value(kpi.unit, peak)}"
    shaded = " (shaded: to p95)" if any(point.high is not None for point in points) else ""
    return (
        f'<figure><figcaption>{html.escape(kpi.label)} <span class="soft">{html.escape(last)}{shaded}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">{"".join(grid)}{"".join(drawn)}</svg></figure>'
    )


def value(unit: str, number: float | None) -> str:
    """A number with its unit, as a person reads it."""
    if number is None:
        return ""
    if unit == "ms":
        return format_ms(number)
    if unit in ("fraction", "score"):
        return f"{number:.1%}"
    if unit == "USD":
        return f"{number:.2f} USD"
    if unit in ("requests", "tokens", "errors", "times", "pages"):
        return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"
    unit = unit.replace("requests/s", "req/s")
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"


def limited(line: Line) -> str:
    """A limit, and where it is on a percentile that and what was measured of it."""
    if line.limit is None or line.limit_percentile is None:
        return value(line.unit, line.limit)
    return f"p{line.limit_percentile} {value(line.unit, line.limit)} ({value(line.unit, line.at_limit) or '-'})"


def subtitle(document: Document) -> str:
    """The window, the engine and how often it answered."""
    report = document.figures
    length = document.end_s - document.begin_s
    parts = [f"{when(document.begin_s)} to {when(document.end_s)} UTC ({format_ms(length * 1000)})"]
    if report.engine:
        parts.append(report.engine)
    if document.recipe:
        parts.append(document.recipe)
    parts.append(f"{report.scrapes} looks, {report.failed_scrapes} failed, {report.restarts} restarts")
    return "; ".join(parts)


def promised(document: Document) -> str:
    """What the column of promises holds: for the load that came where it is known, else for that of the plan."""
    return "planned" if document.traffic is None else "predicted"


def promise(document: Document, line: Line) -> float | None:
    """What was to be expected of a figure."""
    return line.planned if document.traffic is None else line.predicted


def loads(document: Document) -> str:
    """For which load predictions are; empty where they are for that of the plan."""
    if document.traffic is None:
        return ""
    load = document.traffic
    hits = f", {load.prefix_hit_fraction:.0%} of the prompt cached" if load.prefix_hit_fraction >= 0.005 else ""
    return (
        f"predicted for the load that came: {load.concurrency} requests at once of {load.input_tokens:,} tokens, "
        f"answers of {load.output_tokens:,}{hits}"
    )


def when(time_s: float) -> str:
    """A moment in UTC."""
    return dt.datetime.fromtimestamp(time_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def verdict(line: Line) -> str:
    """What is to be said of a figure."""
    said = {
        "met": "limit kept",
        "missed": "LIMIT MISSED",
        "inside": "as predicted",
        "outside": "not as predicted",
        "": "",
    }[line.verdict]
    return ", ".join(part for part in (said, line.trend) if part) or (line.why if line.measured is None else "")


def _cells(document: Document, line: Line) -> list[str]:
    planned = value(line.unit, promise(document, line))
    if line.low is not None and line.high is not None:
        planned += f" ({value(line.unit, line.low)} to {value(line.unit, line.high)})"
    cells = [
        line.label,
        value(line.unit, line.measured) or "-",
        value(line.unit, line.p95),
        planned,
        limited(line),
    ]
    if document.before is not None:
        change = "" if line.change_fraction is None else f"{line.change_fraction:+.1%}"
        cells += [value(line.unit, line.before), change]
    return [*cells, verdict(line)]


def _card_rows(document: Document) -> list[list[str]]:
    kept = [name for name in names.BY_NAME if any(name in card.figures for card in document.cards)]
    rows = [["card", *(names.BY_NAME[name].label for name in kept)]]
    rows += [
        [card.name, *(value(names.BY_NAME[name].unit, card.figures.get(name)) for name in kept)]
        for card in document.cards
    ]
    return rows


def _card_table(document: Document) -> list[str]:
    head, *rows = _card_rows(document)
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def _clock(time_s: float, length_s: float) -> str:
    form = "%H:%M:%S" if length_s < 3600 else "%H:%M" if length_s < 2 * 86400 else "%m-%d"
    return dt.datetime.fromtimestamp(time_s, dt.UTC).strftime(form)


def _round_up(number: float) -> float:
    """The next number of the form 1, 1.5, 2, 3, 5, 7.5 times a power of ten."""
    if number <= 0:
        return 0.0
    power = 10.0 ** (len(f"{int(number)}") - 1) if number >= 1 else 10.0 ** -len(f"{int(1 / number)}")
    return next((step * power for step in (1, 1.5, 2, 3, 5, 7.5, 10, 20) if step * power >= number), number)
