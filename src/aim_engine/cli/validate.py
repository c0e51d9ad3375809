"""`aim-engine validate`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from aim_engine import settings as all_settings
from aim_engine.backend.base import Backend, Change
from aim_engine.cli import files, output
from aim_engine.cli import validate_written as written
from aim_engine.cli.validate_written import Checker
from aim_engine.errors import AimError, InvalidInput
from aim_engine.hardware.cluster import Finding
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.planner import plan as plans
from aim_engine.recipe import exchange, seed_shape
from aim_engine.render import (
    check_command,
    check_compose,
    check_helm,
    check_host,
    check_kubernetes,
    check_values,
    document,
    script,
)
from aim_engine.settings import Settings

if TYPE_CHECKING:
    from aim_engine.doctor.host import Host

_SUFFIXES = (".yaml", ".yml", ".json", ".sh", ".env")
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One file, what it was taken for and what was found."""

    file: str
    kind: str
    findings: tuple[Finding, ...]


@click.command(
    epilog="Example: aim-engine validate -- vllm serve Qwen/Qwen3-32B --max-model-len 32k --tensor-parallel-size 2"
)
@click.argument("items", metavar="FILE...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--engine-version", metavar="X.Y.Z", help="Engine release to check against. Default: the one that is named."
)
@click.option("--engine", default="vllm", show_default=True, help="Serving engine.")
@click.option(
    "--gpu",
    "--gpus",
    "card",
    metavar="CARD",
    help="Card that it will run on, such as MI300X or 8xMI300X: adds the rules that depend on it.",
)
@click.option(
    "--host",
    "host_root",
    is_flag=False,
    flag_value="/",
    type=click.Path(path_type=Path),
    help="Judge for this machine, or for a recorded one: adds what `doctor` finds there and the rules that need it.",
)
@click.option("--kubernetes-version", metavar="X.Y", help="Release of the cluster that manifests are meant for.")
@click.option("--fix", is_flag=True, help="Apply the remedies that have one right answer, and show what changed.")
@click.option("--sarif", "as_sarif", is_flag=True, help="One SARIF 2.1.0 document, as code hosts read it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def validate(
    items: tuple[str, ...],
    engine_version: str | None,
    engine: str,
    card: str | None,
    host_root: Path | None,
    kubernetes_version: str | None,
    fix: bool,
    as_sarif: bool,
    as_json: bool,
) -> int:
    """Check plans, recipes, manifests, Compose files and command lines, whoever wrote them.

    FILE is a file, a folder of files, or - for stdin; after -- a command line can stand instead. Arguments and variables are
    checked against the tables of the engine's release, and against rules on models, cards and releases.
    """
    from aim_engine import backend, workflow

    settings = all_settings.load()
    overlay = workflow.overlay_dir(settings)
    host, facts = _host(host_root, settings) if host_root is not None else (None, {})
    gpu = _card(card or facts.get("host_card"), settings)
    chosen = _knowing(backend.get(engine, overlay), gpu, facts, settings)
    version = chosen.release(engine_version).version if engine_version else None
    checker = Checker(
        backend=chosen, version=version, kubernetes_version=kubernetes_version, settings=settings, gpu=gpu
    )
    if check_command.starts_engine(script.Line(words=_without_assignments(items), env={})):
        if fix:
            items = _fixed_line(items, checker)
        findings = check_command.argv(items, "command", chosen, version)
        checked = [Checked(file="command line", kind="command line", findings=findings)]
    else:
        for name in _expanded(items) if fix else ():
            _fix_file(name, checker)
        checked = _files(items, checker)
    if host is not None:
        checked.append(Checked(file="host", kind=f"host {host.node.name}", findings=_host_findings(host)))
    errors, warnings = (
        sum(finding.severity == severity for entry in checked for finding in entry.findings)
        for severity in ("error", "warning")
    )
    if as_sarif:
        from aim_engine.cli import sarif

        output.data(sarif.document((entry.file, finding) for entry in checked for finding in entry.findings))
    elif as_json:
        counts = {"errors": errors, "warnings": warnings}
        output.data({"schema": "aim-engine/findings/v1", "files": checked, **counts})
    else:
        _show(checked, errors, warnings)
    return 1 if errors else 0


def _host(root: Path, settings: Settings) -> tuple[Host, dict[str, Any]]:
    """The facts of a machine, live or recorded, and what rules may know of them."""
    from aim_engine import workflow
    from aim_engine.backend import around
    from aim_engine.doctor import host as hosts
    from aim_engine.hardware import recording

    with recording.opened(root) as folder:
        host = hosts.read(folder, overlay=workflow.overlay_dir(settings))
        return host, around.of_host(host) | around.of_cdi(folder)


def _host_findings(host: Host) -> tuple[Finding, ...]:
    """What `doctor` finds wrong, in the words of a finding; remarks are left to it."""
    from aim_engine.doctor.examine import examine

    return tuple(
        Finding(
            id=problem.id,
            severity=problem.severity,
            message=f"{problem.message}: {problem.effect}" if problem.effect else problem.message,
            evidence=problem.evidence,
            remedy="; ".join(problem.fix),
            source=problem.source,
        )
        for problem in examine(host).problems
        if problem.severity != "info"
    )


def _card(named: str | None, settings: Settings) -> Gpu | None:
    """The card that was named, with or without a count. Raises: InvalidInput."""
    from aim_engine import workflow
    from aim_engine.hardware import catalog

    return None if named is None else catalog.parse_request(named, workflow.overlay_dir(settings))[1]


def _knowing(engine: Backend, gpu: Gpu | None, facts: dict[str, Any], settings: Settings) -> Backend:
    """The engine with what is known here of models, card and host, so that its rules can ask."""
    from aim_engine import workflow
    from aim_engine.model import library

    offline = msgspec.structs.replace(settings, offline=True)

    def describe(model: str) -> ModelSpec | None:
        try:
            found = workflow.describe(model, offline)
        except AimError:
            return None
        return found if library.has_its_shapes(found) else None

    return engine.knowing(describe, gpu, facts)


def _fixed_line(words: tuple[str, ...], checker: Checker) -> tuple[str, ...]:
    """A line that starts an engine repaired and shown beside the old one; `docker run` as it is."""
    import shlex

    from aim_engine.backend import lint

    start = len(words) - len(_without_assignments(words))
    plain = words[start:]
    line = lint.command_of(words, {})
    if line is None:
        output.note("only lines with an engine's own command are rewritten; the remedies below are for you to apply")
        return words
    engine = checker.backend.sibling("sglang" if any("sglang" in word for word in line.program) else "vllm")
    done = engine.repair(line.args, line.env, checker.version or engine.versions()[0])
    old = line.program[-1].startswith("vllm.entrypoints")
    head = ("vllm", "serve") if old else plain[: len(plain) - len(line.args)]
    new = (*(f"{name}={value}" for name, value in done.env.items()), *head, *done.args)
    if done.changes:
        output.text(f"- {shlex.join(words)}")
        output.text(f"+ {shlex.join(new)}")
        _show_changes(done.changes)
    return new


def _fix_file(name: str, checker: Checker) -> None:
    """Rewrite a YAML or JSON file with what `repair` answers, and show the difference."""
    import difflib
    import json

    import yaml

    from aim_engine.render import repair

    content = files.read_text(name)
    documents, _ = _documents(content, name)
    if name == "-" or not documents or not all(isinstance(entry, dict) for entry in documents):
        output.note(f"{name} is not rewritten: only files of YAML or JSON are")
        return
    if str(documents[0].get("schema", "")).startswith("aim-engine/"):
        output.note(f"{name} is not rewritten: plan again instead")
        return
    found = [repair.document(entry, checker.backend, checker.version) for entry in documents]
    changes = tuple(change for _, each in found for change in each)
    if not changes:
        return
    if content.lstrip().startswith("{"):
        old, new = (json.dumps(each, indent=2) + "\n" for each in (documents[0], found[0][0]))
    else:
        old, new = (
            yaml.safe_dump_all(each, sort_keys=False, width=120, allow_unicode=True)
            for each in (documents, [fixed for fixed, _ in found])
        )
    for line in difflib.unified_diff(old.splitlines(), new.splitlines(), name, f"{name} (fixed)", lineterm=""):
        output.text(line)
    _show_changes(changes)
    Path(name).write_text(new, encoding="utf-8")


def _show_changes(changes: tuple[Change, ...]) -> None:
    for change in changes:
        old = change.what or "(nothing)"
        output.note(f"{old} -> {change.to or '(dropped)'}: {change.why}")


def _show(checked: list[Checked], errors: int, warnings: int) -> None:
    rows = [
        (finding.severity, finding.id, _place(entry, finding, len(checked)), finding.message, finding.remedy)
        for entry in checked
        for finding in sorted(entry.findings, key=lambda finding: ("error", "warning", "info").index(finding.severity))
    ]
    for entry in checked:
        if not entry.findings:
            output.text(f"{entry.file}: {entry.kind}, nothing wrong")
    if rows:
        kinds = ", ".join(f"{entry.file}: {entry.kind}" for entry in checked if entry.findings)
        output.table(kinds, ("severity", "rule", "where", "what", "remedy"), rows)
        output.text(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")


def _place(entry: Checked, finding: Finding, several: int) -> str:
    return f"{entry.file}: {finding.evidence}" if several > 1 else finding.evidence


def _without_assignments(words: tuple[str, ...]) -> tuple[str, ...]:
    start = next((index for index, word in enumerate(words) if not _ASSIGNMENT.fullmatch(word)), len(words))
    return words[start:]


def _files(items: tuple[str, ...], checker: Checker) -> list[Checked]:
    """Each file for itself, but all manifests together, since they refer to each other."""
    checked: list[Checked] = []
    manifests: dict[str, tuple[list[Any], tuple[Finding, ...]]] = {}
    for name in _expanded(items):
        shown = "stdin" if name == "-" else name
        content = files.read_text(name)
        documents, repeated = _documents(content, shown)
        if documents and any(isinstance(entry, dict) and _is_manifest(entry) for entry in documents):
            manifests[shown] = documents, repeated
            checked.append(Checked(file=shown, kind="Kubernetes manifests", findings=()))
            continue
        kind, findings = _one(content, documents, shown, checker)
        checked.append(Checked(file=shown, kind=kind, findings=(*repeated, *findings)))
    if not manifests:
        return checked
    together = [entry for documents, _ in manifests.values() for entry in documents]
    found = check_kubernetes.check(together, checker.backend, checker.version, checker.kubernetes_version)
    homes = [(shown, {_object_name(entry) for entry in documents}) for shown, (documents, _) in manifests.items()]
    by_file: dict[str, list[Finding]] = {shown: list(repeated) for shown, (_, repeated) in manifests.items()}
    for finding in found:
        about = finding.evidence.partition(": ")[0]
        by_file[next((shown for shown, names in homes if about in names), homes[0][0])].append(finding)
    return [
        msgspec.structs.replace(entry, findings=tuple(by_file[entry.file])) if entry.file in by_file else entry
        for entry in checked
    ]


def _expanded(items: tuple[str, ...]) -> list[str]:
    """Files as given, folders as the files in them that can be checked. Raises: InvalidInput for an empty folder."""
    found: list[str] = []
    for item in items:
        if item.startswith("-") and item != "-":
            raise InvalidInput(f"there is no option '{item}'", hint="a command line to check stands after --")
        if not os.path.isdir(item):  # noqa: PTH112 - a whole command line may stand here, too long for a name
            found.append(item)
            continue
        inside = sorted(str(path) for path in Path(item).iterdir() if path.suffix in _SUFFIXES and path.is_file())
        if (Path(item) / "Chart.yaml").is_file():  # what it holds beside its values is Helm's
            inside = [path for path in inside if Path(path).name.startswith("values") and not path.endswith(".json")]
        if not inside:
            folders = sorted({str(path.parent) for path in Path(item).glob("*/*") if path.suffix in _SUFFIXES})
            raise InvalidInput(
                f"the folder {item} holds nothing to check",
                why=f"no {', '.join(_SUFFIXES)} files",
                hint=f"aim-engine validate {' '.join(folders)}" if folders else None,
            )
        found += inside
    return list(dict.fromkeys(found))


def _documents(content: str, shown: str) -> tuple[list[Any], tuple[Finding, ...]]:
    """The mappings that `content` holds as YAML or JSON; nothing when it is a script or an env file.

    Raises: InvalidInput when it ought to be YAML and is not.
    """
    if not content.strip():
        raise InvalidInput(f"{shown} is empty")
    first = next(iter(check_command.commands(content)), None)
    if shown.endswith(".sh") or (first is not None and check_command.starts_engine(first)):
        return [], ()  # a script; JSON in its arguments can look like YAML
    try:
        documents, repeated = document.read(content, shown)
    except InvalidInput:
        if shown.endswith((".yaml", ".yml", ".json")) or not _is_script(content):
            raise
        return [], ()
    if any(isinstance(entry, dict) for entry in documents):
        return documents, repeated
    return [], ()


def _is_script(content: str) -> bool:
    return _starts_engine(content) or _is_env(content)


def _starts_engine(content: str) -> bool:
    return any(check_command.starts_engine(line) for line in check_command.commands(content))


def _one(content: str, documents: list[Any], shown: str, checker: Checker) -> tuple[str, tuple[Finding, ...]]:
    """The kind of a file that is no manifest, and what is wrong with it. Raises: InvalidInput when it is of no known kind."""
    first = documents[0] if documents else None
    if isinstance(first, dict):
        schema = str(first.get("schema", ""))
        if schema.startswith("aim-engine/plan/"):
            return "plan", _plan(content, shown, checker)
        if exchange.shape_of(first) == "aim":
            return "AIM profile", written.profile(first, checker)
        if schema.startswith("aim-engine/recipe/") or seed_shape.is_seed_shape(first):
            return "recipe", written.recipe(first, checker)
        if isinstance(first.get("recipes"), list) and "model_id" in first:
            return "recipes of a catalogue", written.catalogue(first)
        if check_helm.is_values(first):
            return "values of a chart", check_helm.check(first, checker.backend, checker.version)
        if check_compose.is_compose(first):
            return "Compose file", check_compose.check(first, checker.backend, checker.version)
        if check_values.is_values(first):
            return "Helm values", check_values.check(first, checker.backend, checker.version)
        if exchange.is_arguments(first):
            return "engine arguments", written.arguments(first, checker)
        if "image" in first and {"args", "command", "devices", "ports"} & set(first):
            container = check_compose.container(first, "container")
            return "container", check_host.check(container, checker.backend, checker.version)
    elif _starts_engine(content):
        return "command line", check_command.check(content, checker.backend, checker.version)
    elif _is_env(content):
        version = checker.version or checker.backend.versions()[0]
        return "env file", checker.backend.check((), _env(content), version)
    raise InvalidInput(
        f"{shown} is of no kind this command knows",
        why="it knows plans, recipes, engine arguments, Kubernetes manifests, Helm values, Compose files, env files and lines with vllm serve or docker run",
    )


def _is_manifest(entry: dict[str, Any]) -> bool:
    return "apiVersion" in entry or ("kind" in entry and "metadata" in entry)


def _object_name(entry: Any) -> str:
    name = document.get(entry, "metadata", "name") if isinstance(entry, dict) else None
    return f"{entry.get('kind') or 'object'}/{name or '?'}" if isinstance(entry, dict) else ""


def _is_env(content: str) -> bool:
    lines = [line for line in content.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return all(_ASSIGNMENT.fullmatch(line) for line in lines)


def _env(content: str) -> dict[str, str]:
    found = {}
    for line in content.splitlines():
        match = _ASSIGNMENT.fullmatch(line)
        if match is not None:
            found[match[1]] = match[2].strip().strip("'\"")
    return found


def _plan(content: str, shown: str, checker: Checker) -> tuple[Finding, ...]:
    from aim_engine.planner import validate as rules

    made = files.decode_plan(content, shown) if content.lstrip().startswith("{") else _plan_of_yaml(content, shown)
    return rules.plan_findings(made, checker.backend)


def _plan_of_yaml(content: str, shown: str) -> plans.Plan:
    documents, _ = document.read(content, shown)
    return files.decode_plan(msgspec.json.encode(documents[0]).decode(), shown)
