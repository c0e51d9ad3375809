"""What the tools installed on this machine say of its GPUs: each asked in a process of its own that has a limited time.

A driver in trouble makes these tools hang, sometimes beyond being killed. They are therefore asked last, only add to what the
kernel's files already say, write to a file instead of a pipe, and are left behind when they do not end.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from aim_engine.hardware import amdsmi, rocmsmi
from aim_engine.hardware.cluster import Finding, Node

LIMIT_S = 15.0
"""All tools together; a first call may wait for the driver to wake."""
MOST_BYTES = 64 * 1024 * 1024
_AMD_SMI = (("static", "--json"), ("metric", "--json"), ("list", "--json"), ("partition", "--current", "--json"))
_ROCM_SMI = (("--showallinfo", "--json"),)
_LIBRARY = Path(__file__).parent / "amdsmi_library.py"
_FOLDERS = ("/opt/rocm/bin",)
_END_S = 1.0
"""How long a killed process may take to end."""
ABSENT = "amdsmi cannot be imported"
"""What the library's script says where there is no library."""
logger = logging.getLogger(__name__)


def ask(limit_s: float = LIMIT_S) -> tuple[tuple[Node, ...], tuple[Finding, ...]]:
    """What amd-smi says, else its Python library, else rocm-smi; and which of them are here but gave no useful answer.

    Takes at most `limit_s`, however many of them hang. Unit: seconds.
    """
    end_s = time.monotonic() + limit_s
    findings: list[Finding] = []
    for name, commands in _installed():
        outputs, trouble = _outputs(commands, end_s)
        if outputs:
            node = rocmsmi.read(outputs, name) if name == rocmsmi.NAME else amdsmi.read(outputs, name)
            return (_said_by(name, node),), tuple(findings)
        logger.debug("%s: %s", name, trouble)
        if ABSENT not in trouble:
            findings.append(_silent(name, trouble))
    return (), tuple(findings)


def _said_by(name: str, node: Node) -> Node:
    """The node with its fields ascribed to the tool that was asked: the library's output is read as the program's."""
    return msgspec.structs.replace(
        node,
        devices=tuple(
            msgspec.structs.replace(device, sources=dict.fromkeys(device.sources, name)) for device in node.devices
        ),
    )


def _installed() -> Iterator[tuple[str, Sequence[Sequence[str]]]]:
    """The tools that are here, the best first, and the commands to ask them with."""
    amd_smi, rocm_smi = program("amd-smi"), program("rocm-smi")
    if amd_smi is not None:
        yield amdsmi.NAME, [(amd_smi, *command) for command in _AMD_SMI]
    python = next((found for name in ("python3", "python") if (found := shutil.which(name))), sys.executable)
    if amd_smi is not None or rocm_smi is not None:
        yield amdsmi.LIBRARY, [(python, str(_LIBRARY))]
    if rocm_smi is not None:
        yield rocmsmi.NAME, [(rocm_smi, *command) for command in _ROCM_SMI]


def program(name: str) -> str | None:
    """Where a tool of this name is installed; None where it is not."""
    return shutil.which(name) or next(
        (found for folder in _FOLDERS if (found := shutil.which(name, path=folder))), None
    )


def _outputs(commands: Sequence[Sequence[str]], end_s: float) -> tuple[list[str], str]:
    """What the commands print that describes GPUs, and what went wrong with the first of them; one that hangs is the last."""
    found: list[str] = []
    trouble = ""
    for command in commands:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return found, trouble or "no time was left to ask it"
        output, failed = run(command, left_s)
        if output is not None and (amdsmi.is_one(output) or rocmsmi.is_one(output)):
            found.append(output)
            continue
        trouble = trouble or failed or "its output describes no GPU"
        if output is None or not found:
            return found, trouble
    return found, trouble


def run(command: Sequence[str], limit_s: float) -> tuple[str | None, str]:
    """What a command prints, and what went wrong: None for the output when it could not be started or did not end in time."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
            )
        except OSError as err:
            return None, err.strerror or str(err)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return None, f"it did not answer in {limit_s:.0f} s"
        out.seek(0)
        errors.seek(0)
        said = errors.read(2000).decode("utf-8", "replace").strip().splitlines()
        text = out.read(MOST_BYTES).decode("utf-8", "replace")
        return text, f"it ended with {code}: {said[-1] if said else 'no message'}" if code else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all it started; one that the kernel holds is left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(_END_S)
    except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired) as err:
        logger.warning("process %d does not end: %s", process.pid, err)


def _silent(name: str, why: str) -> Finding:
    return Finding(
        id="HW033",
        severity="warning",
        message=f"{name} is installed here, but says nothing of GPUs: {why}",
        remedy="what the kernel's files show is used; run it by hand to see why",
    )
