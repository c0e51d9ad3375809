"""The command table. A command's module is imported when the command runs, so that start-up stays cheap."""

from __future__ import annotations

import importlib
import sys
from typing import Any, NoReturn, cast

from aim_engine._version import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "gpus": ("aim_engine.cli.gpus:gpus", "Show the GPUs and the CPU of this machine."),
    "doctor": ("aim_engine.cli.doctor:doctor", "Say what is wrong with this host and how to mend it."),
    "model": ("aim_engine.cli.model:model", "Show what a model needs."),
    "plan": ("aim_engine.cli.plan:plan", "Choose the best configuration for a model."),
    "estimate": ("aim_engine.cli.estimate:estimate", "Say what one given configuration needs and does."),
    "accuracy": ("aim_engine.cli.accuracy:accuracy", "Compare predictions with a table of measurements."),
    "calibrate": ("aim_engine.cli.calibrate:calibrate", "Correct predictions by measurements of your own."),
    "recipes": ("aim_engine.cli.recipes:recipes", "Find, check and exchange known recipes."),
    "render": ("aim_engine.cli.render:render", "Write a plan out for a target."),
    "validate": ("aim_engine.cli.validate:validate", "Check plans, command lines, manifests and Compose files."),
    "up": ("aim_engine.cli.up:up", "Plan, fetch, start and watch a model."),
    "status": ("aim_engine.cli.deployments:status", "Show what is running and how it does."),
    "logs": ("aim_engine.cli.deployments:logs", "Show an engine's log."),
    "monitor": ("aim_engine.cli.monitor:monitor", "Look at engines and cards, keep it, tell what is wrong."),
    "top": ("aim_engine.cli.top:top", "Watch deployments live."),
    "report": ("aim_engine.cli.report:report", "Say how a deployment did, against its plan and before."),
    "alerts": ("aim_engine.cli.alerts:alerts", "Show, silence and export alerts."),
    "suggest": ("aim_engine.cli.suggest:suggest", "Say what to change and what it would do; apply it."),
    "feedback": ("aim_engine.cli.feedback:feedback", "Rate and check answers."),
    "down": ("aim_engine.cli.deployments:down", "Stop a deployment."),
    "engine": ("aim_engine.cli.engine:engine", "Install and list serving engines."),
    "cache": ("aim_engine.cli.cache:cache", "Fetch, prove, keep and clear model weights."),
    "settings": ("aim_engine.cli.settings:settings", "Show every setting and where it comes from."),
}


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 no, 2 wrong input, 3 something outside failed, 70 our bug, 130 interrupted."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"aim-engine {__version__}\n")
        raise SystemExit(0)
    raise SystemExit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command line and return its exit code; errors are printed, not raised."""
    import click

    from aim_engine.errors import AimError

    debug = "--debug" in argv
    try:
        result = _group().main(args=argv, prog_name="aim-engine", standalone_mode=False)
    except click.exceptions.Exit as err:
        return int(err.exit_code)
    except click.UsageError as err:
        err.show(file=sys.stderr)
        return 2
    except click.ClickException as err:
        err.show(file=sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except AimError as err:
        if debug:
            raise
        from aim_engine.cli import output

        output.error(err)
        return err.exit_code
    except Exception as err:
        if debug:
            raise
        from aim_engine.cli import output

        output.bug(err, argv)
        return 70
    return int(result) if isinstance(result, int) else 0


def _group() -> Any:
    import click

    class Lazy(click.Group):
        """A group whose commands are imported by name."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in COMMANDS:
                return None
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command = getattr(importlib.import_module(module), attribute)
            return cast("click.Command", command)

        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            if args and args[0] not in COMMANDS and not args[0].startswith("-"):
                import difflib

                close = difflib.get_close_matches(args[0], COMMANDS, n=2)
                hint = f" Did you mean {' or '.join(close)}?" if close else ""
                raise click.UsageError(f"There is no command '{args[0]}'.{hint}", ctx)
            return super().resolve_command(ctx, args)

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            with formatter.section("Commands"):
                formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])

    @click.group(
        cls=Lazy,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
        epilog="Example: aim-engine plan Qwen/Qwen3-32B --gpus 8xMI300X",
    )
    @click.version_option(__version__, prog_name="aim-engine", message="%(prog)s %(version)s")
    @click.option("--debug", is_flag=True, help="Show stack traces and debug logs.")
    @click.option("--log-format", type=click.Choice(["text", "json"]), default=None, help="Log format on stderr.")
    def group(debug: bool, log_format: str | None) -> None:
        """Choose, prove, write out, start and watch the best serving configuration of a model on AMD GPUs."""
        from aim_engine.cli import output

        output.configure_logging(debug=debug, log_format=log_format)

    return group
