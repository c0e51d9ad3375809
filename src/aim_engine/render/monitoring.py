"""Target `monitoring`: what the Prometheus operator scrapes and warns of, and a Grafana dashboard."""

from __future__ import annotations

import json
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.planner.plan import Plan
from aim_engine.render import pod, serving, text, watch
from aim_engine.render.artifact import Artifact, Options

OPERATOR = "monitoring.coreos.com/v1"


class Monitoring:
    """PodMonitor or ServiceMonitor, PrometheusRule and a ConfigMap that Grafana's sidecar reads as a dashboard."""

    name = "monitoring"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that watch `plan`; see `Target`."""
        board = pod.metadata(plan, options, "-dashboard")
        board["labels"] = {**board["labels"], "grafana_dashboard": "1"}
        objects: dict[str, dict[str, Any]] = {
            "servicemonitor" if options.service_monitor else "podmonitor": monitor(options),
            "prometheusrule": {"apiVersion": OPERATOR, "kind": "PrometheusRule", "spec": watch.rules(plan, options)},
        }
        for document in objects.values():
            document["metadata"] = pod.metadata(plan, options)
        objects["dashboard"] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": board,
            "data": {f"{options.name}.json": json.dumps(watch.dashboard(plan, options), indent=1) + "\n"},
        }
        notes = ("Labels that your Prometheus selects monitors and rules by are added with --label.",)
        order = ("apiVersion", "kind", "metadata", "spec", "data")
        return tuple(
            Artifact(
                path=f"{file}.yaml",
                content=serving.header(plan, self.name, *notes)
                + text.yaml_document({key: document[key] for key in order if key in document}),
            )
            for file, document in objects.items()
        )


def monitor(options: Options) -> dict[str, Any]:
    """What the operator scrapes. One of the two, since both together would count every pod twice."""
    selector = {"matchLabels": pod.selector(options)}
    endpoint: dict[str, Any] = {"port": "http", "path": "/metrics", "interval": "15s"}
    labels = ["app.kubernetes.io/instance"]
    if not options.service_monitor:
        spec = {"selector": selector, "podTargetLabels": labels, "podMetricsEndpoints": [endpoint]}
        return {"apiVersion": OPERATOR, "kind": "PodMonitor", "spec": spec}
    # A StatefulSet has a second Service with the same labels and the same pods.
    by_name = {"sourceLabels": ["__meta_kubernetes_service_name"], "regex": options.name, "action": "keep"}
    spec = {"selector": selector, "podTargetLabels": labels, "endpoints": [{**endpoint, "relabelings": [by_name]}]}
    return {"apiVersion": OPERATOR, "kind": "ServiceMonitor", "spec": spec}
