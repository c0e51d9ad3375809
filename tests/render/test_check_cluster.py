"""Whatever stands in a manifest, the rules on clusters and on values of charts answer and do not stumble."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aim_engine import backend, facts
from aim_engine.render import check_cluster, check_values

ENGINE = backend.get("vllm")
CASES: Any = facts.parse_yaml((Path(__file__).parent.parent / "rule_cases/clusters.yaml").read_bytes(), "clusters")
ODD: tuple[Any, ...] = (None, -1, "x", [[]], {"name": []})
VALUES = {
    "replicaCount": 1,
    "image": {"repository": "vllm/vllm-openai-rocm", "tag": "v0.33.0", "command": ["vllm", "serve", "m"]},
    "env": [{"name": "A", "value": "b"}],
    "resources": {"limits": {"amd.com/gpu": 1}},
    "servingEngineSpec": {
        "modelSpec": [
            {"repository": "r", "tag": "t", "modelURL": "m", "requestGPU": 1, "vllmConfig": {"dtype": "auto"}}
        ]
    },
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def damaged(value: Any) -> Iterator[Any]:
    """`value` with each of its parts replaced by each odd one."""
    for path in places(value):
        for odd in ODD:
            changed = copy.deepcopy(value)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = odd
            yield changed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_no_odd_part_of_a_manifest_makes_a_rule_stumble(case: dict[str, Any]) -> None:
    count = 0
    for objects in damaged(case["fires"]):
        check_cluster.check([entry for entry in objects if isinstance(entry, dict)], ENGINE, None, "1.33")
        count += 1
    assert count > 30


def test_no_odd_part_of_values_makes_a_check_stumble() -> None:
    for values in damaged(VALUES):
        if check_values.is_values(values):
            check_values.check(values, ENGINE)
