"""The store on disk: content under its own checksum, laid out as an OCI image layout.

    <root>/STORE                        which store, which layout version
           oci-layout, index.json       so that OCI tools read it as it is
           blobs/sha256/<hex>           every file once, 0444, never changed after it appears
           manifests/<model>/<commit>.json   which files a revision has: the truth that every index is built from
           parts/                       transfers under way
           views/hf/, views/flat/       the same files under the names that engines look for
           pins/  leases/<node>/        what must stay
           packed/                      content that nobody uses, in less room
           trash/<epoch>-<hex>  quarantine/  locks/

A path below the root is never followed through a symlink, and only its owner may write there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from aim_engine.cache.faults import ForeignStore, NoSpace
from aim_engine.errors import AimError, Unreachable

LAYOUT = 1
FOLDERS = (
    "blobs/sha256",
    "manifests",
    "parts",
    "views/hf",
    "views/flat",
    "pins",
    "leases",
    "trash",
    "quarantine",
    "locks",
    "packed",
)
OCI_LAYOUT = b'{"imageLayoutVersion": "1.0.0"}\n'
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """The file STORE: what this folder is, so that no other version of the program misreads it."""

    uuid: str
    layout: int
    schema: str = "aim-engine/store/v1"


class Store:
    """One store. Opening reads; nothing is written before `ensure`."""

    def __init__(self, root: str | Path) -> None:
        """`root` need not exist. Raises: ForeignStore when it must not be used."""
        self.root = Path(root).expanduser().absolute()
        self.mark = self._examine()

    @property
    def exists(self) -> bool:
        """Has the store been made?"""
        return self.mark is not None

    def path(self, *parts: str) -> Path:
        """A path in the store."""
        return self.root.joinpath(*parts)

    def blob(self, sha256: str) -> Path:
        """Where the content with this checksum lies, if it is there."""
        return self.root / "blobs" / "sha256" / sha256

    def ensure(self) -> Mark:
        """Make the store if it is not there. Raises: Unreachable, NoSpace, ForeignStore."""
        if self.mark is not None:
            return self.mark
        with typed(self.root):
            try:
                self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            except FileNotFoundError as err:  # below /proc, or a link to nowhere
                raise refused(self.root, err) from err
            for each in FOLDERS:
                self.path(*each.split("/")).mkdir(parents=True, exist_ok=True, mode=0o700)
            write(self.path("oci-layout"), OCI_LAYOUT)
            if not self.path("index.json").exists():
                write(self.path("index.json"), index_document(()))
            import uuid

            mine = Mark(uuid=str(uuid.uuid4()), layout=LAYOUT)
            partial = self.path(f".STORE.{secrets.token_hex(8)}")
            write(partial, msgspec.json.encode(mine) + b"\n")
            with contextlib.suppress(FileExistsError):  # another process was first: its mark is the store's
                link(partial, self.path("STORE"))
            partial.unlink(missing_ok=True)
        self.mark = self._examine()
        if self.mark is None:
            raise Unreachable(f"the store {self.root} could not be made", why="its STORE file vanished")
        return self.mark

    def publish(self, partial: Path, sha256: str) -> Path:
        """Give finished content its place: whole, on disk, read-only. What is there already stays. Raises: NoSpace, Unreachable."""
        target = self.blob(sha256)
        with typed(target):
            descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fchmod(descriptor, 0o444)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            with contextlib.suppress(FileExistsError):
                link(partial, target)
            partial.unlink(missing_ok=True)
            sync_folder(target.parent)
        return target

    def now_s(self) -> float:
        """The time by the clock of the store's file system, so that nodes whose clocks differ agree on ages."""
        clock = self.path("locks", ".clock")
        try:
            descriptor = os.open(clock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                os.utime(descriptor)
                return os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)
        except OSError:  # a read-only store ages by this machine's clock
            import time

            return time.time()

    def _examine(self) -> Mark | None:
        """The store's mark; None when there is no store. Raises: ForeignStore."""
        try:
            about = self.root.lstat()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise Unreachable(f"{self.root} cannot be read", why=err.strerror) from err
        if stat.S_ISLNK(about.st_mode):  # a root that the user linked is theirs to link; what is below is ours
            about = self.root.stat()
        if not stat.S_ISDIR(about.st_mode):
            raise ForeignStore(f"{self.root} is not a folder", hint="set AIM_ENGINE_CACHE_DIR to another place")
        try:
            mark = msgspec.json.decode((self.root / "STORE").read_bytes(), type=Mark)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as err:
            raise ForeignStore(
                f"{self.root / 'STORE'} is not readable",
                why=str(err),
                hint="if this is your cache, delete that file: the next pull writes it anew and finds what is here",
            ) from err
        if mark.layout > LAYOUT:
            raise ForeignStore(
                f"the store {self.root} was written by a newer aim-engine",
                why=f"its layout is {mark.layout}, this version knows {LAYOUT}",
                hint="upgrade aim-engine, or set AIM_ENGINE_CACHE_DIR to another place",
            )
        self._require_private(self.root, about)
        for each in FOLDERS:
            parts = each.split("/")
            for depth in range(1, len(parts) + 1):
                place = self.path(*parts[:depth])
                with contextlib.suppress(FileNotFoundError):
                    self._require_private(place, place.lstat())
        return mark

    def _require_private(self, place: Path, about: os.stat_result) -> None:
        why = None
        if not stat.S_ISDIR(about.st_mode):
            why = "it is a symlink or a file where the store has a folder"
        elif about.st_uid not in (os.geteuid(), 0):
            why = f"it belongs to user {about.st_uid}, who could change what is served"
        elif about.st_mode & stat.S_IWOTH:
            why = "every user may write there"
        if why is not None:
            raise ForeignStore(
                f"{place} cannot be trusted", why=why, hint="correct its owner and mode (0700), or use another place"
            )


@contextmanager
def inside(root: Path, *parts: str, create: bool = False) -> Iterator[int]:
    """A descriptor of a folder below `root`, reached without following any symlink. Raises: OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    try:
        for part in parts:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=descriptor)
            deeper = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = deeper
        yield descriptor
    finally:
        os.close(descriptor)


def link(source: Path, target: Path, *, dir_fd: int | None = None) -> None:
    """The same content under a second name: hardlink; where the file system has none, a reflink or copy.

    Raises: FileExistsError, OSError.
    """
    try:
        os.link(source, target, dst_dir_fd=dir_fd, follow_symlinks=False)
    except OSError as err:
        if err.errno not in _NO_LINKS:
            raise
        _copy(source, target, dir_fd)


def _copy(source: Path, target: Path, dir_fd: int | None) -> None:
    """Copy under a temporary name, then give it its name unless that is taken."""
    if dir_fd is None and target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    partial = f"{target.name}.{secrets.token_hex(8)}"
    place = partial if dir_fd is not None else str(target.with_name(partial))
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=dir_fd)
    try:
        with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
            copy_range(reader.fileno(), writer.fileno(), os.fstat(reader.fileno()).st_size)
            os.fchmod(writer.fileno(), 0o444)
            os.fsync(writer.fileno())
        os.rename(place, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(place, dir_fd=dir_fd)
        raise


def copy_range(source: int, target: int, count: int, offset: int = 0) -> None:
    """Copy bytes at the same offset; file systems that can, share the blocks. Raises: OSError."""
    done = 0
    while done < count:
        try:
            moved = os.copy_file_range(source, target, min(count - done, 1 << 30), offset + done, offset + done)
        except OSError as err:
            if err.errno not in (*_NO_LINKS, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            moved = os.pwrite(target, os.pread(source, min(count - done, 1 << 22), offset + done), offset + done)
        if moved == 0:
            return
        done += moved


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all, and have it on disk. Raises: OSError."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have a folder's names on disk. Raises: OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def index_document(manifests: tuple[dict[str, object], ...]) -> bytes:
    """The OCI image index over manifest descriptors."""
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": list(manifests),
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def free_bytes(place: Path) -> int:
    """What a user without privileges may still write below a folder that need not exist."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@contextmanager
def typed(place: Path) -> Iterator[None]:
    """The operating system's refusals as ours: full, read-only, forbidden."""
    try:
        yield
    except (AimError, FileNotFoundError):
        raise
    except OSError as err:
        raise refused(place, err) from err


def refused(place: Path, err: OSError) -> AimError:
    """The typed error for what the operating system said about a place in the store."""
    if err.errno in _FULL:
        return NoSpace(
            f"the disk that holds {place} is full", why=err.strerror, hint="aim-engine cache prune --dry-run"
        )
    if err.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return Unreachable(
            f"{place} cannot be written", why=err.strerror, hint="AIM_ENGINE_CACHE_DIR names another place"
        )
    return Unreachable(f"{place} cannot be used", why=err.strerror or str(err))
