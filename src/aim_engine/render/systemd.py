"""Target `systemd`: a hardened system unit per replica, for an engine that is installed on the host."""

from __future__ import annotations

from aim_engine.backend.base import Backend, Command
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import serving, text, unit
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.serving import Replica
from aim_engine.render.shell import DEFAULT_CACHE

SECRETS = "/etc/aim-engine"
"""Where the env file with tokens is put; units read it before they give up root."""


class Systemd:
    """A unit per replica and the env file it reads tokens from."""

    name = "systemd"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        name = text.dns_label(options.name)
        secrets = f"{name}.secret.env"
        replicas = serving.replicas(plan, options)
        files = [
            Artifact(path=f"{replica.name}.service", content=self._unit(plan, options, backend, replica))
            for replica in replicas
        ]
        return (*files, Artifact(path=secrets, content=serving.secrets_file(plan, options), secret=True))

    def _unit(self, plan: Plan, options: Options, backend: Backend, replica: Replica) -> str:
        model = _folder(options.model_path, "model folder") if options.model_path else None
        host = text.host_name(options.host)
        ref = options.model_path or plan.inputs.model.model_id
        command = serving.command(plan, options, backend, model_ref=ref, host=host, port=replica.port, drain=True)
        name, recipe = text.dns_label(options.name), serving.chosen(plan).recipe
        notes = [
            f"{recipe.engine} {recipe.engine_version} must be where units look for programs, such as /usr/local/bin.",
            f"Tokens: install -D -m 0600 {name}.secret.env {SECRETS}/{name}.secret.env",
        ]
        own_cache = model is None and options.cache_dir != DEFAULT_CACHE
        cache = _folder(options.cache_dir, "cache folder") if own_cache else None
        if cache is not None:
            notes.append("The unit runs as a user of its own, who must be able to write the cache folder.")
        lines = [
            "[Unit]",
            f"Description={unit.bounded(_line(plan.inputs.model.model_id))}",
            "After=network-online.target",
            "Wants=network-online.target",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={unit.command(('/usr/bin/env', *command.argv0, *command.args))}",
            *_environment(options, replica, command, cache),
            f"EnvironmentFile={'' if options.api_key_secret else '-'}{SECRETS}/{name}.secret.env",
            "Restart=on-failure",
            "RestartSec=10",
            "KillMode=mixed",
            f"TimeoutStopSec={serving.STOP_S}",
            "LimitMEMLOCK=infinity",
            "DynamicUser=yes",
            f"CacheDirectory={replica.name}",
            *_mounts(options, model, cache),
            *_devices(replica),
            *HARDENING,
            "",
            "[Install]",
            "WantedBy=multi-user.target",
        ]
        return serving.header(plan, self.name, *notes) + "\n".join(lines) + "\n"


HARDENING = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=tmpfs",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
)
"""All that an engine which compiles kernels at start can live with; MemoryDenyWriteExecute is not among it."""


def _line(value: str) -> str:
    return " ".join(text.data(value, "model").split()).replace("%", "%%").rstrip("\\") or "model"


def _folder(path: str, what: str) -> str:
    if path.startswith("~"):
        raise InvalidInput(
            f"the {what} '{path}' cannot stand in a system unit", why="it has no home", hint="an absolute path"
        )
    return unit.path(path, what)


def _environment(options: Options, replica: Replica, command: Command, cache: str | None) -> list[str]:
    env = dict(command.env)
    if replica.visible_devices is not None:
        env[serving.VISIBLE_DEVICES] = replica.visible_devices
    if options.model_path:
        env["HF_HUB_OFFLINE"] = "1"
    home = f"%C/{replica.name}"
    engine = "vllm" if command.argv0[0] == "vllm" else "sglang"
    kept = {serving.CACHE_VARIABLES[engine]: f"{home}/{engine}"}
    where = {"HOME": home, **kept, "HF_HOME": cache or f"{home}/huggingface"}
    for name in env:
        where.pop(name, None)
    lines = [f"Environment={unit.bounded(unit.word(f'{name}={value}'))}" for name, value in text.variables(env).items()]
    return [*(f'Environment="{name}={value}"' for name, value in where.items()), *lines]


def _mounts(options: Options, model: str | None, cache: str | None) -> list[str]:
    lines = []
    if model is not None:
        lines.append(f'BindReadOnlyPaths="{model}"')
    if cache is not None:
        lines.append(f'BindPaths="{cache}"')
    for mount in serving.mounts(options):
        if mount.is_claim:
            raise InvalidInput(
                f"there is no claim '{mount.source}' outside Kubernetes", hint="give a folder of the host"
            )
        source, target = _folder(mount.source, "volume"), _folder(mount.target, "mount point")
        lines.append(f'Bind{"ReadOnly" if mount.read_only else ""}Paths="{source}:{target}"')
    return lines


def _devices(replica: Replica) -> list[str]:
    if not replica.devices:
        return ["PrivateDevices=yes"]
    nodes = replica.render_nodes or ("char-drm",)
    allowed = [f"DeviceAllow={node} rw" for node in ("/dev/kfd", *nodes)]
    return ["SupplementaryGroups=video render", "DevicePolicy=closed", *allowed]
