"""What every place to run on offers: start, status, logs, stop; and the values they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import msgspec

from aim_engine.planner.plan import Plan
from aim_engine.render.artifact import Options

Progress = Callable[[str], None]
"""Told in one line each what is going on."""
State = Literal["starting", "ready", "unresponsive", "failed", "died", "stopped", "unknown"]
"""unresponsive: the process lives but /health does not answer; failed: it never became ready; died: it was ready."""


def silent(line: str) -> None:
    """Tells nobody."""


class ProcessRef(msgspec.Struct, frozen=True, kw_only=True):
    """A process that can be told from a later one with the same number."""

    pid: int
    start_ticks: int
    """Start time since boot, in clock ticks, as /proc says it."""
    boot_id: str
    """Random id of the boot it belongs to."""


class Deployment(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/deployment/v1"):
    """A model that was started somewhere: what it takes to find it again, ask it and stop it."""

    name: str
    target: Literal["local", "docker", "kubernetes"]
    model_id: str
    served_as: str
    """The name requests must use."""
    group: str = ""
    """Name of the deployment this is one replica of; empty when it is the only one."""
    engine: str
    engine_version: str
    state: Literal["starting", "ready", "failed", "stopped", "applied"]
    """As far as it came when last written; `status` says how it is now. applied: handed to a cluster."""
    created_at: str
    """UTC, ISO 8601."""
    host: str
    port: int
    endpoint: str
    """Base URL as seen from here."""
    command: tuple[str, ...] = ()
    supervisor: ProcessRef | None = None
    """The process that watches a local engine; it leads the engine's session."""
    container_id: str | None = None
    image: str | None = None
    namespace: str | None = None
    folder: str = ""
    """Where record, plan, log and artifacts lie."""
    ready_s: float | None = None
    """Seconds from start to ready."""


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine ended."""

    returncode: int | None
    """Negative for a signal. None when nobody saw it end."""
    ended_at: str | None = None
    requested: bool = False
    """Did we ask it to?"""
    error: str = ""
    """Why it could not even be started."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The likely cause of a failure, and what to do."""

    id: str
    cause: str
    remedy: str
    evidence: str = ""
    """The line of the log that says so."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a deployment is right now."""

    state: State
    detail: str = ""
    exit: Exit | None = None
    diagnosis: Diagnosis | None = None


class Runner(Protocol):
    """A place to run on."""

    name: str

    def start(self, plan: Plan, options: Options, progress: Progress) -> Deployment:
        """Start `plan` and wait until it is ready. Raises: EngineFailed, Unreachable, InvalidInput.

        Interrupted, or on any error, nothing it started is left running. Of several replicas on one host the first is
        returned; each has a record of its own, all with the same `group`.
        """
        ...

    def status(self, deployment: Deployment) -> Status:
        """How it is now."""
        ...

    def logs(self, deployment: Deployment, *, lines: int, follow: bool) -> Iterator[str]:
        """The last `lines` lines of its log, then new ones as they come when `follow`."""
        ...

    def stop(self, deployment: Deployment, progress: Progress) -> Deployment:
        """End it and everything it started. Idempotent."""
        ...
