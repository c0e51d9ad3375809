"""The cards we know: one YAML file each, found by name, alias, PCI id or arch."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from aim_engine import facts
from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Gpu

FOLDER = "gpus"
_REQUEST = re.compile(
    r"^\s*(?:(?P<count>-?\d+)\s*[x*×]\s*)?(?P<name>[A-Za-z][\w .+-]*?)(?:\s*:\s*(?P<after>-?\d+))?\s*$"
)


def names(overlay: Path | None = None) -> tuple[str, ...]:
    """Names of all cards, sorted."""
    return tuple(sorted(_paths(overlay)))


def load(name: str, overlay: Path | None = None) -> Gpu:
    """One card by name or alias, whatever the case. Raises: InvalidInput with close names."""
    plain = name.strip()
    path = facts.find(f"{FOLDER}/{plain.upper()}.yaml", overlay) if re.fullmatch(r"[\w.+-]+", plain) else None
    if path is not None:
        return facts.read(path, Gpu)
    wanted = _normal(plain)
    paths = _paths(overlay)
    for known, path in paths.items():
        if _normal(known) == wanted:
            return facts.read(path, Gpu)
    for path in paths.values():
        gpu = facts.read(path, Gpu)
        if wanted in (_normal(gpu.product), *map(_normal, gpu.aliases)):
            return gpu
    close = difflib.get_close_matches(plain.upper(), paths, n=3, cutoff=0.5)
    raise InvalidInput(
        f"'{name}' is not a card in the catalogue",
        why=f"close names: {', '.join(close)}" if close else f"known: {', '.join(sorted(paths))}",
        hint=f"use one of these, or describe it in {FOLDER}/{plain or 'NAME'}.yaml of your catalogue folder",
    )


def parse_request(text: str, overlay: Path | None = None) -> tuple[int, Gpu]:
    """`8xMI300X`, `MI300X`, `8 x mi300x`, `MI300X:8` -> how many of which card. Raises: InvalidInput."""
    match = _REQUEST.match(text)
    if match is None or (match["count"] and match["after"]):
        raise InvalidInput(f"'{text}' is not a number of cards", hint="write for example 8xMI300X")
    gpu = load(match["name"], overlay)
    count = int(match["count"] or match["after"] or 1)
    if count < 1:
        raise InvalidInput(f"'{text}' asks for {count} cards", hint=f"write for example 1x{gpu.name}")
    if count > gpu.devices_per_node:
        raise InvalidInput(
            f"'{text}' asks for {count} devices in one node",
            why=f"a node holds at most {gpu.devices_per_node} {gpu.name}",
            hint=f"aim-engine plan MODEL --gpus {gpu.devices_per_node}x{gpu.name}",
        )
    return count, gpu


def identify(
    pci_id: str | None, *, product: str = "", memory_bytes: int | None = None, overlay: Path | None = None
) -> Gpu | None:
    """The card with this PCI device id; where several share the id, the one of this product or nearest memory.

    An RX 7900 XT and an XTX, for one, differ only in revision and memory. None when no card has the id.
    """
    if pci_id is None:
        return None
    wanted = pci_id.lower().removeprefix("0x")
    sharing = [gpu for gpu in _all(overlay) if wanted in gpu.pci_ids]
    named = [gpu for gpu in sharing if product and _normal(gpu.name) in _normal(product)]
    if named:
        return max(named, key=lambda gpu: len(gpu.name))
    if memory_bytes is None or len(sharing) < 2:
        return sharing[0] if len(sharing) == 1 else None
    return min(sharing, key=lambda gpu: abs(gpu.memory_bytes - memory_bytes))


def by_arch(arch: str, overlay: Path | None = None) -> tuple[Gpu, ...]:
    """All cards of one device target."""
    return tuple(gpu for gpu in _all(overlay) if gpu.arch == arch)


def _all(overlay: Path | None) -> list[Gpu]:
    return [facts.read(path, Gpu) for _, path in sorted(_paths(overlay).items())]


def _paths(overlay: Path | None) -> dict[str, Path]:
    """Name -> file; the overlay's file wins."""
    found: dict[str, Path] = {}
    for root in (facts.BUNDLED, overlay):
        if root is not None:
            found.update({path.stem: path for path in (root / FOLDER).glob("*.yaml")})
    return found


def _normal(name: str) -> str:
    return re.sub(r"[\s_.-]+", "", name).lower().removeprefix("amd").removeprefix("instinct").removeprefix("radeon")
