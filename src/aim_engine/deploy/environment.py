"""Engine environments: serving engines installed where they cannot disturb anything, and found again.

An engine drags in 150 packages pinned to its own taste, so each lives in a virtual environment of its own below
`<data_dir>/engines/<name>-<version>`. What goes in is data (`data/engines/environments/<name>.yaml`). An environment is
built beside its place, checked by importing the engine, marked last and only then moved to its name, so that what has
the name works; a lock keeps two installations apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine import facts
from aim_engine.deploy import interrupt, pip, process
from aim_engine.errors import Corrupt, InvalidInput, Unreachable
from aim_engine.hardware.gpu import Provenance
from aim_engine.settings import Settings
from aim_engine.units import format_bytes

Progress = Callable[[str], None]
MARKER = "aim-engine-environment.json"
_VERIFY = """
import importlib.metadata, json, torch
import vllm.entrypoints.cli.serve
from vllm.platforms import current_platform
print("AIM-ENGINE " + json.dumps({
    "version": importlib.metadata.version("vllm"), "torch": torch.__version__, "hip": torch.version.hip,
    "cuda": torch.version.cuda, "device": current_platform.device_type}))
"""
"""Imports what `vllm serve` imports, so that a missing package is found now and not at the first start."""


class PythonRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Versions an engine was built for, both ends included."""

    oldest: str
    newest: str

    def holds(self, version: tuple[int, int]) -> bool:
        """Is `version` inside?"""
        return _version(self.oldest) <= version <= _version(self.newest)

    def describe(self) -> str:
        """`3.12`, or `3.11 to 3.14`."""
        return self.oldest if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of pip."""

    title: str
    packages: tuple[str, ...]
    dependencies: bool = False
    """Let pip resolve and install what the packages need?"""
    index: str | None = None
    """A package index asked besides the configured ones."""
    index_required: bool = False
    """Is the step hopeless when that index cannot be reached?"""


class Alias(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second name under which a distribution can be asked for its version."""

    name: str
    version: str


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an environment is made: the catalogue's file."""

    name: str
    engine: str
    version: str
    device: Literal["cpu", "rocm"]
    summary: str
    python: PythonRange
    machines: tuple[str, ...]
    glibc: str
    """Oldest C library that the engine's wheels run on."""
    steps: tuple[Step, ...]
    alias: Alias | None = None
    env: dict[str, str] = {}
    """Variables the engine needs when it runs."""
    program: tuple[str, ...]
    """What starts it, relative to the environment."""
    peak_bytes: int
    """Disk space taken while installing."""
    installed_bytes: int
    provenance: dict[str, Provenance]


class Marker(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/environment/v1"):
    """Written last into an environment: it is complete, and what it is."""

    name: str
    version: str
    recipe_digest: str
    """sha256 of the recipe it was made from."""
    python: str
    torch: str
    installed_at: str
    install_s: float
    installed_bytes: int


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """An installed engine."""

    name: str
    engine: str
    version: str
    device: str
    root: Path
    python: Path
    argv0: tuple[str, ...]
    """The engine's program with its whole path; the sub-command follows."""
    env: dict[str, str]
    marker: Marker
    current: bool
    """Was it made from the recipe this release of aim-engine has?"""


def names(overlay: Path | None = None) -> tuple[str, ...]:
    """Names of the environments there are recipes for."""
    folders = [folder for folder in (overlay, facts.BUNDLED) if folder is not None]
    return tuple(sorted({path.stem for folder in folders for path in folder.glob("engines/environments/*.yaml")}))


def recipe(name: str, overlay: Path | None = None) -> Recipe:
    """How to make an environment. Raises: InvalidInput with close names."""
    if facts.find(_relative(name), overlay) is None:
        import difflib

        known = names(overlay)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise InvalidInput(
            f"there is no engine '{name}' to install",
            why=f"there are recipes for {', '.join(known)}",
            hint=f"aim-engine engine install {close[0] if close else known[0]}",
        )
    return facts.load(_relative(name), Recipe, overlay)


def for_device(engine: str, device: str, overlay: Path | None = None) -> str:
    """Name of the environment that runs `engine` on a kind of device (`cpu` or `rocm`). Raises: InvalidInput."""
    for name in names(overlay):
        found = recipe(name, overlay)
        if (found.engine, found.device) == (engine, device):
            return name
    raise InvalidInput(
        f"there is no installable environment for {engine} on {device}", hint="use a container: --target docker"
    )


def find(name: str, data_dir: str | Path, overlay: Path | None = None) -> Environment | None:
    """The installed environment of that name; None when it is not installed, or not completely."""
    made = recipe(name, overlay)
    root = _root(made, data_dir)
    try:
        marker = msgspec.json.decode((root / MARKER).read_bytes(), type=Marker)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, OSError) as err:
        raise Corrupt(
            f"the engine environment {root} is damaged", why=str(err), hint=f"aim-engine engine remove {name}"
        ) from err
    if not (root / "bin" / "python").exists():  # the interpreter it was made with is gone
        return None
    return _installed(made, root, marker, current=marker.recipe_digest == _digest(made))


def ls(data_dir: str | Path, overlay: Path | None = None) -> tuple[Environment, ...]:
    """The installed environments, by name."""
    found = (find(name, data_dir, overlay) for name in names(overlay))
    return tuple(environment for environment in found if environment is not None)


def ensure(name: str, settings: Settings, progress: Progress) -> Environment:
    """The environment of that name, installed first when it is not there. Raises: Unreachable, InvalidInput."""
    overlay = Path(settings.catalog_dir).expanduser() if settings.catalog_dir else None
    present = find(name, settings.data_dir, overlay)
    if present is not None and present.current:
        return present
    return install(name, data_dir=settings.data_dir, overlay=overlay, progress=progress)


def install(
    name: str,
    *,
    data_dir: str | Path,
    python: str | None = None,
    overlay: Path | None = None,
    progress: Progress,
    force: bool = False,
) -> Environment:
    """Install an engine, or say that it is there. Ctrl-C and every error leave nothing half made.

    Raises: InvalidInput (this machine or Python does not do), Unreachable (network, disk, another installation).
    """
    made = recipe(name, overlay)
    root = _root(made, data_dir)
    with _lock(made, root), interrupt.raised():
        present = find(name, data_dir, overlay)
        if present is not None and present.current and not force:
            progress(f"{name} {present.version} is installed in {present.root}")
            return present
        _require_machine(made)
        interpreter = _interpreter(made, python)
        _require_space(made, root)
        partial = root.with_name(f"{root.name}.partial")
        log = root.with_name(f"{root.name}.log")
        _discard(partial)  # what an installation that was killed left
        try:
            marker = _build(made, partial, root, interpreter, log, progress)
            _publish(partial, root, marker)
        except OSError as err:
            raise Unreachable(
                f"{root} cannot be written", why=err.strerror, hint="free space, or set AIM_ENGINE_DATA_DIR"
            ) from err
        finally:
            with interrupt.held_off():
                _discard(partial)
    progress(f"{name} {made.version} installed in {marker.install_s:.0f} s, {format_bytes(marker.installed_bytes)}")
    return _installed(made, root, marker, current=True)


def remove(name: str, data_dir: str | Path, overlay: Path | None = None) -> int:
    """Remove an environment. Returns the bytes freed, 0 when there was none. Raises: InvalidInput while it runs."""
    made = recipe(name, overlay)
    root = _root(made, data_dir)
    if not root.exists():
        return 0
    with _lock(made, root):
        users = [pid for pid in process.all_ids() if process.command_line(pid).startswith(f"{root}{os.sep}")]
        if users:
            raise InvalidInput(
                f"{name} is running",
                why=f"process {users[0]} was started from {root}",
                hint="aim-engine status; aim-engine down",
            )
        freed = size_bytes(root)
        _discard(root)
        root.with_name(f"{root.name}.log").unlink(missing_ok=True)
    return freed


def size_bytes(folder: Path) -> int:
    """Bytes that the files below a folder hold."""
    total = 0
    for where, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, file)).st_size  # noqa: PTH118 - 40,000 files
    return total


def _installed(made: Recipe, root: Path, marker: Marker, *, current: bool) -> Environment:
    return Environment(
        name=made.name,
        engine=made.engine,
        version=marker.version,
        device=made.device,
        root=root,
        python=root / "bin" / "python",
        argv0=(str(root / made.program[0]), *made.program[1:]),
        env={**made.env, "PATH": f"{root / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"},
        marker=marker,
        current=current,
    )


def _build(made: Recipe, partial: Path, root: Path, interpreter: str, log: Path, progress: Progress) -> Marker:
    started = time.monotonic()
    indexes = _indexes(made)
    progress(f"installing {made.name} {made.version} into {root} (about {format_bytes(made.installed_bytes)})")
    command = pip.make_environment(interpreter, partial, log)
    python = partial / "bin" / "python"
    for step in made.steps:
        pip.install(
            command,
            step.packages,
            dependencies=step.dependencies,
            extra_index=indexes.get(step.index or ""),
            title=step.title,
            log=log,
            progress=progress,
        )
    if made.alias is not None:
        pip.add_alias(python, made.alias.name, made.alias.version)
    progress("checking the installation")
    said = pip.run_json(python, _VERIFY, made.env, log)
    _require_build(made, said)
    pip.relocate_scripts(partial, root)
    return Marker(
        name=made.name,
        version=made.version,
        recipe_digest=_digest(made),
        python=str(said["python"]),
        torch=str(said["torch"]),
        installed_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        install_s=round(time.monotonic() - started, 1),
        installed_bytes=size_bytes(partial),
    )


def _indexes(made: Recipe) -> dict[str, str]:
    """The further package indexes that answer. Raises: Unreachable when one does not without which it is hopeless."""
    answering = {}
    for step in made.steps:
        if step.index is None or step.index in answering:
            continue
        if pip.index_answers(step.index):
            answering[step.index] = step.index
        elif step.index_required:
            raise Unreachable(
                f"{made.name} comes from {step.index}, which cannot be reached",
                why="no answer within 5 s",
                hint="install where that index is reachable, or use the container image: --target docker",
            )
    return answering


def _publish(partial: Path, root: Path, marker: Marker) -> None:
    """Mark an environment complete and give it its name in one step."""
    (partial / MARKER).write_bytes(msgspec.json.format(msgspec.json.encode(marker), indent=2))
    old = root.with_name(f"{root.name}.old")
    _discard(old)
    if root.exists():
        root.rename(old)
    partial.rename(root)
    _discard(old)


def _require_build(made: Recipe, said: dict[str, object]) -> None:
    """Is what was installed the build for the device? Raises: Corrupt."""
    right = said["hip"] is not None if made.device == "rocm" else said["hip"] is None and said["cuda"] is None
    if not right or (made.device == "cpu" and said["device"] != "cpu"):
        raise Corrupt(
            f"{made.name} was installed, but as a build for another device",
            why=f"torch {said['torch']}, hip {said['hip']}, cuda {said['cuda']}, engine device '{said['device']}'",
            hint="check pip's configured indexes: pip config list",
        )
    if not str(said["version"]).startswith(made.version):
        raise Corrupt(f"{made.name} was installed, but calls itself {said['version']} instead of {made.version}")


def _require_machine(made: Recipe) -> None:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in made.machines:
        raise InvalidInput(
            f"{made.name} {made.version} is not built for this machine",
            why=f"it needs Linux on {' or '.join(made.machines)}, this is {sys.platform} on {machine}",
            hint="serve on another machine: aim-engine render --target docker or kubernetes",
        )
    library, version = platform.libc_ver()
    if library != "glibc" or _version(version) < _version(made.glibc):
        raise InvalidInput(
            f"{made.name} {made.version} needs glibc {made.glibc} or newer",
            why=f"this system has {library or 'another C library'} {version}".rstrip(),
            hint="use the container image: --target docker",
        )


def _require_space(made: Recipe, root: Path) -> None:
    folder = root.parent
    free = shutil.disk_usage(folder).free
    if free < made.peak_bytes:
        raise Unreachable(
            f"not enough disk space to install {made.name}",
            why=f"it takes {format_bytes(made.peak_bytes)} while installing, {folder} has {format_bytes(free)} free",
            hint="free space, or set AIM_ENGINE_DATA_DIR to a larger disk",
        )


def _interpreter(made: Recipe, asked: str | None) -> str:
    """A Python the engine was built for: the one asked for, the one running, or one found on this machine."""
    if asked is not None:
        version = pip.python_version(asked)
        if version is None or not made.python.holds(version):
            raise InvalidInput(
                f"{asked} cannot run {made.name}",
                why="it does not start" if version is None else f"it is Python {version[0]}.{version[1]}",
                hint=f"Python {made.python.describe()} is needed",
            )
        return asked
    for candidate in _candidates(made.python):
        version = pip.python_version(candidate)
        if version is not None and made.python.holds(version):
            return candidate
    raise InvalidInput(
        f"{made.name} {made.version} needs Python {made.python.describe()}, which was not found",
        why=f"this is Python {platform.python_version()}",
        hint=f"install python{made.python.newest}, give its path with --python, or use the image: --target docker",
    )


def _candidates(wanted: PythonRange) -> Iterator[str]:
    yield getattr(sys, "_base_executable", None) or sys.executable
    (major, oldest), (_, newest) = _version(wanted.oldest), _version(wanted.newest)
    for minor in range(newest, oldest - 1, -1):
        found = shutil.which(f"python{major}.{minor}")
        if found is not None:
            yield found
        pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
        yield from (str(path) for path in sorted(pyenv.glob(f"versions/{major}.{minor}.*/bin/python"), reverse=True))


@contextmanager
def _lock(made: Recipe, root: Path) -> Iterator[None]:
    """Keep a second installation out. Raises: Unreachable saying which process is at it."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        handle = root.with_name(f".{root.name}.lock").open("a+")
    except OSError as err:
        raise Unreachable(
            f"{root.parent} cannot be written", why=err.strerror, hint="set AIM_ENGINE_DATA_DIR to another folder"
        ) from err
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            handle.seek(0)
            raise Unreachable(
                f"{made.name} is being installed by another process",
                why=f"process {handle.read().strip() or 'unknown'} holds the lock",
                hint="wait until it is done, then run this again",
            ) from err
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _discard(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _root(made: Recipe, data_dir: str | Path) -> Path:
    return Path(data_dir).expanduser().absolute() / "engines" / f"{made.name}-{made.version}"


def _relative(name: str) -> str:
    return f"engines/environments/{name}.yaml"


def _digest(made: Recipe) -> str:
    """Of what decides an environment's contents; a corrected comment or figure does not call for a new one."""
    decisive = (made.version, made.steps, made.alias, made.program)
    return hashlib.sha256(msgspec.json.encode(decisive, order="deterministic")).hexdigest()


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    try:
        return int(major), int(minor.partition(".")[0] or 0)
    except ValueError:
        return 0, 0
