"""One pod of a manifest: its containers, and the engine in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_engine
from aim_engine.render.check_engine import Container
from aim_engine.render.document import get, mapping, mappings, strings, texts, whole
from aim_engine.render.findings import amount, error, is_port, warning

GPU = "amd.com/gpu"
ENGINE_READY_S = 600
"""How long vLLM waits for its own workers unless told otherwise. Source: vllm/envs.py VLLM_ENGINE_READY_TIMEOUT_S."""
SHM = "/dev/shm"  # noqa: S108 - the place where ranks of an engine share memory, not a file of ours
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


def check(
    pod: dict[str, Any],
    where: str,
    backend: Backend,
    version: str | None,
    *,
    complete: bool = True,
    starts: tuple[str, ...] | None = None,
) -> Iterator[Finding]:
    """What is wrong with a pod's spec. `version` overrides the images' release.

    Not `complete`: the cluster adds what is missing, so that only what is there can be wrong. `starts` is what runs in a container
    without a command, None leaves that to the image.
    """
    yield from _pod(pod, where, complete)
    below = f"{where}." if ": " in where else f"{where}: "
    for index, container in enumerate(mappings(pod.get("containers"))):
        place = f"{below}containers[{index}]"
        yield from _container(container, pod, place, complete)
        started = container if starts is None or container.get("command") else {**container, "command": list(starts)}
        yield from _engine(started, pod, place, backend, version, complete)
    for index, container in enumerate(mappings(pod.get("initContainers"))):
        yield from _container(container, pod, f"{below}initContainers[{index}]", complete)


def _pod(pod: dict[str, Any], where: str, complete: bool) -> Iterator[Finding]:
    if complete and not mappings(pod.get("containers")):
        yield error("MAN002", "has no containers", "", where)
    names = [entry.get("name") for entry in mappings(pod.get("volumes"))]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield error("MAN007", f"two volumes are called {name}", "", f"{where}: volumes")
    if pod.get("hostNetwork") is True:
        yield warning("K8S008", "hostNetwork is only needed for RDMA between nodes", "drop it", f"{where}: hostNetwork")
    if pod.get("hostIPC") is True:
        yield warning(
            "K8S008", "hostIPC shares the host's memory segments", "a Memory emptyDir on /dev/shm", f"{where}: hostIPC"
        )


def _container(container: dict[str, Any], pod: dict[str, Any], where: str, complete: bool) -> Iterator[Finding]:
    name = container.get("name")
    if not isinstance(name, str) or not _LABEL.fullmatch(name) or len(name) > 63:
        yield error("MAN005", f"the container name {name!r} is not a DNS label", "", where)
    if complete and not container.get("image"):
        yield error("MAN002", "the container has no image", "", where)
    yield from _text_fields(container, where)
    yield from _ports(container, where)
    yield from _mounts(container, pod, where)
    yield from _probes(container, where)
    yield from _resources(container, where)
    yield from _privileges(container, where)


def _text_fields(container: dict[str, Any], where: str) -> Iterator[Finding]:
    for key in ("command", "args"):
        value = container.get(key)
        if isinstance(value, str):
            yield error("MAN003", f"{key} is text, not a list", "one entry per argument", f"{where}.{key}")
        for index, entry in enumerate(value if isinstance(value, list) else []):
            if not isinstance(entry, str):
                yield error("MAN003", f"{key} {entry!r} is not text", f'write "{entry}"', f"{where}.{key}[{index}]")
    for index, entry in enumerate(mappings(container.get("env"))):
        if "value" in entry and not isinstance(entry["value"], str) and entry["value"] is not None:
            shown = str(entry["value"]).lower() if isinstance(entry["value"], bool) else entry["value"]
            yield error(
                "MAN003", f"the value of {entry.get('name')} is not text", f'write "{shown}"', f"{where}.env[{index}]"
            )


def _ports(container: dict[str, Any], where: str) -> Iterator[Finding]:
    seen: set[object] = set()
    for index, entry in enumerate(mappings(container.get("ports"))):
        place = f"{where}.ports[{index}]"
        for key in ("containerPort", "hostPort"):
            port = entry.get(key)
            if port is not None and not is_port(port):
                yield error("MAN008", f"{key} {port} is not between 1 and 65535", "", place)
        name = entry.get("name")
        if name is not None and (not isinstance(name, str) or len(name) > 15 or not _PORT_NAME.fullmatch(name)):
            yield error("MAN005", f"the port name {name!r} is not allowed: at most 15 of a-z, 0-9 and -", "", place)
        if name is not None and str(name) in seen:
            yield error("MAN008", f"two ports are called {name}", "", place)
        seen.add(str(name))


def _mounts(container: dict[str, Any], pod: dict[str, Any], where: str) -> Iterator[Finding]:
    volumes = texts(pod.get("volumes"), "name")
    paths: set[str] = set()
    for index, mount in enumerate(mappings(container.get("volumeMounts"))):
        place = f"{where}.volumeMounts[{index}]"
        if str(mount.get("name")) not in volumes:
            known = ", ".join(sorted(volumes)) or "none"
            yield error(
                "MAN007", f"there is no volume '{mount.get('name')}' (volumes: {known})", "add it to volumes", place
            )
        if str(mount.get("mountPath")) in paths:
            yield error("MAN007", f"two volumes are mounted at {mount.get('mountPath')}", "", place)
        paths.add(str(mount.get("mountPath")))


def _probes(container: dict[str, Any], where: str) -> Iterator[Finding]:
    names = texts(container.get("ports"), "name")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        for how in ("httpGet", "tcpSocket"):
            action = get(container, probe, how)
            if not isinstance(action, dict):
                continue
            port, place = action.get("port"), f"{where}.{probe}.{how}"
            if isinstance(port, str) and not port.isdecimal():
                if port not in names:
                    known = ", ".join(sorted(names)) or "none"
                    yield error(
                        "MAN009", f"no port is called '{port}' (ports: {known})", "name a port of the container", place
                    )
            elif port is None or not is_port(int(port) if isinstance(port, str) else port):
                yield error("MAN009", f"the probe's port {port} is not between 1 and 65535", "", place)
        for key in ("periodSeconds", "timeoutSeconds", "failureThreshold"):
            value = get(container, probe, key)
            if value is not None and (whole(value) is None or value < 1):
                yield error("MAN009", f"{key} {value} is not at least 1", "", f"{where}.{probe}")


def _resources(container: dict[str, Any], where: str) -> Iterator[Finding]:
    requests = mapping(get(container, "resources", "requests"))
    limits = mapping(get(container, "resources", "limits"))
    place = f"{where}.resources"
    for name in sorted({str(key) for key in (*requests, *limits)}):
        asked, most = amount(requests.get(name)), amount(limits.get(name))
        if name.startswith("amd.com/"):
            yield from _gpus(name, requests.get(name), limits.get(name), place)
        elif asked is not None and most is not None and asked > most:
            yield error(
                "MAN011",
                f"the request of {name} {requests[name]} exceeds the limit {limits[name]}",
                "raise the limit",
                place,
            )
    for name in ("nvidia.com/gpu",):
        if name in requests or name in limits:
            yield error("K8S001", f"{name} asks for another maker's GPUs", f"{GPU}", place)


def _gpus(name: str, asked: Any, most: Any, place: str) -> Iterator[Finding]:
    for value in (asked, most):
        count = amount(value)
        if count is not None and (count != count.to_integral_value() or count < 0):
            yield error("K8S001", f"{name} {value} is not a whole number", "GPUs cannot be shared by fractions", place)
    if most is None:
        yield error("K8S001", f"{name} has a request but no limit", f"limits: {{{name}: {asked}}}", place)
    elif asked is not None and amount(asked) != amount(most):
        yield error(
            "K8S001", f"the request of {name} {asked} differs from the limit {most}", "they must be equal", place
        )


def _privileges(container: dict[str, Any], where: str) -> Iterator[Finding]:
    context = mapping(container.get("securityContext"))
    if context.get("privileged") is True:
        yield warning("K8S008", "serving needs no privileged container", "drop it", f"{where}.securityContext")
    for capability in strings(get(context, "capabilities", "add")):
        if capability.upper().removeprefix("CAP_") in ("SYS_PTRACE", "SYS_ADMIN", "ALL"):
            yield warning(
                "K8S008", f"serving needs no {capability}", "drop it", f"{where}.securityContext.capabilities"
            )


def _engine(
    container: dict[str, Any], pod: dict[str, Any], where: str, backend: Backend, version: str | None, complete: bool
) -> Iterator[Finding]:
    env = {
        str(entry["name"]): str(entry["value"])
        for entry in mappings(container.get("env"))
        if "name" in entry and isinstance(entry.get("value"), (str, int, float))
    }
    command = container.get("command")
    engine, found = check_engine.check(
        Container(
            where=where,
            image=str(container.get("image") or ""),
            entrypoint=strings(command) if command else None,
            args=_expanded(strings(container.get("args")), env),
            env=env,
        ),
        backend,
        version,
    )
    yield from found
    if engine is None:
        return
    gpus = amount(get(container, "resources", "limits", GPU) or get(container, "resources", "requests", GPU))
    hosts = check_engine.option(engine.args, "--nnodes") or "1"
    nodes = max(1, int(hosts)) if hosts.isdecimal() else None
    wanted = engine.gpus // nodes if engine.gpus is not None and nodes is not None else None
    if wanted is not None and gpus is not None:  # else only the caller knows
        if gpus == gpus.to_integral_value() and wanted > gpus:
            yield error(
                "PAR006",
                f"the engine spreads over {wanted} GPUs, the pod has {gpus}",
                "make them equal",
                f"{where}: args",
            )
        elif wanted < gpus:
            yield warning(
                "PAR026", f"the engine uses {wanted} of the pod's {gpus} GPUs", "make them equal", f"{where}: args"
            )
    several = max(wanted or 1, int(gpus or 1))
    yield from _shared_memory(container, pod, several, where)
    if complete and "--headless" not in engine.args:  # such a rank serves no HTTP
        yield from _patience(container, env, where)
    drain, grace = check_engine.option(engine.args, "--shutdown-timeout"), pod.get("terminationGracePeriodSeconds", 30)
    if drain is not None and drain.isdecimal() and whole(grace) is not None and int(drain) > 0 and grace <= int(drain):
        yield warning(
            "K8S014",
            f"the pod is killed after {grace} s, while requests may finish for {drain} s",
            f"terminationGracePeriodSeconds: {int(drain) + 60}",
            where,
        )
    if engine.name == "vllm" and pod.get("enableServiceLinks") is not False:
        yield Finding(
            id="K8S025",
            severity="info",
            message="Services of the namespace become VLLM_* variables if one is called vllm",
            evidence=where,
            remedy="enableServiceLinks: false",
        )


def _expanded(args: tuple[str, ...], env: dict[str, str]) -> tuple[str, ...]:
    """`args` as the kubelet hands them on: `$$` is `$`, `$(NAME)` the variable's value, or itself where nobody can know it.

    Source: Kubernetes API reference, Container.args.
    """
    return tuple(_REFERENCE.sub(lambda it: "$" if it[0] == "$$" else env.get(it[1], it[0]), word) for word in args)


def _shared_memory(container: dict[str, Any], pod: dict[str, Any], gpus: int, where: str) -> Iterator[Finding]:
    mounted = {
        str(mount.get("name"))
        for mount in mappings(container.get("volumeMounts"))
        if str(mount.get("mountPath")).rstrip("/") == SHM
    }
    memories = [entry.get("emptyDir") for entry in mappings(pod.get("volumes")) if str(entry.get("name")) in mounted]
    if not memories and gpus > 1 and pod.get("hostIPC") is not True:
        yield error(
            "K8S005",
            f"{SHM} has 64 MiB, and {gpus} ranks exchange tensors through it",
            "mount an emptyDir {medium: Memory, sizeLimit: 16Gi} there",
            where,
        )
    limit = amount(get(container, "resources", "limits", "memory"))
    for memory in memories:
        if not isinstance(memory, dict):
            continue
        if memory.get("medium") != "Memory":
            yield warning("K8S005", f"{SHM} is on disk", "emptyDir: {medium: Memory}", where)
        size = amount(memory.get("sizeLimit"))
        if size is not None and limit is not None and size >= limit:
            yield error(
                "K8S005",
                f"{SHM} may take {memory['sizeLimit']}, which counts against the memory limit",
                "raise the memory limit above it",
                where,
            )


def _patience(container: dict[str, Any], env: dict[str, str], where: str) -> Iterator[Finding]:
    own = env.get("VLLM_ENGINE_READY_TIMEOUT_S", "")
    needed = int(own) if own.isdecimal() else ENGINE_READY_S
    startup, liveness = container.get("startupProbe"), container.get("livenessProbe")
    if isinstance(startup, dict):
        window = _window_s(startup)
        if window < needed:
            yield warning(
                "K8S006",
                f"the startup probe gives up after {window} s, the engine waits {needed} s for its own workers",
                f"failureThreshold: {-(-needed // max(1, whole(startup.get('periodSeconds')) or 10))} or more",
                f"{where}.startupProbe",
            )
    elif isinstance(liveness, dict) and _window_s(liveness) < needed:
        yield warning(
            "K8S007",
            f"the liveness probe kills the pod after {_window_s(liveness)} s, while the model is still loading",
            "add a startupProbe",
            f"{where}.livenessProbe",
        )
    if not isinstance(container.get("readinessProbe"), dict):
        yield warning(
            "MAN012", "without a readiness probe requests arrive before the model is loaded", "httpGet /health", where
        )


def _window_s(probe: dict[str, Any]) -> int:
    """Seconds until a probe that never succeeds has its effect."""
    period, failures = whole(probe.get("periodSeconds")) or 10, whole(probe.get("failureThreshold")) or 3
    return (whole(probe.get("initialDelaySeconds")) or 0) + period * failures
