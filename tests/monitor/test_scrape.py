"""Metrics pages as they really come: escapes, exemplars, damage, other things than metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopback
from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.kpi import measures
from aim_engine.monitor import scrape

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,20}", fullmatch=True)
LABEL_NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,10}", fullmatch=True)


def one(line: str) -> scrape.Sample:
    (group,) = scrape.parse(line).samples.values()
    (sample,) = group
    return sample


def test_a_plain_sample_has_name_labels_and_value() -> None:
    sample = one('vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-32B"} 3.0')
    assert (sample.name, sample.value) == ("vllm:num_requests_running", 3.0)
    assert sample.label("model_name") == "Qwen/Qwen3-32B"
    assert sample.label("absent") is None


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("up 1", 1.0),
        ("up 1 1395066363000", 1.0),
        ("up  +Inf", math.inf),
        ("up -Inf", -math.inf),
        ("up{} 1.8e+09", 1.8e9),
        ("up { } 2", 2.0),
        ('up{a="b",} 2', 2.0),
        ('up{ a = "b" , c="d" } 2', 2.0),
        ('http_sum{le="0.1"} 8 # {trace_id="a}b"} 0.67 1520879607.789', 8.0),
        ('{"my.metric",a="b"} 4', 4.0),
    ],
)
def test_every_form_of_the_format_is_read(line: str, value: float) -> None:
    assert one(line).value == value


def test_a_number_that_is_none_is_kept_but_does_not_count_as_exported() -> None:
    snapshot = scrape.parse("a NaN\nb 1")
    assert math.isnan(snapshot.samples["a"][0].value)
    assert not snapshot.has("a")
    assert snapshot.has("b")


def test_braces_commas_and_quotes_inside_values_are_text() -> None:
    assert one(r'a{b="x}y,{\"z\"\\\n"} 1').label("b") == 'x}y,{"z"\\\n'


@pytest.mark.parametrize("line", ["a", "a{", 'a{b="c} 1', "a{b} 1", "a b", '{b="c"} 1', "1 2", 'a{b="c"}', "€ 1"])
def test_damaged_lines_are_skipped_and_counted(line: str) -> None:
    snapshot = scrape.parse(f"good 1\n{line}\nbetter 2\n")
    assert set(snapshot.samples) == {"good", "better"}
    assert snapshot.skipped == 1


@given(NAMES, st.dictionaries(LABEL_NAMES, TEXT, max_size=4), st.floats(allow_nan=False))
def test_what_is_written_is_read(name: str, labels: dict[str, str], value: float) -> None:
    escaped = {k: v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for k, v in labels.items()}
    written = ",".join(f'{key}="{text}"' for key, text in escaped.items())
    sample = one(f"{name}{{{written}}} {value!r}")
    assert (sample.name, dict(sample.labels), sample.value) == (name, labels, value)


@given(st.text(max_size=300))
def test_no_page_makes_the_parser_fail(page: str) -> None:
    scrape.parse(page)


def test_series_seen_before_are_read_like_new_ones() -> None:
    for page, value in (
        ("odd 5 ", 5.0),
        ("odd 5 17", 5.0),
        ("odd 6", 6.0),
        ("odd 7 1395066363000", 7.0),
        ("odd\t8", 8.0),
        ("odd  9", 9.0),
    ):
        for _ in range(2):
            assert one(page).value == value


LINES = st.one_of(
    st.text(max_size=40),
    st.builds(
        lambda name, label, number, tail: f'{name}{{a="{label}"}} {number}{tail}',
        st.sampled_from(["vllm:num_requests_running", "gpu_package_power", "amd_gpu_package_power", "other_total"]),
        st.text("ab ,}\\", max_size=5),
        st.one_of(st.integers(), st.floats(), st.text(max_size=3)),
        st.sampled_from(["", " ", " 1395066363000", " # {} 1"]),
    ),
)


@given(st.lists(LINES, max_size=12))
def test_reading_only_what_is_wanted_gives_what_reading_everything_gives(lines: list[str]) -> None:
    page = "\n".join(lines)
    kept = measures.wanted()
    whole, part = scrape.parse(page).samples, scrape.parse(page, wanted=kept).samples

    def shown(samples: dict[str, tuple[scrape.Sample, ...]]) -> dict[str, list[str]]:
        return {name: [repr(sample) for sample in group] for name, group in samples.items() if name in kept}

    assert shown(part) == shown(whole)


class _Page(BaseHTTPRequestHandler):
    pages: dict[str, tuple[int, str]]

    def do_GET(self) -> None:
        status, body = self.pages.get(self.path, (404, "nothing here"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(**pages: tuple[int, str]) -> Iterator[str]:
    handler = type("Handler", (_Page,), {"pages": {f"/{path}": reply for path, reply in pages.items()}})
    with loopback.http(handler) as address:
        yield address.removeprefix("http://")


def test_a_page_is_fetched_by_host_and_port_base_url_or_its_own_address() -> None:
    with serving(metrics=(200, "up 1")) as address:
        for form in (address, f"http://{address}/", f"http://{address}/v1", f"http://{address}/metrics"):
            snapshot = scrape.fetch(form)
            assert snapshot.has("up")
            assert snapshot.time_s is not None


def test_a_proxy_in_the_environment_does_not_stand_before_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(metrics=(200, "up 1")) as address:
        assert scrape.fetch(address).has("up")


@pytest.mark.parametrize("reply", [(404, "no"), (500, "no"), (200, "<html><body>Welcome</body></html>"), (200, "")])
def test_what_is_no_metrics_page_is_said_so(reply: tuple[int, str]) -> None:
    with serving(metrics=reply) as address, pytest.raises(Unreachable) as caught:
        scrape.fetch(address)
    assert "/metrics" in caught.value.what


def test_nobody_listening_is_unreachable() -> None:
    with pytest.raises(Unreachable) as caught:
        scrape.fetch("127.0.0.1:9")
    assert caught.value.why == "connection refused: nothing listens there"


@pytest.mark.parametrize("address", ["", "ftp://host", "http://", "http://host:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput):
        scrape.fetch(address)
