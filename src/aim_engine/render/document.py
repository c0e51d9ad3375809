"""Reading YAML that strangers wrote: every document of a file, keys given twice, and a bound on what aliases unfold to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Finding

MAX_NODES = 500_000
"""A manifest has hundreds; a few lines of nested aliases would have billions."""


def read(content: str, name: str) -> tuple[list[Any], tuple[Finding, ...]]:
    """All documents of `content`, and a finding for each key that is given twice. Raises: InvalidInput when it is no YAML."""
    import yaml

    twice: list[tuple[str, int]] = []
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        """Notes keys that are given twice and leaves dates as text."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    twice.append((str(key.value), key.start_mark.line + 1))
                if isinstance(key.value, str):
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    # The reader of sequences and scalars is the base's; only "=" has no constructor there (yaml/pyyaml issue 89).
    Loader.yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for letter, pairs in base.yaml_implicit_resolvers.items()
    }
    Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))
    Loader.add_constructor("!reset", lambda _loader, _node: None)  # Compose's own tags
    Loader.add_constructor("!override", _plain)
    try:
        documents = [document for document in yaml.load_all(content, Loader=Loader) if document is not None]
    except yaml.YAMLError as err:
        raise InvalidInput(f"{name} is not readable as YAML", why=" ".join(str(err).split())) from err
    except (RecursionError, ValueError, TypeError) as err:
        raise InvalidInput(f"{name} is not readable as YAML", why=str(err) or "it is nested too deeply") from err
    for document in documents:
        _bounded(document, name)
    found = tuple(
        Finding(
            id="MAN001",
            severity="error",
            message=f"the key '{key}' is given twice; readers keep only one of the values",
            evidence=f"line {line}",
            remedy="keep one",
        )
        for key, line in dict.fromkeys(twice)
    )
    return documents, found


def _plain(loader: Any, node: Any) -> Any:
    """The value of a node whatever its tag."""
    kind = type(node).__name__
    if kind == "MappingNode":
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if kind == "SequenceNode" else loader.construct_scalar(node)


def _bounded(document: Any, name: str) -> None:
    """Refuse a document whose aliases unfold to more than MAX_NODES, or contain themselves."""
    sizes: dict[int, int] = {}
    open_ids: set[int] = set()

    def measure(value: Any) -> int:
        if not isinstance(value, (dict, list)):
            return 1
        if id(value) in sizes:
            return sizes[id(value)]
        if id(value) in open_ids:
            raise InvalidInput(f"{name} contains itself", why="an alias points at what it is part of")
        open_ids.add(id(value))
        total = 1 + sum(measure(child) for child in (value.values() if isinstance(value, dict) else value))
        open_ids.discard(id(value))
        sizes[id(value)] = total
        return total

    try:
        size = measure(document)
    except RecursionError as err:
        raise InvalidInput(f"{name} is nested too deeply") from err
    if size > MAX_NODES:
        raise InvalidInput(f"{name} unfolds to {size:,} values", why="its aliases repeat each other")


def mapping(value: Any) -> dict[str, Any]:
    """`value` when it is a mapping, else an empty one; a schema says that it should have been."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[dict[str, Any]]:
    """The mappings of the sequence `value`."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def strings(value: Any) -> tuple[str, ...]:
    """The scalars of the sequence `value` as text; a bare string is one of them."""
    if isinstance(value, str):
        return (value,)
    return tuple(str(entry) for entry in value) if isinstance(value, list) else ()


def texts(entries: Any, *path: str) -> frozenset[str]:
    """The strings at `path` of the mappings in the sequence `entries`."""
    return frozenset(found for entry in mappings(entries) if isinstance(found := get(entry, *path), str))


def get(value: Any, *path: str) -> Any:
    """What is at `path` below `value`; None where there is nothing."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def whole(value: Any) -> int | None:
    """`value` when it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def schema_path(path: Iterator[Any] | list[Any]) -> str:
    """`spec.containers[0].image` of a path of keys and positions."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
