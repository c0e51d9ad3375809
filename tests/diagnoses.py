"""A diagnosis whose advice a test carries out."""

from __future__ import annotations

from aim_engine.advise.diagnose import Change, Diagnosis
from aim_engine.advise.knowledge import Verify


def advice(change: Change, kpi: str = "queue_ms") -> Diagnosis:
    return Diagnosis(
        id="S1",
        about="scheduling",
        title="all slots are taken",
        severity="warning",
        evidence="requests wait",
        change=change,
        effect="",
        verify=Verify(kpi=kpi, want="falls"),
        confidence="high",
        source="test",
    )
