"""Target `kuberay`: a RayService that runs the engine by Ray Serve, on as many hosts as a replica spans."""

from __future__ import annotations

import json
from typing import Any

from aim_engine.backend.base import Backend, Command, Flag
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import manifests, pod, serving, text
from aim_engine.render.artifact import Artifact, Options

DASHBOARD_PORT = 8265
"""Where the operator asks how the application is."""
HEAD_RESOURCES = {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}
"""The head runs Ray's own services and no engine. Source: KubeRay, sample of Ray Serve LLM."""
_NOT_OF_THE_ENGINE = ("host", "port", "served_model_name", "shutdown_timeout", "distributed_executor_backend")
"""Belong to the engine's own server, which Ray Serve takes the place of."""


class Kuberay:
    """The RayService with account, cache volume and network policy."""

    name = "kuberay"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        if serving.on_cpu(plan):
            raise InvalidInput("Ray Serve places engines on GPUs, and this plan has none", hint="--target kubernetes")
        if options.api_key_secret:
            raise InvalidInput("Ray Serve asks its clients for no key", hint="drop --api-key, and let a gateway ask")
        if options.cache_per_replica:
            raise InvalidInput(
                "a volume per replica is not written for target kuberay", hint="drop --cache-per-replica"
            )
        found = manifests.before(plan, options)
        found["rayservice"] = _service(plan, options, backend)
        found["networkpolicy"] = manifests.network_policy(
            plan, options, ports=(serving.CONTAINER_PORT, DASHBOARD_PORT), grouped=True
        )
        known = manifests.notes(plan, options)
        own = (
            "The image must hold Ray with its serve and llm extras beside the engine: name one with --image.",
            f"Clients use the Service {options.name}-serve-svc, port {serving.CONTAINER_PORT}.",
            "The operator asks Ray's dashboard, so its namespace is one to label.",
        )
        notes = {**known, "rayservice": (*own, *known["deployment"])}
        return tuple(
            Artifact(
                path=f"{file}.yaml",
                content=serving.header(plan, self.name, *notes.get(file, ())) + text.yaml_document(document),
            )
            for file, document in found.items()
        )


def _service(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    recipe, hosts = serving.chosen(plan).recipe, serving.hosts_per_replica(plan)
    worker, head = (_template(plan, options, backend) for _ in range(2))
    container = head["spec"]["containers"][0]
    container |= {"name": "ray-head", "resources": HEAD_RESOURCES}
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": DASHBOARD_PORT},
        *container["ports"],
    ]
    for field in ("nodeSelector", "affinity", "tolerations", "resourceClaims", "topologySpreadConstraints"):
        head["spec"].pop(field, None)  # the head needs no GPU
    pods = recipe.replicas * hosts
    config = text.yaml_document({"applications": [_application(plan, options, backend)]})
    patience = serving.startup_s(plan, options)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": manifests.workload_metadata(plan, options),
        "spec": {
            "deploymentUnhealthySecondThreshold": patience,
            "serviceUnhealthySecondThreshold": patience,
            # No spare GPUs are assumed: a second cluster beside the first one would wait for ever.
            "upgradeStrategy": {"type": "None"},
            "serveConfigV2": config,
            "rayClusterConfig": {
                "headGroupSpec": {
                    "rayStartParams": {"dashboard-host": serving.CONTAINER_HOST, "num-gpus": "0", "num-cpus": "0"},
                    "template": head,
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "gpu",
                        "replicas": pods,
                        "minReplicas": pods,
                        "maxReplicas": pods,
                        "rayStartParams": {"num-gpus": str(recipe.parallelism.world_size // hosts)},
                        "template": worker,
                    }
                ],
            },
        },
    }


def _template(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    """The engine's pod as a member of a Ray cluster: the operator brings command and probes."""
    made = pod.template(plan, options, backend)
    (container,) = made["spec"]["containers"]
    for field in ("command", "args", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
        container.pop(field, None)
    container["name"] = "ray-worker"
    container["ports"] = [{"name": "serve", "containerPort": serving.CONTAINER_PORT, "protocol": "TCP"}]
    return made


def _application(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    recipe = serving.chosen(plan).recipe
    source = serving.CONTAINER_MODEL if options.model_path else recipe.model_id
    command = serving.command(
        plan, options, backend, model_ref=source, host=serving.CONTAINER_HOST, port=serving.CONTAINER_PORT, drain=False
    )
    arguments = engine_arguments(command, backend.release(recipe.engine_version).flags)
    return {
        "name": options.name,
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {
            "llm_configs": [
                {
                    "model_loading_config": {"model_id": recipe.model_id, "model_source": source},
                    "engine_kwargs": {
                        name: value for name, value in arguments.items() if name not in _NOT_OF_THE_ENGINE
                    },
                    "deployment_config": {
                        "num_replicas": recipe.replicas,
                        # The engine queues by itself, and its queue is what autoscaling and alerts look at.
                        "max_ongoing_requests": 2 * recipe.max_num_seqs,
                    },
                }
            ]
        },
    }


def engine_arguments(command: Command, flags: tuple[Flag, ...]) -> dict[str, Any]:
    """The engine's options by name, as its Python interface takes them. Raises: InvalidInput for what is no option."""
    known = {name: flag for flag in flags for name in flag.flags}
    found: dict[str, Any] = {}
    words = list(command.args[1:])  # after the model
    while words:
        word, equals, inline = words.pop(0).partition("=")
        flag = known.get(word)
        if flag is None:
            raise InvalidInput(f"'{word}' cannot be passed to Ray Serve", why="it is no option of this release")
        if flag.nargs == 0:
            found[flag.dest] = not word.startswith("--no-")
            continue
        values = [inline] if equals else []
        many = flag.nargs in ("+", "*") or flag.action == "append"
        while words and (not values or (many and not equals)) and words[0].partition("=")[0] not in known:
            values.append(words.pop(0))
        if not values:
            raise InvalidInput(f"{word} has no value")
        read = [_value(value, flag.type) for value in values]
        found[flag.dest] = [*found.get(flag.dest, []), *read] if many else read[-1]
    return found


def _value(word: str, kind: str | None) -> Any:
    """`word` as its type: a number or a mapping where the engine's own parser makes one, else text."""
    if kind in ("str", None):
        return word
    try:
        value = json.loads(word)
    except ValueError:
        return word
    return value if isinstance(value, (int, float, dict, list)) else word
