"""Servers that only prefill beside others that only decode: each request passes through both and is counted once."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import metric_pages
from aim_engine.errors import InvalidInput
from aim_engine.kpi import formula, measures, names
from aim_engine.monitor import figures, scrape, totals, views
from aim_engine.monitor.collect import Collector, Watched
from aim_engine.monitor.history import History, Target
from aim_engine.monitor.span import Span, side_by_side
from aim_engine.render import alert_rules, rulefile
from aim_engine.render.text import yaml_document

REQUESTS, PROMPT, ANSWER = 40, 100, 11
PREFILL_S, FIRST_S, GAP_S = 0.8, 0.03, 0.02


class Server:
    """One of the two, that counts like the real one, and its page."""

    def __init__(self, side: str, engine: str) -> None:
        self.side, self.engine = side, engine
        self.counts = metric_pages.Engine(engine)

    def work(self) -> None:
        """All requests, as this side sees them."""
        for _ in range(REQUESTS):
            if self.side == "prefill":
                self.counts.serve(ttft_s=PREFILL_S, gaps=0, gap_s=0.0, prompt=PROMPT)
            else:
                first_s = FIRST_S if self.engine == "vllm" else PREFILL_S + FIRST_S
                self.counts.serve(ttft_s=first_s, gaps=ANSWER - 1, gap_s=GAP_S, prompt=PROMPT)
        if self.side == "prefill" and self.engine == "sglang":
            self.counts.seen["ttft"], self.counts.seen["itl"] = [], []

    def page(self, release: str = "0.5.23") -> str:
        """What it exports: a vLLM by the source of prompts, an SGLang by a label, in older releases on what its scheduler tells."""
        page = self.counts.page()
        if self.engine == "vllm":
            done = self.counts.counters["requests"]
            source = "local_compute" if self.side == "prefill" else "external_kv_transfer"
            for each in ("local_compute", "external_kv_transfer"):
                page += f'vllm:prompt_tokens_by_source_total{{engine="0",source="{each}"}} {done * PROMPT * (each == source)}\n'
            return (
                page.replace('finished_reason="stop"', 'finished_reason="length"') if self.side == "prefill" else page
            )
        lines = []
        for line in page.splitlines():
            scheduler = line.startswith(("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"))
            labelled = release == "0.5.23" or scheduler
            lines.append(line.replace("{", f'{{engine_type="{self.side}",') if labelled else line)
        return "\n".join(lines) + "\n"


def looked_at(tmp_path: Path, servers: list[Server], release: str) -> views.Document:
    """The report of a deployment of these, after they worked."""
    history = History(tmp_path / "history.db")
    pages: dict[str, metric_pages.Reply] = {}

    def show() -> None:
        for number, server in enumerate(servers):
            pages[f"/{number}/metrics"] = metric_pages.text(server.page(release))

    show()
    with metric_pages.serving(pages) as address:
        watched = [
            Watched(
                target=Target(deployment="demo", name=str(number), endpoint=f"{address}/{number}"),
                url=f"{address}/{number}/metrics",
            )
            for number in range(len(servers))
        ]
        collector = Collector(watched, history)
        looks = collector.once()
        for server in servers:
            server.work()
        show()
        looks = collector.once()
        collector.close()
    assert all(look.since_s for look in looks)
    begin_s, end_s = min(look.since_s or 0 for look in looks) - 1, max(look.time_s for look in looks) + 1
    document = views.of_history(history, "demo", begin_s, end_s)
    history.close()
    return document


def counts(document: views.Document) -> dict[str, float | None]:
    names_ = ("requests_s", "output_tok_s", "input_tok_s")
    return {name: document.figures.readings[name].count for name in names_}


@pytest.mark.parametrize(("engine", "release"), [("vllm", "0.32"), ("sglang", "0.5.23"), ("sglang", "0.5.9")])
def test_each_request_is_counted_once(engine: str, release: str, tmp_path: Path) -> None:
    document = looked_at(tmp_path, [Server("prefill", engine), Server("decode", engine)], release)
    assert counts(document) == {
        "requests_s": REQUESTS,
        "output_tok_s": REQUESTS * ANSWER,
        "input_tok_s": REQUESTS * PROMPT,
    }
    first = document.figures.readings["ttft_ms"]
    assert first.count == REQUESTS
    assert first.value == pytest.approx(1e3 * (PREFILL_S if engine == "vllm" else PREFILL_S + FIRST_S))
    assert document.figures.readings["itl_ms"].value == pytest.approx(1e3 * GAP_S)
    assert document.figures.readings["e2e_ms"].count == REQUESTS
    assert document.figures.value("cut_fraction") in (0.0, None), (
        "that a prefill ends after one token cuts nobody's answer"
    )
    assert figures.SPLIT in document.notes


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_two_servers_of_the_same_kind_are_added_up(engine: str, tmp_path: Path) -> None:
    servers = [Server("prefill", engine), Server("decode", engine), Server("decode", engine)]
    found = counts(looked_at(tmp_path, servers, "0.5.23"))
    assert found["requests_s"] == 2 * REQUESTS
    assert found["output_tok_s"] == 2 * REQUESTS * ANSWER
    (tmp_path / "one").mkdir()
    alone = looked_at(tmp_path / "one", [Server("prefill", engine)], "0.5.23")
    assert counts(alone)["requests_s"] == REQUESTS, "a server that is watched alone tells all of its own"
    assert figures.SPLIT not in alone.notes


def test_answers_of_one_token_are_no_prefill_where_nothing_decodes() -> None:
    short = Span(60.0, {"requests": 50.0, "output_tokens": 50.0, "finished_length": 50.0})
    usual = Span(60.0, {"requests": 50.0, "output_tokens": 900.0, "finished_stop": 50.0, "transferred_tokens": 0.0})
    whole = side_by_side([short, usual])
    assert (whole.counters["requests"], whole.counters["output_tokens"], whole.side) == (100.0, 950.0, "")


def test_the_page_of_a_router_counts_each_request_once() -> None:
    servers = [Server("prefill", "sglang"), Server("decode", "sglang")]
    page = ""
    for number, server in enumerate(servers):
        server.work()
        page += server.page().replace("{", f'{{worker_addr="http://10.0.0.{number}:30000",')
    found = totals.read(scrape.parse(page))
    assert found.side == ""
    assert (found.counters["requests"], found.counters["output_tokens"]) == (REQUESTS, REQUESTS * ANSWER)
    assert found.counters["input_tokens"] == REQUESTS * PROMPT
    assert sum(found.histograms["ttft"].counts) == REQUESTS
    assert scrape.address("http://10.0.0.1:29000/engine_metrics") == "http://10.0.0.1:29000/engine_metrics"


def series(engine: str) -> list[dict[str, str]]:
    """What a Prometheus has of both, each minute the same work."""
    found = []
    for side in ("prefill", "decode"):
        server = Server(side, engine)
        server.work()
        for line in server.page().splitlines():
            name, _, value = line.rpartition(" ")
            place = f'pod="demo-{side}-0"'
            labelled = name.replace("{", f"{{{place},") if "{" in name else f"{name}{{{place}}}"
            found.append({"series": labelled, "values": f"0+{float(value):.12g}x60"})
    return found


def test_a_matcher_of_the_servers_that_prefill_is_turned_round_for_the_others() -> None:
    requests, prompts = measures.BY_NAME["requests"], measures.BY_NAME["input_tokens"]
    assert formula.chosen(requests, "vllm", 'a="b"', 'pod=~"x-.*"') == 'a="b",pod!~"x-.*"'
    assert formula.chosen(prompts, "vllm", "", 'role = "prefill"') == 'role = "prefill"'
    assert formula.chosen(requests, "vllm", "", 'role = "prefill"') == 'role!="prefill"'
    assert formula.chosen(requests, "sglang", "") == 'engine_type!="prefill"'
    assert formula.chosen(prompts, "sglang", 'a="b"') == 'a="b",engine_type!="decode"'
    assert formula.chosen(measures.BY_NAME["preemptions"], "sglang", 'a="b"') == 'a="b"'
    with pytest.raises(InvalidInput, match="is not one label matcher"):
        formula.chosen(requests, "vllm", "", 'a="b",c="d"')


@pytest.mark.consumers
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_prometheus_counts_each_request_once(engine: str, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    prefill = 'pod=~"demo-prefill-.*"' if engine == "vllm" else ""
    wanted = {
        "requests_s": REQUESTS / 60,
        "output_tok_s": REQUESTS * ANSWER / 60,
        "input_tok_s": REQUESTS * PROMPT / 60,
        "ttft_ms": PREFILL_S if engine == "vllm" else PREFILL_S + FIRST_S,
        "itl_ms": GAP_S,
    }
    asked = []
    for name, value in wanted.items():
        made = names.BY_NAME[name].formula
        assert made is not None
        text = formula.promql(made, selector="", window="10m", engine=engine, prefill=prefill)
        rounded = f"round({text}, 0.0001)"
        asked.append({"expr": rounded, "eval_time": "40m", "exp_samples": [{"labels": "{}", "value": round(value, 4)}]})
    exported = rulefile.export(
        alert_rules.load(), deployment="demo", selector="", devices="", parameters={}, engine=engine, prefill=prefill
    )
    (tmp_path / "rules.yaml").write_text(yaml_document({"groups": exported.groups}))
    test = {"interval": "1m", "input_series": series(engine), "promql_expr_test": asked}
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yaml").write_text(json.dumps(document))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
