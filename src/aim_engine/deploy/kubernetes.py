"""Applies a plan's manifests through a cluster's API, waits for the rollout, and takes down what it applied.

What is applied is what `aim-engine render --target kubernetes` writes, by server-side apply, so that fields others own
stay theirs. The cluster is the one that kubectl would talk to (in-cluster account, KUBECONFIG, ~/.kube/config). When there
is none, `Unreachable` is raised before anything happened: the manifests are still good.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.deploy import diagnose, interrupt
from aim_engine.deploy.local import now
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment, Progress, Status, silent
from aim_engine.errors import AimError, EngineFailed, InvalidInput, MissingExtra, Unreachable
from aim_engine.planner.plan import Plan
from aim_engine.render import serving
from aim_engine.render.artifact import Options

MANAGER = "aim-engine"
"""Field manager of our applies, and value of the label app.kubernetes.io/name."""
_POLL_S = 2.0
_STILL_WAITING_S = 30.0
_PULL_PATIENCE_S = 120.0
"""An image that still cannot be pulled after this long is not there."""
_CRASHES = 2
"""Restarts after which a container is believed to fail every time."""


class KubernetesRunner:
    """Applies plans to the cluster of the current kubectl context."""

    name = "kubernetes"

    def __init__(self, store: Store, *, ready_timeout_s: float = 0.0, overlay: Path | None = None) -> None:
        self._store = store
        self._ready_timeout_s = ready_timeout_s
        self._overlay = overlay

    def start(self, plan: Plan, options: Options, progress: Progress = silent) -> Deployment:
        """Apply the plan's manifests and wait until all replicas are available.

        Raises: Unreachable without a cluster, EngineFailed when the rollout fails, InvalidInput. After an error or an
        interruption the objects it made are gone again, but for the volume claim with its downloads.
        """
        from aim_engine import backend
        from aim_engine.render import targets

        recipe = serving.chosen(plan).recipe
        artifacts = targets.render(plan, "kubernetes", options, backend.get(recipe.engine, self._overlay))
        client = connect(options.namespace)
        _require_namespace(client, options.namespace)
        deployment = Deployment(
            name=options.name,
            target="kubernetes",
            model_id=recipe.model_id,
            served_as=recipe.model_id,
            engine=recipe.engine,
            engine_version=recipe.engine_version,
            state="starting",
            created_at=now(),
            host=f"{options.name}.{options.namespace}.svc",
            port=options.port,
            endpoint=f"http://{options.name}.{options.namespace}.svc:{options.port}",
            namespace=options.namespace,
            image=options.image,
            folder=str(self._store.folder(options.name)),
        )
        started = time.monotonic()
        patience_s = self._ready_timeout_s or serving.startup_s(plan, options) + 300.0
        with self._store.reserved(options.name), interrupt.raised():
            self._refuse_other(options.name)
            self._store.clear(options.name)
            self._store.save(deployment, plan)
            made: list[Any] = []
            try:
                for artifact in artifacts:
                    self._apply(client, artifact.content, made, progress)
                self._await(client, deployment, recipe.replicas, started + patience_s, progress)
            except BaseException as err:
                with interrupt.held_off():
                    _undo(client, made, progress)
                    ended = "failed" if isinstance(err, Exception) else "stopped"
                    self._store.save(msgspec.structs.replace(deployment, state=ended))
                raise
            deployment = msgspec.structs.replace(
                deployment, state="applied", ready_s=round(time.monotonic() - started, 1)
            )
            self._store.save(deployment)
        progress(f"{recipe.replicas} of {recipe.replicas} replicas available after {deployment.ready_s:.0f} s")
        progress(
            f"from here: kubectl --namespace {options.namespace} port-forward service/{options.name} {options.port}"
        )
        return deployment

    def status(self, deployment: Deployment) -> Status:
        """How the cluster says it is."""
        client = connect(str(deployment.namespace))
        with said("the cluster could not be asked"):
            found = _get(client, _kinds().Deployment, deployment.name)
            if found is None:
                gone = deployment.state in ("stopped", "failed")
                return Status(state="stopped" if gone else "died", detail="" if gone else "its Deployment is gone")
            wanted = found.spec.replicas if found.spec and found.spec.replicas is not None else 1
            available = (found.status.availableReplicas or 0) if found.status else 0
            pods = pods_of(client, deployment.name)
        detail = f"{available} of {wanted} replicas available"
        trouble = next((text for pod in pods if (text := _trouble(pod)) is not None), None)
        if available >= wanted:
            return Status(state="ready", detail=detail)
        if trouble is not None:
            detail += f"; {trouble[1]}"
        return Status(state="starting" if deployment.ready_s is None else "unresponsive", detail=detail)

    def logs(self, deployment: Deployment, *, lines: int = 100, follow: bool = False) -> Iterator[str]:
        """The output of the newest pod's engine."""
        client = connect(str(deployment.namespace))
        with said("the cluster could not be asked for the log"):
            pods = pods_of(client, deployment.name)
            if not pods:
                return
            pod = max(pods, key=lambda each: str(each.metadata.creationTimestamp or ""))
            yield from client.log(pod.metadata.name, follow=follow, tail_lines=lines, newlines=False)

    def stop(self, deployment: Deployment, progress: Progress = silent) -> Deployment:
        """Delete everything with the deployment's labels but the volume claim, whose downloads are worth keeping."""
        client = connect(str(deployment.namespace))
        kinds = _kinds()
        labels = _labels(deployment.name)
        with said("the cluster refused to delete"):
            for kind in (
                kinds.Deployment,
                kinds.Service,
                kinds.PodDisruptionBudget,
                kinds.NetworkPolicy,
                kinds.ServiceAccount,
            ):
                for found in client.list(kind, labels=labels):
                    progress(f"deleting {kind.__name__} {found.metadata.name}")
                    _delete(client, kind, found.metadata.name)
            for claim in client.list(kinds.PersistentVolumeClaim, labels=labels):
                progress(
                    f"kept: kubectl --namespace {deployment.namespace} delete persistentvolumeclaim {claim.metadata.name}"
                )
        stopped = msgspec.structs.replace(deployment, state="stopped")
        if deployment.name in self._store.names():
            self._store.save(stopped)
        return stopped

    def _apply(self, client: Any, manifest: str, made: list[Any], progress: Progress) -> None:
        from lightkube import codecs

        objects: list[Any] = list(codecs.load_all_yaml(manifest))
        for wanted in objects:
            kind, name = type(wanted), wanted.metadata.name
            with said(f"the cluster refused {kind.__name__} {name}"):
                present = _get(client, kind, name)
                if present is not None and (present.metadata.labels or {}).get("app.kubernetes.io/name") != MANAGER:
                    raise InvalidInput(
                        f"there is a {kind.__name__} {name} that aim-engine did not make",
                        hint="choose another name with --name",
                    )
                if present is None:  # noted first: an interruption may come before the answer
                    made.append(wanted)
                client.apply(wanted, field_manager=MANAGER, force=True)
            progress(f"{'made' if present is None else 'updated'} {kind.__name__} {name}")

    def _await(self, client: Any, deployment: Deployment, replicas: int, deadline: float, progress: Progress) -> None:
        """Until all replicas are available, telling what holds them up. Raises: EngineFailed."""
        told, quiet_since = "", time.monotonic()
        pulling_since: float | None = None
        while True:
            with said("the cluster could not be asked"):
                found = _get(client, _kinds().Deployment, deployment.name)
                pods = pods_of(client, deployment.name)
            if found is None:
                raise EngineFailed(f"the Deployment {deployment.name} was deleted while it rolled out")
            state = found.status
            seen = (state.observedGeneration or 0) >= (found.metadata.generation or 0) if state else False
            updated = (state.updatedReplicas or 0) if state else 0
            # Pods of before count as available until they are gone.
            if seen and (state.replicas or 0) <= updated and min(updated, state.availableReplicas or 0) >= replicas:
                return
            trouble = next((text for pod in pods if (text := _trouble(pod)) is not None), None)
            reason, says = trouble or ("", f"{len(pods)} of {replicas} pods made, waiting for them to become ready")
            if says != told:
                progress(says)
                told, quiet_since = says, time.monotonic()
            pulling_since = (pulling_since or time.monotonic()) if reason == "pull" else None
            if reason == "crash":
                raise self._failed(client, deployment, says)
            if pulling_since is not None and time.monotonic() - pulling_since > _PULL_PATIENCE_S:
                raise self._failed(client, deployment, says)
            if time.monotonic() > deadline:
                raise self._failed(client, deployment, f"not available in time: {says}")
            if time.monotonic() - quiet_since > _STILL_WAITING_S:
                progress(f"still waiting: {says}")
                quiet_since = time.monotonic()
            time.sleep(_POLL_S)

    def _failed(self, client: Any, deployment: Deployment, says: str) -> EngineFailed:
        log: list[str] = []
        code: int | None = None
        for pod in pods_of(client, deployment.name):
            try:
                with said("no log"):
                    log = list(client.log(pod.metadata.name, tail_lines=diagnose.TAIL_LINES, newlines=False))
            except AimError:
                continue  # a pod that never ran has no log
            code = _exit_code(pod)
            if log:
                break
        verdict = diagnose.diagnose(log, code, diagnose.rules(deployment.engine, self._overlay))
        known = (bool(log) and verdict.id != "unknown") or code is not None
        return EngineFailed(
            f"the rollout of {deployment.name} failed",
            why=f"{says}; {verdict.cause}" if known else says,
            hint=verdict.remedy
            if known
            else f"kubectl --namespace {deployment.namespace} describe pods --selector app.kubernetes.io/instance={deployment.name}",
            log_tail=diagnose.shown_tail(log),
        )

    def _refuse_other(self, name: str) -> None:
        if name in self._store.names():
            present = self._store.load(name)
            if present.target != "kubernetes" and present.state in ("ready", "starting"):
                raise InvalidInput(
                    f"'{name}' is already deployed ({present.target}) at {present.endpoint}",
                    hint=f"aim-engine down {name}, or choose another name with --name",
                )


def connect(
    namespace: str,
    *,
    needed_for: str = "applying to a cluster",
    otherwise: str = "apply the written manifests where kubectl works",
) -> Any:
    """A client of the cluster that kubectl would talk to. Raises: MissingExtra, Unreachable."""
    try:
        from lightkube import Client
        from lightkube.core.exceptions import ConfigError
    except ModuleNotFoundError as err:
        raise MissingExtra("lightkube", extra="kubernetes", needed_for=needed_for) from err
    try:
        client = Client(namespace=namespace, field_manager=MANAGER)
    except (ConfigError, OSError, ValueError, KeyError) as err:
        raise Unreachable(
            "no Kubernetes cluster is configured",
            why=str(err)[:300],
            hint=f"set KUBECONFIG, or {otherwise}",
        ) from err
    return client


def live(namespace: str, wanted: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The cluster's own version of each manifest, None for those it does not have. Raises: MissingExtra, Unreachable."""
    client = connect(namespace)
    from lightkube import codecs
    from lightkube.core.exceptions import LoadResourceError
    from lightkube.generic_resource import create_namespaced_resource

    found: list[dict[str, Any] | None] = []
    for manifest in wanted:
        try:
            ours: Any = codecs.from_dict(manifest)
        except LoadResourceError:
            # An operator's kind; all that we write have regular plurals. A cluster that does not know it has none of them.
            group, _, version = str(manifest["apiVersion"]).rpartition("/")
            kind = create_namespaced_resource(group, version, manifest["kind"], f"{manifest['kind'].lower()}s")
            ours = kind.from_dict(manifest)
        with said(f"the cluster could not be asked for {manifest['kind']} {ours.metadata.name}"):
            present = _get(client, type(ours), ours.metadata.name)
        found.append(None if present is None else dict(present.to_dict()))
    return found


class _Kinds(msgspec.Struct, frozen=True):
    Deployment: Any
    Service: Any
    ServiceAccount: Any
    PersistentVolumeClaim: Any
    PodDisruptionBudget: Any
    NetworkPolicy: Any
    Pod: Any
    Namespace: Any


def _kinds() -> _Kinds:
    from lightkube.resources import apps_v1, core_v1, networking_v1, policy_v1

    return _Kinds(
        apps_v1.Deployment,
        core_v1.Service,
        core_v1.ServiceAccount,
        core_v1.PersistentVolumeClaim,
        policy_v1.PodDisruptionBudget,
        networking_v1.NetworkPolicy,
        core_v1.Pod,
        core_v1.Namespace,
    )


def _require_namespace(client: Any, namespace: str) -> None:
    """The first question to the cluster: does it answer, and does it have the namespace?"""
    with said("the cluster could not be asked", forbidden_is_fine=True):
        if _get(client, _kinds().Namespace, namespace) is None:
            raise InvalidInput(
                f"the cluster has no namespace '{namespace}'",
                hint=f"kubectl create namespace {namespace}, or choose another with --namespace",
            )


def _labels(name: str) -> dict[str, Any]:
    return {"app.kubernetes.io/name": MANAGER, "app.kubernetes.io/instance": name}


def pods_of(client: Any, name: str) -> list[Any]:
    """The pods of a deployment of this name."""
    return list(client.list(_kinds().Pod, labels=_labels(name)))


def _get(client: Any, kind: Any, name: str) -> Any:
    """An object, None when it is not there."""
    from lightkube.core.exceptions import ApiError

    try:
        return client.get(kind, name)
    except ApiError as err:
        if err.status.code == 404:
            return None
        raise


def _delete(client: Any, kind: Any, name: str) -> None:
    from lightkube.core.exceptions import ApiError

    try:
        client.delete(kind, name)
    except ApiError as err:
        if err.status.code != 404:
            raise


def _undo(client: Any, made: list[Any], progress: Progress) -> None:
    """Delete what was made, newest first, but for volume claims."""
    for each in reversed(made):
        kind, name = type(each), each.metadata.name
        if kind.__name__ == "PersistentVolumeClaim":
            continue
        try:
            with said(f"{kind.__name__} {name} could not be deleted"):
                _delete(client, kind, name)
        except AimError as err:
            progress(f"{err.what}: {err.why}")
        else:
            progress(f"deleted {kind.__name__} {name}")


def _trouble(pod: Any) -> tuple[str, str] | None:
    """(kind, sentence) of what keeps a pod from running: crash, pull, schedule; None when nothing is known."""
    status, name = pod.status, pod.metadata.name
    if status is None:
        return None
    for each in status.containerStatuses or ():
        waiting = each.state.waiting if each.state else None
        ended = each.lastState.terminated if each.lastState else None
        if waiting is not None and waiting.reason == "CrashLoopBackOff" and (each.restartCount or 0) >= _CRASHES:
            why = f" ({ended.reason}, exit code {ended.exitCode})" if ended is not None else ""
            return "crash", f"pod {name} fails again and again{why}"
        if waiting is not None and waiting.reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName"):
            return "pull", f"pod {name} cannot pull its image: {waiting.message or waiting.reason}"
        if waiting is not None and waiting.reason in ("CreateContainerConfigError", "CreateContainerError"):
            return "create", f"pod {name} cannot be made: {waiting.message or waiting.reason}"
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return "schedule", f"pod {name} has no node: {condition.message or condition.reason}"
    return None


def _exit_code(pod: Any) -> int | None:
    for each in (pod.status.containerStatuses or ()) if pod.status else ():
        for state in (each.lastState, each.state):
            if state is not None and state.terminated is not None:
                return 137 if state.terminated.reason == "OOMKilled" else int(state.terminated.exitCode)
    return None


@contextmanager
def said(what: str, *, forbidden_is_fine: bool = False) -> Iterator[None]:
    """The cluster's refusals, and its silence, in the user's terms."""
    from lightkube.core.exceptions import ApiError, ConfigError, LoadResourceError

    try:
        yield
    except ApiError as err:
        code = err.status.code
        if code == 403 and forbidden_is_fine:
            return
        hints = {
            401: "log in to the cluster again",
            403: "ask for the right to do this: kubectl auth can-i --list",
            409: "something else changes this object at the same time; try again",
            422: "aim-engine validate checks the manifests",
        }
        raise Unreachable(what, why=f"{err.status.message} ({code})", hint=hints.get(code or 0)) from err
    except (ConfigError, LoadResourceError) as err:
        raise Unreachable(what, why=str(err)) from err
    except AimError:
        raise
    except Exception as err:
        if type(err).__module__.partition(".")[0] not in (
            "httpx",
            "httpx2",
            "httpcore",
            "httpcore2",
            "ssl",
            "builtins",
        ):
            raise
        if not isinstance(err, OSError) and type(err).__module__ == "builtins":
            raise
        raise Unreachable(
            "the Kubernetes cluster does not answer",
            why=str(err)[:300] or type(err).__name__,
            hint="check the context: kubectl cluster-info",
        ) from err
