"""Amounts as Kubernetes writes them: 64Gi, 500m, 8."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_SUFFIXES = {
    "": 1,
    "m": Decimal("0.001"),
    **{unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_QUANTITY = re.compile(r"([+-]?[0-9]*\.?[0-9]+)([eE][+-]?[0-9]+|[A-Za-z]*)")
_MOST = 2**63


def quantity(text: str) -> Decimal | None:
    """A Kubernetes quantity such as `64Gi`, `8` or `500m` as a number; None when it is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    try:
        if match[2][1:].lstrip("+-").isdecimal():
            return Decimal(match[1] + match[2])
        return Decimal(match[1]) * _SUFFIXES[match[2]] if match[2] in _SUFFIXES else None
    except InvalidOperation:
        return None


def whole(value: object) -> int | None:
    """A quantity as a whole number that is not negative and that an API server would take; None for anything else."""
    if value is None or isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    found = quantity(str(value)) if len(str(value)) <= 40 else None
    if found is None or not found.is_finite() or not 0 <= found < _MOST or found != found.to_integral_value():
        return None
    return int(found)
