"""The places a plan can be written for; a new target is one file and one line here."""

from __future__ import annotations

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import compose_watch, serving, text
from aim_engine.render.artifact import Artifact, Options, Target
from aim_engine.render.compose import Compose
from aim_engine.render.docker import Docker
from aim_engine.render.env import Env
from aim_engine.render.gateway import Gateway
from aim_engine.render.helm import Helm
from aim_engine.render.hpa import Hpa
from aim_engine.render.job import Job
from aim_engine.render.keda import Keda
from aim_engine.render.kserve import Kserve
from aim_engine.render.kserve_llm import KserveLlm
from aim_engine.render.kuberay import Kuberay
from aim_engine.render.kubernetes import Kubernetes
from aim_engine.render.kustomize import Kustomize
from aim_engine.render.lws import Lws
from aim_engine.render.monitoring import Monitoring
from aim_engine.render.podman import Podman
from aim_engine.render.shell import Shell
from aim_engine.render.slurm import Slurm
from aim_engine.render.systemd import Systemd

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Env(),
        Shell(),
        Systemd(),
        Slurm(),
        Docker(),
        Compose(),
        Podman(),
        Kubernetes(),
        Kustomize(),
        Helm(),
        Lws(),
        Kuberay(),
        Kserve(),
        KserveLlm(),
        Gateway(),
        Job(),
        Monitoring(),
        Keda(),
        Hpa(),
    )
}


_WITHOUT = {
    "env": ("labels", "annotations", "volumes", "files"),
    "shell": ("labels", "annotations", "volumes", "files"),
    "slurm": ("labels", "annotations", "volumes", "files"),
    "systemd": ("labels", "annotations", "files"),
    "docker": ("annotations", "files"),
    "compose": ("annotations",),
    "podman": ("annotations", "files"),
}
"""Additions that a target has no place for; saying so is better than leaving them out."""


_ANY_ENGINE = (
    "env",
    "shell",
    "systemd",
    "slurm",
    "docker",
    "compose",
    "podman",
    "kubernetes",
    "kustomize",
    "helm",
    "job",
)
"""Targets that need nothing of vLLM; the others write its figures' names, or start its ranks on several hosts."""


_IMAGES = ("docker", "compose", "podman", "kubernetes", "kustomize", "helm", "lws", "kuberay", "kserve", "kserve-llm")
"""Targets that start the engine's image; `job` starts the one that fetches."""


def images(plan: Plan, target: str, options: Options, backend: Backend) -> tuple[str, ...]:
    """The images without a digest that the files of `target` name, sorted. Raises: InvalidInput."""
    engine = serving.image_reference(serving.image(plan, options, backend)) if target in (*_IMAGES, "job") else None
    found = {
        "compose": (engine, *compose_watch.images(plan)),
        "job": (options.fetch_image or engine,),
    }.get(target, (engine,))
    return tuple(sorted({each for each in found if each is not None and "@" not in each}))


def render(plan: Plan, target: str, options: Options, backend: Backend | None = None) -> tuple[Artifact, ...]:
    """The files that serve `plan` on `target`. `backend` is the plan's own engine unless given. Raises: InvalidInput."""
    if target not in TARGETS:
        raise InvalidInput(f"there is no target '{target}'", hint=f"one of {', '.join(TARGETS)}")
    text.port_number(options.port)
    if options.model_path:
        text.host_path(options.model_path, "model folder")
    for addition in _WITHOUT.get(target, ()):
        if getattr(options, addition):
            raise InvalidInput(
                f"{addition} have no place in target {target}", hint=f"drop --{addition.removesuffix('s')}"
            )
    if plan.inputs.engine != "vllm":
        if target not in _ANY_ENGINE:
            raise InvalidInput(
                f"target {target} is written for vllm, not for {plan.inputs.engine}",
                hint=f"one of {', '.join(_ANY_ENGINE)}; or plan with --engine vllm",
            )
        if options.api_key_secret:
            raise InvalidInput(
                f"{plan.inputs.engine} takes a key only as an argument, which lists of processes show",
                hint="drop --api-key-secret, and put a gateway that asks for keys in front",
            )
    if backend is None:
        from aim_engine import backend as backends

        backend = backends.get(plan.inputs.engine)
    # A plan whose engine could not be started is written nowhere, not even where only its figures are needed.
    model_ref = options.model_path or plan.inputs.model.model_id
    serving.command(plan, options, backend, model_ref=model_ref, host="127.0.0.1", port=options.port, drain=False)
    _starts(plan, backend, model_ref)
    return TARGETS[target].render(plan, options, backend)


def _starts(plan: Plan, backend: Backend, model_ref: str) -> None:
    """Refuse a recipe with arguments that are gone since its release, as older plans have them. Raises: InvalidInput."""
    recipe = serving.chosen(plan).recipe
    made = backend.command(recipe, model_ref=model_ref, host="127.0.0.1", port=1)
    for finding in backend.check(made.args, made.env, recipe.engine_version):
        if finding.severity == "error" and finding.id == "VER002":
            raise InvalidInput(
                f"{recipe.engine} {recipe.engine_version} would not start with the recipe of this plan",
                why=finding.message,
                hint=f"plan again: aim-engine plan {plan.inputs.model.model_id} -o plan.json",
            )
