"""An address on this machine that leads to a Service inside a cluster, for as long as somebody needs it.

`kubectl proxy` and not `kubectl port-forward`: that leads to one pod of a Service, this to another one with each request, as the Service
does, so that a load reaches every replica. It serves nothing but that Service, and only on loopback.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aim_engine.deploy import interrupt, process
from aim_engine.errors import Unreachable

_START_S, _GRACE_S = 20.0, 3.0
_SERVES = re.compile(rb"Starting to serve on \S*:(\d+)")


@contextmanager
def service(namespace: str, name: str) -> Iterator[str]:
    """The address of a Service while inside; nothing of it is left afterwards, not after Ctrl-C or SIGTERM either.

    Raises: Unreachable without kubectl, or when it does not start.
    """
    program = shutil.which("kubectl")
    what = f"the Service {name} in {namespace} is not reached from here"
    if program is None:
        raise Unreachable(
            what,
            why="kubectl is not installed, which leads there through the API server",
            hint="install kubectl, or name an address that leads there with --endpoint",
        )
    path = f"/api/v1/namespaces/{namespace}/services/{name}:http/proxy"
    command = [program, "proxy", "--port=0", "--address=127.0.0.1", f"--accept-paths=^{re.escape(path)}/.*$"]
    with interrupt.raised():
        # A session of its own: Ctrl-C is for us, who still need it while what was changed is taken back.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield f"http://127.0.0.1:{_port(child, what)}{path}"
        finally:
            with interrupt.held_off():
                process.end_session(child.pid, grace_s=_GRACE_S)
                child.wait()
                if child.stdout is not None:
                    child.stdout.close()


def _port(child: subprocess.Popen[bytes], what: str) -> int:
    """The port that it says it listens on. Raises: Unreachable."""
    if child.stdout is None:
        raise TypeError("its output is not a pipe")
    said, ends = b"", time.monotonic() + _START_S
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        while (found := _SERVES.search(said)) is None:
            part = b""
            if ready.select(max(0.0, ends - time.monotonic())):
                part = os.read(child.stdout.fileno(), 4096)
            if not part:
                lines = said.decode("utf-8", "replace").strip().splitlines()
                raise Unreachable(
                    what,
                    why=f"kubectl proxy: {lines[-1]}" if lines else "kubectl proxy says nothing",
                    hint="kubectl proxy --port=0  shows why; or name an address that leads there with --endpoint",
                )
            said += part
    return int(found[1])
