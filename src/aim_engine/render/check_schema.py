"""The schemas of Kubernetes and of its operators, asked through optional packages; without them one finding says what to install."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator
from typing import Any

from aim_engine.hardware.cluster import Finding
from aim_engine.render import definitions
from aim_engine.render.definitions import Definition
from aim_engine.render.document import get, schema_path

MAX_ERRORS = 10
"""Per object: the validator reports one at a time and takes a quarter of a second."""


def available() -> bool:
    """The package that holds the schemas is installed."""
    from importlib.util import find_spec

    return find_spec("kubernetes_validate") is not None


def check(objects: list[dict[str, Any]], version: str | None = None) -> tuple[Finding, ...]:
    """What the strict schemas of Kubernetes `version`, or of the newest one known, say about each object."""
    if not available():
        return (
            Finding(
                id="MAN000",
                severity="info",
                message="the Kubernetes schemas were not checked: the package kubernetes-validate is not installed",
                remedy="pip install 'aim-engine[kubernetes]'",
            ),
        )
    import kubernetes_validate

    wanted = version or kubernetes_validate.latest_version()
    given = definitions.among(objects)
    found: list[Finding] = []
    for manifest in objects:
        kind, api = manifest.get("kind"), manifest.get("apiVersion")
        if not (isinstance(kind, str) and re.fullmatch(r"[A-Za-z]+", kind) and isinstance(api, str)):
            continue
        if not re.fullmatch(r"([a-z0-9.-]+/)?[a-z0-9]+", api):
            continue
        definition = definitions.find(api, kind, given)
        found += _custom(manifest, definition) if definition is not None else _object(manifest, wanted)
    return tuple(dict.fromkeys(found))


def _custom(manifest: dict[str, Any], definition: Definition) -> list[Finding]:
    """All violations of a custom resource."""
    import jsonschema

    kind, (group, _, version) = manifest["kind"], manifest["apiVersion"].partition("/")
    if version not in definition.versions:
        message = f"{definition.by} knows no {version} of {kind}, so its fields were not checked"
        remedy = f"apiVersion: {group}/{definition.newest}"
        return [Finding(id="MAN004", severity="warning", message=message, evidence=_name(manifest), remedy=remedy)]
    schema = definition.schema(version)
    try:
        jsonschema.Draft7Validator.check_schema(schema)
    except jsonschema.SchemaError as err:
        message = f"{definition.by} cannot be used, so fields were not checked: {_shortened(str(err.message))}"
        return [Finding(id="MAN003", severity="info", message=message, evidence=_name(manifest))]
    reader = jsonschema.Draft7Validator(schema)
    found = [
        each
        for err in reader.iter_errors(definitions.without_nulls(manifest))
        for each in _told(err, manifest, definition.by)
    ]
    return sorted(found, key=lambda finding: finding.evidence)[:MAX_ERRORS]


def _object(manifest: dict[str, Any], version: str) -> list[Finding]:
    """All violations of one object: each is taken out of a copy before the validator is asked again."""
    import kubernetes_validate

    name = _name(manifest)
    rest = copy.deepcopy(manifest)
    found: list[Finding] = []
    for _ in range(MAX_ERRORS):
        try:
            kubernetes_validate.validate(rest, version, strict=True)
            break
        except kubernetes_validate.SchemaNotFoundError:
            shown = f"{manifest['apiVersion']} {manifest['kind']}"
            if (gone := _gone(manifest["kind"], manifest["apiVersion"], version)) is not None:
                since, instead = gone
                remedy = f"apiVersion: {instead}" if instead else ""
                message = f"{shown} is gone since Kubernetes {since}"
                return [Finding(id="MAN004", severity="error", message=message, evidence=name, remedy=remedy)]
            message = f"there is no schema for {shown}, so its fields were not checked"
            remedy = "give its CustomResourceDefinition too"
            return [Finding(id="MAN003", severity="info", message=message, evidence=name, remedy=remedy)]
        except kubernetes_validate.ValidationError as err:
            found += _told(err, manifest, f"Kubernetes {version}")
            if not _take_out(rest, list(err.absolute_path), err):
                break
    return found


def _told(err: Any, manifest: dict[str, Any], by: str) -> Iterator[Finding]:
    """What a validator found, in our words for what is most often wrong: a name that nobody knows."""
    path, name = list(err.absolute_path), _name(manifest)
    known = err.schema.get("properties", {}) if isinstance(err.schema, dict) else {}
    if err.validator != "additionalProperties" or not isinstance(err.instance, dict):
        evidence = f"{name}: {schema_path(path) or 'the object'}"
        yield Finding(id="MAN003", severity="error", message=_shortened(str(err.message)), evidence=evidence)
        return
    for key in err.instance:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            yield Finding(
                id="MAN003",
                severity="error",
                message=_shortened(f"{by} knows no field '{key}' here"),
                evidence=f"{name}: {schema_path([*path, str(key)])}",
                remedy=f"did you mean {close[0]}?" if close else "",
            )


def _name(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}/{get(manifest, 'metadata', 'name') or '?'}"


def _gone(kind: str, api: str, version: str) -> tuple[str, str] | None:
    """(first version without `kind` of `api`, what has taken its place or nothing); None when no version known here had it."""
    from importlib import resources

    from kubernetes_validate import utils

    group, slash, release = api.rpartition("/")
    short = f"{group.partition('.')[0]}-" if slash else ""
    known = sorted({utils.major_minor(each) for each in utils.all_versions()}, key=lambda each: int(each.split(".")[1]))
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"

    def has(of: str, api_release: str) -> bool:
        return (folder / f"v{of}.0-local-strict" / f"{kind.lower()}-{short}{api_release}.json").is_file()

    had = [place for place, each in enumerate(known) if has(each, release)]
    if not had or had[-1] + 1 >= len(known):
        return None
    current = (f"{group}{slash}v{number}" for number in (2, 1) if has(utils.major_minor(version), f"v{number}"))
    return known[had[-1] + 1], next(current, "")


def _take_out(document: dict[str, Any], path: list[Any], err: Any) -> bool:
    """Remove what `err` is about; False when nothing can be removed, as with something that is missing."""
    if err.validator == "additionalProperties":
        holder: Any = document
        for part in path:
            holder = holder[part]
        unknown = [key for key in holder if key not in err.schema.get("properties", {})]
        for key in unknown:
            del holder[key]
        return bool(unknown)
    if err.validator == "required" or not path:
        return False
    holder = document
    for part in path[:-1]:
        holder = holder[part]
    del holder[path[-1]]
    return True


def _shortened(message: str) -> str:
    return message if len(message) <= 240 else f"{message[:110]} ... {message[-110:]}"
