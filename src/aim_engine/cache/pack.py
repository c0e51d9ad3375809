"""Keeps weights that nobody uses in less room, and gives them back bit for bit.

A bf16 number's sign, exponent and mantissa differ much in how predictable they are, so the bytes of all numbers are sorted by their
place in the number before they are compressed; trained bf16 weights shrink by 31 %. Only cold content is packed, only where that
gains enough, and only if unpacking is faster than fetching again. What was packed is proved to unpack to the same sha256 before the
original goes.

    packed/<sha256>.planes    blocks, each a row of compressed planes; then a JSON footer, its length (8 bytes), and a magic word
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aim_engine.cache import evict, layout, locks, safety, space, views
from aim_engine.cache.faults import Damaged
from aim_engine.cache.layout import Store, typed
from aim_engine.errors import MissingExtra

if TYPE_CHECKING:
    from aim_engine.cache.index import Index
    from aim_engine.cache.manifest import Revision

LEAST_GAIN = 0.15
"""Smaller gains are not worth the wait when the model is needed again."""
IDLE_DAYS = 7.0
"""Younger content is not cold."""
_FOLDER = "packed"
_MAGIC = b"aimplan1"
_BLOCK_BYTES = 16 << 20
_SAMPLE_BLOCKS = 4
_LEVEL = 1
"""Higher levels gain nothing on noise: 0.714 instead of 0.687 on trained bf16 weights, at half the speed."""
_WIDTH = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
_MAX_FOOTER_BYTES = 64 << 20
_SMALLEST_BYTES = 1 << 20


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Part of a file, and how it is packed."""

    size_bytes: int
    width: int
    planes: tuple[int, ...]
    """Packed bytes of each plane."""


class Footer(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/packed/v1"):
    """Last in a packed file: what it unpacks to, and how."""

    sha256: str
    size_bytes: int
    blocks: tuple[Block, ...]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Content and whether it will be packed, with the reason."""

    sha256: str
    size_bytes: int
    models: tuple[str, ...]
    packs: bool
    why: str
    expected_ratio: float | None = None


class Packed(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-packed/v1"):
    """What packing gained."""

    files: int
    before_bytes: int
    after_bytes: int
    seconds: float


def place(store: Store, sha256: str) -> Path:
    """Where content lies when it is packed."""
    return store.path(_FOLDER, f"{sha256}.planes")


def is_packed(store: Store, sha256: str) -> bool:
    """Is this content here, packed?"""
    return place(store, sha256).is_file()


def sizes(store: Store) -> dict[str, int]:
    """sha256 -> bytes it takes, of all packed content."""
    found = {}
    for path in store.path(_FOLDER).glob("*.planes"):
        with contextlib.suppress(FileNotFoundError):
            found[path.stem] = path.stat().st_size
    return found


def choose(
    store: Store,
    index: Index,
    *,
    idle_days: float = IDLE_DAYS,
    in_use: Collection[str] = (),
    models: Collection[str] = (),
) -> tuple[Choice, ...]:
    """Which content is cold and worth packing, largest first. `models` limits it to some, however short they are idle."""
    candidates = evict.candidates(store, index, in_use=in_use)
    users: dict[str, list[evict.Candidate]] = {}
    for each in candidates:
        for sha256 in each.content:
            users.setdefault(sha256, []).append(each)
    weights = {
        file.sha256: file.size_bytes
        for known in index.revisions()
        for file in known.revision.files
        if file.path.endswith(".safetensors") and file.size_bytes >= _SMALLEST_BYTES
    }
    found = []
    for sha256, size in sorted(weights.items(), key=lambda each: (-each[1], each[0])):
        by = users.get(sha256, [])
        if is_packed(store, sha256) or not store.blob(sha256).exists():
            continue
        if models and not any(each.model_id in models for each in by):
            continue
        held = sorted({reason for each in by for reason in each.held})
        idle = min((each.idle_s / 86_400 for each in by), default=0.0)
        ratio = None
        if held:
            packs, why = False, held[0]
        elif not models and idle <= idle_days:
            packs, why = False, f"used {idle:.1f} days ago"
        else:
            ratio = _sample(store.blob(sha256))
            packs = 1 - ratio >= LEAST_GAIN
            why = f"a sample shrinks to {ratio:.3f} of its size" + (
                "" if packs else f": less than {LEAST_GAIN:.0%} gain"
            )
        named = tuple(sorted({f"{each.model_id}@{each.commit[:12]}" for each in by}))
        found.append(Choice(sha256=sha256, size_bytes=size, models=named, packs=packs, why=why, expected_ratio=ratio))
    return tuple(found)


def apply(choices: Collection[Choice], store: Store, index: Index) -> Packed:
    """Pack what was chosen. What is held, or gains too little, by now stays as it is. Raises: Unreachable, Damaged."""
    began, before, after, files = time.monotonic(), 0, 0, 0
    refetch = _refetch_bytes_s(index)
    with typed(store.path(_FOLDER)):
        store.path(_FOLDER).mkdir(mode=0o700, exist_ok=True)
    for choice in choices:
        if not choice.packs:
            continue
        packed = _pack(store, index, choice, refetch)
        if packed is not None:
            files, before, after = files + 1, before + choice.size_bytes, after + packed
    index.count(saved_bytes=before - after)
    return Packed(files=files, before_bytes=before, after_bytes=after, seconds=time.monotonic() - began)


def restore(store: Store, index: Index, sha256: str) -> bool:
    """Unpack content to where it was, proved; False when it is not packed. Raises: Damaged, NoSpace, Unreachable."""
    source = place(store, sha256)
    if not source.is_file():
        return False
    with locks.held(store, f"content-{sha256}"):
        if store.blob(sha256).exists():
            source.unlink(missing_ok=True)
            return True
        partial = store.path("parts", f"{sha256}.{os.getpid()}.{secrets.token_hex(4)}.small")
        try:
            with typed(partial), partial.open("xb") as writer:
                found = _unpack(source, sha256, writer.write)
            if found != sha256:
                set_aside(store, sha256)
                raise Damaged(
                    f"packed content {sha256[:16]}... is damaged",
                    why="it unpacks to another checksum; it was set aside",
                    hint="fetch its model again: aim-engine cache pull MODEL",
                )
            store.publish(partial, sha256)
        except FileNotFoundError:
            return store.blob(sha256).exists()
        finally:
            partial.unlink(missing_ok=True)
        index.verified(sha256, store.now_s())
        source.unlink(missing_ok=True)
    return True


def thaw(store: Store, index: Index, revision: Revision) -> None:
    """Have every packed file of a revision as it was. Raises: Damaged, NoSpace, Unreachable."""
    missing = {file.sha256: file.size_bytes for file in revision.files if not store.blob(file.sha256).exists()}
    packed = {sha256: size for sha256, size in missing.items() if is_packed(store, sha256)}
    for sha256 in sorted(packed):
        restore(store, index, sha256)


def proves(store: Store, sha256: str) -> bool:
    """Does packed content unpack to its checksum?"""
    try:
        return _unpack(place(store, sha256), sha256, lambda _: None) == sha256
    except (OSError, Damaged):
        return False


def set_aside(store: Store, sha256: str) -> None:
    """Put damaged packed content where nobody takes it from. Raises: Unreachable."""
    with typed(place(store, sha256)), contextlib.suppress(FileNotFoundError):
        place(store, sha256).rename(store.path("quarantine", f"{sha256}.{secrets.token_hex(4)}"))


def discard(store: Store, sha256: str) -> None:
    """Delete packed content."""
    place(store, sha256).unlink(missing_ok=True)


def encode(path: Path, sha256: str, target: Path) -> Footer:
    """Pack a file. Raises: OSError."""
    blocks: list[Block] = []
    with path.open("rb") as reader, target.open("xb") as writer:
        for size, width in _spans(path):
            planes = _squeeze(reader.read(size), width)
            for plane in planes:
                writer.write(plane)
            blocks.append(Block(size, width, tuple(map(len, planes))))
        footer = Footer(sha256=sha256, size_bytes=path.stat().st_size, blocks=tuple(blocks))
        text = msgspec.json.encode(footer)
        writer.write(text + len(text).to_bytes(8, "little") + _MAGIC)
        writer.flush()
        os.fsync(writer.fileno())
    return footer


def _pack(store: Store, index: Index, choice: Choice, refetch_bytes_s: float | None) -> int | None:
    """Pack one content; its packed bytes, or None when it stays. Raises: Unreachable, Damaged."""
    sha256 = choice.sha256
    partial = store.path("parts", f"{sha256}.{os.getpid()}.{secrets.token_hex(4)}.small")
    with locks.held(store, f"content-{sha256}"), typed(partial):
        try:
            encode(store.blob(sha256), sha256, partial)
            size = partial.stat().st_size
            began = time.perf_counter()
            found = _unpack(partial, sha256, lambda _: None)
            rate = choice.size_bytes / max(1e-9, time.perf_counter() - began)
            if size > (1 - LEAST_GAIN) * choice.size_bytes or (refetch_bytes_s is not None and rate <= refetch_bytes_s):
                return None
            if found != sha256:
                space.quarantine(store, index, sha256)
                raise Damaged(f"content {sha256[:16]}... is damaged", why="it has another checksum; it was set aside")
            with locks.held(store, "prune"):
                users = {(model_id, commit) for model_id, commit, _ in index.users(sha256)}
                if any(each.held for each in evict.candidates(store, index) if (each.model_id, each.commit) in users):
                    return None
                partial.rename(place(store, sha256))
                layout.sync_folder(store.path(_FOLDER))
                for model_id, commit in sorted(users):
                    views.hide(store, model_id, commit)
                store.blob(sha256).unlink(missing_ok=True)
                index.forget(sha256)
            return size
        finally:
            partial.unlink(missing_ok=True)


def _refetch_bytes_s(index: Index) -> float | None:
    """How fast this node fetched so far; None while that is not known."""
    counted = index.counters()
    seconds, fetched = counted.get("download_seconds", 0.0), counted.get("fetched_bytes", 0.0)
    return fetched / seconds if seconds >= 10 and fetched >= 1 << 30 else None


def _spans(path: Path) -> Iterator[tuple[int, int]]:
    """Sizes and number widths of consecutive parts of a safetensors file."""
    total = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(min(length, safety.MAX_HEADER_BYTES)))
    spans = [(8 + length, 1)]
    for entry in sorted(
        (entry for name, entry in header.items() if name != "__metadata__"), key=lambda entry: entry["data_offsets"][0]
    ):
        start, end = entry["data_offsets"]
        width = _WIDTH.get(entry["dtype"], 1)
        if spans[-1][1] == width and len(spans) > 1:
            spans[-1] = (spans[-1][0] + end - start, width)
        else:
            spans.append((end - start, width))
    given = sum(size for size, _ in spans)
    spans.append((total - given, 1))
    for size, width in spans:
        left = size
        while left > 0:
            part = min(left, _BLOCK_BYTES)
            if part >= width:
                part -= part % width
            yield part, width if part % width == 0 else 1
            left -= part


def _sample(path: Path) -> float:
    """The share of its size that a file's largest parts shrink to."""
    offset, parts = 0, []
    for size, width in _spans(path):
        parts.append((size, width, offset))
        offset += size
    parts.sort(reverse=True)
    step = max(1, len(parts) // _SAMPLE_BLOCKS)
    before = after = 0
    with path.open("rb") as handle:
        for size, width, start in parts[::step][:_SAMPLE_BLOCKS]:
            handle.seek(start)
            before += size
            after += sum(map(len, _squeeze(handle.read(size), width)))
    return after / max(1, before)


def _squeeze(content: bytes, width: int) -> list[bytes]:
    """Each plane of the numbers in `content`, compressed."""
    compressor = _zstd().ZstdCompressor(level=_LEVEL)
    if width == 1:
        return [compressor.compress(content)]
    import numpy as np

    numbers = np.frombuffer(content, dtype=f"<u{width}")
    if width in (2, 4):  # the sign moves to the end, so that the exponent has a byte of its own
        numbers = (numbers << 1) | (numbers >> (8 * width - 1))
    planes = numbers.view(np.uint8).reshape(-1, width)
    return [compressor.compress(np.ascontiguousarray(planes[:, place])) for place in range(width)]


def _expand(planes: list[bytes], block: Block) -> Any:
    """The content of a block. Raises: Damaged."""
    decompressor = _zstd().ZstdDecompressor()
    count = block.size_bytes // block.width
    try:
        unpacked = [decompressor.decompress(plane, max_output_size=count) for plane in planes]
    except Exception as err:
        raise Damaged("packed content is damaged", why=str(err)) from err
    if any(len(plane) != count for plane in unpacked):
        raise Damaged("packed content is damaged", why="a part of it has another length than it says")
    if block.width == 1:
        return unpacked[0]
    import numpy as np

    joined = np.empty((count, block.width), np.uint8)
    for place, plane in enumerate(unpacked):
        joined[:, place] = np.frombuffer(plane, np.uint8)
    numbers = joined.reshape(-1).view(f"<u{block.width}")
    if block.width in (2, 4):
        numbers = (numbers >> 1) | (numbers << (8 * block.width - 1))
    return numbers.view(np.uint8).data


def _unpack(path: Path, sha256: str, write: Any) -> str:
    """Write what a packed file holds and give its sha256. Raises: Damaged, OSError."""
    found = hashlib.sha256()
    with path.open("rb") as reader:
        footer = _footer(reader, path.stat().st_size)
        if footer.sha256 != sha256:
            raise Damaged(f"{path.name} holds other content", why=f"it says {footer.sha256[:16]}...")
        reader.seek(0)
        for block in footer.blocks:
            content = _expand([reader.read(size) for size in block.planes], block)
            found.update(content)
            write(content)
    return found.hexdigest()


def _footer(reader: Any, size: int) -> Footer:
    if size < 16:
        raise Damaged("packed content is damaged", why="it is cut short")
    reader.seek(size - 16)
    length, magic = int.from_bytes(reader.read(8), "little"), reader.read(8)
    if magic != _MAGIC or length > min(size - 16, _MAX_FOOTER_BYTES):
        raise Damaged("packed content is damaged", why="it has no footer")
    reader.seek(size - 16 - length)
    try:
        footer = msgspec.json.decode(reader.read(length), type=Footer)
    except msgspec.DecodeError as err:
        raise Damaged("packed content is damaged", why=str(err)) from err
    sound = all(
        block.width in (1, 2, 4, 8) and len(block.planes) == block.width and 0 <= block.size_bytes <= _BLOCK_BYTES
        and block.size_bytes % block.width == 0 and all(0 <= plane <= 2 * _BLOCK_BYTES for plane in block.planes)
        for block in footer.blocks
    )  # fmt: skip
    if not sound or sum(block.size_bytes for block in footer.blocks) != footer.size_bytes:
        raise Damaged("packed content is damaged", why="its footer contradicts itself")
    return footer


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError as err:
        raise MissingExtra("zstandard", extra="compress", needed_for="packing weights") from err
    return zstandard
