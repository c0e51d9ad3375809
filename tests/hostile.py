"""Text that means something to shells, YAML readers and Kubernetes, and what those readers make of a value."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import plans
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import replace

NASTY = (
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED #",
    "'; touch PWNED; '",
    '"; touch PWNED; "',
    "a\ntouch PWNED",
    "${HOME}",
    "$HOME",
    "$$",
    "$(VAR)",
    "\\",
    "\\\n",
    "~",
    "~root",
    "*",
    "{a,b}",
    "!!",
    "a: b",
    "a #b",
    "- a",
    "&a *a",
    "!!python/object:os.system",
    "yes",
    "1e3",
    "0o17",
    "1_000",
    "12:30:45",
    "null",
    "",
    " ",
    "\t",
    "\x85",
    "\u2028",
    "\x1b[31m",
    "é😀",
    "%s%n",
    "a,b",
    '"a"',
    "=",
    "${A:-b}",
)


def run(shell: str, script: str, recorder: Path, home: str = "/nonexistent") -> tuple[list[str], dict[str, str]]:
    """What the recorded program got when `shell` ran `script` in an empty folder, which must stay empty."""
    work, record = recorder.parent / "work", recorder.parent / "record"
    work.mkdir(exist_ok=True)
    record.mkdir(exist_ok=True)
    for stale in record.iterdir():
        stale.unlink()
    path = recorder.parent / "script.sh"
    path.write_text(script, encoding="utf-8", newline="")
    subprocess.run([shell, "-n", path], check=True, cwd=work)
    subprocess.run(
        [shell, path],
        check=True,
        cwd=work,
        capture_output=True,
        env={"PATH": f"{recorder}:{os.environ['PATH']}", "RECORD": str(record), "HOME": home, "LC_ALL": "C.UTF-8"},
    )
    assert list(work.iterdir()) == []
    args = (record / "args").read_bytes().decode().split("\0")[:-1]
    env = dict(entry.split("=", 1) for entry in (record / "env").read_bytes().decode().split("\0")[:-1])
    return args, env


def hostile(model_id: str, value: str, argument: str) -> Plan:
    """A plan for a CPU with strangers' text wherever text is free."""
    made = plans.on_cpu()
    assert made.chosen is not None
    recipe = replace(
        made.chosen.recipe,
        model_id=f"org/{model_id}",
        env={"VLLM_TARGET_DEVICE": "cpu", "FREE": value},
        extra_args=("--chat-template", argument),
    )
    model = msgspec.structs.replace(made.inputs.model, model_id=f"org/{model_id}")
    return msgspec.structs.replace(
        made,
        inputs=msgspec.structs.replace(made.inputs, model=model),
        chosen=msgspec.structs.replace(made.chosen, recipe=recipe),
    )


def compose_interpolated(value: Any) -> Any:
    """What Compose makes of `value`: `$$` is `$`; only the two variables we use ourselves are known."""
    if isinstance(value, dict):
        return {key: compose_interpolated(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [compose_interpolated(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return "".join(compose_parts(value))


def compose_parts(value: str) -> Iterator[str]:
    position = 0
    while position < len(value):
        if value[position] != "$":
            yield value[position]
            position += 1
        elif value.startswith("$$", position):
            yield "$"
            position += 2
        else:
            known = re.compile(r"\$\{(HOME|RENDER_GID:-109)\}").match(value, position)
            assert known is not None, f"a variable of ours? {value!r}"
            position = known.end()


def kubelet_expanded(value: str) -> str:
    """What the kubelet makes of `value`: `$$` is `$`, an unknown `$(NAME)` stays."""
    done, position = "", 0
    while position < len(value):
        if value.startswith("$$", position):
            done, position = done + "$", position + 2
        else:
            assert not value.startswith("$(", position), f"the kubelet would look {value!r} up"
            done, position = done + value[position], position + 1
    return done


_CODES = {"n": "\n", "t": "\t", "r": "\r"}


def unit_words(line: str) -> list[str]:
    """The words of a command line by the rules of systemd.syntax(7) and systemd.service(5), written from the manual."""
    words: list[str] = []
    position = 0
    line = line.replace("\\\n", " ")
    while position < len(line):
        if line[position] == " ":
            position += 1
            continue
        value, quoted = "", False
        while position < len(line) and (quoted or line[position] != " "):
            character = line[position]
            if character == '"':
                quoted = not quoted
            elif character == "\\":
                position += 1
                code = line[position]
                if code == "x":
                    value += chr(int(line[position + 1 : position + 3], 16))
                    position += 2
                else:
                    value += _CODES.get(code, code)
            else:
                assert character not in "\n\r\t"
                value += character
            position += 1
        assert not quoted
        assert not re.search(r"(?<!%)(?:%%)*%(?!%)", value)
        words.append(value.replace("%%", "%").replace("$$", "$"))
    return words
