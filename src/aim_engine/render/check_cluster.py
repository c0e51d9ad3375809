"""What a cluster makes of manifests: GPUs by plugin or claim, labels, scaling, groups of pods, monitors.

Each object becomes a subject for the rules of `data/rules/kubernetes.yaml`; a name that an object does not have is left out, and
rules that ask for it are not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.backend.rules import version_of
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_engine
from aim_engine.render.check_engine import Container
from aim_engine.render.document import get, mapping, mappings, strings, whole

_LOOSE = ("amd.com/gpu.family", "amd.com/gpu.vram", "beta.amd.com/gpu.family", "beta.amd.com/gpu.vram")
_EXACT = ("amd.com/gpu.device-id", "beta.amd.com/gpu.device-id", "kubernetes.io/hostname")
_PRODUCT = ("amd.com/gpu.product-name", "beta.amd.com/gpu.product-name")
_PROFILE = "dcm.amd.com/gpu-config-profile"
_MONITORS = ("PodMonitor", "ServiceMonitor")
_TEMPLATES = (("spec", "template"), ("spec", "jobTemplate", "spec", "template"))
_START_S = 600
"""What a start may take where no startup probe says it. Source: vllm/envs.py VLLM_ENGINE_READY_TIMEOUT_S."""


def check(
    objects: list[dict[str, Any]], backend: Backend, version: str | None = None, kubernetes_version: str | None = None
) -> tuple[Finding, ...]:
    """The rules that fire for the objects of some files together."""
    cluster = _cluster(objects, kubernetes_version)
    found: list[Finding] = []
    for entry in objects:
        where = f"{entry.get('kind') or 'object'}/{get(entry, 'metadata', 'name') or '?'}"
        for about in _subjects(entry, objects, backend, version):
            found += [
                msgspec.structs.replace(finding, evidence=where) for finding in backend.judge({**cluster, **about})
            ]
    return tuple(dict.fromkeys(found))


def _cluster(objects: list[dict[str, Any]], kubernetes_version: str | None) -> dict[str, Any]:
    """What holds for every object: the cluster's release, and how its operator hands out GPUs."""
    found: dict[str, Any] = {"plugin_on": False, "dra_on": False}
    if kubernetes_version is not None:
        found |= {"cluster": version_of(kubernetes_version), "cluster_text": kubernetes_version}
    for entry in objects:
        if entry.get("kind") != "DeviceConfig":
            continue
        found["plugin_on"] = get(entry, "spec", "devicePlugin", "enableDevicePlugin") is not False
        found["dra_on"] = get(entry, "spec", "draDriver", "enable") is True
        naming = get(entry, "spec", "devicePlugin", "devicePluginArguments", "resource_naming_strategy")
        if isinstance(naming, str):
            found["naming"] = naming
        driver = get(entry, "spec", "driver", "version")
        if isinstance(driver, str) and re.match(r"\d+\.\d+", driver):
            found |= {"driver": version_of(driver), "driver_text": driver}
    for image in _images(objects):
        repository, tag, _ = check_engine.split_image(image)
        if repository.endswith("k8s-gpu-dra-driver") and tag is not None and re.search(r"\d+\.\d+", tag):
            found |= {"dra": version_of(tag), "dra_text": tag}
    return found


def _subjects(
    entry: dict[str, Any], objects: list[dict[str, Any]], backend: Backend, version: str | None
) -> Iterator[dict[str, Any]]:
    kind, api = str(entry.get("kind")), str(entry.get("apiVersion"))
    about: dict[str, Any] = {"object_kind": kind, "object_api": api}
    for pod in _pods(entry):
        yield {**about, **_pod(pod, entry, objects, backend, version)}
    if kind == "LeaderWorkerSet":
        about["group_restart"] = str(
            get(entry, "spec", "leaderWorkerTemplate", "restartPolicy") or "RecreateGroupOnPodRestart"
        )
    elif kind == "LLMInferenceService":
        containers = mappings(get(entry, "spec", "template", "containers"))
        about["own_image"] = any(each.get("name") == "main" and each.get("image") for each in containers)
    elif kind == "InferencePool":
        about["pool_problem"] = _pool_problem(entry)
    elif kind == "Node":
        taints = mappings(get(entry, "spec", "taints"))
        about["gpu_profile"] = str(mapping(get(entry, "metadata", "labels")).get(_PROFILE) or "")
        about["kept_free"] = any(
            taint.get("key") == "amd-dcm" and taint.get("effect") == "NoExecute" for taint in taints
        )
    elif kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        least = get(entry, "spec", "minReplicas" if kind == "HorizontalPodAutoscaler" else "minReplicaCount")
        default = 1 if kind == "HorizontalPodAutoscaler" else 0
        about |= {"least_replicas": default if whole(least) is None else least, "start_s": _start_s(objects)}
        for signal in _signals(entry):
            yield {**about, "scaled_by": signal}
    yield about


def _pods(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod specs that an object holds, groups of workers included."""
    if entry.get("kind") == "Pod":
        yield mapping(entry.get("spec"))
    for place in _TEMPLATES:
        spec = get(entry, *place, "spec")
        if isinstance(spec, dict) and mappings(spec.get("containers")):
            yield spec
    for role in ("leaderTemplate", "workerTemplate"):
        spec = get(entry, "spec", "leaderWorkerTemplate", role, "spec")
        if isinstance(spec, dict):
            yield spec


def _pod(
    pod: dict[str, Any], entry: dict[str, Any], objects: list[dict[str, Any]], backend: Backend, version: str | None
) -> dict[str, Any]:
    containers = mappings(pod.get("containers"))
    asked = sorted(
        {
            str(name)
            for each in containers
            for name in mapping(get(each, "resources", "limits"))
            if str(name).startswith("amd.com/")
        }
    )
    args = [words for each in containers if (words := _arguments(each, backend, version)) is not None]
    nodes = max(
        (int(n) for words in args if (n := check_engine.option(words, "--nnodes") or "1").isdecimal()), default=1
    )
    profile = get(pod, "securityContext", "seccompProfile", "type")
    profiles = [get(each, "securityContext", "seccompProfile", "type") or profile for each in containers]
    wanted = set(_node_labels(pod))
    loose = sorted(wanted & set(_LOOSE)) if not wanted & {*_EXACT, *_PRODUCT} else []
    product = next((value for key, value in _node_labels(pod).items() if key in _PRODUCT), None)
    replicas = whole(get(entry, "spec", "replicas")) or 1
    found: dict[str, Any] = {
        "asks_plugin": bool(asked),
        "asks_claim": bool(mappings(pod.get("resourceClaims")))
        and any(mappings(get(each, "resources", "claims")) for each in containers),
        "gpu_resource": asked[0] if asked else "",
        "pod_nodes": nodes,
        "loose_labels": ", ".join(loose),
        "binds_memory": any("--numa-bind" in words for words in args)
        or any(
            "numactl" in " ".join((*strings(each.get("command")), *strings(each.get("args")))) for each in containers
        ),
        "serves_engine": bool(args),
        "replicas": replicas,
        "has_budget": any(each.get("kind") == "PodDisruptionBudget" for each in objects),
        "has_alerts": any(each.get("kind") in ("PrometheusRule", *_MONITORS) for each in objects),
        "is_watched": _is_watched(entry, objects),
    }
    if profiles and isinstance(profiles[0], str):
        found["seccomp"] = profiles[0]
    if product is not None:
        found["product_name"] = product
    return found


def _node_labels(pod: Mapping[str, Any]) -> dict[str, str]:
    """Labels that nodes must have, by selector or required affinity; the values joined."""
    found = {str(key): str(value) for key, value in mapping(pod.get("nodeSelector")).items()}
    required = get(
        pod, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"
    )
    for term in mappings(required):
        for wanted in mappings(term.get("matchExpressions")):
            found.setdefault(str(wanted.get("key")), ",".join(strings(wanted.get("values"))))
    return found


def _arguments(container: dict[str, Any], backend: Backend, version: str | None) -> tuple[str, ...] | None:
    command = container.get("command")
    found, _ = check_engine.check(
        Container(
            where="",
            image=str(container.get("image") or ""),
            entrypoint=strings(command) if command else None,
            args=strings(container.get("args")),
        ),
        backend,
        version,
    )
    return found.args if found is not None else None


def _pool_problem(entry: dict[str, Any]) -> str:
    spec = mapping(entry.get("spec"))
    if entry.get("apiVersion") != "inference.networking.k8s.io/v1":
        return f"is of {entry.get('apiVersion')}"
    ports = mappings(spec.get("targetPorts"))
    picker = spec.get("endpointPickerRef")
    if not mapping(get(spec, "selector", "matchLabels")):
        return "has no selector"
    if not 1 <= len(ports) <= 8 or len({str(port.get("number")) for port in ports}) != len(ports):
        return f"has {len(ports)} target ports"
    if not isinstance(picker, dict):
        return "has no endpointPickerRef"
    if picker.get("kind", "Service") == "Service" and whole(get(picker, "port", "number")) is None:
        return "names a Service without a port as endpoint picker"
    return ""


def _signals(entry: dict[str, Any]) -> Iterator[str]:
    """What an autoscaler looks at: names of metrics, and queries."""
    for metric in mappings(get(entry, "spec", "metrics")):
        for kind in ("resource", "pods", "object", "external"):
            name = get(metric, kind, "metric", "name") or get(metric, kind, "name")
            if isinstance(name, str):
                yield name
    for trigger in mappings(get(entry, "spec", "triggers")):
        query = get(trigger, "metadata", "query")
        yield str(query) if isinstance(query, str) else str(trigger.get("type"))


def _start_s(objects: list[dict[str, Any]]) -> int:
    """The longest start that the pods of the files allow themselves."""
    windows = [
        (whole(get(each, "startupProbe", "periodSeconds")) or 10) * failures
        for entry in objects
        for pod in _pods(entry)
        for each in mappings(pod.get("containers"))
        if (failures := whole(get(each, "startupProbe", "failureThreshold"))) is not None
    ]
    return max(windows, default=_START_S)


def _is_watched(entry: dict[str, Any], objects: list[dict[str, Any]]) -> bool:
    """A monitor selects the pods, or a Service in front of them, or they carry the annotation for it."""
    meta = mapping(get(entry, "spec", "template", "metadata")) or mapping(entry.get("metadata"))
    labels = mapping(meta.get("labels"))
    if str(mapping(meta.get("annotations")).get("prometheus.io/scrape", "")).lower() == "true":
        return True
    for monitor in objects:
        if monitor.get("kind") not in _MONITORS:
            continue
        wanted = mapping(get(monitor, "spec", "selector", "matchLabels"))
        services = (
            [each for each in objects if each.get("kind") == "Service"] if monitor["kind"] == "ServiceMonitor" else []
        )
        carriers = [mapping(get(each, "metadata", "labels")) for each in services] or [labels]
        if any(wanted.items() <= carried.items() for carried in carriers):
            return True
    return False


def _images(objects: list[dict[str, Any]]) -> Iterator[str]:
    for entry in objects:
        for pod in _pods(entry):
            for each in mappings(pod.get("containers")):
                yield str(each.get("image") or "")
        image = get(entry, "spec", "draDriver", "image") if entry.get("kind") == "DeviceConfig" else None
        if isinstance(image, str):
            yield image
