"""Deployment records: written whole, found again, and honest about what cannot be read."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment
from aim_engine.errors import Corrupt, InvalidInput, Unreachable


def record(name: str = "demo", port: int = 8000) -> Deployment:
    return Deployment(
        name=name,
        target="local",
        model_id="org/model",
        served_as="org/model",
        engine="vllm",
        engine_version="0.32.0",
        state="ready",
        created_at="2026-11-23T14:00:00Z",
        host="127.0.0.1",
        port=port,
        endpoint=f"http://127.0.0.1:{port}",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_is_saved_is_loaded(store: Store) -> None:
    store.save(record())
    assert store.load("demo") == record()
    assert store.names() == ("demo",)
    document = json.loads((store.folder("demo") / "deployment.json").read_text())
    assert document["schema"] == "aim-engine/deployment/v1"


def test_an_empty_store_has_no_names(store: Store) -> None:
    assert store.names() == ()


def test_an_unknown_name_gets_the_close_one(store: Store) -> None:
    store.save(record("qwen3-32b"))
    with pytest.raises(InvalidInput, match="there is no deployment 'qwen3-23b'") as caught:
        store.load("qwen3-23b")
    assert "qwen3-32b" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["", "../etc", "Qwen", "a b", "-a", "a" * 64, "a/b"])
def test_a_name_that_is_no_host_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidInput, match="not a usable deployment name"):
        store.folder(name)


def test_a_record_of_another_version_is_named_as_such(store: Store) -> None:
    store.save(record())
    path = store.folder("demo") / "deployment.json"
    path.write_text(path.read_text().replace("deployment/v1", "deployment/v0"))
    with pytest.raises(Corrupt, match="written by another version") as caught:
        store.load("demo")
    assert "aim-engine/deployment/v0" in str(caught.value.why)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "aim-engine/deployment/v1"}', "\xff"])
def test_a_damaged_record_is_no_traceback(store: Store, content: str) -> None:
    store.save(record())
    (store.folder("demo") / "deployment.json").write_text(content, encoding="latin-1")
    with pytest.raises(Corrupt, match="not a readable deployment record"):
        store.load("demo")


def test_a_record_is_never_seen_half_written(store: Store) -> None:
    store.save(record(port=1))
    done = threading.Event()
    problems: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                assert store.load("demo").port >= 1
            except Exception as err:  # noqa: BLE001 - collected for the assertion
                problems.append(err)

    reader = threading.Thread(target=read)
    reader.start()
    for port in range(2, 150):
        store.save(record(port=port))
    done.set()
    reader.join()
    assert problems == []
    assert store.load("demo").port == 149
    assert [path.name for path in store.folder("demo").iterdir()] == ["deployment.json"]


def test_a_name_can_be_held_once(store: Store) -> None:
    with store.reserved("demo"):
        with pytest.raises(Unreachable, match="being deployed by another process"), store.reserved("demo"):
            pass
        with store.reserved("other"):
            pass
    with store.reserved("demo"):
        pass


def test_removing_forgets_everything(store: Store) -> None:
    store.save(record())
    store.remove("demo")
    store.remove("demo")
    assert store.names() == ()


def test_a_folder_that_cannot_be_written_says_which_setting_moves_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable) as caught:
        Store(tmp_path / "file").save(record())
    assert "AIM_ENGINE_STATE_DIR" in str(caught.value.hint)
