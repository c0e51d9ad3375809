"""Bytes that strangers wrote, at random: whatever they are, the answer is a typed refusal or something sound."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path, PurePosixPath

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aim_engine.cache import manifest, names, pieces, process, safety, sources
from aim_engine.cache.faults import Damaged, Unsafe
from aim_engine.cache.layout import Store

PARTS = st.one_of(
    st.sampled_from(
        [
            "..",
            ".",
            "",
            "a",
            "con",
            "NUL.txt",
            "-rf",
            "\x00",
            "a\nb",
            "\u202egpj",
            "é",
            "e\u0301",
            "x" * 256,
            "~",
            "C:",
            "*",
            "\\",
        ]
    ),
    st.text(max_size=12),
)
PATHS = st.one_of(st.lists(PARTS, max_size=5).map("/".join), st.text(max_size=30))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PATHS, max_size=4))
@example(["a", "a/b"])
@example(["A", "a"])
def test_no_accepted_file_name_leaves_its_folder(paths: list[str]) -> None:
    try:
        accepted = names.require_paths(paths)
    except Unsafe:
        return
    root = os.path.realpath(tempfile.gettempdir())
    for path in accepted:
        joined = os.path.normpath(os.path.join(root, path))  # noqa: PTH118 - what a system call makes of it
        assert joined.startswith(root + "/")
        assert joined == f"{root}/{path}"  # nothing in it is read as something else
        assert ".." not in PurePosixPath(path).parts
        assert not {"\0", "\n", "\\"} & set(path)
        assert all(len(part.encode()) <= 255 for part in path.split("/"))
    assert len({path.casefold() for path in accepted}) == len(accepted)


def headers() -> st.SearchStrategy[bytes]:
    spans = st.lists(st.integers(-5, 70), min_size=2, max_size=2)
    tensors = st.dictionaries(
        st.text(max_size=5), st.fixed_dictionaries({"dtype": st.just("U8"), "shape": st.just([1]), "data_offsets": spans}) | JSON,
        max_size=4,
    )  # fmt: skip
    document = (tensors | JSON).map(lambda value: json.dumps(value).encode())
    return document | st.binary(max_size=60)


@settings(max_examples=300, deadline=None)
@given(header=headers(), claimed=st.none() | st.integers(0, 2**64 - 1), body=st.binary(max_size=70))
@example(header=b"[" * 100_000, claimed=None, body=b"")
@example(header=b'{"w": {"data_offsets": [0, 1e400]}}', claimed=None, body=b"x")
def test_whatever_calls_itself_safetensors_is_refused_or_sound(header: bytes, claimed: int | None, body: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w")
        path.write_bytes(struct.pack("<Q", len(header) if claimed is None else claimed) + header + body)
        try:
            safety.require_sound(path, "w.safetensors")
        except Unsafe:
            return
        content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    document = json.loads(content[8 : 8 + length])
    spans = sorted(each["data_offsets"] for name, each in document.items() if name != "__metadata__")
    covered = [at for start, end in spans for at in range(start, end)]
    assert covered == list(range(len(content) - 8 - length))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
def test_whatever_lies_where_a_manifest_should_is_damaged_or_safe(content: bytes) -> None:
    try:
        revision = manifest.decode(content, "there")
    except Damaged:
        return
    names.require_paths(file.path for file in revision.files)
    assert all(names.is_sha256(file.sha256) for file in revision.files)


@settings(max_examples=40, deadline=None)
@given(
    records=st.binary(max_size=80)
    | st.lists(st.tuples(st.integers(0, 9) | st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=5).map(
        lambda claims: b"".join(pieces._record(*claim) for claim in claims)
    ),
    owner=st.sampled_from([msgspec.json.encode(process.me()).decode(), "{}", "7"]),
    size=st.integers(-1, 200) | st.integers(-1, 2**63),
    piece=st.integers(-1, 50) | st.integers(-1, 2**40),
)
def test_whatever_lies_where_claims_should_be_claims_nothing_outside(
    records: bytes, owner: str, size: int, piece: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        store.ensure()
        key = "a" * 64
        head = f'{{"size_bytes":{size},"piece_bytes":{piece},"owner":{owner}}}\n'.encode()
        store.path("parts", f"{key}.1.claims").write_bytes(head + records)
        store.path("parts", f"{key}.1.part").write_bytes(b"x" * 100)
        for start, end in pieces.held(store, key) or ():
            assert 0 <= start < end <= size
        part = pieces.open_part(store, key, 100, 16)
        assert part.done_bytes <= 100
        part.close()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_a_list_of_checksums_holds_checksums_only(text: str) -> None:
    assert all(names.is_sha256(digest) for digest in sources.sums(text).values())
