"""The Kubernetes schemas, asked through an optional package; without it one finding says what to install."""

from __future__ import annotations

import copy
import re
from typing import Any

from aim_engine.hardware.cluster import Finding
from aim_engine.render.document import schema_path

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
    found: list[Finding] = []
    for manifest in objects:
        kind, api = manifest.get("kind"), manifest.get("apiVersion")
        if not (isinstance(kind, str) and re.fullmatch(r"[A-Za-z]+", kind) and isinstance(api, str)):
            continue
        if not re.fullmatch(r"([a-z0-9.-]+/)?[a-z0-9]+", api):
            continue
        found += _object(manifest, wanted)
    return tuple(dict.fromkeys(found))


def _object(manifest: dict[str, Any], version: str) -> list[Finding]:
    """All violations of one object: each is taken out of a copy before the validator is asked again."""
    import kubernetes_validate

    name = f"{manifest['kind']}/{(manifest.get('metadata') or {}).get('name', '?') if isinstance(manifest.get('metadata'), dict) else '?'}"
    rest, found = copy.deepcopy(manifest), []
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
            return [Finding(id="MAN003", severity="info", message=message, evidence=name)]
        except kubernetes_validate.ValidationError as err:
            path = list(err.absolute_path)
            message = _shortened(str(err.message))
            evidence = f"{name}: {schema_path(path) or 'the object'}"
            found.append(Finding(id="MAN003", severity="error", message=message, evidence=evidence))
            if not _take_out(rest, path, err):
                break
    return found


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
