"""Which cards a node's labels describe. Labels survive the cards they were made for, and contradict each other.

Current labellers write `amd.com/gpu.<kind>=<value>`; on nodes with several kinds of cards, and with the prefix `beta.` on old
ones, the value is in the key: `amd.com/gpu.<kind>.<value>=<count>`. Trust: the device id first, then current over beta labels.
Source: ROCm/k8s-device-plugin:cmd/k8s-node-labeller/main.go@06c7abd.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.hardware import catalog, identity
from aim_engine.hardware.cluster import Finding, Labelled
from aim_engine.units import GIB

_KINDS = (
    "device-id",
    "product-name",
    "family",
    "vram",
    "cu-count",
    "simd-count",
    "driver-version",
    "driver-src-version",
    "compute-memory-partition",
    "mode",
)
_GPU_LABEL = re.compile(r"(?P<beta>beta\.)?amd\.com/gpu\.(?P<kind>" + "|".join(_KINDS) + r")(?:\.(?P<value>.+))?")
PARTITION_LABELS = ("amd.com/compute-memory-partition", "amd.com/gpu.compute-memory-partition")
PRESENT = re.compile(
    r"feature\.node\.kubernetes\.io/(amd-v?gpu|pci-(?:03\d\d_|12\d\d_)?1002(?:_[0-9a-f]{4})?\.present)"
)
_GENERIC = frozenset({"amd radeon graphics", "amd radeon(tm) graphics", "amd gpu", "radeon graphics"})


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the labels of one node say."""

    cards: tuple[Labelled, ...]
    partition: str | None = None
    memory_partition: str | None = None
    present: bool = False
    """Node feature discovery saw an AMD GPU on the bus."""
    findings: tuple[Finding, ...] = ()


class _Values(msgspec.Struct):
    """What the labels of one generation say of one property: value -> number of cards, None where it is not said."""

    current: dict[str, int | None] = {}
    beta: dict[str, int | None] = {}

    def best(self) -> dict[str, int | None]:
        return self.current or self.beta


def read(labels: Mapping[Any, Any], overlay: Path | None = None) -> Told:
    """The cards of a node by its labels; none when no label speaks of any."""
    values = _values(labels)
    ids = {_plain_id(value): count for value, count in values["device-id"].best().items() if _plain_id(value)}
    findings = list(_contradictions(values))
    groups: list[tuple[str | None, int | None]] = [(key, count) for key, count in sorted(ids.items()) if key]
    if not groups and any(values[kind].best() for kind in ("product-name", "vram", "cu-count", "family")):
        names = values["product-name"].best()
        counts = [count for count in (names or values["vram"].best()).values() if count is not None]
        groups = [(None, sum(counts) or None)]
    cards = tuple(_card(pci_id, count, len(groups), values, labels, findings, overlay) for pci_id, count in groups)
    mode, memory = partition_of(next((str(labels[key]) for key in PARTITION_LABELS if labels.get(key)), ""))
    if values["device-id"].beta and not values["device-id"].current:
        findings.append(
            Finding(
                id="K8S109",
                severity="info",
                message="only labels of the old labeller (beta.amd.com/) describe the cards",
                remedy="update AMD's node labeller, which also writes memory and product name",
            )
        )
    present = any(isinstance(key, str) and PRESENT.fullmatch(key) and _true(value) for key, value in labels.items())
    return Told(cards=cards, partition=mode, memory_partition=memory, present=present, findings=tuple(findings))


def speaks(key: object) -> bool:
    """Is this a label that says something of GPUs?"""
    return isinstance(key, str) and ("amd.com/" in key or key.startswith("feature.node.kubernetes.io/"))


def partition_of(text: str) -> tuple[str | None, str | None]:
    """`cpx_nps4` -> CPX, NPS4; nothing for anything else."""
    match = re.fullmatch(r"(spx|dpx|tpx|qpx|cpx)[_-](nps[1248])", text.strip().lower())
    return (match[1].upper(), match[2].upper()) if match else (None, None)


def gibibytes(text: str) -> int | None:
    """`192G` in bytes: the labeller rounds to GiB and writes G. Larger units and plain MiB as AMD's documents have them."""
    match = re.fullmatch(r"(\d{1,7})\s*(G|GB|GiB|Gi|M|MB|MiB|Mi)?", text.strip())
    if match is None or not int(match[1]):
        return None
    # A bare number is MiB where it is too large to be GiB.
    unit = (match[2] or ("M" if int(match[1]) > 4096 else "G"))[0]
    return int(match[1]) * (GIB if unit == "G" else 2**20)


def _values(labels: Mapping[Any, Any]) -> dict[str, _Values]:
    found = {kind: _Values(current={}, beta={}) for kind in _KINDS}
    keyed: dict[tuple[str, bool], dict[str, int | None]] = {}
    for key, value in labels.items():
        match = _GPU_LABEL.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            continue
        kind, beta = match["kind"], match["beta"] is not None
        if match["value"] is not None:
            number = str(value)
            count = int(number) if number.isascii() and number.isdigit() and len(number) < 6 else None
            if count != 0:
                keyed.setdefault((kind, beta), {})[match["value"]] = count
        elif value not in (None, ""):
            place = found[kind].beta if beta else found[kind].current
            place[str(value)] = None
    for (kind, beta), counts in keyed.items():
        place = found[kind].beta if beta else found[kind].current
        if not place:
            place.update(counts)
        else:
            # The plain label is the node's word; the keyed one adds how many.
            place.update({value: counts[value] for value in place if value in counts})
    for each in found.values():
        for value, count in each.current.items():
            if count is None:
                each.current[value] = each.beta.get(value)
    return found


def _card(
    pci_id: str | None,
    count: int | None,
    groups: int,
    values: Mapping[str, _Values],
    labels: Mapping[Any, Any],
    findings: list[Finding],
    overlay: Path | None,
) -> Labelled:
    """One kind of card; where labels list several values, those that belong to it by number or by the catalogue."""
    known = catalog.sharing(pci_id, overlay=overlay)
    units = _pick(values["cu-count"].best(), count, groups, [str(gpu.compute_units) for gpu in known])
    vram = _pick(values["vram"].best(), count, groups, [f"{round(gpu.memory_bytes / GIB)}G" for gpu in known])
    name = _pick(values["product-name"].best(), count, groups, [])
    product = name.replace("_", " ").strip() if name else None
    if product is not None and pci_id is not None and not _agrees(product, pci_id, overlay):
        findings.append(
            Finding(
                id="K8S102",
                severity="warning",
                message=f"the labels name {product}, but the device id {pci_id} is {_name_of(pci_id, overlay)}",
                evidence="product-name against device-id",
                remedy="the device id is used; delete the stale label",
            )
        )
        product = None
    if name is None and pci_id is not None:
        findings.append(
            Finding(
                id="K8S103",
                severity="info",
                message=f"no label names the product; by its device id {pci_id} it is {_name_of(pci_id, overlay)}",
                remedy="nothing to do: select nodes by amd.com/gpu.device-id",
            )
        )
    mode = str(labels.get("amd.com/gpu.mode") or "")
    virtual = None if pci_id is None and not mode else pci_id in identity.VIRTUAL_IDS or mode == "vf-passthrough"
    return Labelled(
        pci_id=pci_id,
        product=product,
        family=_pick(values["family"].best(), count, groups, []),
        compute_units=int(units) if units and units.isascii() and units.isdigit() and len(units) < 6 else None,
        memory_bytes=gibibytes(vram) if vram else None,
        driver_version=_pick(values["driver-version"].best(), count, groups, []),
        count=count,
        virtual_function=True if _true(labels.get("feature.node.kubernetes.io/amd-vgpu")) else virtual,
    )


def _pick(found: Mapping[str, int | None], count: int | None, groups: int, expected: Sequence[str]) -> str | None:
    """The value of one group among those of all: the only one, the one the catalogue expects, the one with its count."""
    if len(found) == 1:
        return next(iter(found))
    for value in expected:
        if value in found:
            return value
    same = [value for value, number in found.items() if number is not None and number == count]
    return same[0] if len(same) == 1 and groups > 1 else None


def _contradictions(values: Mapping[str, _Values]) -> list[Finding]:
    """Current labels against beta ones."""
    apart = [
        f"{kind} {'/'.join(sorted(each.current))} against beta {'/'.join(sorted(each.beta))}"
        for kind, each in values.items()
        if each.current and each.beta and not set(each.current) & set(each.beta)
    ]
    if not apart:
        return []
    return [
        Finding(
            id="K8S101",
            severity="warning",
            message="current and beta labels contradict each other",
            evidence="; ".join(apart),
            remedy="the current ones are used; remove the stale ones: kubectl label node NAME beta.amd.com/gpu.KIND-",
        )
    ]


def _agrees(product: str, pci_id: str, overlay: Path | None) -> bool:
    """Can a card of this id bear this name? Ids that nobody knows, and names that say nothing, contradict nothing."""
    if product.lower() in _GENERIC:
        return True
    names = [text for gpu in catalog.sharing(pci_id, overlay=overlay) for text in (gpu.name, gpu.product, *gpu.aliases)]
    known = identity.of(pci_id, None, overlay)
    if known is not None:
        names += [known.product, *known.revisions.values()]
    numbers = set(re.findall(r"[A-Za-z]*\d{2,}[A-Za-z]*", product.upper()))
    return (
        not names
        or not numbers
        or any(numbers & set(re.findall(r"[A-Za-z]*\d{2,}[A-Za-z]*", n.upper())) for n in names)
    )


def _name_of(pci_id: str, overlay: Path | None) -> str:
    cards = catalog.sharing(pci_id, overlay=overlay)
    if len(cards) == 1:
        return cards[0].product
    known = identity.of(pci_id, None, overlay)
    return known.product if known is not None else " or ".join(gpu.product for gpu in cards) or "not known"


def _plain_id(value: str) -> str | None:
    plain = value.lower().removeprefix("0x")
    return plain if re.fullmatch(r"[0-9a-f]{4}", plain) else None


def generic(product: str | None) -> bool:
    """Does a product label say nothing, such as the AMD_Radeon_Graphics of some Radeons?"""
    return product is None or product.lower() in _GENERIC


def _true(value: object) -> bool:
    return value is True or str(value).lower() == "true"
