"""Shell text that starts an engine: `vllm serve ...` and `docker run ...`, in scripts, notes or on one line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from aim_engine.backend import lint
from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_engine, check_host, script
from aim_engine.render.check_engine import Container
from aim_engine.render.check_host import HostContainer
from aim_engine.render.findings import error, info, warning
from aim_engine.render.script import Line

_ENGINES = ("docker", "podman", "nerdctl")
_SWITCH_NAMES = (
    "--detach --interactive --tty --rm --privileged --init --no-healthcheck --oom-kill-disable --publish-all --read-only "
    "--sig-proxy --disable-content-trust --quiet --help --use-api-socket --rmi --replace --tls-verify"
)
_SWITCHES = frozenset(_SWITCH_NAMES.split())
"""Options of `docker run` that take no value. Source: docker run --help, 28.2; podman run --help, 4.3."""
_SHORT_SWITCHES = "ditPq"
_LONG_OF_SHORT = {
    "e": "--env",
    "v": "--volume",
    "p": "--publish",
    "u": "--user",
    "w": "--workdir",
    "h": "--hostname",
    "l": "--label",
    "m": "--memory",
    "a": "--attach",
    "c": "--cpu-shares",
}
_IMAGE_VARIABLE = re.compile(r"\$\{?\w*(?:image|img|container)", re.IGNORECASE)
_TALKERS = ("echo", "printf", "cat", "grep", "pgrep", "pkill", "which", "man")
"""Commands that speak of an engine and start none."""
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_WHEELS = "wheels.vllm.ai/rocm"
WHEEL_PYTHON = "3.12"
"""Source: vllm-project/vllm:docs/getting_started/installation/gpu.rocm.inc.md@v0.33.0."""


def commands(content: str) -> tuple[Line, ...]:
    """The simple commands of a shell text, read without running anything; continued lines and quotes are followed."""
    return script.commands(content, _starts)


def starts_engine(line: Line) -> bool:
    """The command is one this module checks."""
    return _starts(line.words)


def _starts(words: tuple[str, ...]) -> bool:
    if words and words[0] in _TALKERS:
        return False
    return _container_words(words) is not None or _serves(words)


def check(content: str, backend: Backend, version: str | None = None) -> tuple[Finding, ...]:
    """What is wrong with every engine that the text starts. Raises: InvalidInput when it starts none."""
    lines = [line for line in commands(content) if starts_engine(line)]
    if not lines:
        raise InvalidInput(
            "this starts no engine",
            why="neither `vllm serve`, `sglang.launch_server` nor `docker run` was found in it",
            hint="vllm serve MODEL ...",
        )
    found: list[Finding] = list(_installs(content))
    for index, line in enumerate(lines):
        where = "command" if len(lines) == 1 else f"command {index + 1}"
        found += check_line(line, where, backend, version)
    return tuple(dict.fromkeys(found))


def _installs(content: str) -> Iterator[Finding]:
    """Installations of the engine's ROCm wheel by a Python that it is not built for."""
    for line in commands(content):
        words = line.words
        if "install" not in words or not any(_WHEELS in word for word in words):
            continue
        named = [
            match[1] for word in words if (match := re.search(r"^(?:.*/)?(?:python|pip)?(3\.\d+)$", word)) is not None
        ]
        if named and named[0] != WHEEL_PYTHON:
            yield error(
                "VER005",
                f"the ROCm wheel is built for Python {WHEEL_PYTHON} only, and Python {named[0]} installs it",
                f"Python {WHEEL_PYTHON}; with another one the CUDA wheel is taken without a word",
                "command: install",
            )


def check_line(line: Line, where: str, backend: Backend, version: str | None) -> Iterator[Finding]:
    """What is wrong with one command that starts an engine."""
    words = _container_words(line.words)
    if words is None:
        env = line.env | script.handed_on(line.words)
        container = Container(where=where, image="", entrypoint=line.words, env=env)
        name = check_engine.engine_of(container, "", backend.name)
        named = backend if name == backend.name else backend.sibling(name)
        known = named.versions()
        engine, found = check_engine.check(container, named, version if version in known else known[0])
        yield from (finding for finding in found if finding.id != "VER009")
        if engine is not None:
            yield from _reach(engine, env, where)
            yield from _unseen(line, named, engine.version, where)
        return
    container, problems = docker_run(words, where)
    yield from problems
    if container.image:
        yield from check_host.check(container, backend, version)


def argv(words: tuple[str, ...], where: str, backend: Backend, version: str | None) -> tuple[Finding, ...]:
    """What is wrong with a command given as separate words. Raises: InvalidInput when it starts no engine."""
    rest = list(words)
    env: dict[str, str] = {}
    while rest and _ASSIGNMENT.fullmatch(rest[0]):
        name, _, value = rest.pop(0).partition("=")
        env[name] = value
    line = Line(words=tuple(rest), env=env)
    if not starts_engine(line):
        raise InvalidInput(
            f"'{' '.join(words[:3])}' starts no engine",
            why="it is neither `vllm serve` nor `docker run`",
            hint="vllm serve MODEL",
        )
    return tuple(dict.fromkeys(check_line(line, where, backend, version)))


def docker_run(words: tuple[str, ...], where: str) -> tuple[HostContainer, tuple[Finding, ...]]:
    """The container that the words after `docker run` describe, and options without their value."""
    options: list[tuple[str, str]] = []
    problems: list[Finding] = []
    rest = list(words)
    unknown = ""
    while rest and (rest[0].startswith(("-", "$")) or not rest[0]):
        if _IMAGE_VARIABLE.match(rest[0]):
            break
        word = rest.pop(0)
        if word == "--":
            break
        if not word.startswith("-"):
            unknown = word  # a script's own variable: nothing is known of it
            continue
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            letters = word[1:].lstrip(_SHORT_SWITCHES)
            options += [(f"-{letter}", "") for letter in word[1 : len(word) - len(letters)]]
            if not letters:
                continue
            name, value = _LONG_OF_SHORT.get(letters[0], f"-{letters[0]}"), letters[1:].removeprefix("=")
            equals = value
        if name in _SWITCHES:
            options.append((name, value or "true"))
        elif equals:
            options.append((name, value))
        elif rest:
            options.append((name, rest.pop(0)))
        else:
            problems.append(error("DOC011", f"{name} needs a value", "", where))
    if not rest and unknown:
        problems.append(
            info("DOC012", f"the image is in {unknown}, so nothing about the engine was checked", "", where)
        )
    elif rest and lint.is_open(check_engine.split_image(rest[0])[0]):
        problems.append(info("DOC012", f"the image is in {rest[0]}, so what is in it was not checked", "", where))
    elif not rest:
        problems.append(error("DOC011", "no image is named", "give the image after the options", where))
    return _described(options, tuple(rest), where), tuple(problems)


def _described(options: list[tuple[str, str]], rest: tuple[str, ...], where: str) -> HostContainer:
    def all_of(*names: str) -> tuple[str, ...]:
        return tuple(value for name, value in options if name in names)

    def last(name: str) -> str | None:
        values = all_of(name)
        return values[-1] if values else None

    entrypoint = last("--entrypoint")
    env = dict(value.partition("=")[::2] for value in all_of("--env") if "=" in value)
    if all_of("--env-file"):
        env.setdefault("VLLM_API_KEY", "$from-a-file")
    return HostContainer(
        where=where,
        image=rest[0] if rest else "",
        entrypoint=(entrypoint,) if entrypoint else None,
        args=rest[1:],
        env=env,
        devices=all_of("--device"),
        asks_engine_for_gpus=bool(all_of("--gpus")) or last("--runtime") == "amd",
        gpus_flag=bool(all_of("--gpus")),
        shm_bytes=check_host.size(last("--shm-size")),
        host_ipc=last("--ipc") == "host",
        privileged=last("--privileged") == "true",
        host_network="host" in all_of("--network", "--net"),
        published=tuple(_published(all_of("--publish"))),
        capabilities=all_of("--cap-add", "--cap-drop"),
        mounts=tuple(_targets(all_of("--volume"), all_of("--mount"))),
        user=last("--user") or "",
        groups=all_of("--group-add"),
    )


def _published(values: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for value in values:
        plain = value.partition("/")[0]
        match = re.fullmatch(r"(?:(\[[0-9a-fA-F:]+\]|[^:]*):)?([^:]*):([^:]*)", plain)
        if match is not None:
            yield (match[1] or "0.0.0.0").strip("[]"), match[2]  # noqa: S104 - what Docker takes when none is given


def _targets(volumes: tuple[str, ...], mounts: tuple[str, ...]) -> Iterator[str]:
    for volume in volumes:
        parts = volume.split(":")
        yield parts[1] if len(parts) > 1 else parts[0]
    for mount in mounts:
        match = re.search(r"(?:target|dst|destination)=([^,]*)", mount)
        if match is not None:
            yield match[1].strip('"')


def _reach(engine: check_engine.Engine, env: Mapping[str, str], where: str) -> Iterator[Finding]:
    host = check_engine.option(engine.args, "--host")
    if host is None and engine.name == "sglang":
        return  # which listens on 127.0.0.1 unless told otherwise
    keyed = "VLLM_API_KEY" in env or check_engine.option(engine.args, "--api-key") is not None
    if not keyed and host in (None, "0.0.0.0", "::"):  # noqa: S104 - compared with, not listened on
        yield warning(
            "SEC001",
            "the engine listens on every network and asks for no key",
            "--host 127.0.0.1"
            + (", or set VLLM_API_KEY" if engine.name == "vllm" else ", or a proxy that asks for one"),
            where,
        )


def _unseen(line: Line, engine: Backend, version: str, where: str) -> Iterator[Finding]:
    """Variables that are meant for the engine and never get there."""
    read = engine.release(version).env
    for name, value in sorted(line.unexported.items()):
        if name in read and name.startswith(lint.PREFIXES[engine.name]):
            yield warning(
                "ENV014",
                f"{name}={value} is set but not exported, so the engine does not see it",
                f"export {name}={value}",
                where,
            )


def _container_words(words: tuple[str, ...]) -> tuple[str, ...] | None:
    """What follows `docker run`, wrappers such as `sudo -E` before it or not; None for another command."""
    for start, word in enumerate(words[:5]):
        if word.rsplit("/", 1)[-1] in _ENGINES:
            after = words[start + 1 :]
            after = after[1:] if after[:1] == ("container",) else after
            return after[1:] if after[:1] in (("run",), ("create",)) else None
    return None


def _serves(words: tuple[str, ...]) -> bool:
    for word, after in itertools.pairwise(words):
        if (word.rsplit("/", 1)[-1] in ("vllm", "sglang") and after == "serve") or (
            word == "-m" and after.startswith(("vllm.entrypoints", "sglang.launch_server"))
        ):
            return True
    return False
