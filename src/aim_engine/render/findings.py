"""The words the checks share."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from aim_engine.hardware.cluster import Finding
from aim_engine.hardware.quantity import quantity
from aim_engine.render.document import whole


def error(identity: str, message: str, remedy: str, where: str) -> Finding:
    """Something that does not start or does not work; `where` stands in the evidence."""
    return Finding(id=identity, severity="error", message=message, remedy=remedy, evidence=where)


def warning(identity: str, message: str, remedy: str, where: str) -> Finding:
    """Something that works but is slow, fragile or unsafe."""
    return Finding(id=identity, severity="warning", message=message, remedy=remedy, evidence=where)


def info(identity: str, message: str, remedy: str, where: str) -> Finding:
    """Something to know."""
    return Finding(id=identity, severity="info", message=message, remedy=remedy, evidence=where)


def amount(value: Any) -> Decimal | None:
    """`value` as a Kubernetes quantity; None when it is none."""
    return None if value is None or isinstance(value, bool) else quantity(str(value))


def is_port(value: Any) -> bool:
    """`value` is a whole number that a port can have."""
    return whole(value) is not None and 1 <= value <= 65535
