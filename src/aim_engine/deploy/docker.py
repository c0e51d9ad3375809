"""Runs a plan's containers on a Docker engine, or on Podman through its Docker-compatible socket.

What a container needs is decided in `render.docker`, so that what runs here is what `aim-engine render --target docker`
writes. DOCKER_HOST and the other variables of the docker command line are honoured.
"""

from __future__ import annotations

import contextlib
import os
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from aim_engine.deploy import chat, diagnose, endpoint, interrupt, ports
from aim_engine.deploy.local import now, ready_timeout_s
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment, Diagnosis, Exit, Progress, State, Status, silent
from aim_engine.errors import EngineFailed, InvalidInput, MissingExtra, Unreachable
from aim_engine.planner.plan import Plan
from aim_engine.render import docker as rendered
from aim_engine.render import serving
from aim_engine.render.artifact import Options
from aim_engine.render.docker import Container
from aim_engine.units import format_bytes

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container as Running

LABEL = "io.aim-engine.deployment"
"""Marks our containers, with the deployment's name as value."""
_POLL_S = 0.5
_STILL_WAITING_S = 20.0
_NS = 1_000_000_000
_RESTART: Any = {"Name": "unless-stopped", "MaximumRetryCount": 0}


class DockerRunner:
    """Starts plans as containers of the Docker engine that the environment names."""

    name = "docker"

    def __init__(
        self,
        store: Store,
        *,
        image: str | None = None,
        mounts: tuple[tuple[str, str], ...] = (),
        ready_timeout_s: float = 0.0,
        overlay: Path | None = None,
    ) -> None:
        """`image` replaces the release's own; `mounts` are further folders (host, container) to show read-only."""
        self._store = store
        self._image = image
        self._mounts = mounts
        self._ready_timeout_s = ready_timeout_s
        self._overlay = overlay

    def start(self, plan: Plan, options: Options, progress: Progress = silent) -> Deployment:
        """Start the plan's containers and wait until they answer. Raises: EngineFailed, InvalidInput, Unreachable."""
        from aim_engine import backend

        recipe = serving.chosen(plan).recipe
        if self._image is not None:
            options = msgspec.structs.replace(options, image=self._image)
        if options.model_path is not None:
            options = msgspec.structs.replace(options, model_path=str(Path(options.model_path).resolve()))
        if options.api_key_secret and not os.environ.get("VLLM_API_KEY"):
            raise InvalidInput("an API key was asked for but none is set", hint="export VLLM_API_KEY=...")
        wanted = rendered.containers(plan, options, backend.get(recipe.engine, self._overlay))
        timeout_s = ready_timeout_s(plan, options, self._ready_timeout_s)
        client = connect()
        started = time.monotonic()
        deployments = [
            Deployment(
                name=container.name,
                target="docker",
                model_id=recipe.model_id,
                served_as=recipe.model_id,
                group=options.name if len(wanted) > 1 else "",
                engine=recipe.engine,
                engine_version=recipe.engine_version,
                state="starting",
                created_at=now(),
                host=container.host,
                port=container.port,
                endpoint=endpoint.base_url(_reached_at(client, container.host), container.port),
                command=(*(container.entrypoint or ()), *container.args),
                image=container.image,
                folder=str(self._store.folder(container.name)),
            )
            for container in wanted
        ]
        with contextlib.ExitStack() as held:
            held.callback(client.close)
            for container in wanted:
                held.enter_context(self._store.reserved(container.name))
                self._refuse_running(client, container)
                if _is_here(client):
                    ports.require_free(container.host, container.port)
                    _require_host(container)
            held.enter_context(interrupt.raised())
            _pull(client, wanted[0].image, progress)
            try:
                for index, container in enumerate(wanted):
                    self._store.clear(container.name)
                    self._store.save(deployments[index], plan)
                    running = self._create(client, container, options)
                    deployments[index] = msgspec.structs.replace(deployments[index], container_id=running.id)
                    self._store.save(deployments[index])
                    _start(running)
                    progress(f"started container {container.name} from {container.image}")
                for index in range(len(wanted)):
                    deployments[index] = self._await(client, deployments[index], started, timeout_s, progress)
                    self._store.save(deployments[index])
            except BaseException as err:
                with interrupt.held_off():
                    for deployment in deployments:
                        # By name, since none had it before: an interruption may come before Docker told the id.
                        made = _by_name(client, deployment.name)
                        self._keep_log(deployment, made)
                        _remove(made, timeout_s=3)
                        ended = "failed" if isinstance(err, Exception) else "stopped"
                        self._store.save(msgspec.structs.replace(deployment, state=ended, container_id=None))
                raise
        return deployments[0]

    def status(self, deployment: Deployment) -> Status:
        """Running, answering, or how the container ended and why."""
        with contextlib.closing(connect()) as client:
            running = _find(client, deployment)
            if running is None:
                gone = deployment.state in ("stopped", "failed")
                return Status(
                    state="stopped" if deployment.state == "stopped" else "failed" if gone else "died",
                    detail="" if gone else "its container is gone",
                )
            state = running.attrs["State"]
            if running.status in ("running", "restarting", "paused", "created"):
                if running.status == "running" and endpoint.answers(f"{deployment.endpoint}/health"):
                    return Status(state="ready")
                if deployment.state == "starting":
                    return Status(state="starting", detail=f"its container is {running.status}")
                return Status(state="unresponsive", detail=f"its container is {running.status} but does not answer")
            ended = Exit(
                returncode=int(state["ExitCode"]), ended_at=state.get("FinishedAt"), error=state.get("Error", "")
            )
            verdict = self._verdict(deployment, running, ended.returncode)
            outcome: State = "died" if deployment.ready_s is not None else "failed"
            return Status(state=outcome, detail=verdict.cause, exit=ended, diagnosis=verdict)

    def logs(self, deployment: Deployment, *, lines: int = 100, follow: bool = False) -> Iterator[str]:
        """The container's output; of one that is gone, what was kept when it failed."""
        from aim_engine.deploy import logfile

        with contextlib.closing(connect()) as client:
            running = _find(client, deployment)
            if running is None:
                yield from logfile.tail(self._store.folder(deployment.name) / "engine.log", lines)
            elif follow:
                yield from _lines(running.logs(stream=True, follow=True, tail=lines))
            else:
                yield from _tail(running, lines)

    def stop(self, deployment: Deployment, progress: Progress = silent) -> Deployment:
        """Stop and remove the container. Its volume of compiled kernels stays, so that the next start is fast."""
        with contextlib.closing(connect()) as client:
            running = _find(client, deployment)
            if running is not None:
                progress(f"stopping container {deployment.name}")
                _remove(running, timeout_s=15)
        stopped = msgspec.structs.replace(deployment, state="stopped", container_id=None)
        if deployment.name in self._store.names():
            self._store.save(stopped)
        return stopped

    def _create(self, client: DockerClient, container: Container, options: Options) -> Running:
        from docker.types import Mount

        env = dict(container.env)
        if options.model_path is None and os.environ.get("HF_TOKEN"):
            env["HF_TOKEN"] = os.environ["HF_TOKEN"]
        if options.api_key_secret:
            env["VLLM_API_KEY"] = os.environ["VLLM_API_KEY"]
        mounts = [
            *(
                Mount(target, str(Path(source).expanduser()), type="bind", read_only=read_only)
                for source, target, read_only in container.mounts
            ),
            *(Mount(target, source, type="bind", read_only=True) for source, target in self._mounts),
            *(Mount(target, name, type="volume") for name, target in container.volumes),
        ]
        settings: dict[str, Any] = {
            "image": container.image,
            "name": container.name,
            "command": list(container.args),
            "environment": env,
            "mounts": mounts,
            "ports": {f"{serving.CONTAINER_PORT}/tcp": (container.host, container.port)},
            "shm_size": container.shm_bytes,
            "cap_drop": ["ALL"],
            "cap_add": list(rendered.CAPABILITIES),
            "security_opt": ["no-new-privileges"],
            "devices": [f"{device}:{device}:rwm" for device in container.devices],
            "group_add": _groups(client, container),
            "healthcheck": {
                "test": ["CMD", *rendered.HEALTH_COMMAND],
                "interval": rendered.HEALTH_INTERVAL_S * _NS,
                "timeout": 6 * _NS,
                "retries": rendered.HEALTH_RETRIES,
                "start_period": container.startup_s * _NS,
            },
            "labels": {LABEL: container.name},
            "detach": True,
        }
        if container.entrypoint is not None:
            settings["entrypoint"] = list(container.entrypoint)
        with _said(f"the container {container.name} could not be made"):
            created: Running = client.containers.create(**settings)
        return created

    def _await(
        self, client: DockerClient, deployment: Deployment, started: float, timeout_s: float, progress: Progress
    ) -> Deployment:
        """Wait for one container, learn under which name it serves, and let Docker restart it from now on."""
        known = diagnose.milestones(deployment.engine, self._overlay)
        told, seen, quiet_since = "", 0, time.monotonic()
        while True:
            ready = endpoint.answers(f"{deployment.endpoint}/health", timeout_s=2.0)
            running = _find(client, deployment)
            lines = [] if running is None else _tail(running, "all")
            for line in lines[seen:]:
                says = diagnose.progress_line(line, known)
                if says is not None and says != told:
                    progress(says)
                    told, quiet_since = says, time.monotonic()
            seen = len(lines)
            if running is None or running.status in ("exited", "dead"):
                raise self._failed(deployment, running, "died while it started")
            if ready:
                break
            now_s = time.monotonic()
            if now_s - started > timeout_s:
                raise self._failed(deployment, running, f"was not ready after {now_s - started:.0f} s")
            if now_s - quiet_since > _STILL_WAITING_S:
                progress(f"still starting after {now_s - started:.0f} s")
                quiet_since = now_s
            time.sleep(_POLL_S)
        names = chat.models(deployment.endpoint)
        with _said(f"the container {deployment.name} could not be told to restart by itself"):
            running.update(restart_policy=_RESTART)
        ready_s = round(time.monotonic() - started, 1)
        progress(f"ready after {ready_s:.0f} s at {deployment.endpoint}")
        served_as = deployment.served_as if deployment.served_as in names or not names else names[0]
        return msgspec.structs.replace(deployment, state="ready", served_as=served_as, ready_s=ready_s)

    def _failed(self, deployment: Deployment, running: Running | None, what: str) -> EngineFailed:
        code = None if running is None or running.status == "running" else int(running.attrs["State"]["ExitCode"])
        verdict = self._verdict(deployment, running, code)
        log = [] if running is None else _tail(running, diagnose.TAIL_LINES)
        why = "its container is gone" if running is None else verdict.cause
        return EngineFailed(
            f"the engine of {deployment.name} {what}", why=why, hint=verdict.remedy, log_tail=diagnose.shown_tail(log)
        )

    def _verdict(self, deployment: Deployment, running: Running | None, code: int | None) -> Diagnosis:
        log = [] if running is None else _tail(running, diagnose.TAIL_LINES)
        if running is not None and running.attrs["State"].get("OOMKilled"):
            log, code = [], 137
        return diagnose.diagnose(log, code, diagnose.rules(deployment.engine, self._overlay))

    def _keep_log(self, deployment: Deployment, running: Running | None) -> None:
        if running is not None:
            log = "\n".join(_tail(running, "all"))
            (self._store.folder(deployment.name) / "engine.log").write_text(log + "\n", encoding="utf-8")

    def _refuse_running(self, client: DockerClient, container: Container) -> None:
        if container.name in self._store.names():
            present = self._store.load(container.name)
            if present.target != "docker" and present.state in ("ready", "starting", "applied"):
                raise InvalidInput(
                    f"'{container.name}' is already deployed ({present.target}) at {present.endpoint}",
                    hint=f"aim-engine down {container.name}, or choose another name with --name",
                )
        found = _by_name(client, container.name)
        if found is None:
            return
        if found.labels.get(LABEL) != container.name:
            raise InvalidInput(
                f"there is a container {container.name} that aim-engine did not make",
                hint=f"docker rm {container.name}, or choose another name with --name",
            )
        if found.status in ("running", "restarting", "paused"):
            raise InvalidInput(
                f"'{container.name}' is already deployed (docker)",
                hint=f"aim-engine down {container.name}, or choose another name with --name",
            )
        _remove(found, timeout_s=1)


def connect() -> DockerClient:
    """The Docker engine that DOCKER_HOST names, or the usual one. Raises: MissingExtra, Unreachable."""
    try:
        import docker
        from docker.errors import DockerException
    except ModuleNotFoundError as err:
        raise MissingExtra("docker", extra="docker", needed_for="running containers") from err
    where = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    client = None
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except (DockerException, OSError) as err:
        if client is not None:
            client.close()
        text = str(err)
        if "Permission denied" in text or "PermissionError" in text:
            raise Unreachable(
                f"the Docker engine at {where} may not be used by this user",
                why="permission denied",
                hint="add yourself to the group docker and log in again",
            ) from err
        raise Unreachable(
            f"no Docker engine answers at {where}",
            why=text.splitlines()[0][:200] if text else None,
            hint="start it (systemctl start docker), install it (apt install docker.io), or set DOCKER_HOST",
        ) from err
    return client


def _find(client: DockerClient, deployment: Deployment) -> Running | None:
    """The deployment's container as it is now: by its id, so that a namesake is not taken for it."""
    from docker.errors import NotFound

    if deployment.container_id is None:
        return None
    try:
        return client.containers.get(deployment.container_id)
    except NotFound:
        return None


def _by_name(client: DockerClient, name: str) -> Running | None:
    from docker.errors import NotFound

    try:
        return client.containers.get(name)
    except NotFound:
        return None


def _start(running: Running) -> None:
    with _said(f"the container {running.name} could not be started"):
        running.start()


def _remove(running: Running | None, *, timeout_s: int) -> None:
    from docker.errors import NotFound

    if running is None:
        return
    with contextlib.suppress(NotFound), _said(f"the container {running.name} could not be removed"):
        running.stop(timeout=timeout_s)
        running.remove(force=True)


def _pull(client: DockerClient, image: str, progress: Progress) -> None:
    """Have the image here. Raises: Unreachable when it cannot be fetched."""
    from docker.errors import ImageNotFound
    from docker.utils import parse_repository_tag

    with contextlib.suppress(ImageNotFound):
        client.images.get(image)
        return
    progress(f"pulling {image}")
    repository, tag = parse_repository_tag(image)
    layers: dict[str, tuple[int, int]] = {}
    told = time.monotonic()
    with _said(f"the image {image} could not be pulled", hint=f"check the name and the network: docker pull {image}"):
        for event in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in event:
                raise Unreachable(
                    f"the image {image} could not be pulled",
                    why=str(event["error"])[:300],
                    hint=f"check the name and the network: docker pull {image}",
                )
            detail = event.get("progressDetail") or {}
            if event.get("status") == "Downloading" and detail.get("total"):
                layers[event["id"]] = (detail.get("current", 0), detail["total"])
            if layers and time.monotonic() - told > 5.0:
                here, total = (sum(each[index] for each in layers.values()) for index in (0, 1))
                progress(f"{format_bytes(here)} of {format_bytes(total)}")
                told = time.monotonic()


def _groups(client: DockerClient, container: Container) -> list[str]:
    """Who may open the device files: by number where the host is this one, since an image need not know the names."""
    if not container.uses_gpus:
        return []
    if not _is_here(client):
        return ["video", "render"]
    numbers = set()
    for device in container.devices:
        nodes = sorted(Path(device).glob("renderD*")) if Path(device).is_dir() else [Path(device)]
        numbers |= {str(node.stat().st_gid) for node in nodes}
    return ["video", *sorted(numbers)]


def _require_host(container: Container) -> None:
    for device in container.devices:
        if not Path(device).exists():
            raise InvalidInput(
                f"{device} is missing, so the container would have no GPU",
                why="the amdgpu driver is not loaded, or this is not the machine with the GPUs",
                hint="aim-engine gpus shows what is here",
            )
    for source, _, read_only in container.mounts:
        folder = Path(source).expanduser()
        if read_only and not folder.is_dir():
            raise InvalidInput(f"the model folder {folder} does not exist")
        folder.mkdir(parents=True, exist_ok=True)


def _is_here(client: DockerClient) -> bool:
    return str(client.api.base_url).startswith(("http+docker://", "unix://"))


def _reached_at(client: DockerClient, host: str) -> str:
    """Where a published port of `host` is reached from here: on the engine's machine when that is another one."""
    if _is_here(client):
        return host
    return urllib.parse.urlsplit(str(client.api.base_url)).hostname or host


def _tail(running: Running, lines: int | Literal["all"]) -> list[str]:
    from docker.errors import NotFound

    try:
        return list(_lines([running.logs(tail=lines)]))
    except NotFound:
        return []


def _lines(chunks: Any) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode("utf-8", "replace") for line in whole)
    if rest:
        yield rest.decode("utf-8", "replace")


@contextlib.contextmanager
def _said(what: str, *, hint: str | None = None) -> Iterator[None]:
    """Docker's refusals in the user's terms."""
    from docker.errors import APIError, DockerException, NotFound

    try:
        yield
    except NotFound:
        raise
    except APIError as err:
        text = str(err.explanation or err)
        if "port is already allocated" in text or "address already in use" in text:
            raise InvalidInput(what, why=text[:300], hint="choose another port with --port") from err
        raise Unreachable(what, why=text[:300], hint=hint) from err
    except DockerException as err:
        raise Unreachable(what, why=str(err)[:300], hint=hint) from err
