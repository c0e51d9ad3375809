"""What a processor can do: the figures that planning needs, each with its origin."""

from __future__ import annotations

from typing import Literal

import msgspec

from aim_engine.errors import InvalidInput, MissingFigure

Kind = Literal["instinct", "radeon", "apu", "cpu"]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a figure comes from; `kind` says how much to trust it."""

    kind: Literal["vendor", "measured", "derived", "unsourced"]
    """vendor: the maker printed it; measured: command, versions, date in `source`; derived: formula in `source`;
    unsourced: from a reference table whose origin was not recorded, to be confirmed."""
    source: str
    checked: str
    """ISO date on which somebody compared the figure with the source."""


class Links(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GPU-to-GPU links inside a node. Rates are one direction."""

    kind: Literal["xgmi", "pcie"]
    link_bytes_s: int
    """One link, one direction. Unit: bytes per second."""
    peers: int
    """How many other devices have a direct link; the mesh is full when peers = devices in the node - 1."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device as a process sees it (an MI250 card is two): figures per device, not per card.

    A CPU is described by the same figures with `kind="cpu"`, made by `hardware.cpu`, so that planning asks one
    vocabulary. Rates are dense peak figures of the vendor; efficiency lives in `perf`.
    """

    name: str
    """Short public name, as in `8xMI300X`."""
    product: str
    """Marketing name as tools print it, such as `AMD Instinct MI300X`."""
    arch: str
    """LLVM target such as gfx942; for a CPU its widest vector level, such as x86-64-v3 or x86-64-v4-bf16."""
    kind: Kind
    memory_bytes: int
    compute_units: int | None = None
    compute_dies: int | None = None
    """Compute dies (XCC) of the device: how many partitions CPX makes of it."""
    bandwidth_bytes_s: int | None = None
    """Peak memory bandwidth. Unit: bytes per second."""
    compute_flop_s: dict[str, int] = {}
    """Dense matrix peak by data type: bf16, fp16, fp8, int8, fp6, fp4. Unit: FLOP per second.
    A type that is absent has no matrix instruction on this device."""
    fp8_format: Literal["fnuz", "ocp"] | None = None
    links: Links | None = None
    pcie_generation: int | None = None
    power_w: int | None = None
    devices_per_card: int = 1
    devices_per_node: int = 8
    """Largest usual node; bounds what `--gpus NxNAME` may ask for in one node."""
    partitions: tuple[str, ...] = ()
    """Compute partition modes the device offers, such as SPX, CPX."""
    unified_memory_bytes: int | None = None
    """Most that the driver can be told to give the GPU of the system's own memory (GTT), on the largest machine."""
    shared_memory: bool = False
    """True where the memory is shared with the operating system (APU, CPU)."""
    held_bytes: int = 0
    """Of the memory, what others hold now; 0 for a card of the catalogue."""
    pci_ids: tuple[str, ...] = ()
    """PCI device ids, lower-case hexadecimal without 0x; `744c:c8` where the revision tells products of one id apart."""
    aliases: tuple[str, ...] = ()
    provenance: dict[str, Provenance] = {}
    """One entry per figure, keyed by field name (`compute_flop_s.fp8` where one type differs)."""

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0:
            raise InvalidInput(f"{self.name}: memory_bytes must be positive, not {self.memory_bytes}")

    @property
    def free_fraction(self) -> float:
        """The share of the memory that nobody holds."""
        return max(0.0, 1 - self.held_bytes / self.memory_bytes)

    @property
    def file(self) -> str:
        """The catalogue file that holds this entry, for messages."""
        return f"data/gpus/{self.name}.yaml"

    def bandwidth(self) -> int:
        """Peak memory bandwidth in bytes per second. Raises: MissingFigure."""
        if self.bandwidth_bytes_s is None:
            raise MissingFigure(f"{self.name} bandwidth_bytes_s", file=self.file)
        return self.bandwidth_bytes_s

    def compute(self, dtype: str) -> int:
        """Dense matrix peak for `dtype` in FLOP per second. Raises: MissingFigure."""
        if dtype not in self.compute_flop_s:
            raise MissingFigure(f"{self.name} {dtype} compute_flop_s", file=self.file)
        return self.compute_flop_s[dtype]
