"""A container on one host, however it was written down: devices, shared memory, privileges, what is published."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_engine
from aim_engine.render.check_engine import Container
from aim_engine.render.findings import error, info, warning

GIB = 1024**3
DOCUMENTATION = "vllm-project/vllm:docs/getting_started/installation/gpu.rocm.inc.md@v0.33.0"
_CAPABILITY_NAMES = (
    "ALL AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH "
    "FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN "
    "NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT "
    "SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM"
)
CAPABILITIES = frozenset(_CAPABILITY_NAMES.split())
"""Source: capabilities(7)."""
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[bkmgt])?b?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": GIB, "t": 1024 * GIB}
_VISIBILITY = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "AMD_VISIBLE_DEVICES")
_CACHES = ("/root/.cache", "/cache", "huggingface", "/models", "/model", "/.cache")


class HostContainer(Container, frozen=True, kw_only=True):
    """What a container gets of its host."""

    devices: tuple[str, ...] = ()
    """Device files and CDI names, as written."""
    asks_engine_for_gpus: bool = False
    """By --gpus, a reservation or a runtime instead of device files."""
    gpus_flag: bool = False
    """By --gpus, which only recent engines understand for AMD."""
    shm_bytes: int | None = None
    host_ipc: bool = False
    privileged: bool = False
    host_network: bool = False
    published: tuple[tuple[str, str], ...] = ()
    """(address, port) on the host."""
    capabilities: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    """Paths in the container."""
    user: str = ""
    """Who runs in it, as written; empty where nothing is said, which is the image's own, mostly root."""
    groups: tuple[str, ...] = ()
    """Groups beside the user's own."""


def check(container: HostContainer, backend: Backend, version: str | None = None) -> tuple[Finding, ...]:
    """Everything wrong or risky about the container and the engine in it."""
    engine, found = check_engine.check(container, backend, version)
    more: list[Finding] = [*_capabilities(container)]
    if engine is not None:
        more += _devices(container)
        more += _by_rules(container, engine.gpus, backend)
        more += _memory(container, engine.gpus)
        more += _reach(container, engine.args)
        more += _caches(container)
    return (*found, *more)


def size(value: Any) -> int | None:
    """Bytes of a size as Docker reads it, such as `16g` or 1024; None when it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return round(float(match["number"]) * _UNITS[(match["unit"] or "").lower()]) if match is not None else None


def _capabilities(container: HostContainer) -> Iterator[Finding]:
    import difflib

    for name in container.capabilities:
        plain = name.upper().removeprefix("CAP_")
        if plain not in CAPABILITIES:
            close = difflib.get_close_matches(plain, CAPABILITIES, n=1)
            yield error(
                "DOC010",
                f"there is no capability {name}",
                f"did you mean {close[0]}?" if close else "",
                container.where,
            )
    if container.privileged:
        yield warning("DOC006", "serving needs no privileged container", "give it the devices only", container.where)


def _devices(container: HostContainer) -> Iterator[Finding]:
    repository = check_engine.split_image(container.image)[0]
    files = [device.split(":")[0] for device in container.devices]
    other_way = container.asks_engine_for_gpus or container.privileged or any("amd.com/gpu" in file for file in files)
    if "rocm" in repository and not other_way:
        missing = [name for name in ("/dev/kfd", "/dev/dri") if not any(file.startswith(name) for file in files)]
        if missing:
            yield error(
                "DOC001",
                f"without {' and '.join(missing)} the engine finds no GPU",
                "pass /dev/kfd and /dev/dri, or only the needed /dev/dri/renderD*",
                container.where,
            )
    if container.gpus_flag:
        yield warning(
            "DOC003",
            "--gpus gives AMD GPUs only on Docker 28.3 and newer, with AMD's container toolkit",
            "pass /dev/kfd and /dev/dri as devices",
            container.where,
        )


def _by_rules(container: HostContainer, gpus: int | None, backend: Backend) -> Iterator[Finding]:
    """The rules of `rules/container.yaml`."""
    files = [device.split(":")[0].rstrip("/") for device in container.devices]
    about = {
        **({} if gpus is None else {"world": gpus}),
        "all_devices": "/dev/dri" in files or any("amd.com/gpu=all" in file for file in files),
        "pinned": any(container.env.get(name) for name in _VISIBILITY),
        "by_cdi": any("amd.com/gpu=" in file for file in files),
        "needs_gpu": "/dev/kfd" in files or any("amd.com/gpu" in file for file in files),
        "run_as": container.user,
        "has_groups": {"video", "render"} <= set(container.groups)
        or "keep-groups" in container.groups
        or sum(group.isdecimal() for group in container.groups) > 0,
    }
    for finding in backend.judge(about):
        yield msgspec.structs.replace(finding, evidence=container.where)


def _memory(container: HostContainer, gpus: int | None) -> Iterator[Finding]:
    if container.host_ipc or gpus is None or gpus < 2 or "/dev/shm" in container.mounts:  # noqa: S108 - the engine's own place
        return
    if container.shm_bytes is None:
        yield error(
            "MEM009",
            f"/dev/shm has 64 MiB, and {gpus} ranks exchange tensors through it",  # noqa: S108 - the engine's own place
            "shm_size 16g",
            container.where,
        )
    elif container.shm_bytes < GIB:
        yield warning(
            "MEM009", f"shared memory of {container.shm_bytes} bytes is little for {gpus} ranks", "16g", container.where
        )


def _reach(container: HostContainer, args: tuple[str, ...]) -> Iterator[Finding]:
    if container.host_network and container.published:
        yield warning(
            "DOC007", "published ports have no effect on the host's network", "drop one of them", container.where
        )
    keyed = "VLLM_API_KEY" in container.env or check_engine.option(args, "--api-key") is not None
    for address, port in container.published:
        if not keyed and not _is_loopback(address):
            yield warning(
                "SEC001",
                f"port {port} is open to every network ({address}) and the engine asks for no key",
                f"publish 127.0.0.1:{port}, or set VLLM_API_KEY",
                container.where,
            )


def _caches(container: HostContainer) -> Iterator[Finding]:
    if not any(part in mount for mount in container.mounts for part in _CACHES):
        yield info(
            "DOC008",
            "nothing is kept: each new container fetches the model again",
            "mount a folder or volume at /root/.cache",
            container.where,
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
