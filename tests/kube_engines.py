"""A kubelet for `kube_api`: each pod of a Deployment is a process of `slot_engine.py`, reached through the API server's proxy."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kube_api

ENGINE = Path(__file__).parent / "slot_engine.py"


class Kubelet:
    """Runs the pods that Deployments ask for, newest specification only; the old ones go first."""

    def __init__(self) -> None:
        self.pods: dict[str, tuple[subprocess.Popen[bytes], int, dict[str, Any]]] = {}
        """Pod -> process, port, Deployment."""
        self.rolled = 0

    def roll(self, deployment: dict[str, Any]) -> None:
        """Replace the pods of a Deployment."""
        name = deployment["metadata"]["name"]
        self.remove(name)
        self.rolled += 1
        spec = deployment["spec"]["template"]["spec"]["containers"][0]
        words = [str(word) for word in (*spec.get("command", ()), *spec.get("args", ()))]
        slots = words[words.index("--max-num-seqs") + 1]
        dies = {each["name"]: each.get("value", "") for each in spec.get("env", ())}.get("SLOT_ENGINE_DIES")
        for number in range(deployment["spec"]["replicas"]):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            process = subprocess.Popen(
                [sys.executable, str(ENGINE), "serve", "--port", str(port), "--max-num-seqs", slots],
                stdout=subprocess.DEVNULL,
                env={**os.environ, **({"SLOT_ENGINE_DIES": dies} if dies else {})},
            )
            self.pods[f"{name}-{self.rolled}-{number}"] = (process, port, deployment)

    def remove(self, name: str) -> None:
        """End the pods of a Deployment."""
        for pod, (process, _, owner) in list(self.pods.items()):
            if owner["metadata"]["name"] == name:
                process.terminate()
                process.wait(10)
                del self.pods[pod]

    def status(self, pod: str) -> dict[str, Any]:
        """A pod's status as the API has it."""
        process, port, _ = self.pods[pod]
        if process.poll() is not None:
            return kube_api.CRASH
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            return {"conditions": [{"type": "Ready", "status": "False"}]}
        return {"conditions": [{"type": "Ready", "status": "True"}]}

    def ready(self, name: str) -> int:
        """How many pods of a Deployment are."""
        mine = [pod for pod, (_, _, owner) in self.pods.items() if owner["metadata"]["name"] == name]
        return sum(self.status(pod) == {"conditions": [{"type": "Ready", "status": "True"}]} for pod in mine)

    def proxied(self, method: str, target: str, path: str, body: Any) -> tuple[int, str]:
        """What a pod, or the first one of a Service, answers."""
        name = target.partition(":")[0]
        pod = name if name in self.pods else next((p for p in self.pods if p.startswith(f"{name}-")), None)
        if pod is None:
            return 503, "no endpoints available for service"
        connection = http.client.HTTPConnection("127.0.0.1", self.pods[pod][1], timeout=10)
        try:
            connection.request(method, path, body=json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as err:
            return 502, f"error trying to reach service: {err}"
        finally:
            connection.close()

    def close(self) -> None:
        """End everything."""
        for process, _, _ in self.pods.values():
            process.terminate()
            process.wait(10)


def wait_ready(kubelet: Kubelet, name: str, count: int) -> None:
    """Until so many pods answer."""
    ends = time.monotonic() + 20
    while kubelet.ready(name) < count:
        assert time.monotonic() < ends
        time.sleep(0.05)
