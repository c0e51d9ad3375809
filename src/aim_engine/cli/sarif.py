"""Findings as SARIF 2.1.0, the form in which code hosts show what a check found.

Source: OASIS SARIF 2.1.0, sections 3.13 to 3.52; levels error, warning and note.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aim_engine._version import __version__
from aim_engine.hardware.cluster import Finding

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def document(found: Iterable[tuple[str, Finding]]) -> dict[str, Any]:
    """One run with a result for each (file, finding); where in the file it is stands in the logical location."""
    pairs = list(found)
    rules: dict[str, dict[str, Any]] = {}
    for _, finding in pairs:
        about: dict[str, Any] = {"id": finding.id}
        if finding.source:
            about["help"] = {"text": f"source: {finding.source}"}
        rules.setdefault(finding.id, about)
    names = sorted(rules)
    driver = {
        "name": "aim-engine",
        "semanticVersion": __version__,
        "rules": [rules[name] for name in names],
    }
    results = [_result(file, finding, names.index(finding.id)) for file, finding in pairs]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _result(file: str, finding: Finding, index: int) -> dict[str, Any]:
    text = finding.message + (f". {finding.remedy}" if finding.remedy else "")
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": file.replace(" ", "%20")}}}
    if finding.evidence:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.evidence}]
    return {
        "ruleId": finding.id,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": text},
        "locations": [location],
    }
