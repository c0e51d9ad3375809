"""`aim-engine up`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aim_engine import rollout
from aim_engine.cli import kpi_table, options, output
from aim_engine.cli.plan import show as show_plan


@click.command(epilog="Example: aim-engine up HuggingFaceTB/SmolLM2-135M-Instruct --concurrency 1")
@click.argument("model")
@options.planning
@click.option("--target", type=click.Choice(["local", "docker", "kubernetes"]), default="local", show_default=True)
@click.option("--name", help="Name of the deployment. Default: from the model's name.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port to listen on.")
@click.option("--namespace", default="default", show_default=True, help="Kubernetes namespace.")
@click.option("--image", help="Container image instead of the engine release's own.")
@click.option(
    "--ask", default=rollout.QUESTION, show_default=True, help="Question to the served model; empty asks none."
)
@click.option("-o", "--output", "path", type=click.Path(path_type=Path, file_okay=False), help="Folder for the files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def up(
    model: str,
    target: str,
    name: str | None,
    host: str,
    port: int,
    namespace: str,
    image: str | None,
    ask: str,
    path: Path | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Plan, fetch, start and watch MODEL: the whole workflow, with progress.

    Interrupted, it leaves nothing running.
    """
    request, settings = options.request(model, flags)
    place = rollout.Place(
        target=target,
        name=name,
        host=host,
        port=port,
        namespace=namespace,
        image=image,
        output_dir=path,
        question=ask,
    )
    outcome = rollout.up(request, settings, place, _tell)
    if as_json:
        output.data(outcome)
    elif outcome.plan.chosen is None:
        show_plan(outcome.plan, explain=False)
    if outcome.stopped_at:
        output.note(f"\n{outcome.stopped_at}")
        return 0 if outcome.written and outcome.plan.chosen is not None and not _failed(outcome) else 1
    if not as_json:
        if outcome.answer is not None:
            output.text(f"question: {ask}")
            output.text(f"answer:   {outcome.answer.text}")
        if outcome.report is not None:
            kpi_table.show(outcome.report, "measured")
        if outcome.deployment is not None:
            output.text(f"{outcome.deployment.name} is {outcome.deployment.state} at {outcome.deployment.endpoint}")
    if outcome.deployment is not None:
        output.next_step(f"aim-engine status {outcome.deployment.name}; aim-engine down {outcome.deployment.name}")
    return 0


def _failed(outcome: rollout.Outcome) -> bool:
    return any(finding.severity == "error" for finding in outcome.findings)


def _tell(line: str) -> None:
    output.note(line if line.startswith("[") else f"      {line}")
