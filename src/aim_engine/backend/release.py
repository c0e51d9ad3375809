"""One release of an engine as data: what its package, its parser and its image were read to be."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine import facts
from aim_engine.backend.base import Flag, Image
from aim_engine.errors import Corrupt, InvalidInput
from aim_engine.hardware.gpu import Provenance


class BatchDefault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The scheduler limits an engine takes by itself on a device of at least this memory."""

    device: Literal["gpu", "cpu"]
    at_least_bytes: int
    max_num_batched_tokens: int
    max_num_seqs: int
    memory_fraction: float | None = None
    """Where the share of memory depends on the device; None is the release's own."""


class ReleaseFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `engines/<engine>/<version>.yaml`."""

    engine: str
    version: str
    released: str | None
    """ISO date; None where no package tells it."""
    cpu_package: str | None
    """The package that holds this release's CPU build; None when none was published."""
    images: tuple[Image, ...]
    aiter_archs: tuple[str, ...]
    gpu_memory_utilization: float
    batch_defaults: tuple[BatchDefault, ...]
    provenance: Provenance


class FlagTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `engines/<engine>/<version>.flags.json`, generated from that release's own parser."""

    engine: str
    version: str
    source: str
    env: frozenset[str]
    flags: tuple[Flag, ...]
    architectures: frozenset[str] = frozenset()
    """Model classes of the release, where the table lists them."""


class Tuned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `engines/<engine>/tuned.json`, generated from one release's package."""

    source: str
    no_pipeline: frozenset[str]
    """Architectures that cannot be split into pipeline stages."""
    experts: frozenset[tuple[str, int, int, str]]
    """(card, experts, width per rank, format) with a tuned table."""


class Gone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of an argument or variable that older releases had."""

    last_seen: str
    gone_by: str
    instead: str = ""
    use: tuple[str, ...] = ()
    """Words that mean the same in later releases; one flag alone takes the old value."""
    rule: str | None = None
    """Its own rule, where losing it changes how the engine works; then it is an error."""


class Removed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `engines/<engine>/removed.yaml`."""

    flags: dict[str, Gone]
    env: dict[str, Gone]


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `engines/<engine>/families.yaml`."""

    match: str
    tool_parser: str | None = None
    reasoning_parser: str | None = None


def versions(engine: str, overlay: Path | None = None) -> tuple[str, ...]:
    """Known releases, newest first."""
    found = {
        path.stem
        for root in (facts.BUNDLED, overlay)
        if root is not None
        for path in (root / "engines" / engine).glob("*.yaml")
        if re.fullmatch(r"\d+(\.\d+)+(\.post\d+)?", path.stem)
    }
    return tuple(sorted(found, key=number, reverse=True))


def number(version: str) -> tuple[int, ...]:
    """A version as numbers that compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def nearest(wanted: str, known: Sequence[str]) -> str:
    """Of the known releases, newest first, the one whose number is closest."""

    def apart(candidate: str) -> tuple[int, ...]:
        pairs = itertools.zip_longest(number(candidate)[:3], number(wanted)[:3], fillvalue=0)
        return tuple(abs(one - other) for one, other in pairs)

    return min(known, key=apart)


@functools.cache
def load(engine: str, version: str, overlay: Path | None = None) -> ReleaseFacts:
    """The facts of one release; 0.33 is 0.33.0 where no other begins so. Raises: InvalidInput with the known ones."""
    plain = version.removeprefix("v")
    known = versions(engine, overlay)
    longer = [each for each in known if each.startswith(f"{plain}.")]
    if plain not in known and len(longer) == 1:
        plain = longer[0]
    if plain not in known:
        raise InvalidInput(
            f"{engine} {version} is not a known release",
            why=f"known: {', '.join(known)}",
            hint=f"--engine-version {nearest(plain, known)}, the nearest; newer versions of aim-engine know newer releases, and so does "
            f"an AIM_ENGINE_CATALOG_DIR that holds engines/{engine}/{plain}.yaml and {plain}.flags.json",
        )
    return facts.load(f"engines/{engine}/{plain}.yaml", ReleaseFacts, overlay)


@functools.cache
def flags(engine: str, version: str, overlay: Path | None = None) -> FlagTable:
    """The arguments and variables of one release. Raises: InvalidInput, Corrupt."""
    path = facts.find(f"engines/{engine}/{version}.flags.json", overlay)
    if path is None:
        raise InvalidInput(
            f"the argument table of {engine} {version} is missing",
            why=f"no engines/{engine}/{version}.flags.json stands beside {version}.yaml",
            hint=f"write it like the table of another release in {facts.BUNDLED / 'engines' / engine}, or take {version}.yaml away",
        )
    try:
        return msgspec.json.decode(path.read_bytes(), type=FlagTable)
    except msgspec.DecodeError as err:
        raise Corrupt(f"{path} is not a usable argument table", why=str(err)) from err


@functools.cache
def tuned(engine: str, overlay: Path | None = None) -> Tuned:
    """What the engine ships for models and cards. Raises: Corrupt, InvalidInput."""
    path = facts.find(f"engines/{engine}/tuned.json", overlay)
    if path is None:
        raise InvalidInput(
            f"the tuned tables of {engine} are missing",
            why=f"there is no engines/{engine}/tuned.json",
            hint="install aim-engine anew, or take the engines in AIM_ENGINE_CATALOG_DIR away",
        )
    try:
        return msgspec.json.decode(path.read_bytes(), type=Tuned)
    except msgspec.DecodeError as err:
        raise Corrupt(f"{path} is not usable", why=str(err)) from err


@functools.cache
def removed(engine: str, overlay: Path | None = None) -> Removed:
    """What older releases had."""
    return facts.load(f"engines/{engine}/removed.yaml", Removed, overlay)


def family(engine: str, model_id: str, overlay: Path | None = None) -> Family:
    """What the family of a model needs; an empty entry when none is known."""
    for entry in _families(engine, overlay):
        if re.search(entry.match, model_id):
            return entry
    return Family(match="")


@functools.cache
def _families(engine: str, overlay: Path | None) -> tuple[Family, ...]:
    return facts.load(f"engines/{engine}/families.yaml", tuple[Family, ...], overlay)
