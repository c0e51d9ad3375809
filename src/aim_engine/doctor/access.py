"""Can the engine reach the GPUs: driver, device files, groups, what hides them, and what it runs on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aim_engine.doctor.host import Host
from aim_engine.doctor.report import Answer, NotHere, Symptom, Unknown, check
from aim_engine.hardware import drm

_GROUPS = ("render", "video")
_DOCKER = "ROCm/rocm-install-on-linux:docs/how-to/docker.rst@f297bde"
_SKILLS = "amd/skills:staging/rocm-doctor/reference.md@0a8a3e5"
_DRM_MAJOR = 226
_MINIMUM_ROCM = {"gfx950": (7, 0), "gfx1150": (7, 0, 2), "gfx1151": (7, 0, 2)}
_MINIMUM_ROCM_OTHERS = (6, 3)
"""Source: vllm-project/vllm:docs/getting_started/installation/gpu.rocm.inc.md@v0.33.0."""


@check(
    "HST004",
    "Does the amdgpu driver run every AMD GPU of the machine?",
    severity="error",
    effect="the engine sees no GPU",
    source=_SKILLS,
)
def driver(host: Host) -> Iterator[Answer]:
    """GPUs on the bus that no compute driver has, and what keeps it away."""
    if host.pci_gpus is None:
        if not host.node.devices:
            yield Unknown(why="/sys/bus/pci is not shown")
        return
    if not host.pci_gpus and not host.node.devices:
        yield NotHere(why="no AMD GPU on the PCI bus")
    if any(gpu.driver == drm.COMPUTE_DRIVER for gpu in host.pci_gpus) and not host.node.devices:
        if not host.cards:
            yield Symptom(
                message="the amdgpu driver holds a GPU, but neither /sys/class/drm nor /sys/class/kfd shows it",
                fix=("sudo dmesg | grep -iE 'amdgpu|kfd'",),
            )
        return
    bare = [gpu for gpu in host.pci_gpus if gpu.driver is None]
    if bare:
        yield Symptom(
            message=f"{len(bare)} AMD GPU{'s' * (len(bare) > 1)} on the PCI bus without a driver",
            evidence=", ".join(gpu.address for gpu in bare[:8])
            + (f"; amdgpu is kept from loading by {', '.join(host.blacklisted_in)}" if host.blacklisted_in else ""),
            fix=_load(host),
            severity=None if not host.node.devices else "warning",
        )
    for gpu in host.pci_gpus:
        if gpu.driver is not None and gpu.driver.startswith("vfio"):
            yield Symptom(
                message=f"{gpu.address} is set aside for a virtual machine (driver {gpu.driver})",
                fix=(
                    f"echo {gpu.address} | sudo tee /sys/bus/pci/drivers/{gpu.driver}/unbind",
                    f"echo {gpu.address} | sudo tee /sys/bus/pci/drivers/amdgpu/bind",
                ),
                severity="warning" if host.node.devices else None,
            )


def _load(host: Host) -> tuple[str, ...]:
    mend = [
        f"# remove {place} from the kernel's command line (/etc/default/grub), then: sudo update-grub"
        if place.startswith("kernel parameter")
        else f"sudo sed -i '/amdgpu/s/^/#/' {place}"
        for place in host.blacklisted_in
    ]
    if host.container.kind:
        return ("# on the host, not in this container:", *mend, "sudo modprobe amdgpu")
    return (
        *mend,
        "sudo modprobe amdgpu",
        "# if there is no such module: install the amdgpu driver (ROCm installation guide)",
    )


@check(
    "HST011",
    "Is there an AMD GPU at all?",
    severity="info",
    effect="models can still be served on the processor, much slower",
    source="/sys/bus/pci, /sys/class/drm, /sys/class/kfd",
)
def any_gpu(host: Host) -> Iterator[Answer]:
    """What a machine without a GPU should hear."""
    if host.node.devices or host.pci_gpus:
        return
    if host.pci_gpus is None and not host.cards:
        yield Unknown(why="/sys/bus/pci is not shown")
        return
    cpu = host.node.cpu
    serving = (
        f"{cpu.cores} cores, {', '.join(f for f in cpu.features if f.startswith(('avx', 'amx', 'neon', 'sve'))) or 'no vector unit known'}"
        if cpu is not None
        else ""
    )
    expected = (
        ("# a card is expected? pass it into the container: --device /dev/kfd --device /dev/dri",)
        if host.container.kind
        else (
            "lspci -nn -d 1002:",
            "# nothing listed although a card is fitted: reseat it, check its power, enable above 4G decoding in the BIOS",
        )
    )
    yield Symptom(
        message="no AMD GPU on the PCI bus; models can be served on the CPU",
        evidence=serving,
        fix=("aim-engine plan MODEL --gpus cpu", *expected),
    )


@check(
    "HST005",
    "Are /dev/kfd and a render node there?",
    severity="error",
    effect="ROCm finds no GPU",
    source=_DOCKER,
)
def device_files(host: Host) -> Iterator[Answer]:
    """The files that a container has to be given."""
    if not host.node.devices:
        yield NotHere(why="no AMD GPU under the driver")
        return
    if host.device_files is None:
        yield Unknown(why="/dev is not shown")
        return
    paths = [file.path for file in host.device_files]
    missing = [
        name
        for name, there in (
            ("/dev/kfd", "/dev/kfd" in paths),
            ("/dev/dri/renderD*", any(path.startswith("/dev/dri/renderD") for path in paths)),
        )
        if not there
    ]
    if missing:
        yield Symptom(
            message=f"{' and '.join(missing)} {'does' if len(missing) == 1 else 'do'} not exist here",
            evidence=f"in a container ({host.container.kind})" if host.container.kind else "",
            fix=("# give them to the container: docker run --device /dev/kfd --device /dev/dri ...",)
            if host.container.kind
            else ("sudo modprobe amdgpu", "sudo udevadm trigger"),
        )


@check(
    "HST006",
    "May this user open the GPUs?",
    severity="error",
    effect="ROCm finds no GPU, or reports permission denied",
    source=f"{_DOCKER}; ROCm/container-toolkit:docs/container-runtime@192fe8e",
)
def permission(host: Host) -> Iterator[Answer]:
    """Permission as the kernel gives it; in a recording only the groups speak."""
    if not host.node.devices:
        yield NotHere(why="no AMD GPU under the driver")
        return
    files = host.device_files or ()
    closed = [file for file in files if file.openable is False]
    if closed:
        ids = sorted({file.group_id for file in closed if file.group_id})
        fix = (
            (f"# start the container with {' '.join(f'--group-add {number}' for number in ids)}",)
            if host.container.kind and ids
            else ("sudo usermod -aG render,video $USER", "# then log in again")
        )
        yield Symptom(
            message=f"this user may not open {', '.join(file.path for file in closed[:4])}",
            evidence=f"{closed[0].owner}; uid {host.user.uid}, groups {', '.join(map(str, host.user.group_ids))}"
            if host.user
            else closed[0].owner,
            fix=fix,
        )
    elif files and all(file.openable for file in files):
        return
    elif host.user is None or host.groups is None:
        yield Unknown(why="neither /dev nor the user's groups are shown")
    elif host.user.uid != 0:
        lacking = [name for name in _GROUPS if name in host.groups and host.groups[name] not in host.user.group_ids]
        if "render" in lacking or ("render" not in host.groups and "video" in lacking):
            yield Symptom(
                message=f"uid {host.user.uid} is not in the group{'s' * (len(lacking) > 1)} {' and '.join(lacking)}",
                evidence="/proc/self/status, /etc/group",
                fix=(f"sudo usermod -aG {','.join(lacking)} USER", "# then log in again"),
                severity="warning",
            )


@check(
    "HST026",
    "Do the container's device rules allow the GPUs?",
    severity="error",
    effect="opening a GPU fails with 'operation not permitted', whatever the file's mode",
    source="Linux Documentation/admin-guide/cgroup-v1/devices",
)
def device_rules(host: Host) -> Iterator[Answer]:
    """Control groups of version 1 list what may be opened."""
    if not host.node.devices or host.container.kind is None:
        yield NotHere(why="not in a container" if host.node.devices else "no AMD GPU under the driver")
        return
    rules = host.container.device_rules
    if rules is None:
        if not any(file.openable for file in host.device_files or ()):
            yield Unknown(why="control groups of version 2 do not show their device rules")
        return
    for name, major in (("/dev/dri", _DRM_MAJOR), ("/dev/kfd", host.kfd_major)):
        if major is not None and not any(re.match(rf"(a|c) (\*|{major}):", rule) for rule in rules):
            yield Symptom(
                message=f"the container may not use {name} (character device {major})",
                evidence=f"devices.list has {len(rules)} rules",
                fix=("# docker run --device /dev/kfd --device /dev/dri ...",),
            )


@check(
    "ENV010",
    "Does an environment variable take compute units or memory away?",
    severity="warning",
    effect="less of the card is used than plans count on",
    source="ROCm documentation, setting the number of CUs; HIP environment variables",
)
def masks(host: Host) -> Iterator[Answer]:
    """Variables that limit what the runtime uses of a card."""
    if not host.live and not host.environment:
        yield Unknown(why="a recording has no environment")
    for name in ("HSA_CU_MASK", "HIP_DEVICE_MEMORY_LIMIT"):
        if name in host.environment:
            yield Symptom(
                message=f"{name} is set", evidence=f"{name}={host.environment[name][:80]}", fix=(f"unset {name}",)
            )


@check(
    "HST012",
    "Is the installed ROCm new enough for the cards?",
    severity="warning",
    effect="an engine started outside of a container does not know the card",
    source="vllm-project/vllm:docs/getting_started/installation/gpu.rocm.inc.md@v0.33.0",
)
def rocm(host: Host) -> Iterator[Answer]:
    """The ROCm below /opt against the least that each target needs."""
    if not host.node.devices:
        yield NotHere(why="no AMD GPU under the driver")
        return
    if host.node.rocm_version is None:
        yield NotHere(why="no ROCm below /opt/rocm; engine images bring their own")
        return
    numbers = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", host.node.rocm_version)
    if numbers is None:
        yield Unknown(why=f"/opt/rocm/.info/version reads {host.node.rocm_version[:40]}")
        return
    have = tuple(int(each or 0) for each in numbers.groups())
    for arch in sorted({device.arch for device in host.node.devices if device.arch is not None}):
        needed = _MINIMUM_ROCM.get(arch, _MINIMUM_ROCM_OTHERS)
        if have < needed:
            yield Symptom(
                message=f"{arch} needs ROCm {'.'.join(map(str, needed))} or newer, {host.node.rocm_version} is installed",
                evidence="/opt/rocm/.info/version",
                fix=("# use an engine image, which brings its own ROCm, or install a newer one",),
            )


@check(
    "HST013",
    "Is there something to run engine images with?",
    severity="info",
    effect="`up --target docker` cannot start the engine's image",
    source="vllm-project/vllm:docs/deployment/docker.md@v0.33.0",
)
def container_engine(host: Host) -> Iterator[Answer]:
    """Docker, Podman or containerd, where GPUs are to be served from this host."""
    if not host.node.devices or host.container.kind is not None:
        yield NotHere(why="inside a container" if host.container.kind else "no AMD GPU under the driver")
    elif host.container_engines is None:
        yield Unknown(why="/usr and /run are not shown")
    elif not host.container_engines:
        yield Symptom(
            message="neither Docker, Podman nor containerd is installed",
            fix=("# install one: https://docs.docker.com/engine/install/",),
        )


CHECKS = (driver, any_gpu, device_files, permission, device_rules, masks, rocm, container_engine)
