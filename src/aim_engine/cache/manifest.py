"""Which files a revision of a model has: written as an OCI image manifest, so that the store is an image layout as it stands.

Media types and annotations follow the CNCF ModelPack specification, so a registry or another tool reads them too.
Source: github.com/modelpack/model-spec docs/spec.md, docs/annotations.md.
"""

from __future__ import annotations

import hashlib
import json

import msgspec

from aim_engine.cache import names
from aim_engine.cache.faults import Damaged
from aim_engine.errors import AimError

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
_DOC = "application/vnd.cncf.model.doc.v1.raw"
EMPTY = b"{}"
EMPTY_SHA256 = hashlib.sha256(EMPTY).hexdigest()
_TITLE = "org.opencontainers.image.title"
_PATH = "org.cncf.model.filepath"
_MODEL, _COMMIT, _SOURCE = "dev.aim-engine.model", "dev.aim-engine.commit", "dev.aim-engine.source"
REF = "dev.aim-engine.ref"
"""Branch or tag that named the revision."""
_LICENCE = "org.opencontainers.image.licenses"
MAX_BYTES = 64 << 20


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a revision, and the content it has."""

    path: str
    sha256: str
    size_bytes: int


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a commit, complete."""

    model_id: str
    commit: str
    files: tuple[StoredFile, ...]
    source: str = ""
    """Address of the repository it came from, without credentials."""
    licence: str = ""

    @property
    def size_bytes(self) -> int:
        """What its files hold together."""
        return sum(file.size_bytes for file in self.files)


def encode(revision: Revision) -> bytes:
    """The OCI manifest; equal revisions give equal bytes."""
    notes = {_MODEL: revision.model_id, _COMMIT: revision.commit, _SOURCE: revision.source, _LICENCE: revision.licence}
    document = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "artifactType": _ARTIFACT,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": f"sha256:{EMPTY_SHA256}",
            "size": len(EMPTY),
        },
        "layers": [
            {
                "mediaType": _media_type(file.path),
                "digest": f"sha256:{file.sha256}",
                "size": file.size_bytes,
                "annotations": {_TITLE: file.path.rsplit("/", 1)[-1], _PATH: file.path},
            }
            for file in sorted(revision.files, key=lambda file: file.path)
        ],
        "annotations": {key: value for key, value in notes.items() if value},
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def decode(content: bytes, origin: str) -> Revision:
    """The revision of a manifest. `origin` names it in the error. Raises: Damaged for anything that is no such manifest."""
    try:
        document = json.loads(content)
        notes = document["annotations"]
        files = tuple(
            StoredFile(
                path=str(layer["annotations"][_PATH]),
                sha256=names.require_sha256(str(layer["digest"]).removeprefix("sha256:")),
                size_bytes=_size(layer["size"]),
            )
            for layer in document["layers"]
        )
        names.require_paths(file.path for file in files)
        commit = str(notes[_COMMIT])
        if not names.COMMIT.fullmatch(commit):
            raise ValueError(f"'{commit[:80]}' is not a commit")
        return Revision(
            model_id=names.require_model_id(str(notes[_MODEL])),
            commit=commit,
            files=files,
            source=str(notes.get(_SOURCE, "")),
            licence=str(notes.get(_LICENCE, "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, AimError) as err:
        raise Damaged(
            f"{origin} is not a usable manifest", why=f"{type(err).__name__}: {err}", hint="aim-engine cache doctor"
        ) from err


def descriptor(content: bytes, revision: Revision, ref: str | None = None) -> dict[str, object]:
    """How an OCI index names a manifest."""
    notes = {
        _MODEL: revision.model_id,
        _COMMIT: revision.commit,
        "org.opencontainers.image.ref.name": f"{revision.model_id}@{revision.commit}",
    }
    if ref is not None:
        notes[REF] = ref
    return {
        "mediaType": _MANIFEST,
        "artifactType": _ARTIFACT,
        "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "size": len(content),
        "annotations": notes,
    }


def _media_type(path: str) -> str:
    if path.endswith((".safetensors", ".bin", ".gguf", ".pt", ".pth")):
        return _WEIGHT
    return _DOC if path.endswith((".md", ".txt")) or path.startswith("LICENSE") else _CONFIG


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value
