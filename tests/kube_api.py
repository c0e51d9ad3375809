"""A small Kubernetes API for tests: keeps objects, rolls Deployments out, and can be told to misbehave."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

_PROXY = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/(?:pods|services)/(?P<target>[^/]+)/proxy(?P<path>/.*)$")
_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?(?:/(?P<plural>[^/]+))?(?:/(?P<name>[^/]+))?(?P<log>/log)?$"
)
CRASH = {
    "containerStatuses": [
        {
            "name": "vllm", "image": "x", "imageID": "x", "ready": False, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
        }
    ]
}  # fmt: skip
UNSCHEDULABLE = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes: Insufficient amd.com/gpu",
        }
    ]
}


class Cluster:
    """What the API holds, and how it behaves."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.namespaces = {"default"}
        self.refuse: dict[str, tuple[int, str]] = {}
        """Plural -> (status, message) given to every write of it."""
        self.polls_until_ready = 2
        self.pod_status: dict[str, Any] = {}
        """Status of every pod; with one, Deployments never become available."""
        self.inventory: dict[str, list[dict[str, Any]]] = {}
        """Plural -> what a list of all namespaces gives; kinds that are not in it answer 404 where this is used."""
        self.served = "/v1"
        """End of the only version served of grouped kinds in `inventory`."""
        self.log = "line 1\nline 2\nline 3\n"
        self.writes: list[str] = []
        self.leaving = 0
        """Looks at a Deployment during which a pod of before is still there, and counts as available."""
        self.kubelet: Any = None
        """Runs the pods of Deployments as processes (`kube_engines.Kubelet`); without one they only count as ready."""

    def names(self) -> list[str]:
        return sorted(f"{plural}/{name}" for plural, _, name in self.objects)

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        parts = urlsplit(url)
        proxied = _PROXY.match(parts.path)
        if proxied is not None:
            if "proxy" in self.refuse:
                code, message = self.refuse["proxy"]
                return code, _status(code, message)
            answer: tuple[int, str] = self.kubelet.proxied(method, proxied["target"], proxied["path"], body)
            return answer
        match = _PATH.match(parts.path)
        if match is None:
            return 404, _status(404, f"no path {parts.path}")
        plural, namespace, name = match["plural"] or "namespaces", match["namespace"] or "", match["name"] or ""
        query = parse_qs(parts.query)
        if match["plural"] is None and match["namespace"]:
            return (
                (200, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
                if namespace in self.namespaces
                else (404, _status(404, f'namespaces "{namespace}" not found'))
            )
        if match["log"]:
            return 200, self.log
        if method in ("PATCH", "DELETE") and plural in self.refuse:
            code, message = self.refuse[plural]
            return code, _status(code, message)
        if self.inventory and method == "GET" and not namespace and not name:
            if plural in self.refuse:
                code, message = self.refuse[plural]
                return code, _status(code, message)
            if plural not in self.inventory or (match["group"] and not match["group"].endswith(self.served)):
                return 404, _status(404, "the server could not find the requested resource")
            return 200, {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": self.inventory[plural]}
        key = (plural, namespace, name)
        if method == "PATCH":
            self.writes.append(f"{plural}/{name} {query.get('fieldManager')} {query.get('force')}")
            before = self.objects.get(key)
            changed = before is None or before.get("spec") != body.get("spec")
            generation = int(changed) + (before["metadata"]["generation"] if before is not None else 0)
            body["metadata"] |= {"uid": "1", "generation": generation, "namespace": namespace}
            self.objects[key] = body
            if plural == "deployments" and changed and self.kubelet is not None:
                self.kubelet.roll(body)
            return 200, body
        if method == "DELETE":
            if plural == "deployments" and key in self.objects and self.kubelet is not None:
                self.kubelet.remove(name)
            return (200, _status(200, "ok")) if self.objects.pop(key, None) else (404, _status(404, "not found"))
        if name:
            found = self.objects.get(key)
            if found is None:
                return 404, _status(404, f'{plural} "{name}" not found')
            if plural == "deployments":
                self._roll_out(found)
            return 200, found
        return 200, {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": self._list(plural, namespace, query)}

    def _roll_out(self, deployment: dict[str, Any]) -> None:
        self.polls_until_ready -= 1
        ready = self.polls_until_ready <= 0 and not self.pod_status
        count = deployment["spec"]["replicas"] if ready else 0
        if self.kubelet is not None:
            count = self.kubelet.ready(deployment["metadata"]["name"])
        self.leaving = max(0, self.leaving - 1)
        if self.leaving:
            count = deployment["spec"]["replicas"]
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": deployment["spec"]["replicas"] + (self.leaving > 0),
            "updatedReplicas": deployment["spec"]["replicas"],
            "availableReplicas": count,
        }

    def _list(self, plural: str, namespace: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        wanted = dict(pair.split("=") for pair in unquote(query.get("labelSelector", [""])[0]).split(",") if pair)
        if plural == "pods" and self.kubelet is not None:
            return [
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": pod, "namespace": namespace},
                    "spec": owner["spec"]["template"]["spec"],
                    "status": self.kubelet.status(pod),
                }
                for pod, (_, _, owner) in sorted(self.kubelet.pods.items())
                if owner["metadata"]["name"] == wanted.get("app.kubernetes.io/instance")
            ]
        if plural == "pods":
            return [
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": f"{name}-0", "namespace": namespace},
                    "status": self.pod_status,
                }
                for kind, where, name in self.objects
                if kind == "deployments" and where == namespace and name == wanted.get("app.kubernetes.io/instance")
            ]
        return [
            each
            for (kind, where, _), each in self.objects.items()
            if kind == plural and where == namespace and wanted.items() <= each["metadata"].get("labels", {}).items()
        ]


def _status(code: int, message: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message, "code": code, "reason": "x"}


@contextmanager
def serving(cluster: Cluster, kubeconfig: Path) -> Iterator[str]:
    """Serve `cluster` and write the kubeconfig that leads to it."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = yaml.safe_load(self.rfile.read(length)) if length else None
            status, document = cluster.answer(self.command, self.path, body)
            content = document.encode() if isinstance(document, str) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(document, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - the base class names them so

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": address}}],
                "users": [{"name": "test", "user": {}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )
    try:
        yield address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
