"""Values of Helm charts that serve engines: what they say of image, arguments, environment and GPUs, whoever made the chart.

A chart's templates are not read, so what only they say (probes, shared memory, mounts) is not judged. Render the chart and give
the manifests to the checks for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_pod
from aim_engine.render.document import get, mapping, mappings, strings, whole

_HINTS = frozenset(
    {"resources", "replicas", "replicaCount", "imagePullPolicy", "servingEngineSpec", "nodeSelector", "tolerations"}
)
"""Keys that values of charts have and that containers of other kinds of file have not."""
_OF_TEMPLATES = frozenset({"K8S005", "K8S006", "K8S007", "K8S014", "K8S025", "MAN002", "MAN005", "MAN007", "MAN012"})
_STACK_FLAGS = {
    "tensorParallelSize": "--tensor-parallel-size",
    "maxModelLen": "--max-model-len",
    "dtype": "--dtype",
    "gpuMemoryUtilization": "--gpu-memory-utilization",
    "maxNumSeqs": "--max-num-seqs",
}
"""vllmConfig of the production stack. Source: vllm-project/production-stack:helm/values.yaml@a6c01db."""


def is_values(entry: object) -> bool:
    """`entry` looks like values of a chart that serves an engine."""
    return isinstance(entry, dict) and "apiVersion" not in entry and bool(_HINTS & _keys(entry)) and any(_found(entry))


def check(entry: dict[str, Any], backend: Backend, version: str | None = None) -> tuple[Finding, ...]:
    """What is wrong with the containers that the values describe. `version` overrides the images' release."""
    found: list[Finding] = []
    for where, container in _found(entry):
        for finding in check_pod.check({"containers": [container]}, where, backend, version):
            if finding.id not in _OF_TEMPLATES:
                place = finding.evidence.replace(f"{where}.containers[0]", where).replace(": containers[0]", "")
                found.append(msgspec.structs.replace(finding, evidence=place))
    return tuple(dict.fromkeys(found))


def _keys(entry: Any) -> set[str]:
    if isinstance(entry, dict):
        return {str(key) for key in entry}.union(*(_keys(each) for each in entry.values()))
    return set().union(*(_keys(each) for each in entry)) if isinstance(entry, list) else set()


def _found(entry: dict[str, Any], where: str = "values") -> Iterator[tuple[str, dict[str, Any]]]:
    """The containers anywhere below, in the shape that a pod has."""
    for index, model in enumerate(mappings(get(entry, "servingEngineSpec", "modelSpec"))):
        yield f"{where}: servingEngineSpec.modelSpec[{index}]", _of_stack(model)
    own = _own(entry)
    if own is not None:
        yield where, own
    for key, value in entry.items():
        if key == "servingEngineSpec":
            continue
        for index, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, dict):
                place = f"{key}[{index}]" if isinstance(value, list) else str(key)
                yield from _found(each, f"{where}.{place}" if ": " in where else f"{where}: {place}")


def _own(entry: dict[str, Any]) -> dict[str, Any] | None:
    """A mapping with an image and arguments, as charts write them."""
    image = entry.get("image")
    command = strings(entry.get("command")) or strings(get(entry, "image", "command"))
    args = (*strings(entry.get("args")), *strings(entry.get("extraArgs")))
    if isinstance(image, dict) and image.get("repository"):
        image = f"{image['repository']}:{image['tag']}" if image.get("tag") else str(image["repository"])
    if not isinstance(image, str) or not (command or args):
        return None
    env = [*mappings(entry.get("env")), *mappings(entry.get("extraEnv"))]
    env += [{"name": str(key), "value": value} for key, value in mapping(entry.get("env")).items()]
    return {
        "name": "engine",
        "image": image,
        **({"command": list(command)} if command else {}),
        "args": list(args),
        "env": env,
        "resources": mapping(entry.get("resources")),
    }


def _of_stack(model: dict[str, Any]) -> dict[str, Any]:
    """One model of the production stack: its pods run `vllm serve MODEL` with flags made of `vllmConfig`."""
    config = mapping(model.get("vllmConfig"))
    args = [str(model.get("modelURL") or "")]
    for key, flag in _STACK_FLAGS.items():
        if config.get(key) not in (None, ""):
            args += [flag, str(config[key])]
    gpus = whole(model.get("requestGPU"))
    kind = str(model.get("requestGPUType") or "nvidia.com/gpu")
    tag = f":{model['tag']}" if model.get("tag") else ""
    return {
        "name": "engine",
        "image": f"{model.get('repository') or ''}{tag}",
        "command": ["vllm", "serve"],
        "args": [*args, *strings(config.get("extraArgs"))],
        "env": mappings(model.get("env")),
        "resources": {"requests": {kind: gpus}, "limits": {kind: gpus}} if gpus else {},
    }
