"""Write which ways to spread a model were measured beside each other: `data/measured/splits.json`.

    python tools/measured_splits.py TABLE --models FOLDER

TABLE has the columns that `aim-engine accuracy` reads. Two splits stand beside each other when one project measured both with the same
engine, card, formats and request lengths within two months: what tells them apart is then the split, not the release.
"""

from __future__ import annotations

import argparse
import datetime as dt
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import msgspec

from aim_engine import workflow
from aim_engine.perf import situation
from aim_engine.planner import table
from aim_engine.planner.beside import Curve, Point, Setup
from aim_engine.planner.table import Case
from aim_engine.settings import Settings

TARGET = Path(__file__).parent.parent / "src" / "aim_engine" / "data" / "measured" / "splits.json"
DAYS = 61
"""Further apart, another release was measured."""
SPLITS, LOADS = 2, 2
"""So many splits must a setup have, each with so many loads."""
Row = dict[str, str]


def main() -> None:
    """Read the table, write the setups."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("table", type=Path)
    options.add_argument("--models", type=Path, help="configs of models that the catalogue lacks")
    asked = options.parse_args()
    rows = [row for row in table.parse(asked.table.read_text(encoding="utf-8"), asked.table.name) if comparable(row)]
    cases = workflow.table_reader(asked.models, Settings(offline=True), asked.table).read(rows)
    found = setups([(row, case) for row, case in zip(rows, cases, strict=True) if isinstance(case, Case)])
    lines = ",\n".join(msgspec.json.encode(setup, order="deterministic").decode() for setup in found)
    TARGET.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    sys.stdout.write(f"{len(found)} setups, {sum(len(setup.curves) for setup in found)} curves\n")


def comparable(row: Row) -> bool:
    """Whether a row is of one server under a load that is known, as it is today."""
    return (
        row.get("is_latest", "1") == "1"
        and row.get("metric_kind") == "serving"
        and row.get("disagg", "") != "1"
        and not row.get("spec_decoding")
        and row.get("quality") != "C-suspect"
        and all(number(row, name) for name in ("concurrency_or_batch", "gpu_count", "input_len", "output_len"))
        and bool(number(row, "tpot_ms_mean", "tpot_ms_median") and number(row, "output_tok_s", "total_tok_s"))
    )


def setups(pairs: list[tuple[Row, Case]]) -> list[Setup]:
    """Setups with more than one split."""
    groups: dict[tuple[str, ...], list[tuple[Row, Case]]] = defaultdict(list)
    for row, case in pairs:
        if case.recipe.replicas != 1:
            continue
        where = situation.of(case.spec, case.gpu, case.recipe, case.workload, engine=case.engine)
        document = re.sub(r"[:@].*", "", row["source"])
        lengths = (row["input_len"], row["output_len"])
        groups[
            where.family, case.gpu.name, case.recipe.precision, row["kv_dtype"], case.engine, document, *lengths
        ].append((row, case))
    found = []
    for key, members in sorted(groups.items()):
        family, gpu, precision, _, engine, document, input_len, output_len = key
        newest = max(day(row) for row, _ in members)
        recent = [(row, case) for row, case in members if (newest - day(row)).days <= DAYS]
        by_split: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row, case in recent:
            by_split[case.recipe.parallelism.describe()][number(row, "concurrency_or_batch")].append(row)
        curves = tuple(
            Curve(split=split, points=tuple(point(load, rows) for load, rows in sorted(loads.items())))
            for split, loads in sorted(by_split.items())
            if len(loads) >= LOADS
        )
        if len(curves) >= SPLITS:
            found.append(
                Setup(
                    family=family,
                    model=members[0][1].spec.model_id,
                    gpu=gpu,
                    precision=precision,
                    engine=engine,
                    input_tokens=int(input_len),
                    output_tokens=int(output_len),
                    curves=curves,
                    source=f"{document}, {newest.isoformat()}",
                )
            )
    return found


def point(load: float, rows: list[Row]) -> Point:
    """The median of what was measured at a load."""
    times = [number(row, "tpot_ms_mean", "tpot_ms_median") for row in rows]
    speeds = []
    for row in rows:
        output = number(row, "output_tok_s")
        if not output:
            output = (
                number(row, "total_tok_s") * int(row["output_len"]) / (int(row["input_len"]) + int(row["output_len"]))
            )
        speeds.append(output / number(row, "gpu_count"))
    return Point(
        requests=int(load),
        tpot_ms=round(statistics.median(times), 2),
        tok_s_per_gpu=round(statistics.median(speeds), 1),
    )


def day(row: Row) -> dt.date:
    """When a row was measured."""
    return dt.date.fromisoformat(row["source_date"][:10])


def number(row: Row, *names: str) -> float:
    """The first of these cells that holds a number; 0 when none does."""
    for name in names:
        try:
            return float(row.get(name) or "")
        except ValueError:
            continue
    return 0.0


if __name__ == "__main__":
    main()
