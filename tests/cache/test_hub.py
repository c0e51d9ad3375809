"""Choosing what an engine loads of a repository, and reading what a hub says of it."""

from __future__ import annotations

import pytest

import hub_server
from aim_engine.cache import hub
from aim_engine.cache.faults import NoSuchRevision, Unavailable
from aim_engine.cache.hub import File
from aim_engine.cache.transport import Client


def chosen(*names: str) -> list[str]:
    return [file.path for file in hub.choose_files(File(name, 1) for name in names)]


def test_safetensors_are_taken_and_other_formats_left() -> None:
    found = chosen(
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "original/consolidated.00.pth",
        "original/params.json", "onnx/model.onnx", "README.md", "tokenizer.model", "chat_template.jinja", "flax_model.msgpack",
    )  # fmt: skip
    assert found == [
        "chat_template.jinja", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.model",
    ]  # fmt: skip


def test_pytorch_files_are_taken_only_without_safetensors() -> None:
    assert chosen("config.json", "pytorch_model.bin", "training_args.bin") == ["config.json", "pytorch_model.bin"]
    assert chosen("pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin", "pytorch_model.bin.index.json") == [
        "pytorch_model-1-of-2.bin",
        "pytorch_model-2-of-2.bin",
        "pytorch_model.bin.index.json",
    ]


def test_the_makers_own_copy_of_the_weights_is_left() -> None:
    assert chosen("consolidated.safetensors", "model.safetensors", "config.json") == [
        "config.json",
        "model.safetensors",
    ]
    assert chosen("consolidated.safetensors", "params.json") == ["consolidated.safetensors", "params.json"]
    assert "original/model.safetensors" not in chosen("model.safetensors", "original/model.safetensors")


def test_a_listing_tells_sizes_and_checksums_in_one_request() -> None:
    behind = hub_server.Hub()
    weights = hub_server.safetensors(5000)
    behind.add("org/model", config__json=b"{}", model__safetensors=weights)
    with hub_server.serving(behind) as address:
        listing = hub.describe(Client(), address, "org/model", "main")
        with pytest.raises(NoSuchRevision):
            hub.describe(Client(), address, "org/model", "v9")
    by_path = {file.path: file for file in listing.files}
    assert (listing.commit, listing.licence) == (hub_server.COMMIT, "apache-2.0")
    assert by_path["model.safetensors"].size_bytes == len(weights)
    assert by_path["model.safetensors"].sha256 is not None
    assert by_path["config.json"].git_oid == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git hash-object of {}
    assert behind.requests[:1] == ["GET /api/models/org/model/revision/main"]


def test_what_is_no_hub_is_said_to_be_that() -> None:
    behind = hub_server.Hub()
    behind.add("org/model", config__json=b"{}")
    behind.commits["org/model"] = "../../etc"
    with hub_server.serving(behind) as address, pytest.raises(Unavailable, match="does not answer as a hub"):
        hub.describe(Client(), address, "org/model", "main")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({"HF_HUB_CACHE": "/a"}, "/a"), ({"HF_HOME": "/b"}, "/b/hub"), ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub")],
)
def test_the_hub_cache_is_where_its_client_has_it(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(hub.default_cache_dir()) == expected
