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

import hub_server
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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[hub_server.Hub, str]]:
    """A hub with one model, one without a config, a gated one and one whose config is damaged."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    behind = hub_server.Hub()
    index = json.dumps({"metadata": {"total_size": 12345}}).encode()
    behind.models["acme/tiny"] = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors.index.json": index,
        "model-00001.safetensors": bytes(100),
    }
    behind.models["acme/empty"] = {"README.md": b"nothing here"}
    behind.models["acme/broken"] = {"config.json": b"<html>"}
    behind.models["acme/gated"] = {"config.json": b"{}"}
    behind.gated.add("acme/gated")
    with hub_server.serving(behind) as address:
        yield behind, address


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
        weights.tensors(path)


def test_a_file_cut_short_is_told_from_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors(path, 100)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Corrupt, match="cut short"):
        weights.tensors(path)


def test_a_config_file_of_another_name_keeps_its_side_file(tmp_path: Path) -> None:
    (tmp_path / "acme__tiny.json").write_text(json.dumps(CONFIG))
    (tmp_path / "acme__tiny.hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    spec = source.describe(str(tmp_path / "acme__tiny.json"))
    assert (spec.model_id, spec.format) == ("acme/tiny", "fp8")


def test_the_catalogue_answers_before_the_hub(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    assert source.describe("Qwen/Qwen3-32B", endpoint=address).source.startswith("catalogue")
    assert behind.requests == []


def test_the_local_cache_answers_before_the_hub(hub: tuple[hub_server.Hub, str], tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--acme--cached"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    assert source.describe("acme/cached", endpoint=hub[1]).source == "local cache, abc"
    assert source.describe("acme/cached", revision="abc", offline=True).source == "local cache, abc"


def test_the_hub_is_asked_for_small_files_only(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    spec = source.describe("acme/tiny", endpoint=address)
    assert (spec.model_id, spec.weight_bytes, spec.basis) == ("acme/tiny", 12345, "headers")
    asked = [request.rsplit("/", 1)[1] for request in behind.requests]
    assert asked == ["config.json", "hf_quant_config.json", "model.safetensors.index.json"]


def test_the_hubs_address_may_come_from_the_environment(
    hub: tuple[hub_server.Hub, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub[1])
    assert source.describe("acme/tiny").model_id == "acme/tiny"


def test_a_revision_is_asked_for_by_name(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    spec = source.describe("acme/tiny", revision=hub_server.COMMIT, endpoint=address)
    assert hub_server.COMMIT in spec.source
    assert all(hub_server.COMMIT in request for request in behind.requests)


@pytest.mark.parametrize(
    ("name", "revision", "kind", "words"),
    [
        ("acme/gated", None, InvalidInput, "gated"),
        ("acme/gone", None, InvalidInput, "not on the hub"),
        ("acme/empty", None, InvalidInput, "no config.json"),
        ("acme/tiny", "v9", InvalidInput, "no such revision"),
        ("acme/broken", None, Corrupt, "not JSON"),
    ],
)
def test_each_refusal_of_the_hub_has_its_own_error(
    name: str, revision: str | None, kind: type[Exception], words: str, hub: tuple[hub_server.Hub, str]
) -> None:
    with pytest.raises(kind, match=words):
        source.describe(name, revision=revision, endpoint=hub[1])


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_in_trouble_is_unreachable_and_not_the_users_mistake(
    status: int, hub: tuple[hub_server.Hub, str]
) -> None:
    hub[0].fail_api = status
    with pytest.raises(Unreachable, match="refused to answer"):
        source.describe("acme/tiny", endpoint=hub[1])


def test_the_token_goes_to_the_hub_and_to_no_host_it_redirects_to() -> None:
    seen: dict[str, str | None] = {}

    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers["Host"]
            seen.setdefault(host, self.headers["Authorization"])
            body = json.dumps(CONFIG).encode() if host.startswith("localhost") else b""
            self.send_response(200 if body else 302)
            if not body:
                self.send_header("Location", f"http://localhost:{port}{self.path}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        source.describe("acme/moved", endpoint=f"http://127.0.0.1:{port}", token="hf_secret")
    except Corrupt:
        pass  # the index is no index; the first file has told enough
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen == {f"127.0.0.1:{port}": "Bearer hf_secret", f"localhost:{port}": None}


def test_a_transfer_that_breaks_off_is_unreachable(hub: tuple[hub_server.Hub, str]) -> None:
    hub[0].cut["config.json"] = 10
    with pytest.raises(Unreachable, match="cannot be asked"):
        source.describe("acme/tiny", endpoint=hub[1])


def test_offline_asks_nobody_and_says_so(hub: tuple[hub_server.Hub, str], monkeypatch: pytest.MonkeyPatch) -> None:
    behind, address = hub
    with pytest.raises(InvalidInput, match="not known here"):
        source.describe("acme/tiny", offline=True, endpoint=address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidInput, match="not known here"):
        source.describe("acme/tiny", endpoint=address)
    assert behind.requests == []


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
