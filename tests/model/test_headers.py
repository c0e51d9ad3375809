"""Headers of weight files, here and on a hub: exact bytes, few bytes fetched, nothing believed that is damaged."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hub_server
from aim_engine.errors import AimError, Corrupt, InvalidInput
from aim_engine.model import gguf, source, weights

LAYERS, SHARDS, HIDDEN = 60, 60, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "torch_dtype": "bfloat16",
}


def file_of(tensors: dict[str, tuple[str, int]], padding: int = 0) -> bytes:
    """A safetensors file of zeros; `padding` blanks lengthen its header."""
    header, at = {}, 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [at, at + size]}
        at += size
    content = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(content)) + content + bytes(at)


def checkpoint(padding: int = 0) -> dict[str, bytes]:
    """Sixty files of one layer each, an index and a config."""
    files: dict[str, bytes] = {}
    where: dict[str, str] = {}
    total = 0
    for number in range(SHARDS):
        tensors = {
            f"model.layers.{number}.self_attn.q_proj.weight": ("BF16", 8192),
            f"model.layers.{number}.mlp.experts.0.up_proj.weight": ("F8_E4M3", 16384),
            f"model.layers.{number}.mlp.experts.0.up_proj.weight_scale_inv": ("F32", 16),
        }
        if number == 0:
            tensors["model.embed_tokens.weight"] = ("BF16", 32768)
        name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        files[name] = file_of(tensors, padding)
        where |= dict.fromkeys(tensors, name)
        total += sum(size for _, size in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    return files | {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": json.dumps(CONFIG).encode(),
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[hub_server.Hub, str]]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    behind = hub_server.Hub()
    behind.models["acme/large"] = checkpoint()
    with hub_server.serving(behind) as address:
        yield behind, address


def test_sixty_headers_over_http_give_exact_bytes_and_fetch_no_weights(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    behind.models["acme/large"] = checkpoint(padding=20_000)
    spec = source.describe("acme/large", endpoint=address, headers=True)
    stored = spec.stored
    assert stored is not None
    assert (stored.files, stored.tensors) == (SHARDS, 3 * SHARDS + 1)
    assert stored.dtype_bytes == {"BF16": 8192 * SHARDS + 32768, "F32": 16 * SHARDS, "F8_E4M3": 16384 * SHARDS}
    assert stored.part_bytes["experts"] == (16384 + 16) * SHARDS
    assert stored.part_bytes["attention"] == 8192 * SHARDS
    assert stored.layer_bytes["7"] == 8192 + 16384 + 16
    assert spec.weight_bytes == stored.total_bytes == stored.index_bytes
    assert not any("index" in warning for warning in spec.warnings)
    assert behind.sent_bytes < 2_000_000
    assert behind.connections < SHARDS, "connections are kept"


def test_an_index_that_disagrees_is_reported_and_the_headers_count(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    files = behind.models["acme/large"]
    index = json.loads(files["model.safetensors.index.json"])
    index["metadata"]["total_size"] *= 2
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    spec = source.describe("acme/large", endpoint=address, headers=True)
    assert spec.stored is not None
    assert spec.weight_bytes == spec.stored.total_bytes
    assert any("the weight index says" in warning for warning in spec.warnings)


def test_a_single_file_needs_no_index_and_none_at_all_is_no_error(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    config = json.dumps(CONFIG).encode()
    behind.models["acme/one"] = {"config.json": config, "model.safetensors": file_of({"a": ("BF16", 10)})}
    behind.models["acme/none"] = {"config.json": config}
    one = source.describe("acme/one", endpoint=address, headers=True)
    none = source.describe("acme/none", endpoint=address, headers=True)
    assert one.weight_bytes == 10
    assert none.stored is None
    assert none.weight_bytes is None


def test_a_server_that_ignores_ranges_is_not_read_to_the_end(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    behind.ignores_ranges = True
    behind.models["acme/one"] = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": file_of({"a": ("BF16", 50_000_000)}),
    }
    assert source.describe("acme/one", endpoint=address, headers=True).weight_bytes == 50_000_000


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, struct.pack("<Q", 9) + b"{", struct.pack("<Q", 4) + b"{}}}", b"<html>no</html>"]
)
def test_a_damaged_file_on_the_hub_is_named(content: bytes, hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    behind.models["acme/bad"] = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": content}
    with pytest.raises(Corrupt, match=r"model\.safetensors of acme/bad"):
        source.describe("acme/bad", endpoint=address, headers=True)


def test_a_folder_gives_the_same_summary_as_the_hub(tmp_path: Path, hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    for name, content in behind.models["acme/large"].items():
        (tmp_path / name).write_bytes(content)
    here, there = source.describe(str(tmp_path)), source.describe("acme/large", endpoint=address, headers=True)
    assert here.stored == there.stored


def gguf_file(*, layers: int = 2, arch: str = "llama", cut: int | None = None) -> bytes:
    """A GGUF header of a small model, its weights left out."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text(arch),
        text("general.name") + struct.pack("<I", 8) + text("tiny"),
        number(f"{arch}.block_count", layers),
        number(f"{arch}.embedding_length", 256),
        number(f"{arch}.feed_forward_length", 512),
        number(f"{arch}.attention.head_count", 4),
        number(f"{arch}.attention.head_count_kv", 2),
        number(f"{arch}.context_length", 2048),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 1000) + b"".join(text(f"t{n}") for n in range(1000)),
    ]
    tensors = [("token_embd.weight", (256, 1000), 12), ("output.weight", (256, 1000), 14)]
    for layer in range(layers):
        tensors += [
            (f"blk.{layer}.attn_q.weight", (256, 256), 12),
            (f"blk.{layer}.attn_k.weight", (256, 128), 12),
            (f"blk.{layer}.attn_v.weight", (256, 128), 14),
            (f"blk.{layer}.attn_output.weight", (256, 256), 12),
            (f"blk.{layer}.ffn_gate.weight", (256, 512), 12),
            (f"blk.{layer}.ffn_up.weight", (256, 512), 12),
            (f"blk.{layer}.ffn_down.weight", (512, 256), 14),
        ]
    listed = b"".join(
        text(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, 0)
        for name, shape, kind in tensors
    )
    whole = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + listed
    return whole if cut is None else whole[:cut]


def test_a_gguf_header_describes_the_model_and_its_exact_bytes(tmp_path: Path, hub: tuple[hub_server.Hub, str]) -> None:
    path = tmp_path / "tiny-Q4_K_M.gguf"
    path.write_bytes(gguf_file())
    spec = source.describe(str(path))
    assert (spec.layers, spec.hidden_size, spec.kv_heads, spec.vocab_size, spec.format) == (2, 256, 2, 1000, "gguf")
    assert not spec.tied_embeddings
    assert spec.stored is not None
    per_layer = (2 * 256 * 256 + 256 * 128 + 2 * 256 * 512) // 256 * 144 + (256 * 128 + 512 * 256) // 256 * 210
    assert spec.stored.layer_bytes == {"0": per_layer, "1": per_layer}
    assert spec.weight_bytes == 2 * per_layer + 1000 * 144 + 1000 * 210
    behind, address = hub
    behind.models["acme/tiny-GGUF"] = {"tiny-Q4_K_M.gguf": gguf_file(), "README.md": b"hello"}
    assert source.describe("acme/tiny-GGUF", endpoint=address).weight_bytes == spec.weight_bytes


@given(cut=st.integers(0, 9000), flips=st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), max_size=4))
def test_a_damaged_gguf_file_is_told_and_never_trips(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(gguf_file(cut=cut))
    for at, value in flips:
        if at < len(content):
            content[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(bytes(content))
    with contextlib.suppress(AimError):
        source.describe(str(path))


def test_what_is_not_gguf_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(Corrupt, match="not a GGUF file"):
        gguf.read(path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        gguf.read(tmp_path / "absent.gguf")


def test_layers_of_a_summary_are_in_the_order_of_their_numbers() -> None:
    tensors = [weights.Tensor(f"model.layers.{n}.mlp.w", "BF16", n) for n in (10, 2, 1)]
    assert list(weights.summary(tensors, 1, 11).layer_bytes) == ["1", "2", "10"]


def test_layers_beyond_the_decoders_are_draft_layers() -> None:
    tensors = [weights.Tensor(f"model.layers.{n}.mlp.w", "BF16", 8) for n in (59, 60, 61)]
    assert weights.summary(tensors, 1, 61).part_bytes == {"feed-forward": 16, "mtp": 8}


def test_the_index_tells_how_much_of_each_file_to_ask_for(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    names = {f"model.layers.0.mlp.experts.{number}.up_proj.weight": ("U8", 10) for number in range(2000)}
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
    behind.models["acme/many"] = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": file_of(names),
    }
    assert source.describe("acme/many", endpoint=address, headers=True).weight_bytes == 20_000
    assert sum("/content/" in request for request in behind.requests) == 1


def test_a_header_of_unknown_length_costs_a_second_request_at_most(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    names = {f"model.layers.0.mlp.experts.{number}.up_proj.weight": ("U8", 10) for number in range(2000)}
    behind.models["acme/one"] = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": file_of(names)}
    assert source.describe("acme/one", endpoint=address, headers=True).weight_bytes == 20_000
    assert sum("/content/" in request for request in behind.requests) == 2


def test_a_passing_fault_is_tried_again_and_the_token_stays_with_the_hub(hub: tuple[hub_server.Hub, str]) -> None:
    behind, address = hub
    behind.token = "secret"
    behind.cut_once[min(n for n in behind.models["acme/large"] if n.endswith("safetensors"))] = 5
    assert source.describe("acme/large", endpoint=address, token="secret", headers=True).stored is not None
    assert behind.authorised
    assert not [each for each in behind.authorised if "/content/" in each]


@pytest.mark.parametrize(
    ("name", "like", "how"),
    [
        ("acme/Qwen3-32B-Finetune", "Qwen/Qwen3-32B", "the shapes of Qwen/Qwen3-32B"),
        ("acme/Foo-70B", "meta-llama/Llama-3.1-70B-Instruct", "a dense model of 70 billion parameters"),
    ],
)
def test_a_model_that_cannot_be_read_is_described_by_its_name_and_says_so(
    name: str, like: str, how: str, hub: tuple[hub_server.Hub, str]
) -> None:
    behind, address = hub
    known = source.describe(like)
    behind.gated.add(name)
    behind.models[name] = {"config.json": b"{}"}
    for spec in (source.describe(name, offline=True), source.describe(name, endpoint=address)):
        assert (spec.basis, spec.model_id) == ("name", name)
        assert spec.parameters.total == pytest.approx(known.parameters.total, rel=0.05)
        assert how in spec.source
        assert any("described by its name" in warning for warning in spec.warnings)


@pytest.mark.parametrize("name", ["acme/tiny", "acme/Foo-9000B"])
def test_a_name_that_says_nothing_usable_stays_an_error(name: str) -> None:
    with pytest.raises(InvalidInput, match="not known here"):
        source.describe(name, offline=True)
