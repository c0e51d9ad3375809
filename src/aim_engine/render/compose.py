"""Target `compose`: a Compose file with one service per replica."""

from __future__ import annotations

from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.planner.plan import Plan
from aim_engine.render import compose_watch, docker, serving, text
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.docker import Container

RENDER_GROUP = "${RENDER_GID:-109}"
"""Compose cannot look the group up, and an image need not have one called render: a number always works."""


class Compose:
    """`compose.yaml` and the env file it reads tokens from."""

    name = "compose"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        found = docker.containers(plan, options, backend)
        name = text.dns_label(options.name)
        secrets = f"{name}.secret.env"
        document: dict[str, Any] = {
            "name": name,
            "services": {container.name: _service(container, secrets, options) for container in found},
            "volumes": {volume: {} for container in found for volume, _ in container.volumes},
        }
        files = {f"{name}-{key}": entry for key, entry in serving.files(options).items()}
        for service in document["services"].values() if files else ():
            service["configs"] = [{"source": source, "target": place} for source, (place, _) in files.items()]
        document |= (
            {"configs": {key: {"content": text.no_expansion(entry[1])} for key, entry in files.items()}}
            if files
            else {}
        )
        notes = [f"Tokens are read from {secrets} beside this file."]
        if plan.inputs.engine == "vllm":  # whose figures the rules and panels name
            for section, entries in compose_watch.sections(plan, options, found).items():
                document[section] = {**document.get(section, {}), **entries}
            notes.append("With --profile monitoring: Prometheus and Grafana on this host's ports 9090 and 3000.")
        if len(found) > 1:
            notes.append(f"One service per replica, on ports {found[0].port} to {found[-1].port}.")
        if found[0].uses_gpus:
            notes.append("Set RENDER_GID=$(stat -c %g /dev/kfd) when the image does not run as root.")
        if found[0].devices[1:] == ("/dev/dri",):
            notes.append("The plan does not know the host's device files, so the containers are given all of /dev/dri.")
        content = serving.header(plan, self.name, *notes) + text.yaml_document(document)
        return (
            Artifact(path="compose.yaml", content=content),
            Artifact(path=secrets, content=serving.secrets_file(plan, options), secret=True),
        )


def _service(container: Container, secrets: str, options: Options) -> dict[str, Any]:
    service: dict[str, Any] = {"image": text.no_expansion(container.image), "container_name": container.name}
    if container.entrypoint is not None:
        service["entrypoint"] = [text.no_expansion(word) for word in container.entrypoint]
    service["command"] = [text.no_expansion(arg) for arg in container.args]
    service["environment"] = {name: text.no_expansion(value) for name, value in container.env.items()}
    service["env_file"] = [{"path": f"./{secrets}", "required": options.api_key_secret}]
    if container.uses_gpus:
        service["devices"] = [f"{device}:{device}" for device in container.devices]
        service["group_add"] = ["video", RENDER_GROUP]
    service |= {
        "shm_size": docker.size(container.shm_bytes),
        "cap_drop": ["ALL"],
        "cap_add": list(docker.CAPABILITIES),
        "security_opt": ["no-new-privileges:true"],
        "ports": [
            {
                "target": serving.CONTAINER_PORT,
                "published": str(container.port),
                "host_ip": container.host,
                "protocol": "tcp",
            }
        ],
        "volumes": [
            *(_bind(source, target, read_only) for source, target, read_only in container.mounts),
            *({"type": "volume", "source": source, "target": target} for source, target in container.volumes),
        ],
        "healthcheck": {
            "test": ["CMD", *docker.HEALTH_COMMAND],
            "start_period": f"{container.startup_s}s",
            "interval": f"{docker.HEALTH_INTERVAL_S}s",
            "timeout": "6s",
            "retries": docker.HEALTH_RETRIES,
        },
        **(
            {"labels": {key: text.no_expansion(value) for key, value in container.labels.items()}}
            if container.labels
            else {}
        ),
        "restart": "unless-stopped",
        "stop_grace_period": f"{container.stop_s}s",
    }
    return service


def _bind(source: str, target: str, read_only: bool) -> dict[str, Any]:
    """A folder of the host; a cache folder is made when it is missing, a checkpoint must be there."""
    path = "${HOME}/" + text.no_expansion(source[2:]) if source.startswith("~/") else text.no_expansion(source)
    mount: dict[str, Any] = {"type": "bind", "source": path, "target": target}
    if read_only:
        mount["read_only"] = True
    mount["bind"] = {"create_host_path": not read_only}
    return mount
