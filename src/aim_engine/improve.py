"""Closing the loop: what was measured becomes advice, advice becomes another recipe, and what that does decides whether it stays.

subject = look(...)           figures, log, host and plan of a running deployment
advice = diagnose(subject)    what to change
plan = replanned(...)         the plan with the change, checked
outcome = apply(...)          deploy it, measure under the same load, keep it or go back
learn(...)                    what was measured corrects the next prediction
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from aim_engine import workflow
from aim_engine.advise import diagnose, subject
from aim_engine.advise.diagnose import Change, Diagnosis
from aim_engine.advise.subject import Subject
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment, Runner
from aim_engine.errors import AimError, InvalidInput, Unreachable
from aim_engine.hardware.gpu import Gpu
from aim_engine.monitor import figures, scrape, totals, track
from aim_engine.monitor.figures import KpiReport
from aim_engine.monitor.ledger import Ledger, Measurement
from aim_engine.monitor.span import Span, side_by_side
from aim_engine.perf import calibration as calibrations
from aim_engine.perf.calibration import Calibration
from aim_engine.planner import validate
from aim_engine.planner.plan import Plan
from aim_engine.planner.table import Case, Unreadable
from aim_engine.render import compare, targets
from aim_engine.render.artifact import Options
from aim_engine.settings import Settings

FEW = 20
MOVED = 0.02
"""A figure that moved less stayed where it was."""
WORSE = 0.10
"""What no other latency may lose by."""
LOG_LINES = 4000


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one window under one load."""

    requests: float
    ttft_ms: float | None
    tpot_ms: float | None
    output_tok_s: float | None
    figure: float | None
    """The one that the advice is judged by."""
    errors: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/applied/v1"):
    """What came of applying advice."""

    id: str
    change: Change
    diff: str
    kept: bool
    why: str
    before: Measured
    after: Measured | None = None


def look(
    plan: Plan | None,
    span: Span,
    report: KpiReport,
    settings: Settings,
    *,
    before: KpiReport | None = None,
    log: str | None = None,
    findings: Sequence[str] | None = None,
    cards: dict[str, dict[str, float]] | None = None,
) -> Subject:
    """Everything that is known of a deployment, with the speed model for what a change would do."""
    return subject.of(
        report,
        plan,
        span=span,
        before=before,
        log=log,
        findings=findings,
        cards=cards,
        calibration=_calibration(plan, settings) if plan is not None else None,
    )


def log_of(store: Store, members: Sequence[str], runner: Callable[[Deployment], Runner]) -> str | None:
    """The log of a deployment's first replica; None when it has none."""
    for member in members:
        deployment = store.load(member)
        try:
            lines = list(runner(deployment).logs(deployment, lines=LOG_LINES, follow=False))
        except AimError:
            return None
        return "\n".join(lines)
    return None


def replanned(plan: Plan, change: Change, settings: Settings) -> Plan:
    """The plan with a change of its recipe and a new prediction. Raises: InvalidInput when the engine could not run it."""
    from aim_engine import backend

    if plan.chosen is None:
        raise InvalidInput("the plan chose nothing, so there is nothing to change")
    recipe = diagnose.apply(plan.chosen.recipe, change)
    engine = backend.get(plan.inputs.engine, workflow.overlay_dir(settings))
    problems = [
        finding
        for finding in validate.recipe_findings(recipe, plan.inputs.model, plan.inputs.gpu, engine)
        if finding.severity == "error"
    ]
    if problems:
        raise InvalidInput(
            f"the change cannot be made: {change.say}", why=problems[0].message, hint=problems[0].remedy or None
        )
    estimate = subject.predict(plan, recipe, plan.inputs.workload, _calibration(plan, settings))
    if estimate is None:
        raise InvalidInput(f"the change cannot be made: {change.say}", why="the recipe would not fit")
    chosen = msgspec.structs.replace(
        plan.chosen, recipe=recipe, estimate=estimate, reason=f"advice applied: {change.say}"
    )
    return msgspec.structs.replace(plan, chosen=chosen, alternatives=(), pareto=(), rejected=(), neighbours=())


def diff(old: Plan, new: Plan, options: Options, settings: Settings, target: str) -> str:
    """What the change does to the files, line by line."""
    from aim_engine import backend

    engine = backend.get(old.inputs.engine, workflow.overlay_dir(settings))
    form = "shell" if target == "local" else target
    current = {artifact.path: artifact.content for artifact in targets.render(old, form, options, engine)}
    return compare.files(current, targets.render(new, form, options, engine))


def apply(
    advice: Diagnosis,
    deployment: Deployment,
    plan: Plan,
    settings: Settings,
    runner: Runner,
    *,
    load: Callable[[str, str], None],
    tell: Callable[[str], None],
) -> Outcome:
    """Deploy a change, measure it and keep it or go back. `load` puts the same load on the endpoint before and after.

    In a cluster the objects are changed in place and their pods roll over; elsewhere the engine is stopped first.

    Raises: InvalidInput, Unreachable. Whatever happens, the deployment of before runs again unless the change stays.
    """
    if advice.change is None or not advice.change.is_of_recipe:
        raise InvalidInput(f"{advice.id} is nothing that a deployment can do", hint="do what it says by hand")
    new = replanned(plan, advice.change, settings)
    options = Options(
        name=deployment.name,
        port=deployment.port,
        host=deployment.host,
        namespace=deployment.namespace or "default",
        model_path=_model_path(deployment) or None,
        image=deployment.image,
    )
    in_place = deployment.target == "kubernetes"
    shown = diff(plan, new, options, settings, deployment.target)
    tell(shown.rstrip() or "the files stay as they are")
    before = measure(deployment, advice, load, tell)
    tell(f"before: {_said(before)}")
    if not in_place:
        runner.stop(deployment, tell)
    after: Measured | None = None
    try:
        started = runner.start(new, options, tell)
        if started.state not in ("ready", "applied"):
            why = "it did not become ready"
        else:
            after = measure(started, advice, load, tell)
            tell(f"after: {_said(after)}")
            keep, why = judge(advice, before, after)
            if keep:
                return Outcome(
                    id=advice.id, change=advice.change, diff=shown, kept=True, why=why, before=before, after=after
                )
        tell(f"going back: {why}")
    except BaseException:
        tell("going back")
        _restore(runner, plan, options, tell)
        raise
    if not in_place:
        runner.stop(started, tell)
    _restore(runner, plan, options, tell)
    return Outcome(id=advice.id, change=advice.change, diff=shown, kept=False, why=why, before=before, after=after)


def measure(
    deployment: Deployment, advice: Diagnosis, load: Callable[[str, str], None], tell: Callable[[str], None]
) -> Measured:
    """The figures of the time that `load` takes. The first requests after a start are left out."""
    tell(f"measuring {deployment.endpoint}")
    begin = _told(deployment)
    load(deployment.endpoint, deployment.served_as)
    end = _told(deployment)
    spans = [track.between(begin[name], now)[0] for name, now in end.items() if name in begin]
    if not spans:
        raise Unreachable(
            f"{deployment.name} could not be measured",
            why=f"of the replicas {', '.join(begin) or 'none'} that answered before, none answers now",
            hint=f"aim-engine status {deployment.name}",
        )
    span = side_by_side(spans)
    report = figures.of(span, endpoint=deployment.endpoint)
    return Measured(
        requests=report.readings["requests_s"].count or 0.0,
        ttft_ms=report.value("ttft_ms"),
        tpot_ms=report.value("tpot_ms"),
        output_tok_s=report.value("output_tok_s"),
        figure=report.value(advice.verify.kpi),
        errors=report.value("error_fraction") or 0.0,
    )


def _told(deployment: Deployment) -> dict[str, totals.Totals]:
    """What each replica has counted, by name. Raises: Unreachable when none of them answers."""
    if deployment.target != "kubernetes":
        return {deployment.name: totals.read(scrape.fetch(deployment.endpoint))}
    from aim_engine.deploy.pods import Pods

    cluster = Pods(deployment.namespace or "default", deployment.name)
    try:
        found, last = {}, None
        for pod, page in cluster.pages().items():
            if isinstance(page, Unreachable):
                last = page
            else:
                found[pod] = totals.read(scrape.read(page, f"pod {pod}", time.time()))
    finally:
        cluster.close()
    if not found:
        raise last or Unreachable(f"no pod of {deployment.name} is ready", hint=f"aim-engine status {deployment.name}")
    return found


def judge(advice: Diagnosis, before: Measured, after: Measured) -> tuple[bool, str]:
    """Does the change stay, and why."""
    if after.requests < FEW or before.requests < FEW:
        fewest = min(after.requests, before.requests)
        return False, f"{fewest:.0f} requests are too few to judge on; {FEW} are needed before and after"
    if after.errors > before.errors:
        return False, f"{after.errors:.1%} of the requests fail, {before.errors:.1%} did before"
    want, kpi = advice.verify.want, advice.verify.kpi
    if before.figure is None or after.figure is None:
        return False, f"{kpi} was not told, so the change cannot be judged"
    moved = _moved(before.figure, after.figure)
    helped = {"falls": moved < -MOVED, "rises": moved > MOVED, "stays": abs(moved) <= WORSE}[want]
    if not helped:
        return False, f"{kpi} went from {before.figure:.4g} to {after.figure:.4g}; it should be so that it {want}"
    for name in ("ttft_ms", "tpot_ms"):
        was, now = getattr(before, name), getattr(after, name)
        if name != kpi and was and now and now > was * (1 + WORSE) and advice.id not in _TRADES:
            return False, f"{name} went from {was:.4g} to {now:.4g}"
    return True, f"{kpi} went from {before.figure:.4g} to {after.figure:.4g}"


_TRADES = frozenset({"S1", "K1", "K3", "P1", "P2", "D1", "D2", "C4", "K4", "S5"})
"""Advice that gives one latency for another, or for throughput, and says so."""


def drive(
    requests: int,
    concurrency: int,
    question: str = "Tell me about the weather in one sentence.",
    *,
    endpoint: str | None = None,
) -> Callable[[str, str], None]:
    """A load of our own: so many questions, so many at a time; to `endpoint`, where it is not reached at its own address."""
    reached_at = endpoint

    def load(endpoint: str, model: str) -> None:
        from aim_engine.deploy import chat

        endpoint = reached_at or endpoint
        left = iter(range(requests))
        lock = threading.Lock()
        errors: list[AimError] = []

        def work() -> None:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                try:
                    chat.ask(endpoint, model, f"{question} ({number})", max_tokens=32)
                except AimError as err:
                    errors.append(err)
                    return

        threads = [threading.Thread(target=work) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(errors) == concurrency:
            raise errors[0]

    return load


def wait(seconds: float) -> Callable[[str, str], None]:
    """The load that is there anyway, for so long."""

    def load(_: str, __: str) -> None:
        time.sleep(seconds)

    return load


def learn(plan: Plan, report: KpiReport, settings: Settings, ledger: Ledger, *, now_s: float) -> str:
    """Keep a window as a measurement and correct predictions by all that were kept; says what came of it.

    Measurements that `calibrate` was given stay. Raises: Corrupt, Unreachable.
    """
    row = measurement(plan, report)
    if isinstance(row, str):
        return f"nothing learned: {row}"
    identity = hashlib.blake2b(
        "|".join(f"{name}={row[name]}" for name in sorted(row) if name not in _RESULTS).encode(), digest_size=8
    ).hexdigest()
    on_cpu = plan.inputs.gpu.kind == "cpu"
    ledger.measured(
        Measurement(
            identity=identity,
            time_s=now_s,
            row={**row, "row_id": f"{_OURS}{identity}"},
            device=plan.inputs.gpu if on_cpu else None,
        )
    )
    return recalibrate(settings, ledger, plan.inputs.gpu)


def recalibrate(settings: Settings, ledger: Ledger, gpu: Gpu) -> str:
    """Correct predictions of what is like `gpu` by the measurements of the ledger, beside those that the user gave."""
    from aim_engine.perf import local
    from aim_engine.perf.local import Local
    from aim_engine.planner import own

    on_cpu = gpu.kind == "cpu"
    kept = [each for each in ledger.measurements() if (each.device is not None) == on_cpu]
    rows = [each.row for each in kept]
    sets = calibrations.load(workflow.overlay_dir(settings))
    found_on = [msgspec.json.encode(each.device) for each in kept]
    readers = {
        name: workflow.table_reader(None, settings, device=each.device)
        for name, each in zip(found_on, kept, strict=True)
    }
    cases = [_as_run(readers[name].read([each.row])[0], each) for name, each in zip(found_on, kept, strict=True)]
    found = own.calibrate(rows, cases, sets, arch="cpu" if on_cpu else "gfx942")
    path = workflow.measured(settings, gpu)
    theirs: tuple[Any, ...] = ()
    if path.is_file():
        before = msgspec.json.decode(path.read_bytes(), type=Local)
        theirs = tuple(point for point in before.points if not point.row_id.startswith(_OURS))
    if not found.used:
        return f"kept, predictions stay: {found.dropped[-1].reason}" if found.dropped else "nothing to learn from"
    workflow.keep_measured(local.solve((*theirs, *found.local.points), found.local.base), settings, gpu)
    return f"{found.used} measurements correct the next predictions"


def _as_run(case: Case | Unreadable, measured: Measurement) -> Case | Unreadable:
    """Tables of cards know no 32 bit weights, in which processors mostly compute."""
    if measured.device is None or not isinstance(case, Case):
        return case
    recipe = msgspec.structs.replace(case.recipe, precision=measured.row["precision"], gpu_count=0)
    return msgspec.structs.replace(case, recipe=recipe, gpu_count=0)


def measurement(plan: Plan, report: KpiReport) -> dict[str, str] | str:
    """A window as a row of a table of measurements, or why it is none."""
    if plan.chosen is None:
        return "the plan chose nothing"
    told = {name: report.value(name) for name in ("prompt_tokens", "output_tokens", "batch", "ttft_ms", "tpot_ms")}
    requests = report.readings["requests_s"].count or 0.0
    if requests < FEW:
        return f"{requests:.0f} requests are too few; {FEW} are needed"
    missing = [name for name, value in told.items() if not value]
    if missing:
        return f"{' and '.join(missing)} are not told"
    recipe = plan.chosen.recipe
    split = recipe.parallelism
    return {
        "model": plan.inputs.model.model_id,
        "gpu": recipe.gpu,
        "gpu_count": str(recipe.gpu_count),
        "tp": str(split.tp),
        "pp": str(split.pp),
        "dp": str(split.dp),
        "ep": "1",
        "engine": recipe.engine,
        "engine_version": recipe.engine_version,
        "precision": recipe.precision,
        "kv_dtype": "" if recipe.kv_cache_dtype == "auto" else recipe.kv_cache_dtype,
        "max_num_seqs": str(recipe.max_num_seqs),
        "max_num_batched_tokens": str(recipe.max_num_batched_tokens),
        "max_model_len": str(recipe.max_model_len),
        "gpu_memory_utilization": str(recipe.gpu_memory_utilization),
        "metric_kind": "serving",
        "input_len": str(round(told["prompt_tokens"] or 0)),
        "output_len": str(round(told["output_tokens"] or 0)),
        "concurrency": str(max(1, round(told["batch"] or 0))),
        "ttft_ms_mean": f"{told['ttft_ms']:.3f}",
        "tpot_ms_mean": f"{told['tpot_ms']:.4f}",
    }


_OURS = "monitor:"
"""Beginning of the ids of rows that the monitor measured."""
_RESULTS = ("ttft_ms_mean", "tpot_ms_mean")


def _calibration(plan: Plan, settings: Settings) -> Calibration:
    return calibrations.pick(
        calibrations.load(workflow.overlay_dir(settings), workflow.measured(settings, plan.inputs.gpu)), plan.inputs.gpu
    )


def _model_path(deployment: Deployment) -> str:
    """The folder of weights that a local engine was started with; empty when it was a name."""
    words = deployment.command
    place = words.index("serve") + 1 if "serve" in words else len(words)
    return words[place] if place < len(words) and Path(words[place]).is_dir() else ""


def _restore(runner: Runner, plan: Plan, options: Options, tell: Callable[[str], None]) -> None:
    runner.start(plan, options, tell)


def _moved(was: float, now: float) -> float:
    return (now - was) / was if was else float(now != 0)


def _said(found: Measured) -> str:
    parts = [f"{found.requests:.0f} requests"]
    for name in ("ttft_ms", "tpot_ms", "output_tok_s"):
        value = getattr(found, name)
        if value is not None:
            parts.append(f"{name} {value:.4g}")
    return ", ".join(parts)
