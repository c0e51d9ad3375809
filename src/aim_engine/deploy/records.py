"""What was deployed: one folder per deployment, so that another shell, or the next boot, finds it again.

    <state_dir>/deployments/<name>/  deployment.json  plan.json  engine.log  exit.json

The folder is the truth; nothing is kept elsewhere. Files are replaced whole, never edited.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from aim_engine.deploy.runner import Deployment, Exit
from aim_engine.errors import Corrupt, InvalidInput, Unreachable
from aim_engine.planner import plan as plans
from aim_engine.planner.plan import Plan

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SCHEMA = "aim-engine/deployment/v1"


class Store:
    """The deployments of one user on one machine."""

    def __init__(self, state_dir: str | Path) -> None:
        self.root = Path(state_dir).expanduser().absolute() / "deployments"

    def folder(self, name: str) -> Path:
        """The folder of a deployment, which need not exist. Raises: InvalidInput for a name that is no DNS label."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"'{name}' is not a usable deployment name",
                why="lower-case letters, digits and hyphens only, at most 63, as in a host name",
                hint=f"--name {re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:63] or 'model'}",
            )
        return self.root / name

    def names(self) -> tuple[str, ...]:
        """Names of all recorded deployments."""
        try:
            return tuple(sorted(path.parent.name for path in self.root.glob("*/deployment.json")))
        except OSError as err:
            raise Unreachable(f"{self.root} cannot be read", why=err.strerror) from err

    def written(self) -> frozenset[tuple[str, int]]:
        """Every record and when it was last written: equal as long as nothing was deployed, changed or taken down."""
        found = set()
        for path in self.root.glob("*/deployment.json"):
            with contextlib.suppress(FileNotFoundError):  # it may go while we look
                found.add((path.parent.name, path.stat().st_mtime_ns))
        return frozenset(found)

    def members(self, name: str) -> tuple[str, ...]:
        """The records that a name means: its own, or those of all replicas of the deployment called so.

        Raises: InvalidInput when there are none.
        """
        if (self.folder(name) / "deployment.json").exists():
            return (name,)
        found = []
        for each in self.names():
            with contextlib.suppress(Corrupt):  # named by `status`; here it only means that it is none of these
                if self.load(each).group == name:
                    found.append(each)
        if not found:
            raise self._unknown(name)
        return tuple(found)

    def load(self, name: str) -> Deployment:
        """One record. Raises: InvalidInput when there is none (with close names), Corrupt when it cannot be read."""
        path = self.folder(name) / "deployment.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError as err:
            raise self._unknown(name) from err
        except OSError as err:
            raise Unreachable(f"{path} cannot be read", why=err.strerror) from err
        try:
            return msgspec.json.decode(content, type=Deployment)
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise self._unreadable(path, content, err) from err

    def plan(self, name: str) -> Plan:
        """The plan a deployment was started from. Raises: InvalidInput, Corrupt."""
        path = self.folder(name) / "plan.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Plan)
        except FileNotFoundError as err:
            raise self._unknown(name) from err
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise Corrupt(f"{path} is not a readable plan", why=str(err), hint=f"aim-engine down {name}") from err

    def save(self, deployment: Deployment, plan: Plan | None = None) -> None:
        """Write a record, and its plan when given, each in one piece. Raises: Unreachable when the disk refuses."""
        folder = self.folder(deployment.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if plan is not None:
                _replace(folder / "plan.json", plans.encode(plan))
            _replace(folder / "deployment.json", msgspec.json.format(msgspec.json.encode(deployment), indent=2))
        except OSError as err:
            raise Unreachable(
                f"{folder} cannot be written", why=err.strerror, hint="set AIM_ENGINE_STATE_DIR to another folder"
            ) from err

    def exit(self, name: str) -> Exit | None:
        """How a local engine ended, as its supervisor wrote it; None while it runs or when nobody saw it."""
        try:
            return msgspec.json.decode((self.folder(name) / "exit.json").read_bytes(), type=Exit)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as err:
            raise Corrupt(f"{self.folder(name) / 'exit.json'} is not readable", why=str(err)) from err

    def clear(self, name: str) -> None:
        """Remove what an earlier run under this name left, but for its folder."""
        for left in ("exit.json", "engine.log", "deployment.json", "plan.json"):
            with contextlib.suppress(FileNotFoundError):
                (self.folder(name) / left).unlink()

    def remove(self, name: str) -> None:
        """Forget a deployment, log included."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder(name))

    @contextmanager
    def reserved(self, name: str) -> Iterator[Path]:
        """Hold a name while deploying under it. Raises: Unreachable when another process does."""
        folder = self.folder(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = (folder / "lock").open("w")
        except OSError as err:
            raise Unreachable(
                f"{folder} cannot be written", why=err.strerror, hint="set AIM_ENGINE_STATE_DIR to another folder"
            ) from err
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise Unreachable(
                    f"'{name}' is being deployed by another process",
                    why=f"it holds {folder / 'lock'}",
                    hint="wait for it, or choose another name with --name",
                ) from err
            yield folder

    def _unknown(self, name: str) -> InvalidInput:
        import difflib

        known = self.names()
        close = difflib.get_close_matches(name, known, n=2)
        return InvalidInput(
            f"there is no deployment '{name}'",
            hint=f"did you mean {' or '.join(close)}?" if close else "aim-engine status lists them",
        )

    def _unreadable(self, path: Path, content: bytes, err: Exception) -> Corrupt:
        schema = None
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            document = msgspec.json.decode(content)
            schema = document.get("schema") if isinstance(document, dict) else None
        if isinstance(schema, str) and schema != _SCHEMA:
            return Corrupt(
                f"{path} was written by another version of aim-engine",
                why=f"it is {schema}, this version reads {_SCHEMA}",
                hint="use the version that wrote it, or stop the engine and remove the folder",
            )
        return Corrupt(
            f"{path} is not a readable deployment record",
            why=str(err),
            hint=f"stop what it started, then remove the folder {path.parent}",
        )


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
