"""The engine's pod, shared by every target that ends in one: placement, container, probes, volumes, privileges."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Gpu
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import Recipe
from aim_engine.render import serving, text
from aim_engine.render.artifact import Options
from aim_engine.units import GIB, MIB

GPU_RESOURCE = "amd.com/gpu"
DEVICE_CLASS = "gpu.amd.com"
"""Source: ROCm/k8s-gpu-dra-driver docs/driver-attributes.md."""
DEVICE_ID_LABEL = "amd.com/gpu.device-id"
PARTITION_LABEL = "amd.com/compute-memory-partition"
"""Optional in AMD's node labeller. Source: ROCm/k8s-device-plugin docs/user-guide, cmd/k8s-node-labeller."""
PRE_STOP_S = 10
"""Endpoints need a moment to stop sending requests before the engine is told to end."""
GRACE_S = 180
"""preStop, draining and ending workers."""
STARTUP_PERIOD_S = 10
USER_ID = 10001
"""Who the engine is when it is not root: nobody on a host. It needs no entry in the image's /etc/passwd."""
USER_CACHE = "/cache"
"""Home of that user, on the cache volume: weights, compiled graphs, kernels that were built at start."""
TMP = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - sockets between the engine's processes, compilers at work
SHM = {"name": "shm", "mountPath": "/dev/shm"}  # noqa: S108 - the engine's own place


def metadata(plan: Plan, options: Options, suffix: str = "") -> dict[str, Any]:
    """Name, namespace, labels and annotations of an object."""
    found: dict[str, Any] = {
        "name": f"{text.dns_label(options.name)}{suffix}",
        "namespace": text.dns_label(options.namespace, "namespace"),
        "labels": {
            **selector(options),
            "app.kubernetes.io/version": serving.chosen(plan).recipe.engine_version,
            "app.kubernetes.io/component": "inference",
            "app.kubernetes.io/managed-by": "aim-engine",
            **text.labels(options.labels),
        },
    }
    if options.annotations:
        found["annotations"] = text.annotation_values(options.annotations)
    return found


def selector(options: Options) -> dict[str, str]:
    """The labels that find the pods of this deployment and no others."""
    return {"app.kubernetes.io/name": "aim-engine", "app.kubernetes.io/instance": options.name}


def template(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    """The pod template of a workload, which is one host's share where a replica spans several."""
    meta = metadata(plan, options)
    del meta["name"], meta["namespace"]
    return {"metadata": meta, "spec": spec(plan, options, backend)}


def spec(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    """The pod that serves one replica. Raises: InvalidInput."""
    recipe = serving.chosen(plan).recipe
    shm = {"medium": "Memory", "sizeLimit": quantity(recipe.resources.shm_bytes)}
    pod: dict[str, Any] = {
        "serviceAccountName": options.name,
        "automountServiceAccountToken": False,
        # Otherwise Kubernetes describes every Service of the namespace in variables, VLLM_PORT among them.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": security(options),
        **({"priorityClassName": _class_name(options.priority_class)} if options.priority_class is not None else {}),
        **placement(plan.inputs.gpu, partition(plan)),
    }
    if recipe.replicas > 1:
        # Preferred, not required: two replicas on one node are better than one replica.
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(options)},
            }
        ]
    if claims_devices(plan, options):
        pod["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": f"{options.name}-gpu"}]
    pod["containers"] = [container(plan, options, backend)]
    pod["volumes"] = [{"name": "shm", "emptyDir": shm}, *temporary(options)[0], *_volumes(options)]
    return pod


def security(options: Options) -> dict[str, Any]:
    """Pod-wide privileges: those of the `restricted` standard when the group of the device files is known."""
    profile = {"seccompProfile": {"type": "RuntimeDefault"}}
    if options.render_gid is None:
        return profile
    if not 0 < options.render_gid < 2**31:
        raise InvalidInput(f"{options.render_gid} is not a group id", hint="stat -c %g /dev/kfd")
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "supplementalGroups": [options.render_gid],
        **profile,
    }


def container_security(options: Options) -> dict[str, Any]:
    """Privileges of a container: none beyond its user's. What root builds at start goes into the image's folders, an ordinary user
    could not write there anyway.
    """
    found = {"privileged": False, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {**found, "readOnlyRootFilesystem": True} if options.render_gid is not None else found


def temporary(options: Options) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts for what programs put into /tmp where the root file system is read-only."""
    return ([{"name": "tmp", "emptyDir": {}}], [dict(TMP)]) if options.render_gid is not None else ([], [])


def _class_name(name: str) -> str:
    return text.dns_subdomain(name, "priority class")


def _volumes(options: Options) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if options.model_path:
        folder = text.host_path(options.model_path, "model folder")
        if folder.startswith("~"):
            raise InvalidInput(f"the model folder '{folder}' is not known on the nodes", hint="give an absolute path")
        found.append({"name": "model", "hostPath": {"path": folder, "type": "Directory"}})
        if options.render_gid is not None:
            found.append({"name": "cache", "emptyDir": {}})
    elif not options.cache_per_replica:
        found.append({"name": "cache", "persistentVolumeClaim": {"claimName": f"{options.name}-cache"}})
    if options.files:
        found.append({"name": "files", "configMap": {"name": f"{options.name}{files_suffix(options)}"}})
    for index, mount in enumerate(serving.mounts(options)):
        if mount.is_claim:
            source: dict[str, Any] = {"persistentVolumeClaim": {"claimName": mount.source}}
        elif mount.source.startswith("~"):
            raise InvalidInput(f"the folder '{mount.source}' is not known on the nodes", hint="give an absolute path")
        else:
            source = {"hostPath": {"path": mount.source, "type": "Directory"}}
        found.append({"name": f"extra-{index}", **source})
    return found


def files_suffix(options: Options) -> str:
    """What the name of the ConfigMap with the files ends in: another content is another object, so that pods are replaced."""
    written = sorted(serving.files(options).values())
    return f"-files-{hashlib.sha256(repr(written).encode()).hexdigest()[:8]}"


def cache_mounts(options: Options, engine: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Where the container keeps weights and compiled code: variables that say so, and mounts."""
    if options.render_gid is not None:
        home = {
            "HOME": USER_CACHE,
            "USER": "aim-engine",  # torch asks for the user's name, and the image does not know one
            "HF_HOME": f"{USER_CACHE}/huggingface",
            serving.CACHE_VARIABLES[engine]: f"{USER_CACHE}/{engine}",
            **_view(f"{USER_CACHE}/huggingface", options),
        }
        return home, [{"name": "cache", "mountPath": USER_CACHE}]
    if options.model_path:
        return {}, []
    return {"HF_HOME": serving.CONTAINER_HF_HOME, **_view(serving.CONTAINER_HF_HOME, options)}, [
        {"name": "cache", "mountPath": serving.CONTAINER_HF_HOME, "subPath": "huggingface"},
        {"name": "cache", "mountPath": f"{serving.CONTAINER_CACHE}/{engine}", "subPath": engine},
    ]


def _view(hf_home: str, options: Options) -> dict[str, str]:
    """Where the cache of aim-engine shows models as the hub's own cache does, when it is what filled the volume."""
    if options.fetch_image is None:
        return {}
    return {"HF_HUB_CACHE": f"{hf_home}/aim-engine/views/hf"}


def container(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    """The engine's container."""
    recipe = serving.chosen(plan).recipe
    startup_s = serving.startup_s(plan, options)
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
    where, cache = cache_mounts(options, recipe.engine)
    env = {**command.env, **where, **options.env}
    mounts = [dict(SHM), *temporary(options)[1], *cache]
    if options.model_path:
        env["HF_HUB_OFFLINE"] = "1"
        mounts.insert(1, {"name": "model", "mountPath": serving.CONTAINER_MODEL, "readOnly": True})
    for key, (place, _) in serving.files(options).items():
        mounts.append({"name": "files", "mountPath": place, "subPath": key, "readOnly": True})
    for index, mount in enumerate(serving.mounts(options)):
        read_only = {"readOnly": True} if mount.read_only else {}
        mounts.append({"name": f"extra-{index}", "mountPath": mount.target, **read_only})
    made: dict[str, Any] = {"name": recipe.engine, "image": serving.image_reference(image)}
    made["imagePullPolicy"] = "IfNotPresent"
    if not serving.runs_engine(image, command):
        made["command"] = [text.no_expansion(word) for word in command.argv0]
    claimed = claims_devices(plan, options)
    return made | {
        "args": [text.no_expansion(arg) for arg in command.args],
        "env": [
            *({"name": name, "value": text.no_expansion(value)} for name, value in text.variables(env).items()),
            *secrets(options),
        ],
        "ports": [{"name": "http", "containerPort": serving.CONTAINER_PORT, "protocol": "TCP"}],
        "resources": {
            **resources(recipe, None if claimed else gpu_resource(plan), hosts=serving.hosts_per_replica(plan)),
            **({"claims": [{"name": "gpu"}]} if claimed else {}),
        },
        "securityContext": container_security(options),
        "startupProbe": _probe(STARTUP_PERIOD_S, math.ceil(startup_s / STARTUP_PERIOD_S)),
        "readinessProbe": _probe(5, 3),
        "livenessProbe": _probe(10, 6),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_S)]}}},
        "volumeMounts": mounts,
    }


def _probe(period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def secrets(options: Options) -> list[dict[str, Any]]:
    """Variables read from Secrets: the hub's token when there is one, the clients' key when one is demanded."""

    def from_secret(name: str, secret: str, key: str, optional: bool) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": optional}}}

    found = [] if options.offline else [from_secret("HF_TOKEN", f"{options.name}-hf-token", "token", True)]
    if options.api_key_secret:
        found.append(from_secret("VLLM_API_KEY", f"{options.name}-api-key", "key", False))
    return found


def claims_devices(plan: Plan, options: Options) -> bool:
    """GPUs come from a resource claim."""
    return options.dra and not serving.on_cpu(plan)


def device_claim(plan: Plan) -> dict[str, Any]:
    """The devices of one replica as a claim for AMD's driver: this card, whole or partitioned as planned.

    Source: ROCm/k8s-gpu-dra-driver docs/driver-attributes.md (type, deviceID, partitionProfile).
    """
    gpu, profile = plan.inputs.gpu, partition(plan)
    own = f'device.attributes["{DEVICE_CLASS}"]'
    terms = [f'{own}.type == "{"amdgpu-partition" if profile else "amdgpu"}"']
    if gpu.pci_ids:
        ids = ", ".join(f'"0x{identity}"' for identity in sorted(gpu.pci_ids))
        terms.append(f"{own}.deviceID in [{ids}]")
    if profile:
        terms.append(f'{own}.partitionProfile == "{profile}"')
    exactly = {
        "deviceClassName": DEVICE_CLASS,
        "allocationMode": "ExactCount",
        "count": serving.chosen(plan).recipe.parallelism.world_size // serving.hosts_per_replica(plan),
        "selectors": [{"cel": {"expression": " && ".join(terms)}}],
    }
    return {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}


def partition(plan: Plan) -> str | None:
    """`cpx_nps4` when the planned devices are partitions of a card, in the words of AMD's node labeller."""
    for device in plan.inputs.cluster.devices:
        if device.gpu == plan.inputs.gpu.name and device.partition not in (None, "SPX") and device.memory_partition:
            return f"{device.partition}_{device.memory_partition}".lower()
    return None


def placement(gpu: Gpu, profile: str | None) -> dict[str, Any]:
    """Where the pod may run: nodes with exactly this card, as AMD's node labeller marks them."""
    if gpu.kind == "cpu":
        return {"nodeSelector": {"kubernetes.io/arch": "amd64"}} if gpu.arch.startswith("x86") else {}
    wanted = {} if profile is None else {PARTITION_LABEL: profile}
    if len(gpu.pci_ids) == 1:
        wanted[DEVICE_ID_LABEL] = gpu.pci_ids[0]
    found: dict[str, Any] = {"nodeSelector": wanted} if wanted else {}
    # Nodes with GPUs are often kept free of other pods by a taint of this name.
    found["tolerations"] = [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}]
    if len(gpu.pci_ids) > 1:
        term = {"matchExpressions": [{"key": DEVICE_ID_LABEL, "operator": "In", "values": sorted(gpu.pci_ids)}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        found["affinity"] = {"nodeAffinity": required}
    return found


def gpu_resource(plan: Plan) -> str:
    """What pods ask the device plugin for: partitions can have resources of their own."""
    gpu = plan.inputs.gpu.name
    named = {device.resource for device in plan.inputs.cluster.devices if device.gpu == gpu and device.resource}
    own = sorted(name for name in named if name.startswith("amd.com/"))
    return own[0] if own else GPU_RESOURCE


def resources(recipe: Recipe, gpus_as: str | None = GPU_RESOURCE, hosts: int = 1) -> dict[str, dict[str, str]]:
    """Requests and limits of one replica, or of its share on each of `hosts`; None leaves its GPUs out, as a claim brings them.

    Cores are asked for but not capped, since throttling shows as latency.
    """
    memory = quantity(
        math.ceil(recipe.resources.memory_bytes / hosts / MIB) * MIB if hosts > 1 else recipe.resources.memory_bytes
    )
    requests = {"cpu": str(math.ceil(recipe.resources.cpu_cores / hosts)), "memory": memory}
    limits = {"memory": memory}
    if recipe.resources.gpus and gpus_as is not None:
        requests[gpus_as] = limits[gpus_as] = str(recipe.resources.gpus // hosts)
    return {"requests": requests, "limits": limits}


def quantity(count: int) -> str:
    """Bytes as a Kubernetes quantity: `16Gi`, `1536Mi`, else plain."""
    for unit, name in ((GIB, "Gi"), (MIB, "Mi")):
        if count % unit == 0:
            return f"{count // unit}{name}"
    return str(count)
