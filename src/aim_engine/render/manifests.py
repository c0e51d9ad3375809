"""The Kubernetes objects that serve a plan, for every target that writes or wraps them: least privilege, patient enough."""

from __future__ import annotations

import math
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import pod, serving, text
from aim_engine.render.artifact import Options
from aim_engine.units import GIB

CACHE_EXTRA_BYTES = 20 * GIB
"""Beside the weights: compiled graphs, tokenizers, a partial download."""
STRATEGY = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
"""No spare GPUs are assumed: a new pod starts when an old one has left its devices."""
CLIENT_LABEL = "aim-engine/client"
"""Namespaces with this label, set to true, may send requests and scrape metrics; pods of the engine's own namespace always may."""


def objects(plan: Plan, options: Options, backend: Backend) -> dict[str, dict[str, Any]]:
    """File name without suffix -> object, of plain Kubernetes. Raises: InvalidInput."""
    serving.on_one_host(plan)
    found = before(plan, options)
    if options.cache_per_replica:
        found["statefulset"] = _stateful_set(plan, options, backend)
        found["service-pods"] = service(plan, options, "-pods", {"clusterIP": "None", "publishNotReadyAddresses": True})
    else:
        found["deployment"] = _deployment(plan, options, backend)
    found["service"] = service(plan, options, "", {"type": "ClusterIP"})
    found["networkpolicy"] = network_policy(plan, options)
    if serving.chosen(plan).recipe.replicas > 1:
        found["poddisruptionbudget"] = budget(plan, options)
    return found


def before(plan: Plan, options: Options) -> dict[str, dict[str, Any]]:
    """What any workload needs: account, cache volume, files, device claim. The Namespace's name sorts first, as kubectl applies by name.

    Raises: InvalidInput.
    """
    if text.dns_label(options.name) == "vllm":
        raise InvalidInput(
            "a Service called 'vllm' breaks vLLM",
            why="Kubernetes then sets VLLM_PORT=tcp://... in every pod of the namespace, which vLLM takes for its own",
            hint=f"for example --name {text.suggest_name(plan.inputs.model.model_id)}",
        )
    if options.cache_per_replica and (options.model_path or options.offline):
        raise InvalidInput(
            "a volume per replica has no use here",
            why="the weights are in the model folder" if options.model_path else "one job fills one shared volume",
            hint="drop one of the two options",
        )
    text.dns_label(options.namespace, "namespace")
    text.port_number(options.port)
    claimed = not options.model_path and not options.cache_per_replica
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": pod.metadata(plan, options)}
    found: dict[str, dict[str, Any]] = {}
    if options.create_namespace:
        found["00-namespace"] = _namespace(options)
    found["serviceaccount"] = {**account, "automountServiceAccountToken": False}
    if claimed:
        found["cache"] = claim(plan, options)
    if options.files:
        found["files"] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": pod.metadata(plan, options, pod.files_suffix(options)),
            "immutable": True,
            "data": {key: content for key, (_, content) in serving.files(options).items()},
        }
    if pod.claims_devices(plan, options):
        found["resourceclaimtemplate"] = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaimTemplate",
            "metadata": pod.metadata(plan, options, "-gpu"),
            "spec": {"spec": pod.device_claim(plan)},
        }
    return found


def notes(plan: Plan, options: Options) -> dict[str, tuple[str, ...]]:
    """What to know about the objects, by file."""
    notes = []
    if not options.offline:
        secret = f"{options.name}-hf-token"
        notes += [
            f"A hub token is read from the Secret {secret}, key token, when there is one. Make it from a file:",
            f"kubectl create secret generic {secret} --namespace {options.namespace} --from-file=token=FILE",
        ]
    if options.api_key_secret:
        notes += [
            f"The key that clients must send is read from the Secret {options.name}-api-key, key key:",
            f"kubectl create secret generic {options.name}-api-key --namespace {options.namespace} --from-file=key=FILE",
        ]
    gpu = plan.inputs.gpu
    if gpu.kind != "cpu" and not gpu.pci_ids:
        notes.append(f"No PCI id of {gpu.name} is known: add a nodeSelector when the cluster has other cards.")
    if pod.partition(plan) is not None:
        notes.append(f"Planned on partitions: AMD's node labeller must be told to set {pod.PARTITION_LABEL}.")
    if options.model_path:
        notes.append("The checkpoint folder must exist on every node that can run the pod.")
    if options.offline:
        notes.append("The engine reads the cache volume only: target job fills it.")
    closed = (
        f"Requests come from this namespace and from namespaces labelled {CLIENT_LABEL}=true.",
        "The engine reaches nothing."
        if _needs_no_network(options)
        else "The engine reaches DNS and HTTPS, for the hub.",
    )
    return {
        "deployment": tuple(notes),
        "statefulset": tuple(notes),
        "networkpolicy": closed,
        "cache": _cache_notes(plan),
    }


def _shared(plan: Plan) -> bool:
    return serving.chosen(plan).recipe.replicas > 1 or serving.hosts_per_replica(plan) > 1


def _cache_notes(plan: Plan) -> tuple[str, ...]:
    return ("Shared by all pods: the storage class must offer ReadWriteMany.",) if _shared(plan) else ()


def _namespace(options: Options) -> dict[str, Any]:
    """Folders of the host are beyond `baseline`, so nothing is enforced with them."""
    level = "restricted" if options.render_gid is not None else "baseline"
    of_host = options.model_path or any(not mount.is_claim for mount in serving.mounts(options))
    labels = {} if of_host else {"pod-security.kubernetes.io/enforce": level}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": options.namespace, "labels": {**labels, "pod-security.kubernetes.io/warn": "restricted"}},
    }


def _claim_spec(plan: Plan, options: Options, *, many: bool) -> dict[str, Any]:
    size = math.ceil((serving.weight_bytes(plan) * 1.1 + CACHE_EXTRA_BYTES) / (10 * GIB)) * 10
    spec: dict[str, Any] = {"accessModes": ["ReadWriteMany" if many else "ReadWriteOnce"]}
    if options.storage_class is not None:
        spec["storageClassName"] = text.dns_subdomain(options.storage_class, "storage class")
    return spec | {"resources": {"requests": {"storage": f"{size}Gi"}}}


def claim(plan: Plan, options: Options) -> dict[str, Any]:
    """The volume that all replicas share."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": pod.metadata(plan, options, "-cache"),
        "spec": _claim_spec(plan, options, many=_shared(plan)),
    }


def service(
    plan: Plan, options: Options, suffix: str, kind: dict[str, Any], only: dict[str, str] | None = None
) -> dict[str, Any]:
    """A Service of the pods, of those with the labels `only` where it is given."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": pod.metadata(plan, options, suffix),
        "spec": {
            **kind,
            "selector": {**pod.selector(options), **(only or {})},
            "ports": [{"name": "http", "port": options.port, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _needs_no_network(options: Options) -> bool:
    return options.offline or options.model_path is not None


def network_policy(
    plan: Plan, options: Options, *, ports: tuple[str | int, ...] = ("http",), grouped: bool = False
) -> dict[str, Any]:
    """Default deny: requests from known namespaces, and no way out but to what the weights are fetched from.

    `grouped` lets the pods reach each other on every port, as the ranks of a replica on several hosts must.

    The kubelet's probes and `kubectl port-forward` enter from the node, which a NetworkPolicy does not govern.
    """
    sources = [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": {CLIENT_LABEL: "true"}}}]
    names = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    web: list[dict[str, Any]] = [{"ports": names}, {"ports": [{"port": 443, "protocol": "TCP"}]}]
    out: list[dict[str, Any]] = [] if _needs_no_network(options) else web
    into: list[dict[str, Any]] = [{"from": sources, "ports": [{"port": port, "protocol": "TCP"} for port in ports]}]
    if grouped:
        own = [{"podSelector": {"matchLabels": pod.selector(options)}}]
        into.append({"from": own})
        out = [{"to": own}, *(out or web[:1])]  # ranks find each other by name
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": pod.metadata(plan, options),
        "spec": {
            "podSelector": {"matchLabels": pod.selector(options)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": into,
            "egress": out,
        },
    }


def budget(plan: Plan, options: Options) -> dict[str, Any]:
    """One replica at a time may be moved."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": pod.metadata(plan, options),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",  # a replica that does not serve must not hold up a drain
            "selector": {"matchLabels": pod.selector(options)},
        },
    }


def workload_metadata(plan: Plan, options: Options) -> dict[str, Any]:
    """Metadata of the object that runs the pods: which model and recipe it is."""
    meta = pod.metadata(plan, options)
    own = {"aim-engine/model": plan.inputs.model.model_id, "aim-engine/recipe": serving.chosen(plan).recipe.key}
    return meta | {"annotations": own | meta.get("annotations", {})}


def _deployment(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": workload_metadata(plan, options),
        "spec": {
            "replicas": serving.chosen(plan).recipe.replicas,
            "selector": {"matchLabels": pod.selector(options)},
            "strategy": STRATEGY,
            "progressDeadlineSeconds": serving.startup_s(plan, options) + 300,
            "template": pod.template(plan, options, backend),
        },
    }


def _stateful_set(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    template = {"metadata": {"name": "cache"}, "spec": _claim_spec(plan, options, many=False)}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": workload_metadata(plan, options),
        "spec": {
            "serviceName": f"{options.name}-pods",
            "replicas": serving.chosen(plan).recipe.replicas,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"},
            "selector": {"matchLabels": pod.selector(options)},
            "template": pod.template(plan, options, backend),
            "volumeClaimTemplates": [template],
        },
    }
