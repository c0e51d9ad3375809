"""What every target needs to know of a plan, worked out once: replicas and their devices, command, image, patience."""

from __future__ import annotations

import hashlib
import math

import msgspec

from aim_engine._version import __version__
from aim_engine.backend.base import Backend, Command, Image
from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Device, Node
from aim_engine.perf import memory
from aim_engine.planner import plan as plans
from aim_engine.planner.plan import Candidate, Plan
from aim_engine.recipe.recipe import Recipe
from aim_engine.render import text
from aim_engine.render.artifact import Options
from aim_engine.units import format_bytes

CONTAINER_PORT = 8000
"""Inside a container the engine always listens here; what is published is the user's choice."""
CONTAINER_HOST = "0.0.0.0"  # noqa: S104 - inside the container's own network; what is published is the user's choice
CONTAINER_HF_HOME = "/root/.cache/huggingface"
CONTAINER_CACHE = "/root/.cache"
"""Below it each engine keeps compiled code in a folder of its own name; without it every start compiles again."""
CACHE_VARIABLES = {"vllm": "VLLM_CACHE_ROOT", "sglang": "SGLANG_CACHE_DIR"}
"""What names that folder."""
CONTAINER_MODEL = "/model"
"""Where a local checkpoint folder is mounted."""

MIN_STARTUP_S = 900
"""First starts compile kernels for minutes: 160 s of AITER builds and 88 s of graph compilation were recorded on MI300X."""
LOAD_MARGIN = 3
"""Slow disks and a cold page cache against the predicted load time."""
DOWNLOAD_BYTES_S = 125_000_000
"""1 Gbit/s: the slowest network a first start must survive."""
SERVER_S = 60
"""What the API server needs around its workers' start, so that the engine's own, better message comes before a probe's."""
DRAIN_S = 120
"""What requests in flight get to finish when the engine is told to stop."""
STOP_S = 150
"""What the engine gets to stop altogether: draining, then ending its workers."""

MAX_FILES_BYTES = 900_000
"""A ConfigMap may have 1 MiB, its metadata included. Source: Kubernetes documentation, ConfigMap."""

READY_TIMEOUT = "VLLM_ENGINE_READY_TIMEOUT_S"
VISIBLE_DEVICES = "HIP_VISIBLE_DEVICES"


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount that was asked for beside the plan's own."""

    source: str
    """Absolute folder of the host, or the name of a volume claim."""
    target: str
    is_claim: bool
    read_only: bool


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One server of a deployment on one host."""

    name: str
    port: int
    """Where clients reach it on the host."""
    devices: tuple[Device, ...]
    """Empty on a CPU."""
    pinned: bool
    """Uses only some of the host's devices."""

    @property
    def render_nodes(self) -> tuple[str, ...] | None:
        """Device files of exactly these devices; None when the probe did not see them."""
        minors = [device.render_minor for device in self.devices]
        if any(minor is None for minor in minors):
            return None
        return tuple(f"/dev/dri/renderD{minor}" for minor in minors)

    @property
    def visible_devices(self) -> str | None:
        """Value of HIP_VISIBLE_DEVICES for a process that could see all devices; None when it may use them all."""
        return ",".join(str(device.index) for device in self.devices) if self.pinned else None


def chosen(plan: Plan) -> Candidate:
    """The plan's choice. Raises: InvalidInput when it chose nothing."""
    if plan.chosen is None:
        raise InvalidInput(
            f"the plan for {plan.inputs.model.model_id} chose nothing, so there is nothing to write out",
            why=plan.rejected[0].reason if plan.rejected else None,
            hint=plan.hint or None,
        )
    return plan.chosen


def on_cpu(plan: Plan) -> bool:
    """The plan needs no GPU."""
    return plan.inputs.gpu.kind == "cpu"


def replicas(plan: Plan, options: Options) -> tuple[Replica, ...]:
    """The servers of a single host, each with its own devices and port. Raises: InvalidInput."""
    recipe = chosen(plan).recipe
    name = text.dns_label(options.name)
    text.port_number(options.port)
    text.port_number(options.port + recipe.replicas - 1)
    names = [name] if recipe.replicas == 1 else [f"{name}-{index}" for index in range(recipe.replicas)]
    devices = () if on_cpu(plan) else _host(plan).devices
    size = recipe.parallelism.world_size
    if devices:
        devices = tuple(device for device in devices if device.gpu == recipe.gpu)
        if len(devices) < size * recipe.replicas:
            raise InvalidInput(
                f"{recipe.gpu_count} x {recipe.gpu} are not on one host of the plan, which has {len(devices)}",
                hint="render for kubernetes or lws, or plan for one host",
            )
    taken = size * recipe.replicas if devices else 0
    all_of_host = () if on_cpu(plan) else _host(plan).devices
    return tuple(
        Replica(
            name=names[index],
            port=options.port + index,
            devices=devices[index * size : (index + 1) * size] if devices else (),
            pinned=bool(devices) and (recipe.replicas > 1 or taken < len(all_of_host)),
        )
        for index in range(recipe.replicas)
    )


def hosts_per_replica(plan: Plan) -> int:
    """Hosts that one replica spans, each giving it all its devices. Raises: InvalidInput when it cannot be split so."""
    parallelism = chosen(plan).recipe.parallelism
    size = parallelism.world_size
    most = 0 if on_cpu(plan) else sum(device.gpu == plan.inputs.gpu.name for device in _host(plan).devices)
    if not most or size <= most:
        return 1
    if size % most or parallelism.dp > 1:
        raise InvalidInput(
            f"{parallelism.describe()} cannot be spread over hosts of {most} x {plan.inputs.gpu.name}",
            why="only tensor and pipeline parallelism span hosts, with the same number of devices on each",
            hint="plan for whole hosts",
        )
    return size // most


def on_one_host(plan: Plan) -> None:
    """Raises: InvalidInput when a replica of the plan spans several hosts, which only some targets can start."""
    if (hosts := hosts_per_replica(plan)) > 1:
        raise InvalidInput(
            f"a replica of {chosen(plan).recipe.parallelism.describe()} spans {hosts} hosts",
            why="this target starts every replica on one",
            hint="--target lws, slurm or kuberay, or plan for one host",
        )


def _host(plan: Plan) -> Node:
    """The node that has most devices of the planned kind; the first of equals."""
    gpu = plan.inputs.gpu.name
    return max(plan.inputs.cluster.nodes, key=lambda node: sum(device.gpu == gpu for device in node.devices))


def command(
    plan: Plan, options: Options, backend: Backend, *, model_ref: str, host: str, port: int, drain: bool
) -> Command:
    """The engine's arguments and environment, completed with what a deployment needs beyond a recipe.

    `drain` lets requests in flight finish on stop, for releases that can. Raises: InvalidInput.
    """
    recipe = chosen(plan).recipe
    if model_ref.startswith("-"):
        raise InvalidInput(f"'{model_ref}' cannot be served", why="the engine would take it for an option")
    base = backend.command(recipe, model_ref=text.data(model_ref, "model"), host=host, port=port)
    flags = {name for flag in backend.release(recipe.engine_version).flags for name in flag.flags}
    args = list(base.args)
    if model_ref != recipe.model_id and not _given(args, "--served-model-name"):
        args += ["--served-model-name", recipe.model_id]
    if drain and "--shutdown-timeout" in flags and not _given(args, "--shutdown-timeout"):
        args += ["--shutdown-timeout", str(DRAIN_S)]
    args += options.args
    env = dict(base.env)
    patience = startup_s(plan, options)
    if patience > MIN_STARTUP_S and READY_TIMEOUT in backend.release(recipe.engine_version).env:
        env.setdefault(READY_TIMEOUT, str(patience - SERVER_S))
    if options.offline:
        env |= {"HF_HUB_OFFLINE": "1", **({"VLLM_NO_USAGE_STATS": "1"} if recipe.engine == "vllm" else {})}
    env |= options.env
    for arg in args:
        text.data(arg, "argument")
    return Command(argv0=base.argv0, args=tuple(args), env=text.variables(env))


def _given(args: list[str], flag: str) -> bool:
    return any(arg == flag or arg.startswith(f"{flag}=") for arg in args)


def mounts(options: Options) -> tuple[Mount, ...]:
    """The further mounts that were asked for. Raises: InvalidInput."""
    found = []
    for entry in options.volumes:
        rest, read_only = (entry[:-3], True) if entry.endswith(":ro") else (entry, False)
        source, colon, target = text.data(rest, "volume").rpartition(":")
        if not colon or not source or not target.startswith("/"):
            raise InvalidInput(f"'{entry}' is not a volume", hint="/data:/data:ro or claim/NAME:/data")
        is_claim = source.startswith("claim/")
        source = (
            text.dns_subdomain(source.removeprefix("claim/"), "volume claim")
            if is_claim
            else text.host_path(source, "volume")
        )
        target = text.host_path(target, "mount point")
        found.append(Mount(source=source, target=target, is_claim=is_claim, read_only=read_only))
    return tuple(found)


def files(options: Options) -> dict[str, tuple[str, str]]:
    """Key -> (path in the container, content) of the files that were asked for. Raises: InvalidInput."""
    size = sum(len(content.encode(errors="surrogatepass")) for content in options.files.values())
    if size > MAX_FILES_BYTES:
        raise InvalidInput(
            f"files of {size:,} bytes are too large to be written out",
            why=f"a ConfigMap holds {MAX_FILES_BYTES:,}",
            hint="--volume mounts a folder",
        )
    found = {}
    for index, target in enumerate(sorted(options.files)):
        if not target.startswith("/") or target.endswith("/") or ":" in target:
            raise InvalidInput(
                f"'{target}' is no file of the container", hint="an absolute path, such as /templates/chat.jinja"
            )
        place = text.host_path(target, "file")
        found[f"file-{index}"] = (place, text.data(options.files[target], f"content of {target}"))
    return found


def image(plan: Plan, options: Options, backend: Backend) -> Image:
    """The image asked for, else that of the recipe's release for the planned device. Raises: InvalidInput when there is none."""
    if options.image is None:
        found = backend.image(chosen(plan).recipe.engine_version, plan.inputs.gpu)
    else:
        found = Image(
            reference=text.image_reference(options.image),
            device="cpu" if on_cpu(plan) else "rocm",
            archs=(plan.inputs.gpu.arch,),
            entrypoint=(),
            source="asked for",
        )
    if found.digest is None and found.reference in options.digests:
        return msgspec.structs.replace(found, digest=options.digests[found.reference])
    return found


def image_reference(found: Image) -> str:
    """Repository, tag and, where it is known, digest."""
    return f"{found.reference}@{found.digest}" if found.digest else found.reference


def pinned(reference: str, options: Options) -> str:
    """An image other than the engine's, with its digest where one is given. Raises: InvalidInput."""
    digest = options.digests.get(reference)
    return text.image_reference(f"{reference}@{digest}" if digest is not None else reference)


def runs_engine(found: Image, cmd: Command) -> bool:
    """The image starts the engine's own command by itself, so that only arguments are given."""
    return found.entrypoint == cmd.argv0


def weight_bytes(plan: Plan) -> int:
    """What is fetched and loaded."""
    spec = plan.inputs.model
    return spec.weight_bytes or memory.checkpoint_bytes(spec)


def startup_s(plan: Plan, options: Options) -> int:
    """Seconds a first start may take before something is wrong: loading, compiling, and fetching unless the files are there."""
    candidate = chosen(plan)
    fetch_s = 0.0 if options.model_path or options.offline else weight_bytes(plan) / DOWNLOAD_BYTES_S
    if options.read_bytes_s is not None and options.read_bytes_s < 1:
        raise InvalidInput(f"weights cannot be read at {options.read_bytes_s} bytes/s", hint="for example 200MB/s")
    read_s = weight_bytes(plan) / options.read_bytes_s if options.read_bytes_s is not None else 0.0
    needed = max(MIN_STARTUP_S, math.ceil(LOAD_MARGIN * candidate.estimate.load_s + read_s + fetch_s))
    own = options.env.get(READY_TIMEOUT, candidate.recipe.env.get(READY_TIMEOUT, ""))
    if own.isdecimal():
        needed = max(needed, int(own) + SERVER_S)
    return math.ceil(needed / 60) * 60


def header(plan: Plan, target: str, *notes: str) -> str:
    """The comment a rendered file opens with: where it came from, and what to know. Nothing in it changes between runs."""
    recipe = chosen(plan).recipe
    where = "the CPU" if on_cpu(plan) else f"{recipe.gpu_count} x {recipe.gpu}"
    lines = [
        f"Written by aim-engine {__version__} for {target}.",
        f"Model:  {plan.inputs.model.model_id}, {format_bytes(weight_bytes(plan))} of weights",
        f"Recipe: {recipe.key} on {where}, {recipe.engine} {recipe.engine_version}",
        f"Plan:   {_asked_for(plan)}; sha256 {digest(plan)}",
    ]
    for index, note in enumerate(notes):
        lines.extend(("", note) if index == 0 else (note,))
    return text.comment(lines)


def digest(plan: Plan) -> str:
    """What `sha256sum` says of the plan's file, its first twelve digits."""
    return hashlib.sha256(plans.encode(plan) + b"\n").hexdigest()[:12]


def _asked_for(plan: Plan) -> str:
    """`throughput at 64 requests of 1024 + 512 tokens, ttft within 500 ms`."""
    workload, slo = plan.inputs.workload, plan.inputs.slo
    load = f"{workload.rate_requests_s:g} requests/s" if workload.rate_requests_s is not None else ""
    at = load or f"{workload.concurrency or chosen(plan).estimate.concurrency} requests"
    limits = (("ttft", slo.ttft_ms), ("tpot", slo.tpot_ms), ("e2e", slo.e2e_ms))
    kept = [f"{name} within {limit_ms:g} ms" for name, limit_ms in limits if limit_ms is not None]
    asked = f"{plan.inputs.objective} at {at} of {workload.input_tokens} + {workload.output_tokens} tokens"
    return ", ".join((asked, *kept))


def secrets_file(plan: Plan, options: Options) -> str:
    """The env file that holds tokens, to be filled by its owner."""
    gated = plan.inputs.model.gated
    need = "This model is gated: the hub wants a token." if gated else "Needed only for gated or private models."
    lines = ["Tokens for the container, read when it starts. Keep this file to yourself.", need]
    body = text.comment(lines) + "# HF_TOKEN=\n"
    if options.api_key_secret:
        body += "# The key that clients must send. The container does not start without it.\n# VLLM_API_KEY=\n"
    return body


def shm_bytes(recipe: Recipe) -> int:
    """Size of /dev/shm."""
    return recipe.resources.shm_bytes
