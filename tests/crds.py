"""Published definitions of custom resources as strict JSON schemas, from the corpus."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest


@functools.cache
def _schemas() -> dict[tuple[str, str], dict[str, Any]]:
    """(apiVersion, kind) -> schema, of every definition in the corpus."""
    root = os.environ.get("AIM_ENGINE_CORPUS")
    if not root:
        pytest.skip("AIM_ENGINE_CORPUS is not set")
    found = {}
    for path in sorted(Path(root).glob("crds/*.json")):
        spec = json.loads(path.read_text(encoding="utf-8")).get("spec", {})
        for version in spec.get("versions", ()):
            schema = version.get("schema", {}).get("openAPIV3Schema")
            if schema:
                found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = _strict(schema, top=True)
    return found


def _strict(schema: Any, *, top: bool = False) -> Any:
    """Unknown fields refused, `nullable` and int-or-string in the words of JSON schema."""
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: _strict(value) for key, value in schema.items() if key not in ("properties", "default", "enum", "example")
    }
    if "enum" in schema:
        made["enum"] = schema["enum"]
    if "properties" in schema:
        made["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if top:
        made["properties"] = {**made["properties"], "metadata": {"type": "object"}}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made.pop("anyOf", None)
        made = {"allOf": [made, {"type": ["integer", "string"]}]}
    if schema.get("nullable"):
        made = {"anyOf": [made, {"type": "null"}]}
    return made


def problems(document: dict[str, Any]) -> list[str]:
    """What the definition of `document`'s kind says against it."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = _schemas()[document["apiVersion"], document["kind"]]
    return [
        f"{error.json_path}: {error.message[:200]}"
        for error in jsonschema.Draft7Validator(schema).iter_errors(document)
    ]
