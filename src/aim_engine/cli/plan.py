"""`aim-engine plan`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from aim_engine import workflow
from aim_engine.cli import front, hardware_source, options, output
from aim_engine.errors import AimError, Unreachable
from aim_engine.planner import plan as plans
from aim_engine.planner.plan import Candidate, Plan
from aim_engine.settings import Settings
from aim_engine.units import format_bytes, format_gib, format_ms


@click.command(epilog="Example: aim-engine plan Qwen/Qwen3-32B --gpus 8xMI300X")
@click.argument("model")
@options.planning
@hardware_source.LIVE
@click.option(
    "--from",
    "recorded",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="A recorded cluster: kubectl get nodes,pods -A -o json, or gpus --json; - for stdin.",
)
@click.option("--explain", is_flag=True, help="Show the six steps, the ledgers, what lost and by how much.")
@click.option(
    "--plot",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the Pareto front to a .svg or .png file (needs the extra plot).",
)
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan to a file."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def plan(
    model: str,
    live: bool,
    recorded: Path | None,
    explain: bool,
    picture: Path | None,
    path: Path | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Choose the best configuration for MODEL: a hub id, a folder or a config.json.

    Plans for this machine, for --gpus, or for the free GPUs of a cluster. Needs no GPU.
    """
    if picture is not None:
        front.check(picture)
    hardware_source.one_of(gpus=flags["gpus"], kubernetes=live, **{"from": recorded})
    request, settings = options.request(model, flags)
    cluster = hardware_source.cluster(live, recorded, workflow.overlay_dir(settings))
    if cluster is None:
        document = workflow.choose(request, settings)
    else:
        spec = workflow.describe(request.model, settings, request.revision)
        document = workflow.choose_in(request, spec, cluster, settings)
    if path is not None:
        write(document, path)
        _hold(document, path, settings, request.revision)
    if picture is not None and document.pareto:
        front.draw(document, picture)
    if as_json:
        output.data(document)
    else:
        show(document, explain=explain)
    if document.chosen is None:
        return 1
    target = "kubernetes" if _places(document) else "docker"
    output.next_step(f"aim-engine render {path or 'PLAN.json'} --target {target}")
    return 0


def write(document: Plan, path: Path) -> None:
    """The plan as a file, replaced in one step. Raises: Unreachable."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(plans.encode(document) + b"\n")
        partial.replace(path)
    except OSError as err:
        partial.unlink(missing_ok=True)
        raise Unreachable(f"the plan cannot be written to {path}", why=err.strerror) from err


def _hold(document: Plan, path: Path, settings: Settings, revision: str | None) -> None:
    """Let a cache that is here already keep what the plan names while its file is there."""
    if document.chosen is None or not (Path(settings.cache_dir).expanduser() / "STORE").is_file():
        return
    from aim_engine.cache import weights

    try:
        weights.hold_for_plan(document, path, settings, revision)
    except AimError as err:
        output.note(f"warning: the cache will not keep the weights for this plan: {err}")


def show(document: Plan, *, explain: bool) -> None:
    """The plan for a person."""
    inputs = document.inputs
    where = "this CPU" if inputs.gpu.kind == "cpu" else inputs.cluster.describe()
    output.heading(f"{inputs.model.model_id} on {where}, {inputs.engine} {inputs.engine_version}")
    if document.chosen is None:
        _show_refusal(document)
    else:
        _show_choice(document.chosen)
        places = _places(document)
        if places:
            output.text(f"  {'fits on':<16} {', '.join(places)}")
    if document.alternatives:
        _show_alternatives(document)
    for finding in document.findings:
        if finding.severity != "info" or explain:
            remedy = f" ({finding.remedy})" if finding.remedy else ""
            output.text(f"{finding.severity}: {finding.message}{remedy}")
    if explain:
        _explain(document)
    elif document.chosen is not None:
        output.text(f"why: {document.chosen.reason}")


def _places(document: Plan) -> list[str]:
    """Nodes of a Kubernetes cluster with room for replicas of the recipe, and for how many."""
    if document.chosen is None or not document.chosen.recipe.gpu_count:
        return []
    recipe, found = document.chosen.recipe, []
    for node in document.inputs.cluster.nodes:
        there = sum(device.gpu == recipe.gpu for device in node.devices)
        times = there // (recipe.gpu_count // recipe.replicas)
        if node.scheduling is not None and times:
            found.append(f"{node.name} ({times} replica{'s' * (times > 1)})")
    return found


def _show_choice(chosen: Candidate) -> None:
    recipe, estimate = chosen.recipe, chosen.estimate
    split = f"{recipe.replicas} replica{'s' * (recipe.replicas > 1)} of {recipe.parallelism.describe()}"
    devices = (
        f"{recipe.gpu_count} GPU{'s' * (recipe.gpu_count > 1)}"
        if recipe.gpu_count
        else f"{recipe.resources.cpu_cores} CPU cores"
    )
    kv = "" if recipe.kv_cache_dtype == "auto" else f", KV cache {recipe.kv_cache_dtype}"
    online = " (made on load)" if recipe.online_quantization else ""
    backend = f", {recipe.attention_backend}" if recipe.attention_backend else ""
    memory = estimate.memory
    rows = [
        ("recipe", f"{split}, {recipe.precision}{online}{kv}{backend}, {devices} ({recipe.provenance})"),
        (
            "limits",
            f"max_model_len {recipe.max_model_len}, max_num_seqs {recipe.max_num_seqs}, max_num_batched_tokens {recipe.max_num_batched_tokens}",
        ),
        (
            "memory",
            f"{format_gib(memory.weights_bytes)} weights + {format_gib(memory.kv_cache_bytes)} KV cache of {format_gib(memory.device_bytes)} per device; {memory.kv_cache_tokens:,} tokens per replica",
        ),
        (f"at {estimate.concurrency} requests", ""),
        ("  output", _range(estimate.output_tok_s, "tok/s")),
        ("  per user", f"{estimate.output_tok_s_per_user:.1f} tok/s"),
        ("  first token", _range_ms(estimate.ttft_ms)),
        ("  per token", _range_ms(estimate.tpot_ms)),
        ("  whole request", _range_ms(estimate.e2e_ms)),
        *_percentiles(chosen),
        *_running(chosen),
        ("basis", f"{estimate.tpot_ms.basis}: {estimate.tpot_ms.source}"),
    ]
    for name, value in rows:
        output.text(f"  {name:<16} {value}".rstrip())


def _percentiles(chosen: Candidate) -> list[tuple[str, str]]:
    """The tails of the first token and of the time per token, where they were simulated."""
    seen = chosen.estimate.simulated
    if seen is None:
        return []
    tails = (
        f"{name} {format_ms(spread.p50)} / {format_ms(spread.p90)} / {format_ms(spread.p99)}"
        for name, spread in (("first token", seen.ttft_ms), ("per token", seen.tpot_ms))
    )
    return [("  p50 / p90 / p99", "; ".join(tails) + " (simulated)")]


def _show_simulated(chosen: Candidate) -> None:
    """What single requests saw."""
    seen = chosen.estimate.simulated
    if seen is None:
        return
    times = (
        ("first token", seen.ttft_ms),
        ("per token", seen.tpot_ms),
        ("between tokens", seen.itl_ms),
        ("whole request", seen.e2e_ms),
    )
    output.table(
        f"{seen.requests:,} requests of one replica, simulated",
        ("time", "mean", "p50", "p90", "p95", "p99"),
        [
            (name, *(format_ms(value) for value in (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99)))
            for name, spread in times
        ],
        right=("mean", "p50", "p90", "p95", "p99"),
    )
    output.text(f"preempted: {seen.preemptions}; requests that keep every limit: {seen.goodput_fraction:.1%}")


def _evidence(document: Plan, chosen: Candidate) -> Iterator[str]:
    """What the choice and its figures rest on, and how old it is."""
    recipe, figure = chosen.recipe, chosen.estimate.tpot_ms
    yield f"figures: {figure.basis}, {figure.source}"
    if recipe.provenance_note:
        yield f"recipe: {recipe.provenance}, {recipe.provenance_note}"
    for run in recipe.verified:
        date = f", {run.date}" if run.date else ""
        yield f"run before: {run.gpu}, {run.engine_version}{date} ({run.source})"
    price = document.inputs.price
    if price is not None:
        yield f"price: {price.describe()}, {price.source}"


def _running(chosen: Candidate) -> list[tuple[str, str]]:
    """Money and energy, where they are known."""
    running = chosen.running
    rows = []
    if running.usd_h is not None:
        rows.append(
            (
                "cost",
                f"{running.usd_h:.2f} USD/h, {running.usd_per_million_output_tokens:.2f} USD per million output tokens",
            )
        )
    if running.output_tokens_per_joule is not None:
        rows.append(
            ("energy", f"{running.output_tokens_per_joule:.2f} tokens/J at {running.power_w:,} W of board power")
        )
    return rows


def _show_refusal(document: Plan) -> None:
    output.text("  no configuration does what was asked:")
    nearest = sorted(
        document.rejected, key=lambda rejection: (rejection.missing_bytes is None, rejection.missing_bytes or 0)
    )
    for rejection in nearest[:5]:
        lacking = f" ({format_bytes(rejection.missing_bytes)} missing)" if rejection.missing_bytes else ""
        output.text(f"    {rejection.recipe}: {rejection.reason}{lacking}")
    fallback = next((step for step in document.steps if step.name == "fallback"), None)
    if fallback is not None:
        output.text(f"  {fallback.summary}")
    output.note(f"\nhint: {document.hint}")
    for detail in fallback.details if fallback is not None else ():
        if detail != document.hint:
            output.note(f"  or: {detail}")


def _show_alternatives(document: Plan) -> None:
    several = len({c.recipe.gpu for c in (document.chosen, *document.alternatives) if c is not None}) > 1
    output.table(
        "alternatives" if document.chosen is not None else "closest",
        ("recipe", "GPUs", "requests", "tok/s", "tok/s/GPU", "tok/s/user", "TTFT", "TPOT"),
        [
            (
                f"{c.recipe.replicas} x {c.recipe.parallelism.describe()} {c.recipe.precision}"
                + ("" if c.recipe.kv_cache_dtype == "auto" else f" kv {c.recipe.kv_cache_dtype}"),
                f"{c.recipe.gpu_count} {c.recipe.gpu}" if several else str(c.recipe.gpu_count),
                str(c.estimate.concurrency),
                f"{c.estimate.output_tok_s.value:.0f}",
                f"{c.estimate.output_tok_s_per_gpu:.0f}",
                f"{c.estimate.output_tok_s_per_user:.1f}",
                format_ms(c.estimate.ttft_ms.value),
                format_ms(c.estimate.tpot_ms.value),
            )
            for c in document.alternatives
        ],
        right=("GPUs", "requests", "tok/s", "tok/s/GPU", "tok/s/user", "TTFT", "TPOT"),
    )


def _explain(document: Plan) -> None:
    output.text()
    for number, step in enumerate(document.steps, 1):
        output.text(f"{number}. {step.name}: {step.summary}")
        for detail in step.details:
            output.text(f"     {detail}")
    chosen = document.chosen
    if document.kernels:
        output.table(
            "kernels, chosen together",
            ("part", "choice", "why", "source"),
            [(r.topic + (" (lossy)" if r.lossy else ""), r.choice, r.why, r.source) for r in document.kernels],
        )
    if chosen is not None:
        memory = chosen.estimate.memory
        ledger = [
            ("weights", memory.weights_bytes),
            ("activations", memory.activation_bytes),
            ("graphs", memory.graphs_bytes),
            ("runtime and collectives", memory.overhead_bytes),
            ("KV cache", memory.kv_cache_bytes),
            ("left to others", memory.device_bytes - memory.total_bytes),
        ]
        output.table("memory of one device", ("part", "size"), [(n, format_gib(b)) for n, b in ledger], right=("size",))
        steps = sorted(chosen.estimate.step_ms.items(), key=lambda item: -item[1])
        output.table(
            "one decode step",
            ("feature", "time"),
            [(name, format_ms(ms)) for name, ms in steps if ms >= 1e-3],
            right=("time",),
        )
        for line in _limits(document, chosen):
            output.text(line)
        _show_simulated(chosen)
        output.text(f"why: {chosen.reason}")
        for line in _evidence(document, chosen):
            output.text(line)
        output.table(
            "one step away",
            ("change", "recipe", "why not"),
            [(near.change, near.recipe, near.reason) for near in document.neighbours],
        )
        output.text(f"most worth measuring: {document.doubt}")
    for rejection in document.rejected:
        output.text(f"lost: {rejection.recipe}: {rejection.reason}")
    for line in front.text(document):
        output.text(line)


def _limits(document: Plan, chosen: Candidate) -> Iterator[str]:
    """How far each limit is kept, over the range of the prediction."""
    for limit in document.inputs.slo.limits:
        figure = chosen.estimate.limited_ms[limit.name]
        nearest, farthest = ((limit.ms - end) / limit.ms for end in (figure.high, figure.low))
        reached = f"{format_ms(figure.value)} ({format_ms(figure.low)} to {format_ms(figure.high)})"
        side = "below" if figure.value <= limit.ms else "above"
        share = abs(limit.ms - figure.value) / limit.ms
        yield (
            f"{limit.describe()}: {reached}, {share:.0%} {side} the limit of {format_ms(limit.ms)} "
            f"(margin {nearest:.0%} to {farthest:.0%} over the range)"
        )


def _range(figure: Any, unit: str) -> str:
    return f"{figure.value:,.0f} {unit} ({figure.low:,.0f} to {figure.high:,.0f})"


def _range_ms(figure: Any) -> str:
    return f"{format_ms(figure.value)} ({format_ms(figure.low)} to {format_ms(figure.high)})"
