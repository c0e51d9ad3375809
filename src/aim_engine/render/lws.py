"""Target `lws`: a LeaderWorkerSet, whose groups of pods are one replica each, however many hosts it spans."""

from __future__ import annotations

from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render import manifests, pod, serving, text
from aim_engine.render.artifact import Artifact, Options

LEADER = {"leaderworkerset.sigs.k8s.io/worker-index": "0"}
"""What the controller labels the first pod of each group with; only it answers requests."""
MASTER_PORT = 29501
"""Where ranks meet. Source: vllm-project/vllm docs/serving/parallelism_scaling.md, multi-node without Ray."""


class Lws:
    """The group of pods with its account, cache volume, Service and network policy."""

    name = "lws"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan`; see `Target`."""
        if options.cache_per_replica:
            raise InvalidInput("a volume per replica is not written for target lws", hint="drop --cache-per-replica")
        hosts = serving.hosts_per_replica(plan)
        found = manifests.before(plan, options)
        found["leaderworkerset"] = _set(plan, options, backend, hosts)
        found["service"] = manifests.service(plan, options, "", {"type": "ClusterIP"}, LEADER)
        found["networkpolicy"] = manifests.network_policy(plan, options, grouped=hosts > 1)
        known = manifests.notes(plan, options)
        own: tuple[str, ...] = (
            f"A replica is a group of {hosts} pods on {hosts} hosts; the first answers requests."
            if hosts > 1
            else "A replica is one pod on one host.",
            "Needs LeaderWorkerSet 0.6 or newer, which tells each pod its place in LWS_WORKER_INDEX.",
        )
        if hosts > 1:
            own += (
                "Fast links between hosts need their device plugin too: add its resource and network with --patch.",
            )
        notes = {**known, "leaderworkerset": (*own, *known["deployment"])}
        return tuple(
            Artifact(
                path=f"{file}.yaml",
                content=serving.header(plan, self.name, *notes.get(file, ())) + text.yaml_document(document),
            )
            for file, document in found.items()
        )


def _set(plan: Plan, options: Options, backend: Backend, hosts: int) -> dict[str, Any]:
    group: dict[str, Any] = {"size": hosts, "restartPolicy": "RecreateGroupOnPodRestart"}
    leader = pod.template(plan, options, backend)
    if hosts > 1:
        group["leaderTemplate"] = _rank(leader, plan, backend, hosts, "0")
        worker = _rank(pod.template(plan, options, backend), plan, backend, hosts, "$(LWS_WORKER_INDEX)")
        container = worker["spec"]["containers"][0]
        container["args"].append("--headless")
        # A worker serves no HTTP; when its engine ends, the controller makes the whole group again.
        for field in ("ports", "startupProbe", "readinessProbe", "livenessProbe"):
            del container[field]
        group["workerTemplate"] = worker
    else:
        group["workerTemplate"] = leader
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": manifests.workload_metadata(plan, options),
        "spec": {
            "replicas": serving.chosen(plan).recipe.replicas,
            # Workers wait for the leader by themselves; starting them later only loads the weights later.
            "startupPolicy": "LeaderCreated",
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"maxSurge": 0, "maxUnavailable": 1},
            },
            "leaderWorkerTemplate": group,
        },
    }


def _rank(template: dict[str, Any], plan: Plan, backend: Backend, hosts: int, rank: str) -> dict[str, Any]:
    """`template` as one rank of a group; the controller sets the variables that its arguments name."""
    container = template["spec"]["containers"][0]
    known = {
        flag for entry in backend.release(serving.chosen(plan).recipe.engine_version).flags for flag in entry.flags
    }
    given = {arg.partition("=")[0] for arg in container["args"]}
    words: list[tuple[str, ...]] = [
        ("--nnodes", str(hosts)),
        ("--node-rank", rank),
        ("--master-addr", "$(LWS_LEADER_ADDRESS)"),
        ("--master-port", str(MASTER_PORT)),
    ]
    if "--distributed-executor-backend" not in given:
        words.append(("--distributed-executor-backend", "mp"))
    for flag, *values in words:
        if flag not in known or flag in given:
            engine = f"{serving.chosen(plan).recipe.engine} {serving.chosen(plan).recipe.engine_version}"
            raise InvalidInput(
                f"{flag} is given already" if flag in given else f"{engine} has no {flag}",
                why="target lws tells each rank its place",
                hint=f"drop {flag} from the recipe" if flag in given else "plan for a newer release, or for one host",
            )
        container["args"] += [flag, *values]
    address = {"name": "VLLM_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    container["env"] = [*(entry for entry in container["env"] if entry["name"] != "VLLM_HOST_IP"), address]
    return template
