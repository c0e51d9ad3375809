"""Target `shell`: a script that starts the engine as a process of this host."""

from __future__ import annotations

import shlex

from aim_engine.backend.base import Backend, Command
from aim_engine.planner.plan import Plan
from aim_engine.render import serving, text
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.serving import Replica

DEFAULT_CACHE = "~/.cache/huggingface"


class Shell:
    """A POSIX script: exports, then the engine; several replicas run side by side until one of them ends."""

    name = "shell"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        host = text.host_name(options.host)
        model_ref = text.host_path(options.model_path, "model folder") if options.model_path else None
        replicas = serving.replicas(plan, options)
        servers = [
            (
                replica,
                serving.command(
                    plan,
                    options,
                    backend,
                    model_ref=model_ref or plan.inputs.model.model_id,
                    host=host,
                    port=replica.port,
                    drain=False,
                ),
            )
            for replica in replicas
        ]
        recipe = serving.chosen(plan).recipe
        program = servers[0][1].argv0[0]
        lines = [
            "set -eu",
            f"if ! command -v {shlex.quote(program)} >/dev/null; then",
            f"    echo {shlex.quote(f'{program} is not on PATH: {recipe.engine} {recipe.engine_version} is needed')} >&2",
            "    exit 127",
            "fi",
        ]
        if options.api_key_secret:
            lines.append(': "${VLLM_API_KEY:?set it to the key that clients must send}"')
        notes = ["A hub token is taken from HF_TOKEN or the hub's own login."]
        if len(servers) == 1:
            lines += [*_exports(options, *servers[0]), "exec " + _call(servers[0][1])]
        else:
            last = replicas[-1].port
            notes.append(
                f"Starts {len(servers)} replicas, on ports {replicas[0].port} to {last}; one that ends stops all."
            )
            lines += _side_by_side(options, servers)
        content = "#!/bin/sh\n" + serving.header(plan, self.name, *notes) + "\n".join(lines) + "\n"
        return (Artifact(path=f"{text.dns_label(options.name)}.sh", content=content, executable=True),)


def process_env(options: Options, replica: Replica, command: Command) -> dict[str, str]:
    """Environment of a bare process: the engine's, the hub's folder when it is not the usual one, the devices to use."""
    env = dict(command.env)
    if replica.visible_devices is not None:
        env[serving.VISIBLE_DEVICES] = replica.visible_devices
    if options.model_path:
        env["HF_HUB_OFFLINE"] = "1"
    elif options.cache_dir != DEFAULT_CACHE and not options.cache_dir.startswith("~/"):
        env["HF_HOME"] = text.host_path(options.cache_dir, "cache folder")
    return text.variables(env)


def _exports(options: Options, replica: Replica, command: Command) -> list[str]:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in process_env(options, replica, command).items()]
    if options.cache_dir.startswith("~/") and options.cache_dir != DEFAULT_CACHE and not options.model_path:
        exports.append(f"export HF_HOME={text.shell_path(text.host_path(options.cache_dir, 'cache folder'))}")
    return exports


def _call(command: Command) -> str:
    """The command on continued lines, an option and its values on each."""
    words = [shlex.join(command.argv0)]
    for arg in command.args:
        if arg.startswith("--") or len(words) == 1:
            words.append(shlex.quote(arg))
        else:
            words[-1] += f" {shlex.quote(arg)}"
    return " \\\n    ".join(words)


def _side_by_side(options: Options, servers: list[tuple[Replica, Command]]) -> list[str]:
    lines = [
        "pids=''",
        "stop() {",
        "    trap - EXIT INT TERM",
        '    for pid in $pids; do kill -TERM "$pid" 2>/dev/null || :; done',
        "    wait",
        "}",
        "trap stop EXIT",
        "trap 'exit 130' INT",
        "trap 'exit 143' TERM",
    ]
    for replica, command in servers:
        lines += ["(", *_exports(options, replica, command), "exec " + _call(command), ") &", 'pids="$pids $!"']
    lines += [
        "while :; do",
        "    for pid in $pids; do",
        '        kill -0 "$pid" 2>/dev/null || { wait "$pid" || exit "$?"; exit 0; }',
        "    done",
        "    sleep 2 & wait $!",
        "done",
    ]
    return lines
