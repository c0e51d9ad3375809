"""A recorded machine: a folder that holds `sys` (and `proc`), or a tar archive of one, unpacked aside without trusting it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aim_engine.errors import Corrupt, InvalidInput

MAX_BYTES = 2**29
"""Most that an archive may unpack to; a whole /sys with its files is a few MiB. Unit: bytes."""
MAX_MEMBERS = 500_000


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder to read: `path` itself, or where its archive was unpacked for as long as it is needed.

    Links and names that lead out of the archive are left out. Raises: InvalidInput when there is nothing, Corrupt when it is no archive.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as err:
        raise InvalidInput(f"{path} cannot be read", why=str(err)) from err
    if is_folder:
        yield path
        return
    if not is_file:
        raise InvalidInput(f"{path} does not exist", hint="give a folder that holds sys/, or a tar archive of one")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="aim-engine-") as folder:
        _unpack(path, Path(folder))
        yield _root(Path(folder))


def _unpack(path: Path, folder: Path) -> None:
    import tarfile

    try:
        with tarfile.open(path) as archive:
            total = 0
            for number, member in enumerate(archive):
                total += member.size
                if total > MAX_BYTES or number >= MAX_MEMBERS:
                    raise Corrupt(
                        f"{path} is too large to be the recording of a machine", why=f"over {MAX_BYTES} bytes"
                    )
                try:
                    safe = tarfile.data_filter(member, str(folder))
                except tarfile.FilterError:
                    continue
                archive.extract(safe, folder, filter="data")
    except (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError) as err:
        raise Corrupt(f"{path} cannot be unpacked", why=str(err) or type(err).__name__) from err
    except Exception as err:
        if type(err).__module__ in ("zlib", "_lzma", "lzma"):
            raise Corrupt(f"{path} cannot be unpacked", why=str(err)) from err
        raise


def _root(folder: Path) -> Path:
    """Where `sys` or `proc` lies: at the top, or one folder down as in `machine/sys`."""
    inner = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    if not any(entry.name in ("sys", "proc") for entry in inner) and len(inner) == 1:
        return inner[0]
    return folder
