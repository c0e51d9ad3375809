"""Target `slurm`: a batch script that runs the engine on the hosts Slurm gives it."""

from __future__ import annotations

import math
import shlex

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import serving, text
from aim_engine.render.artifact import Artifact, Options
from aim_engine.units import MIB

MASTER_PORT = 29501
"""Where ranks meet; array tasks that share a host take the following ones."""
DEFAULT_CACHE = "~/.cache/huggingface"


class Slurm:
    """An sbatch script: one array task per replica, one process per host of it."""

    name = "slurm"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        host, name = text.host_name(options.host), text.dns_label(options.name)
        recipe, hosts = serving.chosen(plan).recipe, serving.hosts_per_replica(plan)
        text.port_number(options.port + recipe.replicas - 1)
        command = serving.command(
            plan,
            options,
            backend,
            model_ref=text.host_path(options.model_path, "model folder")
            if options.model_path
            else plan.inputs.model.model_id,
            host=host,
            port=options.port,
            drain=True,
        )
        flags = {flag for entry in backend.release(recipe.engine_version).flags for flag in entry.flags}
        if hosts > 1 and "--nnodes" not in flags:
            raise InvalidInput(
                f"{recipe.engine} {recipe.engine_version} has no --nnodes", hint="plan for a newer release, or one host"
            )
        call = [*command.argv0, *command.args]
        # The backend writes its own --port first; a model or value that says the same comes with an option before it.
        place = call.index("--port") + 1
        words = ['"$port"' if index == place else shlex.quote(word) for index, word in enumerate(call)]
        lines = [
            *(f"#SBATCH {option}" for option in _resources(plan, name, hosts)),
            "set -eu",
            f"if ! command -v {shlex.quote(command.argv0[0])} >/dev/null; then",
            f"    echo {shlex.quote(f'{recipe.engine} {recipe.engine_version} is needed on PATH, on every host')} >&2",
            "    exit 127",
            "fi",
        ]
        if options.api_key_secret:
            lines.append(': "${VLLM_API_KEY:?set it to the key that clients must send}"')
        lines += [f"export {key}={shlex.quote(value)}" for key, value in command.env.items()]
        lines += _cache(options)
        lines += [f"port=$(({options.port} + ${{SLURM_ARRAY_TASK_ID:-0}}))"]
        lines += _several(words, hosts) if hosts > 1 else ["exec srun --ntasks=1 " + _wrapped(words)]
        notes = (
            "Give what your site wants on the command line: sbatch --partition=NAME --account=NAME --time=DAYS-HH FILE",
            "sbatch passes your environment on: load or activate the engine, and HF_TOKEN, before it.",
            f"Requests go to port {options.port} of the first host, the next ports for further array tasks.",
        )
        content = "#!/bin/bash\n" + serving.header(plan, self.name, *notes) + "\n".join(lines) + "\n"
        return (Artifact(path=f"{name}.sbatch", content=content, executable=True),)


def _resources(plan: Plan, name: str, hosts: int) -> list[str]:
    recipe = serving.chosen(plan).recipe
    memory = math.ceil(recipe.resources.memory_bytes / hosts / MIB)
    found = [f"--job-name={name}", f"--nodes={hosts}", "--ntasks-per-node=1"]
    if recipe.resources.gpus:
        found.append(f"--gpus-per-node={recipe.resources.gpus // hosts}")
    found += [
        f"--cpus-per-task={math.ceil(recipe.resources.cpu_cores / hosts)}",
        f"--mem={memory}M",
        # To the script, which is the engine by then: it finishes its requests before the time is up.
        f"--signal=B:TERM@{serving.STOP_S}",
        "--output=%x-%j.log",
    ]
    if recipe.replicas > 1:
        found.append(f"--array=0-{recipe.replicas - 1}")
    return found


def _cache(options: Options) -> list[str]:
    if options.model_path:
        return ["export HF_HUB_OFFLINE=1"]
    if options.cache_dir == DEFAULT_CACHE:
        return []
    return [f"export HF_HOME={text.shell_path(text.host_path(options.cache_dir, 'cache folder'))}"]


def _several(words: list[str], hosts: int) -> list[str]:
    """One process per host; each learns its place from Slurm."""
    rank = (
        '\'if [ "$SLURM_NODEID" -gt 0 ]; then set -- "$@" --headless; fi; '
        'exec "$@" --node-rank "$SLURM_NODEID" --master-addr "$leader" --master-port "$meeting"\''
    )
    given = any(word.partition("=")[0] == "--distributed-executor-backend" for word in words)
    backend = [] if given else ["--distributed-executor-backend", "mp"]
    return [
        'leader=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"meeting=$(({MASTER_PORT} + ${{SLURM_ARRAY_TASK_ID:-0}}))",
        "export leader meeting",
        f"exec srun --ntasks={hosts} --kill-on-bad-exit=1 bash -c {rank} rank \\\n    "
        + _wrapped([*words, "--nnodes", str(hosts), *backend]),
    ]


def _wrapped(words: list[str]) -> str:
    """The words on continued lines, an option and its values on each."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--") or len(lines) < 1:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n    ".join(lines)
