"""Where a description comes from, and what a name that nobody knows gets."""

from __future__ import annotations

import http.server
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aim_engine.errors import Corrupt, InvalidInput, Unreachable
from aim_engine.model import source, weights

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 512,
}


def safetensors(path: Path, count: int) -> None:
    """A file with one bf16 tensor of `count` values."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2 * count))


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one model, one gated and one without a config."""

    def do_GET(self) -> None:
        codes = {"acme/gated": (403, "GatedRepo"), "acme/gone": (404, "RepoNotFound"), "acme/busy": (503, "")}
        repository = "/".join(self.path.split("/")[1:3])
        if self.path == "/acme/tiny/resolve/main/config.json":
            self._reply(200, json.dumps(CONFIG).encode())
        elif self.path == "/acme/tiny/resolve/main/model.safetensors.index.json":
            self._reply(200, json.dumps({"metadata": {"total_size": 12345}}).encode())
        elif repository in codes:
            self._reply(codes[repository][0], b"", codes[repository][1])
        else:
            self._reply(404, b"", "EntryNotFound")

    def _reply(self, status: int, body: bytes, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_folder_gives_exact_bytes_from_its_headers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    safetensors(tmp_path / "model-1.safetensors", 100)
    safetensors(tmp_path / "model-2.safetensors", 28)
    spec = source.describe(str(tmp_path))
    assert (spec.basis, spec.weight_bytes) == ("headers", 256)


def test_an_index_counts_shards_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    index = {"metadata": {"total_size": 999}, "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert source.describe(str(tmp_path)).weight_bytes == 999


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 10**12) + b"{}", struct.pack("<Q", 2) + b"xx"])
def test_a_damaged_safetensors_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=r"model\.safetensors"):
        weights.tensor_bytes(path)


def test_a_file_cut_short_is_told_from_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors(path, 100)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Corrupt, match="cut short"):
        weights.tensor_bytes(path)


def test_a_config_file_of_another_name_keeps_its_side_file(tmp_path: Path) -> None:
    (tmp_path / "acme__tiny.json").write_text(json.dumps(CONFIG))
    (tmp_path / "acme__tiny.hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    spec = source.describe(str(tmp_path / "acme__tiny.json"))
    assert (spec.model_id, spec.format) == ("acme/tiny", "fp8")


def test_the_catalogue_answers_before_the_hub(hub: str) -> None:
    assert source.describe("Qwen/Qwen3-32B", endpoint=hub).source.startswith("catalogue")


def test_the_local_cache_answers_before_the_hub(hub: str, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--acme--cached"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    assert source.describe("acme/cached", endpoint=hub).source == "local cache, abc"


def test_the_hub_is_asked_for_small_files_only(hub: str) -> None:
    spec = source.describe("acme/tiny", endpoint=hub)
    assert (spec.model_id, spec.weight_bytes, spec.basis) == ("acme/tiny", 12345, "headers")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("acme/gated", InvalidInput, "gated"),
        ("acme/gone", InvalidInput, "not on the hub"),
        ("acme/busy", Unreachable, "refused to answer"),
        ("acme/empty", InvalidInput, "no config.json"),
    ],
)
def test_each_refusal_of_the_hub_has_its_own_error(name: str, kind: type[Exception], words: str, hub: str) -> None:
    with pytest.raises(kind, match=words):
        source.describe(name, endpoint=hub)


def test_no_network_says_so_and_offers_close_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(Unreachable) as raised:
        source.describe("Qwen/Qwen3-32X", endpoint="http://127.0.0.1:9")
    assert "Qwen/Qwen3-32B" in (raised.value.hint or "")


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "missing.json", "a b", "x/../y", "a/b/c", "-rf"])
def test_what_is_no_model_is_refused_without_asking_anyone(name: str) -> None:
    with pytest.raises(InvalidInput):
        source.describe(name)


def test_a_broken_config_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64,')
    with pytest.raises(InvalidInput, match=r"config\.json is not readable as JSON"):
        source.describe(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-32B", 32.0),
        ("mistralai/Mixtral-8x7B-v0.1", 56.0),
        ("Qwen/Qwen3-235B-A22B", 235.0),
        ("Qwen/Qwen3-0.6B", 0.6),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135),
        ("acme/Foo-13b-chat", 13.0),
        ("openai/gpt-oss", None),
    ],
)
def test_the_size_in_a_name_is_read(name: str, billions: float | None) -> None:
    assert source.size_from_name(name) == (None if billions is None else pytest.approx(billions))
