from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import machines


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from aim_engine.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "doctor", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )


def test_faults_come_as_a_table_and_then_with_their_commands(tmp_path: Path) -> None:
    machines.well_kept(machines.rx9070xt(tmp_path / "gpu-12", power_cap_w=120))
    machines.write(tmp_path / "gpu-12/proc/sys/kernel", {"numa_balancing": 1})
    done = run("--root", str(tmp_path / "gpu-12"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gpu-12: 1 x RX9070XT, Linux 6.8.0-60-generic, amdgpu 6.16.6\n")
    assert "    sudo sysctl -w kernel.numa_balancing=0\n" in done.stdout
    assert "echo 304000000 | sudo tee" in done.stdout
    assert "\n2 warnings; " in done.stdout
    assert "could not be told:" in done.stdout


def test_what_breaks_serving_makes_the_exit_code(tmp_path: Path) -> None:
    machines.well_kept(machines.mi300x(tmp_path, count=2))
    machines.write(tmp_path, {"proc/self/mounts": "shm /dev/shm tmpfs rw,size=65536k 0 0"})
    done = run("--root", str(tmp_path), "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["schema"] == "aim-engine/diagnosis/v1"
    assert document["breaks_serving"] is True
    assert [(each["id"], each["severity"]) for each in document["problems"]] == [("HST021", "error")]


def test_a_recording_that_is_not_there_is_said() -> None:
    done = run("--root", "/does/not/exist")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
