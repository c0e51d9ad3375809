"""Objects of a Kubernetes cluster with AMD GPUs, as the API server gives them, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

MI300X = {
    "amd.com/gpu.device-id": "74a1",
    "amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM",
    "amd.com/gpu.family": "AI",
    "amd.com/gpu.cu-count": "304",
    "amd.com/gpu.simd-count": "1216",
    "amd.com/gpu.vram": "192G",
    "amd.com/gpu.driver-version": "6.12.12",
    "amd.com/gpu.compute-memory-partition": "spx_nps1",
    "feature.node.kubernetes.io/amd-gpu": "true",
}
"""Labels of a node of MI300X."""


def node(
    name: str = "gpu-1",
    labels: Mapping[str, str] = MI300X,
    *,
    gpus: int | None = 8,
    capacity: int | None = None,
    resource: str = "amd.com/gpu",
    ready: bool = True,
    cordoned: bool = False,
    taints: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """A node; without `gpus` it offers none."""
    amounts = {"cpu": "192", "memory": "1583349924Ki", "pods": "110"}
    offered = {} if gpus is None else {resource: str(gpus)}
    there = {} if gpus is None else {resource: str(gpus if capacity is None else capacity)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": {"taints": [dict(taint) for taint in taints], **({"unschedulable": True} if cordoned else {})},
        "status": {
            "capacity": {**amounts, **there},
            "allocatable": {**amounts, **offered},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def pod(
    name: str, on: str | None, gpus: int, *, phase: str = "Running", resource: str = "amd.com/gpu", before: int = 0
) -> dict[str, Any]:
    """A pod that holds GPUs on a node; `before` are those of an init container."""
    amounts = {resource: str(gpus)}
    spec: dict[str, Any] = {"containers": [{"name": "main", "resources": {"limits": amounts, "requests": amounts}}]}
    if on is not None:
        spec["nodeName"] = on
    if before:
        spec["initContainers"] = [{"name": "init", "resources": {"limits": {resource: str(before)}}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
        "status": {"phase": phase},
    }


def resource_slice(
    on: str,
    devices: Sequence[Mapping[str, Any]],
    *,
    version: str = "v1",
    generation: int = 1,
    count: int = 1,
    driver: str = "gpu.amd.com",
) -> dict[str, Any]:
    """One slice of a node's pool; older versions keep devices under `basic`."""
    listed = [
        {"name": each["name"], "basic": {k: v for k, v in each.items() if k != "name"}}
        if version in ("v1beta1", "v1alpha3")
        else dict(each)
        for each in devices
    ]
    return {
        "apiVersion": f"resource.k8s.io/{version}",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{on}-{driver}-{generation}"},
        "spec": {
            "driver": driver,
            "nodeName": on,
            "pool": {"name": on, "generation": generation, "resourceSliceCount": count},
            "devices": listed,
        },
    }


def device(number: int, *, memory: str = "206141652992", profile: str = "spx_nps1", **more: Any) -> dict[str, Any]:
    """A published MI300X."""
    return {
        "name": f"gpu-{number}-{128 + number}",
        "attributes": {
            "type": {"string": "amdgpu" if profile.startswith("spx") else "amdgpu-partition"},
            "deviceID": {"string": "0x74a1"},
            "productName": {"string": "AMD_Instinct_MI300X_OAM"},
            "driverVersion": {"version": "6.12.12"},
            "partitionProfile": {"string": profile},
            "numaNode": {"int": number // 4},
            "resource.kubernetes.io/pciBusID": {"string": f"0000:{5 + 16 * number:02x}:00.0"},
        },
        "capacity": {"memory": {"value": memory}, "computeUnits": {"value": "304"}},
        **more,
    }


def claim(on: str, *devices: str) -> dict[str, Any]:
    """A claim that was given devices of a node's pool."""
    results = [{"driver": "gpu.amd.com", "pool": on, "device": each, "request": "gpu"} for each in devices]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "claim"},
        "status": {"allocation": {"devices": {"results": results}}},
    }


def listed(*objects: Mapping[str, Any]) -> str:
    """What `kubectl get ... -o json` prints."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": list(objects)})
