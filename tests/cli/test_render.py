"""`aim-engine render`: plans from files and stdin, files written with care."""

from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import plans
from aim_engine.cli import files, main
from aim_engine.errors import Unreachable
from aim_engine.planner import plan as plan_module
from aim_engine.render.artifact import Artifact
from aim_engine.render.targets import TARGETS


@pytest.fixture
def plan_file(tmp_path: Path) -> str:
    path = tmp_path / "plan.json"
    path.write_bytes(plan_module.encode(plans.dense_on_all()))
    return str(path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("target", TARGETS)
def test_files_are_written_with_the_modes_they_need(target: str, plan_file: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    assert main.run(["render", plan_file, "-t", target, "--name", "demo", "-o", str(folder)]) == 0
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert written
    for path in written:
        executable = path.suffix in (".sh", ".sbatch")
        wanted = 0o600 if path.name.endswith(".secret.env") else 0o755 if executable else 0o644
        assert mode(path) == wanted & ~_umask()


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_name_is_made_of_the_models(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["render", plan_file, "-t", "kubernetes"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert {document["metadata"]["name"] for document in documents} == {"qwen3-32b", "qwen3-32b-cache"}


def test_a_plan_comes_through_a_pipe_as_plan_prints_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["plan", "Qwen/Qwen3-32B", "--gpus", "8xMI300X", "--json"]) == 0
    printed = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(printed.encode())))
    assert main.run(["render", "-", "--target", "kubernetes"]) == 0
    kinds = [document["kind"] for document in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds[:3] == ["ServiceAccount", "PersistentVolumeClaim", "Deployment"]


def test_json_is_one_document_with_every_file(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["render", plan_file, "-t", "docker", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "aim-engine/rendered/v1"
    assert [file["path"] for file in document["files"]] == ["qwen3-32b.docker.sh", "qwen3-32b.secret.env"]


def test_options_arrive_in_the_files(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--name", "chat", "--port", "9000", "--namespace", "ml", "--storage-class", "fast", "--api-key"]
    assert main.run(["render", plan_file, "-t", "kubernetes", *words]) == 0
    by_kind = {document["kind"]: document for document in yaml.safe_load_all(capsys.readouterr().out)}
    assert by_kind["Service"]["spec"]["ports"][0]["port"] == 9000
    assert by_kind["PersistentVolumeClaim"]["spec"]["storageClassName"] == "fast"
    assert {document["metadata"]["namespace"] for document in by_kind.values()} == {"ml"}
    env = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"]
    key = next(entry for entry in env if entry["name"] == "VLLM_API_KEY")
    assert key["valueFrom"]["secretKeyRef"] == {"name": "chat-api-key", "key": "key", "optional": False}


def test_writing_again_changes_nothing_and_says_so(
    plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["render", plan_file, "-t", "docker", "-o", str(tmp_path / "out")]
    assert main.run(command) == 0
    capsys.readouterr()
    assert main.run(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/out/qwen3-32b.docker.sh (unchanged)",
        f"{tmp_path}/out/qwen3-32b.secret.env (kept)",
    ]


def test_a_file_that_differs_is_overwritten_only_by_force_and_one_with_tokens_never(
    plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["render", plan_file, "-t", "docker", "-o", str(out)]
    assert main.run(command) == 0
    script, secret = out / "qwen3-32b.docker.sh", out / "qwen3-32b.secret.env"
    written = script.read_text()
    script.write_text("mine\n")
    secret.write_text("HF_TOKEN=mine\n")
    assert main.run(command) == 2
    assert script.read_text() == "mine\n"
    assert "--force" in capsys.readouterr().err
    assert main.run([*command, "--force"]) == 0
    assert script.read_text() == written
    assert mode(script) & 0o100
    assert secret.read_text() == "HF_TOKEN=mine\n"


def test_a_plan_that_chose_nothing_is_the_answer_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(plan_module.encode(plans.nothing()))
    assert main.run(["render", str(path), "-t", "docker"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the weights exceed the memory" in captured.err
    assert "2xMI300X" in captured.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("not json", "it is not JSON"),
        ("[]", "it has no schema"),
        ('{"schema": "aim-engine/plan/v0"}', "'aim-engine/plan/v0', not 'aim-engine/plan/v1'"),
        ('{"schema": "aim-engine/cluster/v1"}', "'aim-engine/cluster/v1'"),
        ('{"schema": "aim-engine/plan/v1"}', "missing required field"),
    ],
)
def test_what_is_no_plan_is_said_with_the_way_to_make_one(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    assert main.run(["render", str(path), "-t", "docker"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "aim-engine plan" in error
    assert "Traceback" not in error


def test_unreadable_files_are_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = tmp_path / "x.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    for name in (str(tmp_path / "none"), str(tmp_path), str(binary), "a\0b"):
        assert main.run(["render", name, "-t", "docker"]) == 2
    assert "is not a text file" in capsys.readouterr().err


def test_several_files_that_cannot_be_one_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(plan_module.encode(plans.replicas()))
    assert main.run(["render", str(path), "-t", "env"]) == 2
    assert "-o DIR" in capsys.readouterr().err


def test_contradicting_options_are_wrong_input(plan_file: str) -> None:
    assert main.run(["render", plan_file, "-t", "docker", "-o", "x", "--stdout"]) == 2
    assert main.run(["render", plan_file, "-t", "nomad"]) == 2
    assert main.run(["render", plan_file]) == 2


def test_a_folder_that_cannot_be_written_is_said_and_leaves_nothing(
    plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main.run(["render", plan_file, "-t", "docker", "-o", str(tmp_path / "file")]) in (2, 3)
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_leaves_no_partial_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.fdopen

    def full(descriptor: int, how: str) -> Any:
        opened = real(descriptor, how)
        if len(list(tmp_path.iterdir())) > 1:
            opened.close()
            raise OSError(28, "No space left on device")
        return opened

    monkeypatch.setattr(os, "fdopen", full)
    artifacts = [Artifact(path=name, content="x") for name in ("a", "b", "c")]
    with pytest.raises(Unreachable) as caught:
        files.write_artifacts(tmp_path, artifacts, force=False)
    assert caught.value.why == "No space left on device"
    assert list(tmp_path.iterdir()) == []
