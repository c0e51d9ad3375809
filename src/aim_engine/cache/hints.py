"""How an engine should read weights from where they lie: by mapping files into memory, by reading ahead, or straight from a bucket.

A mapped file on a network file system is read page by page, each a round trip; reading whole files ahead took a third of the time
(four gfx950, Lustre: 73.7 s to 26.2 s, github.com/vllm-project/vllm issue 54898). Local disks and memory are best mapped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from aim_engine.cache import locks, objects

Storage = Literal["local", "network", "objects", "unknown"]
_LOCAL = ("ext", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "overlay", "ramfs", "bcachefs")


class LoadHint(msgspec.Struct, frozen=True, kw_only=True):
    """What to tell an engine, and why."""

    storage: Storage
    args: tuple[str, ...] = ()
    why: str


def for_folder(place: Path, flags: frozenset[str], file_system: str | None = None) -> LoadHint:
    """The hint for weights in a folder. `flags` are those that the engine's release has."""
    kind = locks.file_system(place) if file_system is None else file_system
    if locks.is_shared_type(kind) or kind == "cifs":
        strategy = "--safetensors-load-strategy"
        if strategy in flags:
            return LoadHint(
                storage="network", args=(strategy, "prefetch"), why=f"{kind} reads mapped files page by page"
            )
        return LoadHint(
            storage="network", why=f"{kind} reads mapped files page by page, but this release knows no other way"
        )
    if kind.startswith(_LOCAL):
        return LoadHint(storage="local", why=f"{kind} is local: mapped files are fastest, and shared by all processes")
    return LoadHint(storage="unknown", why=f"nothing is known of the file system '{kind}'")


def for_address(address: str, flags: frozenset[str]) -> LoadHint:
    """The hint for weights that an engine reads from a bucket without a copy on disk."""
    if not objects.is_address(address):
        return LoadHint(storage="unknown", why=f"'{address[:80]}' is not in an object store")
    if "--load-format" in flags:
        return LoadHint(storage="objects", args=("--load-format", "runai_streamer"), why="it streams while it loads")
    return LoadHint(storage="objects", why="this release streams from no object store; fetch into the cache first")


def merged(args: tuple[str, ...], hint: LoadHint) -> tuple[str, ...]:
    """Arguments with those of a hint, unless the user or the recipe says something about the same."""
    names = {word.partition("=")[0] for word in args}
    return args if any(word in names for word in hint.args if word.startswith("--")) else (*args, *hint.args)
