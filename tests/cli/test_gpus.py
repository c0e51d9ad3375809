from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import machines


def run(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from aim_engine.cli.main import main; sys.exit(main())",
            "gpus",
            *arguments,
        ],
        capture_output=True,
        text=True,
        input=stdin,
        env={**os.environ, "NO_COLOR": "1", **environment},
        check=False,
    )


def test_a_recorded_node_is_a_table_of_its_devices(tmp_path: Path) -> None:
    done = run("--root", str(machines.mi210_two_hives(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert "8 x MI210" in done.stdout
    assert "0000:63:00.0" in done.stdout
    assert "2 xGMI groups" in done.stdout
    assert "AMD EPYC 9654" in done.stdout


def test_an_archive_and_json_are_one_document(tmp_path: Path) -> None:
    machines.mi300x(tmp_path / "node", count=2)
    with tarfile.open(tmp_path / "node.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "node", arcname=".")
    done = run("--root", str(tmp_path / "node.tar.gz"), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "aim-engine/cluster/v1"
    node = document["nodes"][0]
    assert node["name"] == "node"
    assert [device["gpu"] for device in node["devices"]] == ["MI300X", "MI300X"]
    assert node["devices"][0]["readings"]["power_cap_w"] == 750
    assert node["cpu"]["memory_total_bytes"] == 1536 * machines.GIB


def test_a_machine_without_gpu_still_says_what_it_has(tmp_path: Path) -> None:
    done = run("--root", str(machines.cpu_only(tmp_path)))
    assert done.returncode == 0
    assert "no AMD GPU" in done.stdout
    assert "avx512_bf16" in done.stdout
    assert "64.0 GiB of 64.0 GiB free" in done.stdout


def test_output_of_the_tool_is_read_from_stdin() -> None:
    text = "gpu,gpu_bdf,gpu_uuid\n0,0000:0c:00.0,c0ff\n1,0000:22:00.0,bbff\n"
    done = run("--from", "-", "--json", stdin=text)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["nodes"][0]["devices"]) == 2


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["--root", "/does/not/exist"], None, 2, "does not exist"),
        (["--from", "/does/not/exist"], None, 2, "cannot be read"),
        (["--from", "-"], "nothing", 3, "not output of amd-smi"),
        (["--from", "-", "--root", "/"], "", 2, "name different hardware"),
    ],
)
def test_bad_input_is_answered_without_a_traceback(
    arguments: list[str], stdin: str | None, code: int, says: str
) -> None:
    done = run(*arguments, stdin=stdin)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_links_are_shown_as_a_matrix(tmp_path: Path) -> None:
    dump = tmp_path / "topo.xml"
    pair = "".join(
        f'<pci busid="0000:{own}:00.0" vendor="0x1002" device="0x740c"><gpu dev="{n}" sm="104" gcn="gfx90a">'
        f'<xgmi target="0000:{other}:00.0" count="{count}"/></gpu></pci>'
        for n, (own, other, count) in enumerate((("11", "12", 4), ("12", "13", 1), ("13", "12", 1)))
    )
    dump.write_text(f'<system version="2"><cpu numaid="0">{pair}</cpu></system>')
    done = run("--from", str(dump))
    assert done.returncode == 0
    shown = done.stdout
    rows = [line.split() for line in shown[shown.index("links") :].splitlines() if line.strip()[:1].isdigit()]
    assert rows[1:] == [["0", "-", "die", "?"], ["1", "die", "-", "xGMI"], ["2", "?", "xGMI", "-"]]


def test_a_watch_repeats_until_it_is_interrupted(tmp_path: Path) -> None:
    root = machines.mi300x(tmp_path, count=1)
    command = [sys.executable, "-c", "import sys; from aim_engine.cli.main import main; sys.exit(main())", "gpus"]
    with subprocess.Popen(
        [*command, "--root", str(root), "--watch", "0.1", "--json"], stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        seen = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=20) == 0
    assert {one["nodes"][0]["devices"][0]["gpu"] for one in seen} == {"MI300X"}
