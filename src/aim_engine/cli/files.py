"""Files that commands take and leave: text from a path or stdin, plans, and folders of rendered artifacts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.planner import plan as plans
from aim_engine.planner.plan import Plan
from aim_engine.render.artifact import Artifact

MAX_BYTES = 32 * 1024**2
"""No plan, manifest or script comes near it; a checkpoint given by mistake goes far beyond."""


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one artifact."""

    path: str
    outcome: Literal["written", "unchanged", "kept"]
    """kept: it holds tokens that are not ours to overwrite."""


def read_text(name: str) -> str:
    """The file `name`, or stdin for `-`. Raises: InvalidInput."""
    shown = "stdin" if name == "-" else name
    try:
        if name == "-":
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        raise InvalidInput(f"{shown} cannot be read", why=why) from err
    if len(content) > MAX_BYTES:
        raise InvalidInput(
            f"{shown} is larger than {MAX_BYTES // 1024**2} MiB", why="that is no text this command reads"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InvalidInput(f"{shown} is not a text file", why=f"byte {err.start} is not UTF-8") from err


def read_plan(name: str) -> Plan:
    """The plan in the file `name`, or on stdin for `-`. Raises: InvalidInput."""
    if name != "-" and not Path(name).exists():
        model = name if name.count("/") == 1 and not name.endswith(".json") else "MODEL"
        raise InvalidInput(
            f"there is no plan {name}",
            why="a file that `plan` wrote was expected",
            hint=f"aim-engine plan {model} -o plan.json",
        )
    return decode_plan(read_text(name), "stdin" if name == "-" else name)


def decode_plan(content: str, shown: str) -> Plan:
    """`content` as a plan. Raises: InvalidInput that says what it is instead."""
    again = "aim-engine plan MODEL -o plan.json"
    if not content.strip():
        raise InvalidInput(f"{shown} is empty", why="a plan was expected", hint=again)
    try:
        document = msgspec.json.decode(content)
    except msgspec.DecodeError as err:
        raise InvalidInput(f"{shown} is not a plan", why=f"it is not JSON: {err}", hint=again) from err
    found = document.get("schema") if isinstance(document, dict) else None
    if found != plans.SCHEMA:
        why = f"its schema is {found!r}, not {plans.SCHEMA!r}" if found else f"it has no schema {plans.SCHEMA!r}"
        raise InvalidInput(f"{shown} is not a plan this version reads", why=why, hint=again)
    try:
        return msgspec.convert(document, Plan)
    except msgspec.ValidationError as err:
        raise InvalidInput(f"{shown} is a damaged plan", why=str(err), hint=again) from err


def write_artifacts(folder: Path, artifacts: Iterable[Artifact], *, force: bool) -> tuple[Written, ...]:
    """Write into `folder`, all or nothing where the file system lets us; files that hold tokens are never overwritten.

    Raises: InvalidInput when a file there differs and `force` is off, Unreachable when the disk refuses.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(
            f"{folder} is a file, not a folder",
            why="the files are written into a folder",
            hint="-o FOLDER, or an archive: -o NAME.tar.gz",
        )
    outcomes = [(artifact, _outcome(folder / artifact.path, artifact, force)) for artifact in artifacts]
    partial: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for artifact, outcome in outcomes:
            if outcome == "written":
                partial.append((_write_partial(folder / artifact.path, artifact), folder / artifact.path))
        for temporary, path in partial:
            temporary.replace(path)
    except OSError as err:
        for temporary, _ in partial:
            temporary.unlink(missing_ok=True)
        raise Unreachable(f"the files cannot be written to {folder}", why=err.strerror) from err
    return tuple(
        Written(path=str(folder / artifact.path), outcome=outcome)  # type: ignore[arg-type]
        for artifact, outcome in outcomes
    )


def write_archive(path: Path, artifacts: Iterable[Artifact]) -> None:
    """Write a tar, compressed when the name ends in gz; the same artifacts give the same bytes. Raises: Unreachable."""
    import gzip
    import io
    import tarfile

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for artifact in artifacts:
            content = artifact.content.encode()
            entry = tarfile.TarInfo(artifact.path)
            entry.size, entry.mode = len(content), _mode(artifact)
            archive.addfile(entry, io.BytesIO(content))
    packed = gzip.compress(raw.getvalue(), mtime=0) if path.name.endswith("gz") else raw.getvalue()
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(packed)
        partial.replace(path)
    except OSError as err:
        partial.unlink(missing_ok=True)
        raise Unreachable(f"{path} cannot be written", why=err.strerror) from err


def read_folder(folder: Path, artifacts: Iterable[Artifact]) -> dict[str, str]:
    """What `folder` holds of the artifacts' files: path -> content. Raises: InvalidInput when one cannot be read."""
    found = {}
    for artifact in artifacts:
        path = folder / artifact.path
        if not artifact.secret and path.exists():
            found[artifact.path] = read_text(str(path))
    return found


def strangers(folder: Path, artifacts: Iterable[Artifact]) -> tuple[str, ...]:
    """YAML and JSON in `folder` that is not one of the artifacts, which whoever applies the whole folder would apply too."""
    own = {artifact.path for artifact in artifacts}
    found = (path for path in folder.iterdir() if path.suffix in (".yaml", ".yml", ".json") and path.is_file())
    return tuple(sorted(path.name for path in found if path.name not in own))


def _mode(artifact: Artifact) -> int:
    return 0o600 if artifact.secret else 0o755 if artifact.executable else 0o644


def _outcome(path: Path, artifact: Artifact, force: bool) -> str:
    try:
        current = path.read_bytes()
    except FileNotFoundError:
        return "written"
    except OSError as err:
        raise InvalidInput(f"{path} is in the way", why=err.strerror) from err
    if artifact.secret:
        return "kept"
    executable = bool(path.stat().st_mode & 0o100)
    if current == artifact.content.encode() and executable == artifact.executable:
        return "unchanged"
    if not force:
        raise InvalidInput(
            f"{path} exists and differs from what would be written",
            hint="--force overwrites it, -o names another folder",
        )
    return "written"


def _write_partial(path: Path, artifact: Artifact) -> Path:
    mode = _mode(artifact)
    temporary = path.with_name(path.name + ".partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(artifact.content.encode())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
