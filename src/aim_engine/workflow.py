"""The whole walk, read this first: a model and the hardware go in, a running, watched deployment comes out.

cluster, gpu = hardware(...)          what is there, or was asked for
spec = describe(...)                  what must run
plan = choose(...)                    the best recipe, with reasons
artifacts = render(plan, ...)         written out for its target (aim_engine.render)
deployment = up(plan, ...)            fetched, started, watched (aim_engine.deploy, aim_engine.monitor)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aim_engine.errors import Corrupt, InvalidInput
from aim_engine.hardware.cluster import Cluster, asked
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf.estimate import Estimate
from aim_engine.planner.plan import Inputs, Plan
from aim_engine.settings import Settings
from aim_engine.workload import Objective, Slo, Workload

if TYPE_CHECKING:
    from aim_engine.perf.local import Local
    from aim_engine.planner.accuracy import Accuracy
    from aim_engine.planner.own import Calibrated
    from aim_engine.planner.sizing import Sized
    from aim_engine.planner.table import Reader


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a user asks of the planner, in the user's own words."""

    model: str
    gpus: str | None = None
    """Such as 8xMI300X, or cpu; anyxMI300X for as many as the load takes, any for the best card of the catalogue too. None
    plans on this machine."""
    workload: Workload = Workload()
    slo: Slo = Slo()
    objective: Objective = "throughput"
    precision: str | None = None
    engine: str = "vllm"
    engine_version: str | None = None
    max_model_len: int | None = None
    allow_lossy: bool = False
    max_gpus: int | None = None
    max_usd_h: float | None = None
    simulate: bool | None = None
    """Play the best few through the engine's scheduler; None: where a rate or a limit on a percentile asks for it."""
    prices: Path | None = None
    """A price list of the user's own."""
    revision: str | None = None


def hardware(gpus: str | None, settings: Settings) -> tuple[Cluster, Gpu]:
    """The cluster to plan on and the kind of device that counts. Raises: InvalidInput on an unknown card."""
    from aim_engine.hardware import catalog, cpu, detect
    from aim_engine.planner.select import main_gpu

    overlay = overlay_dir(settings)
    if gpus is not None and (card := open_card(gpus)) is not None:
        gpu = catalog.load(card, overlay)
        return asked(gpu.devices_per_node, gpu), gpu
    if gpus is not None and gpus.lower() != "cpu":
        count, gpu = catalog.parse_request(gpus, overlay)
        return asked(count, gpu), gpu
    root = Path(settings.sysfs_root)
    cluster = detect.detect(root, run_tools=settings.sysfs_root == "/", overlay=overlay)
    found = None if gpus is not None else main_gpu(cluster, lambda name: catalog.load(name, overlay))
    if found is not None:
        return cluster, found
    host = next((node.cpu for node in cluster.nodes if node.cpu is not None), None)
    if host is None:
        raise InvalidInput(
            "no GPU was found and the CPU could not be read",
            hint="name the hardware to plan for, for example --gpus 8xMI300X",
        )
    return cluster, cpu.as_gpu(host, cpu.measure_bandwidth())


class SizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration to size, in the user's own words; None leaves a figure to the engine's defaults."""

    gpus: str | None = None
    tp: int | None = None
    pp: int = 1
    dp: int = 1
    ep: bool = False
    precision: str | None = None
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    input_tokens: int = 1024
    output_tokens: int = 512
    concurrency: int | None = None
    engine: str = "vllm"
    engine_version: str | None = None
    revision: str | None = None


def size(model: str, asked_for: SizeRequest, settings: Settings) -> Sized:
    """What one given configuration needs, whether it fits, and the ways from it. Raises: InvalidInput."""
    from aim_engine import backend
    from aim_engine.hardware import catalog, prices
    from aim_engine.perf import calibration
    from aim_engine.planner import sizing

    overlay = overlay_dir(settings)
    spec = describe(model, settings, asked_for.revision)
    cluster, gpu = hardware(asked_for.gpus, settings)
    engine = backend.get(asked_for.engine, overlay)
    version = engine_version(
        Request(model=model, engine=asked_for.engine, engine_version=asked_for.engine_version), settings, gpu
    )
    return sizing.size(
        sizing.Given(
            spec=spec,
            gpu=gpu,
            devices=len(cluster.devices),
            engine_version=version,
            **{name: getattr(asked_for, name) for name in sizing.GIVEN},
        ),
        backend=engine,
        calibration=calibration.pick(calibration.load(overlay, measured(settings, gpu)), gpu),
        cards=lambda: [catalog.load(name, overlay) for name in catalog.names(overlay)],
        prices=prices.load(overlay),
    )


def answer_table(content: str, name: str, folder: Path | None, settings: Settings) -> list[dict[str, Any]]:
    """A prediction, or the reason why not, for each row of a table of measurements. Raises: Corrupt, InvalidInput."""
    from aim_engine.perf import calibration
    from aim_engine.planner import batch, table

    overlay = overlay_dir(settings)
    reader = table_reader(folder, settings, Path(name))
    return batch.answer(reader.read(table.parse(content, name)), calibration.load(overlay, measured(settings)))


def score_table(content: str, name: str, folder: Path | None, settings: Settings) -> Accuracy:
    """Predictions against what a table of measurements holds. Raises: Corrupt, InvalidInput."""
    from aim_engine.perf import calibration
    from aim_engine.planner import accuracy, batch, table

    rows = table.parse(content, name)
    cases = table_reader(folder, settings, Path(name)).read(rows)
    return accuracy.score(rows, cases, batch.answer(cases, calibration.load(overlay_dir(settings), measured(settings))))


def calibrate(content: str, name: str, folder: Path | None, settings: Settings) -> Calibrated:
    """What a table of the user's own measurements changes; nothing is kept yet. Raises: Corrupt, InvalidInput."""
    from aim_engine.perf import calibration
    from aim_engine.planner import own, table

    rows = table.parse(content, name)
    cases = table_reader(folder, settings, Path(name)).read(rows)
    return own.calibrate(rows, cases, calibration.load(overlay_dir(settings)))


def keep_measured(local: Local, settings: Settings, gpu: Gpu | None = None) -> None:
    """Keep the user's own measurements, in place of those before. `gpu` as for `measured`."""
    path = measured(settings, gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(local))
    part.replace(path)


def measured(settings: Settings, gpu: Gpu | None = None) -> Path:
    """Where the user's own measurements are kept: those of cards together, those of this machine's processor by themselves."""
    name = "measured-cpu.json" if gpu is not None and gpu.kind == "cpu" else "measured.json"
    return Path(settings.state_dir).expanduser() / name


ARGUMENTS_FILE = "server_args.json"


def table_reader(
    folder: Path | None, settings: Settings, table: Path | None = None, *, device: Gpu | None = None
) -> Reader:
    """Reads table rows with the catalogue's models, and those of a folder of org__name.json configs.

    `device` is what all rows were measured on, where no catalogue has it. A `server_args.json` beside `table` maps its `server_args_id` to command lines. Raises: Corrupt when that is not readable.
    """
    from aim_engine import backend
    from aim_engine.hardware import catalog
    from aim_engine.model import library
    from aim_engine.perf import situation
    from aim_engine.planner.table import Reader

    overlay = overlay_dir(settings)
    engine = backend.get("vllm", overlay)
    known = {_ordered(version): version for version in reversed(engine.versions())}

    def defaults(gpu: Gpu, version: str) -> tuple[int, int, float]:
        stated = _ordered(situation.release(version)) or max(known)
        found = engine.defaults(known[max((each for each in known if each <= stated), default=min(known))], gpu)
        return found.max_num_seqs, found.max_num_batched_tokens, found.gpu_memory_utilization

    arguments = _server_arguments(table.with_name(ARGUMENTS_FILE)) if table is not None and table.is_file() else {}
    return Reader(
        library.build(folder, overlay),
        lambda card: device if device is not None else catalog.load(card, overlay),
        defaults,
        arguments,
    )


def _ordered(version: str) -> tuple[int, ...]:
    """Major and minor number, to compare; empty for none."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _server_arguments(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError) as err:
        raise Corrupt(f"{path} is not readable as command lines by id", why=str(err)) from err


def choose_in(request: Request, spec: ModelSpec, cluster: Cluster, settings: Settings) -> Plan:
    """Plan `request` for a model on what is free in `cluster`; where it has several kinds of cards, on the best of them.

    Raises: InvalidInput when no catalogued GPU of it is free.
    """
    from aim_engine.hardware import catalog, nodes
    from aim_engine.planner import compare
    from aim_engine.planner.plan import Rejection
    from aim_engine.planner.select import main_gpu

    overlay = overlay_dir(settings)
    free = nodes.free(cluster)
    names = sorted({device.gpu for device in free.devices if device.gpu is not None})
    if not names:
        reasons = [finding.message for node in free.nodes for finding in node.findings]
        raise InvalidInput(
            f"none of the {len(cluster.devices)} GPUs of {len(cluster.nodes)} node{'s' * (len(cluster.nodes) > 1)} is free"
            if cluster.devices
            else "no AMD GPU is there to plan on",
            why="; ".join(reasons[:3]) or None,
            hint="name the hardware to plan for, for example --gpus 8xMI300X",
        )
    plans, refused = [], []
    for name in names:
        nodes_of_kind = tuple(
            msgspec.structs.replace(node, devices=tuple(d for d in node.devices if d.gpu == name))
            for node in free.nodes
            if any(device.gpu == name for device in node.devices)
        )
        kind = msgspec.structs.replace(free, nodes=nodes_of_kind)
        gpu = main_gpu(kind, lambda each: catalog.load(each, overlay))
        try:
            if gpu is not None:
                plans.append(select_for(request, spec, kind, gpu, settings))
        except InvalidInput as err:
            if len(names) == 1:
                raise
            refused.append(Rejection(recipe=name, reason=err.what))
    if not plans:
        raise InvalidInput(f"no card of the cluster can be planned on for {spec.model_id}", why=refused[0].reason)
    return plans[0] if len(plans) == 1 and not refused else compare.best(plans, refused, request.objective)


def open_card(gpus: str) -> str | None:
    """The card of `anyxMI300X`, which leaves open how many; None when a number is asked for."""
    count, _, card = gpus.strip().partition("x") if gpus.strip().lower().startswith("anyx") else ("", "", "")
    return card.strip() or None if count else None


def describe(model: str, settings: Settings, revision: str | None = None, *, headers: bool = False) -> ModelSpec:
    """The model's description from a folder, a config.json, the catalogue, the cache or the hub, in that order.

    With `headers`, the first bytes of its weight files on the hub are read too.
    """
    from aim_engine.model import source

    return source.describe(
        model, revision=revision, offline=settings.offline, overlay=overlay_dir(settings), headers=headers
    )


def choose(request: Request, settings: Settings) -> Plan:
    """Plan `request` on the hardware it names or finds."""
    spec = describe(request.model, settings, request.revision)
    if request.gpus is not None and request.gpus.strip().lower() == "any":
        return _best_card(request, spec, settings)
    cluster, gpu = hardware(request.gpus, settings)
    return select_for(request, spec, cluster, gpu, settings)


def choose_on(request: Request, spec: ModelSpec, gpus: str, settings: Settings) -> Plan:
    """Plan `request` for a model that is known already, on hardware named like `Request.gpus`."""
    named = msgspec.structs.replace(request, gpus=gpus)
    cluster, gpu = hardware(gpus, settings)
    return select_for(named, spec, cluster, gpu, settings)


def select_for(request: Request, spec: ModelSpec, cluster: Cluster, gpu: Gpu, settings: Settings) -> Plan:
    """The plan for a model and hardware that are known already."""
    from aim_engine import backend
    from aim_engine.hardware import catalog, prices
    from aim_engine.perf import calibration
    from aim_engine.planner.select import select
    from aim_engine.recipe.database import RecipeDatabase

    overlay = overlay_dir(settings)
    engine = backend.get(request.engine, overlay)
    inputs = Inputs(
        model=spec,
        cluster=cluster,
        gpu=gpu,
        workload=request.workload,
        slo=request.slo,
        objective=request.objective,
        precision=request.precision,
        engine=engine.name,
        engine_version=engine_version(request, settings, gpu),
        max_model_len=request.max_model_len,
        allow_lossy=request.allow_lossy,
        open_count=request.gpus is not None and open_card(request.gpus) is not None,
        price=prices.load(overlay, request.prices).cheapest(gpu.name),
        max_gpus=request.max_gpus,
        max_usd_h=request.max_usd_h,
        simulate=simulates(request),
    )
    return select(
        inputs,
        backend=engine,
        calibration=calibration.pick(calibration.load(overlay, measured(settings, gpu)), gpu),
        known=RecipeDatabase(overlay, Path(settings.state_dir).expanduser()).load_recipes(
            spec.model_id, request.engine
        ),
        catalogue=lambda: [catalog.load(name, overlay) for name in catalog.names(overlay)],
    )


def simulates(request: Request) -> bool:
    """Whether the best few are played through the engine's scheduler."""
    if request.simulate is not None:
        return request.simulate
    return request.workload.rate_requests_s is not None or request.slo.has_percentiles


def _best_card(request: Request, spec: ModelSpec, settings: Settings) -> Plan:
    """The plan on the catalogue's best card for the objective, as many as the load takes.

    Raises: InvalidInput when not one card can be planned on.
    """
    from aim_engine.hardware import catalog, prices
    from aim_engine.planner import compare
    from aim_engine.planner.plan import Rejection

    overlay = overlay_dir(settings)
    offers = prices.load(overlay, request.prices)
    quick = msgspec.structs.replace(request, simulate=False)
    plans, refused = {}, []
    for name in catalog.names(overlay):
        try:
            if request.objective == "cost":
                offers.price(name)
            plans[name] = choose_on(quick, spec, f"anyx{name}", settings)
        except InvalidInput as err:
            refused.append(Rejection(recipe=name, reason=err.what))
    if not plans:
        raise InvalidInput(
            f"no card of the catalogue can be planned on for {spec.model_id}",
            why=refused[0].reason if refused else None,
            hint="name the hardware, for example --gpus 8xMI300X",
        )
    if not simulates(request):
        return compare.best(tuple(plans.values()), refused, request.objective)
    played: set[str] = set()
    ahead = compare.ahead(tuple(plans.values()), request.objective)
    while not played.issuperset(ahead):
        for name in ahead:
            if name not in played:
                plans[name] = choose_on(request, spec, f"anyx{name}", settings)
                played.add(name)
        best = compare.best(tuple(plans.values()), refused, request.objective)
        ahead = (best.inputs.gpu.name,)
    return compare.best(tuple(plans.values()), refused, request.objective)


def expect(plan: Plan, workload: Workload, settings: Settings) -> Estimate | None:
    """What the plan's recipe would do under other traffic than it was chosen for; None when it chose none."""
    from aim_engine.perf import calibration, memory, predict

    if plan.chosen is None:
        return None
    recipe, inputs = plan.chosen.recipe, plan.inputs
    coefficients = calibration.pick(calibration.load(overlay_dir(settings), measured(settings, inputs.gpu)), inputs.gpu)
    breakdown = memory.breakdown(inputs.model, inputs.gpu, recipe, workload)
    return predict.at_load(
        inputs.model, inputs.gpu, recipe, workload, inputs.slo, inputs.objective, coefficients, breakdown
    )


def engine_version(request: Request, settings: Settings, gpu: Gpu) -> str:
    """The release asked for, else the one in the settings (of vLLM), else the newest known that runs on this kind of device."""
    from aim_engine import backend

    engine = backend.get(request.engine, overlay_dir(settings))
    wanted = request.engine_version or (settings.engine_version if engine.name == "vllm" else "")
    if wanted:
        return engine.release(wanted).version
    return engine.newest(gpu)


def overlay_dir(settings: Settings) -> Path | None:
    """The user's catalogue folder. Raises: InvalidInput when it is set and missing."""
    if not settings.catalog_dir:
        return None
    path = Path(settings.catalog_dir).expanduser()
    if not path.is_dir():
        raise InvalidInput(
            f"the catalogue folder {path} does not exist", hint="aim-engine settings shows where it is set"
        )
    return path
