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
        yield _checked(path)
        return
    if not is_file:
        raise InvalidInput(f"{path} does not exist", hint="give a folder that holds sys/, or a tar archive of one")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="aim-engine-") as folder:
        _unpack(path, Path(folder))
        yield _checked(_root(Path(folder)), path)


def _checked(folder: Path, named: Path | None = None) -> Path:
    """The folder, or the one above where it is `sys` itself. Raises: InvalidInput when it is no machine's."""
    if any((folder / name).is_dir() for name in ("sys", "proc")):
        return folder
    if folder.name == "sys" and (folder / "class").is_dir():
        return folder.parent
    raise InvalidInput(
        f"{named or folder} is not the recording of a machine",
        why="it holds neither sys nor proc",
        hint="record one with: tar czf machine.tar.gz /sys/class/kfd /sys/class/drm /sys/devices /proc/cpuinfo /proc/meminfo",
    )


def _unpack(path: Path, folder: Path) -> None:
    """Unpack files, folders and links that stay inside `folder`; anything else is left out.

    Done here because tarfile's own filters came with Python 3.11.4, and Debian 12 has 3.11.2.
    """
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
                place = folder / member.name.lstrip("/")
                if not _inside(folder, place):
                    continue
                if member.isdir():
                    place.mkdir(parents=True, exist_ok=True)
                elif member.issym():
                    if Path(member.linkname).is_absolute() or not _inside(folder, place.parent / member.linkname):
                        continue
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.unlink(missing_ok=True)
                    place.symlink_to(member.linkname)
                elif member.isfile():
                    content = archive.extractfile(member)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content.read() if content is not None else b"")
    except (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError, RuntimeError) as err:
        raise Corrupt(f"{path} cannot be unpacked", why=str(err) or type(err).__name__) from err
    except Exception as err:
        if type(err).__module__ in ("zlib", "_lzma", "lzma"):
            raise Corrupt(f"{path} cannot be unpacked", why=str(err)) from err
        raise


def _inside(folder: Path, place: Path) -> bool:
    """Does `place`, links followed, lie in `folder`?"""
    return place.resolve().is_relative_to(folder.resolve())


def _root(folder: Path) -> Path:
    """Where `sys` or `proc` lies: at the top, or one folder down as in `machine/sys`."""
    inner = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    if not any(entry.name in ("sys", "proc") for entry in inner) and len(inner) == 1:
        return inner[0]
    return folder
