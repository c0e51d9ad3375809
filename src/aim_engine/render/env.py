"""Target `env`: the variables of the recipe, for whatever starts the engine."""

from __future__ import annotations

import shlex

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import serving, text
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.shell import DEFAULT_CACHE, process_env


class Env:
    """One env file per replica, with the command it belongs to in its comment."""

    name = "env"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        files = []
        if options.cache_dir.startswith("~/") and options.cache_dir != DEFAULT_CACHE:
            raise InvalidInput(
                f"the cache folder '{options.cache_dir}' cannot stand in an env file",
                why="nothing expands ~ there",
                hint="give an absolute path",
            )
        model_ref = text.host_path(options.model_path, "model folder") if options.model_path else None
        for replica in serving.replicas(plan, options):
            command = serving.command(
                plan,
                options,
                backend,
                model_ref=model_ref or plan.inputs.model.model_id,
                host=text.host_name(options.host),
                port=replica.port,
                drain=False,
            )
            head = serving.header(
                plan,
                self.name,
                f"For a shell (set -a; . ./{replica.name}.env; set +a), systemd's EnvironmentFile and Compose's env_file.",
                f"Command: {shlex.join((*command.argv0, *command.args))}",
            )
            lines = [f"{name}={_value(name, value)}" for name, value in process_env(options, replica, command).items()]
            files.append(Artifact(path=f"{replica.name}.env", content=head + "".join(f"{line}\n" for line in lines)))
        return tuple(files)


def _value(name: str, value: str) -> str:
    """`value` in the quotes that shells, systemd and Compose all read alike."""
    if "'" in value or any(character in value for character in "\n\r"):
        raise InvalidInput(
            f"the value of {name} cannot stand in an env file",
            why="its readers disagree about quotes and line breaks inside values",
            hint="render for shell",
        )
    return shlex.quote(value)
