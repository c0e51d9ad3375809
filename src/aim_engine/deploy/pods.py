"""Pages of a deployment's pods, through the cluster's API server: one of each replica, from wherever kubectl works.

A Service answers with another replica each time, and its address is known inside the cluster only.
"""

from __future__ import annotations

from typing import Any

from aim_engine.deploy import kubernetes
from aim_engine.errors import Unreachable

MOST_BYTES = 16 * 1024 * 1024
"""A metrics page of an engine has some hundred kilobytes."""


class Pods:
    """The pods of one deployment. Asks for them anew each time, since they come and go."""

    def __init__(self, namespace: str, name: str, *, timeout_s: float = 5.0) -> None:
        """Raises: MissingExtra, Unreachable without a cluster."""
        self._namespace, self._name, self._timeout_s = namespace, name, timeout_s
        self._client = kubernetes.connect(
            namespace, needed_for="asking the pods of a cluster", otherwise="name an address"
        )
        from lightkube.config import client_adapter

        # lightkube has no proxy sub-resource; this is the connection that it makes for itself.
        parameters = client_adapter.ConnectionParams(timeout=timeout_s)  # type: ignore[arg-type]
        self._http = client_adapter.Client(self._client.config, parameters)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._client.close()

    def pages(self, path: str = "/metrics") -> dict[str, str | Unreachable]:
        """Pod -> its page, or why there is none. Raises: Unreachable when the cluster does not say which pods there are."""
        found: dict[str, str | Unreachable] = {}
        for pod, port in self._ready():
            try:
                found[pod] = self._page(pod, port, path)
            except Unreachable as err:
                found[pod] = err
        return found

    def _ready(self) -> list[tuple[str, int]]:
        with kubernetes.said("the cluster could not be asked for pods"):
            pods = kubernetes.pods_of(self._client, self._name)
        return sorted((pod.metadata.name, _port(pod)) for pod in pods if _is_ready(pod))

    def _page(self, pod: str, port: int, path: str) -> str:
        url = f"/api/v1/namespaces/{self._namespace}/pods/{pod}:{port}/proxy{path}"
        what = f"{path} of pod {pod} could not be had"
        with kubernetes.said(what), self._http.stream("GET", url) as answer:
            if answer.status_code != 200:
                answer.read()
                hints = {403: f"kubectl auth can-i get pods/proxy --namespace {self._namespace}"}
                raise Unreachable(
                    what,
                    why=f"the API server answered {answer.status_code}: {answer.text[:200].strip()}",
                    hint=hints.get(answer.status_code, f"kubectl --namespace {self._namespace} describe pod {pod}"),
                )
            parts, size = [], 0
            for part in answer.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > MOST_BYTES:
                    raise Unreachable(what, why=f"it sends more than {MOST_BYTES} bytes")
        return b"".join(parts).decode("utf-8", "replace")


def _is_ready(pod: Any) -> bool:
    conditions = (pod.status.conditions or ()) if pod.status else ()
    return pod.metadata.deletionTimestamp is None and any(
        each.type == "Ready" and each.status == "True" for each in conditions
    )


def _port(pod: Any) -> int:
    """Of the engine's container, the port called http."""
    for container in (pod.spec.containers if pod.spec else None) or ():
        for port in container.ports or ():
            if port.name == "http":
                return int(port.containerPort)
    return 8000
