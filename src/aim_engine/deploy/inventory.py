"""The GPUs of a live Kubernetes cluster: its nodes, what pods and claims hold of them, and what the DRA driver publishes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.deploy.kubernetes import connect, said
from aim_engine.errors import InvalidInput
from aim_engine.hardware import nodes
from aim_engine.hardware.cluster import Cluster, Finding

_SLICE_VERSIONS = ("v1", "v1beta2", "v1beta1")
_MISSING, _FORBIDDEN = 404, (401, 403)


def read(overlay: Path | None = None) -> Cluster:
    """What the cluster of the current kubectl context offers. Raises: MissingExtra, Unreachable, InvalidInput without nodes.

    Nodes must be readable. Without the right to list pods it is not known what is free, which the nodes then say.
    """
    from lightkube.resources import core_v1

    recorded = (
        "record it where kubectl works: kubectl get nodes,pods -A -o json > cluster.json, then --from cluster.json"
    )
    client = connect("default", needed_for="asking a cluster", otherwise=recorded)
    with said("the cluster does not show its nodes"):
        found = {"Node": tuple(_plain(each, "Node") for each in client.list(core_v1.Node))}
    if not found["Node"]:
        raise InvalidInput("the cluster has no nodes", hint="check the context: kubectl config current-context")
    unread = []
    pods = _list(client, core_v1.Pod, "Pod", namespace="*")
    if pods is None:
        unread.append("pods")
    slices, claims = _published(client)
    if slices and claims is None:
        unread.append("resourceclaims")
    objects = {**found, "ResourceSlice": slices}
    objects |= {kind: each for kind, each in (("Pod", pods), ("ResourceClaim", claims)) if each is not None}
    cluster = nodes.assemble(objects, overlay)
    return _without(cluster, unread)


def _without(cluster: Cluster, unread: list[str]) -> Cluster:
    if not unread:
        return cluster
    finding = Finding(
        id="K8S119",
        severity="warning",
        message=f"this account may not list {' and '.join(unread)}, so what is free is not known",
        remedy=f"kubectl auth can-i list {unread[0]} --all-namespaces",
    )
    first = cluster.nodes[0]
    return msgspec.structs.replace(
        cluster,
        nodes=(msgspec.structs.replace(first, findings=(finding, *first.findings)), *cluster.nodes[1:]),
    )


def _published(client: Any) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...] | None]:
    """Slices and claims in the newest version that the cluster serves; nothing where it serves none."""
    from lightkube.generic_resource import create_global_resource, create_namespaced_resource

    for version in _SLICE_VERSIONS:
        kind = create_global_resource("resource.k8s.io", version, "ResourceSlice", "resourceslices")
        slices = _list(client, kind, "ResourceSlice")
        if slices:
            claim = create_namespaced_resource("resource.k8s.io", version, "ResourceClaim", "resourceclaims")
            return slices, _list(client, claim, "ResourceClaim", namespace="*")
    return (), None


def _list(client: Any, kind: Any, name: str, **where: str) -> tuple[Mapping[str, Any], ...] | None:
    """All objects of a kind; empty where the cluster does not know the kind, None where this account may not see them."""
    from lightkube.core.exceptions import ApiError

    with said(f"the cluster does not show its {name.lower()}s"):
        try:
            return tuple(_plain(each, name) for each in client.list(kind, **where))
        except ApiError as err:
            if err.status.code == _MISSING:
                return ()
            if err.status.code in _FORBIDDEN:
                return None
            raise


def _plain(each: Any, kind: str) -> Mapping[str, Any]:
    document: dict[str, Any] = each.to_dict()
    return {**document, "kind": kind}
