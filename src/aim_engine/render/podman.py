"""Target `podman`: a quadlet per replica, which systemd turns into a unit that runs the engine's container."""

from __future__ import annotations

from aim_engine.backend.base import Backend
from aim_engine.planner.plan import Plan
from aim_engine.render import docker, serving, text, unit
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.docker import Container

PULL_S = 3600
"""The image has tens of gigabytes, and the unit starts when it is there."""


class Podman:
    """`NAME.container` files and the env file they read tokens from. Source: podman-systemd.unit(5), podman 4.4."""

    name = "podman"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        name = text.dns_label(options.name)
        secrets = f"{name}.secret.env"
        notes = (
            "For one user: ~/.config/containers/systemd; for the host: /etc/containers/systemd. Then systemctl daemon-reload.",
            f"Tokens are read from {secrets} in the same folder, which must be there.",
        )
        files = [
            Artifact(
                path=f"{container.name}.container",
                content=serving.header(plan, self.name, *notes) + _quadlet(container, secrets),
            )
            for container in docker.containers(plan, options, backend)
        ]
        return (*files, Artifact(path=secrets, content=serving.secrets_file(plan, options), secret=True))


def _quadlet(container: Container, secrets: str) -> str:
    entry = list(container.entrypoint or ())
    health = ("--health-cmd", docker.health_line(), "--health-start-period", f"{container.startup_s}s")
    interval = ("--health-interval", f"{docker.HEALTH_INTERVAL_S}s", "--health-retries", str(docker.HEALTH_RETRIES))
    options = [*health, *interval, "--stop-timeout", str(container.stop_s)]
    options += ["--shm-size", docker.size(container.shm_bytes)]
    if container.uses_gpus:
        options += ["--group-add", "keep-groups"]
    if entry:
        options += ["--entrypoint", entry[0]]
    lines = [
        "[Unit]",
        f"Description=Inference server {container.name}",
        "After=network-online.target",
        "Wants=network-online.target",
        "",
        "[Container]",
        f"ContainerName={container.name}",
        f"Image={container.image}",
        f"Exec={unit.command((*entry[1:], *container.args))}",
        *(f"Environment={_pair(key, value)}" for key, value in container.env.items()),
        f"EnvironmentFile={secrets}",
        *(f"Label={_pair(key, value)}" for key, value in container.labels.items()),
        *(f"AddDevice={device}" for device in container.devices),
        *(f"Volume={_mount(*mount)}" for mount in container.mounts),
        *(f"Volume={volume}:{target}" for volume, target in container.volumes),
        f"PublishPort={f'[{container.host}]' if ':' in container.host else container.host}:{container.port}:{serving.CONTAINER_PORT}",
        "DropCapability=ALL",
        *(f"AddCapability={capability}" for capability in docker.CAPABILITIES),
        "NoNewPrivileges=true",
        f"PodmanArgs={unit.command(options)}",
        "",
        "[Service]",
        "Restart=on-failure",
        f"TimeoutStartSec={PULL_S}",
        f"TimeoutStopSec={container.stop_s + 10}",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def _mount(source: str, target: str, read_only: bool) -> str:
    """Not quoted: a quadlet reads the whole line, and what it hands on is a command line, where `$` is expanded."""
    path = unit.path(source, "folder")
    path = f"%h/{path[2:]}" if source.startswith("~/") else path
    return f"{path}:{unit.path(target, 'mount point')}{':ro' if read_only else ''}".replace("$", "$$")


def _pair(key: str, value: str) -> str:
    return unit.command((f"{key}={value}",))
