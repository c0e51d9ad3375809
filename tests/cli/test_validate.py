"""`aim-engine validate`: every kind of file is recognised, and the exit code is the answer."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import plans
from aim_engine.cli import main
from aim_engine.planner import plan as plan_module
from aim_engine.render.targets import TARGETS

RECIPE: dict[str, Any] = {
    "huggingface_id": "Qwen/Qwen3-32B",
    "precision": "bf16",
    "gpu_count": 4,
    "config": {
        "args": {"max_model_len": 32768, "max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.9},
        "env_vars": {"VLLM_USE_TRITON_FLASH_ATTN": "0"},
    },
    "resources": {"requests": {"memory": "64Gi", "cpu": "16"}, "limits": {"memory": "128Gi", "cpu": "32"}},
}
ARGS = ["--model", "Qwen/Qwen3-32B", "--dtype", "bf16", "--tensor-parallel-size", "4", "--max-model-len", "32768"]
FIRST_DOCKER = {
    "image": "rocm/vllm:latest",
    "ports": ["8000:8000"],
    "devices": ["/dev/kfd", "/dev/dri"],
    "group_add": ["video", "render"],
    "volumes": ["/workspace/model-cache:/workspace/model-cache"],
    "environment": RECIPE["config"]["env_vars"],
    "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
    "args": ARGS,
}
FIRST_KUBERNETES = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "aim-engine"},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "aim-engine"}},
        "template": {
            "metadata": {"labels": {"app": "aim-engine"}},
            "spec": {
                "containers": [
                    {
                        "name": "aim-engine",
                        "image": "rocm/vllm:latest",
                        "resources": {
                            kind: {"amd.com/gpu": "4", **RECIPE["resources"][kind]} for kind in ("requests", "limits")
                        },
                        "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
                        "args": ARGS,
                        "env": [{"name": "VLLM_USE_TRITON_FLASH_ATTN", "value": "0"}],
                    }
                ]
            },
        },
    },
}
"""What the first specification's generators would have written."""


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main.run(["validate", "--json", *words])
    return code, json.loads(capsys.readouterr().out or "{}")


def ids(document: dict[str, Any]) -> set[str]:
    return {finding["id"] for file in document["files"] for finding in file["findings"]}


def write(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "slurm"])
def test_everything_we_render_validates(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(plan_module.encode(plans.replicas()))
    assert main.run(["render", str(plan), "-t", target, "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    # A batch script is more than a line that starts the engine.
    code, document = run(capsys, str(tmp_path / ("out/base" if target == "kustomize" else "out")))
    assert code == 0
    assert (document["errors"], document["warnings"]) == (0, 0)


def test_the_first_specifications_manifest_has_its_real_defects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = run(capsys, write(tmp_path, "deployment.yaml", FIRST_KUBERNETES))
    assert code == 1
    assert ids(document) >= {"VER007", "VER009", "VER010", "VER021", "VER003", "K8S005", "MAN012"}


def test_the_first_specifications_docker_settings_have_their_real_defects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = run(capsys, write(tmp_path, "docker.json", json.dumps(FIRST_DOCKER)))
    assert code == 1
    assert document["files"][0]["kind"] == "container"
    assert ids(document) >= {"VER007", "VER009", "VER010", "VER021", "VER003", "MEM009", "SEC001"}


def test_the_card_that_is_named_is_the_one_a_recipe_without_one_is_judged_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "recipe.yaml", RECIPE)
    _, document = run(capsys, path)
    (found,) = (f for f in document["files"][0]["findings"] if f["id"] == "REC002")
    assert found["message"] == "memory was not checked: it names no card"
    assert found["remedy"] == "--gpu says which"
    for named in (("--gpu", "MI300X"), ("--gpus", "8xMI300X")):
        assert "REC002" not in ids(run(capsys, path, *named)[1])
    code, document = run(capsys, path, "--gpu", "RX9070XT")
    assert code == 1
    assert "MEM001" in ids(document)


def test_the_first_specifications_recipe_is_read_and_its_variable_that_is_gone_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = run(capsys, write(tmp_path, "recipe.yaml", RECIPE))
    assert code == 0
    assert document["files"][0]["kind"] == "recipe"
    assert "VER003" in ids(document)
    code, document = run(capsys, write(tmp_path, "recipe.yaml", {**RECIPE, "precision": "bf17"}))
    assert code == 1
    assert ids(document) == {"REC001"}


def test_a_recipe_of_ours_is_judged_with_its_model_and_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = plans.dense_on_all().chosen
    assert chosen is not None
    import msgspec

    good = msgspec.json.encode(chosen.recipe).decode()
    assert run(capsys, write(tmp_path, "recipe.json", good))[0] == 0
    long = good.replace('"max_model_len":8192', '"max_model_len":819200')
    code, document = run(capsys, write(tmp_path, "recipe.json", long))
    assert code == 1
    assert "MEM002" in ids(document)


def test_a_plan_is_checked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "plan.json", plan_module.encode(plans.dense_on_all()).decode())
    assert run(capsys, path)[0] == 0
    code, document = run(capsys, write(tmp_path, "no.json", plan_module.encode(plans.nothing()).decode()))
    assert code == 1
    assert ids(document) == {"PLN001"}


def test_a_command_line_stands_after_two_dashes_or_in_a_file_or_on_stdin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["vllm", "serve", "Qwen/Qwen3-32B", "--host", "127.0.0.1", "--swap-space", "4"]
    assert (code_ids := run(capsys, "--", *words))[0] == 1
    assert ids(code_ids[1]) == {"VER002"}
    code, document = run(capsys, write(tmp_path, "start.sh", " ".join(words)))
    assert (code, ids(document)) == (1, {"VER002"})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(" ".join(words).encode())))
    code, document = run(capsys, "-")
    assert (code, document["files"][0]["file"]) == (1, "stdin")


def test_another_release_gives_another_answer(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--", "vllm", "serve", "m", "--host", "127.0.0.1", "--shutdown-timeout", "60"]
    from aim_engine import backend

    engine = backend.get("vllm")
    for version in engine.versions():
        has = any("--shutdown-timeout" in flag.flags for flag in engine.release(version).flags)
        assert run(capsys, "--engine-version", version, *line)[0] == (0 if has else 1)
    assert main.run(["validate", "--engine-version", "0.1.0", *line]) == 2


def test_manifests_in_several_files_are_judged_together_and_findings_know_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "vllm"},
        "spec": {"selector": {"app": "aim-engine"}, "ports": [{"port": 8000}]},
    }
    first = write(tmp_path, "a.yaml", FIRST_KUBERNETES)
    second = write(tmp_path, "b.yaml", service)
    _, document = run(capsys, first, second)
    by_file = {Path(file["file"]).name: {finding["id"] for finding in file["findings"]} for file in document["files"]}
    assert by_file["b.yaml"] == {"K8S025"}
    assert "VER010" in by_file["a.yaml"]


def test_a_key_given_twice_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (FIRST_KUBERNETES, {"services": {"a": {"image": "x:1"}}}):
        text = yaml.safe_dump(content)
        doubled = text + text.splitlines()[0] + (" x\n" if "services" not in content else " {}\n")
        assert "MAN001" in ids(run(capsys, write(tmp_path, "x.yaml", doubled))[1])


def test_the_table_shows_severity_place_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["validate", write(tmp_path, "x.yaml", FIRST_KUBERNETES)]) == 1
    shown = capsys.readouterr().out
    for word in ("severity", "where", "remedy", "VER010", "containers[0]"):
        assert word in shown


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.yaml", ""),
        ("notes.txt", "hello"),
        ("x.yaml", "a: [1"),
        ("x.json", "[1, 2]"),
        ("x.yaml", "a: 1"),
        ("x.json", '{"schema": "aim-engine/plan/v9"}'),
    ],
)
def test_what_is_of_no_known_kind_is_wrong_input(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["validate", write(tmp_path, name, content)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_missing_files_folders_without_any_and_stray_options_are_wrong_input(tmp_path: Path) -> None:
    assert main.run(["validate", str(tmp_path / "none.yaml")]) == 2
    assert main.run(["validate", str(tmp_path)]) == 2
    assert main.run(["validate", "--", "-x"]) == 2
    assert main.run(["validate"]) == 2


def test_rules_on_the_model_and_the_card_are_judged_on_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--", "vllm", "serve", "Qwen/Qwen3-32B", "--tensor-parallel-size", "3", "--enable-expert-parallel"]
    assert main.run(["validate", "--gpu", "MI300X", "--json", *line]) == 1
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert {"PAR001", "PAR008", "ENV002"} <= {finding["id"] for finding in entry["findings"]}
    main.run(["validate", "--json", *line])
    (without,) = json.loads(capsys.readouterr().out)["files"]
    assert "ENV002" not in {finding["id"] for finding in without["findings"]}


def test_an_old_release_shows_its_advisories(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["docker", "run", "--device=/dev/kfd", "--device=/dev/dri", "vllm/vllm-openai-rocm:v0.13.0", "Qwen/Qwen3-8B"]
    assert main.run(["validate", "--json", "--", *line]) == 1
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert "CVE-2026-22807" in {finding["id"] for finding in entry["findings"]}


def test_sarif_names_rules_levels_and_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({**RECIPE, "gpu": "MI300X"}))
    main.run(["validate", "--sarif", str(file)])
    document = json.loads(capsys.readouterr().out)
    (run,) = document["runs"]
    assert document["version"] == "2.1.0"
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == str(file)


def test_a_profile_of_amd_is_judged_for_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parent.parent.parent / "examples" / "aim-profile.yaml"
    assert main.run(["validate", "--json", str(example)]) == 1
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert entry["kind"] == "AIM profile"
    assert {"VER002", "ATT009"} <= {finding["id"] for finding in entry["findings"]}
    broken = tmp_path / "broken.yaml"
    broken.write_text("metadata: {engine: vllm, gpu: MI300X, precision: fp5}\nengine_args: {}\n")
    assert main.run(["validate", str(broken)]) == 1
    assert "fp5" in capsys.readouterr().out


def test_fix_rewrites_a_file_shows_the_difference_and_judges_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "docker.json"
    file.write_text(json.dumps({**FIRST_DOCKER, "shm_size": "16g"}))
    assert main.run(["validate", "--fix", str(file)]) == 0
    shown = capsys.readouterr()
    assert '-  "image": "rocm/vllm:latest",' in shown.out
    assert "VLLM_USE_TRITON_FLASH_ATTN=0 -> (dropped)" in shown.err
    assert "command" not in json.loads(file.read_text())
    main.run(["validate", "--fix", str(file)])
    assert "-  " not in capsys.readouterr().out


def test_fix_says_a_line_anew_and_leaves_scripts_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["validate", "--fix", "--", "vllm", "serve", "Qwen/Qwen3-32B", "--swap-space", "4"]) == 0
    assert "+ vllm serve Qwen/Qwen3-32B\n" in capsys.readouterr().out
    script = tmp_path / "run.sh"
    script.write_text("vllm serve Qwen/Qwen3-32B --swap-space 4\n")
    assert main.run(["validate", "--fix", str(script)]) == 1
    assert "not rewritten" in capsys.readouterr().err
    assert script.read_text() == "vllm serve Qwen/Qwen3-32B --swap-space 4\n"


LARGE = [
    *("--model", "meta-llama/Llama-3.1-70B-Instruct", "--dtype", "bf16", "--tensor-parallel-size", "8"),
    *("--max-model-len", "32768", "--max-num-batched-tokens", "8192", "--trust-remote-code", "--host", "0.0.0.0"),
]


@pytest.mark.parametrize("shape", ["docker", "kubernetes"])
def test_the_first_specifications_example_of_70b_is_reported_as_what_it_is_today_and_mended(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = {**FIRST_DOCKER, "args": LARGE}
    if shape == "kubernetes":
        content = json.loads(json.dumps(FIRST_KUBERNETES))
        content["spec"]["template"]["spec"]["containers"][0]["args"] = LARGE
    path = write(tmp_path, "first.yaml", content)
    code, document = run(capsys, path)
    found = {finding["id"]: finding for finding in document["files"][0]["findings"]}
    assert code == 1
    assert {"VER007", "VER009", "VER010", "PAR031", "MOD003", "SEC003", "VER021"} <= set(found)
    assert "8 GPUs" in found["PAR031"]["message"]
    assert "--tensor-parallel-size 1" in found["PAR031"]["remedy"]
    assert all(found[name]["remedy"] for name in ("VER007", "VER010", "MOD003"))
    main.run(["validate", "--fix", path])
    capsys.readouterr()
    left = {finding["id"] for finding in run(capsys, path)[1]["files"][0]["findings"]}
    assert not {"VER007", "VER009", "VER010", "MOD003", "SEC003", "VER021"} & left


def test_engine_arguments_as_a_mapping_are_judged_like_the_line_they_stand_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"model": "Qwen/Qwen3-32B", "dtype": "bf16", "swap_space": 4, "enable-prefix-caching": True, "port": 8000}
    code, document = run(capsys, write(tmp_path, "config.yaml", content))
    (entry,) = document["files"]
    assert code == 1
    assert entry["kind"] == "engine arguments"
    assert {"VER021", "VER002"} <= {finding["id"] for finding in entry["findings"]}


def test_a_folder_of_folders_names_those_that_can_be_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(plan_module.encode(plans.replicas()))
    assert main.run(["render", str(plan), "-t", "kustomize", "-o", str(tmp_path / "out")]) == 0
    assert main.run(["validate", str(tmp_path / "out")]) == 2
    assert f"aim-engine validate {tmp_path}/out/base" in capsys.readouterr().err
