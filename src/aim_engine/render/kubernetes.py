"""Target `kubernetes`: plain manifests, least privilege, patient enough for the bytes that have to be loaded."""

from __future__ import annotations

import math
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Gpu
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import Recipe
from aim_engine.render import serving, text
from aim_engine.render.artifact import Artifact, Options
from aim_engine.units import GIB, MIB

GPU_RESOURCE = "amd.com/gpu"
DEVICE_ID_LABEL = "amd.com/gpu.device-id"
PARTITION_LABEL = "amd.com/compute-memory-partition"
"""Optional in AMD's node labeller. Source: ROCm/k8s-device-plugin docs/user-guide, cmd/k8s-node-labeller."""
PRE_STOP_S = 10
"""Endpoints need a moment to stop sending requests before the engine is told to end."""
GRACE_S = 180
"""preStop, draining and ending workers."""
STARTUP_PERIOD_S = 10
CACHE_EXTRA_BYTES = 20 * GIB
"""Beside the weights: compiled graphs, tokenizers, a partial download."""


class Kubernetes:
    """ServiceAccount, PersistentVolumeClaim, Deployment, Service; a PodDisruptionBudget when there are replicas."""

    name = "kubernetes"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        name = text.dns_label(options.name)
        if name == "vllm":
            raise InvalidInput(
                "a Service called 'vllm' breaks vLLM",
                why="Kubernetes then sets VLLM_PORT=tcp://... in every pod of the namespace, which vLLM takes for its own",
                hint=f"for example --name {text.suggest_name(plan.inputs.model.model_id)}",
            )
        text.dns_label(options.namespace, "namespace")
        text.port_number(options.port)
        recipe = serving.chosen(plan).recipe
        documents = {
            "serviceaccount": _service_account(plan, options),
            **({} if options.model_path else {"cache": _claim(plan, options)}),
            "deployment": _deployment(plan, options, backend),
            "service": _service(plan, options),
            **({"poddisruptionbudget": _budget(plan, options)} if recipe.replicas > 1 else {}),
        }
        notes = {"deployment": _notes(plan, options), "cache": _cache_notes(recipe)}
        return tuple(
            Artifact(
                path=f"{file}.yaml",
                content=serving.header(plan, self.name, *notes.get(file, ())) + text.yaml_document(document),
            )
            for file, document in documents.items()
        )


def _notes(plan: Plan, options: Options) -> tuple[str, ...]:
    secret = f"{options.name}-hf-token"
    notes = [
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
    if _partition(plan) is not None:
        notes.append(f"Planned on partitions: AMD's node labeller must be told to set {PARTITION_LABEL}.")
    if options.model_path:
        notes.append("The checkpoint folder must exist on every node that can run the pod.")
    return tuple(notes)


def _cache_notes(recipe: Recipe) -> tuple[str, ...]:
    if recipe.replicas == 1:
        return ()
    return ("Shared by all replicas: the storage class must offer ReadWriteMany.",)


def _metadata(plan: Plan, options: Options, suffix: str = "") -> dict[str, Any]:
    return {
        "name": f"{options.name}{suffix}",
        "namespace": options.namespace,
        "labels": {
            **_selector(options),
            "app.kubernetes.io/version": serving.chosen(plan).recipe.engine_version,
            "app.kubernetes.io/component": "inference",
            "app.kubernetes.io/managed-by": "aim-engine",
        },
    }


def _selector(options: Options) -> dict[str, str]:
    return {"app.kubernetes.io/name": "aim-engine", "app.kubernetes.io/instance": options.name}


def _service_account(plan: Plan, options: Options) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(plan, options),
        "automountServiceAccountToken": False,
    }


def _claim(plan: Plan, options: Options) -> dict[str, Any]:
    many = serving.chosen(plan).recipe.replicas > 1
    size = math.ceil((serving.weight_bytes(plan) * 1.1 + CACHE_EXTRA_BYTES) / (10 * GIB)) * 10
    spec: dict[str, Any] = {"accessModes": ["ReadWriteMany" if many else "ReadWriteOnce"]}
    if options.storage_class is not None:
        spec["storageClassName"] = text.dns_subdomain(options.storage_class, "storage class")
    spec["resources"] = {"requests": {"storage": f"{size}Gi"}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(plan, options, "-cache"),
        "spec": spec,
    }


def _service(plan: Plan, options: Options) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan, options),
        "spec": {
            "type": "ClusterIP",
            "selector": _selector(options),
            "ports": [{"name": "http", "port": options.port, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _budget(plan: Plan, options: Options) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(plan, options),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _selector(options)}},
    }


def _deployment(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    recipe = serving.chosen(plan).recipe
    startup_s = serving.startup_s(plan, options)
    metadata = _metadata(plan, options)
    metadata["annotations"] = {"aim-engine/model": plan.inputs.model.model_id, "aim-engine/recipe": recipe.key}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": recipe.replicas,
            "selector": {"matchLabels": _selector(options)},
            # No spare GPUs are assumed: a new pod starts when an old one has left its devices.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "progressDeadlineSeconds": startup_s + 300,
            "template": {
                "metadata": {"labels": metadata["labels"]},
                "spec": _pod(plan, options, backend, startup_s),
            },
        },
    }


def _pod(plan: Plan, options: Options, backend: Backend, startup_s: int) -> dict[str, Any]:
    recipe = serving.chosen(plan).recipe
    pod: dict[str, Any] = {
        "serviceAccountName": options.name,
        "automountServiceAccountToken": False,
        # Otherwise Kubernetes describes every Service of the namespace in variables, VLLM_PORT among them.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        **_placement(plan.inputs.gpu, _partition(plan)),
        "containers": [_container(plan, options, backend, startup_s)],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(recipe.resources.shm_bytes)}},
        ],
    }
    if options.model_path:
        folder = text.host_path(options.model_path, "model folder")
        if folder.startswith("~"):
            raise InvalidInput(f"the model folder '{folder}' is not known on the nodes", hint="give an absolute path")
        pod["volumes"].append({"name": "model", "hostPath": {"path": folder, "type": "Directory"}})
    else:
        claim = {"claimName": f"{options.name}-cache"}
        pod["volumes"].append({"name": "cache", "persistentVolumeClaim": claim})
    return pod


def _partition(plan: Plan) -> str | None:
    """`cpx_nps4` when the planned devices are partitions of a card, in the words of AMD's node labeller."""
    for device in plan.inputs.cluster.devices:
        if device.gpu == plan.inputs.gpu.name and device.partition not in (None, "SPX") and device.memory_partition:
            return f"{device.partition}_{device.memory_partition}".lower()
    return None


def _placement(gpu: Gpu, partition: str | None) -> dict[str, Any]:
    """Where the pod may run: nodes with exactly this card, as AMD's node labeller marks them."""
    if gpu.kind == "cpu":
        return {"nodeSelector": {"kubernetes.io/arch": "amd64"}} if gpu.arch.startswith("x86") else {}
    selector = {} if partition is None else {PARTITION_LABEL: partition}
    if len(gpu.pci_ids) == 1:
        selector[DEVICE_ID_LABEL] = gpu.pci_ids[0]
    placement: dict[str, Any] = {"nodeSelector": selector} if selector else {}
    if len(gpu.pci_ids) > 1:
        term = {"matchExpressions": [{"key": DEVICE_ID_LABEL, "operator": "In", "values": sorted(gpu.pci_ids)}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        placement["affinity"] = {"nodeAffinity": required}
    return placement


def _container(plan: Plan, options: Options, backend: Backend, startup_s: int) -> dict[str, Any]:
    recipe = serving.chosen(plan).recipe
    image = serving.image(plan, options, backend)
    command = serving.command(
        plan,
        options,
        backend,
        model_ref=serving.CONTAINER_MODEL if options.model_path else plan.inputs.model.model_id,
        host=serving.CONTAINER_HOST,
        port=serving.CONTAINER_PORT,
        drain=True,
    )
    env = dict(command.env)
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - the engine's own place
    if options.model_path:
        env["HF_HUB_OFFLINE"] = "1"
        mounts.append({"name": "model", "mountPath": serving.CONTAINER_MODEL, "readOnly": True})
    else:
        env["HF_HOME"] = serving.CONTAINER_HF_HOME
        mounts += [
            {"name": "cache", "mountPath": serving.CONTAINER_HF_HOME, "subPath": "huggingface"},
            {"name": "cache", "mountPath": serving.CONTAINER_ENGINE_CACHE, "subPath": "vllm"},
        ]
    container: dict[str, Any] = {"name": recipe.engine, "image": serving.image_reference(image)}
    container["imagePullPolicy"] = "IfNotPresent"
    if not serving.runs_engine(image, command):
        container["command"] = [text.no_expansion(word) for word in command.argv0]
    container |= {
        "args": [text.no_expansion(arg) for arg in command.args],
        "env": [
            *({"name": name, "value": text.no_expansion(value)} for name, value in text.variables(env).items()),
            *_secrets(options),
        ],
        "ports": [{"name": "http", "containerPort": serving.CONTAINER_PORT, "protocol": "TCP"}],
        "resources": resources(recipe, _gpu_resource(plan)),
        "securityContext": {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": _probe(STARTUP_PERIOD_S, math.ceil(startup_s / STARTUP_PERIOD_S)),
        "readinessProbe": _probe(5, 3),
        "livenessProbe": _probe(10, 6),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_S)]}}},
        "volumeMounts": mounts,
    }
    return container


def _secrets(options: Options) -> list[dict[str, Any]]:
    def from_secret(name: str, secret: str, key: str, optional: bool) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": optional}}}

    found = [from_secret("HF_TOKEN", f"{options.name}-hf-token", "token", True)]
    if options.api_key_secret:
        found.append(from_secret("VLLM_API_KEY", f"{options.name}-api-key", "key", False))
    return found


def _gpu_resource(plan: Plan) -> str:
    """What pods ask for: partitions can have resources of their own."""
    gpu = plan.inputs.gpu.name
    named = {device.resource for device in plan.inputs.cluster.devices if device.gpu == gpu and device.resource}
    own = sorted(name for name in named if name.startswith("amd.com/"))
    return own[0] if own else GPU_RESOURCE


def resources(recipe: Recipe, gpu_resource: str = GPU_RESOURCE) -> dict[str, dict[str, str]]:
    """Requests and limits of one replica. Cores are asked for but not capped, since throttling shows as latency."""
    memory = quantity(recipe.resources.memory_bytes)
    requests = {"cpu": str(recipe.resources.cpu_cores), "memory": memory}
    limits = {"memory": memory}
    if recipe.resources.gpus:
        requests[gpu_resource] = limits[gpu_resource] = str(recipe.resources.gpus)
    return {"requests": requests, "limits": limits}


def quantity(count: int) -> str:
    """Bytes as a Kubernetes quantity: `16Gi`, `1536Mi`, else plain."""
    for unit, name in ((GIB, "Gi"), (MIB, "Mi")):
        if count % unit == 0:
            return f"{count // unit}{name}"
    return str(count)


def _probe(period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
