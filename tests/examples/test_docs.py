"""What pages say: quoted output is what is printed, options and targets exist, and what exists has its page."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from aim_engine import settings
from aim_engine.cli import main
from aim_engine.render.targets import TARGETS

ROOT = Path(__file__).parent.parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "bench" / "README.md"]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def commands_shown(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ aim-engine ")]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words after `aim-engine` name, and the rest of them."""
    module, _, attribute = main.COMMANDS[words[0]][0].partition(":")
    command, rest = getattr(importlib.import_module(module), attribute), words[1:]
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, rest[0]
        command, rest = found, rest[1:]
    return command, rest


def test_the_quoted_output_is_what_the_commands_print() -> None:
    check = [sys.executable, str(ROOT / "tools" / "console.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SHOWN = [(path, line) for path in PAGES for line in commands_shown(path)]


@pytest.mark.parametrize(("path", "line"), SHOWN, ids=[f"{path.stem}: {line[:60]}" for path, line in SHOWN])
def test_a_command_on_a_page_uses_options_that_exist(path: Path, line: str) -> None:
    for part in line.split(" | "):
        words = shlex.split(part)[1:]
        if words[0] == "--version":
            continue
        command, rest = command_of(words)
        own = rest[: rest.index("--")] if "--" in rest else rest
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word.partition("=")[0] for word in own if word.startswith("-") and len(word) > 1} <= known


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("plan", "plan Qwen/Qwen3-32B --gpus 8xMI300X --json"),
        ("plan", "plan meta-llama/Llama-3.1-405B-Instruct --gpus 1xMI300X --json"),
        ("model", "model deepseek-ai/DeepSeek-R1 --json"),
        ("cluster", "gpus --json"),
    ],
)
def test_a_document_keeps_to_its_published_schema(kind: str, line: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    run = [sys.executable, "-m", "aim_engine", *line.split()]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    jsonschema.validate(json.loads(done.stdout), json.loads(page(f"reference/schema/{kind}.json")))


def test_every_command_has_its_heading() -> None:
    reference = page("reference/commands.md")
    assert [name for name in main.COMMANDS if f"\n## aim-engine {name}\n" not in reference] == []


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]+)[ a-zA-Z.`]", "".join(re.findall(r"^\| `.*", readme, re.MULTILINE))))
    assert set(main.COMMANDS) - named == set()


def test_every_setting_has_its_row() -> None:
    reference = page("reference/settings.md")
    assert [name for name in settings.Settings.__struct_fields__ if f"\n| `{name}` |" not in reference] == []


def test_every_target_has_its_row_and_nothing_else_has() -> None:
    rows = re.findall(r"^\| `([a-z][a-z-]*)` \|", page("guides/render.md"), re.MULTILINE)
    assert sorted(rows) == sorted(TARGETS)


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w/-]+\.md", yaml.dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = [str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")]
    assert sorted(listed) == sorted(pages)


def test_every_make_target_on_a_page_exists() -> None:
    rules = re.findall(r"^([a-z][a-z ]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    named = {name for path in PAGES for name in re.findall(r"(?:`|\$ )make ([a-z]+)", path.read_text(encoding="utf-8"))}
    assert named <= targets


def test_links_on_pages_outside_the_documentation_lead_somewhere() -> None:
    for path in sorted(ROOT.glob("*.md")):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
        assert [link for link in links if not (ROOT / link).exists()] == [], path.name


def test_no_page_speaks_of_the_place_it_was_written_in() -> None:
    words = re.compile(
        r"/work/\w|\bissue #?\d+ of ours\b|\bhelper [A-Z]-\w+|\bH-[a-z]+\b|\bSEED\.md|\bCONVENTIONS\b|\bBRIEF\b"
    )
    texts = [
        path
        for pattern in ("*", "src/**/*", "docs/**/*", "bench/*", "tools/*", "changes/*", ".ci/*")
        for path in ROOT.glob(pattern)
    ]
    readable = (".py", ".md", ".yaml", ".yml", ".toml", ".sh", "")
    found = [
        str(path)
        for path in texts
        if path.is_file() and path.suffix in readable and words.search(path.read_text(errors="replace"))
    ]
    assert found == []
