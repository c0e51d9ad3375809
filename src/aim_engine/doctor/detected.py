"""What detection itself remarks, with what it costs and the command that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from aim_engine.doctor.host import Host
from aim_engine.doctor.report import Answer, Check, NotHere, Severity, Symptom, Unknown
from aim_engine.hardware.cluster import Finding

_KFD = "Linux drivers/gpu/drm/amd/amdkfd/kfd_topology.c"
_VLLM = "vllm-project/vllm:vllm/platforms/rocm.py@v0.33.0"
_PARTITIONS = "ROCm/amdgpu-docs: GPU partitioning; ROCm/k8s-device-plugin"


def _no_command(finding: Finding) -> tuple[str, ...]:
    return (f"# {finding.remedy}",) if finding.remedy else ()


def _repartition(finding: Finding) -> tuple[str, ...]:
    """Leave the mode and enter it again, which makes the driver show its partitions anew."""
    package, mode = finding.message.split(" ", 1)[0], finding.evidence.rsplit(" ", 1)[-1]
    file = f"/sys/bus/pci/devices/{package}/current_compute_partition"
    return (
        "sudo dmesg | grep -iE 'amdgpu|kfd|xcp'",
        f"echo SPX | sudo tee {file} && echo {mode} | sudo tee {file}",
    )


def _unset(finding: Finding) -> tuple[str, ...]:
    return tuple(
        f"unset {name}"
        for name in ("CUDA_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
        if name in finding.remedy or (finding.message.startswith(name) and finding.id != "ENV003")
    )


def _open(finding: Finding) -> tuple[str, ...]:
    return ("sudo dmesg | grep -iE 'amdgpu|kfd'", *_no_command(finding))


def _remark(
    id: str,  # noqa: A002
    asks: str,
    *,
    severity: Severity,
    effect: str,
    source: str,
    fix: Callable[[Finding], tuple[str, ...]] = _no_command,
    open: bool = False,  # noqa: A002 - it leaves the question open
    otherwise: Callable[[Host], Answer | None] | None = None,
) -> Check:
    """A check that passes on what detection found under the same id.

    `open` marks remarks on what could not be read; `otherwise` says why the absence of a remark proves nothing.
    """

    def run(host: Host) -> Iterator[Answer]:
        if not any(finding.id == id for finding in host.node.findings):
            answer: Answer | None = NotHere(why="no AMD GPU under the driver")
            if host.node.devices:
                answer = otherwise(host) if otherwise is not None else None
            if answer is not None:
                yield answer
        for finding in host.node.findings:
            if finding.id != id:
                continue
            if open:
                yield Unknown(why=f"{finding.message}{f' ({finding.evidence})' if finding.evidence else ''}")
            else:
                yield Symptom(
                    message=finding.message,
                    evidence=finding.evidence,
                    fix=fix(finding),
                    severity=_severity(host, finding),
                )

    return Check(id=id, asks=asks, severity=severity, effect=effect, source=source, run=run)


def _severity(host: Host, finding: Finding) -> Severity:
    """Hiding every GPU breaks serving; a card without figures is the catalogue's gap, not the host's fault."""
    if finding.id == "ENV004" and not host.node.devices:
        return "error"
    return "info" if finding.id == "HW009" else finding.severity


def _no_environment(host: Host) -> Answer | None:
    return None if host.live else Unknown(why="a recording has no environment")


def _not_asked(host: Host) -> Answer | None:
    asked = any({"amd-smi", "amdsmi", "rocm-smi"} & {*device.sources.values()} for device in host.node.devices)
    return None if asked else Unknown(why="no tool was asked, or none is installed")


def _not_live(host: Host) -> Answer | None:
    return None if host.live else NotHere(why="a recording has no tools to ask")


def _alone(host: Host) -> Answer | None:
    return NotHere(why="one GPU") if len(host.serving) < 2 else None


def _ungrouped(host: Host) -> Answer | None:
    return _alone(host) or (
        NotHere(why="no card with xGMI links") if all(device.hive is None for device in host.node.devices) else None
    )


CHECKS = (
    _remark(
        "ENV003",
        "Do the visibility variables agree?",
        severity="error",
        effect="the engine refuses to start",
        source=_VLLM,
        fix=_unset,
        otherwise=_no_environment,
    ),
    _remark(
        "ENV004",
        "Do the visibility variables leave all GPUs?",
        severity="info",
        effect="hidden GPUs serve nothing; when none is left the engine does not start",
        source="ROCm documentation, GPU isolation techniques",
        fix=_unset,
        otherwise=_no_environment,
    ),
    _remark(
        "ENV005",
        "Does ROCm report the target the card has?",
        severity="warning",
        effect="kernels of another target crash or compute nonsense",
        source="amd/skills:staging/rocm-doctor/reference.md@0a8a3e5",
        fix=_unset,
        otherwise=_no_environment,
    ),
    _remark(
        "HW001",
        "Can all nodes of the topology be read?",
        severity="info",
        effect="nothing is known about them",
        source=_KFD,
        open=True,
    ),
    _remark(
        "HW002",
        "Does every partition show?",
        severity="warning",
        effect="compute and memory of the missing partition lie idle",
        source=_PARTITIONS,
        fix=_repartition,
    ),
    _remark(
        "HW003",
        "Does the kernel say memory, target and compute units of every device?",
        severity="info",
        effect="the catalogue's figures stand in",
        source=_KFD,
        open=True,
    ),
    _remark(
        "HW004",
        "Can every AMD card compute?",
        severity="warning",
        effect="the card serves nothing",
        source=_KFD,
        fix=_open,
    ),
    _remark(
        "HW007",
        "Is the processor's own graphics out of the way?",
        severity="info",
        effect="the engine takes the first device, which may be the slow one",
        source="amd/skills:staging/rocm-doctor/reference.md@0a8a3e5",
    ),
    _remark(
        "HW008",
        "Has the GPU memory of its own?",
        severity="info",
        effect="the operating system and other programs take from the same memory",
        source=_KFD,
    ),
    _remark(
        "HW009",
        "Is every card in the catalogue?",
        severity="info",
        effect="plans leave the card out",
        source="data/gpus",
    ),
    _remark(
        "HW010",
        "Do the kernel and the installed tools agree?",
        severity="warning",
        effect="one of them is wrong about the card; the kernel's word is used",
        source=_KFD,
        otherwise=_not_asked,
    ),
    _remark(
        "HW011",
        "Are all GPUs in one xGMI group?",
        severity="warning",
        effect="ranks in different groups talk over PCIe",
        source=_KFD,
        otherwise=_ungrouped,
    ),
    _remark(
        "HW031",
        "Can the tool's devices be matched with the kernel's?",
        severity="warning",
        effect="what only the tool knows of them is left out",
        source=_KFD,
        otherwise=_not_live,
    ),
    _remark(
        "HW032",
        "Does the kernel show every device that the tool lists?",
        severity="warning",
        effect="a device that is left out serves nothing",
        source=_KFD,
        otherwise=_not_live,
    ),
    _remark(
        "HW033",
        "Do the installed tools answer?",
        severity="warning",
        effect="what the kernel's files do not say stays unknown; a tool that hangs points to a driver in trouble",
        source="ROCm/amdsmi README",
        otherwise=_not_live,
    ),
)
