"""`aim-engine model` shows what a model needs, for people and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from aim_engine.cli.main import main; sys.exit(main())",
            "model",
            *arguments,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )


def test_a_bundled_model_is_shown_with_its_formats_and_other_checkpoints() -> None:
    done = run("Qwen/Qwen3-235B-A22B")
    assert done.returncode == 0, done.stderr
    assert "235.1 B parameters, 21.6 B active per token" in done.stdout
    assert "bf16 437.9 GiB, fp8 220.2 GiB" in done.stdout
    assert "188.0 KiB per token in 16 bit, 94.0 KiB in fp8" in done.stdout
    assert "Qwen/Qwen3-235B-A22B-FP8" in done.stdout


def test_json_is_the_description_itself() -> None:
    done = run("Qwen/Qwen3-0.6B", "--json")
    document = json.loads(done.stdout)
    assert document["schema"] == "aim-engine/model/v1"
    assert document["parameters"]["lm_head"] == 0
    assert document["groups"][0]["kind"] == "full"


def test_states_and_latents_are_shown_too() -> None:
    assert "per request" in run("Qwen/Qwen3.5-35B-A3B").stdout
    assert "latent 576" in run("deepseek-ai/DeepSeek-V3").stdout


def test_the_bundled_models_are_listed() -> None:
    assert "Qwen/Qwen3-32B" in run("--list").stdout.splitlines()
    assert "Qwen/Qwen3-32B" in json.loads(run("--list", "--json").stdout)["models"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Qwen/Qwen3-32",), "did you mean Qwen/Qwen3-32B"),
        ((), "no model was named"),
        (("./nowhere",), "does not exist"),
    ],
)
def test_what_is_no_model_is_refused_with_a_way_out(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_config_names_its_key_and_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "hidden_size": -1, "num_hidden_layers": 2, "vocab_size": 8}))
    done = run(str(path))
    assert done.returncode == 2
    assert "hidden_size" in done.stderr
    assert str(path) in done.stderr


def test_an_unknown_architecture_is_shown_with_a_warning(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wonder", "architectures": ["WonderLM"], **shape}))
    done = run(str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "WonderLM is not known" in done.stdout
