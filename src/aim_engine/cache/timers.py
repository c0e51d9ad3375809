"""What reads the store on a schedule: a systemd timer on a machine, a CronJob in a cluster."""

from __future__ import annotations

import sys
from typing import Any

from aim_engine.errors import InvalidInput
from aim_engine.render import text, unit

_NAME = "aim-engine-cache-scrub"
_EVERY = "daily"
_CRON = "17 3 * * *"
USER = 10001
"""Who the rendered Jobs are that fill the volume; see `render.pod`."""
_HOURS = 6


def systemd(cache_dir: str, state_dir: str, options: tuple[str, ...] = ()) -> dict[str, str]:
    """File name -> content of a service that reads what is due, and of the timer that starts it every day."""
    command = unit.command((sys.executable, "-m", "aim_engine", "cache", "scrub", *options))
    service = (
        "[Unit]\n"
        "Description=Read the model cache against its checksums\n"
        "\n"
        "[Service]\n"
        "Type=oneshot\n"
        f"Environment={unit.word(f'AIM_ENGINE_CACHE_DIR={cache_dir}')}\n"
        f"Environment={unit.word(f'AIM_ENGINE_STATE_DIR={state_dir}')}\n"
        f"ExecStart={command}\n"
        "Nice=19\n"
        "IOSchedulingClass=idle\n"
        "CPUQuota=100%\n"
        f"TimeoutStartSec={_HOURS}h\n"
        "NoNewPrivileges=yes\n"
        "PrivateTmp=yes\n"
    )
    timer = (
        "[Unit]\n"
        "Description=Read the model cache against its checksums, a part of it every day\n"
        "\n"
        "[Timer]\n"
        f"OnCalendar={_EVERY}\n"
        "RandomizedDelaySec=3h\n"
        "Persistent=yes\n"
        "\n"
        "[Install]\n"
        "WantedBy=timers.target\n"
    )
    return {f"{_NAME}.service": service, f"{_NAME}.timer": timer}


def kubernetes(
    claim: str, image: str, options: tuple[str, ...] = (), namespace: str = "default", user: int = USER
) -> dict[str, str]:
    """File name -> content of a CronJob that reads what is due of the cache on a volume claim. Raises: InvalidInput.

    The image has aim-engine in it, and `user` is who filled the cache, which refuses others. The index lies in the pod and is made anew each time; how far the store was read lies in the store.
    """
    if "@sha256:" not in image:
        raise InvalidInput(
            f"the image '{image}' may become another one", hint="name it by its digest: registry/name@sha256:..."
        )
    labels = {"app.kubernetes.io/name": _NAME, "app.kubernetes.io/managed-by": "aim-engine"}
    container = {
        "name": "scrub",
        "image": text.image_reference(image),
        "command": [text.no_expansion(each) for each in ("aim-engine", "cache", "scrub", *options)],
        "env": [
            {"name": "HOME", "value": "/tmp"},  # noqa: S108 - in the container
            {"name": "AIM_ENGINE_CACHE_DIR", "value": "/cache/huggingface/aim-engine"},
            {"name": "AIM_ENGINE_STATE_DIR", "value": "/tmp/aim-engine"},  # noqa: S108 - in the container
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        "securityContext": {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the container
            {"name": "cache", "mountPath": "/cache"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            **({"runAsNonRoot": True} if user else {}),
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "cache", "persistentVolumeClaim": {"claimName": text.dns_subdomain(claim, "volume claim")}},
        ],
    }
    document: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {
            "name": text.dns_label(f"{claim[:32]}-scrub"),
            "namespace": text.dns_label(namespace, "namespace"),
            "labels": labels,
        },
        "spec": {
            "schedule": _CRON,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 1,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 0,
                    "activeDeadlineSeconds": _HOURS * 3600,
                    "template": {"metadata": {"labels": labels}, "spec": pod},
                }
            },
        },
    }
    return {f"{_NAME}.yaml": text.yaml_document(document)}
