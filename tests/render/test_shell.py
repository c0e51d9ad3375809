"""The script of several replicas, really run with a stand-in engine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import plans
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script for two replicas, and an engine that writes down its process and port and lives until it is told to end."""
    engine = tmp_path / "bin" / "vllm"
    engine.parent.mkdir()
    engine.write_text(
        '#!/bin/sh\necho "$$ $HIP_VISIBLE_DEVICES $*" >"$RECORD/$$.tmp"\nmv "$RECORD/$$.tmp" "$RECORD/$$.started"\n'
        'while [ ! -e "$RECORD/$HIP_VISIBLE_DEVICES.die" ]; do sleep 0.1; done\nexit 7\n'
    )
    engine.chmod(0o755)
    (file,) = render(plans.replicas(), "shell", Options(name="demo", port=9100))
    path = tmp_path / "x.sh"
    path.write_text(file.content)
    path.chmod(0o755)
    return path


def start(shell: str, script: Path) -> tuple[subprocess.Popen[bytes], dict[str, tuple[int, str]]]:
    environment = {"PATH": f"{script.parent}/bin:{os.environ['PATH']}", "RECORD": str(script.parent), "HOME": "/"}
    process = subprocess.Popen([shell, str(script)], env=environment)
    deadline = time.monotonic() + 20
    while len(found := list(script.parent.glob("*.started"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lines = [path.read_text().split(maxsplit=2) for path in found]
    return process, {devices: (int(pid), command) for pid, devices, command in lines}


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_each_replica_has_its_own_devices_and_port_and_ctrl_c_ends_all(shell: str, script: Path) -> None:
    process, engines = start(shell, script)
    assert {devices: command.split("--port ")[1].split()[0] for devices, (_, command) in engines.items()} == {
        "0,1": "9100",
        "2,3": "9101",
    }
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert all(gone(pid) for pid, _ in engines.values())


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_replica_that_ends_takes_the_others_with_it_and_its_code_is_returned(shell: str, script: Path) -> None:
    process, engines = start(shell, script)
    (script.parent / "2,3.die").touch()
    assert process.wait(timeout=20) == 7
    assert all(gone(pid) for pid, _ in engines.values())


def test_a_missing_engine_is_said_plainly(script: Path) -> None:
    (script.parent / "bin" / "vllm").unlink()
    done = subprocess.run(
        ["/bin/sh", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 127
    assert "vllm 0.32.0 is needed" in done.stderr
