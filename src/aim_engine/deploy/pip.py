"""Driving pip and Python of another environment: quiet, cancellable, with errors that say what to do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from aim_engine.deploy import endpoint, interrupt, logfile, process
from aim_engine.errors import Unreachable

Progress = Callable[[str], None]
_ANNOUNCED_MB = 50.0
"""Downloads and local files from this size on are named while waiting."""
_HEARTBEAT_S = 20.0
_PIP_WITH_TARGET = (22, 3)
"""The first pip that installs into the environment of another Python (--python)."""
_DOWNLOAD = re.compile(
    r"Downloading (?P<file>[\w.+-]+?)-(?P<version>\d[\w.+!]*)-\S+ \((?P<size>[\d.]+) (?P<unit>[kMG]B)\)"
)
_MB = {"kB": 0.001, "MB": 1.0, "GB": 1000.0}
_PROBLEMS = (
    (
        re.compile(
            r"NewConnectionError|Temporary failure in name resolution|Connection refused|Read timed out|ProxyError|Network is unreachable|Max retries exceeded"
        ),
        "the package index cannot be reached",
        "check the network and the proxy, or point pip at a mirror (pip config set global.index-url ...)",
    ),
    (
        re.compile(r"SSLError|CERTIFICATE_VERIFY_FAILED"),
        "the package index' certificate is not trusted",
        "set PIP_CERT to your CA bundle",
    ),
    (
        re.compile(r"No space left on device|Errno 28"),
        "the disk is full",
        "free space, or set AIM_ENGINE_DATA_DIR and TMPDIR to a larger disk",
    ),
    (
        re.compile(r"No matching distribution found for (?P<what>\S+)"),
        "no configured package index has {what} for this Python and machine",
        "for torch builds with +cpu the index https://download.pytorch.org/whl/cpu must be reachable, or the file be in pip's find-links",
    ),
    (
        re.compile(r"401 Client Error|403 Client Error|407 "),
        "the package index refuses access",
        "check the credentials in pip's configuration",
    ),
    (
        re.compile(r"THESE PACKAGES DO NOT MATCH THE HASHES"),
        "a downloaded file is not what the index promised",
        "clear pip's cache: pip cache purge",
    ),
    (re.compile(r"Permission denied|Errno 13"), "a file may not be written", "check who owns the folder"),
)
_NOT_FOR_PIP = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_USER",
    "PIP_REQUIRE_VIRTUALENV",
    "VIRTUAL_ENV",
)


def python_version(python: str) -> tuple[int, int] | None:
    """(major, minor) of an interpreter; None when it does not start."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", "import sys; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        major, minor = done.stdout.split()
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def make_environment(interpreter: str, folder: Path, log: Path) -> tuple[str, ...]:
    """An empty virtual environment, and the pip command that installs into it. Raises: Unreachable.

    The interpreter's own pip is used where it can serve another environment: that saves seconds, and works where the
    distribution packages venv without ensurepip.
    """
    log.write_text("")
    python = str(folder / "bin" / "python")
    if _pip_version(interpreter) >= _PIP_WITH_TARGET:
        if _run([interpreter, "-I", "-m", "venv", "--without-pip", str(folder)], log, _environ()) == 0:
            return (interpreter, "-m", "pip", "--python", python)
    elif _run([interpreter, "-I", "-m", "venv", str(folder)], log, _environ()) == 0:
        return (python, "-m", "pip")
    said = "\n".join(logfile.tail(log, 40))
    missing = "ensurepip" in said
    raise Unreachable(
        f"{interpreter} cannot make a virtual environment",
        why="it has neither pip nor ensurepip" if missing else _last(said),
        hint="apt install python3-venv, or give another interpreter with --python" if missing else f"see {log}",
    )


def install(
    pip: tuple[str, ...],
    packages: tuple[str, ...],
    *,
    dependencies: bool,
    extra_index: str | None,
    title: str,
    log: Path,
    progress: Progress,
) -> None:
    """Install packages with the command `pip`. Raises: Unreachable with the likely cause."""
    command = [
        *pip, "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off",
        "--no-warn-script-location", "--retries", "3",
    ]  # fmt: skip
    command += [] if dependencies else ["--no-deps"]
    command += ["--extra-index-url", extra_index] if extra_index else []
    progress(f"{title}: {packages[0]}{f' and {len(packages) - 1} packages' if len(packages) > 1 else ''}")
    started = time.monotonic()

    def tell(line: str) -> str | None:
        match = _DOWNLOAD.search(line)
        if match is not None and float(match["size"]) * _MB[match["unit"]] >= _ANNOUNCED_MB:
            return f"downloading {match['file'].replace('_', '-')} {match['version']} ({match['size']} {match['unit']})"
        return f"unpacking {line.count(',') + 1} packages" if line.startswith("Installing collected packages") else None

    before = log.stat().st_size if log.exists() else 0
    code = _run([*command, *packages], log, _environ(), watch=tell, progress=progress)
    if code != 0:
        said = log.read_bytes()[before:].decode("utf-8", "replace")
        raise _explain(f"{title} could not be installed", said, log)
    progress(f"{title}: done in {time.monotonic() - started:.0f} s")


def index_answers(url: str) -> bool:
    """Can a package index be reached? Asked before pip, which would retry for minutes per package."""
    try:
        return endpoint.get(f"{url.rstrip('/')}/", timeout_s=5.0).status < 500
    except Unreachable:
        return False


def add_alias(python: Path, name: str, version: str) -> None:
    """Let `importlib.metadata.version(name)` answer `version` in an environment."""
    site = Path(_output(python, "import sysconfig; print(sysconfig.get_paths()['purelib'])"))
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "INSTALLER").write_text("aim-engine\n")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{file},,\n" for file in ("METADATA", "INSTALLER", "RECORD")))


def relocate_scripts(folder: Path, destination: Path) -> None:
    """Rewrite the scripts of an environment for the place it is about to be moved to: they name their interpreter."""
    old, new = os.fsencode(folder), os.fsencode(destination)
    for script in (folder / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        content = script.read_bytes()
        if old in content and not content.startswith(b"\x7fELF"):
            script.write_bytes(content.replace(old, new))


def run_json(python: Path, program: str, env: dict[str, str], log: Path) -> dict[str, object]:
    """What a program prints after `AIM-ENGINE `, run by `python`; its version is added as `python`. Raises: Unreachable."""
    code = _run([str(python), "-c", program], log, {**_environ(), **env})
    lines = logfile.tail(log, 200)
    said = next((line.removeprefix("AIM-ENGINE ") for line in reversed(lines) if line.startswith("AIM-ENGINE ")), None)
    if code != 0 or said is None:
        raise Unreachable("the engine was installed but does not start", why=_last("\n".join(lines)), hint=f"see {log}")
    return {**json.loads(said), "python": _output(python, "import platform; print(platform.python_version())")}


def _run(
    command: list[str],
    log: Path,
    env: dict[str, str],
    *,
    watch: Callable[[str], str | None] | None = None,
    progress: Progress | None = None,
) -> int:
    """Run a command to its end with its output in `log`. An interruption ends it and all it started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    growing = logfile.Growing(log)
    growing.new_lines()
    with log.open("ab") as handle:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=handle, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
    quiet_since = started = time.monotonic()
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(timeout=0.5)
            for line in growing.new_lines() if watch is not None else ():
                says = watch(line) if watch is not None else None
                if says and progress is not None:
                    progress(says)
                    quiet_since = time.monotonic()
            if running.returncode is not None:
                return running.returncode
            if progress is not None and time.monotonic() - quiet_since > _HEARTBEAT_S:
                progress(f"still at it after {time.monotonic() - started:.0f} s")
                quiet_since = time.monotonic()
    except BaseException:
        with interrupt.held_off():
            process.end_session(running.pid, grace_s=3.0)
            running.send_signal(signal.SIGKILL)
            running.wait()
        raise


def _pip_version(interpreter: str) -> tuple[int, int]:
    try:
        done = subprocess.run(
            [interpreter, "-m", "pip", "--version"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=_environ(),
        )
        major, minor = done.stdout.split()[1].split(".")[:2]
        return int(major), int(minor)
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return 0, 0


def _output(python: Path, program: str) -> str:
    done = subprocess.run([str(python), "-I", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise Unreachable(f"{python} does not work", why=_last(done.stderr))
    return done.stdout.strip()


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_FOR_PIP}


def _explain(what: str, said: str, log: Path) -> Unreachable:
    for pattern, cause, remedy in _PROBLEMS:
        match = pattern.search(said)
        if match is not None:
            cause = cause.format(**match.groupdict())
            return Unreachable(what, why=cause, hint=f"{remedy}; the whole output is in {log}")
    return Unreachable(what, why=_last(said), hint=f"the whole output is in {log}")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR") or re.match(r"\w*(Error|Exception)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:300]
