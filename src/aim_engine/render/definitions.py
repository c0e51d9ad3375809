"""What custom resources may hold, as their operators' published definitions say it.

A definition is kept as a JSON schema that refuses unknown fields; `data/definitions/<API group>.json` holds those of one release of an
operator, written by `tools/definitions.py`. Rules in CEL are left out: they need an API server.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from aim_engine import facts
from aim_engine.render.document import get, mapping, mappings, strings

_KEPT = (
    "type",
    "enum",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "uniqueItems",
)
"""Means the same in a definition and in a JSON schema."""
_JUNCTORS = ("allOf", "anyOf", "oneOf")


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The release of an operator whose definitions these are."""

    project: str
    release: str
    repository: str
    commit: str
    paths: tuple[str, ...]
    licence: str

    def __str__(self) -> str:
        return f"{self.project} {self.release}"


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All kinds of one API group."""

    origin: Origin
    kinds: dict[str, dict[str, dict[str, Any]]]
    """Kind -> version -> schema, which may refer to `#/parts/<name>`."""
    parts: dict[str, dict[str, Any]]


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """The versions of one kind."""

    by: str
    """Who says so."""
    versions: dict[str, dict[str, Any]]
    parts: dict[str, dict[str, Any]] = {}

    @property
    def newest(self) -> str:
        """The version that is served longest: a stable one before beta, beta before alpha, then by number."""
        return max(self.versions, key=_rank)

    def schema(self, version: str) -> dict[str, Any]:
        """The whole JSON schema of a version."""
        return {"allOf": [self.versions[version]], "parts": self.parts}


def find(api: str, kind: str, given: Mapping[tuple[str, str], Definition] | None = None) -> Definition | None:
    """The definition of a kind, of those `given` first; None when none is known."""
    group = api.partition("/")[0]
    if given and (group, kind) in given:
        return given[group, kind]
    known = load(group)
    if known is None or kind not in known.kinds:
        return None
    return Definition(by=str(known.origin), versions=known.kinds[kind], parts=known.parts)


@functools.cache
def load(group: str) -> Group | None:
    """What is bundled of an API group; None when nothing is."""
    path = facts.find(f"definitions/{group}.json") if re.fullmatch(r"[a-z0-9.-]+", group) else None
    return msgspec.json.decode(path.read_bytes(), type=Group) if path is not None else None


def groups() -> tuple[str, ...]:
    """The API groups that are bundled."""
    return tuple(sorted(path.stem for path in (facts.BUNDLED / "definitions").glob("*.json")))


def among(objects: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Definition]:
    """(API group, kind) -> definition, of the CustomResourceDefinitions among some objects."""
    found = {}
    for each in objects:
        group, kind = get(each, "spec", "group"), get(each, "spec", "names", "kind")
        if each.get("kind") != "CustomResourceDefinition" or not isinstance(group, str) or not isinstance(kind, str):
            continue
        if versions := schemas(each):
            found[group, kind] = Definition(by="the definition among these files", versions=versions)
    return found


def schemas(definition: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Version -> schema, of a CustomResourceDefinition."""
    found = {}
    for version in mappings(get(definition, "spec", "versions")):
        schema = get(version, "schema", "openAPIV3Schema")
        if isinstance(version.get("name"), str) and isinstance(schema, dict) and version.get("served", True):
            made = strict(schema)
            # Checked by the API server itself, for every kind alike; the status is its operator's.
            own = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
            made["properties"] = {**mapping(made.get("properties")), **own, "status": {}}
            found[version["name"]] = made
    return found


def strict(schema: Mapping[str, Any], *, closed: bool = True) -> dict[str, Any]:
    """A structural schema as a JSON schema that refuses what an API server would refuse or drop.

    Source: Kubernetes documentation, custom resources, structural schemas; `nullable` and `int-or-string` in the words of JSON schema.
    Defaults are filled in before anything is demanded, so that a field which has one may be left out. `closed` is off inside of
    allOf, anyOf and oneOf, which only say more of fields that are named outside.
    """
    made = {key: schema[key] for key in _KEPT if key in schema}
    filled = {name for name, each in mapping(schema.get("properties")).items() if "default" in mapping(each)}
    if demanded := [name for name in strings(schema.get("required")) if name not in filled]:
        made["required"] = demanded
    if isinstance(schema.get("pattern"), str) and _readable(schema["pattern"]):
        made["pattern"] = schema["pattern"]
    for key in ("items", "not"):
        if isinstance(schema.get(key), dict):
            made[key] = strict(schema[key], closed=closed and key != "not")
    properties = schema.get("properties")
    if isinstance(properties, dict):
        made["properties"] = {name: strict(mapping(properties[name]), closed=closed) for name in sorted(properties)}
    further = schema.get("additionalProperties")
    if isinstance(further, dict):
        made["additionalProperties"] = strict(further, closed=closed)
    elif isinstance(properties, dict) and further is None and closed and not _is_open(schema):
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    else:
        for key in _JUNCTORS:
            if isinstance(schema.get(key), list):
                # Formats are not judged, so that several of their branches can hold where one should.
                weak = key == "oneOf" and '"format"' in json.dumps(schema[key])
                made["anyOf" if weak else key] = [strict(mapping(entry), closed=False) for entry in schema[key]]
    if schema.get("nullable") and "type" in made:
        kinds = made["type"] if isinstance(made["type"], list) else [made["type"]]
        made["type"] = [*kinds, "null"]
        if "enum" in made:
            made["enum"] = [*made["enum"], None]
    return made


def without_nulls(value: Any) -> Any:
    """`value` as an API server looks at it: fields without a value are dropped before anything is judged.

    Source: Kubernetes documentation, custom resources, defaulting and nullable.
    """
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _readable(pattern: str) -> bool:
    """Can Python read it? Go takes flags in the middle, which Python does not."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _is_open(schema: Mapping[str, Any]) -> bool:
    """May an object hold more than is named?"""
    return bool(schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource"))


def shared(kinds: Mapping[str, Mapping[str, dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`kinds` with what they have in common said once, and those parts by name. Pod specs repeat in them by the dozen."""
    import collections
    import hashlib

    seen: collections.Counter[str] = collections.Counter()

    def text(value: Any) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    def count(value: Any) -> None:
        if isinstance(value, dict):
            if len(text(value)) > _WORTH_SHARING:
                seen[text(value)] += 1
                if seen[text(value)] > 1:
                    return
            value = list(value.values())
        for entry in value if isinstance(value, list) else ():
            count(entry)

    parts: dict[str, Any] = {}

    def taken(value: Any, *, is_schema: bool) -> Any:
        """`value` with references; the mapping of `properties` is no schema itself."""
        if isinstance(value, list):
            return [taken(entry, is_schema=is_schema) for entry in value]
        if not isinstance(value, dict):
            return value
        made = {key: taken(entry, is_schema=not (is_schema and key == "properties")) for key, entry in value.items()}
        if not is_schema or seen[text(value)] < 2:
            return made
        name = hashlib.sha256(text(value).encode()).hexdigest()[:10]
        parts[name] = made
        return {"$ref": f"#/parts/{name}"}

    for versions in kinds.values():
        for schema in versions.values():
            count(schema)
    made = {
        kind: {version: taken(schema, is_schema=True) for version, schema in versions.items()}
        for kind, versions in kinds.items()
    }
    return made, dict(sorted(parts.items()))


_WORTH_SHARING = 80
"""Characters of a schema below which a reference is no shorter."""


def _rank(version: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if found is None:
        return (0, 0, 0)
    stage = {None: 3, "beta": 2, "alpha": 1}[found[2]]
    return (stage, int(found[1]), int(found[3] or 0))
