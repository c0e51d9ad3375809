"""Stands beside a local engine: writes down how it ended and leaves nothing of it behind.

    python -m aim_engine.deploy.supervise FOLDER GRACE_S -- PROGRAM ARGUMENT...

The engine runs in FOLDER, where no folder is named like a model. Started in a session of its own by the local runner, it outlives the command line. The engine's workers are processes of
the same session; when the engine's main process ends, however it ends, they are ended too. SIGTERM stops the engine and
allows it GRACE_S seconds (vLLM 0.32 loses a SIGTERM that comes while it loads, and waits for ever for a request in
flight); a second SIGTERM allows no more. Its temporary files and shared memory go with it, since vLLM leaves both behind
when it is killed: 240 MiB in /dev/shm each time. It writes FOLDER/engine.log and, when all is over, FOLDER/exit.json.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from aim_engine.deploy import process

_PR_SET_CHILD_SUBREAPER = 36
_OURS = re.compile(r"PYTHON(?!UNBUFFERED|HASHSEED).*|VIRTUAL_ENV.*|__PYVENV_LAUNCHER__")
"""What describes the Python of the command line would mislead the engine's own."""


def main(argv: list[str]) -> int:
    """Run one engine to its end."""
    folder, grace_s = Path(argv[0]), float(argv[1])
    command = argv[argv.index("--") + 1 :]
    _adopt_orphans()
    requested = False
    engine: subprocess.Popen[bytes] | None = None
    shared: set[Path] = set()
    scratch = Path(tempfile.mkdtemp(prefix="aim-engine-"))

    def kill(_number: int, _frame: FrameType | None) -> None:
        if engine is not None:
            process.send(engine.pid, signal.SIGKILL)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        again, requested = requested, True
        if engine is None:
            return
        shared.update(process.shared_memory(_others()))
        if again:
            kill(number, frame)
        else:
            process.send(engine.pid, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, max(grace_s, 0.01))

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, kill)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        with (folder / "engine.log").open("ab") as log:
            engine = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environ(scratch),
                cwd=folder,
            )
    except OSError as err:
        shutil.rmtree(scratch, ignore_errors=True)
        _write(folder, {"returncode": 127, "requested": requested, "error": f"{command[0]}: {err.strerror}"})
        return 1
    if requested:  # asked to stop while it was being started
        process.send(engine.pid, signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, max(grace_s, 0.01))
    returncode = engine.wait()
    signal.setitimer(signal.ITIMER_REAL, 0)
    shared.update(process.shared_memory(_others()))
    process.end_session(os.getsid(0), grace_s=2.0, spare=os.getpid())
    _reap()
    for segment in shared:
        segment.unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    _write(folder, {"returncode": returncode, "requested": requested})
    return 0


def _others() -> list[int]:
    return [pid for pid in process.session_members(os.getsid(0)) if pid != os.getpid()]


def _environ(scratch: Path) -> dict[str, str]:
    """The engine's environment: a temporary folder of its own, but the usual place for compiled kernels."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.fullmatch(name)}
    kept.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch.parent / f"torchinductor_{os.getuid()}"))
    return {**kept, "TMPDIR": str(scratch)}


def _write(folder: Path, document: dict[str, object]) -> None:
    document["ended_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    partial = folder / "exit.json.partial"
    with contextlib.suppress(FileNotFoundError):  # the deployment was removed meanwhile
        partial.write_text(json.dumps(document))
        partial.replace(folder / "exit.json")


def _adopt_orphans() -> None:
    """Become the parent of workers whose own parent dies, so that they can be waited for."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
