"""How the host's kernel and processor are set: what AMD asks for on machines that serve."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aim_engine.doctor.host import Host
from aim_engine.doctor.report import Answer, NotHere, Severity, Symptom, Unknown, check, kernel_parameters
from aim_engine.hardware import kfd
from aim_engine.units import format_bytes

_MI300X = "ROCm/ROCm:docs/how-to/system-optimization/mi300x.rst@e396b48"
_WORKLOAD = "ROCm/ROCm:docs/how-to/rocm-for-ai/inference-optimization/workload.rst@e396b48"
_WITHHELD_FRACTION = 0.1
_SWAPPED_BYTES = 2**30
_LITTLE_FREE_FRACTION = 0.1
_LOG: tuple[tuple[str, str, Severity, str], ...] = (
    (
        r"(?:AMD-Vi|DMAR).*IO_PAGE_FAULT|DMAR:.*fault",
        "the IOMMU stopped a GPU's access to memory (IO_PAGE_FAULT)",
        "error",
        "# add iommu=pt to the kernel's command line and reboot",
    ),
    (
        r"amdgpu.*(?:poison (?:is )?(?:consumed|created)|uncorrectable hardware error)",
        "a GPU met an uncorrectable memory error",
        "error",
        "# drain this host, reboot, and run AMD's memory test before it serves again",
    ),
    (r"amdgpu.*reset.*failed|ASIC reset failed", "resetting a GPU failed", "error", "sudo reboot"),
    (r"amdgpu.*GPU reset begin", "a GPU was reset", "warning", "sudo dmesg | grep -i amdgpu"),
    (
        r"amdgpu.*bad pages? .*(?:reach|exceed)\w* .*threshold",
        "a GPU lost as many memory pages as it may",
        "error",
        "# have the card replaced",
    ),
    (
        r"amdgpu.*(?:hw_init|sw_init) of IP block .*fail",
        "a part of a GPU did not start",
        "error",
        "sudo modprobe -r amdgpu && sudo modprobe amdgpu",
    ),
    (
        r"amdgpu.*(?:ring \S+ timeout|fence wait loop timeout)",
        "work on a GPU hung",
        "warning",
        "sudo dmesg | grep -i amdgpu",
    ),
    (
        r"amdgpu.*\[gfxhub\d*\] .*page fault",
        "a program read memory of a GPU that is not its own",
        "warning",
        "sudo dmesg | grep -i amdgpu",
    ),
    (r"GPU has fallen off the bus|amdgpu.*device lost from bus", "a GPU left the bus", "error", "sudo reboot"),
    (
        r"Out of memory: Killed process|oom-kill:",
        "the kernel killed a program for want of memory",
        "warning",
        "# give the engine's group more memory: docker run --memory, or the pod's limit",
    ),
    (
        r"\bMachine [Cc]heck|mce: \[Hardware Error\]",
        "the processor reported a hardware error",
        "warning",
        "sudo ras-mc-ctl --summary",
    ),
)
"""Pattern of a kernel message -> what it means. Classes as in amd/node-scraper's analyzer of the kernel's log."""


@check(
    "HST001",
    "Is automatic NUMA balancing off?",
    severity="warning",
    effect="GPUs can stall until pages that they use have been moved",
    source=f"{_MI300X}; amd/skills:skills/serving-llms-on-instinct@0a8a3e5",
)
def numa_balancing(host: Host) -> Iterator[Answer]:
    """AMD asks for kernel.numa_balancing = 0 on machines with GPUs."""
    if not host.node.devices:
        yield NotHere(why="no AMD GPU under the driver")
    elif host.numa_balancing is None:
        yield Unknown(why="/proc/sys/kernel/numa_balancing cannot be read")
    elif host.numa_balancing != 0:
        yield Symptom(
            message="automatic NUMA balancing is on",
            evidence=f"kernel.numa_balancing = {host.numa_balancing}",
            fix=(
                "sudo sysctl -w kernel.numa_balancing=0",
                "echo kernel.numa_balancing=0 | sudo tee /etc/sysctl.d/90-gpu.conf",
            ),
        )


@check(
    "HST002",
    "Does the IOMMU pass the GPUs' own addresses through?",
    severity="warning",
    effect="several GPUs can hang when they talk to each other, and copies are slower",
    source=f"{_MI300X}; amd/skills:staging/rocm-doctor/reference.md@0a8a3e5",
)
def iommu(host: Host) -> Iterator[Answer]:
    """The groups of the cards say it best; else the command line."""
    packages = {kfd.package_of(device.bdf) if device.bdf else str(device.index) for device in host.serving}
    if len(packages) < 2:
        yield NotHere(why="fewer than two AMD GPUs")
        return
    translated = sorted(
        card.address or card.name for card in host.cards if card.iommu_type and card.iommu_type.startswith("DMA")
    )
    passed = any(card.iommu_type == "identity" for card in host.cards)
    words = (host.command_line or "").split()
    off = {"iommu=off", "amd_iommu=off", "intel_iommu=off"} & set(words)
    wrong = bool(translated)
    evidence = f"iommu group of {translated[0]}: translated" if translated else "kernel command line without iommu=pt"
    if not translated and not passed:
        if host.iommus == 0 or off or "iommu=pt" in words or "iommu.passthrough=1" in words:
            return
        if host.command_line is None:
            yield Unknown(why="neither the IOMMU groups nor /proc/cmdline are shown")
            return
        wrong = True
    if wrong:
        intel = host.node.cpu is not None and host.node.cpu.vendor == "GenuineIntel"
        options = "intel_iommu=on iommu=pt" if intel else "iommu=pt"
        yield Symptom(
            message="the IOMMU translates the GPUs' addresses",
            evidence=evidence,
            fix=kernel_parameters(options),
        )


@check(
    "HST003",
    "Is PCIe access control (ACS) off on the bridges between GPUs?",
    severity="warning",
    effect="traffic between two GPUs takes the way over the processor",
    source=_WORKLOAD,
)
def acs(host: Host) -> Iterator[Answer]:
    """Bridges that send peer traffic up."""
    if len(host.cards) < 2:
        yield NotHere(why="fewer than two cards")
        return
    bridges = {bridge.address: bridge for card in host.cards for bridge in card.bridges or ()}
    on = sorted(address for address, bridge in bridges.items() if bridge.redirects)
    if on:
        yield Symptom(
            message=f"{len(on)} PCIe bridge{'s' * (len(on) > 1)} above the GPUs redirect peer traffic (ACS)",
            evidence=", ".join(on[:6]) + (" ..." if len(on) > 6 else ""),
            fix=(
                *(f"sudo setpci -s {address} ECAP_ACS+0x6.w=0000" for address in on),
                "# lasts until the next boot; or switch ACS off in the BIOS",
            ),
        )
    elif not bridges:
        yield Unknown(why="the tree does not show which bridges the GPUs hang on")
    elif any(bridge.redirects is None for bridge in bridges.values()):
        yield Unknown(why="the configuration space of the bridges is for root only")


@check(
    "HST014",
    "Does the processor run at full clock?",
    severity="info",
    effect="the engine's scheduler, which runs between GPU steps, is slower",
    source=_MI300X,
)
def governor(host: Host) -> Iterator[Answer]:
    """The governor, or the preference that takes its place under active drivers."""
    if not host.node.devices:
        yield NotHere(why="no AMD GPU under the driver")
    elif not host.governors:
        yield NotHere(why="the kernel does not scale the processor's clock")
    elif host.governors != ("performance",):
        saving = [each for each in host.energy_preferences if each in ("power", "balance_power")]
        lazy = "powersave" in host.governors and (saving or not host.energy_preferences)
        if lazy or any(card.instinct for card in host.cards):
            yield Symptom(
                message=f"the processor's governor is {', '.join(host.governors)}",
                evidence="".join(f"preference {each}" for each in saving[:1]),
                fix=("sudo cpupower frequency-set -g performance",),
                severity="warning" if lazy else None,
            )


@check(
    "HST015",
    "Are the processor's deep sleep states off?",
    severity="info",
    effect="waking takes longer than a small step on the GPU",
    source=_MI300X,
)
def idle_states(host: Host) -> Iterator[Answer]:
    """AMD asks for C2 to be off on Instinct hosts."""
    if not any(card.instinct for card in host.cards):
        yield NotHere(why="no Instinct card")
    elif not host.idle_states:
        yield NotHere(why="the kernel offers no sleep states here")
    elif any(state.enabled and state.name == "C2" for state in host.idle_states):
        yield Symptom(
            message="the processor may enter the sleep state C2",
            fix=("sudo cpupower idle-set -d 2",),
        )


@check(
    "HST016",
    "Is memory free of reserved huge pages?",
    severity="warning",
    effect="the reserved memory is lost for weights and page cache",
    source="Linux Documentation/admin-guide/mm/hugetlbpage; no engine asks for reserved or transparent huge pages",
)
def huge_pages(host: Host) -> Iterator[Answer]:
    """Huge pages that were reserved and that nobody uses."""
    free, size, total = (host.memory.get(name) for name in ("HugePages_Free", "Hugepagesize", "MemTotal"))
    if free is None or size is None or not total:
        yield Unknown(why="/proc/meminfo does not say")
    elif free * size > _WITHHELD_FRACTION * total:
        yield Symptom(
            message=f"{format_bytes(free * size)} of {format_bytes(total)} are reserved as huge pages that nobody uses",
            evidence=f"HugePages_Free {free}",
            fix=("sudo sysctl -w vm.nr_hugepages=0",),
        )


@check(
    "HST017",
    "May programs reserve more memory than there is?",
    severity="warning",
    effect="mapping a checkpoint or a GPU's memory can fail although memory is free",
    source="Linux Documentation/mm/overcommit-accounting",
)
def overcommit(host: Host) -> Iterator[Answer]:
    """Strict accounting counts mappings that are never touched."""
    if host.overcommit is None:
        yield Unknown(why="/proc/sys/vm/overcommit_memory cannot be read")
    elif host.overcommit == 2:
        yield Symptom(
            message="the kernel accounts for memory strictly",
            evidence="vm.overcommit_memory = 2",
            fix=("sudo sysctl -w vm.overcommit_memory=0",),
        )


@check(
    "HST018",
    "Does the host run without swapping?",
    severity="warning",
    effect="the engine waits for the disk",
    source="Linux Documentation/filesystems/proc (meminfo); thresholds by judgement: 1 GiB swapped, 10 % available",
)
def swapping(host: Host) -> Iterator[Answer]:
    """Much in swap while hardly any memory is left."""
    names = ("SwapTotal", "SwapFree", "MemAvailable", "MemTotal")
    total, free, available, memory = (host.memory.get(name) for name in names)
    if total is None or free is None or available is None or not memory:
        yield Unknown(why="/proc/meminfo does not say")
    elif total - free > _SWAPPED_BYTES and available < _LITTLE_FREE_FRACTION * memory:
        yield Symptom(
            message=f"{format_bytes(total - free)} are swapped out and {format_bytes(available)} of memory are left",
            fix=("ps -eo pid,rss,comm --sort=-rss | head", "# stop what is not needed"),
        )


@check(
    "HST019",
    "Is the clock in step?",
    severity="info",
    effect="figures and logs of several hosts cannot be compared, and certificates may be refused",
    source="adjtimex(2)",
)
def clock(host: Host) -> Iterator[Answer]:
    """The kernel's own word on its clock."""
    if host.clock_synchronised is None:
        yield Unknown(why="only a live machine can say" if not host.live else "the kernel does not answer")
    elif not host.clock_synchronised and host.container.kind is None:
        yield Symptom(message="the clock is not synchronised", fix=("sudo timedatectl set-ntp true",))


@check(
    "HST020",
    "Is the kernel's log free of GPU and memory faults?",
    severity="warning",
    effect="depends on the fault",
    source="amd/node-scraper: classes of its kernel log analyzer@c393416",
)
def kernel_log(host: Host) -> Iterator[Answer]:
    """One answer for each kind of fault, with how often and an example."""
    if host.kernel_log is None:
        yield Unknown(why="the kernel's log is for root only" if host.live else "no kernel log in the recording")
        return
    lines = host.kernel_log.splitlines()
    for pattern, meaning, severity, fix in _LOG:
        matching = [line for line in lines if re.search(pattern, line)]
        if matching:
            example = re.sub(r"^(?:\d+,\d+,\d+,[^;]*;|\[[^\]]*\]\s*)", "", matching[-1].strip())[:160]
            yield Symptom(
                message=f"{meaning}, {len(matching)} time{'s' * (len(matching) > 1)}",
                evidence=example,
                fix=(fix,),
                severity=severity,
            )


CHECKS = (
    numa_balancing,
    iommu,
    acs,
    governor,
    idle_states,
    huge_pages,
    overcommit,
    swapping,
    clock,
    kernel_log,
)
