"""AMD GPUs in a listing of the PCI bus: `lspci`, with -nn, -n, -D, -k, -v or -mm. That they are there, and under which driver.

A listing knows neither memory nor partitions. With -k or -v it says which driver runs a card; only amdgpu makes it serve models.
Source: pciutils lspci(8); classes: pci.ids, 03 display controllers and 12 processing accelerators.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.hardware import identity
from aim_engine.hardware.cluster import UNNAMED, Device, Finding, Node
from aim_engine.hardware.drm import COMPUTE_DRIVER

NAME = "lspci"
MOST_CARDS = 512
_ADDRESS = r"(?:(?P<domain>[0-9a-f]{4,8}):)?(?P<rest>[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])"
_ENTRY = re.compile(rf"^{_ADDRESS}\s+(?P<about>\S.*)$", re.IGNORECASE)
_CLASS_NUMBER = re.compile(
    r"\[(?P<class>03[0-9a-f]{2}|12[0-9a-f]{2})\]|^\"?(?P<bare>03[0-9a-f]{2}|12[0-9a-f]{2})\"?[: ]", re.IGNORECASE
)
_CLASS_NAME = re.compile(
    r"VGA compatible controller|Display controller|3D controller|Processing accelerators?", re.IGNORECASE
)
_ID = re.compile(r"1002(?::|\]\"\s+\"[^\"]*\[)(?P<id>[0-9a-f]{4})\b", re.IGNORECASE)
_REVISION = re.compile(r"\(rev (?P<rev>[0-9a-f]{1,2})\)|\s-r(?P<short>[0-9a-f]{2})\b", re.IGNORECASE)
_MAKER = re.compile(r"Advanced Micro Devices|\bAMD\b|\bATI\b", re.IGNORECASE)
_DRIVER = re.compile(r"^\s+Kernel driver in use:\s*(\S+)", re.IGNORECASE)
_DETAIL = re.compile(r"^\s+(?:Kernel (?:driver|modules)|Subsystem:|Flags:|DeviceName:)", re.IGNORECASE)


class _Card(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    pci_id: str | None
    revision: str | None
    product: str | None
    driver: str | None


def is_one(text: str) -> bool:
    """Is this a listing with an AMD GPU, or at least one of a PCI bus?"""
    lines = [line for line in text.replace("\0", "").splitlines()[:5000] if len(line) < 2000]
    entries = [match for line in lines if (match := _ENTRY.match(line)) is not None]
    return bool(entries) and any(_is_listed(match["about"]) for match in entries)


def read(texts: Sequence[str], name: str) -> Node:
    """The GPUs of a listing that the driver amdgpu runs, or of which it does not say; the others are told. Raises: Corrupt."""
    cards: list[_Card] = []
    says_drivers = False
    for text in texts:
        if not is_one(text):
            raise Corrupt(f"{name} is no listing of a PCI bus", hint="record it with: lspci -nnk > pci.txt")
        says_drivers = says_drivers or any(_DETAIL.match(line) for line in text.splitlines())
        known = {card.address for card in cards}
        cards.extend(card for card in _cards(text) if card.address not in known)
    usable = [card for card in cards if card.driver == COMPUTE_DRIVER or (card.driver is None and not says_drivers)]
    return Node(
        name=name,
        devices=tuple(_device(index, card) for index, card in enumerate(usable)),
        findings=tuple(_findings(cards, usable, says_drivers, name)),
    )


def _cards(text: str) -> Iterator[_Card]:
    entry: re.Match[str] | None = None
    driver: str | None = None
    count = 0
    for line in [*text.replace("\0", "").splitlines(), "end"]:
        if len(line) > 2000:
            continue
        used = _DRIVER.match(line)
        if used is not None:
            driver = used[1].lower()
        elif not line.startswith((" ", "\t")):
            if entry is not None and _is_gpu(entry["about"]) and count < MOST_CARDS:
                count += 1
                yield _card(entry, driver)
            entry, driver = _ENTRY.match(line), None


def _card(entry: re.Match[str], driver: str | None) -> _Card:
    about = entry["about"]
    found, revision = _ID.search(about), _REVISION.search(about)
    product = re.search(r"\[AMD(?:/ATI)?\]\"?\s+\"?(?P<name>.*?)\s*(?:\[1002:|\(rev|\"|$)", about)
    return _Card(
        address=f"{(entry['domain'] or '0000').lower()}:{entry['rest'].lower()}",
        pci_id=found["id"].lower() if found is not None else None,
        revision=(revision["rev"] or revision["short"]).lower().zfill(2) if revision is not None else None,
        product=product["name"].strip() or None if product is not None else None,
        driver=driver,
    )


def _device(index: int, card: _Card) -> Device:
    # pci.ids names all products of an id; where the revision tells them apart, the id says more than the list.
    known = identity.of(card.pci_id, card.revision)
    found = {
        "product": None if known is not None else card.product,
        "bdf": card.address,
        "pci_id": card.pci_id,
        "revision": card.revision,
        "driver": card.driver,
    }
    return Device(
        index=index,
        gpu=None,
        product=found["product"] or UNNAMED,
        arch=None,
        bdf=card.address,
        pci_id=card.pci_id,
        revision=card.revision,
        driver=card.driver,
        sources={field: NAME for field, value in found.items() if value is not None},
    )


def _findings(cards: Sequence[_Card], usable: Sequence[_Card], says_drivers: bool, name: str) -> Iterator[Finding]:
    if not cards:
        yield Finding(id="HW030", severity="warning", message=f"{name} shows no AMD GPU", evidence=NAME)
    for card in cards:
        if card in usable:
            continue
        known = identity.of(card.pci_id, card.revision)
        what = card.product or (known.product if known is not None else f"PCI id {card.pci_id}")
        if card.driver is None:
            message, remedy = f"{what} is present, but no driver runs it", "install the amdgpu driver, or load it"
        else:
            message = f"{what} runs under the driver {card.driver}, which ROCm cannot use"
            remedy = "only cards under amdgpu serve models"
        yield Finding(id="HST004", severity="error", message=message, evidence=card.address, remedy=remedy)
    if usable and not says_drivers:
        yield Finding(
            id="HW035",
            severity="info",
            message="a listing of the PCI bus says that GPUs are there, not that a driver runs them nor what memory they have free",
            evidence=NAME,
            remedy="record lspci -nnk, or better amd-smi static --json",
        )


def _is_listed(about: str) -> bool:
    """Does this look like what lspci says of any device?"""
    return bool(
        re.search(
            r"\[[0-9a-f]{4}\]:? |^\"?[0-9a-f]{4}\"?: [0-9a-f]{4}:|: .*\b(?:Corp|Inc|Ltd|Devices)|^\"",
            about,
            re.IGNORECASE,
        )
    )


def _is_gpu(about: str) -> bool:
    is_display = _CLASS_NUMBER.search(about) is not None or _CLASS_NAME.search(about) is not None
    return is_display and (_ID.search(about) is not None or _MAKER.search(about) is not None)
