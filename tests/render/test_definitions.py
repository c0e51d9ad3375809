"""Custom resources against the definitions of their operators: ours pass, every field that nobody knows is found with its place."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

import plans
from aim_engine import backend
from aim_engine.cli import main
from aim_engine.errors import InvalidInput
from aim_engine.render import check_kubernetes, check_schema, definitions
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render
from aim_engine.workload import Slo

ENGINE = backend.get("vllm")
OPTIONS = Options(name="demo", namespace="serving", image="registry.local/vllm:v0.32.0")
CUSTOM = {
    "monitoring": {"PodMonitor", "PrometheusRule"},
    "monitoring of services": {"ServiceMonitor", "PrometheusRule"},
    "keda": {"ScaledObject"},
    "lws": {"LeaderWorkerSet"},
    "kuberay": {"RayService"},
    "kserve": {"InferenceService"},
    "kserve-llm": {"LLMInferenceService"},
    "gateway": {"InferencePool", "HTTPRoute"},
}
"""Target -> its kinds that are not Kubernetes' own. What follows ` of ` is a choice within the target."""
REFUSED = {("kuberay", "small-cpu"), ("kserve", "large-16xmi300x"), ("kserve-llm", "large-16xmi300x")}
FREE = (
    "metadata",
    "labels",
    "annotations",
    "matchLabels",
    "nodeSelector",
    "requests",
    "limits",
    "rayStartParams",
    "sizeLimit",
)
"""Mappings whose keys are the user's; in a template `metadata` is dropped by some operators and kept by others."""


def written(target: str, case: str, **change: Any) -> list[dict[str, Any]]:
    """The custom resources of a target; nothing where the plan is refused."""
    made = {**plans.ALL, **plans.FURTHER}[case]()
    limited = msgspec.structs.replace(made.inputs, slo=Slo(ttft_ms=500, tpot_ms=50, e2e_ms=9000))
    name, _, choice = target.partition(" of ")
    options = msgspec.structs.replace(OPTIONS, service_monitor=choice == "services", **change)
    try:
        files = render(msgspec.structs.replace(made, inputs=limited), name, options)
    except InvalidInput:
        assert (target, case) in REFUSED
        return []
    documents = [yaml.load(file.content, Loader=yaml.CSafeLoader) for file in files]
    found = [each for each in documents if each["kind"] in CUSTOM[target]]
    assert {each["kind"] for each in found} == CUSTOM[target]
    return found


def one(kind: str) -> dict[str, Any]:
    """An object of ours of some kind."""
    target = next(target for target, kinds in CUSTOM.items() if kind in kinds)
    return next(each for each in written(target, "mixture-2x2xmi355x") if each["kind"] == kind)


@pytest.mark.parametrize("target", CUSTOM)
@pytest.mark.parametrize("case", [*plans.ALL, *plans.FURTHER])
@pytest.mark.parametrize("change", [{}, {"render_gid": 109, "dra": True, "priority_class": "high"}])
def test_our_own_objects_pass_the_definitions_of_their_operators(
    target: str, case: str, change: dict[str, Any]
) -> None:
    objects = written(target, case, **change)
    assert check_schema.check(objects) == ()


def mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all mappings whose keys the definition names."""
    if isinstance(value, dict):
        yield path
        for key, entry in value.items():
            if key not in FREE and not (path[-1:] == ("triggers",) and key == "metadata"):
                yield from mappings(entry, (*path, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from mappings(entry, (*path, index))


@pytest.mark.parametrize("kind", sorted(set().union(*CUSTOM.values())))
def test_an_unknown_field_is_found_wherever_it_stands(kind: str) -> None:
    document = one(kind)
    places = list(mappings(document))
    assert len(places) > 2
    for place in places:
        changed = copy.deepcopy(document)
        holder = changed
        for step in place:
            holder = holder[step]
        holder["nonsense"] = 1
        (found,) = check_schema.check([changed])
        dotted = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in (*place, "nonsense"))
        assert found.severity == "error"
        assert found.evidence == f"{kind}/{document['metadata']['name']}: {dotted[1:]}"
        assert "knows no field 'nonsense' here" in found.message


WRONG: dict[str, tuple[str, str, Any, str]] = {
    "a match of a kind that is none": ("HTTPRoute", "spec.rules.0.matches.0.path.type", "Prefix", "is not one of"),
    "a time that is none": ("HTTPRoute", "spec.rules.0.timeouts.request", "zero", "does not match"),
    "a trigger without its metadata": ("ScaledObject", "spec.triggers.0.metadata", None, "'metadata' is a required"),
    "a number of replicas in words": ("ScaledObject", "spec.maxReplicaCount", "two", "is not of type 'integer'"),
    "a port that is a list": ("PodMonitor", "spec.podMetricsEndpoints.0.port", [], "is not of type 'string'"),
    "a relabelling that is none": ("ServiceMonitor", "spec.endpoints.0.relabelings.0.action", "retain", "is not one of"),
    "a rule without its expression": ("PrometheusRule", "spec.groups.0.rules.0.expr", None, "'expr' is a required"),
    "a group of half a pod": ("LeaderWorkerSet", "spec.leaderWorkerTemplate.size", 1.5, "is not of type 'integer'"),
    "a policy in small letters": (
        "LeaderWorkerSet", "spec.leaderWorkerTemplate.restartPolicy", "recreate", "is not one of",
    ),
    "an argument that is a number": (
        "InferenceService", "spec.predictor.containers.0.args.0", 8, "is not of type 'string'",
    ),
    "replicas as text": ("LLMInferenceService", "spec.replicas", "2", "is not of type 'integer'"),
    "workers without a group name": (
        "RayService", "spec.rayClusterConfig.workerGroupSpecs.0.groupName", None, "'groupName' is a required",
    ),
    "a port beyond all ports": ("InferencePool", "spec.targetPorts.0.number", 99999, "is greater than the maximum"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_value_is_found_with_its_place(mistake: str) -> None:
    kind, path, value, message = WRONG[mistake]
    changed = copy.deepcopy(one(kind))
    holder: Any = changed
    *steps, last = (int(step) if step.isdecimal() else step for step in path.split("."))
    for step in steps:
        holder = holder[step]
    if value is None:
        del holder[last]
    else:
        holder[last] = value
    found = check_schema.check([changed])
    assert [each.severity for each in found] == ["error"]
    assert message in found[0].message
    shown = re.sub(r"\.(\d+)", r"[\1]", path if value is not None else path.rpartition(".")[0])
    assert found[0].evidence.endswith(f": {shown}")


def test_the_name_that_was_meant_is_said() -> None:
    document = one("ScaledObject")
    document["spec"]["maxReplicas"] = document["spec"].pop("maxReplicaCount")
    (found,) = check_schema.check([document])
    assert found.remedy == "did you mean maxReplicaCount?"
    assert found.message == "KEDA 2.20.2 knows no field 'maxReplicas' here"


def test_all_that_is_wrong_with_an_object_is_listed_at_once() -> None:
    document = one("InferenceService")
    document["spec"]["predictor"] |= {"minReplica": 1, "maxReplicas": "two", "hostIpc": True}
    assert len(check_schema.check([document])) == 3


def test_a_version_that_the_release_does_not_have_is_said_with_the_newest() -> None:
    document = {**one("InferenceService"), "apiVersion": "serving.kserve.io/v1alpha2"}
    (found,) = check_schema.check([document])
    assert (found.id, found.severity, found.remedy) == ("MAN004", "warning", "apiVersion: serving.kserve.io/v1beta1")


def test_what_an_api_server_fills_in_drops_or_writes_itself_is_no_mistake() -> None:
    document = one("LeaderWorkerSet")
    document["status"] = {"replicas": 2, "conditions": []}
    document["metadata"] |= {"creationTimestamp": None, "uid": "x", "generation": 3}
    document["spec"]["leaderWorkerTemplate"]["leaderTemplate"] = None
    ray = one("RayService")
    del ray["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"]  # has a default
    assert check_schema.check([document, ray]) == ()


DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "gadgets.example.com"},
    "spec": {
        "group": "example.com",
        "names": {"kind": "Gadget", "plural": "gadgets"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "required": ["spec"],
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "size": {"x-kubernetes-int-or-string": True},
                                    "names": {"type": "array", "items": {"type": "string", "nullable": True}},
                                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                                    "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
                                },
                                "anyOf": [{"required": ["size"]}, {"properties": {"names": {"minItems": 1}}}],
                            }
                        },
                    }
                },
            }
        ],
    },
}


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ({"size": 1, "names": ["a", None], "free": {"x": [1]}, "limits": {"any": 1}}, ""),
        ({"size": "10Gi"}, ""),
        ({"size": 1.5}, "1.5 is not of type 'integer', 'string'"),
        ({"size": 1, "limits": {"any": "1"}}, "'1' is not of type 'integer'"),
        ({"names": []}, "is not valid under any of the given schemas"),
        ({"size": 1, "colour": "red"}, "the definition among these files knows no field 'colour' here"),
    ],
)
def test_a_definition_among_the_files_is_what_its_resources_are_held_against(spec: dict[str, Any], wrong: str) -> None:
    document = {"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "x"}, "spec": spec}
    found = check_kubernetes.check([document, DEFINITION], ENGINE)
    assert [each for each in found if not wrong or wrong not in each.message] == []
    assert len(found) == bool(wrong)


def test_a_definition_of_the_users_own_goes_before_the_bundled_one() -> None:
    changed = json.loads(json.dumps(DEFINITION).replace("example.com", "keda.sh").replace("Gadget", "ScaledObject"))
    changed["spec"]["versions"][0]["name"] = "v1alpha1"
    (found,) = check_schema.check([changed, {**one("ScaledObject"), "spec": {"size": 1, "triggers": []}}])
    assert "the definition among these files knows no field 'triggers'" in found.message


@pytest.mark.parametrize("junk", [None, [], "x", 1, {"versions": "x"}, {"group": "a", "names": {"kind": "B"}}])
def test_a_broken_definition_breaks_nothing(junk: Any) -> None:
    assert definitions.among([{"kind": "CustomResourceDefinition", "spec": junk}]) == {}


@pytest.mark.parametrize(
    "spec",
    [{"type": "str"}, {"type": "string", "minLength": "x"}, {"type": "object", "properties": {"a": {"enum": 1}}}],
)
def test_a_definition_that_no_one_can_use_is_said_to_be_one(spec: dict[str, Any]) -> None:
    changed = copy.deepcopy(DEFINITION)
    changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = spec
    document = {"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "x"}, "spec": {}}
    (found,) = [each for each in check_schema.check([document, changed]) if each.evidence == "Gadget/x"]
    assert (found.severity, "cannot be used" in found.message) == ("info", True)


def test_a_pattern_that_only_go_reads_is_left_out() -> None:
    made = definitions.strict({"type": "string", "pattern": "^((?i)a|b)$"})
    assert made == {"type": "string"}


def test_a_command_line_tells_file_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = one("ScaledObject")
    document["spec"]["cooldown"] = document["spec"].pop("cooldownPeriod")
    file = tmp_path / "scaled.yaml"
    file.write_text(yaml.safe_dump(document))
    assert main.run(["validate", "--json", str(file)]) == 1
    (found,) = json.loads(capsys.readouterr().out)["files"][0]["findings"]
    assert found["evidence"] == "ScaledObject/demo: spec.cooldown"
    assert found["remedy"] == "did you mean cooldownPeriod?"


@pytest.mark.parametrize("group", definitions.groups())
def test_bundled_definitions_are_schemas_that_python_reads(group: str) -> None:
    found = definitions.load(group)
    assert found is not None
    assert found.origin.licence == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}", found.origin.commit)
    text = json.dumps([found.kinds, found.parts])
    assert set(re.findall(r'"#/parts/(\w+)"', text)) == set(found.parts)
    for kind, versions in found.kinds.items():
        for version in versions:
            definition = definitions.find(f"{group}/{version}", kind)
            assert definition is not None
            jsonschema.Draft7Validator.check_schema(definition.schema(version))
    for pattern in re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', text):
        re.compile(json.loads(pattern))


def test_all_of_them_together_stay_small() -> None:
    import zlib

    paths = [
        Path(definitions.__file__).parents[1] / "data" / "definitions" / f"{each}.json" for each in definitions.groups()
    ]
    assert sum(len(zlib.compress(path.read_bytes(), 9)) for path in paths) < 100_000


def test_what_kinds_have_in_common_is_said_once_and_means_the_same() -> None:
    spec = {
        "type": "object",
        "properties": {"properties": {"type": "string", "pattern": "x" * 90}, "b": {"type": "integer"}},
    }
    kinds: dict[str, dict[str, dict[str, Any]]] = {
        "A": {"v1": {"type": "object", "properties": {"spec": spec}}},
        "B": {"v1": {"properties": {"old": spec}}},
    }
    short, parts = definitions.shared(kinds)
    assert len(json.dumps([short, parts])) < len(json.dumps(kinds))

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {"$ref"}:
                return whole(parts[value["$ref"].removeprefix("#/parts/")])
            return {key: whole(entry) for key, entry in value.items()}
        return value

    assert whole(short) == kinds


def test_the_newest_version_is_the_most_stable_one() -> None:
    made = definitions.Definition(
        by="x", versions={each: {} for each in ("v1beta2", "v1alpha9", "v1", "v2alpha1", "odd")}
    )
    assert made.newest == "v1"
