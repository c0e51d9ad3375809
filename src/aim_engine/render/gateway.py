"""Target `gateway`: requests of a Gateway go to the replica that has most of the prompt cached and least to do."""

from __future__ import annotations

from aim_engine.backend.base import Backend
from aim_engine.planner.plan import Plan
from aim_engine.render import pod, serving, text
from aim_engine.render.artifact import Artifact, Options

PICKER_PORT = 9002
"""Source: kubernetes-sigs/gateway-api-inference-extension, endpoint picker."""


class Gateway:
    """An InferencePool of the pods that target `kubernetes` writes, and the HTTPRoute that leads to it."""

    name = "gateway"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that route to `plan`; see `Target`."""
        parent = text.dns_subdomain(options.gateway, "gateway")
        picker = f"{text.dns_label(options.name)}-epp"
        group = "inference.networking.k8s.io"
        pool = {
            "apiVersion": f"{group}/v1",
            "kind": "InferencePool",
            "metadata": pod.metadata(plan, options),
            "spec": {
                "selector": {"matchLabels": pod.selector(options)},
                "targetPorts": [{"number": serving.CONTAINER_PORT}],
                # Without the picker requests are spread evenly, which is slower but not down.
                "endpointPickerRef": {"name": picker, "port": {"number": PICKER_PORT}, "failureMode": "FailOpen"},
            },
        }
        reference = {"group": group, "kind": "InferencePool", "name": options.name}
        route = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": pod.metadata(plan, options),
            "spec": {
                "parentRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": parent}],
                "rules": [
                    {
                        "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                        "backendRefs": [reference],
                        # An answer may stream for minutes; the engine ends it, not the gateway.
                        "timeouts": {"request": "0s"},
                    }
                ],
            },
        }
        notes = {
            "inferencepool": (
                f"The endpoint picker is the Service {picker}: install it with the extension's chart of your gateway.",
                "The namespaces of gateway and picker send requests and read metrics, so they are the ones to label.",
            ),
            "httproute": ("Only the API is routed: /metrics, /health and the engine's own pages stay inside.",),
        }
        return tuple(
            Artifact(
                path=f"{file}.yaml",
                content=serving.header(plan, self.name, *notes[file]) + text.yaml_document(document),
            )
            for file, document in (("inferencepool", pool), ("httproute", route))
        )
