"""Dictionaries for a recipe, in the shape of the product's first specification, with content that works today.

`docker run` and manifests of a whole plan come from `render.targets`; this is for programs that have only a recipe. The
image is the engine's own, pinned to the recipe's release, whose entrypoint is `vllm serve`; code from a model's repository
runs only when the recipe says so; ports are published on loopback.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_engine.backend.base import Backend, Command, Image
from aim_engine.errors import InvalidInput
from aim_engine.recipe.recipe import Recipe
from aim_engine.recipe.seed_shape import UNNAMED_GPU, from_seed
from aim_engine.render import docker, serving, text
from aim_engine.render.pod import quantity, resources

NAME = "aim-engine"
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class ConfigurationGenerator:
    """Deployment configurations of a recipe, for one engine and release."""

    def __init__(self, engine: str = "vllm", engine_version: str | None = None) -> None:
        from aim_engine import backend

        self._backend: Backend = backend.get(engine)
        self._version = engine_version or self._backend.versions()[0]

    def generate_vllm_config(self, recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
        """The engine's own settings by name, without defaults."""
        found = self._recipe(recipe)
        config: dict[str, Any] = {
            "model": found.model_id,
            "dtype": _DTYPES.get(found.precision, "auto"),
            "tensor_parallel_size": found.parallelism.tp,
            "max_model_len": found.max_model_len,
            "max_num_seqs": found.max_num_seqs,
            "max_num_batched_tokens": found.max_num_batched_tokens,
            "gpu_memory_utilization": found.gpu_memory_utilization,
            "trust_remote_code": found.trust_remote_code,
            "host": "127.0.0.1",
            "port": serving.CONTAINER_PORT,
        }
        optional = {
            "pipeline_parallel_size": found.parallelism.pp if found.parallelism.pp > 1 else None,
            "data_parallel_size": found.parallelism.dp if found.parallelism.dp > 1 else None,
            "enable_expert_parallel": found.parallelism.ep or None,
            "kv_cache_dtype": found.kv_cache_dtype if found.kv_cache_dtype != "auto" else None,
            "quantization": found.online_quantization,
            "attention_backend": found.attention_backend,
        }
        return config | {name: value for name, value in optional.items() if value is not None}

    def generate_docker_config(self, recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
        """What `docker run` needs, by name."""
        found = self._recipe(recipe)
        image, command = self._image(found), self._command(found)
        config: dict[str, Any] = {
            "image": serving.image_reference(image),
            "ports": [f"127.0.0.1:{serving.CONTAINER_PORT}:{serving.CONTAINER_PORT}"],
            "devices": ["/dev/kfd", "/dev/dri"] if found.gpu_count else [],
            "group_add": ["video", "render"] if found.gpu_count else [],
            "volumes": [f"~/.cache/huggingface:{serving.CONTAINER_HF_HOME}"],
            "environment": {"HF_HOME": serving.CONTAINER_HF_HOME, **command.env},
            "shm_size": docker.size(found.resources.shm_bytes),
        }
        if not serving.runs_engine(image, command):
            config["entrypoint"] = list(command.argv0)
        return config | {"args": list(command.args)}

    def generate_kubernetes_config(self, recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
        """A Deployment."""
        found = self._recipe(recipe)
        image, command = self._image(found), self._command(found)
        container: dict[str, Any] = {"name": NAME, "image": serving.image_reference(image)}
        if not serving.runs_engine(image, command):
            container["command"] = list(command.argv0)
        probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5}
        container |= {
            "args": [text.no_expansion(arg) for arg in command.args],
            "env": [{"name": name, "value": text.no_expansion(value)} for name, value in command.env.items()],
            "ports": [{"name": "http", "containerPort": serving.CONTAINER_PORT}],
            "resources": _resources(recipe, found),
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "startupProbe": {**probe, "failureThreshold": 360},
            "readinessProbe": {**probe, "failureThreshold": 3},
            "livenessProbe": {**probe, "failureThreshold": 6},
            "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - the engine's own place
        }
        shm = {"medium": "Memory", "sizeLimit": quantity(found.resources.shm_bytes)}
        labels = {"app": NAME}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME},
            "spec": {
                "replicas": found.replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "enableServiceLinks": False,
                        "containers": [container],
                        "volumes": [{"name": "shm", "emptyDir": shm}],
                    },
                },
            },
        }

    def _recipe(self, recipe: Recipe | Mapping[str, Any]) -> Recipe:
        return recipe if isinstance(recipe, Recipe) else from_seed(recipe, engine_version=self._version)

    def _command(self, recipe: Recipe) -> Command:
        """The engine's command, when its release accepts it. Raises: InvalidInput."""
        made = self._backend.command(
            recipe, model_ref=recipe.model_id, host=serving.CONTAINER_HOST, port=serving.CONTAINER_PORT
        )
        env = text.variables(made.env)
        for finding in self._backend.check(made.args, env, recipe.engine_version):
            if finding.severity == "error":
                raise InvalidInput(
                    f"{recipe.engine} {recipe.engine_version} would not start with this recipe",
                    why=finding.message,
                    hint=finding.remedy or None,
                )
        return Command(argv0=made.argv0, args=made.args, env=env)

    def _image(self, recipe: Recipe) -> Image:
        """The image for the recipe's card; when it names none, the release's image for GPUs or CPUs."""
        if recipe.gpu not in (UNNAMED_GPU, "cpu"):
            from aim_engine.hardware import catalog

            return self._backend.image(recipe.engine_version, catalog.load(recipe.gpu))
        device = "cpu" if recipe.gpu == "cpu" else "rocm"
        for image in self._backend.release(recipe.engine_version).images:
            if image.device == device:
                return image
        raise InvalidInput(f"{recipe.engine} {recipe.engine_version} has no known image for a {device} device")


def _resources(given: Recipe | Mapping[str, Any], recipe: Recipe) -> dict[str, dict[str, str]]:
    """Requests and limits; memory and cpu as the dictionary says them, where it does."""
    made = resources(recipe)
    asked = {} if isinstance(given, Recipe) else given.get("resources", {})
    for kind, amounts in made.items():
        for name in ("memory", "cpu"):
            if name in asked.get(kind, {}):
                amounts[name] = str(asked[kind][name])
    return made


def generate_vllm_config(recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    """The engine's settings for `recipe`, a `Recipe` or the first specification's dictionary."""
    return ConfigurationGenerator().generate_vllm_config(recipe)


def generate_docker_config(recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    """What `docker run` needs for `recipe`."""
    return ConfigurationGenerator().generate_docker_config(recipe)


def generate_kubernetes_config(recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    """A Deployment for `recipe`."""
    return ConfigurationGenerator().generate_kubernetes_config(recipe)
