"""The vocabulary of figures."""

from __future__ import annotations

from aim_engine.kpi import names


def test_every_name_is_unique_and_ends_in_its_unit_where_it_has_one() -> None:
    assert len(names.BY_NAME) == len(names.ALL)
    endings = {"ms": "_ms", "tok/s": "tok_s", "requests/s": "_s", "fraction": "_fraction", "score": "_score"}
    for kpi in names.ALL:
        assert endings.get(kpi.unit, "") in kpi.name
        assert kpi.meaning


def test_engine_metrics_carry_their_engines_prefix_and_no_suffix() -> None:
    for kpi in names.ALL:
        for metric in kpi.metrics:
            assert metric.startswith(tuple(names.ENGINE_PREFIXES))
            assert not metric.endswith(("_total", "_count", "_sum", "_bucket"))


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
    assert names.BY_NAME["ttft_ms"].target == names.Target(
        high=100.0, source="the product's first description: below 100 ms for most models"
    )
