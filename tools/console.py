"""Refresh the output that README and guides quote from a terminal.

    python tools/console.py [--check]

A `console` block is run again when all its commands answer the same on every machine (`REPEATABLE`) and it quotes output.
A quotation that ends in `...` keeps its number of lines; a command that quotes nothing runs, and stays without output. With --check nothing is written; exits 1 and shows what differs.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
REPEATABLE = re.compile(r"aim-engine (model|recipes|render|validate) |aim-engine plan .*--gpus \d")
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
CUT = "..."


def main() -> int:
    """Refresh or check every page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = False
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda match: refreshed(match[0]), old)
        if new == old:
            continue
        stale = True
        if check:
            name = str(page.relative_to(ROOT))
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), name, "now"))
        else:
            page.write_text(new, encoding="utf-8")
    if check and stale:
        print("out of date; run: python tools/console.py")
    return 1 if check and stale else 0


def pages() -> list[Path]:
    """Every page that may quote output, generated ones excepted."""
    guides = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"]
    return [ROOT / "README.md", *sorted(guides)]


def refreshed(block: str) -> str:
    """The block with its commands run again, or as it was when it is not one to run."""
    turns = parse(block)
    if not all(REPEATABLE.match(command) for command, _ in turns) or not any(quoted for _, quoted in turns):
        return block
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for command, quoted in turns:
            lines.append(f"$ {command}")
            said = run(command, Path(folder))
            if not quoted:
                continue
            if quoted[-1] == CUT and len(said) >= len(quoted):
                said = [*said[: len(quoted) - 1], CUT]
            lines += said
    return "\n".join(lines) + "\n"


def parse(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a block, each with the lines quoted below it."""
    turns: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            turns.append((line[2:], []))
        elif turns:
            turns[-1][1].append(line)
    return turns


def run(command: str, folder: Path) -> list[str]:
    """What a command says, both streams, without the blanks that end lines."""
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "AIM_ENGINE_OFFLINE": "1"}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n").splitlines()


if __name__ == "__main__":
    sys.exit(main())
