"""Custom resources against the definitions that npm packages ship: values by their validators, unknown fields by their types."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import plans
from aim_engine.errors import InvalidInput
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render
from aim_engine.workload import Slo

pytestmark = pytest.mark.consumers
PACKAGES = Path(__file__).parents[2] / ".tools" / "npm"
KINDS = {
    "HTTPRoute": ("gateway", "gateway-api/gateway.networking.k8s.io/v1/HTTPRoute"),
    "ScaledObject": ("keda", "keda/keda.sh/v1alpha1/ScaledObject"),
    "PodMonitor": ("monitoring", "prometheus-operator/monitoring.coreos.com/v1/PodMonitor"),
    "ServiceMonitor": ("monitoring", "prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor"),
    "PrometheusRule": ("monitoring", "prometheus-operator/monitoring.coreos.com/v1/PrometheusRule"),
}
"""Kind -> the target that writes it, the module that knows it."""
CHECK = """
import {createInterface} from "node:readline";
for await (const line of createInterface({input: process.stdin})) {
  const {module, kind, object} = JSON.parse(line);
  try { new (await import(`@kubernetes-models/${module}`))[kind](object).validate(); console.log("null"); }
  catch (err) { console.log(JSON.stringify(err.message)); }
}
"""


def invalid(objects: list[dict[str, Any]]) -> list[str | None]:
    """What the package's validator says of each object; None when nothing."""
    lines = [json.dumps({"module": KINDS[each["kind"]][1], "kind": each["kind"], "object": each}) for each in objects]
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", CHECK],
        input="\n".join(lines), capture_output=True, text=True, check=True, cwd=PACKAGES,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def mistyped(objects: list[dict[str, Any]], folder: Path) -> str:
    """What the TypeScript compiler says of the objects as values of the package's types, which refuse unknown fields."""
    imports = [f'import type {{I{kind}}} from "@kubernetes-models/{module}";' for kind, (_, module) in KINDS.items()]
    values = [f"export const v{n}: I{each['kind']} = {json.dumps(each)};" for n, each in enumerate(objects)]
    (folder / "objects.ts").write_text("\n".join([*imports, *values]))
    (folder / "node_modules").symlink_to(PACKAGES / "node_modules")
    options = ("--noEmit", "--strict", "--skipLibCheck", "--module", "preserve", "--moduleResolution", "bundler")
    done = subprocess.run(
        [PACKAGES / "node_modules" / ".bin" / "tsc", *options, "objects.ts"],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    return done.stdout


@pytest.fixture(scope="module")
def written() -> list[dict[str, Any]]:
    """Every such object of all plans, plain and with all limits."""
    if shutil.which("node") is None or not PACKAGES.exists():
        pytest.skip("no definitions: make .tools/npm")
    found = []
    for target in sorted({target for target, _ in KINDS.values()}):
        for make in (*plans.ALL.values(), *plans.FURTHER.values()):
            made = make()
            limits = msgspec.structs.replace(made.inputs, slo=Slo(ttft_ms=500, tpot_ms=50, e2e_ms=9000))
            for plan in (made, msgspec.structs.replace(made, inputs=limits)):
                options = Options(
                    name="demo",
                    image="registry.local/vllm:v1",
                    labels={"team": "nlp"},
                    service_monitor=plan is not made,
                )
                try:
                    files = render(plan, target, options)
                except InvalidInput:
                    continue
                documents = [yaml.load(file.content, Loader=yaml.CSafeLoader) for file in files if file.is_yaml]
                found += [document for document in documents if document["kind"] in KINDS]
    assert {each["kind"] for each in found} == set(KINDS)
    return found


def test_every_object_is_valid_and_has_no_unknown_field(written: list[dict[str, Any]], tmp_path: Path) -> None:
    assert invalid(written) == [None] * len(written)
    assert mistyped(written, tmp_path) == ""


WRONG: dict[str, tuple[str, list[Any], Any]] = {
    "a route without a rule that is one": ("HTTPRoute", ["spec", "rules"], "all"),
    "a match of a kind that is none": ("HTTPRoute", ["spec", "rules", 0, "matches", 0, "path", "type"], "Prefix"),
    "a time that is none": ("HTTPRoute", ["spec", "rules", 0, "timeouts", "request"], "zero"),
    "a trigger without its metadata": ("ScaledObject", ["spec", "triggers", 0, "metadata"], None),
    "a number of replicas in words": ("ScaledObject", ["spec", "maxReplicaCount"], "two"),
    "a port that is a list": ("PodMonitor", ["spec", "podMetricsEndpoints", 0, "port"], []),
    "a relabelling that is none": ("ServiceMonitor", ["spec", "endpoints", 0, "relabelings", 0, "action"], "retain"),
    "a rule without its expression": ("PrometheusRule", ["spec", "groups", 0, "rules", 0, "expr"], None),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_value_is_noticed(mistake: str, written: list[dict[str, Any]]) -> None:
    kind, path, value = WRONG[mistake]
    changed = json.loads(json.dumps(next(each for each in written if each["kind"] == kind)))
    holder = changed
    for step in path[:-1]:
        holder = holder[step]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    (said,) = invalid([changed])
    assert said is not None


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_is_noticed(kind: str, written: list[dict[str, Any]], tmp_path: Path) -> None:
    one = next(each for each in written if each["kind"] == kind)
    assert "nonsense" in mistyped([{**one, "spec": {**one["spec"], "nonsense": 1}}], tmp_path)
