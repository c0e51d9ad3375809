"""Manifests that somebody wants to apply: what schemas miss, what AMD GPUs need, what the engine inside would refuse.

Schema validation alone found 5 of 16 deliberate mistakes in a Deployment; the rules here are for the rest. Rule ids K8S are
those of the project's rule list, MAN are about manifests in general.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.hardware.cluster import Finding
from aim_engine.hardware.quantity import quantity
from aim_engine.render import check_cluster, check_pod, check_schema, workloads
from aim_engine.render.document import get, mapping, mappings, strings, texts, whole
from aim_engine.render.findings import error, is_port, warning

_API_VERSIONS = {
    "ConfigMap": ("v1",),
    "CronJob": ("batch/v1",),
    "DaemonSet": ("apps/v1",),
    "Deployment": ("apps/v1",),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "autoscaling/v1"),
    "Ingress": ("networking.k8s.io/v1",),
    "Job": ("batch/v1",),
    "Namespace": ("v1",),
    "NetworkPolicy": ("networking.k8s.io/v1",),
    "PersistentVolume": ("v1",),
    "PersistentVolumeClaim": ("v1",),
    "Pod": ("v1",),
    "PodDisruptionBudget": ("policy/v1",),
    "ReplicaSet": ("apps/v1",),
    "Role": ("rbac.authorization.k8s.io/v1",),
    "RoleBinding": ("rbac.authorization.k8s.io/v1",),
    "Secret": ("v1",),
    "Service": ("v1",),
    "ServiceAccount": ("v1",),
    "StatefulSet": ("apps/v1",),
    "StorageClass": ("storage.k8s.io/v1",),
}
"""The versions that current clusters serve. Source: Kubernetes deprecated API migration guide, v1.25 to v1.32."""
_DEAD_GROUPS = {
    "extensions/v1beta1": "1.22",
    "apps/v1beta1": "1.16",
    "apps/v1beta2": "1.16",
    "batch/v1beta1": "1.25",
    "policy/v1beta1": "1.25",
    "autoscaling/v2beta1": "1.25",
    "autoscaling/v2beta2": "1.26",
    "networking.k8s.io/v1beta1": "1.22",
    "rbac.authorization.k8s.io/v1beta1": "1.22",
    "storage.k8s.io/v1beta1": "1.22",
}
_KEPT_RUNNING = ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_ENUMS = {
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "protocol": ("TCP", "UDP", "SCTP"),
    "medium": ("", "Memory", "HugePages", "HugePages-2Mi", "HugePages-1Gi"),
    "terminationMessagePolicy": ("File", "FallbackToLogsOnError"),
}
_SCOPED_ENUMS = {
    ("Service", "type"): ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    ("Deployment", "strategy.type"): ("RollingUpdate", "Recreate"),
}


def check(
    documents: list[Any], backend: Backend, version: str | None = None, kubernetes_version: str | None = None
) -> tuple[Finding, ...]:
    """Everything wrong or risky about the manifests of one file together. `version` overrides the images' release."""
    objects = [entry for entry in _flattened(documents) if isinstance(entry, dict)]
    found = list(check_schema.check(objects, kubernetes_version))
    found += [
        error(
            "MAN002", "this is no Kubernetes object", "give a mapping with apiVersion and kind", f"document {index + 1}"
        )
        for index, entry in enumerate(documents)
        if not isinstance(entry, dict)
    ]
    own = (*rules(objects, backend, version), *check_cluster.check(objects, backend, version, kubernetes_version))
    if check_schema.available():  # which says the same of types, with the full path, where it knows the kind
        unknown = {finding.evidence for finding in found if finding.id == "MAN003" and finding.severity == "info"}
        own = tuple(each for each in own if each.id != "MAN003" or each.evidence.partition(": ")[0] in unknown)
    return tuple(dict.fromkeys((*found, *own)))


def rules(objects: list[dict[str, Any]], backend: Backend, version: str | None = None) -> tuple[Finding, ...]:
    """What no schema says."""
    found: list[Finding] = []
    for manifest in objects:
        found += _identity(manifest)
        found += _enums(manifest)
        found += _quantities(manifest)
        found += _workload(manifest, objects, backend, version)
        found += _service(manifest, objects)
    return tuple(dict.fromkeys(found))


def _flattened(documents: list[Any]) -> list[Any]:
    """The objects of the documents, those inside a List included."""
    found = []
    for entry in documents:
        if isinstance(entry, dict) and entry.get("kind") == "List" and isinstance(entry.get("items"), list):
            found += _flattened(entry["items"])
        else:
            found.append(entry)
    return found


def _identity(manifest: dict[str, Any]) -> Iterator[Finding]:
    where = _name(manifest)
    kind, api = manifest.get("kind"), manifest.get("apiVersion")
    for key, value in (("kind", kind), ("apiVersion", api)):
        if not isinstance(value, str) or not value:
            yield error("MAN002", f"has no {key}", "", where)
    if isinstance(kind, str) and isinstance(api, str):
        served = _API_VERSIONS.get(kind)
        group = api.partition("/")[0] if "/" in api else ""
        builtin = group in ("", "apps", "batch", "extensions", "policy", "autoscaling") or group.endswith(".k8s.io")
        if api in _DEAD_GROUPS and (served is None or api not in served):
            instead = f"apiVersion: {served[0]}" if served else ""
            yield error("MAN004", f"{api} {kind} is gone since Kubernetes {_DEAD_GROUPS[api]}", instead, where)
        elif served is not None and api not in served and builtin:
            yield error("MAN004", f"there is no {kind} in {api}", f"apiVersion: {served[0]}", where)
    name = get(manifest, "metadata", "name")
    if isinstance(api, str) and api.startswith("kustomize.config.k8s.io/"):
        return  # read by kustomize, which needs no name for it
    if name is None and get(manifest, "metadata", "generateName") is None:
        yield error("MAN005", "has no metadata.name", "", where)
    elif name is not None:
        rule, most = (_SERVICE_NAME, 63) if kind == "Service" else (_SUBDOMAIN, 253)
        rule, most = (_LABEL, 63) if kind == "Namespace" else (rule, most)
        if not isinstance(name, str) or not rule.fullmatch(name) or len(name) > most:
            yield error(
                "MAN005",
                f"the name {name!r} is not allowed: lower-case letters, digits and - only, at most {most} characters",
                "",
                where,
            )
    for place in (
        ("metadata", "labels"),
        ("spec", "selector", "matchLabels"),
        ("spec", "template", "metadata", "labels"),
    ):
        for key, value in mapping(get(manifest, *place)).items():
            if isinstance(value, str) and (len(value) > 63 or not _LABEL_VALUE.fullmatch(value)):
                yield error("MAN005", f"the label {key}={value!r} is not allowed", "", f"{where}: {'.'.join(place)}")


def _enums(manifest: dict[str, Any]) -> Iterator[Finding]:
    where = _name(manifest)
    for path, key, value in _scalars(manifest):
        if path == "spec.leaderWorkerTemplate.restartPolicy":
            continue  # that of a LeaderWorkerSet's group, with words of its own
        if key in _ENUMS and isinstance(value, str) and value not in _ENUMS[key] and "annotations" not in path:
            yield error(
                "MAN010", f"{key} '{value}' is none of {', '.join(filter(None, _ENUMS[key]))}", "", f"{where}: {path}"
            )
    for (kind, dotted), allowed in _SCOPED_ENUMS.items():
        value = get(manifest, "spec", *dotted.split("."))
        if manifest.get("kind") == kind and isinstance(value, str) and value not in allowed:
            yield error("MAN010", f"{dotted} '{value}' is none of {', '.join(allowed)}", "", f"{where}: spec.{dotted}")


def _scalars(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, key, value) of every scalar in a mapping."""
    if isinstance(value, dict):
        for key, entry in value.items():
            below = f"{path}.{key}" if path else str(key)
            if isinstance(entry, (dict, list)):
                yield from _scalars(entry, below)
            else:
                yield below, str(key), entry
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _scalars(entry, f"{path}[{index}]")


def _quantities(manifest: dict[str, Any]) -> Iterator[Finding]:
    where = _name(manifest)
    for path, key, value in _scalars(manifest):
        parent = path.rpartition(".")[0]
        in_resources = parent.endswith(("resources.requests", "resources.limits"))
        if not (in_resources or key == "sizeLimit") or isinstance(value, bool) or value is None:
            continue
        amount = quantity(str(value))
        if amount is None:
            unit = re.sub(r"[0-9.+-]", "", str(value))
            fixed = str(value).replace("iB", "i").replace("B", "")
            hint = f"write {fixed}" if quantity(fixed) is not None else "write for example 64Gi"
            yield error(
                "MAN011", f"{key} '{value}' is not a quantity: there is no unit '{unit}'", hint, f"{where}: {path}"
            )
        elif amount < 0:
            yield error("MAN011", f"{key} '{value}' is negative", "", f"{where}: {path}")
        elif key == "memory" and 0 < amount < 1024**2:
            yield error(
                "MAN011", f"memory '{value}' is {amount} bytes", "m is a thousandth: write M or Mi", f"{where}: {path}"
            )


def _workload(
    manifest: dict[str, Any], objects: list[dict[str, Any]], backend: Backend, version: str | None
) -> Iterator[Finding]:
    where, kind = _name(manifest), manifest.get("kind")
    replicas = get(manifest, "spec", "replicas")
    for pod in workloads.pods(manifest):
        place = f"{where}: {pod.path}" if pod.path else where
        if not isinstance(pod.spec, dict):
            yield error("MAN002", "has no pod spec", "", where)
            return
        yield from _claims(pod.spec, whole(replicas) or 1, objects, place)
        volumes = mappings(pod.spec.get("volumes"))
        claimed = texts(get(manifest, "spec", "volumeClaimTemplates"), "metadata", "name") - texts(volumes, "name")
        more = [{"name": name} for name in sorted(claimed)]
        spec = {**pod.spec, "volumes": [*volumes, *more]} if claimed else pod.spec
        spec = _with_config(spec, objects)
        yield from check_pod.check(spec, place, backend, version, complete=pod.complete, starts=pod.starts)
    if kind in _KEPT_RUNNING:
        template = get(manifest, "spec", "template")
        yield from _selector(manifest, template, where)
        policy = get(template, "spec", "restartPolicy")
        if policy in ("Never", "OnFailure"):
            yield error(
                "MAN010", f"restartPolicy of a {kind} must be Always, not {policy}", "", f"{where}: restartPolicy"
            )
        if replicas is not None and whole(replicas) is None:
            yield error("MAN003", f"replicas {replicas!r} is not a whole number", "", f"{where}: spec.replicas")


def _with_config(spec: dict[str, Any], objects: list[dict[str, Any]]) -> dict[str, Any]:
    """A pod's spec with the variables that its containers take from ConfigMaps of the same files."""
    maps = {
        str(get(each, "metadata", "name")): mapping(each.get("data"))
        for each in objects
        if each.get("kind") == "ConfigMap"
    }
    if not maps or not mappings(spec.get("containers")):
        return spec
    containers = []
    for container in mappings(spec.get("containers")):
        env: list[dict[str, Any]] = []
        for entry in mappings(container.get("env")):
            wanted = mapping(get(entry, "valueFrom", "configMapKeyRef"))
            value = maps.get(str(wanted.get("name")), {}).get(str(wanted.get("key")))
            env.append(entry if value is None else {"name": entry.get("name"), "value": str(value)})
        own = texts(env, "name")
        for source in mappings(container.get("envFrom")):
            prefix = str(source.get("prefix") or "")
            held = maps.get(str(get(source, "configMapRef", "name")), {})
            env += [
                {"name": f"{prefix}{name}", "value": str(value)}
                for name, value in held.items()
                if f"{prefix}{name}" not in own
            ]
        containers.append({**container, "env": env} if env else container)
    return {**spec, "containers": containers}


def _selector(manifest: dict[str, Any], template: Any, where: str) -> Iterator[Finding]:
    selector = get(manifest, "spec", "selector")
    labels = mapping(get(template, "metadata", "labels"))
    wanted = mapping(get(selector, "matchLabels"))
    if not wanted and not get(selector, "matchExpressions"):
        yield error("MAN006", "has no selector, so it would find none of its pods", "spec.selector.matchLabels", where)
    missing = {key: value for key, value in wanted.items() if labels.get(key) != value}
    if missing:
        shown = ", ".join(f"{key}={value}" for key, value in missing.items())
        yield error(
            "MAN006",
            f"the selector asks for {shown}, which the pod's labels do not have",
            "use the same labels in both",
            f"{where}: spec.selector",
        )


def _claims(pod: dict[str, Any], replicas: int, objects: list[dict[str, Any]], where: str) -> Iterator[Finding]:
    wanted = texts(pod.get("volumes"), "persistentVolumeClaim", "claimName")
    for manifest in objects:
        modes = strings(get(manifest, "spec", "accessModes"))
        if manifest.get("kind") != "PersistentVolumeClaim" or str(get(manifest, "metadata", "name")) not in wanted:
            continue
        if replicas > 1 and "ReadWriteMany" not in modes and "ReadOnlyMany" not in modes:
            yield warning(
                "K8S013",
                f"{replicas} replicas share a claim that is only {', '.join(modes) or 'of the default mode'}: one node can mount it",
                "ReadWriteMany, or a cache per node",
                f"{where}: volumes",
            )


def _service(manifest: dict[str, Any], objects: list[dict[str, Any]]) -> Iterator[Finding]:
    if manifest.get("kind") != "Service":
        return
    where = _name(manifest)
    pods = [
        (_name(entry), mapping(get(template, "metadata", "labels")), mapping(get(template, "spec")))
        for entry in objects
        if (template := _template(entry)) is not None
    ]
    if get(manifest, "metadata", "name") == "vllm" and get(manifest, "spec", "clusterIP") != "None":
        exposed = [name for name, _, pod in pods if pod.get("enableServiceLinks") is not False]
        message = (
            "a Service called vllm gives every pod of its namespace VLLM_PORT=tcp://..., which vLLM takes for its own"
        )
        if exposed:
            yield error("K8S025", message, "call it something else, or enableServiceLinks: false", where)
        else:
            yield warning("K8S025", message, "call it something else", where)
    selector = mapping(get(manifest, "spec", "selector"))
    matching = [pod for _, labels, pod in pods if selector and _holds(labels, selector)]
    if selector and pods and not matching:
        yield warning(
            "MAN006", "the selector matches no pod in these files", "use the pod's labels", f"{where}: spec.selector"
        )
    named = {
        name
        for pod in matching
        for container in mappings(pod.get("containers"))
        for name in texts(container.get("ports"), "name")
    }
    for index, port in enumerate(mappings(get(manifest, "spec", "ports"))):
        place = f"{where}: spec.ports[{index}]"
        for key in ("port", "targetPort", "nodePort"):
            value = port.get(key)
            if whole(value) is not None and not is_port(value):
                yield error("MAN008", f"{key} {value} is not between 1 and 65535", "", place)
        target = port.get("targetPort")
        if isinstance(target, str) and matching and target not in named and not target.isdecimal():
            yield error("MAN009", f"no container port is called '{target}'", "name a port of the pod", place)


def _template(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The pod, with its labels, that `manifest` is or makes, when it is of a kind that Kubernetes has."""
    paths = workloads.BUILT_IN.get(str(manifest.get("kind")))
    found = get(manifest, *paths[0].split(".")[:-1]) if paths and paths[0] != "spec" else manifest if paths else None
    return found if isinstance(found, dict) else None


def _holds(labels: dict[str, Any], selector: dict[str, Any]) -> bool:
    return all(key in labels and labels[key] == value for key, value in selector.items())


def _name(manifest: dict[str, Any]) -> str:
    return f"{manifest.get('kind') or 'object'}/{get(manifest, 'metadata', 'name') or '?'}"
