"""A hub and a cache for each test, with little patience so that failures come soon."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hub_server
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.transport import Patience

MODEL = "org/model"
WEIGHTS = hub_server.safetensors(300_000)
HASTY = Patience(connect_s=2, read_s=2, stall_s=0.5, attempts=4, backoff_s=0.01, longest_wait_s=3)
Make = Callable[..., ModelCacheManager]


DTYPES = {
    "BF16": 2,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "F8_E4M3": 1,
    "I8": 1,
    "U8": 1,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "BOOL": 1,
}


def checkpoint(tensors: dict[str, tuple[str, bytes]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, content) in tensors.items():
        shape = [len(content) // DTYPES[dtype]]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(content for _, content in tensors.values())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    for variable in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    behind = hub_server.Hub()
    behind.add(
        MODEL,
        config__json=b'{"model_type": "llama"}',
        tokenizer__json=b'{"version": "1.0"}',
        model__safetensors=WEIGHTS,
        pytorch_model__bin=b"p" * 50_000,
        modeling_llama__py=b"print('hello')",
        README__md=b"# hello",
    )
    with hub_server.serving(behind):
        yield behind


@pytest.fixture
def make(server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a manager of the one cache, as another process would; `said` collects what it tells."""
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))

    def build(**changes: object) -> ModelCacheManager:
        options: dict[str, object] = {
            "endpoint": server.address,
            "hub_cache": tmp_path / "hub",
            "index_dir": tmp_path / "index",
            "patience": HASTY,
        }
        return ModelCacheManager(tmp_path / "cache", **{**options, **changes})  # type: ignore[arg-type]

    return build


@pytest.fixture
def manager(make: Make) -> ModelCacheManager:
    return make()


@contextmanager
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket `models` on a real S3 server of our own; gives a client to fill it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    address = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="models")
        yield client
    finally:
        server.stop()
