"""The choice, in six steps: detect, analyse, match, rank, validate, fall back. Each leaves its reasons in the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from aim_engine.backend.base import Backend, Reason
from aim_engine.errors import InvalidInput, MissingFigure
from aim_engine.hardware import prices
from aim_engine.hardware.cluster import Cluster, Device, Finding, asked
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory, play, predict
from aim_engine.perf.calibration import Calibration
from aim_engine.planner import explain, fallback, rank, validate
from aim_engine.planner.beside import Evidence
from aim_engine.planner.family import Option
from aim_engine.planner.finalists import Finals, play_off
from aim_engine.planner.plan import Candidate, Inputs, Plan, Rejection, Step
from aim_engine.planner.search import Found, front, search
from aim_engine.recipe import heuristics
from aim_engine.recipe.database import Known
from aim_engine.units import format_bytes, format_count, format_ms

ALTERNATIVES = 5
Catalogue = Callable[[], Sequence[Gpu]]
"""Loads every card, called only when nothing fits and the nearest way out is wanted."""


def select(
    inputs: Inputs,
    *,
    backend: Backend,
    calibration: Calibration,
    known: tuple[Known, ...] = (),
    catalogue: Catalogue = tuple,
) -> Plan:
    """The best recipe for `inputs`, or none with the reasons and the nearest way out.

    Raises: InvalidInput when the model can never serve a request of that length.
    """
    _require_context(inputs)
    _require_figures(inputs)
    available = usable_devices(inputs.cluster, inputs.gpu)
    steps = [_detected(inputs, available), _analysed(inputs.model)]
    matching = tuple(entry for entry in known if inputs.gpu.name in entry.gpus and entry.gpu_count <= available)
    steps.append(_matched(inputs, known, matching, backend))
    found = search(inputs, available, backend, calibration, matching)
    options = rank.order(found.options, inputs.objective, open_count=inputs.open_count)
    finals = play_off(inputs, options) if inputs.simulate else None
    played = () if finals is None else finals.ranked
    spreads = {rank.spread(candidate) for candidate in played}
    ranked: list[Candidate | Option] = [*played, *(one for one in options if rank.spread(one) not in spreads)]
    evidence = Evidence(inputs)
    measured = evidence.best(ranked)
    steps.append(_ranked(inputs, found, options, finals, evidence.told(ranked[0], measured) if measured else ""))
    if measured is not None:
        ranked = [measured, *(one for one in ranked if one is not measured)]
    sound, refused = _first_valid(inputs, ranked, backend)
    steps.append(_validated(sound, refused))
    rejected = (*found.rejected, *(() if finals is None else finals.rejected), *refused)
    hint = ""
    if sound is not None and sound.meets_slo:
        chosen: Candidate | None = sound
        steps.append(Step(name="fallback", summary="not needed"))
    else:
        chosen = None
        if sound is not None:
            rejected = (*rejected, Rejection(recipe=sound.key, reason=_missed_limits(sound, inputs)))
        closest = [_whole(one) for one in rank.distinct(ranked, fallback.CLOSEST)]
        advice = fallback.advise(
            inputs,
            available,
            closest,
            found,
            backend=backend,
            calibration=calibration,
            catalogue=catalogue,
        )
        hint = advice.hint
        steps.append(Step(name="fallback", summary=advice.summary, details=advice.details))
    others = [one for one in ranked if chosen is None or rank.spread(one) != rank.spread(chosen)]
    alternatives = tuple(_whole(one) for one in rank.distinct(others, ALTERNATIVES))
    if chosen is not None:
        chosen = msgspec.structs.replace(chosen, reason=_why(chosen, alternatives, inputs, evidence))
        if inputs.open_count and inputs.gpu.kind != "cpu":
            inputs = msgspec.structs.replace(inputs, cluster=asked(chosen.recipe.gpu_count, inputs.gpu))
    return Plan(
        inputs=inputs,
        chosen=chosen,
        alternatives=alternatives,
        pareto=front(found.options, inputs, available),
        rejected=rejected,
        neighbours=()
        if chosen is None
        else explain.neighbours(
            chosen, found.options, rejected, inputs, () if finals is None else finals.smaller, evidence
        ),
        doubt="" if chosen is None else explain.doubt(chosen, next(iter(alternatives), None), inputs),
        kernels=_kernels(inputs, chosen, backend),
        findings=_findings(inputs, chosen, backend),
        steps=tuple(steps),
        hint=hint,
    )


def _whole(one: Candidate | Option) -> Candidate:
    return one if isinstance(one, Candidate) else one.candidate()


def _require_context(inputs: Inputs) -> None:
    longest = inputs.model.max_position_embeddings
    for wanted, what, option in (
        (inputs.max_model_len or 0, "a context", "--max-model-len"),
        (inputs.workload.total_tokens, "a request", "--input-tokens"),
    ):
        if wanted > longest:
            raise InvalidInput(
                f"{inputs.model.model_id} cannot serve {what} of {wanted:,} tokens",
                why=f"its own limit is {longest:,}",
                hint=f"lower {option}, or name a model with a longer context",
            )


def _require_figures(inputs: Inputs) -> None:
    """The figures that objective and limits cannot do without. Raises: MissingFigure."""
    if inputs.objective == "energy" and not inputs.gpu.power_w:
        raise MissingFigure(f"{inputs.gpu.name} power_w", file=inputs.gpu.file)
    if inputs.max_usd_h is not None and inputs.price is None:
        raise MissingFigure(f"price of {inputs.gpu.name}", file=f"{prices.FILE} of your catalogue folder")


def usable_devices(cluster: Cluster, gpu: Gpu) -> int:
    """Devices of this kind that one deployment may use: those of the node that has most of them."""
    if gpu.kind == "cpu":
        return 0
    return max(sum(device.gpu == gpu.name for device in node.devices) for node in cluster.nodes)


def main_gpu(cluster: Cluster, load: Callable[[str], Gpu]) -> Gpu | None:
    """The card to plan on: the kind that holds most memory in one node; None without a GPU.

    Memory is what the devices themselves report, with what others hold of it: the fullest of the kind counts, since ranks are equal.
    """
    best: tuple[int, str, list[Device]] | None = None
    for node in cluster.nodes:
        counts = Counter(device.gpu for device in node.devices if device.gpu is not None)
        for name in sorted(counts):
            devices = [device for device in node.devices if device.gpu == name]
            total = sum(_free_bytes(device) or load(name).memory_bytes for device in devices)
            if best is None or total > best[0]:
                best = (total, name, devices)
    if best is None:
        return None
    gpu = load(best[1])
    known = [device for device in best[2] if device.memory_total_bytes is not None]
    if not known:
        return gpu
    total_bytes = min(device.memory_total_bytes or gpu.memory_bytes for device in known)
    free_bytes = min(_free_bytes(device) or 0 for device in known)
    return msgspec.structs.replace(gpu, memory_bytes=total_bytes, held_bytes=max(0, total_bytes - free_bytes))


def _free_bytes(device: Device) -> int | None:
    if device.memory_total_bytes is None:
        return None
    return max(0, device.memory_total_bytes - (device.memory_used_bytes or 0))


def _detected(inputs: Inputs, available: int) -> Step:
    gpu = inputs.gpu
    where = "asked for" if inputs.cluster.origin == "asked" else "found here"
    if gpu.kind == "cpu":
        summary = f"no GPU {where}: planning on the CPU, {format_bytes(gpu.memory_bytes)} usable"
    else:
        summary = f"{available} x {gpu.name} ({gpu.arch}, {format_bytes(gpu.memory_bytes)} each) {where}"
    return Step(
        name="detect",
        summary=summary,
        details=tuple(f.message for node in inputs.cluster.nodes for f in node.findings),
    )


def _analysed(spec: ModelSpec) -> Step:
    kind = "mixture of experts" if spec.is_moe else "dense"
    kinds = ", ".join(f"{group.count} {group.kind}" for group in spec.groups)
    active = f" ({format_count(spec.active_parameters)} active)" if spec.is_moe else ""
    weights = format_bytes(spec.weight_bytes or memory.checkpoint_bytes(spec))
    return Step(
        name="analyse",
        summary=f"{kind}, {format_count(spec.parameters.total)} parameters{active}, {weights} of weights in {spec.format}",
        details=(f"layers: {kinds}", f"described by: {spec.source} ({spec.basis})", *_by_table(spec), *spec.warnings),
    )


def _by_table(spec: ModelSpec) -> tuple[str, ...]:
    """What the size table says of a model of which only the name is known."""
    if spec.basis != "name":
        return ()
    count = heuristics.calculate_optimal_gpu_count({"size": spec.parameters.total / 1e9})
    return (f"the size table takes {count} GPUs for {format_count(spec.parameters.total)} parameters",)


def _matched(inputs: Inputs, known: tuple[Known, ...], matching: tuple[Known, ...], backend: Backend) -> Step:
    if not known:
        return Step(name="match", summary=f"no known recipe for {inputs.model.model_id}; candidates are generated")
    if not matching:
        cards = ", ".join(sorted({gpu for entry in known for gpu in entry.gpus}))
        return Step(name="match", summary=f"{len(known)} known recipes, none for {inputs.gpu.name} (only {cards})")
    return Step(
        name="match",
        summary=f"{len(matching)} of {len(known)} known recipes apply, beside generated candidates",
        details=tuple(line for entry in matching for line in _told(entry, inputs, backend)),
    )


def _told(entry: Known, inputs: Inputs, backend: Backend) -> Iterator[str]:
    """A known recipe, and what of it has another name or is gone in the release that is planned for."""
    yield f"{entry.split} {entry.precision}: {entry.provenance.source}"
    for change in backend.translate(entry.extra_args, entry.env, inputs.engine_version).changes:
        became = f"became {change.to}" if change.to else "dropped"
        yield f"  {change.what} {became} for {inputs.engine} {inputs.engine_version}: {change.why}"


def _ranked(inputs: Inputs, found: Found, options: Sequence[Option], finals: Finals | None, measured: str) -> Step:
    keeping = sum(option.meets_slo for option in options)
    summary = (
        f"{found.configurations:,} configurations, {found.points:,} with every number of replicas and load they carry; "
        f"{len(options):,} at the load, by {inputs.objective}"
    )
    if inputs.slo.limits:
        summary += f"; {keeping:,} keep the limits"
    if finals is not None:
        summary += f"; the best {len(finals.ranked)} spreads simulated, {finals.played} times"
    first: Sequence[Candidate | Option] = options if finals is None else finals.ranked
    return Step(
        name="rank",
        summary=summary,
        details=(
            *(
                f"{one.key}: {one.output_tok_s:.0f} tok/s, {format_ms(1e3 / one.tok_s_per_user)} per token"
                for one in rank.distinct(first, 3)
            ),
            *_load_chosen(inputs, options),
            *((measured,) if measured else ()),
        ),
    )


def _load_chosen(inputs: Inputs, options: Sequence[Option]) -> Iterator[str]:
    """How the load came about where none was asked for."""
    open_load = play.needs_load(inputs.workload)
    if open_load and options and inputs.objective in ("throughput", "cost", "energy"):
        yield (
            f"no load was asked for: as many requests as twice of them give {predict.WORTHWHILE_FRACTION:.0%} more output"
            + (" and the limits allow" if inputs.slo.limits else "")
            + f", {options[0].load.requests:.0f} of a replica; --concurrency or --rate says yours"
        )


def _first_valid(
    inputs: Inputs, ranked: Sequence[Candidate | Option], backend: Backend
) -> tuple[Candidate | None, list[Rejection]]:
    """The first spread whose best configuration passes the rules."""
    refused: list[Rejection] = []
    for one in rank.distinct(ranked, len(ranked)):
        candidate = _whole(one)
        errors = [
            finding
            for finding in validate.recipe_findings(
                candidate.recipe, inputs.model, inputs.gpu, backend, {"objective": inputs.objective}
            )
            if finding.severity == "error"
        ]
        if not errors:
            return candidate, refused
        refused.append(Rejection(recipe=candidate.key, reason=f"{errors[0].id}: {errors[0].message}"))
    return None, refused


def _validated(chosen: Candidate | None, refused: list[Rejection]) -> Step:
    details = tuple(f"{rejection.recipe}: {rejection.reason}" for rejection in refused[:5])
    if chosen is None:
        return Step(name="validate", summary="nothing to validate" if not refused else "none is valid", details=details)
    return Step(name="validate", summary=f"{chosen.recipe.key} passes every check", details=details)


def _findings(inputs: Inputs, chosen: Candidate | None, backend: Backend) -> tuple[Finding, ...]:
    found = [finding for node in inputs.cluster.nodes for finding in node.findings]
    found.extend(_held(inputs, backend))
    found.extend(
        Finding(id="MOD100", severity="warning", message=warning, source=inputs.model.source)
        for warning in inputs.model.warnings
    )
    if chosen is not None:
        told = validate.recipe_findings(
            chosen.recipe, inputs.model, inputs.gpu, backend, {"objective": inputs.objective}
        )
        # A small share is no mistake where others hold the rest.
        held = any(finding.id == "MEM101" for finding in found)
        found.extend(finding for finding in told if not (held and finding.id == "MEM013"))
    return tuple(found)


def _held(inputs: Inputs, backend: Backend) -> Iterator[Finding]:
    """What others hold of the memory, where the engine is therefore given less than by default."""
    gpu = inputs.gpu
    idle = msgspec.structs.replace(gpu, held_bytes=0)
    share, whole = (backend.defaults(inputs.engine_version, each).gpu_memory_utilization for each in (gpu, idle))
    if gpu.kind != "cpu" and share < whole:
        yield Finding(
            id="MEM101",
            severity="warning",
            message=f"others hold {format_bytes(gpu.held_bytes)} of the {format_bytes(gpu.memory_bytes)} of a {gpu.name}: "
            f"the engine gets {share:g} of it, not {whole:g}",
            evidence="memory in use when the hardware was looked at",
            remedy="stop what else runs on it and plan again; amd-smi process shows it",
        )


def _kernels(inputs: Inputs, chosen: Candidate | None, backend: Backend) -> tuple[Reason, ...]:
    if chosen is None:
        return ()
    return backend.explain(inputs.model, inputs.gpu, chosen.recipe, allow_lossy=inputs.allow_lossy)


def _missed_limits(candidate: Candidate, inputs: Inputs) -> str:
    missed = [f"{inputs.slo.told(name)} by {by:.0%}" for name, by, _ in candidate.misses]
    return f"misses the limit on {' and '.join(missed)}"


def _why(chosen: Candidate, others: tuple[Candidate, ...], inputs: Inputs, evidence: Evidence) -> str:
    goal = {
        "throughput": f"{chosen.estimate.output_tok_s.value:.0f} output tokens/s",
        "latency": f"{format_ms(chosen.estimate.e2e_ms.value)} per request",
        "cost": f"{chosen.recipe.gpu_count} GPUs"
        + ("" if chosen.running.usd_h is None else f" for {chosen.running.usd_h:.2f} USD an hour"),
        "energy": f"{chosen.running.output_tokens_per_joule or 0:.2f} output tokens per joule",
        "balanced": f"{chosen.estimate.output_tok_s_per_user:.0f} tok/s per user x "
        f"{chosen.estimate.output_tok_s_per_gpu:.0f} tok/s per GPU",
    }[inputs.objective]
    text = f"best {inputs.objective}: {goal}"
    if others:
        ours, theirs = (rank.value(c, inputs.objective, open_count=inputs.open_count) for c in (chosen, others[0]))
        if measured := evidence.decides(chosen, others[0]):
            text += f"; before {others[0].recipe.key}, {measured}"
        elif theirs > ours:
            near = ours >= theirs * (1 - rank.band(inputs.objective))
            text += (
                f"; {others[0].recipe.key} is {'within the error band' if near else f'{theirs / ours - 1:.0%} ahead'}, "
            )
            text += f"{'and' if near else 'but'} {rank.preference(chosen, others[0])}"
        elif theirs > 0:
            text += f"; next is {others[0].recipe.key} ({1 - theirs / ours:.0%} behind)"
    return text


def requirements(inputs: Inputs) -> Mapping[str, object]:
    """What `RecipeDatabase.find_matching_recipe` is asked for these inputs."""
    return {
        "model_id": inputs.model.model_id,
        "gpu": inputs.gpu.name,
        "gpu_count": usable_devices(inputs.cluster, inputs.gpu),
        "precision": inputs.precision,
        "objective": inputs.objective,
        "engine": inputs.engine,
    }
