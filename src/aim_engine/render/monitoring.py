"""Target `monitoring`: what the Prometheus operator scrapes and warns of, and a Grafana dashboard."""

from __future__ import annotations

import json
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.planner.plan import Plan
from aim_engine.render import pod, serving, text, watch
from aim_engine.render.artifact import Artifact, Options


class Monitoring:
    """PodMonitor, PrometheusRule and a ConfigMap that Grafana's sidecar reads as a dashboard."""

    name = "monitoring"

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that watch `plan`; see `Target`."""
        operator = "monitoring.coreos.com/v1"
        endpoint = {"port": "http", "path": "/metrics", "interval": "15s"}
        monitor = {
            "selector": {"matchLabels": pod.selector(options)},
            "podTargetLabels": ["app.kubernetes.io/instance"],
            "podMetricsEndpoints": [endpoint],
        }
        board = pod.metadata(plan, options, "-dashboard")
        board["labels"] = {**board["labels"], "grafana_dashboard": "1"}
        objects: dict[str, dict[str, Any]] = {
            "podmonitor": {"apiVersion": operator, "kind": "PodMonitor", "spec": monitor},
            "prometheusrule": {"apiVersion": operator, "kind": "PrometheusRule", "spec": watch.rules(plan, options)},
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
