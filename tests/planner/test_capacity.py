"""How many of what: open counts, several cards, money and energy."""

from __future__ import annotations

from pathlib import Path

import pytest

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.errors import InvalidInput, MissingFigure
from aim_engine.planner.plan import Plan
from aim_engine.workflow import Request
from aim_engine.workload import Slo, Workload

SETTINGS = all_settings.load({"offline": True})


def plan(gpus: str, model: str = "Qwen/Qwen3-32B", **changes: object) -> Plan:
    return workflow.choose(Request(model=model, gpus=gpus, **changes), SETTINGS)  # type: ignore[arg-type]


def test_an_open_count_grows_with_the_rate_and_spans_nodes() -> None:
    counts = []
    for rate in (1.0, 20.0, 200.0):
        got = plan("anyxMI300X", workload=Workload(rate_requests_s=rate), slo=Slo(tpot_ms=40.0))
        assert got.chosen is not None
        assert got.chosen.estimate.meets_slo
        assert got.chosen.estimate.requests_s.value == pytest.approx(rate, rel=0.01)
        assert len(got.inputs.cluster.devices) == got.chosen.recipe.gpu_count
        counts.append(got.chosen.recipe.gpu_count)
    assert counts == sorted(counts)
    assert counts[-1] > 8


def test_one_replica_less_would_not_carry_the_rate() -> None:
    workload = Workload(rate_requests_s=40.0)
    got = plan("anyxMI300X", workload=workload, slo=Slo(tpot_ms=40.0)).chosen
    assert got is not None
    assert got.recipe.replicas > 1
    each = 40.0 / (got.recipe.replicas - 1)
    alone = plan(
        f"{got.recipe.parallelism.world_size}xMI300X", workload=Workload(rate_requests_s=each), slo=Slo(tpot_ms=40.0)
    )
    same_split = [
        c
        for c in (alone.chosen, *alone.alternatives)
        if c is not None and c.recipe.parallelism == got.recipe.parallelism and c.estimate.meets_slo
    ]
    assert not same_split


def test_the_cheapest_card_is_found_among_those_with_a_price() -> None:
    got = plan("any", objective="cost", workload=Workload(rate_requests_s=10.0), slo=Slo(tpot_ms=40.0))
    assert got.chosen is not None
    assert got.chosen.running.usd_h is not None
    for other in got.alternatives:
        assert other.running.usd_h is not None
        assert other.recipe.gpu != got.chosen.recipe.gpu
    assert any(r.recipe == "MI355X" and "price of MI355X" in r.reason for r in got.rejected)


def test_a_users_prices_turn_the_choice(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    offer = "{{gpu: {}, usd_h: {}, terms: owned, provider: us, date: 2026-11-01, source: our books}}"
    mine.write_text(f"currency: USD\noffers: [{offer.format('MI300X', 9.0)}, {offer.format('MI210', 0.1)}]\n")
    got = plan("any", objective="cost", prices=mine)
    assert got.chosen is not None
    assert got.chosen.recipe.gpu == "MI210"


def test_any_looks_at_every_card_and_names_those_that_fell_out() -> None:
    got = plan("any", objective="energy", model="deepseek-ai/DeepSeek-R1")
    assert got.chosen is not None
    assert got.chosen.running.output_tokens_per_joule is not None
    lost = {rejection.recipe for rejection in got.rejected}
    assert "RX7900XTX" in lost


def test_limits_on_devices_and_money_are_kept_or_said_to_be_too_tight() -> None:
    few = plan("8xMI300X", max_gpus=2)
    assert few.chosen is not None
    assert few.chosen.recipe.gpu_count <= 2
    cheap = plan("8xMI300X", max_usd_h=3.0)
    assert cheap.chosen is not None
    assert cheap.chosen.running.usd_h is not None
    assert cheap.chosen.running.usd_h <= 3.0
    none = plan("8xMI300X", max_usd_h=0.5)
    assert none.chosen is None
    assert any("USD an hour" in rejection.reason for rejection in none.rejected)
    assert none.hint == "relax it: --max-usd-h 1.50"
    assert plan("8xMI300X", max_usd_h=1.5).chosen is not None


def test_limits_on_devices_that_stand_in_the_way_of_a_time_are_named_with_what_would_do() -> None:
    question: dict[str, object] = {"workload": Workload(concurrency=256), "slo": Slo(tpot_ms=45.0)}
    tight = plan("8xMI300X", "Qwen/Qwen3-32B", max_gpus=1, **question)
    assert tight.chosen is None
    fallback = next(step for step in tight.steps if step.name == "fallback")
    offer = next(detail for detail in fallback.details if detail.startswith("--max-gpus "))
    count = int(offer.split()[1].rstrip(":"))
    enough = plan("8xMI300X", "Qwen/Qwen3-32B", max_gpus=count, **question).chosen
    assert enough is not None
    assert enough.recipe.gpu_count <= count


@pytest.mark.parametrize(
    ("gpus", "workload"),
    [
        ("anyxMI300X", Workload(rate_requests_s=1e9)),
        ("8xMI300X", Workload(rate_requests_s=1e9)),
        ("anyxMI300X", Workload(concurrency=10**9)),
    ],
)
def test_loads_beyond_all_reason_are_answered_in_words(gpus: str, workload: Workload) -> None:
    got = plan(gpus, workload=workload)
    assert got.chosen is None
    fallback = next(step for step in got.steps if step.name == "fallback")
    assert "more than 4,096 replicas" in fallback.summary


def test_money_without_a_price_and_energy_without_a_power_are_not_guessed() -> None:
    with pytest.raises(MissingFigure, match="price of W7900"):
        plan("4xW7900", max_usd_h=3.0)
    with pytest.raises(MissingFigure, match="power_w"):
        plan("cpu", model="Qwen/Qwen2.5-0.5B-Instruct", objective="energy")


def test_an_open_count_of_an_unknown_card_names_close_ones() -> None:
    with pytest.raises(InvalidInput, match="MI999"):
        plan("anyxMI999")


def test_a_card_without_an_image_is_chosen_only_when_no_other_can() -> None:
    got = plan("any", workload=Workload(rate_requests_s=40.0), slo=Slo(ttft_ms=500.0, tpot_ms=30.0))
    assert got.chosen is not None
    assert "VER011" not in {finding.id for finding in got.findings}
    assert any(r.recipe == "MI455X" and "no kernels for gfx1250" in r.reason for r in got.rejected)
    alone = plan("anyxMI455X", workload=Workload(rate_requests_s=40.0), slo=Slo(ttft_ms=500.0, tpot_ms=30.0))
    assert alone.chosen is not None
    assert "VER011" in {finding.id for finding in alone.findings}


def test_the_best_card_for_a_rate_is_simulated_too() -> None:
    got = plan("any", workload=Workload(rate_requests_s=12.0), slo=Slo(tpot_ms=45.0, tpot_percentile=90)).chosen
    assert got is not None
    assert got.estimate.simulated is not None
    assert got.estimate.simulated.tpot_ms.p90 <= 45.0
