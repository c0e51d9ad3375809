"""Everything a machine shows about itself, joined into one cluster. Fields say who said them; disagreements are reported."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.hardware import cpu, drm, joining, kfd, naming, recording, sysfs, visibility
from aim_engine.hardware.cluster import Cluster, Cpu, Device, Finding, Node
from aim_engine.hardware.remarks import of as remarks_of

LIVE = Path("/")
_RESERVE_FRACTION = 0.1
"""Of the system's memory, left to it where the GPU takes from the same."""
_PCI_CLASSES = ("0x03", "0x12")
"""Display controllers and processing accelerators."""


def detect(
    root: Path = LIVE,
    *,
    run_tools: bool = True,
    overlay: Path | None = None,
    environment: Mapping[str, str] | None = None,
    readings: bool = False,
    name: str | None = None,
) -> Cluster:
    """The machine below `root`: GPUs from the kernel's files and the installed tools, the CPU and its memory from /proc.

    `run_tools` asks the installed tools too, which only makes sense for the live machine. `environment` supplies the visibility
    variables; None takes this process' own on the live machine and nothing for a recorded one. `readings` keeps temperatures, power
    and load, which change from call to call. `name` is what the node is called where its own name was not recorded.
    """
    live = root == LIVE
    shown = kfd.read(root, overlay)
    host = cpu.read(root)
    machines, silent = _asked() if run_tools and live else ((), ())
    label = platform.node() if live else sysfs.text(root / "proc/sys/kernel/hostname") or name or root.resolve().name
    machine = joining.nodes(
        [Node(name=label, devices=shown.devices, link_weights=shown.link_weights, findings=shown.findings), *machines],
        label,
    )
    devices = tuple(_limited(device, host) for device in naming.name_all(machine.devices, overlay))
    remarks = [*machine.findings, *silent, *remarks_of(devices, overlay)]
    environment = environment if environment is not None else (os.environ if live else {})
    visible, hidden = visibility.visible(devices, environment)
    if not readings:
        visible = tuple(msgspec.structs.replace(device, readings=None) for device in visible)
    node = Node(
        name=label,
        cpu=host,
        devices=tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(visible)),
        driver_version=sysfs.text(root / "sys/module/amdgpu/version") or machine.driver_version,
        rocm_version=sysfs.text(root / "opt/rocm/.info/version") or machine.rocm_version,
        guest=machine.guest,
        link_weights=joining.renumbered(
            machine.link_weights, {device.index: index for index, device in enumerate(visible)}
        ),
        findings=(*remarks, *hidden, *_access(root, devices)),
    )
    return Cluster(origin="detected", nodes=(node,))


def from_recorded(*texts: str, name: str = "the input", overlay: Path | None = None, readings: bool = False) -> Cluster:
    """The machine that recorded outputs of tools, or topology files, describe. `readings` as for `detect`. Raises: Corrupt."""
    from aim_engine.hardware import sources

    machine = sources.read(texts, name)
    devices = naming.name_all(machine.devices, overlay)
    if not readings:
        devices = tuple(msgspec.structs.replace(device, readings=None) for device in devices)
    findings = (*machine.findings, *remarks_of(devices, overlay))
    return Cluster(origin="detected", nodes=(msgspec.structs.replace(machine, devices=devices, findings=findings),))


class GPUDetector:
    """Detection under the names of the product's first specification."""

    def __init__(self, root: str | Path = LIVE, *, overlay: Path | None = None) -> None:
        self._root = Path(root)
        self._overlay = overlay

    def detect_available_gpus(self) -> tuple[Device, ...]:
        """The AMD GPUs this process can use, in ROCm's order; empty without any."""
        return self._cluster().devices

    def get_gpu_info(self) -> dict[str, Any]:
        """The whole picture as plain data: count, name, memory per GPU (GiB), and each device with its sources and readings."""
        cluster = self._cluster()
        devices = cluster.devices
        known = [device.memory_total_bytes for device in devices if device.memory_total_bytes is not None]
        return {
            "gpu_count": len(devices),
            "gpus": cluster.describe(),
            "memory_per_gpu": min(known) / 1024**3 if known else None,
            "devices": msgspec.to_builtins(devices),
            "findings": msgspec.to_builtins([finding for node in cluster.nodes for finding in node.findings]),
        }

    def _cluster(self) -> Cluster:
        with recording.opened(self._root) as folder:
            return detect(folder, run_tools=folder == LIVE, overlay=self._overlay, readings=True)


def _asked() -> tuple[tuple[Node, ...], tuple[Finding, ...]]:
    """What the tools of this machine say; see `tools.ask`."""
    from aim_engine.hardware import tools

    return tools.ask()


def _limited(device: Device, host: Cpu | None) -> Device:
    """A device that shares the system's memory can use no more of it than is free now, less a reserve for the system."""
    total = device.memory_total_bytes
    if not device.shared_memory or total is None or host is None:
        return device
    free = max(0, host.memory_available_bytes - round(host.memory_total_bytes * _RESERVE_FRACTION))
    used = max(device.memory_used_bytes or 0, total - free)
    return msgspec.structs.replace(
        device, memory_used_bytes=used, sources={**device.sources, "memory_used_bytes": "proc"}
    )


def _access(root: Path, devices: Sequence[Device]) -> list[Finding]:
    """Whether this process could open what ROCm opens; device files are only asked of the live machine."""
    if not devices:
        folders = sysfs.children(root / "sys/bus/pci/devices")
        present = sorted(folder.name for folder in folders if _is_amd_gpu(folder))
        explained = [card for card in drm.cards(root) if not card.usable] if present else []
        if len(present) <= len(explained):
            return []
        return [
            Finding(
                id="HST004",
                severity="error",
                message=f"{len(present)} AMD GPU(s) on the PCI bus, but the amdgpu driver shows none for compute",
                evidence=", ".join(present[:8]),
                remedy="install the amdgpu driver, or pass /dev/kfd and /dev/dri into the container",
            )
        ]
    if root != LIVE:
        return []
    node = root / "dev/kfd"
    if not node.exists():
        return [
            Finding(
                id="HST005",
                severity="error",
                message="/dev/kfd does not exist here",
                remedy="pass it into the container: --device /dev/kfd --device /dev/dri",
            )
        ]
    if not os.access(node, os.R_OK | os.W_OK):
        return [
            Finding(
                id="HST006",
                severity="error",
                message="no permission to open /dev/kfd",
                remedy="add this user to the groups render and video, then log in again",
            )
        ]
    return []


def _is_amd_gpu(folder: Path) -> bool:
    kind = sysfs.text(folder / "class") or ""
    return sysfs.integer(folder / "vendor") == drm.VENDOR and kind.startswith(_PCI_CLASSES)
