"""Changes to rendered YAML: merges by name, JSON patches, single values; and that a change that finds nothing says so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import plans
from aim_engine.errors import InvalidInput
from aim_engine.render import compare, patch
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.targets import render


def manifests() -> tuple[Artifact, ...]:
    return render(plans.replicas(), "kubernetes", Options(name="demo"))


def changed(values: tuple[str, ...] = (), patches: str = "") -> dict[str, Any]:
    found = patch.apply(manifests(), values, patch.read(patches, "my.yaml") if patches else ())
    return {file.path.removesuffix(".yaml"): yaml.safe_load(file.content) for file in found}


def container(found: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = found["deployment"]["spec"]["template"]["spec"]["containers"][0]
    return first


def test_a_merge_changes_an_entry_by_its_name_and_leaves_the_others() -> None:
    before = container(changed())
    after = container(
        changed(
            patches="""
kind: Deployment
spec:
  replicas: 3
  template:
    spec:
      containers:
        - name: vllm
          env:
            - {name: HF_HOME, value: /elsewhere}
            - {name: HF_TOKEN, $patch: delete}
            - {name: NEW, value: x}
          livenessProbe: null
        - {name: sidecar, image: "registry.local/log:1"}
"""
        )
    )
    names = [entry["name"] for entry in after["env"]]
    assert names == [*(entry["name"] for entry in before["env"] if entry["name"] != "HF_TOKEN"), "NEW"]
    assert {"name": "HF_HOME", "value": "/elsewhere"} in after["env"]
    assert "livenessProbe" not in after
    assert after["args"] == before["args"]
    assert after["volumeMounts"] == before["volumeMounts"]


def test_json_patch_operations_do_what_the_standard_says() -> None:
    document: Any = {"a": [1, 2], "b/c": {"~": "x"}}
    steps: list[dict[str, Any]] = [
        {"op": "test", "path": "/b~1c/~0", "value": "x"},
        {"op": "add", "path": "/a/1", "value": 9},
        {"op": "add", "path": "/a/-", "value": 3},
        {"op": "replace", "path": "/b~1c/~0", "value": "y"},
        {"op": "copy", "from": "/b~1c", "path": "/d"},
        {"op": "move", "from": "/a/0", "path": "/e"},
        {"op": "remove", "path": "/b~1c"},
    ]
    for step in steps:
        document = patch.operated(document, step, "test")
    assert document == {"a": [9, 2, 3], "d": {"~": "y"}, "e": 1}


@pytest.mark.parametrize(
    "step",
    [
        {"op": "remove", "path": "/nothing"},
        {"op": "replace", "path": "/a/7", "value": 1},
        {"op": "add", "path": "/a/01", "value": 1},
        {"op": "test", "path": "/a/0", "value": 2},
        {"op": "add", "path": "/x/y", "value": 1},
        {"op": "add", "path": "a", "value": 1},
        {"op": "add", "path": "/a"},
        {"op": "explode", "path": "/a"},
    ],
)
def test_a_json_patch_that_cannot_be_done_is_refused(step: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        patch.operated({"a": [1]}, step, "test")


def test_a_json_patch_file_names_its_target() -> None:
    found = changed(patches="target: {kind: Service}\npatch:\n  - {op: replace, path: /spec/type, value: NodePort}\n")
    assert found["service"]["spec"]["type"] == "NodePort"


def test_single_values_are_set_by_path_position_and_name() -> None:
    found = changed(
        (
            "deployment.spec.replicas=4",
            "deployment.spec.template.spec.containers[name=vllm].imagePullPolicy=Always",
            "deployment.spec.template.spec.containers[0].resources.limits.amd\\.com/gpu='4'",
            "deployment.spec.template.spec.tolerations=[{key: gpu, operator: Exists}]",
            'service.metadata.annotations.note="a=b"',
        )
    )
    assert found["deployment"]["spec"]["replicas"] == 4
    assert container(found)["imagePullPolicy"] == "Always"
    assert container(found)["resources"]["limits"]["amd.com/gpu"] == "4"
    assert found["deployment"]["spec"]["template"]["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert found["service"]["metadata"]["annotations"] == {"note": "a=b"}


@pytest.mark.parametrize(
    "word",
    ["", "=", "deployment", "deployment=1", "nothing.spec=1", "deployment.spec.x[0].y=1", "deployment.spec.replicas.x=1",
     "deployment.spec[=1", "deployment.spec.template.spec.containers[name=other].image=x", "deployment.spec.replicas={"],
)  # fmt: skip
def test_a_value_without_a_place_is_refused(word: str) -> None:
    with pytest.raises(InvalidInput):
        changed((word,))


@pytest.mark.parametrize(
    "content", ["- 1", "kind: Nothing", "kind: Service\nmetadata: {name: other}", "a: 1\na: 2", "{"]
)
def test_a_patch_without_an_object_is_refused(content: str) -> None:
    with pytest.raises(InvalidInput):
        changed(patches=content)


def test_only_what_a_patch_touches_changes_and_its_header_stays() -> None:
    before = {file.path: file.content for file in manifests()}
    after = {file.path: file.content for file in patch.apply(manifests(), ("service.spec.type=NodePort",), ())}
    assert {path for path in before if before[path] != after[path]} == {"service.yaml"}
    assert after["service.yaml"].splitlines()[:3] == before["service.yaml"].splitlines()[:3]


def test_a_target_without_yaml_has_nothing_to_patch() -> None:
    with pytest.raises(InvalidInput, match="no YAML"):
        patch.apply(render(plans.on_cpu(), "shell", Options(name="demo")), ("a=1",), ())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_merging_nothing_and_merging_oneself_change_nothing(value: Any) -> None:
    whole = patch.merged({}, {"x": value})
    assert patch.merged(whole, {}) == whole
    assert patch.merged(copy.deepcopy(whole), whole) == whole


def test_the_diff_of_files_is_empty_when_nothing_changes_and_shows_what_does() -> None:
    current = {file.path: file.content for file in manifests()}
    assert compare.files(current, manifests()) == ""
    shown = compare.files(current, patch.apply(manifests(), ("deployment.spec.replicas=4",), ()))
    assert "-  replicas: 2\n+  replicas: 4\n" in shown
    assert shown.count("--- a/") == 1
    assert compare.files({}, manifests()).count("--- /dev/null") == len(manifests())


def test_the_diff_with_a_cluster_passes_over_what_only_the_cluster_sets() -> None:
    wanted = {"kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": 1}], "type": "A"}}
    found = {
        "metadata": {"name": "x", "uid": "1"},
        "kind": "Service",
        "spec": {"ports": [{"port": 2, "nodePort": 9}], "type": "A", "clusterIP": "1.2.3.4"},
    }
    assert compare.live(wanted, found) == ("Service/x: spec.ports[0].port: 2 -> 1",)
    assert compare.live(wanted, None) == ("Service/x: would be made",)
    assert compare.live(wanted, wanted) == ()
