"""What the Kubernetes target does beyond the plan: network, privileges, device claims, volumes of replicas, additions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import hub_server
import plans
from aim_engine import backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import check_kubernetes, workloads
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

ENGINE = backend.get("vllm")
EVERYTHING = Options(
    name="demo",
    namespace="serving",
    create_namespace=True,
    dra=True,
    render_gid=992,
    priority_class="serving-high",
    labels={"team": "search", "example.com/tier": "gold"},
    annotations={"example.com/note": "a: $(b)\n# c"},
    env={"VLLM_LOGGING_LEVEL": "DEBUG"},
    args=("--seed", "1"),
    volumes=("claim/adapters:/adapters:ro",),
)


def objects(plan: Plan, options: Options) -> dict[str, dict[str, Any]]:
    return {
        document["kind"]: document
        for file in render(plan, "kubernetes", options)
        for document in yaml.safe_load_all(file.content)
    }


def pod(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    workload = found.get("Deployment") or found["StatefulSet"]
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize(
    "options",
    [
        EVERYTHING,
        Options(name="demo", offline=True),
        Options(name="demo", cache_per_replica=True, storage_class="fast"),
        Options(name="demo", model_path="/models/x", render_gid=109, volumes=("/srv/a:/a",)),
    ],
)
@pytest.mark.parametrize("version", ["1.35", "1.36", "1.37"])
def test_every_variant_passes_strict_schemas_and_our_rules(options: Options, version: str) -> None:
    manifests = list(objects(plans.replicas(), options).values())
    found = check_kubernetes.check(manifests, ENGINE, kubernetes_version=version)
    assert [finding for finding in found if finding.severity != "info"] == []


def test_with_the_group_of_the_devices_the_pod_keeps_to_the_restricted_standard() -> None:
    found = objects(plans.dense_on_all(), Options(name="demo", render_gid=992, create_namespace=True, namespace="ai"))
    spec = pod(found)
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["supplementalGroups"] == [992]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not any("hostPath" in volume for volume in spec["volumes"])
    assert found["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    paths = {mount["mountPath"] for mount in container["volumeMounts"]}
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert all(not path.startswith("/root") for path in paths)
    assert {env["HOME"], *(str(env[name]).rsplit("/", 1)[0] for name in ("HF_HOME", "VLLM_CACHE_ROOT"))} <= paths


def test_a_folder_of_the_host_is_beyond_what_a_namespace_can_enforce() -> None:
    for options in ({"model_path": "/models/x"}, {"volumes": ("/srv:/srv",)}):
        changed = msgspec.structs.replace(
            Options(name="demo", create_namespace=True, namespace="ai", render_gid=992), **options
        )
        labels = objects(plans.dense_on_all(), changed)["Namespace"]["metadata"]["labels"]
        assert "pod-security.kubernetes.io/enforce" not in labels


def test_a_device_claim_takes_the_place_of_the_device_plugins_resource() -> None:
    found = objects(plans.replicas(), Options(name="demo", dra=True))
    spec = pod(found)
    (container,) = spec["containers"]
    assert "amd.com/gpu" not in container["resources"]["limits"]
    assert container["resources"]["claims"] == [{"name": "gpu"}]
    (claim,) = spec["resourceClaims"]
    template = found["ResourceClaimTemplate"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]
    request = template["spec"]["spec"]["devices"]["requests"][0]["exactly"]
    assert (request["deviceClassName"], request["count"]) == ("gpu.amd.com", 2)
    assert '.deviceID in ["0x75a3", "0x75b3"]' in request["selectors"][0]["cel"]["expression"]


def test_a_cpu_plan_claims_no_device() -> None:
    found = objects(plans.on_cpu(), Options(name="demo", dra=True, image="registry.local/vllm:v0.32.0"))
    assert "ResourceClaimTemplate" not in found
    assert "resourceClaims" not in pod(found)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        (Options(name="demo"), True),
        (Options(name="demo", offline=True), False),
        (Options(name="demo", model_path="/m"), False),
    ],
)
def test_the_engine_reaches_the_hub_only_when_it_has_to_fetch(options: Options, way_out: bool) -> None:
    found = objects(plans.gated(), options)
    policy = found["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert bool(policy["egress"]) is way_out
    env = {entry["name"]: entry.get("value") for entry in pod(found)["containers"][0]["env"]}
    assert (env.get("HF_HUB_OFFLINE") == "1") is not way_out


def test_the_network_policy_and_the_service_select_the_pods() -> None:
    found = objects(plans.replicas(), EVERYTHING)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        pod(found)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_a_volume_per_replica_makes_a_stateful_set() -> None:
    found = objects(plans.replicas(), Options(name="demo", cache_per_replica=True))
    assert "Deployment" not in found
    assert "PersistentVolumeClaim" not in found
    spec = found["StatefulSet"]["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claim["metadata"]["name"] in {mount["name"] for mount in pod(found)["containers"][0]["volumeMounts"]}
    with pytest.raises(InvalidInput, match="has no use"):
        objects(plans.replicas(), Options(name="demo", cache_per_replica=True, offline=True))


def test_additions_reach_every_object_and_the_engine() -> None:
    found = objects(plans.replicas(), EVERYTHING)
    for kind, document in found.items():
        if kind != "Namespace":
            assert document["metadata"]["labels"].items() >= EVERYTHING.labels.items()
            assert document["metadata"]["annotations"].items() >= EVERYTHING.annotations.items()
    spec = pod(found)
    (container,) = spec["containers"]
    assert spec["priorityClassName"] == "serving-high"
    assert container["args"][-2:] == ["--seed", "1"]
    assert {"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"} in container["env"]
    assert {"name": "extra-0", "mountPath": "/adapters", "readOnly": True} in container["volumeMounts"]


@pytest.mark.parametrize(
    "options",
    [
        {"labels": {"app.kubernetes.io/name": "x"}},
        {"labels": {"a b": "x"}},
        {"labels": {"team": "x" * 64}},
        {"annotations": {"": "x"}},
        {"env": {"A-B": "x"}},
        {"volumes": ("data",)},
        {"volumes": ("data:/data",)},
        {"volumes": ("claim/A_B:/data",)},
        {"priority_class": "a b"},
        {"render_gid": -1},
    ],
)
def test_an_addition_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        objects(plans.dense_on_all(), Options(name="demo", **options))


@pytest.mark.parametrize("gid", [None, 992])
def test_the_job_fills_the_volume_that_an_offline_engine_reads(gid: int | None) -> None:
    options = Options(name="demo", offline=True, render_gid=gid)
    engine = objects(plans.gated(), options)
    fetched = {
        document["kind"]: document
        for file in render(plans.gated(), "job", options)
        for document in yaml.safe_load_all(file.content)
    }
    assert fetched["PersistentVolumeClaim"] == engine["PersistentVolumeClaim"]
    spec = fetched["Job"]["spec"]["template"]["spec"]
    (fetcher,), (server,) = spec["containers"], pod(engine)["containers"]
    env, served = ({entry["name"]: entry.get("value") for entry in each["env"]} for each in (fetcher, server))
    assert env["HF_HOME"] == served["HF_HOME"]
    cached = [[mount for mount in each["volumeMounts"] if mount["name"] == "cache"] for each in (fetcher, server)]
    assert cached[0] == cached[1] != []
    selector = engine["Service"]["spec"]["selector"]
    assert not selector.items() <= fetched["Job"]["spec"]["template"]["metadata"]["labels"].items()
    found = check_kubernetes.check(list(fetched.values()), ENGINE)
    assert [finding for finding in found if finding.severity != "info"] == []


FILES = {"/templates/chat.jinja": "{{ messages }} $(x) # 'y'\n", "/etc/serving/note.txt": ""}


@pytest.mark.parametrize("target", ["kubernetes", "lws", "kserve", "kserve-llm", "kuberay"])
def test_files_come_to_where_they_were_asked_for(target: str) -> None:
    manifests = [
        yaml.safe_load(file.content) for file in render(plans.replicas(), target, Options(name="demo", files=FILES))
    ]
    (config,) = (entry for entry in manifests if entry["kind"] == "ConfigMap")
    assert config["immutable"] is True
    (spec, *_) = (pod.spec for entry in manifests for pod in workloads.pods(entry))
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "files")
    assert volume["configMap"] == {"name": config["metadata"]["name"]}
    mounts = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "files"]
    assert {mount["mountPath"]: config["data"][mount["subPath"]] for mount in mounts} == FILES
    assert all(mount["readOnly"] for mount in mounts)
    assert [each for each in check_kubernetes.check(manifests, ENGINE) if each.severity != "info"] == []


def test_other_files_are_another_object_so_that_pods_are_replaced() -> None:
    names = {
        objects(plans.replicas(), Options(name="demo", files=files))["ConfigMap"]["metadata"]["name"]
        for files in (FILES, {**FILES, "/etc/serving/note.txt": "x"}, {"/a": FILES["/templates/chat.jinja"]})
    }
    assert len(names) == 3


@pytest.mark.parametrize(
    "files", [{"chat.jinja": ""}, {"/a/": ""}, {"/a:b": ""}, {"/a": "x" * 1_000_000}, {"/a\n": ""}]
)
def test_a_file_without_a_place_or_too_large_is_refused(files: dict[str, str]) -> None:
    for target in ("kubernetes", "compose", "helm"):
        with pytest.raises(InvalidInput):
            render(plans.replicas(), target, Options(name="demo", files=files))


def test_a_job_with_aim_engines_image_fills_the_volume_through_its_cache(tmp_path: Path) -> None:
    """What the Job runs, run here; then the hub's own client finds the model where the engine's pods are told to look."""
    options = Options(
        name="m", fetch_image="registry.example/aim-engine:1", fetch_sources="http://hub.example", offline=True
    )
    plan = plans.gated()
    model = plan.inputs.model.model_id
    job = next(
        document for file in render(plan, "job", options) for document in [yaml.safe_load(file.content)]
        if document["kind"] == "Job"
    )  # fmt: skip
    (fetch,) = job["spec"]["template"]["spec"]["containers"]
    assert fetch["image"] == "registry.example/aim-engine:1"
    env = {each["name"]: each["value"] for each in fetch["env"] if "value" in each}
    pods = next(
        document for file in render(plan, "kubernetes", options) for document in yaml.safe_load_all(file.content)
        if document and document["kind"] == "Deployment"
    )  # fmt: skip
    engine = {each["name"]: each.get("value") for each in pods["spec"]["template"]["spec"]["containers"][0]["env"]}
    hub = hub_server.Hub()
    hub.models[model] = {"config.json": b"{}", "model.safetensors": hub_server.safetensors(9000)}
    here = {
        name: value.replace("/root", str(tmp_path)).replace("/tmp/aim", f"{tmp_path}/state/aim")
        for name, value in env.items()
    }
    with hub_server.serving(hub) as address:
        assert env["AIM_ENGINE_CACHE_SOURCES"] == "http://hub.example"
        done = subprocess.run(
            [sys.executable, "-m", "aim_engine", *fetch["command"][1:]],
            env={**os.environ, **here, "AIM_ENGINE_CACHE_SOURCES": address}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    program = "import sys, huggingface_hub; print(huggingface_hub.snapshot_download(sys.argv[1]))"
    assert engine["HF_HUB_CACHE"] is not None
    looked = {"HF_HUB_CACHE": engine["HF_HUB_CACHE"].replace("/root", str(tmp_path)), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", program, model],
        env={**os.environ, **looked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-500:]
    assert (Path(found.stdout.strip()) / "model.safetensors").stat().st_size > 9000
