"""All checks over the facts of one host."""

from __future__ import annotations

from aim_engine.doctor import access, arrangement, cards, detected, kernel, limits
from aim_engine.doctor.host import Host
from aim_engine.doctor.report import Check, Diagnosis, Open, Problem, Symptom, Unknown
from aim_engine.hardware.cluster import Cluster

CHECKS: tuple[Check, ...] = tuple(
    sorted(
        (*access.CHECKS, *kernel.CHECKS, *limits.CHECKS, *cards.CHECKS, *arrangement.CHECKS, *detected.CHECKS),
        key=lambda each: each.id,
    )
)
"""Every check, by id."""
_ORDER = {"error": 0, "warning": 1, "info": 2}


def examine(host: Host) -> Diagnosis:
    """What is wrong with the host, worst first; what could not be told; and what is fine."""
    problems: list[Problem] = []
    unknown: list[Open] = []
    elsewhere: list[Open] = []
    fine: list[str] = []
    for check in CHECKS:
        answers = list(check.run(host))
        for answer in answers:
            if isinstance(answer, Symptom):
                problems.append(_problem(check, answer))
            elif isinstance(answer, Unknown):
                unknown.append(Open(id=check.id, asks=check.asks, why=answer.why))
            elif not host.sys_shown:
                unknown.append(Open(id=check.id, asks=check.asks, why="the recording shows nothing of /sys"))
            else:
                elsewhere.append(Open(id=check.id, asks=check.asks, why=answer.why))
        if not answers:
            fine.append(check.id)
    known = {check.id for check in CHECKS}
    problems.extend(
        Problem(
            id=finding.id,
            severity=finding.severity,
            message=finding.message,
            evidence=finding.evidence,
            effect="",
            fix=(f"# {finding.remedy}",) if finding.remedy else (),
            source=finding.source,
        )
        for finding in host.node.findings
        if finding.id not in known
    )
    problems.sort(key=lambda each: (_ORDER[each.severity], each.id))
    return Diagnosis(
        host=host.node.name,
        hardware=Cluster(origin="detected", nodes=(host.node,)).describe(),
        kernel=host.kernel,
        driver=host.node.driver_version,
        rocm=host.node.rocm_version,
        breaks_serving=any(each.severity == "error" for each in problems),
        problems=tuple(problems),
        unknown=tuple(unknown),
        not_applicable=tuple(elsewhere),
        fine=tuple(fine),
    )


def _problem(check: Check, symptom: Symptom) -> Problem:
    return Problem(
        id=check.id,
        severity=symptom.severity or check.severity,
        message=symptom.message,
        evidence=symptom.evidence,
        effect=check.effect,
        fix=symptom.fix,
        source=check.source,
    )
