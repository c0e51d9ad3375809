"""Everything a machine shows about itself, joined into one cluster. Fields say who said them; disagreements are reported."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.hardware import amdsmi, catalog, cpu, kfd, sysfs
from aim_engine.hardware.cluster import Cluster, Device, Finding, Node

VISIBILITY = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
_COMPARED = ("arch", "pci_id", "compute_units", "memory_total_bytes")
_SAME_MEMORY_FRACTION = 0.01


def detect(
    root: Path = Path("/"),
    *,
    run_tools: bool = True,
    overlay: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Cluster:
    """The machine below `root`: GPUs from the kernel's files and `amd-smi`, the CPU and its memory from /proc.

    `run_tools` asks the installed tools too, which only makes sense for the live machine. `environment` supplies the visibility
    variables; None takes this process' own on the live machine and nothing for a recorded one.
    """
    live = root == Path("/")
    shown = kfd.read(root)
    said = amdsmi.run() if run_tools and live else None
    devices, findings = join(shown.devices, said or ())
    devices = tuple(named(device, overlay) for device in devices)
    visible, hidden = _visible(devices, environment if environment is not None else (os.environ if live else {}))
    node = Node(
        name=platform.node() if live else (sysfs.text(root / "proc/sys/kernel/hostname") or root.name),
        cpu=cpu.read(root),
        devices=visible,
        driver_version=sysfs.text(root / "sys/module/amdgpu/version"),
        rocm_version=sysfs.text(root / "opt/rocm/.info/version"),
        link_weights=shown.link_weights,
        findings=(*shown.findings, *findings, *hidden, *_access(root, devices)),
    )
    return Cluster(origin="detected", nodes=(node,))


def join(kernel: tuple[Device, ...], tool: tuple[Device, ...]) -> tuple[tuple[Device, ...], tuple[Finding, ...]]:
    """Devices of both sources, matched by PCI address; the kernel's word stands, gaps are filled, differences reported."""
    if not kernel:
        return tool, ()
    by_address = {device.bdf: device for device in tool if device.bdf is not None}
    joined, findings = [], []
    for device in kernel:
        other = by_address.get(device.bdf) if device.bdf else None
        if other is None:
            joined.append(device)
            continue
        findings.extend(_disagreements(device, other))
        filled: dict[str, Any] = {
            field: getattr(other, field)
            for field in Device.__struct_fields__
            if field not in ("index", "gpu", "product", "sources")
            and getattr(device, field) is None
            and getattr(other, field) is not None
        }
        if device.product == "AMD GPU":
            filled["product"] = other.product
        sources = {**device.sources, **dict.fromkeys(filled, "amd-smi")}
        joined.append(msgspec.structs.replace(device, **filled, sources=sources))
    return tuple(joined), tuple(findings)


def named(device: Device, overlay: Path | None = None) -> Device:
    """The device with its card from the catalogue, and what follows from that where the machine said nothing."""
    gpu = catalog.by_pci_id(device.pci_id, None, device.memory_total_bytes, product=device.product, overlay=overlay)
    if gpu is None:
        return device
    changes: dict[str, Any] = {"gpu": gpu.name}
    sources = dict(device.sources)
    if device.product == "AMD GPU":
        changes["product"], sources["product"] = gpu.product, "catalogue"
    if device.memory_total_bytes is None and device.partition in (None, "SPX"):
        changes["memory_total_bytes"], sources["memory_total_bytes"] = gpu.memory_bytes, "catalogue"
    if device.memory_total_bytes is None and device.compute_units and gpu.compute_units:
        shares = round(gpu.compute_units / device.compute_units)
        changes["memory_total_bytes"], sources["memory_total_bytes"] = gpu.memory_bytes // shares, "catalogue"
    if device.arch is None:
        changes["arch"], sources["arch"] = gpu.arch, "catalogue"
    return msgspec.structs.replace(device, **changes, sources=sources)


class GPUDetector:
    """Detection under the names of the product's first specification."""

    def __init__(self, root: str | Path = "/", *, overlay: Path | None = None) -> None:
        self._root = Path(root)
        self._overlay = overlay

    def detect_available_gpus(self) -> tuple[Device, ...]:
        """The AMD GPUs this process can use, in ROCm's order; empty without any."""
        return self._cluster().devices

    def get_gpu_info(self) -> dict[str, Any]:
        """The whole picture as plain data: count, name, memory per GPU (GB), and each device with its sources."""
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
        return detect(self._root, run_tools=self._root == Path("/"), overlay=self._overlay)


def _disagreements(kernel: Device, tool: Device) -> list[Finding]:
    found = []
    for field in _COMPARED:
        ours, theirs = getattr(kernel, field), getattr(tool, field)
        if ours is None or theirs is None or ours == theirs:
            continue
        if field == "memory_total_bytes" and abs(ours - theirs) <= _SAME_MEMORY_FRACTION * max(ours, theirs):
            continue
        found.append(
            Finding(
                id="HW010",
                severity="warning",
                message=f"sources disagree on {field} of {kernel.bdf}: the kernel says {ours}, amd-smi says {theirs}",
                remedy="the kernel's word is used",
            )
        )
    return found


def _visible(devices: tuple[Device, ...], environment: Mapping[str, str]) -> tuple[tuple[Device, ...], list[Finding]]:
    """What the visibility variables leave, renumbered; ROCR's list first, HIP's (or CUDA's) on what that leaves."""
    findings = []
    hip, cuda = environment.get("HIP_VISIBLE_DEVICES"), environment.get("CUDA_VISIBLE_DEVICES")
    if hip and cuda and hip != cuda:
        findings.append(
            Finding(
                id="ENV003",
                severity="error",
                message=f"HIP_VISIBLE_DEVICES={hip} and CUDA_VISIBLE_DEVICES={cuda} differ, which the engine refuses",
                remedy="unset CUDA_VISIBLE_DEVICES",
                source="vllm-project/vllm:vllm/platforms/rocm.py@v0.32.0",
            )
        )
    left = devices
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES" if hip else "CUDA_VISIBLE_DEVICES"):
        value = environment.get(name)
        if value is None or not left:
            continue
        chosen = []
        for part in value.split(","):
            if re.fullmatch(r"\s*\d+\s*", part) and int(part) < len(left):
                chosen.append(left[int(part)])
            elif part.strip().lower().startswith("gpu-"):
                chosen.extend(d for d in left if d.uuid and d.uuid.lower() == part.strip().lower()[4:])
            else:
                break
        if len(chosen) != len(left):
            findings.append(
                Finding(
                    id="ENV004",
                    severity="info",
                    message=f"{name}={value} leaves {len(chosen)} of {len(left)} GPUs",
                    remedy=f"unset {name} to plan on all of them",
                )
            )
        left = tuple(chosen)
    return tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(left)), findings


def _access(root: Path, devices: tuple[Device, ...]) -> list[Finding]:
    """Whether this process could open what ROCm opens; only asked of the live machine."""
    if root != Path("/"):
        return []
    node = Path("/dev/kfd")
    present = [path for path in Path("/sys/bus/pci/devices").glob("*") if _is_amd_gpu(path)]
    if not devices and present:
        return [
            Finding(
                id="HST004",
                severity="error",
                message=f"{len(present)} AMD GPU(s) on the PCI bus, but the amdgpu driver shows none for compute",
                evidence=", ".join(sorted(path.name for path in present)[:8]),
                remedy="install the amdgpu driver, or pass /dev/kfd and /dev/dri into the container",
            )
        ]
    if devices and not node.exists():
        return [
            Finding(
                id="HST005",
                severity="error",
                message="/dev/kfd does not exist here",
                remedy="pass it into the container: --device /dev/kfd --device /dev/dri",
            )
        ]
    if devices and not os.access(node, os.R_OK | os.W_OK):
        return [
            Finding(
                id="HST006",
                severity="error",
                message="no permission to open /dev/kfd",
                remedy="add this user to the groups render and video, then log in again",
            )
        ]
    return []


def _is_amd_gpu(path: Path) -> bool:
    kind = sysfs.text(path / "class") or ""
    return sysfs.text(path / "vendor") == "0x1002" and kind[:4] in ("0x03", "0x12")
