"""Write the generated pages of the documentation: commands, settings, figures, cards, models, schemas.

    python tools/reference.py [--check]

With --check nothing is written; exits 1 and names the pages that are out of date.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import click
import msgspec

from aim_engine import settings
from aim_engine.cli.main import COMMANDS
from aim_engine.deploy.runner import Deployment
from aim_engine.doctor.examine import CHECKS
from aim_engine.doctor.report import Diagnosis
from aim_engine.hardware import catalog as cards
from aim_engine.hardware.cluster import Cluster
from aim_engine.hardware.gpu import Gpu
from aim_engine.kpi import names as kpis
from aim_engine.model import catalog as models
from aim_engine.model.spec import ModelSpec
from aim_engine.monitor.figures import KpiReport
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import Recipe
from aim_engine.rollout import Outcome
from aim_engine.units import format_bytes, format_count

DOCUMENTS: tuple[tuple[str, type[msgspec.Struct], str], ...] = (
    ("plan", Plan, "`plan --json`, `plan -o`"),
    ("recipe", Recipe, "the `recipe` of a plan; files that `validate` reads"),
    ("model", ModelSpec, "`model --json`"),
    ("cluster", Cluster, "`gpus --json`"),
    ("diagnosis", Diagnosis, "`doctor --json`"),
    ("gpu", Gpu, "`data/gpus/NAME.yaml`"),
    ("up", Outcome, "`up --json`"),
    ("deployment", Deployment, "`status --json`, `deployment.json` of a deployment"),
    ("kpis", KpiReport, "the `report` of `up --json`"),
)
"""Documents whose whole shape is one type: kind, type, where it is met."""
DOCS = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "<!-- Written by tools/reference.py; edit the code it describes instead. -->\n\n"


def main() -> int:
    """Write or check every page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, content in pages().items():
        path = DOCS / name
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            continue
        if check:
            stale.append(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    for name in stale:
        print(f"out of date: docs/reference/{name}; run: python tools/reference.py")
    return 1 if stale else 0


def pages() -> dict[str, str]:
    """File name -> content of every generated page."""
    found = {
        "commands.md": NOTE + commands(),
        "settings.md": NOTE + settings_page(),
        "figures.md": NOTE + figures(),
        "cards.md": NOTE + cards_page(),
        "models.md": NOTE + models_page(),
        "documents.md": NOTE + documents_page(),
        "checks.md": NOTE + checks_page(),
    }
    for name, kind, _ in DOCUMENTS:
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}
        found[f"schema/{name}.json"] = json.dumps(schema, indent=1, sort_keys=True) + "\n"
    return found


def commands() -> str:
    """Each command with its arguments, options and example, from its own help."""
    lines = [
        "# Commands",
        "",
        "Every command prints a table for people, and with `--json` one document for programs.",
        "",
    ]
    lines += [
        "Exit codes: 0 done, 1 the answer is no, 2 wrong input, 3 something outside failed, 70 a bug, 130 interrupted.",
        "",
    ]
    for name, (where, _) in COMMANDS.items():
        module, _, attribute = where.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        lines += _command(command, f"aim-engine {name}", "##")
    return "\n".join(lines) + "\n"


def _command(command: click.Command, path: str, level: str) -> list[str]:
    context = click.Context(command, info_name=path, terminal_width=100, max_content_width=100)
    lines = [f"{level} {path}", "", "```text", command.get_help(context).strip(), "```", ""]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                lines += _command(inner, f"{path} {name}", level + "#")
    return lines


def settings_page() -> str:
    """Every setting with the docstring that its field carries."""
    source = Path(settings.__file__).read_text(encoding="utf-8")
    lines = [
        "# Settings",
        "",
        "A flag wins over an `AIM_ENGINE_*` variable, that over the settings file, that over the default.",
        "",
    ]
    lines += ["| setting | variable | meaning |", "|---|---|---|"]
    for field in msgspec.structs.fields(settings.Settings):
        after = source.split(f"    {field.name}: ", 1)[1]
        text = " ".join(after.split('"""')[1].split())
        lines.append(f"| `{field.name}` | `{settings.PREFIX}{field.name.upper()}` | {text} |")
    return "\n".join(lines) + "\n"


def documents_page() -> str:
    """What `--json` prints, and the JSON schema of each document that is one type."""
    lines = [
        "# Documents",
        "",
        'With `--json` a command prints one document. Its `schema` says what it is and in which version, as in `"aim-engine/plan/v1"`;',
        "within a version, keys are added and none is removed or changes its meaning.",
        "",
        "| kind | where | JSON schema |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {where} | [{name}.json](schema/{name}.json) |" for name, _, where in DOCUMENTS]
    return "\n".join(lines) + "\n"


def figures() -> str:
    """The vocabulary of measurement."""
    lines = ["# Figures", "", "| name | unit | meaning | engine metrics, newest name first |", "|---|---|---|---|"]
    lines += [f"| `{k.name}` | {k.unit} | {k.meaning} | {', '.join(f'`{m}`' for m in k.metrics)} |" for k in kpis.ALL]
    return "\n".join(lines) + "\n"


def cards_page() -> str:
    """The hardware catalogue; an empty cell is a figure that is not known."""
    lines = [
        "# Cards",
        "",
        "Figures are of one device as a process sees it; an MI250 card is two. Each has its source in `data/gpus/`.",
        "",
    ]
    lines += [
        "| name | target | memory | bandwidth TB/s | bf16 TFLOP/s | fp8 TFLOP/s | links |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in cards.names():
        gpu = cards.load(name)
        bandwidth = f"{gpu.bandwidth_bytes_s / 1e12:.3g}" if gpu.bandwidth_bytes_s else ""
        flops = [f"{gpu.compute_flop_s[t] / 1e12:.5g}" if t in gpu.compute_flop_s else "" for t in ("bf16", "fp8")]
        links = f"{gpu.links.kind}, {gpu.links.peers} peers" if gpu.links and gpu.links.kind == "xgmi" else ""
        lines.append(
            f"| {name} | {gpu.arch} | {format_bytes(gpu.memory_bytes)} | {bandwidth} | {flops[0]} | {flops[1]} | {links} |"
        )
    return "\n".join(lines) + "\n"


def checks_page() -> str:
    """What `doctor` asks of a host."""
    lines = [
        "# Host checks",
        "",
        f"The {len(CHECKS)} questions that `aim-engine doctor` asks. Where the answer is no, it shows the evidence and the command",
        "that mends it. The severity is the usual one; a case can be worse or milder.",
        "",
        "| id | question | severity | what no costs | source |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {c.id} | {c.asks} | {c.severity} | {c.effect} | {c.source} |" for c in CHECKS]
    return "\n".join(lines) + "\n"


def models_page() -> str:
    """The bundled models."""
    lines = [
        "# Bundled models",
        "",
        "Any other model is planned from its folder, its config.json, the local cache or the hub.",
        "",
    ]
    lines += ["| model | parameters | format | context |", "|---|---|---|---|"]
    for name in models.names():
        spec = models.load(name)
        if spec is not None:
            lines.append(
                f"| {name} | {format_count(spec.parameters.total)} | {spec.format} | {spec.max_position_embeddings:,} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
