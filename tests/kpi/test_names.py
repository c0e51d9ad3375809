"""The vocabulary of figures."""

from __future__ import annotations

from aim_engine.kpi import measures, names
from aim_engine.kpi.figure import Target
from aim_engine.kpi.formula import measures_of


def test_every_name_is_unique_and_ends_in_its_unit_where_it_has_one() -> None:
    assert len(names.BY_NAME) == len(names.ALL)
    endings = {"ms": "_ms", "tok/s": "tok_s", "requests/s": "_s", "fraction": "_fraction", "score": "_score"}
    for kpi in names.ALL:
        assert endings.get(kpi.unit, "") in kpi.name
        assert kpi.meaning


def test_engine_metrics_carry_their_engines_prefix_and_no_suffix() -> None:
    for measure in measures.ENGINE:
        for family in measure.families:
            assert family.startswith((*measures.ENGINE_PREFIXES, "process_"))
            assert not family.endswith(("_count", "_sum", "_bucket"))


def test_every_measure_of_a_figure_exists_and_every_figure_has_a_formula_or_is_an_evaluation() -> None:
    for kpi in names.ALL:
        if kpi.formula is None:
            assert kpi.kind == "evaluation"
        else:
            assert set(measures_of(kpi.formula)) <= set(measures.BY_NAME)


def test_every_kind_of_figure_the_product_promises_is_there() -> None:
    asked = (
        "output_tok_s requests_s ttft_ms tpot_ms itl_ms e2e_ms gpu_busy_fraction gpu_memory_fraction gpu_memory_peak_fraction "
        "accuracy_score response_quality_score goodput_requests_s waiting kv_usage_fraction prefix_hit_fraction preemptions "
        "acceptance_fraction power_w tokens_per_joule usd_per_million_tokens thermal_throttled_fraction ecc_uncorrectable"
    )
    assert set(asked.split()) <= set(names.BY_NAME)


def test_the_figures_of_the_first_description_are_all_there() -> None:
    assert {kpi.seed_name for kpi in names.ALL if kpi.seed_name} == {
        "Tokens per Second",
        "Requests per Second",
        "First Token Latency",
        "End-to-End Latency",
        "GPU Utilization",
        "Memory Utilization",
        "Model Accuracy",
        "Response Quality",
    }
    assert names.BY_NAME["ttft_ms"].target == Target(
        high=100.0, source="the product's first description: below 100 ms for most models"
    )
