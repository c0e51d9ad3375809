"""Target `docker`: a script that starts the engine's container, one per replica."""

from __future__ import annotations

import csv
import io
import shlex

import msgspec

from aim_engine.backend.base import Backend, Command, Image
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import serving, text
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.serving import Replica
from aim_engine.units import GIB

CAPABILITIES = ("DAC_OVERRIDE", "FOWNER")
"""What root in the container keeps: writing into a cache folder that belongs to somebody else on the host."""
MIN_NAME = 2
"""Source: moby/moby daemon/names/names.go RestrictedNameChars."""
HEALTH_INTERVAL_S = 10
HEALTH_RETRIES = 6
HEALTH_COMMAND = (
    "python3",
    "-c",
    "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)",
    f"http://127.0.0.1:{serving.CONTAINER_PORT}/health",
)
"""The image surely has Python; it need not have curl."""


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """One container of a host, in the words that Docker and Compose share."""

    name: str
    image: str
    entrypoint: tuple[str, ...] | None
    """None keeps the image's own."""
    args: tuple[str, ...]
    env: dict[str, str]
    devices: tuple[str, ...]
    mounts: tuple[tuple[str, str, bool], ...]
    """Host path (absolute or below `~/`), path in the container, read-only."""
    volumes: tuple[tuple[str, str], ...]
    """Named volume, path in the container."""
    host: str
    port: int
    shm_bytes: int
    startup_s: int
    labels: dict[str, str] = {}
    stop_s: int = serving.STOP_S

    @property
    def uses_gpus(self) -> bool:
        """Needs device files and the groups that own them."""
        return bool(self.devices)


def containers(plan: Plan, options: Options, backend: Backend) -> tuple[Container, ...]:
    """The containers that serve `plan` on one host. Raises: InvalidInput."""
    if len(text.dns_label(options.name)) < MIN_NAME:
        raise InvalidInput(
            f"'{options.name}' cannot be the name of a container",
            why=f"Docker wants at least {MIN_NAME} characters",
            hint=f"for example {text.suggest_name(plan.inputs.model.model_id)}",
        )
    return tuple(_container(plan, options, backend, replica) for replica in serving.replicas(plan, options))


def _container(plan: Plan, options: Options, backend: Backend, replica: Replica) -> Container:
    recipe = serving.chosen(plan).recipe
    image = serving.image(plan, options, backend)
    command = serving.command(
        plan,
        options,
        backend,
        model_ref=serving.CONTAINER_MODEL if options.model_path else plan.inputs.model.model_id,
        host=serving.CONTAINER_HOST,
        port=serving.CONTAINER_PORT,
        drain=True,
    )
    env = dict(command.env)
    mounts: list[tuple[str, str, bool]] = []
    if options.model_path:
        mounts.append((text.host_path(options.model_path, "model folder"), serving.CONTAINER_MODEL, True))
        env["HF_HUB_OFFLINE"] = "1"
    else:
        mounts.append((text.host_path(options.cache_dir, "cache folder"), serving.CONTAINER_HF_HOME, False))
        env["HF_HOME"] = serving.CONTAINER_HF_HOME
    for mount in serving.mounts(options):
        if mount.is_claim:
            raise InvalidInput(
                f"there is no claim '{mount.source}' outside Kubernetes", hint="give a folder of the host"
            )
        mounts.append((mount.source, mount.target, mount.read_only))
    devices, visible = _devices(replica)
    if visible is not None:
        env[serving.VISIBLE_DEVICES] = visible
    entrypoint, args = _entry(image, command)
    return Container(
        name=replica.name,
        image=serving.image_reference(image),
        entrypoint=entrypoint,
        args=args,
        env=text.variables(env),
        devices=devices,
        mounts=tuple(mounts),
        volumes=((f"{replica.name}-compiled", f"{serving.CONTAINER_CACHE}/{recipe.engine}"),),
        host=text.ip_address(options.host),
        port=replica.port,
        shm_bytes=recipe.resources.shm_bytes,
        startup_s=serving.startup_s(plan, options),
        labels=text.labels(options.labels),
    )


def _devices(replica: Replica) -> tuple[tuple[str, ...], str | None]:
    """Device files, and HIP_VISIBLE_DEVICES where the files alone do not say which GPUs to use."""
    if not replica.devices:
        return (), None
    if replica.render_nodes is not None:
        return ("/dev/kfd", *replica.render_nodes), None
    return ("/dev/kfd", "/dev/dri"), replica.visible_devices


def _entry(image: Image, command: Command) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    return (None if serving.runs_engine(image, command) else command.argv0), command.args


def size(count: int) -> str:
    """Bytes as Docker and Compose read them: `16g`, else plain bytes."""
    return f"{count // GIB}g" if count % GIB == 0 else f"{count}b"


class Docker:
    """A POSIX script around `docker run`, and the env file it reads tokens from."""

    name = "docker"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        found = containers(plan, options, backend)
        name = text.dns_label(options.name)
        secrets = f"{name}.secret.env"
        notes = [f"Tokens are read from {secrets} beside this script, never from the command line."]
        if len(found) > 1:
            notes.append(f"Starts {len(found)} replicas, on ports {found[0].port} to {found[-1].port}.")
        if found[0].devices[1:] == ("/dev/dri",):
            notes.append("The plan does not know the host's device files, so the container is given all of /dev/dri.")
        lines = [
            "set -eu",
            'here=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)',
            f'secrets="$here"/{shlex.quote(secrets)}',
            *_preparations(found, options),
            *(line for container in found for line in _run(container)),
        ]
        script = "#!/bin/sh\n" + serving.header(plan, self.name, *notes) + "\n".join(lines) + "\n"
        return (
            Artifact(path=f"{name}.docker.sh", content=script, executable=True),
            Artifact(path=secrets, content=serving.secrets_file(plan, options), secret=True),
        )


def _preparations(found: tuple[Container, ...], options: Options) -> list[str]:
    """What must hold before a container starts: folders, device files, the key. Leaves options for docker in `$@`."""
    lines = ["set --"]
    for source, _, read_only in found[0].mounts:
        path = text.shell_path(source)
        missing = 'echo "the model folder is missing" >&2; exit 1'
        lines.append(f"[ -d {path} ] || {{ {missing}; }}" if read_only else f"mkdir -p -- {path}")
    if options.api_key_secret:
        lines += [
            'if ! grep -q "^VLLM_API_KEY=." "$secrets"; then',
            '    echo "set VLLM_API_KEY in $secrets" >&2',
            "    exit 1",
            "fi",
        ]
    lines.append('if [ -f "$secrets" ]; then set -- "$@" --env-file "$secrets"; fi')
    if found[0].uses_gpus:
        nodes = sorted({device for container in found for device in container.devices})
        paths = " ".join("/dev/dri/renderD*" if node == "/dev/dri" else node for node in nodes)
        lines += [
            "# By number: an image need not have a group called render.",
            f"for device in {paths}; do",
            '    if ! [ -e "$device" ]; then',
            '        echo "$device is missing: is the amdgpu driver loaded?" >&2',
            "        exit 1",
            "    fi",
            '    set -- "$@" --group-add "$(stat -c %g "$device")"',
            "done",
        ]
    return lines


def _run(container: Container) -> list[str]:
    words = [
        "docker run --detach",
        f"--name {container.name}",
        "--restart unless-stopped",
        f"--stop-timeout {container.stop_s}",
        *(f"--device {shlex.quote(device)}" for device in container.devices),
        *(["--group-add video"] if container.uses_gpus else []),
        f"--shm-size {size(container.shm_bytes)}",
        "--cap-drop ALL",
        *(f"--cap-add {capability}" for capability in CAPABILITIES),
        "--security-opt no-new-privileges",
        f"--publish {_published(container)}",
        *(f"--label {shlex.quote(f'{name}={value}')}" for name, value in container.labels.items()),
        *(f"--mount {_bind(*mount)}" for mount in container.mounts),
        *(f"--mount type=volume,source={name},target={target}" for name, target in container.volumes),
        *(f"--env {shlex.quote(f'{name}={value}')}" for name, value in container.env.items()),
        f"--health-cmd {shlex.quote(health_line())}",
        f"--health-start-period {container.startup_s}s",
        f"--health-interval {HEALTH_INTERVAL_S}s",
        "--health-timeout 6s",
        f"--health-retries {HEALTH_RETRIES}",
        '"$@"',
    ]
    args = container.args
    if container.entrypoint is not None:
        words.append(f"--entrypoint {shlex.quote(container.entrypoint[0])}")
        args = (*container.entrypoint[1:], *args)
    words.append(shlex.quote(container.image))
    call = " \\\n    ".join(words)
    for index, arg in enumerate(args):
        call += (" \\\n    " if index == 0 or arg.startswith("--") else " ") + shlex.quote(arg)
    return [call]


def health_line() -> str:
    """The health check for the container's own shell; double quotes inside keep the line readable in single ones."""
    program, flag, code, url = HEALTH_COMMAND
    return f'{program} {flag} "{code}" {url}'


def _published(container: Container) -> str:
    host = f"[{container.host}]" if ":" in container.host else container.host
    return shlex.quote(f"{host}:{container.port}:{serving.CONTAINER_PORT}")


def _bind(source: str, target: str, read_only: bool) -> str:
    """A bind mount as one shell word. `--mount` reads CSV, so a field is quoted for CSV first."""
    if source.startswith("~/"):
        head = "'type=bind,\"source='"
        tail = '/{}",target={}{}'.format(source[2:].replace('"', '""'), target, ",readonly" if read_only else "")
        return f'{head}"$HOME"{shlex.quote(tail)}'
    fields = ["type=bind", f"source={source}", f"target={target}", *(["readonly"] if read_only else [])]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return shlex.quote(line.getvalue())
