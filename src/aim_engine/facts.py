"""Reading the bundled catalogue: YAML files whose type is their schema, with a user's overlay folder on top."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from aim_engine.errors import Corrupt, InvalidInput

BUNDLED = Path(__file__).parent / "data"
T = TypeVar("T")


def find(relative: str, overlay: Path | None = None) -> Path | None:
    """The file at `relative` below the overlay, else below the bundled data; None when neither has it."""
    for root in (overlay, BUNDLED):
        if root is not None and (found := find_below(root, relative)) is not None:
            return found
    return None


def find_below(root: Path, relative: str) -> Path | None:
    """The file at `relative` below `root`; None when there is none, or no file can have that name."""
    try:
        return root / relative if (root / relative).is_file() else None
    except (OSError, ValueError):
        return None


def load(relative: str, kind: type[T], overlay: Path | None = None) -> T:
    """The catalogue file at `relative` as a `kind`. Raises: InvalidInput when absent or not of that type."""
    path = find(relative, overlay)
    if path is None:
        raise InvalidInput(f"there is no catalogue file {relative}", hint=f"add {relative} to your catalogue folder")
    return read(path, kind)


def read(path: Path, kind: type[T]) -> T:
    """The YAML file `path` as a `kind`. Raises: InvalidInput with the path of the wrong key."""
    return msgspec_convert(parse_yaml(path.read_bytes(), str(path)), kind, str(path))


def parse_yaml(content: bytes | str, name: str) -> object:
    """One YAML document through the C parser where it is built; dates stay text. Raises: Corrupt."""
    import yaml

    try:
        return yaml.load(content, Loader=_loader())  # noqa: S506 - always a safe loader
    except yaml.YAMLError as err:
        raise Corrupt(f"{name} is not readable as YAML", why=" ".join(str(err).split())) from err


def msgspec_convert(document: object, kind: type[T], name: str) -> T:
    """`document` as a `kind`. Raises: InvalidInput naming the key."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as err:
        raise InvalidInput(f"{name} is not a usable catalogue file", why=str(err)) from err


@functools.cache
def _loader() -> type[Any]:
    """A safe loader that leaves `2026-11-23` as it is written."""
    import yaml

    base: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resolvers = {
        letter: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for letter, pairs in base.yaml_implicit_resolvers.items()
    }
    return type("FactsLoader", (base,), {"yaml_implicit_resolvers": resolvers})
