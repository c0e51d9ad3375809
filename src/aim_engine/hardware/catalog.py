"""The cards we know: one YAML file each, found by name, alias, PCI id or arch; and their partitions, computed from them."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import msgspec

from aim_engine import facts
from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Gpu, Provenance

FOLDER = "gpus"
PARTITIONS = {"DPX": 2, "TPX": 3, "QPX": 4}
"""Partitions a device is split into by mode; SPX is the whole device, CPX one partition for each compute die."""
_SAME_MEMORY_FRACTION = 0.15
"""What a driver shows is up to this much less than the card's nominal memory (inline ECC takes 1/16, a VF some more)."""
_REQUEST = re.compile(
    r"^\s*(?:(?P<count>[-+]?\d+)\s*[x*×]\s*)?(?P<name>[A-Za-z0-9][\w .+-]*?)(?:\s*[:=]\s*(?P<after>[-+]?\d+))?\s*$",
    re.IGNORECASE,
)
_PARTITION_NAME = re.compile(r"^(?P<name>.+)-(?P<mode>DPX|TPX|QPX|CPX)$", re.IGNORECASE)


def names(overlay: Path | None = None) -> tuple[str, ...]:
    """Names of all cards, sorted."""
    return tuple(sorted(_paths(overlay)))


def load(name: str, overlay: Path | None = None) -> Gpu:
    """One card by name or alias, whatever the case; `MI300X-CPX` is one partition of it. Raises: InvalidInput with close names."""
    found = _find(name, overlay)
    if found is not None:
        return found
    split = _PARTITION_NAME.match(name.strip())
    if split is not None:
        return partition(load(split["name"], overlay), split["mode"])
    paths = _paths(overlay)
    close = _close(name, paths)
    raise InvalidInput(
        f"'{name}' is not a card in the catalogue",
        why=None if close else f"known: {', '.join(sorted(paths))}",
        hint=(f"did you mean {' or '.join(close)}? " if close else "")
        + f"A card that is missing can be described in {FOLDER}/NAME.yaml of your catalogue folder",
    )


def parse_request(text: str, overlay: Path | None = None) -> tuple[int, Gpu]:
    """`8xMI300X`, `MI300X`, `8 x mi300x`, `MI300X:8` -> how many of which card. Raises: InvalidInput."""
    match = _REQUEST.match(text)
    if match is None or (match["count"] and match["after"]):
        raise InvalidInput(f"'{text}' is not a number of cards", hint="write for example 8xMI300X")
    digits = match["count"] or match["after"] or "1"
    try:
        gpu = load(match["name"], overlay)
    except InvalidInput:
        # A name may begin like a count: 7900xtx is one card, not 7900 of a card called tx.
        if not match["count"] or (whole := _find(text, overlay)) is None:
            raise
        return 1, whole
    count = int(digits) if len(digits) <= 9 else 10**9
    if count < 1:
        raise InvalidInput(f"'{text}' asks for {count} cards", hint=f"write for example 1x{gpu.name}")
    if count > gpu.devices_per_node:
        raise InvalidInput(
            f"'{text}' asks for {digits} devices in one node",
            why=f"a node holds at most {gpu.devices_per_node} {gpu.name}",
            hint=f"aim-engine plan MODEL --gpus {gpu.devices_per_node}x{gpu.name}",
        )
    return count, gpu


def partition(gpu: Gpu, mode: str) -> Gpu:
    """One compute partition of a device, as its own kind of GPU: its share of everything. Raises: InvalidInput.

    Partitions share memory and compute evenly whatever the memory mode. They have no xGMI port of their own, so no links figure.
    Source: AMD, ROCm documentation, GPU partitioning.
    """
    wanted = mode.upper()
    if wanted == "SPX":
        return gpu
    count = gpu.compute_dies if wanted == "CPX" else PARTITIONS.get(wanted)
    if wanted not in gpu.partitions or count is None:
        offered = ", ".join(gpu.partitions) or "none"
        raise InvalidInput(f"{gpu.name} has no compute partition mode {wanted}", why=f"its modes: {offered}")
    share = Provenance(kind="derived", source=f"1/{count} of {gpu.name}", checked=_checked(gpu))
    figures = {
        "memory_bytes": gpu.memory_bytes // count,
        "compute_units": gpu.compute_units // count if gpu.compute_units else None,
        "compute_dies": gpu.compute_dies // count if gpu.compute_dies else None,
        "bandwidth_bytes_s": gpu.bandwidth_bytes_s // count if gpu.bandwidth_bytes_s else None,
        "compute_flop_s": {dtype: flop_s // count for dtype, flop_s in gpu.compute_flop_s.items()},
        "power_w": gpu.power_w // count if gpu.power_w else None,
        "devices_per_node": gpu.devices_per_node * count,
    }
    kept = {key: value for key, value in gpu.provenance.items() if key in ("fp8_format", "pcie_generation", "pci_ids")}
    return msgspec.structs.replace(
        gpu,
        name=f"{gpu.name}-{wanted}",
        product=f"{gpu.product} ({wanted} partition)",
        links=None,
        partitions=(),
        aliases=(),
        provenance={**kept, **dict.fromkeys((key for key, value in figures.items() if value), share)},
        **figures,
    )


def by_pci_id(
    pci_id: str | None,
    revision: str | None = None,
    memory_bytes: int | None = None,
    *,
    compute_units: int | None = None,
    product: str = "",
    overlay: Path | None = None,
) -> Gpu | None:
    """The one card with this PCI device id; None when no card has it or when what is known does not tell the sharers apart.

    Ids are shared: an RX 7900 XT and an XTX differ in revision and memory, an MI250 and an MI250X in compute units.
    """
    found = sharing(pci_id, revision, overlay)
    if len(found) == 1 and revision is None and all(":" in entry for entry in found[0].pci_ids):
        # One revision of an id that other products share, and the revision is not known.
        return found[0] if _names(found[0], product) else None
    if len(found) > 1 and product:
        named = [gpu for gpu in found if _names(gpu, product)]
        found = tuple(named) or found
    if len(found) > 1 and compute_units is not None:
        found = tuple(gpu for gpu in found if gpu.compute_units in (None, compute_units)) or found
    if len(found) > 1 and memory_bytes is not None:
        found = tuple(
            gpu for gpu in found if 0 <= gpu.memory_bytes - memory_bytes < _SAME_MEMORY_FRACTION * gpu.memory_bytes
        )
    return found[0] if len(found) == 1 else None


def by_product(
    product: str, memory_bytes: int | None = None, *, compute_units: int | None = None, overlay: Path | None = None
) -> Gpu | None:
    """The one card that a tool or list of names calls `product`; None when no card, or more than one, may be meant.

    Names are those of pci.ids ("Navi 31 [Radeon RX 7900 XT/7900 XTX]", of which some tools keep 31 characters), of profilers
    ("MI300X_A1") and of drivers ("AMD Instinct MI300X VF"). Memory and compute units decide between cards of one name, and may
    show that another of the same family is meant: an "RX 7900 XT" with 24 GiB is an XTX.
    """
    exact = _find(product, overlay)
    if exact is not None and _fits(exact, memory_bytes, compute_units):
        return exact
    wanted = _spoken_names(product)
    cards = [_read(path) for _, path in sorted(_paths(overlay).items())]
    spoken = {card.name: {_normal(name) for name in (card.name, card.product, *card.aliases)} for card in cards}
    named = [card for card in cards if wanted & spoken[card.name]]
    family = [card for card in cards if any(own.startswith(name) for name in wanted for own in spoken[card.name])]
    for offered in (named, family):
        fitting = [card for card in offered if _fits(card, memory_bytes, compute_units)]
        if fitting:
            return fitting[0] if len(fitting) == 1 else None
    return None


def sharing(pci_id: str | None, revision: str | None = None, overlay: Path | None = None) -> tuple[Gpu, ...]:
    """All cards with this PCI device id, or only those of the revision where one has it. Sorted by name."""
    if not pci_id:
        return ()
    wanted = pci_id.lower().removeprefix("0x")
    exact = f"{wanted}:{revision.lower().removeprefix('0x').zfill(2)}" if revision else None
    needle = wanted.encode()
    found = []
    for _, path in sorted(_paths(overlay).items()):
        if needle in path.read_bytes().lower():
            gpu = _read(path)
            if any(entry.partition(":")[0] == wanted for entry in gpu.pci_ids):
                found.append(gpu)
    if exact is None:
        return tuple(found)
    matching = [gpu for gpu in found if exact in gpu.pci_ids]
    return tuple(matching or [gpu for gpu in found if wanted in gpu.pci_ids])


def by_arch(arch: str, overlay: Path | None = None) -> tuple[Gpu, ...]:
    """All cards of one device target, sorted by name."""
    return tuple(gpu for _, path in sorted(_paths(overlay).items()) if (gpu := _read(path)).arch == arch)


def _find(name: str, overlay: Path | None) -> Gpu | None:
    plain = name.strip()
    path = (
        facts.find(f"{FOLDER}/{plain.upper()}.yaml", overlay)
        if re.fullmatch(r"[\w.+-]{1,64}", plain, re.ASCII)
        else None
    )
    if path is not None:
        return _read(path)
    wanted = _normal(plain)
    paths = sorted(_paths(overlay).items())
    for known, path in paths:
        if _normal(known) == wanted:
            return _read(path)
    for _, path in paths:
        gpu = _read(path)
        if wanted in (_normal(gpu.product), *map(_normal, gpu.aliases)):
            return gpu
    return None


def _paths(overlay: Path | None) -> dict[str, Path]:
    """Name -> file; the overlay's file wins."""
    found: dict[str, Path] = {}
    for root in (facts.BUNDLED, overlay):
        if root is not None:
            found.update({path.stem: path for path in (root / FOLDER).glob("*.yaml")})
    return found


def _read(path: Path) -> Gpu:
    try:
        modified = path.stat().st_mtime_ns
    except OSError as err:
        raise InvalidInput(f"{path} cannot be read", why=err.strerror) from err
    return _parsed(path, modified)


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, modified_ns: int) -> Gpu:  # noqa: ARG001 - a changed file is read again
    return facts.read(path, Gpu)


def _names(gpu: Gpu, product: str) -> bool:
    return bool(product) and _normal(product) in (_normal(gpu.name), _normal(gpu.product), *map(_normal, gpu.aliases))


def _fits(gpu: Gpu, memory_bytes: int | None, compute_units: int | None) -> bool:
    """Could a whole device that shows this memory and so many units be this card?"""
    if compute_units is not None and gpu.compute_units not in (None, compute_units):
        return False
    if memory_bytes is None or gpu.shared_memory:
        return True
    return 0 <= gpu.memory_bytes - memory_bytes < _SAME_MEMORY_FRACTION * gpu.memory_bytes


def _spoken_names(product: str) -> set[str]:
    """The names in a product line, without blanks and makers: alternatives apart, steppings and `VF` dropped."""
    inner = re.search(r"\[([^\]]*)", product)
    text = inner[1] if inner is not None else product
    text = re.sub(r"_[A-Z]\d$|\s+(?:VF|HF)$", "", text.strip())
    found, before = set(), ""
    for part in (each.strip() for each in text.split("/")):
        # "Radeon RX 6700/6700 XT": what follows a slash goes on after the words before the first number.
        first = re.match(r"(?P<words>[A-Za-z ]*?)\s*\d", part)
        if not before and first is not None:
            before = first["words"]
        has_words = first is None or bool(first["words"])
        found.add(_normal(part if has_words or not before else f"{before} {part}"))
    return {name for name in found if len(name) > 3}


def _checked(gpu: Gpu) -> str:
    return max((figure.checked for figure in gpu.provenance.values()), default="")


def _close(name: str, paths: dict[str, Path]) -> list[str]:
    import difflib

    by_normal = {_normal(known): known for known in sorted(paths)}
    close = difflib.get_close_matches(_normal(name), by_normal, n=3, cutoff=0.5)
    return [by_normal[each] for each in close]


def _normal(name: str) -> str:
    plain = re.sub(r"\([^)]*\)|[\s_.-]+", "", name).lower()
    for word in ("amd", "instinct", "radeon", "graphics"):
        plain = plain.replace(word, "") if plain != word else plain
    return plain
