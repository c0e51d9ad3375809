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

from aim_engine import backend, settings
from aim_engine.advise import knowledge
from aim_engine.advise.diagnose import Diagnosed
from aim_engine.backend import release, rules
from aim_engine.backend.base import Flag
from aim_engine.cli.alerts import said
from aim_engine.cli.main import COMMANDS
from aim_engine.deploy.runner import Deployment
from aim_engine.doctor.examine import CHECKS
from aim_engine.doctor.report import Diagnosis
from aim_engine.hardware import catalog as cards
from aim_engine.hardware.cluster import Cluster
from aim_engine.hardware.gpu import Gpu
from aim_engine.improve import Outcome as Applied
from aim_engine.kpi import formula
from aim_engine.kpi import names as kpis
from aim_engine.model import catalog as models
from aim_engine.model.spec import ModelSpec
from aim_engine.monitor.figures import KpiReport
from aim_engine.monitor.views import Document
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import Recipe
from aim_engine.render import alert_rules
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
    ("kpis", KpiReport, "the `report` of `up --json`, the `kpis` of `monitor --once --json`"),
    ("report", Document, "`report --json`"),
    ("advice", Diagnosed, "`suggest --json`"),
    ("applied", Applied, "`suggest --apply --json`"),
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
        "rules.md": NOTE + rules_page(),
        "arguments.md": NOTE + arguments_page(),
        "alerts.md": NOTE + alerts_page(),
        "advice.md": NOTE + advice_page(),
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
    lines = [
        "# Figures",
        "",
        "One definition of each figure gives the number from what `monitor` kept, and the PromQL for those who run Prometheus. PromQL is",
        "shown for vLLM over five minutes; series of every release are joined by `or`.",
        "",
        "| name | unit | meaning | metrics, newest name first |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{k.name}` | {k.unit} | {k.meaning} | {', '.join(f'`{m}`' for m in k.metrics)} |" for k in kpis.ALL]
    lines += ["", "## PromQL", ""]
    given = {"usd_h": 12.0, "slo_ttft_ms": 500.0}
    for kpi in kpis.ALL:
        if kpi.formula is None:
            continue
        text = formula.promql(kpi.formula, selector="", window="5m", parameters=given, edges={"ttft": ("0.5",)})
        scaled = text if kpi.scale == 1.0 else f"{text} * {kpi.scale:.6g}"
        lines += [f"`{kpi.name}`", "", "```promql", scaled, "```", ""]
    lines += [
        "`goodput_requests_s` is shown for a limit of 500 ms on the first token, `usd_per_million_tokens` for 12 USD an hour."
    ]
    return "\n".join(lines) + "\n"


def alerts_page() -> str:
    """The alert rules."""
    lines = [
        "# Alerts",
        "",
        "What `aim-engine monitor` judges every ten seconds, and `aim-engine alerts export` and `render` write for Prometheus. Limits named",
        "`slo_...` are those that the plan was asked to keep; a rule whose limit or figures are not known is not judged.",
        "",
        "| alert | severity | condition | for | basis |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {rule.name} | {rule.severity} | {said(rule)} | {rule.for_} | {rule.basis} |" for rule in alert_rules.load()
    ]
    return "\n".join(lines) + "\n"


def advice_page() -> str:
    """The diagnosis rules."""
    rules = knowledge.load()
    lines = [
        "# Advice",
        "",
        f"The {len(rules)} rules of `aim-engine suggest`, in the order of causes. A rule that fires silences those that it explains, and holds",
        "back those whose remedy would undo its own.",
        "",
        "| rule | about | symptom | first remedy | confidence | explains | source |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.id} | {knowledge.CLASSES[r.id[0]]} | {r.title} | {r.remedies[0].say} | {r.confidence} | {', '.join(r.explains)} | {r.source} |"
        for r in rules
    ]
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


def rules_page() -> str:
    """What `validate` judges by data."""
    by_engine = {name: rules.load(name) for name in backend.NAMES}
    shared = set.intersection(*({rule.id for rule in found} for found in by_engine.values()))
    groups = [
        ("On hosts, containers and clusters, whatever runs there", [r for r in by_engine["vllm"] if r.id in shared])
    ]
    groups += [(f"On {name}", [r for r in found if r.id not in shared]) for name, found in by_engine.items()]
    total = sum(len(found) for _, found in groups)
    lines = [
        "# Rules",
        "",
        f"The {total} rules that are data. `aim-engine validate` judges those whose facts are known: of the command line always, of the",
        "model when it is known here, of the card with `--gpu`, of the machine with `--host`, of the cluster with `--kubernetes-version`.",
        "Names in braces are filled in. Beside them stand the checks of arguments, images, privileges and manifests that are code.",
    ]
    for title, found in groups:
        lines += [
            "",
            f"## {title}",
            "",
            "| id | severity | says | because | do | source |",
            "|---|---|---|---|---|---|",
        ]
        for rule in sorted(found, key=lambda rule: rule.id):
            cells = (rule.id, rule.severity, rule.what, rule.why, rule.fix, rule.source)
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def arguments_page() -> str:
    """Every argument of every engine with the releases that take it."""
    lines = [
        "# Arguments of engines",
        "",
        "What the known releases' own parsers take: type, default where it is one value, first and last release that has the argument.",
        "The first known release may not be the first that had it; an empty cell under *last* means the newest still has it.",
    ]
    for name in backend.NAMES:
        known = backend.get(name).versions()[::-1]
        spans: dict[str, list[str]] = {}
        newest: dict[str, Flag] = {}
        for version in known:
            for flag in release.flags(name, version).flags:
                if flag.flags:
                    spans.setdefault(flag.flags[0], []).append(version)
                    newest[flag.flags[0]] = flag
        lines += ["", f"## {backend.get(name).title}, {known[0]} to {known[-1]}", ""]
        lines += ["| argument | type | default | first | last |", "|---|---|---|---|---|"]
        for word in sorted(spans):
            flag = newest[word]
            kind = "switch" if flag.nargs == 0 else flag.type or ""
            default = "" if flag.default is None or flag.nargs == 0 else f"`{flag.default}`"
            last = "" if spans[word][-1] == known[-1] else spans[word][-1]
            lines.append(f"| `{word}` | {kind} | {default} | {spans[word][0]} | {last} |".replace("<lambda>", "text"))
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
