"""The words of a diagnosis: what a check asks, what it may answer, and the document that the answers make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from aim_engine.doctor.host import Host

Severity = Literal["error", "warning", "info"]
"""error: serving breaks. warning: it is slower or more fragile than it should be. info: good to know."""


class Symptom(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong."""

    message: str
    evidence: str = ""
    fix: tuple[str, ...] = ()
    """Commands in the order to run them; a line that begins with # is advice where no command does it."""
    severity: Severity | None = None
    """Where this case is worse or milder than the check's usual severity."""


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """What the check needed and could not read. Never counted as fine."""

    why: str


class NotHere(msgspec.Struct, frozen=True, kw_only=True):
    """Why the question does not arise on this host."""

    why: str


Answer = Symptom | Unknown | NotHere


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One question to the facts of a host. A run that yields nothing means that all is well."""

    id: str
    asks: str
    severity: Severity
    effect: str
    """What a host suffers where the answer is no."""
    source: str
    run: Callable[[Host], Iterator[Answer]]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A symptom with the check that found it."""

    id: str
    severity: Severity
    message: str
    evidence: str
    effect: str
    fix: tuple[str, ...]
    source: str


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """A check without a verdict, and why."""

    id: str
    asks: str
    why: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/diagnosis/v1"):
    """Everything `doctor` has to say about one host."""

    host: str
    hardware: str
    """Such as `8 x MI300X`, or `no GPU (CPU only)`."""
    kernel: str | None
    driver: str | None
    rocm: str | None
    breaks_serving: bool
    """True when a problem is an error."""
    problems: tuple[Problem, ...]
    unknown: tuple[Open, ...]
    """Checks that lacked what they had to read."""
    not_applicable: tuple[Open, ...]
    fine: tuple[str, ...]
    """Ids of the checks that found nothing wrong."""


def check(id: str, asks: str, *, severity: Severity, effect: str, source: str) -> Callable[..., Check]:  # noqa: A002
    """Make a check of a function from facts to answers."""

    def decorate(run: Callable[[Host], Iterator[Answer]]) -> Check:
        return Check(id=id, asks=asks, severity=severity, effect=effect, source=source, run=run)

    return decorate


def kernel_parameters(options: str) -> tuple[str, ...]:
    """Commands that add options to the kernel's command line, for both families of distributions."""
    return (
        f"sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{options} /' /etc/default/grub && sudo update-grub",
        f"# on Fedora, RHEL and their kin: sudo grubby --update-kernel=ALL --args='{options}'",
        "sudo reboot",
    )
