"""Target `job`: fetches the weights into the cache volume once, so that engines start offline and all at the same speed."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.recipe import companions
from aim_engine.render import manifests, pod, serving, text
from aim_engine.render.artifact import Artifact, Options

ATTEMPTS = 4
"""The hub's client continues where a broken download stopped, so trying again is cheap."""
FETCH_MARGIN = 2
"""Against the slowest network that a first start must survive."""
FETCH_MEMORY = {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}


class Job:
    """The volume claim and the Job that fills it, with the hub client of the engine's own image or through aim-engine's cache."""

    name = "job"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that fetch the weights of `plan`; see `Target`."""
        if options.model_path or options.cache_per_replica:
            raise InvalidInput(
                "there is no shared cache volume to fill", hint="drop --model-path and --cache-per-replica"
            )
        options = msgspec.structs.replace(options, offline=False)  # that is the engine's business
        notes = (
            f"Then: aim-engine render PLAN --target kubernetes --name {options.name} --offline"
            + (f" --fetch-image {options.fetch_image}" if options.fetch_image else ""),
            f"A hub token is read from the Secret {options.name}-hf-token, key token, when there is one.",
        )
        documents = {"cache": manifests.claim(plan, options), "job": _job(plan, options, backend)}
        return tuple(
            Artifact(
                path=f"{file}.yaml", content=serving.header(plan, self.name, *notes) + text.yaml_document(document)
            )
            for file, document in documents.items()
        )


def _job(plan: Plan, options: Options, backend: Backend) -> dict[str, Any]:
    model = plan.inputs.model.model_id
    if model.startswith(("-", "/")):
        raise InvalidInput(f"'{model}' is not on the hub", hint="serve a folder with --model-path")
    beside = companions.of((*serving.chosen(plan).recipe.extra_args, *options.args), model)
    meta = pod.metadata(plan, options, "-fetch")
    meta["labels"]["app.kubernetes.io/component"] = "fetch"
    where, mounts = pod.cache_mounts(options, serving.chosen(plan).recipe.engine)
    if options.fetch_image is None:
        image = serving.image_reference(serving.image(plan, options, backend))
        # Llama's repositories hold the weights a second time, in a folder that engines do not read.
        commands = [["hf", "download", each, "--exclude", "original/*"] for each in (model, *beside)]
    else:
        image = serving.pinned(options.fetch_image, options)
        commands = [["aim-engine", "cache", "pull", model, *beside]]
        where = {
            **{name: value for name, value in where.items() if name in ("HOME", "USER", "HF_HOME")},
            "AIM_ENGINE_CACHE_DIR": f"{where['HF_HOME']}/aim-engine",
            "AIM_ENGINE_STATE_DIR": "/tmp/aim-engine",  # noqa: S108 - in the container; the index must not lie on a network disk
            **({"AIM_ENGINE_CACHE_SOURCES": options.fetch_sources} if options.fetch_sources else {}),
        }
    containers = [
        {
            "name": "fetch" if number == 1 else f"fetch-{number}",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": [text.no_expansion(text.data(word, "model")) for word in command],
            "env": [
                *({"name": name, "value": text.no_expansion(value)} for name, value in sorted(where.items())),
                *(entry for entry in pod.secrets(options) if entry["name"] == "HF_TOKEN"),
            ],
            "resources": FETCH_MEMORY,
            "securityContext": pod.container_security(options),
            "volumeMounts": [*pod.temporary(options)[1], *mounts],
        }
        for number, command in enumerate(commands, 1)
    ]
    spec = {
        "restartPolicy": "OnFailure",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod.security(options),
        "containers": containers,
        "volumes": [
            *pod.temporary(options)[0],
            {"name": "cache", "persistentVolumeClaim": {"claimName": f"{options.name}-cache"}},
        ],
    }
    fetch_s = FETCH_MARGIN * serving.weight_bytes(plan) / serving.DOWNLOAD_BYTES_S
    # Not the engine's labels: its Service and its network policy must not take this pod for one of its own.
    labels = {"app.kubernetes.io/name": "aim-engine-fetch", "app.kubernetes.io/instance": options.name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            "backoffLimit": ATTEMPTS,
            "activeDeadlineSeconds": max(serving.MIN_STARTUP_S, math.ceil(fetch_s / 60) * 60),
            "ttlSecondsAfterFinished": 86400,
            "template": {"metadata": {"labels": {**labels, **text.labels(options.labels)}}, "spec": spec},
        },
    }
