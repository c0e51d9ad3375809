"""What registries said of tags, kept, so that files rendered later, or without a network, are the same to the byte.

    <state_dir>/digests.json   {"schema": ..., "digests": {"docker.io/vllm/vllm-openai-rocm:v0.32.0": {"digest": ..., "asked": ...}}}

A plain file, so that it can be copied to where no registry can be reached, or kept beside the plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from aim_engine.deploy import registry
from aim_engine.errors import Corrupt, InvalidInput, Unreachable

SCHEMA = "aim-engine/digests/v1"


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tag named, and when that was asked."""

    digest: str
    asked: str
    """RFC 3339, in UTC."""


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    schema: str = SCHEMA
    digests: dict[str, Answer] = {}


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """The digest of one image and how it came about."""

    reference: str
    """As it was asked for."""
    digest: str
    asked: str
    was: str | None = None
    """What the tag named before, when it has moved."""


def read(path: Path) -> Kept:
    """All answers. Raises: Corrupt, Unreachable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except msgspec.DecodeError as err:
        raise Corrupt(f"{path} cannot be read", why=str(err), hint=f"move it away: mv {path} {path}.damaged") from err
    except OSError as err:
        raise Unreachable(f"{path} cannot be read", why=err.strerror) from err


def resolve(
    path: Path,
    references: Iterable[str],
    *,
    now: str,
    again: bool = False,
    ask: Callable[[str], str] = registry.digest,
) -> tuple[Resolved, ...]:
    """The digests of images without one: kept answers, and the registries' for what was never asked, or for all when `again`.

    Every new answer is kept, also when a later question fails. Raises: InvalidInput, Unreachable, Corrupt.
    """
    found = []
    for reference in references:
        known = read(path).digests.get(registry.name(reference).whole)
        if known is not None and not again:
            found.append(Resolved(reference=reference, digest=known.digest, asked=known.asked))
            continue
        told = ask(reference)
        _keep(path, registry.name(reference).whole, Answer(digest=told, asked=now))
        moved = known.digest if known is not None and known.digest != told else None
        found.append(Resolved(reference=reference, digest=told, asked=now, was=moved))
    return tuple(found)


def refuse(reference: str) -> str:
    """Asks nobody. Raises: InvalidInput."""
    raise InvalidInput(
        f"the digest of {reference} is not known here",
        why="it was never asked for, and the setting offline forbids it now",
        hint="ask once with AIM_ENGINE_OFFLINE=false, or --image NAME@sha256:...",
    )


def _keep(path: Path, name: str, answer: Answer) -> None:
    """Add one answer; another process that does the same loses none."""
    import filelock

    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            kept = read(path).digests | {name: answer}
            content = msgspec.json.encode(Kept(digests={each: kept[each] for each in sorted(kept)}))
            partial.write_bytes(msgspec.json.format(content, indent=2) + b"\n")
            partial.replace(path)
    except OSError as err:
        raise Unreachable(
            f"{path} cannot be written", why=err.strerror, hint="set AIM_ENGINE_STATE_DIR to another folder"
        ) from err
