"""What is there: nodes and the devices in them, each field with the probe that said it."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Gpu
from aim_engine.hardware.readings import Readings

UNNAMED = "AMD GPU"
"""Product of a device until somebody names it."""


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """The host processor and its memory."""

    model: str
    vendor: str
    """As the processor reports it: AuthenticAMD, GenuineIntel, an ARM implementer, or unknown."""
    architecture: str
    """Machine name such as x86_64 or aarch64."""
    sockets: int
    cores: int
    """Physical cores this process may use (cgroup quota and affinity included)."""
    threads: int
    numa_nodes: int
    memory_total_bytes: int
    """Memory this process may use: the smaller of the machine's and the cgroup's."""
    memory_available_bytes: int
    features: tuple[str, ...] = ()
    """The vector features engines ask about: avx2, avx512f, avx512_bf16, avx512_vnni, amx_tile, amx_bf16, neon, bf16, sve."""
    clock_hz: int | None = None
    """What all cores sustain: the base clock where the machine says it."""
    family: int | None = None
    """x86 family and model number, which tell vector units apart that share their features."""
    model_number: int | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers that are all called a card's memory, kept apart. Unit: bytes. None means that no source said it.

    What a process may allocate is `Device.memory_total_bytes`; these say where that comes from.
    """

    physical_bytes: int | None = None
    """Soldered to the card, or its share of a partition, by the catalogue. The driver shows less: firmware and ECC take some."""
    vram_bytes: int | None = None
    """The card's own memory as the driver shows it, of the whole package also where it is partitioned."""
    carve_out_bytes: int | None = None
    """On a processor's own graphics: system memory that the firmware set aside for them."""
    visible_bytes: int | None = None
    """What the host can address of it; 256 MiB without resizable BAR."""
    gtt_bytes: int | None = None
    """System memory that the GPU may map."""
    gtt_used_bytes: int | None = None
    kind: str | None = None
    """HBM, HBM3, GDDR6, ..."""
    bus_bits: int | None = None
    bandwidth_bytes_s: int | None = None
    """At the highest memory clock, as a tool of the machine states it."""
    ecc: bool | None = None
    """Is error correction of the memory on?"""


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """A network card of a node, as far as GPUs talk through it."""

    name: str
    bdf: str | None = None
    speed_bits_s: int | None = None
    numa_node: int | None = None
    near: int | None = None
    """Index of the device below the same PCIe switch; None where no single one is."""
    gpu_direct: bool | None = None
    """Can it reach GPU memory without passing through the host's?"""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One compute device of a node. None means unknown, never zero."""

    index: int
    """Order in which ROCm enumerates it on this node."""
    gpu: str | None
    """Name in the GPU catalogue; None when the product is not in it."""
    product: str
    arch: str | None
    bdf: str | None = None
    """PCI address domain:bus:device.function; the function is the partition number."""
    pci_id: str | None = None
    revision: str | None = None
    """PCI revision, which tells products of one id apart."""
    uuid: str | None = None
    """As the driver says it; all partitions of one package share it."""
    partition: str | None = None
    memory_partition: str | None = None
    numa_node: int | None = None
    render_minor: int | None = None
    kfd_node: int | None = None
    hive: str | None = None
    compute_units: int | None = None
    compute_dies: int | None = None
    """Of this device: 8 of a whole MI300X, 1 of its CPX partition."""
    memory_total_bytes: int | None = None
    """What processes can allocate on it."""
    memory_used_bytes: int | None = None
    """Of that, what processes hold now; plans use the rest."""
    memory: Memory | None = None
    """Where the total comes from: physical, carve-out, what the system lends."""
    shared_memory: bool = False
    """True where the memory is the system's own (APU), so that the operating system and other programs take from it."""
    power_cap_w: int | None = None
    driver: str | None = None
    integrated: bool | None = None
    """True for a processor's own graphics, whatever their memory."""
    virtual_function: bool | None = None
    """True for a card, or a part of one, that a hypervisor hands to a guest."""
    oam_id: int | None = None
    """Place on the baseboard."""
    vbios: str | None = None
    resource: str | None = None
    """In a Kubernetes cluster: what a pod asks for to get it, such as amd.com/gpu, or the device class gpu.amd.com."""
    held: bool | None = None
    """In a Kubernetes cluster: is this very device allocated? None where only their number is known."""
    readings: Readings | None = None
    """Temperatures, power and load when it was detected; None unless they were asked for."""
    sources: dict[str, str] = {}
    """Field name -> probe that said it (kfd, drm, hwmon, gpu_metrics, amdsmi, amd-smi, rocm-smi, rccl, hwloc, rocprof, lspci, pci id, catalogue, asked)."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something the user should know, with its evidence and the way out."""

    id: str
    severity: Literal["error", "warning", "info"]
    message: str
    evidence: str = ""
    remedy: str = ""
    source: str = ""


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of GPU resource that pods may ask a node for. None means that nothing said it."""

    name: str
    """amd.com/gpu, amd.com/cpx_nps4 where partitions have names of their own, or the device class gpu.amd.com."""
    capacity: int | None = None
    allocatable: int | None = None
    requested: int | None = None
    """By pods or claims that are not finished."""

    @property
    def free(self) -> int | None:
        """What another pod could still ask for."""
        if self.allocatable is None or self.requested is None:
            return None
        return max(0, self.allocatable - self.requested)


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of card as a node's labels describe it."""

    pci_id: str | None = None
    product: str | None = None
    """As the label spells it; None without one."""
    family: str | None = None
    """AI from Vega to MI300: useless for choosing a recipe."""
    compute_units: int | None = None
    memory_bytes: int | None = None
    """Rounded to GiB by the labeller."""
    driver_version: str | None = None
    count: int | None = None
    virtual_function: bool | None = None
    """True for a part of a card that a hypervisor hands to a guest."""


class Scheduling(msgspec.Struct, frozen=True, kw_only=True):
    """What Kubernetes knows of a node's GPUs."""

    resources: tuple[Resource, ...] = ()
    labelled: tuple[Labelled, ...] = ()
    ready: bool | None = None
    cordoned: bool = False
    taints: tuple[str, ...] = ()
    """Those that keep pods away, as `key=value:effect`."""

    @property
    def open(self) -> bool:
        """May new pods land here, tolerations aside?"""
        return self.ready is not False and not self.cordoned


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One machine."""

    name: str
    cpu: Cpu | None = None
    devices: tuple[Device, ...] = ()
    driver_version: str | None = None
    rocm_version: str | None = None
    guest: bool | None = None
    """Is it a virtual machine? None where nothing said it."""
    link_weights: dict[str, int] = {}
    """"i-j" (device indices, i < j) -> KFD link weight: 13 same package, 15 one xGMI step, 40 and more PCIe."""
    nics: tuple[Nic, ...] = ()
    findings: tuple[Finding, ...] = ()
    scheduling: Scheduling | None = None
    """For a node of a Kubernetes cluster; its devices are then those that pods may ask for."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cluster/v1"):
    """Everything a plan may use. `origin` says whether it was detected or asked for."""

    origin: Literal["detected", "asked"]
    nodes: tuple[Node, ...]

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices of all nodes."""
        return tuple(device for node in self.nodes for device in node.devices)

    def describe(self) -> str:
        """`8 x MI300X`, `2 x MI210 + 1 x W7900`, or `no GPU (CPU only)`."""
        names = Counter(device.gpu or device.product for device in self.devices)
        if not names:
            return "no GPU (CPU only)"
        return " + ".join(f"{count} x {name}" for name, count in sorted(names.items()))


def asked(count: int, gpu: Gpu) -> Cluster:
    """A cluster that somebody asked about rather than has: `count` whole devices of one kind, in as few nodes as hold them."""
    if count < 1:
        raise InvalidInput(f"{count}x{gpu.name}: the count must be at least 1")
    sizes = [min(gpu.devices_per_node, count - begun) for begun in range(0, count, gpu.devices_per_node)]
    names = ["asked"] if len(sizes) == 1 else [f"asked-{number}" for number in range(len(sizes))]
    nodes = tuple(Node(name=name, devices=_whole(size, gpu)) for name, size in zip(names, sizes, strict=True))
    return Cluster(origin="asked", nodes=nodes)


def _whole(count: int, gpu: Gpu) -> tuple[Device, ...]:
    return tuple(
        Device(
            index=index,
            gpu=gpu.name,
            product=gpu.product,
            arch=gpu.arch,
            compute_units=gpu.compute_units,
            memory_total_bytes=gpu.memory_bytes,
            hive="0" if gpu.links is not None and gpu.links.kind == "xgmi" else None,
            sources={"gpu": "asked", "memory_total_bytes": "catalogue"},
        )
        for index in range(count)
    )
