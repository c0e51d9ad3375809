"""`aim-engine recipes`: found, matched, checked against a release, read from others and written for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from aim_engine.cli import main

PROFILE = Path(__file__).parent.parent.parent / "examples" / "aim-profile.yaml"


def test_show_names_family_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "show", "amd/Kimi-K2.5-MXFP4"]) == 0
    shown = capsys.readouterr().out
    assert "kimi_k2" in shown
    assert "source: " in shown
    assert main.run(["recipes", "show", "openai/gpt-oss-12b"]) == 2
    assert "openai/gpt-oss-120b" in capsys.readouterr().err


def test_match_answers_no_with_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "match", "openai/gpt-oss-120b", "--gpus", "2xMI300X", "--json"]) == 0
    matches = json.loads(capsys.readouterr().out)["matches"]
    assert {match["known"]["parallelism"]["tp"] for match in matches if "parallelism" in match["known"]} == {1, 2}
    assert main.run(["recipes", "match", "openai/gpt-oss-120b", "--gpus", "2xMI210"]) == 1


@pytest.mark.parametrize("version", ["0.33.0", "0.32.0", "0.30.0", "0.26.0"])
def test_every_bundled_recipe_can_be_said_in_a_release(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "lint", "--engine-version", version, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["engine_version"] == version
    assert {finding["kind"] for finding in document["findings"]} <= {"renamed", "dropped"}


def test_import_translates_reports_and_writes_an_overlay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "import", str(PROFILE), "-o", str(tmp_path)]) == 0
    assert "--swap-space 64 dropped" in capsys.readouterr().err
    written = yaml.safe_load((tmp_path / "recipes" / "Qwen" / "Qwen3-32B.yaml").read_text())
    assert written["recipes"][0]["extra_args"] == ["--disable-prefix-caching"]
    assert main.run(["recipes", "import", str(tmp_path)]) == 2
    assert "neither an AIM profile" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["aim", "seed"])
def test_what_is_exported_can_be_imported(shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "export", "openai/gpt-oss-20b", "--shape", shape, "--gpu", "MI325X"]) == 0
    exported = tmp_path / "exported.yaml"
    exported.write_text(capsys.readouterr().out)
    assert main.run(["recipes", "import", str(exported)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["recipes"][0]["precision"] == "mxfp4"


def test_an_exported_catalogue_file_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "export", "Qwen/Qwen3-32B", "--shape", "catalogue"]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    assert document["model_id"] == "Qwen/Qwen3-32B"
    assert main.run(["recipes", "export", "Qwen/Qwen3-32B", "--gpu", "MI210"]) == 2


def test_diff_tells_what_a_release_says_differently(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "diff", "zai-org/Glyph", "0.30.0", "0.33.0", "--json"]) == 0
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert (change["old"], change["new"]) == ("--no-enable-prefix-caching", "--disable-prefix-caching")
    assert main.run(["recipes", "diff", "Qwen/Qwen3-32B", "0.30.0", "0.33.0"]) == 0
    assert "takes the recipes" in capsys.readouterr().out


def test_a_list_is_narrowed_by_words_and_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "ls", "QWEN3", "32b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["recipes"]
    assert {known["model_id"] for known in found} >= {"Qwen/Qwen3-32B"}
    assert all("qwen3" in known["model_id"].lower() and "32b" in known["model_id"].lower() for known in found)
    assert main.run(["recipes", "ls", "kimi", "--gpu", "mi300x", "--json"]) == 0
    assert all("MI300X" in known["gpus"] for known in json.loads(capsys.readouterr().out)["recipes"])
    assert main.run(["recipes", "ls", "no-such-model"]) == 1
    assert "whose name holds no-such-model" in capsys.readouterr().out


def test_a_release_may_be_named_by_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "lint", "--engine-version", "0.27", "--json", "Qwen/Qwen3-32B"]) == 0
    assert json.loads(capsys.readouterr().out)["engine_version"] == "0.27.1"
    assert main.run(["recipes", "diff", "Qwen/Qwen3-32B", "0", "0.33"]) == 2
    assert "0 is not a known release" in capsys.readouterr().err


def test_what_is_no_recipe_does_not_keep_the_others_from_being_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.yaml").write_text(PROFILE.read_text())
    (tmp_path / "cut.yaml").write_text("a: [1")
    (tmp_path / "other.json").write_text("{}")
    assert main.run(["recipes", "import", str(tmp_path)]) == 2
    read = capsys.readouterr()
    assert yaml.safe_load(read.out)["model_id"] == "Qwen/Qwen3-32B"
    assert "cut.yaml is not readable as YAML" in read.err
    assert "other.json is neither an AIM profile nor" in read.err
    assert "2 of 3 files were not read" in read.err


def test_a_recipe_without_a_card_takes_the_one_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = {
        "huggingface_id": "Qwen/Qwen3-32B",
        "precision": "bf16",
        "gpu_count": 1,
        "config": {"args": {"max_model_len": 8192, "max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.9}},
        "resources": {kind: {"memory": "64Gi", "cpu": "8"} for kind in ("requests", "limits")},
    }
    path = tmp_path / "seed.json"
    path.write_text(json.dumps(seed))
    assert main.run(["recipes", "import", str(path)]) == 0
    assert "it names no card" in capsys.readouterr().err
    assert main.run(["recipes", "import", str(path), "--gpu", "mi355x"]) == 0
    read = capsys.readouterr()
    assert yaml.safe_load(read.out)["recipes"][0]["gpus"] == ["MI355X"]
    assert "names no card" not in read.err


def test_an_export_for_a_card_nobody_used_names_those_that_were(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "export", "Qwen/Qwen3-32B", "--gpu", "MI355X"]) == 2
    assert "there are some for MI300X" in capsys.readouterr().err
