"""Which of a machine's GPUs a process with given variables would see, as ROCm and the engine read them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aim_engine.hardware.cluster import Device, Finding


def visible(devices: tuple[Device, ...], environment: Mapping[str, str]) -> tuple[tuple[Device, ...], list[Finding]]:
    """What the visibility variables leave: ROCR's list first, HIP's (or CUDA's) on what that leaves.

    An empty ROCR list means none; an empty HIP or CUDA list counts as unset, as the engine has it.
    Source: ROCm documentation, GPU isolation techniques; vllm-project/vllm:vllm/platforms/rocm.py@v0.32.0.
    """
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
    override = environment.get("HSA_OVERRIDE_GFX_VERSION")
    if override and devices:
        findings.append(
            Finding(
                id="ENV005",
                severity="warning",
                message=f"HSA_OVERRIDE_GFX_VERSION={override} makes ROCm report another target than the card has",
                remedy="unset it, unless the engine was built for that target",
            )
        )
    left = devices
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES" if hip else "CUDA_VISIBLE_DEVICES"):
        value = environment.get(name)
        if value is None or not left or (not value and name != "ROCR_VISIBLE_DEVICES"):
            continue
        chosen = _chosen(left, value)
        if len(chosen) != len(left):
            findings.append(
                Finding(
                    id="ENV004",
                    severity="info",
                    message=f"{name}={value} leaves {len(chosen)} of {len(left)} GPUs",
                    remedy=f"unset {name} to plan on all of them",
                )
            )
        left = chosen
    return left, findings


def _chosen(devices: tuple[Device, ...], value: str) -> tuple[Device, ...]:
    """Devices of a list of indices or GPU-<uuid>; the first that is not one ends it, as in ROCm."""
    found: list[Device] = []
    for part in (part.strip() for part in value.split(",")):
        if re.fullmatch(r"[0-9]{1,6}", part) and int(part) < len(devices):
            matching = [devices[int(part)]]
        elif part.lower().startswith("gpu-"):
            matching = [d for d in devices if d.uuid and d.uuid.lower() == part.lower()[4:]]
        else:
            matching = []
        if not matching or matching[0] in found:
            break
        found.extend(matching)
    return tuple(found)
