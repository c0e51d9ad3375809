"""Is a port free, and who has it if not?

Asked before an engine is started, because engines bind with SO_REUSEPORT: two of them on one port both start and share
the requests.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from aim_engine.deploy import process
from aim_engine.errors import InvalidInput

_LISTEN = "0A"
"""TCP state in /proc/net/tcp. Source: include/net/tcp_states.h."""
_NEXT_PORTS = 100


def require_free(host: str, port: int) -> None:
    """Refuse a host and port that an engine could not have. Raises: InvalidInput saying who has it."""
    problem = _bind_error(host, port)
    if problem is None:
        return
    if problem == errno.EADDRINUSE:
        owner = holder(port)
        free = next((p for p in range(port + 1, min(port + _NEXT_PORTS, 65536)) if _bind_error(host, p) is None), None)
        raise InvalidInput(
            f"port {port} on {host} is in use",
            why=f"held by {owner}" if owner else "its owner cannot be read by this user",
            hint=f"--port {free}" if free else "choose another port with --port",
        )
    if problem in (errno.EACCES, errno.EPERM):
        raise InvalidInput(
            f"port {port} may not be used by this user", why="ports below 1024 need privileges", hint="--port 8000"
        )
    if problem == errno.EADDRNOTAVAIL:
        raise InvalidInput(f"{host} is not an address of this machine", hint="--host 127.0.0.1, or 0.0.0.0 for all")
    raise InvalidInput(f"port {port} on {host} cannot be used", why=os.strerror(problem), hint="--host 127.0.0.1")


def holder(port: int) -> str | None:
    """Who listens on a TCP port: `process 123 (python server.py)`; None when it cannot be told."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for pid in process.all_ids():
        try:
            links = [str(link.readlink()) for link in Path("/proc", str(pid), "fd").iterdir()]
        except OSError:
            continue
        if any(link in inodes for link in links):
            command = process.command_line(pid)
            return f"process {pid} ({command[:80]})" if command else f"process {pid}"
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            rows = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes


def _bind_error(host: str, port: int) -> int | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as err:
        raise InvalidInput(f"'{host}' is not an address", why=err.strerror, hint="--host 127.0.0.1") from err
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as err:
            return err.errno or errno.EINVAL
    return None
