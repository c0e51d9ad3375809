"""Examples run, help texts' examples run, and what exists is documented."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from aim_engine import settings
from aim_engine.cli import main
from aim_engine.render.targets import TARGETS

ROOT = Path(__file__).parent.parent.parent
STARTS_SOMETHING = (
    "monitor",
    "top",
    "alerts try",
    "alerts unsilence",
    "cache approve",
    "cache rm",
    "cache serve",
    "cache sync",
    "cache unlock",
    "recipes keep",
    "cache why",
    "cache export",
    "cache import",
    "up",
    "engine install",
    "cache pull",
    "engine remove",
    "down",
    "logs",
)
"""Commands whose examples need an engine, a network or a deployment; the real-engine suite runs them."""


def environment(tmp_path: Path) -> dict[str, str]:
    own = {
        name: str(tmp_path / name) for name in ("AIM_ENGINE_STATE_DIR", "AIM_ENGINE_DATA_DIR", "AIM_ENGINE_CACHE_DIR")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **own, "PATH": path, "AIM_ENGINE_OFFLINE": "1"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.name)
def test_a_python_example_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=environment(tmp_path), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("name", ["compare_cards.sh"])
def test_a_shell_example_runs(name: str, tmp_path: Path) -> None:
    command = ["sh", str(ROOT / "examples" / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


def leaves(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        inner = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
        return [leaf for name, each in inner if each is not None for leaf in leaves(each, f"{path} {name}")]
    return [(path, command)]


def commands() -> list[tuple[str, click.Command]]:
    found = []
    for name, (where, _) in main.COMMANDS.items():
        module, _, attribute = where.partition(":")
        found += leaves(getattr(importlib.import_module(module), attribute), name)
    return found


COMMANDS = commands()
MEASURED = """model,gpu,gpu_count,tp,engine,precision,input_len,output_len,concurrency_or_batch,tpot_ms_mean,output_tok_s
Qwen/Qwen3-32B,MI300X,1,1,vllm,bf16,1024,512,16,25,610
"""


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_the_example_in_a_help_text_works(name: str, command: click.Command, tmp_path: Path) -> None:
    example = re.search(r"Example: (aim-engine .+)", command.epilog or "")
    assert example is not None, "every command ends its help with an example"
    line = example[1]
    assert f"aim-engine {name}" in line
    if name.startswith(STARTS_SOMETHING):
        line += " --help"  # the arguments are parsed, nothing is started
    if any(word.endswith((".json", ".yaml", ".sh")) for word in shlex.split(line)):
        for words in (
            "plan Qwen/Qwen3-32B --gpus 1xMI300X -o plan.json",
            "render plan.json --target kubernetes -o .",
            "render plan.json --target compose -o .",
        ):
            run = [sys.executable, "-m", "aim_engine", *words.split()]
            subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, env=environment(tmp_path))
    if "measured.csv" in line:
        (tmp_path / "measured.csv").write_text(MEASURED)
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path), check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_command_setting_and_target_is_documented() -> None:
    pages = "\n".join(path.read_text() for path in ROOT.glob("docs/**/*.md")) + (ROOT / "README.md").read_text()
    for name in (*main.COMMANDS, *TARGETS, *settings.Settings.__struct_fields__):
        assert name in pages, name


def test_the_project_speaks_of_itself_alone() -> None:
    files = [
        path
        for folder in ("src", "docs", "examples", "changes", "tests", "bench", "tools")
        for path in (ROOT / folder).rglob("*")
    ]
    texts = [path for path in files if path.suffix in (".py", ".md", ".yaml", ".sh") and path != Path(__file__)]
    words = re.compile(r"/work/(main|shared)|\bissue 2\b|\bhelper-\d|\bthis session\b", re.IGNORECASE)
    assert [str(path) for path in texts if words.search(path.read_text(errors="replace"))] == []
