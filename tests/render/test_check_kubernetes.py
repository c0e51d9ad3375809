"""Manifests: every deliberate mistake is caught, our own files are clean, and strangers' files never break the checker."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import plans
from aim_engine import backend
from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_kubernetes, check_schema, document
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

ENGINE = backend.get("vllm")
Change = Callable[[dict[str, Any]], object]


def ours(case: str = "qwen3-32b-8xmi300x") -> list[dict[str, Any]]:
    options = Options(name="demo", image="registry.local/vllm:v0.32.0" if case == "small-cpu" else None)
    return [yaml.safe_load(file.content) for file in render(plans.ALL[case](), "kubernetes", options)]


def deployment() -> dict[str, Any]:
    return copy.deepcopy(next(entry for entry in ours() if entry["kind"] == "Deployment"))


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return first


def problems(documents: list[Any], version: str | None = None) -> list[Finding]:
    return [finding for finding in check_kubernetes.check(documents, ENGINE, version) if finding.severity != "info"]


@pytest.mark.parametrize("case", plans.ALL)
@pytest.mark.parametrize("version", ["1.35", "1.36", "1.37"])
def test_our_own_manifests_pass_strict_schemas_and_every_rule(case: str, version: str) -> None:
    found = check_kubernetes.check(ours(case), ENGINE, kubernetes_version=version)
    assert [finding for finding in found if finding.severity != "info"] == []


def test_the_three_versions_are_the_newest_known() -> None:
    from kubernetes_validate import utils

    assert sorted({utils.major_minor(version) for version in utils.all_versions()})[-3:] == ["1.35", "1.36", "1.37"]


MISTAKES: dict[str, tuple[Change, str]] = {
    "unknown field": (lambda m: container(m).update(imagePullPolice="Always"), "MAN003"),
    "replicas as a word": (lambda m: m["spec"].update(replicas="one"), "MAN003"),
    "env value is a number": (lambda m: container(m)["env"].append({"name": "A", "value": 1}), "MAN003"),
    "argument is a number": (lambda m: container(m)["args"].append(32768), "MAN003"),
    "no selector": (lambda m: m["spec"].pop("selector"), "MAN006"),
    "memory with an unknown unit": (lambda m: container(m)["resources"]["limits"].update(memory="256GB"), "MAN011"),
    "unknown pull policy": (lambda m: container(m).update(imagePullPolicy="Sometimes"), "MAN010"),
    "dead API version": (lambda m: m.update(apiVersion="apps/v1beta1"), "MAN004"),
    "request and limit of GPUs differ": (
        lambda m: container(m)["resources"]["requests"].update({"amd.com/gpu": "4"}),
        "K8S001",
    ),
    "a fraction of a GPU": (
        lambda m: [entry.update({"amd.com/gpu": "0.5"}) for entry in container(m)["resources"].values()],
        "K8S001",
    ),
    "selector and labels differ": (
        lambda m: m["spec"]["template"]["metadata"].update(labels={"app": "x"}),
        "MAN006",
    ),
    "bad name": (lambda m: m["metadata"].update(name="AIM_Engine"), "MAN005"),
    "mount without a volume": (
        lambda m: container(m)["volumeMounts"].append({"name": "x", "mountPath": "/x"}),
        "MAN007",
    ),
    "port out of range": (lambda m: container(m)["ports"][0].update(containerPort=80000), "MAN008"),
    "probe names no port": (lambda m: container(m)["readinessProbe"]["httpGet"].update(port="web"), "MAN009"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_deliberate_mistake_is_an_error(mistake: str) -> None:
    change, identity = MISTAKES[mistake]
    manifest = deployment()
    change(manifest)
    errors = [finding for finding in problems([manifest]) if finding.severity == "error"]
    assert identity in {finding.id for finding in errors}
    assert all("demo" in finding.evidence or "AIM_Engine" in finding.evidence for finding in errors)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_most_are_found_without_the_schemas_too(mistake: str) -> None:
    change, identity = MISTAKES[mistake]
    manifest = deployment()
    change(manifest)
    found = {finding.id for finding in check_kubernetes.rules([manifest], ENGINE)}
    assert identity in found or mistake == "unknown field"


def test_schemas_alone_find_five_of_the_sixteen_and_the_rules_the_other_eleven() -> None:
    """The sixteenth is a key given twice, which is gone before any schema sees the object."""
    by_schema, by_rules = set(), {"key given twice"}
    for mistake, (change, identity) in MISTAKES.items():
        manifest = deployment()
        change(manifest)
        if any(finding.severity == "error" for finding in check_schema.check([manifest])):
            by_schema.add(mistake)
        elif identity in {finding.id for finding in check_kubernetes.rules([manifest], ENGINE)}:
            by_rules.add(mistake)
    assert by_schema == {
        "unknown field",
        "replicas as a word",
        "env value is a number",
        "argument is a number",
        "no selector",
    }
    assert len(by_rules) == 11
    assert by_rules | by_schema == {*MISTAKES, "key given twice"}


def test_a_key_given_twice_is_an_error_with_its_line() -> None:
    text = yaml.safe_dump(deployment()) + "kind: Deployment\n"
    _, found = document.read(text, "x.yaml")
    assert [finding.id for finding in found] == ["MAN001"]
    assert found[0].evidence == f"line {len(text.splitlines())}"


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


AMD: dict[str, tuple[Change, str]] = {
    "GPU without a limit": (lambda m: container(m)["resources"]["limits"].pop("amd.com/gpu"), "K8S001"),
    "another maker's GPU": (
        lambda m: container(m)["resources"]["limits"].update({"nvidia.com/gpu": "1"}),
        "K8S001",
    ),
    "no shared memory": (lambda m: pod(m).update(volumes=[]), "K8S005"),
    "shared memory on disk": (lambda m: pod(m)["volumes"][0]["emptyDir"].pop("medium"), "K8S005"),
    "shared memory above the limit": (lambda m: pod(m)["volumes"][0]["emptyDir"].update(sizeLimit="1Ti"), "K8S005"),
    "impatient startup probe": (lambda m: container(m)["startupProbe"].update(failureThreshold=3), "K8S006"),
    "liveness without startup": (lambda m: container(m).pop("startupProbe"), "K8S007"),
    "no readiness": (lambda m: container(m).pop("readinessProbe"), "MAN012"),
    "host network": (lambda m: pod(m).update(hostNetwork=True), "K8S008"),
    "privileged": (lambda m: container(m)["securityContext"].update(privileged=True), "K8S008"),
    "debug capability": (
        lambda m: container(m)["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
        "K8S008",
    ),
    "killed while draining": (lambda m: pod(m).update(terminationGracePeriodSeconds=60), "K8S014"),
    "token in the clear": (lambda m: container(m)["env"].append({"name": "HF_TOKEN", "value": "hf_x"}), "K8S021"),
    "key on the command line": (lambda m: container(m)["args"].extend(["--api-key", "x"]), "SEC004"),
    "more ranks than GPUs": (lambda m: container(m)["args"].extend(["-tp", "16"]), "PAR006"),
    "fewer ranks than GPUs": (lambda m: container(m)["args"].extend(["-tp=4"]), "PAR026"),
    "flag that is gone": (lambda m: container(m)["args"].extend(["--swap-space", "16"]), "VER002"),
    "flag that never was": (lambda m: container(m)["args"].append("--max-modle-len=1"), "VER001"),
    "variable that is gone": (
        lambda m: container(m)["env"].append({"name": "VLLM_USE_V1", "value": "1"}),
        "VER003",
    ),
    "CUDA image": (lambda m: container(m).update(image="vllm/vllm-openai:v0.32.0"), "VER008"),
    "old image": (lambda m: container(m).update(image="rocm/vllm:rocm7_vllm_0.28.0"), "VER007"),
    "moving tag": (lambda m: container(m).update(image="vllm/vllm-openai-rocm:latest"), "VER009"),
    "no tag": (lambda m: container(m).update(image="vllm/vllm-openai-rocm"), "VER009"),
    "entry point twice": (lambda m: container(m)["args"].__setitem__(slice(0, 0), ["vllm", "serve"]), "VER010"),
    "old entry point": (
        lambda m: container(m).update(command=["python3", "-m", "vllm.entrypoints.openai.api_server"]),
        "VER010",
    ),
    "tiny memory": (lambda m: container(m)["resources"]["requests"].update(memory="512m"), "MAN011"),
    "request above limit": (lambda m: container(m)["resources"]["requests"].update(memory="9999Gi"), "MAN011"),
    "never restarted": (lambda m: pod(m).update(restartPolicy="Never"), "MAN010"),
    "Deployment in the core group": (lambda m: m.update(apiVersion="v1"), "MAN004"),
}


@pytest.mark.parametrize("mistake", AMD)
def test_a_mistake_about_gpus_or_the_engine_is_found(mistake: str) -> None:
    change, identity = AMD[mistake]
    manifest = deployment()
    change(manifest)
    assert identity in {finding.id for finding in problems([manifest])}


def test_a_service_called_vllm_is_an_error_when_pods_take_service_links() -> None:
    manifests = ours()
    service = next(entry for entry in manifests if entry["kind"] == "Service")
    service["metadata"]["name"] = "vllm"
    assert {(f.id, f.severity) for f in problems(manifests)} == {("K8S025", "warning")}
    next(pod(entry) for entry in manifests if entry["kind"] == "Deployment").pop("enableServiceLinks")
    assert ("K8S025", "error") in {(f.id, f.severity) for f in problems(manifests)}


def test_a_service_that_finds_no_pod_or_port_is_said() -> None:
    manifests = ours()
    service = next(entry for entry in manifests if entry["kind"] == "Service")
    service["spec"]["ports"][0]["targetPort"] = "web"
    assert {finding.id for finding in problems(manifests)} == {"MAN009"}
    service["spec"]["selector"] = {"app": "other"}
    assert {finding.id for finding in problems(manifests)} == {"MAN006"}


def test_replicas_on_a_claim_for_one_node_are_said() -> None:
    manifests = ours("mixture-2x2xmi355x")
    claim = next(entry for entry in manifests if entry["kind"] == "PersistentVolumeClaim")
    claim["spec"]["accessModes"] = ["ReadWriteOnce"]
    assert {finding.id for finding in problems(manifests)} == {"K8S013"}


def test_the_release_is_taken_from_the_image_unless_it_is_given() -> None:
    manifest = deployment()
    container(manifest)["args"] += ["--swap-space", "4"]
    container(manifest)["image"] = "vllm/vllm-openai-rocm:v0.24.0"
    by_tag = {finding.message for finding in problems([manifest]) if finding.id == "VER002"}
    given = {finding.message for finding in problems([manifest], "0.33.0") if finding.id == "VER002"}
    assert by_tag == given  # gone in both, named alike
    container(manifest)["image"] = "vllm/vllm-openai-rocm:v0.99.0"
    notes = [f.message for f in check_kubernetes.check([manifest], ENGINE) if f.id == "VER030"]
    assert notes == ["vLLM 0.99.0 is not in the catalogue; checked as 0.33.0, the nearest"]


def test_all_errors_of_one_object_are_listed_at_once() -> None:
    manifest = deployment()
    container(manifest)["bogus"] = 1
    manifest["spec"]["replicas"] = "one"
    container(manifest)["args"].append(1)
    assert len(check_schema.check([manifest])) == 3


def test_lists_and_strangers_kinds_are_taken_as_they_come() -> None:
    wrapped = {"apiVersion": "v1", "kind": "List", "items": ours()}
    assert problems([wrapped]) == []
    custom = {"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "x"}, "spec": {}}
    (note,) = check_kubernetes.check([custom], ENGINE)
    assert (note.severity, note.remedy) == ("info", "give its CustomResourceDefinition too")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: [" * 3000,
        "\n".join(
            [
                "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
                *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)),
            ]
        ),
        "a: b: c",
        "!!python/object/apply:os.system ['id']",
        "a: \x00",
        "? {a: b}\n: c",
    ],
)
def test_unreadable_yaml_is_wrong_input_not_a_crash(text: str) -> None:
    with pytest.raises(InvalidInput):
        document.read(text, "x.yaml")


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, child in value.items():
            found += places(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            found += places(child, (*path, index))
    return found


PLACES = places(ours())


@settings(max_examples=600, deadline=None)
@given(place=st.sampled_from(PLACES), junk=JUNK)
def test_no_value_anywhere_breaks_the_rules(place: tuple[Any, ...], junk: Any) -> None:
    documents: Any = copy.deepcopy(OURS)
    holder = documents
    for part in place[:-1]:
        holder = holder[part]
    holder[place[-1]] = junk
    check_kubernetes.rules([entry for entry in documents if isinstance(entry, dict)], ENGINE)


OURS = ours()


def test_variables_from_a_config_map_of_the_same_files_are_judged() -> None:
    made = deployment()
    held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"VLLM_USE_V1": "1"}}
    container(made)["envFrom"] = [{"configMapRef": {"name": "c"}}]
    assert any("VLLM_USE_V1" in finding.message for finding in problems([made, held], "0.32.0"))
    assert not any("VLLM_USE_V1" in finding.message for finding in problems([made], "0.32.0"))


def test_a_shell_inside_a_pod_is_read_as_a_shell() -> None:
    made = deployment()
    container(made)["command"] = ["/bin/bash", "-c"]
    container(made)["args"] = [
        "export VLLM_USE_V1=1\nTP=3\nvllm serve m --tensor-parallel-size $TP \\\n --swap-space 4\n"
    ]
    said = " ".join(finding.message for finding in problems([made], "0.32.0"))
    assert "VLLM_USE_V1" in said
    assert "--swap-space" in said
    assert "3" in said
